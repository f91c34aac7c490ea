"""Fixtures for tests of cohorts."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import pytest

from pbtrl.rl import hogwild, local_actors, process_pool
from pbtrl.rl.pool_messages import ToWorker, decode, encode
from pbtrl.system.imports import import_object


class SimulatedProcess(process_pool.Process):
    """Process simulated in this one: it answers at once, and its answers wait in the pipe.

    Attributes:
        worker: the object that the process would run, since its last restart.
    """

    worker: Any = None
    _pipes: tuple[Connection, Connection] | None = None

    @property
    def pipe(self) -> Connection:
        assert self._pipes
        return self._pipes[0]

    def start(self) -> None:
        self.worker, self._pipes, self.begun = self._make(*self._arguments), multiprocessing.Pipe(), False

    def send(self, message: ToWorker) -> None:
        assert self._pipes
        answer = self.worker.answer(decode(encode(message)))
        if answer is not None and not self._pipes[1].closed:
            self._pipes[1].send_bytes(encode(answer))

    def kill(self) -> None:
        """Keep answers that were already sent."""
        assert self._pipes
        self._pipes[1].close()

    def stop(self) -> None:
        pass

    def end(self, patience: float = 5.0) -> str:
        if self._pipes:
            for pipe in self._pipes:
                pipe.close()
            self.worker.close()
        self._pipes = None
        return "killed"


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of a pool are objects in this process, and everything happens in a known order."""
    for module in (hogwild, local_actors):
        monkeypatch.setattr(module, "Process", SimulatedProcess)


@dataclass
class MemoryActor:
    """Actor on a `MemoryWire`.

    Attributes:
        remote: the object that another machine would run.
        alive: whether it answers.
    """

    remote: Any
    alive: bool = True


@dataclass(eq=False)
class Call:
    """Call with its result; None if the actor was dead."""

    result: bytes | None


@dataclass
class MemoryWire:
    """Wire to objects in this process, which answer at once; calls of those who are ended fail."""

    patience: float = 60.0
    references: list[bytes] = field(default_factory=list)
    started: list[MemoryActor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def put(self, data: bytes) -> int:
        assert type(data) is bytes
        self.references.append(data)
        return len(self.references) - 1

    def start(self, place: int, entry: str, argument: str) -> MemoryActor:
        self.places.append(place)
        self.started.append(MemoryActor(import_object(entry)(argument)))
        return self.started[-1]

    def call(self, actor: MemoryActor, message: bytes, reference: int | None) -> Call:
        assert type(message) is bytes
        if not actor.alive:
            return Call(None)
        result = actor.remote.work(message, None if reference is None else self.references[reference])
        assert type(result) is bytes
        return Call(result)

    def wait(self, calls: Sequence[Call], timeout: float) -> Sequence[Call]:
        return calls

    def result(self, call: Call) -> bytes:
        if call.result is None:
            raise ConnectionError("killed")
        return call.result

    def end(self, actor: MemoryActor) -> None:
        actor.alive = False
        actor.remote.close()
