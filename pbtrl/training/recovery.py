"""Recovery of lost snapshots: the assignments that make them again, and the assignments that wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pbtrl.core.messages import Assignment


@dataclass(frozen=True)
class Recovery:
    """Recovery of one lost snapshot.

    Attributes:
        assignment: assignment that makes the snapshot again.
        waiting: assignments that start when the snapshot exists.
    """

    assignment: Assignment
    waiting: list[Assignment] = field(default_factory=list)


class RecoveryQueue:
    """Recoveries in progress, by the name of the snapshot. True while there are any."""

    def __init__(self) -> None:
        self._recoveries: dict[str, Recovery] = {}

    def __bool__(self) -> bool:
        return bool(self._recoveries)

    def __contains__(self, snapshot: str) -> bool:
        return snapshot in self._recoveries

    def __getitem__(self, snapshot: str) -> Recovery:
        return self._recoveries[snapshot]

    def start(self, origin: Assignment, waiting: Sequence[Assignment]) -> Assignment | None:
        """Start to recover the snapshot of `origin`, or add to the assignments that wait for it.

        Returns:
            The assignment to carry out: the original with its seed, for the first waiting member. None if the recovery
            is already in progress.
        """
        if origin.id in self._recoveries:
            self._recoveries[origin.id].waiting.extend(waiting)
            return None
        again = replace(origin, member=waiting[0].member) if waiting else origin
        self._recoveries[origin.id] = Recovery(again, list(waiting))
        return again

    def hold(self, assignments: Sequence[Assignment]) -> list[Assignment]:
        """Hold back assignments whose parent is being recovered, or whose member is busy with a recovery.

        Returns:
            The other assignments, which can start now.
        """
        ready: list[Assignment] = []
        for a in assignments:
            blocking = [
                r for r in self._recoveries.values() if a.parent == r.assignment.id or a.member == r.assignment.member
            ]
            (blocking[0].waiting if blocking else ready).append(a)
        return ready

    def finish(self, snapshot: str) -> list[Assignment]:
        """End a recovery. Returns the assignments that waited for it."""
        return self._recoveries.pop(snapshot).waiting
