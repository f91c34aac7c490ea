"""Pool of processes that work for one cohort: the learner requests env steps, the processes answer when done.

    learner                              process 0 .. n-1 (spawned, one torch thread each)
      ask ------ pipe: JSON ---------->   answer(message), one after the other
      answered <- pipe: JSON ----------   tensors pass through shared memory only

A process that dies, or does not answer for too long, is replaced and counted; its requests must be repeated. An
exception in a process, or repeated deaths, raise WorkerPoolError in the learner.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Protocol

import torch

from pbtrl.errors import WorkerPoolError
from pbtrl.system.child_process import init_child, join_or_kill, start_child
from pbtrl.system.malloc import retain_freed_memory
from pbtrl.system.strict_json import to_json

WAIT = 0.5  # seconds to wait for an answer before the worker polls its own pipe
PATIENCE = 1800.0  # seconds without any answer until busy processes are killed; hung envs have their own timeout
DEATHS = 3  # consecutive deaths of a process that raise an error

Message = dict[str, Any]


class PoolWorker(Protocol):
    """Interface of the object that handles messages in a pool process."""

    def answer(self, message: Message) -> Message | None:
        """Handle a message; returns an answer to every message with `steps`."""

    def close(self) -> None:
        """Close the envs."""


class WorkerPool:
    """Pool of n processes.

    Attributes:
        deaths: number of deaths since `clear`.
    """

    def __init__(
        self,
        count: int,
        worker_factory: Callable[[int], tuple[Callable[..., PoolWorker], tuple[Any, ...]]],
        init_message: Callable[[int, int], Message],
        died: Callable[[int, Sequence[Message]], None] | None = None,
        deaths: int = DEATHS,
    ) -> None:
        """Start the processes, which then wait for their first message.

        Args:
            count: number of processes n.
            worker_factory: i -> importable factory of process i's PoolWorker, and its arguments.
            init_message: (i, restarts so far) -> first message to process i.
            died: callback (i, unanswered messages with `steps`) after a death of process i.
            deaths: number of consecutive deaths of one process, without an answer in between, that raises.
        """
        self._worker_factory, self._init_message, self._on_death, self._most = (
            worker_factory,
            init_message,
            died,
            deaths,
        )
        self._answers: deque[tuple[int, Message]] = deque()
        self._silent = 0.0
        self.deaths, self._lost = 0, 0
        self._processes = [_Process() for _ in range(count)]
        # At exit multiprocessing sends daemons SIGTERM, which these ignore, and waits for them: end them first.
        self._at_exit = Finalize(self, _close, (self._processes,), exitpriority=10)
        for i, process in enumerate(self._processes):
            process.start(*worker_factory(i))

    def clear(self) -> None:
        """Reset the counters."""
        self.deaths, self._lost = 0, 0

    def tally(self, envs: int, dropped: int = 0) -> dict[str, float]:
        """Deaths, and env steps per member that were lost by them or `dropped`, by tag, without zeros."""
        counters = {"acting/deaths": self.deaths, "acting/dropped_steps": dropped + self._lost * envs}
        return {name: float(value) for name, value in counters.items() if value}

    def send_init_message(self) -> None:
        """Send every process its first message, also to start over."""
        for i, process in enumerate(self._processes):
            process.send(self._init_message(i, process.restarts))

    def tell(self, message: Message) -> None:
        """Send a message to all processes."""
        for process in self._processes:
            process.send(message)

    def ask(self, i: int, message: Message) -> None:
        """Send process i a request for `steps` steps per env."""
        if not self._asked:
            self._silent = 0.0
        self._processes[i].asked.append(message)
        self._processes[i].send(message)

    @property
    def pending(self) -> int:
        """Steps per env that are requested and whose answers have not been taken yet."""
        return sum(message["steps"] for message in [*self._asked, *(answer for _, answer in self._answers)])

    def least_loaded(self, most: int) -> list[int]:
        """Indices of processes with fewer than `most` open requests, once per free place, least loaded first."""
        loads = sorted((n, i) for i, p in enumerate(self._processes) for n in range(len(p.asked), most))
        return [i for _, i in loads]

    @property
    def _asked(self) -> list[Message]:
        return [message for process in self._processes for message in process.asked]

    def answered(self, timeout: float) -> bool:
        """Return whether there is an answer to take; waits up to `timeout` seconds for one."""
        self._receive(0.0 if self._answers else timeout)
        return bool(self._answers)

    def take(self) -> tuple[int, Message]:
        """Take the oldest answer; returns the process's index and the answer."""
        return self._answers.popleft()

    def settle(self) -> None:
        """Wait until all requests are answered."""
        while self._asked:
            self._receive(1.0)

    def drain(self, grace: float) -> Iterator[tuple[int, Message]]:
        """Yield the answers to all open requests; a process that takes longer than `grace` seconds is killed."""
        deadline = time.monotonic() + grace
        while self._asked or self._answers:
            if self.answered(1.0):
                yield self.take()
            elif time.monotonic() > deadline:
                self._kill()

    def close(self) -> None:
        """End all processes."""
        self._at_exit()

    def _receive(self, timeout: float) -> None:
        pipes = {process.pipe: i for i, process in enumerate(self._processes)}
        ready = wait(list(pipes), timeout)
        for pipe in ready:
            self._read(pipes[pipe])  # type: ignore[index]
        self._silent = 0.0 if ready else self._silent + timeout  # not by the clock: this process may be suspended
        if self._asked and self._silent > PATIENCE:
            self._silent = 0.0
            self._kill()

    def _kill(self) -> None:
        """Kill all busy processes; they are replaced when their death is noticed."""
        for process in self._processes:
            if process.asked:
                process.kill()

    def _read(self, i: int) -> None:
        process = self._processes[i]
        try:
            message = json.loads(process.pipe.recv_bytes())
        except (EOFError, OSError):
            self._died(i)
            return
        if error := message.get("error"):
            raised = WorkerPoolError(f"process {i} raised {error}")
            raised.add_note(message["traceback"])
            raise raised
        process.asked.pop(0)
        process.deaths, process.begun = 0, True
        self._answers.append((i, message))

    def _died(self, i: int) -> None:
        process = self._processes[i]
        how = process.end()
        self.deaths += 1
        process.deaths += 1
        process.restarts += 1
        unanswered, process.asked = process.asked, []
        self._lost += sum(message["steps"] for message in unanswered)
        if process.deaths >= self._most:
            repeated = f" {process.deaths} times without finishing a block" if process.deaths > 1 else ""
            raise WorkerPoolError(f"process {i} died{repeated}: {how}")
        if self._on_death:
            self._on_death(i, unanswered)
        process.start(*self._worker_factory(i))
        process.send(self._init_message(i, process.restarts))


