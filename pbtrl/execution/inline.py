"""Executor without worker processes: a single host in the controller's process."""

from collections.abc import Sequence

from typing_extensions import override

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.execution import Executor
from pbtrl.execution.host import Host


class Inline(Executor):
    """Executor in the controller's own process, for tests, debuggers and very small machines."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._done: list[Report | Failure] = []

    @override
    def submit(self, assignments: Sequence[Assignment]) -> None:
        self._host.submit(assignments)

    @override
    def collect(self, timeout: float) -> list[Report | Failure]:
        """Train one cohort for a short while; ignores `timeout`."""
        done, self._done = self._done or self._host.advance(), []
        return done

    @override
    def busy(self) -> bool:
        return bool(self._done) or self._host.busy()

    @override
    def stop(self, within: float | None = None) -> None:
        """End the open slices; ignores `within`, because a process cannot interrupt itself."""
        self._done += self._host.stop()

    @override
    def close(self) -> None:
        self._host.close()
