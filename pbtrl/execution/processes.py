"""The executor of worker processes: symmetric, spawned, pinned, one torch thread each.

    controller                         worker (one per share of the groups)
      submit  -- pipe: assignments -->   poll the pipe between turns; host.submit
      collect <-- pipe: reports ------   host.turn
      stop    -- pipe: "stop" ------->   host.stop, reports

A worker that is not at its first turn yet (it imports, or makes its envs) has nothing to lose. Where it is
to stop it is killed, because a Ctrl-C should not wait for that.

A worker starts from the name of a builder and the resolved config as JSON; the pipe carries JSON text. It
never outlives its parent. When a worker dies, the assignments under way in it fail and a fresh one takes its
place; what was under way together is under suspicion and from then on goes to the worker one by one.

Workers may share a GPU. A member that runs out of memory although it is alone in its worker is tried once more; then
two workers end, and one takes on the members of both. If that does not help either, the member itself is to blame.

Who was stopped for a while (Ctrl-Z, a laptop that sleeps) finds that its envs took too long for a step. Where this
process was stopped too, that is nobody's fault, once.
"""

from __future__ import annotations

import importlib
import json
import math
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from pathlib import Path

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.errors import DiskFullError, WorkerError
from pbtrl.execution.host import Host
from pbtrl.system.child_process import TIMEOUT_EXIT, init_child, join_or_kill, redirect_output, start_ignoring_signals
from pbtrl.system.files import make_directory
from pbtrl.system.strict_json import to_json

GAP = 5.0  # seconds without a look at the workers, after which this process was stopped, and they perhaps as well


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is started with, as JSON: `builder` is `module:function`, called with `config`.

    It is pinned to `cores`, and may keep as many busy as it has `threads`.
    """

    builder: str
    config: str
    members: str
    groups: tuple[tuple[str, ...], ...]
    cores: tuple[int, ...]
    threads: int
    discard_on_stop: bool

    def merged(self, other: WorkerSpec) -> WorkerSpec:
        """One worker in the place of two."""
        cores = tuple(sorted({*self.cores, *other.cores}))
        threads = min(self.threads + other.threads, len(cores))
        return replace(self, groups=self.groups + other.groups, cores=cores, threads=threads)

    def host(self) -> Host:
        """The host of this worker."""
        module, function = self.builder.split(":")
        builder = getattr(importlib.import_module(module), function)(self.config)
        return Host(
            builder,
            Path(self.members),
            self.groups,
            threads=self.threads,
            discard_on_stop=self.discard_on_stop,
        )


class Processes:
    """`len(specs)` worker processes; a member is always trained by the same one."""

    def __init__(self, specs: Sequence[WorkerSpec]) -> None:
        self._workers = [_Worker(spec) for spec in specs]
        self._home = {m: w for w in self._workers for group in w.spec.groups for m in group}
        self._short: dict[str, int] = {}  # how often a member ran out of memory, alone in its worker, without success
        self._stopping, self._until = False, math.inf
        self._looked = time.monotonic()
        # At exit multiprocessing waits for them (they are no daemons, which could not start actors): end them before.
        self._at_exit = Finalize(self, _close, (self._workers,), exitpriority=10)

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Send each member's assignment to the worker that holds it."""
        for worker in self._workers:
            if mine := [a for a in assignments if self._home[a.member] is worker]:
                worker.submit(mine)

    def collect(self, timeout: float) -> list[Report | Failure]:
        """Messages of all workers; a dead worker's open assignments come back as failures.

        Raises:
            WorkerError: one could not even start.
            DiskFullError: one has no room for a snapshot.
        """
        ready = set(wait([w.pipe for w in self._workers if not w.pipe.closed], timeout))
        before, self._looked = self._looked, time.monotonic()
        if self._looked - before > GAP + timeout:
            for worker in self._workers:
                worker.excuse_timeout()
        found = [(w, message) for w in self._workers if w.pipe in ready for message in w.receive(self._stopping)]
        if self._looked > self._until:
            for worker in self._workers:
                worker.kill_if_busy()
        return [answer for worker, message in found for answer in self._merge_on_oom(worker, message)]

    def _merge_on_oom(self, worker: _Worker, message: Report | Failure) -> list[Report | Failure]:
        """The message; where memory was short it is nobody's fault twice, and with it comes what the merging cost."""
        if isinstance(message, Report):
            self._short.pop(message.member, None)
        if self._stopping or not (isinstance(message, Failure) and message.memory and message.alone):
            return [message]
        if worker not in self._workers:  # another has just given way
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
        self._home |= {m: merged for group in merged.spec.groups for m in group}
        count = "1 worker goes" if len(self._workers) == 1 else f"{len(self._workers)} workers go"
        return [replace(f, error=f"{f.error}; {count} on", alone=False) for f in lost]

    def busy(self) -> bool:
        """Whether an assignment is unanswered."""
        return any(w.open for w in self._workers)

    def stop(self, within: float | None = None) -> None:
        """Ask all workers to end their slices; who has not done so `within` seconds is killed."""
        self._stopping = True
        self._until = time.monotonic() + (math.inf if within is None else within)
        for worker in self._workers:
            worker.stop()

    def close(self) -> None:
        """End all workers."""
        self._at_exit()