@dataclass
class _Process:
    """Handle of one process and its replacements.

    Attributes:
        asked: unanswered requests, oldest first.
        restarts: number of times that it was replaced.
        deaths: number of deaths since the last answer.
        begun: whether the current process has answered a request; otherwise it may still be importing.
    """

    asked: list[Message] = field(default_factory=list)
    restarts: int = 0
    deaths: int = 0
    begun: bool = False
    _running: tuple[BaseProcess, Connection] | None = None

    @property
    def pipe(self) -> Connection:
        assert self._running
        return self._running[1]

    def start(self, make: Callable[..., PoolWorker], arguments: tuple[Any, ...]) -> None:
        self._running, self.begun = start_child(_work, make, arguments, daemon=True), False

    def send(self, message: Message) -> None:
        try:
            self.pipe.send_bytes(to_json(message).encode())
        except OSError:
            return  # dead; the next read will notice

    def kill(self) -> None:
        assert self._running
        self._running[0].kill()

    def end(self, patience: float = 5.0) -> str:
        """Wait up to `patience` seconds for its end, then kill it; returns in words how it ended."""
        if self._running is None:
            return "it never started"
        process, pipe = self._running
        pipe.close()
        self._running = None
        return join_or_kill(process, patience)


def _close(processes: Sequence[_Process]) -> None:
    """End all processes: close all pipes, at which they exit, then wait for them."""
    for process in processes:
        if process._running:
            process.pipe.close()
    for process in processes:
        process.end(5.0 if process.begun else 0.0)


def _work(pipe: Connection, parent: int, make: Callable[..., PoolWorker], arguments: tuple[Any, ...]) -> None:
    """Main function of a pool process."""
    init_child(parent, pipe)
    retain_freed_memory()
    torch.set_num_threads(1)
    worker = None
    try:
        worker = make(*arguments)
        while (message := _next(pipe, parent)) is not None:
            answer = worker.answer(message)
            if answer is not None:
                pipe.send_bytes(to_json(answer).encode())
    except BrokenPipeError:
        return
    except Exception as error:
        failure = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        pipe.send_bytes(to_json(failure).encode())
    finally:
        if worker:
            worker.close()


def _next(pipe: Connection, parent: int) -> Message | None:
    """Wait for the next message; None if the parent is gone or closed the pipe."""
    while not pipe.poll(1.0):
        if os.getppid() != parent:
            return None
    try:
        message: Message = json.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        return None
    return message
