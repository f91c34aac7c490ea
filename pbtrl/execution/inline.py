"""The executor without processes: one host in this one, a turn per `collect`."""

from collections.abc import Sequence

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.execution.host import Host


class Inline:
    """Trains in the controller's own process; for tests, debuggers and very small machines."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._done: list[Report | Failure] = []

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Take on assignments."""
        self._host.submit(assignments)

    def collect(self, timeout: float) -> list[Report | Failure]:
        """One turn of one cohort."""
        done, self._done = self._done or self._host.advance(), []
        return done

    def busy(self) -> bool:
        """Whether a slice is under way."""
        return bool(self._done) or self._host.busy()

    def stop(self, within: float | None = None) -> None:
        """End the slices under way; nobody is there to end what hangs."""
        self._done += self._host.stop()

    def close(self) -> None:
        """Give back the cohorts."""
        self._host.close()
