"""Deletion of old snapshots, except each member's newest, milestones, parents and the best one.

A retired member keeps a snapshot only while it is among the fittest retired ones, so that a search of hundreds of
trials needs no more space than the trials that may still train. One that was given up keeps its newest in any case,
because a resumed run may let it try again.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from pbtrl.core.messages import Report
from pbtrl.core.population import Population
from pbtrl.core.records import Decision, Record, ReportRecord, RunChanged
from pbtrl.storage.snapshot_store import SnapshotStore


class Retention:
    """Controller listener that deletes snapshots after each report.

    Args:
        store: snapshots of the run.
        population: live population.
        keep_last: number of newest snapshots per member to keep.
        milestones_every: a member's steps between snapshots that are kept permanently; None keeps none.
        keep_retired: number of retired members, the fittest, that keep their newest snapshot.
        records: journal of earlier sessions.
        always: snapshots to keep for other reasons.
    """

    def __init__(
        self, store: SnapshotStore, population: Population, *, keep_last: int, milestones_every: int | None = None,
        keep_retired: int = 3, records: Iterable[Record] = (), always: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._store, self._population = store, population
        self._keep_last, self._every, self._keep_retired = keep_last, milestones_every, keep_retired
        self._retired_kept = self._fittest_retired()
        self._kept = set(always)
        self._steps: dict[str, int] = {}
        for record in records:
            if isinstance(record, ReportRecord):
                self._pass_milestones(record.report)

    def event(self, record: Record) -> None:
        """After a report or a retirement, delete the snapshots that are no longer needed."""
        if isinstance(record, ReportRecord):
            self._pass_milestones(record.report)
            changed = {record.report.member}
        elif isinstance(record, Decision | RunChanged) and record.retired:
            changed = {*record.retired}
        else:
            return
        if any(self._population.members[member].retired for member in changed):
            kept = self._fittest_retired()
            changed |= self._retired_kept - kept
            self._retired_kept = kept
        for member in sorted(changed):
            self._clean(member)

    def _fittest_retired(self) -> set[str]:
        """Return the retired members that keep a snapshot for the final choice."""
        retired = [m for m in self._population.members.values() if m.retired and m.snapshot and not m.given_up]
        retired.sort(key=lambda m: -math.inf if not m.ranked else m.fitness or 0.0, reverse=True)
        return {m.id for m in retired[: self._keep_retired]}

    def _clean(self, member: str) -> None:
        names, m = self._store.names(member), self._population.members[member]
        keep = {*self._population.needed(), *self._kept}
        if m.pending:  # its snapshot may be there before its report
            keep.add(m.pending.id)
        if not m.retired:
            keep |= {*names[-self._keep_last :]}
        elif member in self._retired_kept or m.given_up:
            keep |= {*names[-1:]}
        for name in names:
            if name not in keep:
                self._store.remove(name)

    def tick(self) -> None:
        """Do nothing between events."""

    def _pass_milestones(self, report: Report) -> None:
        if self._every:
            before = self._steps.get(report.member, 0)
            self._steps[report.member] = report.step
            if before // self._every < report.step // self._every:
                self._kept.add(report.assignment)
