"""Comparison of strategies, agents or configs by independent runs: groups, intervals, and what they do and do not show.

The replication unit is a whole run, never a member: members of a population copy each other. What is compared is the
score of each run's chosen member, unless another metric is asked for.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import override

from pbtrl.errors import DamagedError, RunError
from pbtrl.reporting.comparison.group_curves import AXES, group_curve
from pbtrl.reporting.comparison.group_statistics import Pair, RunGroup
from pbtrl.reporting.comparison.groups import group_runs, labels, may_change_task, varying_settings
from pbtrl.reporting.comparison.metrics import Metric
from pbtrl.reporting.comparison.runs import ComparedRun, LeftOut, check_comparable, find_runs, load
from pbtrl.reporting.comparison.statistics import LEVEL
from pbtrl.reporting.formatting import format_count
from pbtrl.reporting.sweep_tables import EQUAL
from pbtrl.storage.json_files import SCHEMA
from pbtrl.system.argument_checks import as_path

ENOUGH = 10  # runs from which on bootstrap intervals are not remarked on


@dataclass(frozen=True)
class Comparison:
    """Result of `pbtrl.compare`.

    Attributes:
        metric: what is compared.
        groups: groups of replications, best first; those without a result last.
        left_out: runs without a result, and why.
        differences: settings that differ, with the value in each group (in the order of `groups`).
        folder: folder of all runs if a single one was given.
    """

    metric: Metric
    groups: tuple[RunGroup, ...]
    left_out: tuple[LeftOut, ...]
    differences: dict[str, list[Any]]
    folder: Path | None = None

    @property
    def runs(self) -> list[ComparedRun]:
        """All runs with a result."""
        return [run for group in self.groups for run in group.runs]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Each two groups that have results, the better one first."""
        scored = [group for group in self.groups if group.runs]
        return [Pair(a, b, self.metric) for a, b in itertools.combinations(scored, 2)]

    @cached_property
    def largest_ratio(self) -> float:
        """Largest total steps of a run over the smallest; 1 without runs."""
        steps = [run.steps for run in self.runs]
        return max(steps) / max(1, min(steps)) if steps else 1.0

    @property
    def warnings(self) -> list[str]:
        """Sentences about what makes the comparison doubtful."""
        result = []
        if self.largest_ratio > EQUAL:
            least, most = (f(self.runs, key=lambda run: run.steps) for f in (min, max))
            counts = " and ".join(f"{format_count(r.steps)} {r.header.steps} ({r.path.name})" for r in (most, least))
            result.append(
                f"compute is not equal: the largest ratio of total steps is {self.largest_ratio:.3g}, {counts}"
            )
        for group in self.groups:
            seeds = Counter(run.header.seed for run in group.runs)
            if twice := [seed for seed, count in seeds.items() if count > 1]:
                seeds_text = ", ".join(map(str, twice))
                result.append(f"{group.label}: several runs have the seed {seeds_text}; they may not be independent")
        if changed := [run.path.name for run in self.runs if run.changed]:
            result.append(f"changed by `pbtrl set` while training, unlike their config: {', '.join(changed)}")
        result += [
            f"{name} differs between the groups: their scores may not mean the same"
            for name, values in self.differences.items()
            if may_change_task(name, values)
        ]
        if self.metric.bias:
            result.append(self.metric.bias)
        machines = {str(run.info.get("versions", {}).get("processor")) for run in self.runs}
        if len(machines) > 1:
            result.append(f"the runs are from different machines, so times cannot be compared: {', '.join(machines)}")
        return result

    @property
    def notes(self) -> list[str]:
        """Sentences on reading the numbers: the metric, compute, and whether there are enough runs."""
        result = [f"compared: {self.metric.title}; the replication unit is a whole run, never a member"]
        if self.runs and self.largest_ratio <= EQUAL:
            result.append(f"compute is equal: the largest ratio of total steps is {self.largest_ratio:.4g}")
        small = {pair.arithmetic: None for pair in self.pairs if pair.is_too_small}
        result += [f"too few runs to conclude: {text}" for text in small]
        result += list({pair.arithmetic: None for pair in self.pairs if not pair.is_too_small and pair.arithmetic})
        if not all(pair.is_too_small for pair in self.pairs):
            result.append(
                "better: the interval of P(improvement) excludes one half, and the rank test of Mann and Whitney has "
                f"p <= {LEVEL}"
            )
        if any(1 < len(group.runs) < ENOUGH for group in self.groups):
            result.append(
                f"bootstrap intervals of fewer than {ENOUGH} runs are too narrow: of normal scores, those of 3 runs "
                "cover 75 %, those of 5 runs 91 %"
            )
        if len(self.pairs) > 1:
            result.append(f"no correction was made for {len(self.pairs)} comparisons")
        return result

    def to_json(self) -> dict[str, Any]:
        """As a JSON object. A value that is infinite because a target was not reached becomes null in JSON text."""
        steps = self.runs[0].header.unit if self.runs else None
        return {
            "schema": SCHEMA,
            "metric": {"name": self.metric.text, "title": self.metric.title, "higher": self.metric.higher_is_better},
            "unit": steps,
            "groups": [{**group.to_json(), "curves": _curves(group)} for group in self.groups],
            "pairs": [pair.to_json() for pair in self.pairs],
            "largest_ratio_of_steps": self.largest_ratio,
            "differences": self.differences,
            "left_out": [{"path": str(run.path), "reason": run.reason} for run in self.left_out],
            "warnings": self.warnings,
            "notes": self.notes,
        }

    @override
    def __str__(self) -> str:
        from pbtrl.reporting.comparison.tables import text

        return text(self)

    def markdown(self, command: Sequence[str] = ()) -> str:
        """Markdown table, with a line of machine, version, `command` and date."""
        from pbtrl.reporting.comparison.tables import markdown

        return markdown(self, command)

    def save(self, path: str | Path | None = None, command: Sequence[str] = ()) -> Path:
        """Write the page and return its path, by default compare.html in the folder of the runs or in this directory.

        Raises:
            RunError: it cannot be written, or something else is there.
        """
        from pbtrl.reporting.comparison.page import save

        return save(self, None if path is None else as_path("path", path), command)


