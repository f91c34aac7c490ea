"""Writer of `tb/`: one TensorBoard run per member, plus `population`.

x is the member's clock (env steps; steps outside RL), for `population/*` the sum over the population.
`population/fitness_*` cover members that have a fitness; `population/before_copy` counts those that are ranked by the
fitness from before their last copy. Live metrics come from `members/<id>/metrics.jsonl`, everything else from the
journal.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pbtrl.core.population import Population, mean
from pbtrl.reporting.event_file import EventFile
from pbtrl.reporting.formatting import format_value
from pbtrl.storage.journal import Line
from pbtrl.storage.metrics_log import Metrics, MetricsTail, tags
from pbtrl.storage.run_header import RunHeader
from pbtrl.system.files import is_disk_error


class TensorBoardWriter:
    """Controller listener that writes TensorBoard curves.

    Args:
        run: run directory.
        header: header of the run.
        population: live population; on a resume, after replaying the journal.
        resume: whether to hide points of earlier sessions beyond each member's last reported step.
    """

    def __init__(self, run: Path, header: RunHeader, population: Population, *, resume: bool = False) -> None:
        self._header, self._population = header, population
        self._tail = MetricsTail(run / "members", population.members, from_end=resume)
        self._folder = run / "tb"
        self._writers: dict[str, EventFile] = {}
        for m in population.members.values():
            if not m.retired:
                self._writers[m.id] = self._new_writer(m.id, m.step + 1 if resume else None)
        self._all = _writer(run / "tb" / "population", population.step + 1 if resume else None)
        self._shown = {m.id: _numbers(m.snapshot_hparams) if resume else {} for m in population.members.values()}
        self._streamed: defaultdict[str, set[str]] = defaultdict(set)
        self._decided: dict[str, tuple[int, int, float]] = {}
        for a in population.pending:
            self._decided[a.id] = (a.start, a.stop, 0.0)
        self._described = False
        self._before_copy = 0
        self._hook, threading.excepthook = threading.excepthook, self._ended

    def event(self, line: Line) -> None:
        """Write the points of a journal line."""
        match line["kind"]:
            case "decision":
                self._decision(line)
            case "report":
                self._report(line)
            case "failure":
                self._failure(line)
            case "finish":
                self.describe()

    def tick(self) -> None:
        """Write new live metrics of the members."""
        for member, line in self._tail.poll():
            self._stream(member, line)

    def describe(self) -> None:
        """Write the HParams entry of every member once, at the end of the run.

        HParams shows one value per member and hyperparameter: the last one of the schedule.
        """
        if self._described:
            return
        self._described = True
        for member in self._population.members.values():
            values = {k: _plain(v) for k, v in member.hyperparameters.items()}
            self._writer_of(member.id).add_hparams(values, [self._score_tag])
            self._close_if_retired(member.id)

    def close(self) -> None:
        """Write remaining metrics and end the writers' threads."""
        try:
            for member in list(self._writers):
                for line in self._tail.read(member):
                    self._stream(member, line)
            for writer in [*self._writers.values(), self._all]:
                writer.close()
        finally:
            threading.excepthook = self._hook

    @property
    def _score_tag(self) -> str:
        """Tag of what a member is trained for."""
        return "episode/return_mean" if self._header.unit == "env_steps" else f"evaluation/{self._header.metric}"

    def _ended(self, thread: threading.ExceptHookArgs) -> None:
        """Suppress the traceback of a writer's thread that a full disk ended; the next write raises its error."""
        if thread.exc_value is None or not is_disk_error(thread.exc_value):
            self._hook(thread)

    def _decision(self, line: Line) -> None:
        now = line["timing"]["time"]
        for a in line["assignments"]:
            self._decided[a["id"]] = (a["start"], a["stop"], now)
            self._write(a["member"], a.get("scalars", {}), a["start"], now)
        for member in line.get("retired", ()):
            self._close_if_retired(member)
        for agent, members in self._population.agents.items():
            self._all.add_scalar(f"population/members/{agent}", members, self._population.step, now)
        known = self._population.members
        copies = [a for a in line["assignments"] if a["donor"] and not known[a["member"]].is_evaluator]
        if copies:
            step, count = self._population.step, self._population.copies
            self._all.add_scalar("population/exploits", count, step, now)
            text = "\n\n".join(f"{a['member']} <- {a['donor']} ({a['note']})" for a in copies)
            self._all.add_text("population/exploits", text, step, now)
        if retired := sum(m.retired for m in self._population.members.values()):
            self._all.add_scalar("population/retired", retired, self._population.step, now)
        self._count_before_copy(now)

    def _report(self, line: Line) -> None:
        member, step, now = line["member"], line["step"], line["timing"]["time"]
        for streamed in self._tail.read(member):
            self._stream(member, streamed)
        points = dict(line["scalars"])
        if line["lengths"]:
            points[self._score_tag] = mean(line["returns"])
            if self._header.unit == "env_steps":
                points["episode/length_mean"] = mean(line["lengths"])
        if self._header.rule.source == "evaluation" and line["evaluation"]:
            points["evaluation/return_mean"] = mean(line["evaluation"])
        already = self._streamed[member]
        new = {k: y for k, y in points.items() if k not in already and y is not None and math.isfinite(y)}
        self._write(member, new, step, now)
        already.clear()
        self._hyperparameters(member, line)
        if ranked := [m.fitness for m in self._population.ranking() if m.fitness is not None]:
            summary = {"max": max(ranked), "median": statistics.median(ranked), "min": min(ranked)}
            for name, y in summary.items():
                self._all.add_scalar(f"population/fitness_{name}", y, self._population.step, now)
        self._count_before_copy(now)

    def _count_before_copy(self, now: float) -> None:
        """Write the number of members that are ranked by a fitness from before a copy, if it has changed."""
        number = sum(m.before_copy for m in self._population.members.values())
        if number != self._before_copy:
            self._before_copy = number
            self._all.add_scalar("population/before_copy", number, self._population.step, now)

    def _hyperparameters(self, member: str, line: Line) -> None:
        """Write effective hyperparameters at both ends of the slice, so that a change is a step and not a slope."""
        step, now = line["step"], line["timing"]["time"]
        start, _, decided = self._decided.pop(line["assignment"], (step, step, now))
        numbers = _numbers(line["hyperparameters"])
        changed = {k: v for k, v in numbers.items() if self._shown.setdefault(member, {}).get(k) != v}
        self._write(member, changed, start, decided or now)
        self._write(member, numbers, step, now)
        self._shown[member] = numbers

    def _failure(self, line: Line) -> None:
        """Hide the live metrics of a failed slice, as on a resume."""
        member = line["member"]
        for streamed in self._tail.read(member):
            self._stream(member, streamed)
        self._streamed[member].clear()
        self._writer_of(member).hide_after(self._population.members[member].step + 1)

    def _stream(self, member: str, line: Metrics) -> None:
        slice_ = self._decided.get(line.get("assignment", ""))
        if slice_ is None:  # already reported: the slice only remakes a lost snapshot
            return
        step = line.get("step", slice_[1])  # trainables without `step` write metrics only at the end of a slice
        points = tags(line)
        self._write(member, points, step, line.get("time"))
        self._streamed[member] |= points.keys()

    def _write(self, member: str, points: Mapping[str, float], step: int, time: float | None) -> None:
        if points:
            writer = self._writer_of(member)
            for tag, y in points.items():
                writer.add_scalar(tag, y, step, time)

    def _writer_of(self, member: str) -> EventFile:
        if member not in self._writers:
            self._writers[member] = self._new_writer(member)
        return self._writers[member]

    def _new_writer(self, member: str, purge_step: int | None = None) -> EventFile:
        """Make the writer of a member; a role is part of its name, as in `m16-evaluator`."""
        role = self._population.members[member].role.replace(" ", "-")
        return _writer(self._folder / (f"{member}-{role}" if role else member), purge_step)

    def _close_if_retired(self, member: str) -> None:
        """Close the writer of a member that will not train again; each open one has a thread and a file."""
        if self._population.members[member].retired and member in self._writers:
            for line in self._tail.read(member):
                self._stream(member, line)
            self._writers.pop(member).close()


def _writer(folder: Path, purge_step: int | None) -> EventFile:
    """Start a file, and hide what earlier ones say from `purge_step` on."""
    file = EventFile(folder)
    if purge_step is not None:
        file.hide_after(purge_step)
    return file


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Numeric hyperparameters by tag."""
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {f"hparams/{k}": float(v) for k, v in numbers.items()}


def _plain(x: object) -> bool | float | str:
    return x if isinstance(x, bool | int | float | str) else format_value(x)
