"""Base of the executors with several workers: placement of members, blame for deaths, and merging of workers.

- Place: a member trains in the worker that held it last, unless all places there are taken. A new member, such as a
  later trial, trains where most places are free.
- Stop: a worker that has not begun to train (it imports, or creates its envs) has nothing to lose, so it is killed.
- Death: the open assignments of a dead worker fail, and a new worker replaces it; see `work_queue` for the blame.
- Out of memory: workers may share a GPU. If a member runs out of memory while alone in its worker, it is retried once.
  Then its worker and another one are merged into one. A third failure counts against the member.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from typing_extensions import override

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.errors import DiskFullError, WorkerError
from pbtrl.execution import Executor
from pbtrl.execution.work_queue import WorkQueue
from pbtrl.execution.worker import WorkerSpec
from pbtrl.execution.worker_messages import (
    Answers,
    Began,
    DiskFull,
    FromWorker,
    StartFailed,
    Stop,
    Stopped,
    Submit,
    ToWorker,
)


class ExecutorWorker(ABC):
    """Controller's handle of one worker, and of its replacements.

    Attributes:
        spec: what the worker is made of.
        queue: its open assignments.
        began: whether it has something to lose.
        stopping: whether it was asked to stop; it is not replaced any more.
    """

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec, self.queue = spec, WorkQueue()
        self.began = self.stopping = False

    @abstractmethod
    def start(self) -> None:
        """Start a worker, the first or a replacement; sets `began` to False."""

    @abstractmethod
    def send(self, message: ToWorker) -> None:
        """Pass a message to the worker; one that is dead gets nothing, which a later `receive` notices."""

    @abstractmethod
    def kill(self) -> None:
        """End the worker at once, for good."""

    @property
    def places(self) -> int:
        """Number of members that train at the same time."""
        return sum(map(len, self.spec.groups))

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Send assignments to the worker, now or when it may have them."""
        self.queue.add(assignments)
        self._send_waiting()

    def _send_waiting(self) -> None:
        while batch := self.queue.next_batch():
            self.send(Submit(tuple(batch)))

    def take(self, message: FromWorker) -> list[Report | Failure]:
        """Act on a message from the worker, and return the answers in it.

        Raises:
            WorkerError: the worker could not start.
            DiskFullError: it has no space for a snapshot.
        """
        match message:
            case Began():
                self.began = True
            case Stopped():
                self.queue.open.clear()
            case StartFailed(traceback):
                raise WorkerError(traceback)
            case DiskFull(text):
                raise DiskFullError(text)
            case Answers(reports, failures):
                answers: list[Report | Failure] = [*reports, *failures]
                self.queue.answered(answers)
                if not self.stopping:
                    self._send_waiting()
                return answers
        return []

    def replace_dead(self, how: str, *, excused: bool = False, memory: bool = False) -> list[Report | Failure]:
        """Start a new worker in place of a dead one; returns its assignments as failures.

        Args:
            how: how the worker died.
            excused: whether none of its assignments can be the cause.
            memory: whether it died because memory ran out.
        """
        lost = self.queue.lose()
        alone = len(lost) == 1 and not excused
        if self.stopping:
            self.queue.open.clear()
        else:
            self.start()
            self._send_waiting()
        return [Failure(a.id, a.member, f"worker {how}", alone=alone, memory=memory) for a in lost]

    def stop(self) -> None:
        """Ask the worker to end its slices."""
        self.stopping = True
        if self.began:
            self.send(Stop())
        else:
            self.kill_if_busy()

    def terminate(self, why: str) -> list[Failure]:
        """Kill the worker for good; returns its unfinished assignments as failures without blame."""
        unfinished = self.queue.unfinished()
        self.kill()
        return [Failure(a.id, a.member, why, alone=False) for a in unfinished]

    def kill_if_busy(self) -> None:
        """Kill the worker if it has an unanswered assignment."""
        if self.queue.open:
            self.queue.open.clear()
            self.kill()


W = TypeVar("W", bound=ExecutorWorker)


class PooledExecutor(Executor, ABC, Generic[W]):
    """Executor with several workers; a subclass starts them and collects their messages."""

    def __init__(self, specs: Sequence[WorkerSpec]) -> None:
        self._workers = [self._start_worker(spec) for spec in specs]
        self._home = {m: w for w in self._workers for group in w.spec.groups for m in group}
        self._short: dict[str, int] = {}  # per member: consecutive out-of-memory failures while alone in its worker
        self._stopping, self._until = False, math.inf

    @abstractmethod
    def _start_worker(self, spec: WorkerSpec) -> W:
        """Start a worker."""

    @override
    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Send each member's assignment to the worker that holds the member."""
        free = {worker: worker.places - len(worker.queue.open) for worker in self._workers}
        batches: dict[W, list[Assignment]] = {worker: [] for worker in self._workers}
        for a in assignments:
            home, freest = self._home.get(a.member), max(self._workers, key=lambda w: free[w])
            if home is None or (free[home] <= 0 < free[freest]):
                home = self._home[a.member] = freest
            free[home] -= 1
            batches[home].append(a)
        for worker, batch in batches.items():
            if batch:
                worker.submit(batch)

    def _pass_on(self, received: Sequence[tuple[W, Report | Failure]]) -> list[Report | Failure]:
        """Return the answers for the controller, after workers that are too late to stop were killed."""
        if time.monotonic() > self._until:
            for worker in self._workers:
                worker.kill_if_busy()
        return [answer for worker, message in received for answer in self._merge_on_oom(worker, message)]

    def _merge_on_oom(self, worker: W, message: Report | Failure) -> list[Report | Failure]:
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
        other = min((w for w in self._workers if w is not worker), key=lambda w: len(w.queue.open))
        lost = [message, *(f for w in (worker, other) for f in w.terminate("ended to free memory"))]
        self._workers[:] = [w for w in self._workers if w not in (worker, other)]
        merged = self._start_worker(worker.spec.merged(other.spec))
        self._workers.append(merged)
        self._home = {m: merged if w in (worker, other) else w for m, w in self._home.items()}
        return [replace(f, error=f"{f.error}; {self._continuing()}", alone=False) for f in lost]

    def _continuing(self) -> str:
        count = len(self._workers)
        return f"continuing with {count} worker{'' if count == 1 else 's'}"

    @override
    def busy(self) -> bool:
        return any(w.queue.open for w in self._workers)

    @override
    def stop(self, within: float | None = None) -> None:
        """Ask all workers to end their slices; a worker that is not done `within` seconds is killed."""
        self._stopping = True
        self._until = time.monotonic() + (math.inf if within is None else within)
        for worker in self._workers:
            worker.stop()