def _curves(group: RunGroup) -> dict[str, Any]:
    """Curves of a group by name and axis, as JSON."""
    result = {name: {axis: group_curve(group, name, axis) for axis in AXES} for name in ("best", "median")}
    return {name: {axis: c and c.to_json() for axis, c in curves.items()} for name, curves in result.items()}


def compare(selected: Sequence[str], root: Path, metric: str = "score") -> Comparison:
    """Compare runs.

    Args:
        selected: runs as for `run_lookup.find`, and folders that hold run directories.
        root: folder of all runs.
        metric: `score`, `fitness`, `median` or `steps_to=VALUE`.

    Raises:
        RunError: there is no such run or metric, or two runs cannot be compared.
        DamagedError: a run that was named is damaged; in a folder it is left out.
    """
    wanted = Metric.parse(metric)
    selected_runs, folder = find_runs(selected, root)
    runs: list[ComparedRun] = []
    left_out: list[LeftOut] = []
    for run in selected_runs:
        try:
            runs.append(load(run))
        except DamagedError as error:
            if folder is None:
                raise
            left_out.append(LeftOut(run.path, str(error)))
    if not runs:
        what = "; ".join(one.reason for one in left_out) or "no runs were given"
        raise DamagedError(what) if left_out else RunError(what)
    check_comparable(runs)
    scored = next((run for run in runs if run.score is not None), runs[0])
    return _grouped(runs, left_out, wanted.titled(scored), folder)


def _grouped(runs: Sequence[ComparedRun], left_out: list[LeftOut], metric: Metric, folder: Path | None) -> Comparison:
    grouped = group_runs(runs)
    settings = [members[0].settings for members in grouped]
    names = labels(settings, [[run.path.name for run in members] for members in grouped])
    groups: list[tuple[RunGroup, int]] = []
    for place, (label, members) in enumerate(zip(names, grouped, strict=True)):
        values: list[tuple[ComparedRun, float]] = []
        for run in sorted(members, key=lambda r: (r.header.seed, r.path.name)):
            value = None if run.unfinished else metric.value(run)
            if value is None:
                left_out.append(LeftOut(run.path, run.unfinished or f"it has no finite {metric.text}"))
            else:
                values.append((run, value))
        groups.append((RunGroup(label, tuple(r for r, _ in values), tuple(v for _, v in values)), place))
    sign = -1.0 if metric.higher_is_better else 1.0
    groups.sort(key=lambda pair: math.inf if pair[0].iqm is None else sign * pair[0].iqm)
    order = [place for _, place in groups]
    different = {name: [values[i] for i in order] for name, values in varying_settings(settings).items()}
    return Comparison(metric, tuple(group for group, _ in groups), tuple(left_out), different, folder)
