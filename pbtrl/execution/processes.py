"""Executor with worker processes: symmetric, spawned, pinned to cores, one torch thread each.

    controller                         worker (one per share of the groups)
      submit  -- pipe: assignments -->   host.submit; the pipe is polled between calls of host.advance
      collect <-- pipe: reports ------   host.advance
      stop    -- pipe: "stop" ------->   host.stop, reports

A worker starts from the name of a builder and the resolved config as JSON. The pipe carries JSON text. A worker never
outlives its parent. What happens to members and assignments is in `worker_pool`.

Suspension (Ctrl-Z, a sleeping laptop): envs appear to exceed their step timeout. If this process was suspended too, one
such failure per assignment is excused.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from multiprocessing.connection import wait
from multiprocessing.util import Finalize

from typing_extensions import override

from pbtrl.core.messages import Failure, Report
from pbtrl.errors import WorkerError
from pbtrl.execution.worker import WorkerSpec, run_worker
from pbtrl.execution.worker_messages import Close, ToWorker, decode, encode
from pbtrl.execution.worker_pool import ExecutorWorker, PooledExecutor
from pbtrl.system.child_process import TIMEOUT_EXIT, join_or_kill, start_child
from pbtrl.system.files import reason

GAP = 5.0  # seconds between two `collect` calls, beyond their timeout, that indicate a suspended process


class Processes(PooledExecutor["_Worker"]):
    """Executor with `len(specs)` worker processes."""

    def __init__(self, specs: Sequence[WorkerSpec]) -> None:
        super().__init__(specs)
        self._looked = time.monotonic()
        # Workers start actors, so they cannot be daemons. At exit multiprocessing would wait for them: end them first.
        self._at_exit = Finalize(self, _close, (self._workers,), exitpriority=10)

    @override
    def _start_worker(self, spec: WorkerSpec) -> _Worker:
        return _Worker(spec)

    @override
    def collect(self, timeout: float) -> list[Report | Failure]:
        """Return the answers of all workers; the open assignments of a dead worker are failures.

        Raises:
            WorkerError: a worker could not start.
            DiskFullError: a worker has no space for a snapshot.
        """
        ready = set(wait([w.pipe for w in self._workers if not w.pipe.closed], timeout))
        before, self._looked = self._looked, time.monotonic()
        if self._looked - before > GAP + timeout:
            for worker in self._workers:
                worker.excuse_timeout()
        return self._pass_on([(w, answer) for w in self._workers if w.pipe in ready for answer in w.receive()])

    @override
    def close(self) -> None:
        self._at_exit()


def _close(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.send(Close())
    for worker in workers:
        worker.close()


class _Worker(ExecutorWorker):
    """Controller's handle of one worker process, and of its replacements."""

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec)
        self._excused_timeouts: dict[str, bool] = {}  # by assignment: whether the excuse was used
        self.start()

    @override
    def start(self) -> None:
        try:
            self.process, self.pipe = start_child(run_worker, self.spec)
        except OSError as error:
            raise WorkerError(f"a worker cannot be started: {reason(error)}") from error
        self.began = False

    @override
    def send(self, message: ToWorker) -> None:
        try:
            self.pipe.send_bytes(encode(message))
        except OSError:
            return  # dead; `receive` will notice

    def excuse_timeout(self) -> None:
        """Excuse one step timeout of every open assignment."""
        for name in self.queue.under_way:
            self._excused_timeouts.setdefault(name, False)

    def receive(self) -> list[Report | Failure]:
        try:
            message = decode(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return self._died()
        answers = self.take(message)
        for answer in answers:
            self._excused_timeouts.pop(answer.assignment, None)
        return answers

    def _died(self) -> list[Report | Failure]:
        how = join_or_kill(self.process, 5)
        lost = self.queue.under_way
        excused = len(lost) == 1 and self.process.exitcode == TIMEOUT_EXIT and self._excused(lost)
        self.pipe.close()
        return self.replace_dead(how, excused=excused)

    def _excused(self, lost: Iterable[str]) -> bool:
        """Return whether an unused excuse covers these assignments, and use it up."""
        unused = [name for name in lost if self._excused_timeouts.get(name) is False]
        self._excused_timeouts |= dict.fromkeys(unused, True)
        return bool(unused)

    @override
    def stop(self) -> None:
        self.began = self.began or (not self.pipe.closed and self.pipe.poll())  # its first message is on its way
        super().stop()

    @override
    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        join_or_kill(self.process, 5 if self.began else 0)
        self.pipe.close()
