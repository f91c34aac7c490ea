"""Executors: who carries assignments out. `inline` in this process, `processes` in pinned worker processes.

    controller --submit--> executor --> host (one per worker) --> cohorts of stacked members
               <--collect--                                          snapshots -> Store

Only assignments and reports pass; weights never do.
"""

from collections.abc import Sequence
from typing import Protocol

from pbtrl.core.messages import Assignment, Failure, Report


class Executor(Protocol):
    """Carries out assignments, in whatever order, and tells what became of each."""

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Take on assignments. Those of one call may share cohorts."""

    def collect(self, timeout: float) -> list[Report | Failure]:
        """What has happened since; waits up to `timeout` seconds. A cohort's reports come together."""

    def busy(self) -> bool:
        """Whether something submitted has not been answered yet."""

    def stop(self, within: float | None = None) -> None:
        """Ask for early reports of everything under way, or for its end without one.

        What has not answered `within` seconds is ended where that is possible, and loses its slice.
        """

    def close(self) -> None:
        """Leave no process behind."""