def _close(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.send({"close": True})
    for worker in workers:
        worker.close()


class _Worker:
    """The controller's end of one worker process."""

    def __init__(self, spec: WorkerSpec) -> None:
        self.spec = spec
        self.open: set[str] = set()
        self._waiting: list[list[Assignment]] = []
        self._under_way: dict[str, Assignment] = {}
        self._isolate: set[str] = set()
        self._excused_timeouts: dict[str, bool] = {}  # and whether it was made use of
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.spec, os.getpid()))
        try:
            start_ignoring_signals(self.process)
        except OSError as error:
            raise WorkerError(f"a worker cannot be started: {error.strerror or error}") from error
        theirs.close()
        self._began = False

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
            self.send({"assignments": [a.to_json() for a in batch]})

    def send(self, message: dict[str, object]) -> None:
        try:
            self.pipe.send_bytes(to_json(message).encode())
        except OSError:
            return  # dead: receive() says so

    def excuse_timeout(self) -> None:
        """Do not blame what is under way if its envs seem to hang."""
        for name in self._under_way:
            self._excused_timeouts.setdefault(name, False)

    def receive(self, stopping: bool) -> list[Report | Failure]:
        try:
            message = json.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return self._died(stopping)
        if message.get("began"):
            self._began = True
            return []
        if message.get("stopped"):
            self.open.clear()
            return []
        if error := message.get("unfit"):
            raise WorkerError(error)
        if error := message.get("full"):
            raise DiskFullError(error)
        answers: list[Report | Failure] = [Report(**r) for r in message["reports"]]
        self._isolate -= {r.assignment for r in answers}
        answers += [Failure(**f) for f in message["failures"]]
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
        """Whether these were pardoned, which holds once."""
        unused = [name for name in lost if self._excused_timeouts.get(name) is False]
        self._excused_timeouts |= dict.fromkeys(unused, True)
        return bool(unused)

    def stop(self) -> None:
        if self._began or self.pipe.poll():
            self.send({"stop": True})
        else:
            self.kill_if_busy()

    def terminate(self) -> list[Failure]:
        """End it at once; what it leaves undone."""
        undone = [*self._under_way.values(), *(a for batch in self._waiting for a in batch)]
        self.process.kill()
        self.close()
        return [Failure(a.id, a.member, "ended for want of memory", alone=False) for a in undone]

    def kill_if_busy(self) -> None:
        """Kill it if it still has something under way."""
        if self.open:
            self.open.clear()
            self.process.kill()
            self.close()

    def close(self) -> None:
        join_or_kill(self.process, 5 if self._began else 0)
        self.pipe.close()


def _work(pipe: Connection, spec: WorkerSpec, parent: int) -> None:
    """The worker's loop."""
    init_child(parent, pipe)
    try:
        _log_output(Path(spec.members) / spec.groups[0][0])
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, spec.cores)
        if (host := _made(pipe, spec)) is not None:
            _serve(pipe, host, parent)
    except DiskFullError as error:
        pipe.send_bytes(to_json({"full": str(error)}).encode())


def _made(pipe: Connection, spec: WorkerSpec) -> Host | None:
    """The host; where there cannot be one, the controller is told why."""
    try:
        return spec.host()
    except DiskFullError:
        raise
    except Exception:
        pipe.send_bytes(to_json({"unfit": traceback.format_exc()}).encode())
        return None


def _serve(pipe: Connection, host: Host, parent: int) -> None:
    began = False
    while os.getppid() == parent:
        if pipe.poll(0 if host.busy() else 1.0):
            try:
                message = json.loads(pipe.recv_bytes())
            except (EOFError, OSError):
                break
            if message.get("close"):
                break
            if message.get("stop"):
                _tell(pipe, host.stop())
                pipe.send_bytes(b'{"stopped":true}')
            elif assignments := message.get("assignments"):
                host.submit([Assignment(**a) for a in assignments])
        if host.busy() and not began:
            began = True
            pipe.send_bytes(b'{"began":true}')
        _tell(pipe, host.advance())
    host.close()


def _tell(pipe: Connection, messages: Sequence[Report | Failure]) -> None:
    if messages:
        reports = [m.to_json() for m in messages if isinstance(m, Report)]
        failures = [m.to_json() for m in messages if isinstance(m, Failure)]
        pipe.send_bytes(to_json({"reports": reports, "failures": failures}).encode())


def _log_output(member: Path) -> None:
    """What libraries and envs print goes to the log of the worker's first member, not to the console."""
    make_directory(member.parent)
    make_directory(member)
    redirect_output(member / "log.txt")
