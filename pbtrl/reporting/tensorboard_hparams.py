"""HParams tab and custom-scalars layout of TensorBoard.

HParams shows a row per member: initial and final hyperparameters, training fitness, and the scores of the final choice.
TensorBoard shows the first such summary of a folder. So it lies in a file of its own, which a later session replaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pbtrl.core.messages import Hyperparameters
from pbtrl.core.population import Population
from pbtrl.core.records import Decision, Record
from pbtrl.core.scores import BestMember
from pbtrl.reporting.event_file import EventFile
from pbtrl.reporting.formatting import format_value
from pbtrl.reporting.tables import scored_on
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.run_points import fitness_tag, score_tag

SUFFIX = ".hparams"
SELECTION, SCORE = "final/selection_score", "final/score"
Layout = dict[str, dict[str, list[str]]]


def write_hparams(
    folders: Mapping[str, Path], shared: Path, header: RunHeader, population: Population, records: Iterable[Record],
    best: BestMember,
) -> None:  # fmt: skip
    """Write the HParams table.

    Args:
        folders: folder of each member's curves.
        shared: folder of the population's curves, which gets the description of the columns.
        header, population, records: the run.
        best: result of the final choice.
    """
    from tensorboard.plugins.hparams import summary_v2 as hp  # type: ignore[import-untyped]

    rows = _rows(population, initial_values(records))
    metrics = {fitness_tag(header): f"{header.metric} in training", **_score_names(header, best)}
    named = [hp.Metric(tag, display_name=text) for tag, text in metrics.items()]
    _write(shared, _described(hp.hparams_config_pb(_columns(rows), named), rows))
    scores = final_scores(best)
    for member, folder in folders.items():
        step = population.members[member].step
        _write(folder, hp.hparams_pb(rows[member], trial_id=member), scores.get(member, {}), step)


def initial_values(records: Iterable[Record]) -> dict[str, Hyperparameters]:
    """Hyperparameters of each member's first assignment."""
    first: dict[str, Hyperparameters] = {}
    for record in records:
        for a in record.assignments if isinstance(record, Decision) else ():
            first.setdefault(a.member, a.hyperparameters)
    return first


def final_scores(best: BestMember) -> dict[str, dict[str, float]]:
    """Finite scores of the final choice by member and tag."""
    scores: dict[str, dict[str, float]] = {}
    for tag, score in [*((SELECTION, candidate) for candidate in best.selection), (SCORE, best.evaluation)]:
        if score.return_mean is not None:
            scores.setdefault(score.member, {})[tag] = score.return_mean
    return scores


def layout(header: RunHeader) -> Layout:
    """Charts of the custom-scalars tab: the population, the members, and a chart per hyperparameter."""
    rl = header.unit == "env_steps"
    speed = f"perf/{header.unit}_per_s"
    population = {
        f"{header.metric} of the population": [f"population/fitness_{name}" for name in ("max", "median", "min")],
        "exploits": ["population/exploits"],
    }
    members = {
        f"{header.metric} of each member": [fitness_tag(header)],
        score_tag(header): [score_tag(header)],
        **({"episode/length_mean": ["episode/length_mean"]} if rl else {}),
        speed: [speed],
    }
    schedules = {name: [f"hparams/{name}"] for name in header.hyperparameters}
    categories = {"population": population, "members": members, "hyperparameters": schedules}
    return {
        category: {title: [f"^{re.escape(tag)}$" for tag in tags] for title, tags in charts.items()}
        for category, charts in categories.items()
        if charts
    }


def _score_names(header: RunHeader, best: BestMember) -> dict[str, str]:
    measure = "return" if header.is_return else header.metric
    selection = "on selection seeds" if header.unit == "env_steps" else "in the final choice"
    data = scored_on(header.unit, held_out=best.evaluation.held_out)
    return {SELECTION: f"{measure} {selection}", SCORE: f"{measure} {data}"}


def _write(folder: Path, summary: Any, points: Mapping[str, float] | None = None, step: int = 0) -> None:
    for old in folder.glob(f"*{SUFFIX}"):
        old.unlink()
    file = EventFile(folder, SUFFIX)
    try:
        file.add_summary(summary)
        file.add_scalars(points or {}, step)
    finally:
        file.close()


def _rows(population: Population, first: Mapping[str, Hyperparameters]) -> dict[str, dict[str, Any]]:
    """Cells of each member by column: both values of one hyperparameter side by side."""
    return {
        m.id: {
            f"{name} ({when})": _plain(values[name])
            for name in m.hyperparameters
            for when, values in (("initial", first.get(m.id, {})), ("final", m.hyperparameters))
            if name in values
        }
        for m in population.members.values()
    }


def _columns(rows: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Columns with the range of their values, by which TensorBoard filters."""
    from tensorboard.plugins.hparams import summary_v2 as hp

    cells: dict[str, list[Any]] = {}
    for row in rows.values():
        for name, value in row.items():
            cells.setdefault(name, []).append(value)
    columns = []
    for name, values in cells.items():
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            columns.append(hp.HParam(name, hp.RealInterval(float(min(values)), float(max(values)))))
        else:
            columns.append(hp.HParam(name, hp.Discrete(sorted(set(map(str, values))))))
    return columns


def _described(summary: Any, rows: Mapping[str, Mapping[str, Any]]) -> Any:
    """Mark the columns whose values differ, which TensorBoard shows first; `summary_v2` cannot."""
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData  # type: ignore[import-untyped]

    plugin = summary.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    for info in data.experiment.hparam_infos:
        info.differs = len({row.get(info.name) for row in rows.values()}) > 1
    plugin.content = data.SerializeToString()
    return summary


def _plain(x: object) -> object:
    return x if isinstance(x, int | float | str) and not isinstance(x, bool) else format_value(x)
