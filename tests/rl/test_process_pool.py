"""The process pool's bookkeeping, with processes simulated in this process: load, losses, timeouts."""

from __future__ import annotations

from typing import Any

import pytest

from pbtrl.errors import WorkerPoolError
from pbtrl.rl import process_pool
from pbtrl.rl.process_pool import PATIENCE, Message, WorkerPool
from tests.rl.conftest import SimulatedProcess

pytestmark = pytest.mark.usefixtures("one_process")


class Echo:
    """Worker that answers with the request; `greeting` is its init message."""

    greeting: Message | None = None

    def answer(self, message: Message) -> Message | None:
        self.greeting = self.greeting or message
        return message if "steps" in message else None

    def close(self) -> None:
        pass


def pool_of(count: int, **more: Any) -> WorkerPool:
    pool = WorkerPool(count, lambda i: (Echo, ()), lambda i, life: {"who": i, "life": life}, **more)
    pool.send_init_message()
    return pool


def process(pool: WorkerPool, i: int) -> SimulatedProcess:
    found = pool._processes[i]
    assert isinstance(found, SimulatedProcess)
    return found


def test_least_loaded_worker_is_asked_first() -> None:
    pool = pool_of(3)
    assert pool.least_loaded(2) == [0, 1, 2, 0, 1, 2]
    pool.ask(0, {"steps": 1})
    pool.ask(2, {"steps": 1})
    pool.ask(2, {"steps": 1})
    assert pool.least_loaded(2) == [1, 0, 1]
    pool.settle()
    assert pool.least_loaded(1) == [0, 1, 2]
    pool.close()


def test_answers_are_taken_in_order() -> None:
    """They count as pending until then."""
    pool, pending = pool_of(2), [6, 4, 3]
    for i, steps in ((1, 2), (0, 1), (1, 3)):
        pool.ask(i, {"steps": steps})
        assert pool.answered(0.0)
    for i, steps, left in zip((1, 0, 1), (2, 1, 3), pending, strict=True):
        assert pool.pending == left
        assert pool.take() == (i, {"steps": steps})
    assert pool.pending == 0
    assert not pool.answered(0.0)
    pool.close()


def test_replacement_gets_its_own_init_message() -> None:
    """With the number of its restart; the lost requests are counted once."""
    lost: list[tuple[int, Any]] = []
    pool = pool_of(2, died=lambda i, unanswered: lost.append((i, list(unanswered))))
    process(pool, 1).kill()
    for steps in (3, 4):
        pool.ask(1, {"steps": steps})
    pool.settle()
    assert process(pool, 1).worker.greeting == {"who": 1, "life": 1}
    assert process(pool, 0).worker.greeting == {"who": 0, "life": 0}
    assert lost == [(1, [{"steps": 3}, {"steps": 4}])]
    assert not pool._answers
    assert pool.tally(10, dropped=5) == {"acting/deaths": 1.0, "acting/dropped_steps": 75.0}
    pool.clear()
    assert pool.tally(10) == {}
    pool.close()


def test_only_consecutive_deaths_give_up() -> None:
    pool = pool_of(1, deaths=2)

    def die() -> None:
        process(pool, 0).kill()
        pool.ask(0, {"steps": 1})
        pool.settle()

    for _ in range(3):
        die()
        pool.ask(0, {"steps": 1})
        pool.settle()
    assert pool.deaths == 3
    die()
    with pytest.raises(WorkerPoolError, match="process 0 died 2 times without finishing a block: killed"):
        die()
    pool.close()


def test_only_consecutive_silence_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only workers with pending requests can time out."""
    pool, killed = pool_of(2), []
    monkeypatch.setattr(SimulatedProcess, "kill", lambda self: killed.append(self))
    quiet = 0.6 * PATIENCE
    says: list[bool] = []
    monkeypatch.setattr(process_pool, "wait", lambda pipes, timeout: pipes[1:] if says.pop(0) else [])

    def hear(*script: bool) -> int:
        says.extend(script)
        for _ in script:
            pool._receive(quiet)
        return len(killed)

    assert hear(False, False, False) == 0  # nobody has been asked
    pool.ask(1, {"steps": 1})
    pool.ask(1, {"steps": 1})
    assert hear(False, True, False) == 0
    assert hear(False) == 1
    assert killed == [process(pool, 1)]
    assert hear(False) == 1  # those who take their places have time again
    monkeypatch.undo()
    pool.close()
