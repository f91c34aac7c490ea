"""Executors, which carry out assignments: `inline`, in pinned `processes`, or by actors on a `ray` cluster.

    controller --submit--> executor --> host (one per worker) --> cohorts of stacked members
               <--collect--                                          snapshots -> Store

Only assignments and reports pass between controller and workers, never weights.
"""

from collections.abc import Sequence
from typing import Protocol

from pbtrl.core.messages import Assignment, Failure, Report


class Executor(Protocol):
    """Interface of executors: carry out assignments in any order, and answer each with a report or a failure.

    Attributes:
        notes: what the user should know at the start, one line each.
    """

    notes: Sequence[str] = ()

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Accept assignments; those of one call may share cohorts."""

    def collect(self, timeout: float) -> list[Report | Failure]:
        """Return new answers; waits up to `timeout` seconds. The reports of a cohort arrive together."""

    def busy(self) -> bool:
        """Return whether an assignment is unanswered."""

    def stop(self, within: float | None = None) -> None:
        """Ask all open slices to end early, with or without a report.

        A slice that does not end `within` seconds is killed if possible, and its steps are lost.
        """

    def close(self) -> None:
        """End all processes."""
