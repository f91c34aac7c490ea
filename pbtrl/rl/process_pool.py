"""Pool of processes that work for one cohort: the learner requests env steps, the processes answer when done.

    learner                              process 0 .. n-1 (spawned, one torch thread each)
      ask ------ pipe: JSON ---------->   answer(message), one after the other
      answered <- pipe: JSON ----------   tensors pass through shared memory only

A process that dies, or does not answer for too long, is replaced and counted; its requests must be repeated. An
exception in a process, or repeated deaths, raise WorkerPoolError in the learner. The pool reaches its workers through
links; `Process` is one to a process of this machine, and `remote_actors` has those to other machines.
"""

from __future__ import annotations

import math
import os
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Protocol

import torch
from typing_extensions import override

from pbtrl.errors import WorkerPoolError
from pbtrl.rl.pool_messages import Answer, Raised, Request, ToWorker, decode, encode
from pbtrl.system.child_process import init_child, join_or_kill, start_child
from pbtrl.system.malloc import retain_freed_memory

POLL_SECONDS = 0.5  # seconds to wait for an answer before the worker polls its own pipe
PATIENCE = 1800.0  # seconds without any answer until busy processes are killed; hung envs have their own timeout
DEATHS = 3  # consecutive deaths of a process that raise an error


class PoolWorker(Protocol):
    """Interface of the object that handles messages in a pool process."""

    def answer(self, message: ToWorker) -> Answer | None:
        """Handle a message; returns an answer to every request."""

    def close(self) -> None:
        """Close the envs."""


class Link(ABC):
    """Learner's handle of one worker, and of its replacements.

    Attributes:
        asked: unanswered requests, oldest first.
        restarts: number of times that it was replaced.
        deaths: number of deaths since the last answer.
        abandoned: whether its open requests were given up, so that its death says nothing about them.
        begun: whether the current worker has answered a request; otherwise it may still be importing.
        up: whether the current worker takes requests.
    """

    up = True

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.restarts = self.deaths = 0
        self.abandoned = self.begun = False

    @abstractmethod
    def start(self) -> None:
        """Start the worker, the first or a replacement, without waiting for it."""

    @abstractmethod
    def send(self, message: ToWorker) -> None:
        """Send a message; one that is dead gets nothing, which a later `receive` notices."""

    @abstractmethod
    def receive(self) -> Answer | Raised | None:
        """Receive the answer that is there; None if it is none to a request.

        Raises:
            EOFError, OSError: the worker has died.
        """

    @abstractmethod
    def kill(self) -> None:
        """Kill the worker."""

    @abstractmethod
    def stop(self) -> None:
        """Tell the worker to end, without waiting for it."""

    @abstractmethod
    def end(self, patience: float = 5.0) -> str:
        """Wait up to `patience` seconds for its end, then kill it; returns in words how it ended."""


