"""Lineage of members, from a journal: copies, and the ancestry of a snapshot.

A snapshot's parent is the snapshot that its slice loaded. Weights are copied only if the parent belongs to another
member; a donor without that gave its hyperparameters alone. The ancestry of the best member is the discovered schedule.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.records import Decision, Record, ReportRecord
from pbtrl.storage.run_header import read_header


@dataclass(frozen=True)
class TrainedSlice:
    """Reported slice of a member.

    Attributes:
        assignment: id of its assignment, also the name of its snapshot.
        parent: snapshot that it loaded; None for fresh weights.
        start: the member's clock before the slice (env steps).
        stop: the member's clock after the slice (env steps).
        hyperparameters: effective hyperparameters.
        assigned: hyperparameters as the strategy gave them; the effective ones are rounded to single precision.
        ended: time of the report (seconds since the run's start).
        seconds: duration.
    """

    assignment: str
    parent: str | None
    start: int
    stop: int
    hyperparameters: Hyperparameters
    assigned: Hyperparameters
    ended: float
    seconds: float

    @property
    def member(self) -> str:
        """Id of the member."""
        return self.assignment.rsplit("/", 1)[0]

    @property
    def begun(self) -> float:
        """Start of the slice (seconds since the run's start)."""
        return max(0.0, self.ended - self.seconds)


def copies(records: Iterable[Record]) -> list[dict[str, Any]]:
    """List every copy, oldest first.

    Keys: those of `Copy.to_json`, and `time` (seconds since the run's start).
    """
    header, all_records = read_header(records)
    population = header.population()
    rows: list[dict[str, Any]] = []
    for record in all_records:
        population.record(record)
        if isinstance(record, Decision):
            rows += [{"time": record.elapsed, **copy.to_json()} for copy in population.latest_copies]
    return rows


def trained_slices(records: Iterable[Record]) -> dict[str, TrainedSlice]:
    """Map every reported slice's assignment id to the slice, in the order of the reports."""
    decided: dict[str, Assignment] = {}
    slices: dict[str, TrainedSlice] = {}
    for record in records:
        if isinstance(record, Decision):
            decided |= {a.id: a for a in record.assignments}
        elif isinstance(record, ReportRecord):
            report, a = record.report, decided[record.report.assignment]
            slices[a.id] = TrainedSlice(
                a.id, a.parent, a.start, report.step, report.hyperparameters, a.hyperparameters, record.elapsed,
                report.timing.get("seconds", 0.0),
            )  # fmt: skip
    return slices


def ancestry(known: Mapping[str, TrainedSlice], snapshot: str | None) -> list[TrainedSlice]:
    """List the slices that led to a snapshot, oldest first; empty if the snapshot was never reported.

    Each slice is on its own member's clock, so starts and stops may jump at a copy.
    """
    path: list[TrainedSlice] = []
    while s := known.get(snapshot or ""):
        path.append(s)
        snapshot = s.parent
    return path[::-1]


def schedule(path: Sequence[TrainedSlice]) -> list[tuple[int, Hyperparameters]]:
    """Convert an ancestry to a schedule of (steps trained before, assigned hyperparameters), without repetitions."""
    points: list[tuple[int, Hyperparameters]] = []
    trained = 0
    for s in path:
        if not points or points[-1][1] != s.assigned:
            points.append((trained, s.assigned))
        trained += s.stop - s.start
    return points
