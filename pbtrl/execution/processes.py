"""Executor with worker processes: symmetric, spawned, pinned to cores, one torch thread each.

    controller                         worker (one per share of the groups)
      submit  -- pipe: assignments -->   host.submit; the pipe is polled between calls of host.advance
      collect <-- pipe: reports ------   host.advance
      stop    -- pipe: "stop" ------->   host.stop, reports

A worker starts from the name of a builder and the resolved config as JSON. The pipe carries JSON text. A worker never
outlives its parent.

- Stop: a worker that has not begun to train (it imports, or creates its envs) has nothing to lose, so it is killed.
- Death: the open assignments of a dead worker fail, and a new worker replaces it. If there were several, any of them
  may be the cause, so from then on they are sent to the worker one at a time.
- Out of memory: workers may share a GPU. If a member runs out of memory while alone in its worker, it is retried once.
  Then its worker and another one are merged into one. A third failure counts against the member.
- Suspension (Ctrl-Z, a sleeping laptop): envs appear to exceed their step timeout. If this process was suspended too,
  one such failure per assignment is excused.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.util import Finalize

from typing_extensions import override

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.errors import DiskFullError, WorkerError
from pbtrl.execution import Executor
from pbtrl.execution.worker import WorkerSpec, run_worker
from pbtrl.execution.worker_messages import (
    Answers,
    Began,
    Close,
    DiskFull,
    FromWorker,
    StartFailed,
    Stop,
    Stopped,
    Submit,
    ToWorker,
    decode,
    encode,
)
from pbtrl.system.child_process import TIMEOUT_EXIT, join_or_kill, start_child
from pbtrl.system.files import reason

GAP = 5.0  # seconds between two `collect` calls, beyond their timeout, that indicate a suspended process


class Processes(Executor):
    """Executor with `len(specs)` worker processes.

    A member trains in the worker that held it last, unless all places there are taken. A new member, such as a later
    trial, trains where most places are free.
    """

    def __init__(self, specs: Sequence[WorkerSpec]) -> None:
        self._workers = [_Worker(spec) for spec in specs]
        self._home = {m: w for w in self._workers for group in w.spec.groups for m in group}
        self._short: dict[str, int] = {}  # per member: consecutive out-of-memory failures while alone in its worker
        self._stopping, self._until = False, math.inf
        self._looked = time.monotonic()
        # Workers start actors, so they cannot be daemons. At exit multiprocessing would wait for them: end them first.
        self._at_exit = Finalize(self, _close, (self._workers,), exitpriority=10)

    @override
    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Send each member's assignment to the worker that holds the member."""
        free = {worker: worker.places - len(worker.open) for worker in self._workers}
        batches: dict[_Worker, list[Assignment]] = {worker: [] for worker in self._workers}
        for a in assignments:
            home, freest = self._home.get(a.member), max(self._workers, key=lambda w: free[w])
            if home is None or (free[home] <= 0 < free[freest]):
                home = self._home[a.member] = freest
            free[home] -= 1
            batches[home].append(a)
        for worker, batch in batches.items():
            if batch:
                worker.submit(batch)

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
        received = [(w, message) for w in self._workers if w.pipe in ready for message in w.receive(self._stopping)]
        if self._looked > self._until:
            for worker in self._workers:
                worker.kill_if_busy()
        return [answer for worker, message in received for answer in self._merge_on_oom(worker, message)]

    def _merge_on_oom(self, worker: _Worker, message: Report | Failure) -> list[Report | Failure]:
        """Pass on an answer, but excuse out-of-memory failures.

        The first two do not count against the member. At the second one two workers are merged, and their open slices
        fail without blame.
        """
        if isinstance(message, Report):
            self._short.pop(message.member, None)
        if self._stopping or not (isinstance(message, Failure) and message.memory and message.alone):
            return [message]
        if worker not in self._workers:  # just merged because of another message
            return [replace(message, alone=False)]
        times = self._short[message.member] = self._short.get(message.member, 0) + 1
        if times > 2 or len(self._workers) == 1:
            return [message]
        if times == 1:
            return [replace(message, alone=False)]
        other = min((w for w in self._workers if w is not worker), key=lambda w: len(w.open))
        lost = [message, *worker.terminate(), *other.terminate()]
        self._workers[:] = [w for w in self._workers if w not in (worker, other)]
        merged = _Worker(worker.spec.merged(other.spec))
        self._workers.append(merged)
        self._home = {m: merged if w in (worker, other) else w for m, w in self._home.items()}
        count = "1 worker" if len(self._workers) == 1 else f"{len(self._workers)} workers"
        return [replace(f, error=f"{f.error}; continuing with {count}", alone=False) for f in lost]

    @override
    def busy(self) -> bool:
        return any(w.open for w in self._workers)

    @override
    def stop(self, within: float | None = None) -> None:
        """Ask all workers to end their slices; a worker that is not done `within` seconds is killed."""
        self._stopping = True
        self._until = time.monotonic() + (math.inf if within is None else within)
        for worker in self._workers:
            worker.stop()

    @override
    def close(self) -> None:
        self._at_exit()