class WorkerPool:
    """Pool of n workers.

    Attributes:
        deaths: number of deaths since `clear`.
    """

    def __init__(
        self,
        links: Sequence[Link],
        wait: Callable[[float], Sequence[int]],
        init_message: Callable[[int, int], ToWorker],
        died: Callable[[int, Sequence[Request]], None] | None = None,
        deaths: int = DEATHS,
        patience: float = math.inf,
    ) -> None:
        """Start the workers, which then wait for their first message.

        Args:
            links: to n workers.
            wait: waits up to so many seconds for links that can receive; returns their indices.
            init_message: (i, restarts so far) -> first message to worker i.
            died: callback (i, unanswered requests) after a death of worker i.
            deaths: number of consecutive deaths of one worker, without an answer in between, that raises.
            patience: seconds that a worker has to come up while no other one is.
        """
        self._links, self._wait, self._init_message = links, wait, init_message
        self._on_death, self._most, self._patience = died, deaths, patience
        self._answers: deque[tuple[int, Answer]] = deque()
        self._silent = 0.0
        self.deaths, self._lost = 0, 0
        # At exit multiprocessing sends daemons SIGTERM, which these ignore, and waits for them: end them first.
        self._at_exit = Finalize(self, _close, (links,), exitpriority=10)
        for link in links:
            link.start()

    def clear(self) -> None:
        """Reset the counters."""
        self.deaths, self._lost = 0, 0

    def tally(self, envs: int, dropped: int = 0) -> dict[str, float]:
        """Deaths, and env steps per member that were lost by them or `dropped`, by tag, without zeros."""
        counters = {"acting/deaths": self.deaths, "acting/dropped_steps": dropped + self._lost * envs}
        return {name: float(value) for name, value in counters.items() if value}

    def send_init_message(self) -> None:
        """Send every worker its first message, also to start over."""
        for i, link in enumerate(self._links):
            link.send(self._init_message(i, link.restarts))

    def tell(self, message: ToWorker) -> None:
        """Send a message to all workers."""
        for link in self._links:
            link.send(message)

    def ask(self, i: int, message: Request) -> None:
        """Send worker i a request."""
        if not self._asked:
            self._silent = 0.0
        self._links[i].asked.append(message)
        self._links[i].send(message)

    @property
    def pending(self) -> int:
        """Steps per env that are requested and whose answers have not been taken yet."""
        return sum(message.steps for message in [*self._asked, *(answer for _, answer in self._answers)])

    def least_loaded(self, most: int) -> list[int]:
        """Indices of workers that are up, once per free place of `most` open requests, least loaded first."""
        loads = sorted((n, i) for i, link in enumerate(self._links) if link.up for n in range(len(link.asked), most))
        return [i for _, i in loads]

    @property
    def _asked(self) -> list[Request]:
        return [message for link in self._links for message in link.asked]

    def answered(self, timeout: float) -> bool:
        """Return whether there is an answer to take; waits up to `timeout` seconds for one."""
        self._receive(0.0 if self._answers else timeout)
        return bool(self._answers)

    def take(self) -> tuple[int, Answer]:
        """Take the oldest answer; returns the worker's index and the answer."""
        return self._answers.popleft()

    def settle(self) -> None:
        """Wait until all requests are answered."""
        while self._asked:
            self._receive(1.0)

    def drain(self, grace: float) -> Iterator[tuple[int, Answer]]:
        """Yield the answers to all open requests; a worker that takes longer than `grace` seconds is killed."""
        deadline = time.monotonic() + grace
        while self._asked or self._answers:
            if self.answered(1.0):
                yield self.take()
            elif time.monotonic() > deadline:
                self._kill(abandon=True)

    def close(self) -> None:
        """End all workers."""
        self._at_exit()

    def _receive(self, timeout: float) -> None:
        ready = self._wait(timeout)
        for i in ready:
            self._read(i)
        self._silent = 0.0 if ready else self._silent + timeout  # not by the clock: this process may be suspended
        if self._asked and self._silent > PATIENCE:
            self._silent = 0.0
            self._kill()
        elif self._silent > self._patience and not any(link.up for link in self._links):
            raise WorkerPoolError(f"none of the {len(self._links)} processes came up within {self._patience:.0f} s")

    def _kill(self, *, abandon: bool = False) -> None:
        """Kill all busy workers; they are replaced when their death is noticed."""
        for link in self._links:
            if link.asked:
                link.abandoned = abandon
                link.kill()

    def _read(self, i: int) -> None:
        link = self._links[i]
        try:
            message = link.receive()
        except (EOFError, OSError):
            self._died(i)
            return
        if message is None:
            return
        if isinstance(message, Raised):
            raised = WorkerPoolError(f"process {i} raised {message.error}")
            raised.add_note(message.traceback)
            raise raised
        link.asked.pop(0)
        link.deaths, link.begun = 0, True
        self._answers.append((i, message))

    def _died(self, i: int) -> None:
        link = self._links[i]
        how, abandoned, link.abandoned = link.end(), link.abandoned, False
        self.deaths += 1
        link.deaths += not abandoned
        link.restarts += 1
        unanswered, link.asked = link.asked, []
        self._lost += sum(message.steps for message in unanswered)
        if link.deaths >= self._most and not abandoned:
            repeated = f" {link.deaths} times without finishing a block" if link.deaths > 1 else ""
            raise WorkerPoolError(f"process {i} died{repeated}: {how}")
        if self._on_death:
            self._on_death(i, unanswered)
        link.start()
        link.send(self._init_message(i, link.restarts))


class Process(Link):
    """Link to a process of this machine.

    Args:
        make: importable factory of its PoolWorker.
        arguments: arguments of the factory.
    """

    def __init__(self, make: Callable[..., PoolWorker], *arguments: Any) -> None:
        super().__init__()
        self._make, self._arguments = make, arguments
        self._running: tuple[BaseProcess, Connection] | None = None

    @property
    def pipe(self) -> Connection:
        """Our end of its pipe."""
        assert self._running
        return self._running[1]

    @override
    def start(self) -> None:
        self._running, self.begun = start_child(_work, self._make, self._arguments, daemon=True), False

    @override
    def send(self, message: ToWorker) -> None:
        try:
            self.pipe.send_bytes(encode(message))
        except OSError:
            return  # dead; the next read will notice

    @override
    def receive(self) -> Answer | Raised:
        message: Answer | Raised = decode(self.pipe.recv_bytes())
        return message

    @override
    def kill(self) -> None:
        assert self._running
        self._running[0].kill()

    @override
    def stop(self) -> None:
        if self._running:
            self.pipe.close()

    @override
    def end(self, patience: float = 5.0) -> str:
        if self._running is None:
            return "it never started"
        process, pipe = self._running
        pipe.close()
        self._running = None
        return join_or_kill(process, patience)


def wait_for_processes(links: Sequence[Process], timeout: float) -> Sequence[int]:
    """Wait up to `timeout` seconds for processes that have answered or died; returns their indices."""
    pipes = {link.pipe: i for i, link in enumerate(links)}
    return [pipes[pipe] for pipe in wait(list(pipes), timeout)]  # type: ignore[index]


def _close(links: Sequence[Link]) -> None:
    """End all workers: tell them, then wait for them."""
    for link in links:
        link.stop()
    for link in links:
        link.end(5.0 if link.begun else 0.0)


def describe_error(error: Exception) -> Raised:
    """Describe an exception of a worker as its answer."""
    return Raised(f"{type(error).__name__}: {error}", traceback.format_exc())


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
                pipe.send_bytes(encode(answer))
    except BrokenPipeError:
        return
    except Exception as error:
        pipe.send_bytes(encode(describe_error(error)))
    finally:
        if worker:
            worker.close()


def _next(pipe: Connection, parent: int) -> ToWorker | None:
    """Wait for the next message; None if the parent is gone or closed the pipe."""
    while not pipe.poll(1.0):
        if os.getppid() != parent:
            return None
    try:
        message: ToWorker = decode(pipe.recv_bytes())
    except (EOFError, OSError):
        return None
    return message
