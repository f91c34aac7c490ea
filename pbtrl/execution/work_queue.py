"""Open assignments of one worker: those that wait, those that it has, and those that it must have one at a time.

If a worker dies with several assignments, any of them may be the cause. From then on each of them is sent to the worker
while it has no other, so that the guilty one is found and the others are not blamed.
"""

from collections.abc import Sequence

from pbtrl.core.messages import Assignment, Failure, Report


class WorkQueue:
    """Open assignments of one worker.

    Attributes:
        open: ids of all unanswered assignments.
        under_way: assignments that the worker has, by id.
    """

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.under_way: dict[str, Assignment] = {}
        self._waiting: list[list[Assignment]] = []
        self._isolate: set[str] = set()

    def add(self, assignments: Sequence[Assignment]) -> None:
        """Append assignments that may share cohorts."""
        self.open |= {a.id for a in assignments}
        self._waiting += [[a] for a in assignments if a.id in self._isolate]
        if others := [a for a in assignments if a.id not in self._isolate]:
            self._waiting.append(others)

    def next_batch(self) -> list[Assignment]:
        """Return assignments for the worker, which are under way from now on; empty if all others must wait."""
        if not self._waiting:
            return []
        together = {a.id for a in self._waiting[0]} | set(self.under_way)
        if self.under_way and together & self._isolate:
            return []
        batch = self._waiting.pop(0)
        self.under_way |= {a.id: a for a in batch}
        return batch

    def answered(self, answers: Sequence[Report | Failure]) -> None:
        """Remove answered assignments; a report clears its assignment of all suspicion."""
        self._isolate -= {answer.assignment for answer in answers if isinstance(answer, Report)}
        for answer in answers:
            self.open.discard(answer.assignment)
            self.under_way.pop(answer.assignment, None)

    def lose(self) -> list[Assignment]:
        """Remove and return what was under way in a worker that died."""
        lost, self.under_way = self.under_way, {}
        self.open -= set(lost)
        if len(lost) > 1:
            self._isolate |= set(lost)
        return list(lost.values())

    def unfinished(self) -> list[Assignment]:
        """Return all assignments that are under way or waiting."""
        return [*self.under_way.values(), *(a for batch in self._waiting for a in batch)]
