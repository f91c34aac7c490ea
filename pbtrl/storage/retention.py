"""Deletion of old snapshots, except each member's newest, milestones, parents and the best one."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from pbtrl.core.population import Population
from pbtrl.storage.journal import Line
from pbtrl.storage.snapshot_store import SnapshotStore


class Retention:
    """Controller listener that deletes snapshots after each report.

    Args:
        store: snapshots of the run.
        population: live population.
        keep_last: number of newest snapshots per member to keep.
        milestones_every: a member's steps between snapshots that are kept permanently; None keeps none.
        lines: journal of earlier sessions.
        always: snapshots to keep for other reasons.
    """

    def __init__(
        self, store: SnapshotStore, population: Population, *, keep_last: int, milestones_every: int | None = None,
        lines: Iterable[Line] = (), always: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._store, self._population = store, population
        self._keep_last, self._every = keep_last, milestones_every
        self._kept = set(always)
        self._steps: dict[str, int] = {}
        for line in lines:
            self._pass_milestones(line)

    def event(self, line: Line) -> None:
        """After a report, delete the member's snapshots that are no longer needed."""
        if line["kind"] != "report":
            return
        self._pass_milestones(line)
        names = self._store.names(line["member"])
        keep = {*names[-self._keep_last :], *self._population.needed(), *self._kept}
        for name in names:
            if name not in keep:
                self._store.remove(name)

    def tick(self) -> None:
        """Do nothing between events."""

    def _pass_milestones(self, line: Line) -> None:
        if self._every and line["kind"] == "report":
            before = self._steps.get(line["member"], 0)
            self._steps[line["member"]] = line["step"]
            if before // self._every < line["step"] // self._every:
                self._kept.add(line["assignment"])
