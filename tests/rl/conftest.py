"""Fixtures for tests of cohorts."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pytest

from pbtrl.rl import process_pool


@dataclass
class SimulatedProcess(process_pool._Process):
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

    def start(self, make: Callable[..., process_pool.PoolWorker], arguments: tuple[Any, ...]) -> None:
        self.worker, self._pipes, self.begun = make(*arguments), multiprocessing.Pipe(), False

    def send(self, message: process_pool.Message) -> None:
        assert self._pipes
        answer = self.worker.answer(json.loads(json.dumps(message)))
        if answer is not None and not self._pipes[1].closed:
            self._pipes[1].send_bytes(json.dumps(answer).encode())

    def kill(self) -> None:
        """Keep answers that were already sent."""
        assert self._pipes
        self._pipes[1].close()

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
    monkeypatch.setattr(process_pool, "_Process", SimulatedProcess)