def _close(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.send(Close())
    for worker in workers:
        worker.close()


class _Worker:
    """Controller's handle of one worker process, and of its replacements."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.open: set[str] = set()
        self._waiting: list[list[Assignment]] = []
        self._under_way: dict[str, Assignment] = {}
        self._isolate: set[str] = set()
        self._excused_timeouts: dict[str, bool] = {}  # by assignment: whether the excuse was used
        self._start()

    def _start(self) -> None:
        try:
            self.process, self.pipe = start_child(run_worker, self.spec)
        except OSError as error:
            raise WorkerError(f"a worker cannot be started: {reason(error)}") from error
        self._began = False

    @property
    def places(self) -> int:
        """Number of members that train at the same time."""
        return sum(map(len, self.spec.groups))

    def submit(self, assignments: Sequence[Assignment]) -> None:
        self.open |= {a.id for a in assignments}
        self._waiting += [[a] for a in assignments if a.id in self._isolate]
        if others := [a for a in assignments if a.id not in self._isolate]:
            self._waiting.append(others)
        self._send_waiting()

    def _send_waiting(self) -> None:
        while self._waiting:
            together = {a.id for a in self._waiting[0]} | set(self._under_way)
            if self._under_way and together & self._isolate:
                return
            batch = self._waiting.pop(0)
            self._under_way |= {a.id: a for a in batch}
            self.send(Submit(tuple(batch)))

    def send(self, message: ToWorker) -> None:
        try:
            self.pipe.send_bytes(encode(message))
        except OSError:
            return  # dead; `receive` will notice

    def excuse_timeout(self) -> None:
        """Excuse one step timeout of every open assignment."""
        for name in self._under_way:
            self._excused_timeouts.setdefault(name, False)

    def receive(self, stopping: bool) -> list[Report | Failure]:
        try:
            message: FromWorker = decode(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return self._died(stopping)
        match message:
            case Began():
                self._began = True
            case Stopped():
                self.open.clear()
            case StartFailed(traceback):
                raise WorkerError(traceback)
            case DiskFull(text):
                raise DiskFullError(text)
            case Answers(reports, failures):
                self._isolate -= {report.assignment for report in reports}
                return self._take([*reports, *failures], stopping)
        return []

    def _take(self, answers: list[Report | Failure], stopping: bool) -> list[Report | Failure]:
        for answer in answers:
            self.open.discard(answer.assignment)
            self._under_way.pop(answer.assignment, None)
            self._excused_timeouts.pop(answer.assignment, None)
        if not stopping:
            self._send_waiting()
        return answers

    def _died(self, stopping: bool) -> list[Report | Failure]:
        how = join_or_kill(self.process, 5)
        lost, self._under_way = self._under_way, {}
        self.open -= set(lost)
        if len(lost) > 1:
            self._isolate |= set(lost)
        alone = len(lost) == 1 and not (self.process.exitcode == TIMEOUT_EXIT and self._excused(lost))
        self.pipe.close()
        if stopping:
            self.open.clear()
        else:
            self._start()
            self._send_waiting()
        return [Failure(a.id, a.member, f"worker {how}", alone=alone) for a in lost.values()]

    def _excused(self, lost: Iterable[str]) -> bool:
        """Return whether an unused excuse covers these assignments, and use it up."""
        unused = [name for name in lost if self._excused_timeouts.get(name) is False]
        self._excused_timeouts |= dict.fromkeys(unused, True)
        return bool(unused)

    def stop(self) -> None:
        if self._began or self.pipe.poll():
            self.send(Stop())
        else:
            self.kill_if_busy()

    def terminate(self) -> list[Failure]:
        """Kill the worker for good; returns its unfinished assignments as failures."""
        unfinished = [*self._under_way.values(), *(a for batch in self._waiting for a in batch)]
        self.process.kill()
        self.close()
        return [Failure(a.id, a.member, "ended to free memory", alone=False) for a in unfinished]

    def kill_if_busy(self) -> None:
        """Kill the worker if it has an unanswered assignment."""
        if self.open:
            self.open.clear()
            self.process.kill()
            self.close()

    def close(self) -> None:
        join_or_kill(self.process, 5 if self._began else 0)
        self.pipe.close()
