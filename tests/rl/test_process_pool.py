"""The pool's bookkeeping, with workers simulated in this process, also behind a wire: load, losses, timeouts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from pbtrl.errors import WorkerPoolError
from pbtrl.rl import process_pool
from pbtrl.rl.pool_messages import LearnBlock, ResetEnvs, ToWorker, decode
from pbtrl.rl.process_pool import PATIENCE, WorkerPool, wait_for_processes
from pbtrl.rl.remote_actors import _RemoteLink, pack, wait_for_calls
from tests.rl.conftest import MemoryActor, MemoryWire, SimulatedProcess


class Echo:
    """Worker that answers with the request; `greeting` is its init message."""

    greeting: ToWorker | None = None

    def answer(self, message: ToWorker) -> Any:
        self.greeting = self.greeting or message
        return message if isinstance(message, LearnBlock) else None

    def close(self) -> None:
        pass


class EchoWire(MemoryWire):
    """Wire to such workers."""

    def start(self, place: int, entry: str, argument: str) -> MemoryActor:
        echo: Any = Echo()
        echo.work = lambda message, weights: pack(echo.answer(decode(message)), {})
        return MemoryActor(echo)


@pytest.fixture(params=["process", "remote"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def pool_of(kind: str, count: int, **more: Any) -> WorkerPool:
    more["init_message"] = lambda i, life: ResetEnvs([i, life])
    if kind == "remote":
        wire = EchoWire()
        links = [_RemoteLink(wire, i, "") for i in range(count)]
        pool = WorkerPool(links, partial(wait_for_calls, wire, links), patience=wire.patience, **more)
    else:
        processes = [SimulatedProcess(Echo) for _ in range(count)]
        pool = WorkerPool(processes, partial(wait_for_processes, processes), **more)
    pool.send_init_message()
    come_up(pool)
    return pool


def come_up(pool: WorkerPool) -> None:
    while not all(link.up for link in pool._links):
        assert not pool.answered(0.0)


def echo(pool: WorkerPool, i: int) -> Echo:
    link: Any = pool._links[i]
    result: Echo = link.worker if isinstance(link, SimulatedProcess) else link._actor.remote
    return result


def test_least_loaded_worker_is_asked_first(kind: str) -> None:
    pool = pool_of(kind, 3)
    assert pool.least_loaded(2) == [0, 1, 2, 0, 1, 2]
    pool.ask(0, LearnBlock(1))
    pool.ask(2, LearnBlock(1))
    pool.ask(2, LearnBlock(1))
    assert pool.least_loaded(2) == [1, 0, 1]
    pool.settle()
    assert pool.least_loaded(1) == [0, 1, 2]
    pool.close()


def test_answers_are_taken_in_order(kind: str) -> None:
    """They count as pending until then."""
    pool, pending = pool_of(kind, 2), [6, 4, 3]
    for i, steps in ((1, 2), (0, 1), (1, 3)):
        pool.ask(i, LearnBlock(steps))
        assert pool.answered(0.0)
    for i, steps, left in zip((1, 0, 1), (2, 1, 3), pending, strict=True):
        assert pool.pending == left
        assert pool.take() == (i, LearnBlock(steps))
    assert pool.pending == 0
    assert not pool.answered(0.0)
    pool.close()


def test_replacement_gets_its_own_init_message(kind: str) -> None:
    """With the number of its restart; the lost requests are counted once."""
    lost: list[tuple[int, Any]] = []
    pool = pool_of(kind, 2, died=lambda i, unanswered: lost.append((i, list(unanswered))))
    pool._links[1].kill()
    for steps in (3, 4):
        pool.ask(1, LearnBlock(steps))
    pool.settle()
    assert echo(pool, 1).greeting == ResetEnvs([1, 1])
    assert echo(pool, 0).greeting == ResetEnvs([0, 0])
    assert lost == [(1, [LearnBlock(3), LearnBlock(4)])]
    assert not pool._answers
    come_up(pool)
    pool.ask(1, LearnBlock(1))
    pool.settle()
    assert pool.take() == (1, LearnBlock(1))
    assert pool.tally(10, dropped=5) == {"acting/deaths": 1.0, "acting/dropped_steps": 75.0}
    pool.clear()
    assert pool.tally(10) == {}
    pool.close()


def test_only_consecutive_deaths_give_up(kind: str) -> None:
    pool = pool_of(kind, 1, deaths=2)

    def die() -> None:
        pool._links[0].kill()
        pool.ask(0, LearnBlock(1))
        pool.settle()

    for _ in range(3):
        die()
        pool.ask(0, LearnBlock(1))
        pool.settle()
    assert pool.deaths == 3
    die()
    with pytest.raises(WorkerPoolError, match="process 0 died 2 times without finishing a block: killed"):
        die()
    pool.close()


def test_worker_that_is_given_up_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop ends blocks that take longer than the grace period; the pool goes on with a replacement."""
    pool = pool_of("process", 1, deaths=1)
    monkeypatch.setattr(Echo, "answer", lambda self, message: None)
    pool.ask(0, LearnBlock(3))
    monkeypatch.undo()
    assert not list(pool.drain(0.0))
    assert pool.tally(10) == {"acting/deaths": 1.0, "acting/dropped_steps": 30.0}
    pool.ask(0, LearnBlock(1))
    pool.settle()
    pool._links[0].kill()
    pool.ask(0, LearnBlock(1))
    with pytest.raises(WorkerPoolError, match="process 0 died: killed"):
        pool.settle()
    pool.close()


def test_only_consecutive_silence_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only workers with pending requests can time out."""
    pool, killed = pool_of("process", 2), []
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
    pool.ask(1, LearnBlock(1))
    pool.ask(1, LearnBlock(1))
    assert hear(False, True, False) == 0
    assert hear(False) == 1
    assert killed == [pool._links[1]]
    assert hear(False) == 1  # those who take their places have time again
    monkeypatch.undo()
    pool.close()


def test_replacement_is_asked_for_nothing_until_it_has_come_up() -> None:
    """The others go on meanwhile, and what it would have done does not count as pending."""
    pool = pool_of("remote", 2)
    pool._links[1].kill()
    pool.ask(1, LearnBlock(3))
    assert pool.pending == 3
    assert not pool.answered(0.0)
    assert (pool.deaths, pool.pending, pool._links[1].up) == (1, 0, False)
    assert pool.least_loaded(2) == [0, 0]
    pool.ask(0, LearnBlock(1))
    assert pool.answered(0.0)
    assert pool.least_loaded(2) == [0, 1, 0, 1]
    pool.close()


def test_wait_for_a_first_worker_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of("remote", 2)
    monkeypatch.setattr(EchoWire, "wait", lambda self, calls, timeout: [])
    monkeypatch.setattr("pbtrl.rl.remote_actors.time.sleep", lambda seconds: None)
    for link in pool._links:
        for _ in range(3):
            assert not pool.answered(30.0)  # one is up
        link.start()
        link.send(ResetEnvs([]))
    pool._silent = 0.0
    for _ in range(2):
        assert not pool.answered(30.0)
    with pytest.raises(WorkerPoolError, match="none of the 2 processes came up within 60 s"):
        pool.answered(30.0)
    pool.close()
