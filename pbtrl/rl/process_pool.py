"""Processes that work for one cohort: asked for env steps, answering as they get done.

    learner                              process 0 .. n-1 (spawned, one torch thread each)
      ask ------ pipe: JSON ---------->   answer(message), one after the other
      answered <- pipe: JSON ----------   tensors pass through shared memory alone

A process that dies is replaced and counted; what it was asked for has to be asked for again. So is one that is silent
for too long while it has work. One that cannot be kept alive, or raises, raises here, and nobody waits for ever.
"""

from __future__ import annotations

import json
import multiprocessing
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
from pbtrl.system.child_process import init_child, join_or_kill, start_ignoring_signals
from pbtrl.system.malloc import retain_freed_memory
from pbtrl.system.strict_json import to_json

WAIT = 0.5  # seconds that a turn waits for an answer; then the worker looks at its own pipe
PATIENCE = 1800.0  # seconds that all who have work may be silent: a block can be long, and a hung env has its own alarm
DEATHS = 3

Message = dict[str, Any]


class PoolWorker(Protocol):
    """What works in a process."""

    def answer(self, message: Message) -> Message | None:
        """Do as told; an answer to every message that has `steps`."""

    def close(self) -> None:
        """Free the envs."""


class WorkerPool:
    """n processes, which wait for their first message.

    Attributes:
        deaths: how many died since `clear`.
    """

    def __init__(
        self,
        count: int,
        worker_factory: Callable[[int], tuple[Callable[..., PoolWorker], tuple[Any, ...]]],
        init_message: Callable[[int, int], Message],
        died: Callable[[int, Sequence[Message]], None] | None = None,
        deaths: int = DEATHS,
    ) -> None:
        """Start them.

        Args:
            count: n.
            worker_factory: for process i, what makes its hand (importable), and with which arguments.
            init_message: for process i in its nth life, from 0, what it is told first.
            died: told which process died, and the messages with `steps` that it had not answered.
            deaths: of one process in a row, without an answer in between, that are too many.
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
        # At exit multiprocessing terminates daemons, which these ignore, and waits for them: end them before.
        self._at_exit = Finalize(self, _close, (self._processes,), exitpriority=10)
        for i, process in enumerate(self._processes):
            process.start(*worker_factory(i))

    def clear(self) -> None:
        """Count anew."""
        self.deaths, self._lost = 0, 0

    def tally(self, envs: int, dropped: int = 0) -> dict[str, float]:
        """Deaths, and env steps per member that were lost by them or `dropped`, by tag; what is 0 is left out."""
        told = {"acting/deaths": self.deaths, "acting/dropped_steps": dropped + self._lost * envs}
        return {name: float(value) for name, value in told.items() if value}

    def send_init_message(self) -> None:
        """Tell all what they are told first, when they begin or begin anew."""
        for i, process in enumerate(self._processes):
            process.send(self._init_message(i, process.restarts))

    def tell(self, message: Message) -> None:
        """Tell all."""
        for process in self._processes:
            process.send(message)

    def ask(self, i: int, message: Message) -> None:
        """Ask process i for `steps` env steps per env."""
        if not self._asked:
            self._silent = 0.0
        self._processes[i].asked.append(message)
        self._processes[i].send(message)

    @property
    def pending(self) -> int:
        """Env steps per env that were asked for, and whose answers nobody has taken yet."""
        return sum(message["steps"] for message in [*self._asked, *(answer for _, answer in self._answers)])

    def least_loaded(self, most: int) -> list[int]:
        """Who has less than `most` to do, once for everything that is missing, the idlest first."""
        loads = sorted((n, i) for i, p in enumerate(self._processes) for n in range(len(p.asked), most))
        return [i for _, i in loads]

    @property
    def _asked(self) -> list[Message]:
        return [message for process in self._processes for message in process.asked]

    def answered(self, timeout: float) -> bool:
        """Whether there is an answer to take; waits up to `timeout` seconds for one."""
        self._receive(0.0 if self._answers else timeout)
        return bool(self._answers)

    def take(self) -> tuple[int, Message]:
        """The oldest answer, and whose it is."""
        return self._answers.popleft()

    def settle(self) -> None:
        """Wait until everything asked for is answered."""
        while self._asked:
            self._receive(1.0)

    def drain(self, grace: float) -> Iterator[tuple[int, Message]]:
        """Every answer to what was asked for, as they come; who takes longer than `grace` seconds is ended."""
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
        found = wait(list(pipes), timeout)
        for pipe in found:
            self._read(pipes[pipe])  # type: ignore[index]
        self._silent = 0.0 if found else self._silent + timeout  # as we waited, and not while we were stopped as well
        if self._asked and self._silent > PATIENCE:
            self._silent = 0.0
            self._kill()

    def _kill(self) -> None:
        """End those who have something to do; a replacement follows."""
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
            again = f" {process.deaths} times without a block in between, at last" if process.deaths > 1 else ""
            raise WorkerPoolError(f"process {i} died{again}: {how}")
        if self._on_death:
            self._on_death(i, unanswered)
        process.start(*self._worker_factory(i))
        process.send(self._init_message(i, process.restarts))


@dataclass
class _Process:
    """Our end of one process, and of those that take its place.

    Attributes:
        asked: what it has not answered yet, oldest first.
        restarts: how many it took the place of.
        deaths: since the last answer.
        begun: whether the present one has answered anything; one that has not may still be importing.
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
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, os.getpid(), make, arguments), daemon=True)
        start_ignoring_signals(process)
        theirs.close()
        self._running, self.begun = (process, ours), False

    def send(self, message: Message) -> None:
        try:
            self.pipe.send_bytes(to_json(message).encode())
        except OSError:
            return  # dead: whoever reads sees it

    def kill(self) -> None:
        assert self._running
        self._running[0].kill()

    def end(self, patience: float = 5.0) -> str:
        """Wait for its end, and enforce it; how it ended."""
        if self._running is None:
            return "it never began"
        process, pipe = self._running
        pipe.close()
        self._running = None
        return join_or_kill(process, patience)


def _close(processes: Sequence[_Process]) -> None:
    """Closing its pipe asks a process to end; all are asked before any is waited for."""
    for process in processes:
        if process._running:
            process.pipe.close()
    for process in processes:
        process.end(5.0 if process.begun else 0.0)


def _work(pipe: Connection, parent: int, make: Callable[..., PoolWorker], arguments: tuple[Any, ...]) -> None:
    """A process's loop."""
    init_child(parent, pipe)
    retain_freed_memory()
    torch.set_num_threads(1)
    hand = None
    try:
        hand = make(*arguments)
        while (message := _next(pipe, parent)) is not None:
            answer = hand.answer(message)
            if answer is not None:
                pipe.send_bytes(to_json(answer).encode())
    except BrokenPipeError:
        return
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        pipe.send_bytes(to_json(told).encode())
    finally:
        if hand:
            hand.close()


def _next(pipe: Connection, parent: int) -> Message | None:
    """The next message; None where there is nobody left to send one."""
    while not pipe.poll(1.0):
        if os.getppid() != parent:
            return None
    try:
        message: Message = json.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        return None
    return message
