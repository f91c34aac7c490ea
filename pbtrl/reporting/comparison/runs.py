"""Runs to compare: their lookup, their results, and whether they can be compared at all.

Nothing of a run is imported or executed: its config is read as plain values. So runs of a stranger can be compared.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbtrl.config.differences import NEUTRAL, flatten
from pbtrl.config.load import read
from pbtrl.config.renamed_keys import modernize
from pbtrl.config.wording import shown
from pbtrl.core.records import RunChanged, duration
from pbtrl.errors import ConfigError, DamagedError, RunError
from pbtrl.reporting.comparison.run_curves import RunCurves, run_curves
from pbtrl.storage.best_member import read_best, without_best
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.run_info import read_run_info
from pbtrl.storage.run_lookup import find, is_run, run_directories
from pbtrl.storage.run_state import state

Settings = dict[str, Any]
"""Settings of a config by their dotted names: `{"strategy.name": "pbt", ...}`."""

OWN = ("name", "seed", *NEUTRAL)
"""Sections in which replications may differ: the run's own, and its machine's."""


@dataclass(frozen=True)
class LeftOut:
    """Run without a result, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class ComparedRun:
    """Result of a run.

    Attributes:
        path: run directory.
        header: header of its journal.
        settings: its config, without what replications may differ in.
        info: content of run.json.
        metric: name of what the run maximizes, `return` in RL.
        score: score of the chosen member; None if there is none, or the run has not finished.
        held_out: whether the score of a trainable is of data that nothing else uses.
        score_interval: 95 % interval of the score over episodes, which tells nothing about other runs; or None.
        member: the chosen member; empty without a score.
        fitness: highest training fitness at the end; None if there is none.
        steps: steps of all members together, evaluators and retired ones included (in `header.unit`).
        seconds: training time, without the time between sessions.
        curves: its curves.
        changed: whether `pbtrl set` changed it, which `settings` does not show.
        unfinished: why it has no final result; empty if it has finished.
    """

    path: Path
    header: RunHeader
    settings: Settings
    info: Mapping[str, Any]
    metric: str
    score: float | None
    held_out: bool
    score_interval: tuple[float, float] | None
    member: str
    fitness: float | None
    steps: int
    seconds: float
    curves: RunCurves
    changed: bool
    unfinished: str


def find_runs(selected: Sequence[str], root: Path) -> tuple[list[RunDirectory], Path | None]:
    """Find the runs to compare: each text is a run, as for `find`, or a folder that holds run directories.

    Returns:
        The run directories, each once, and the folder if a single one was given.

    Raises:
        RunError: there is no such run.
    """
    result: list[RunDirectory] = []
    folders = [_folder(text, root) for text in selected]
    for text, folder in zip(selected, folders, strict=True):
        result += [find(text, root)] if folder is None else sorted(run_directories(folder))
    unique = {run.path.resolve(): run for run in reversed(result)}
    return list(unique.values())[::-1], folders[0] if len(folders) == 1 else None


def _folder(text: str, root: Path) -> Path | None:
    """Return the folder of runs that a text names, or None if it must name a run."""
    if not text or "\0" in text:
        return None
    places = [Path(os.path.expanduser(text))]
    if not text.startswith("."):  # `.` is here, not below `root`
        places.insert(0, root / text)
    for path in places:
        if is_run(path):
            return None
        if os.path.isdir(path) and any(run_directories(path)):
            return path
    return None


def load(run: RunDirectory) -> ComparedRun:
    """Load a run's result and curves.

    Raises:
        DamagedError: a file of it is missing or damaged.
    """
    settings = read_settings(run)
    header, records, population = run.load()
    info = read_run_info(run)
    unfinished = _unfinished(run, info, population.step, header)
    best = None if unfinished else read_best(run)
    if best is None and not unfinished:
        unfinished = without_best(run)
    score = best.evaluation.return_mean if best else None
    curves = run_curves(header, records, best.means if best else {}, score)
    fitness = population.best.fitness if population.best else None
    return ComparedRun(
        run.path, header, settings, info,
        "return" if header.is_return else header.metric,
        score, best is not None and best.evaluation.held_out, best.evaluation.ci95 if best else None,
        best.member if best else "", fitness, population.step, duration(records), curves,
        any(isinstance(record, RunChanged) for record in records), unfinished,
    )  # fmt: skip


def _unfinished(run: RunDirectory, info: Mapping[str, Any], steps: int, header: RunHeader) -> str:
    """Return the reason that a run has no final result; empty if it has finished."""
    if (now := state(run)) == "finished":
        return ""
    why = str(info.get("reason") or "").partition("\n")[0] if now in ("stopped", "crashed") else ""
    return f"{now} after {steps:,} of {header.budget:,} {header.steps}" + (f": {why}" if why else "")


def read_settings(run: RunDirectory) -> Settings:
    """Read the settings of a run that make a difference, by their dotted names; absent ones are left out.

    A searched hyperparameter has its prior under the name that its fixed value would have.

    Raises:
        DamagedError: config.resolved.yaml is missing or damaged.
    """
    path = run.resolved_config
    if not path.is_file():  # a pipe would block
        raise DamagedError(f"{path} is missing; restore it, or leave the run out")
    try:
        tree = modernize(read(path).data)
    except ConfigError as error:
        raise DamagedError(error.messages[0]) from error
    fixed = "trainable" if "trainable" in tree else "agent"
    flat: Settings = {}
    for key, value in tree.items():
        if key == "hparams" and isinstance(value, dict):
            flat |= {f"{fixed}.{name}": prior for name, prior in value.items()}
        elif key not in OWN:
            flat |= flatten({str(key): value})
    return {name: value for name, value in flat.items() if value is not None}


def check_comparable(runs: Sequence[ComparedRun]) -> None:
    """Check that all runs have the same task and metric.

    Raises:
        RunError: two runs cannot be compared; the message names both and the difference.
    """
    for run in runs[1:]:
        for what in ("env", "trainable", "env protocol", "fitness.metric", "metric", "unit"):
            one, other = (_task(r).get(what) for r in (runs[0], run))
            if one != other:
                values = " and ".join("none" if v is None else shown(v) for v in (one, other))
                raise RunError(
                    f"{runs[0].path} and {run.path} cannot be compared: they have different {what}, {values}"
                )


def _task(run: ComparedRun) -> dict[str, Any]:
    env = run.settings.get("env.id")
    return {
        "env": env,
        "trainable": run.settings.get("trainable.name"),
        "env protocol": run.settings.get("env.protocol") if str(env).startswith("ALE/") else None,
        "fitness.metric": run.settings.get("fitness.metric"),
        "metric": run.metric,
        "unit": run.header.unit,
    }
