"""A crew's books, kept for objects in this process: who is asked, what is lost, who has been silent for too long."""

from __future__ import annotations

from typing import Any

import pytest

from pbtrl.errors import WorkerPoolError
from pbtrl.rl import process_pool
from pbtrl.rl.process_pool import PATIENCE, Message, WorkerPool
from tests.rl.conftest import Local

pytestmark = pytest.mark.usefixtures("one_process")


class Echo:
    """Answers what it is asked; `greeting` is what it was told first."""

    greeting: Message | None = None

    def answer(self, message: Message) -> Message | None:
        self.greeting = self.greeting or message
        return message if "steps" in message else None

    def close(self) -> None:
        pass


def crew_of(count: int, **more: Any) -> WorkerPool:
    crew = WorkerPool(count, lambda i: (Echo, ()), lambda i, life: {"who": i, "life": life}, **more)
    crew.send_init_message()
    return crew


def process(crew: WorkerPool, i: int) -> Local:
    found = crew._processes[i]
    assert isinstance(found, Local)
    return found


def test_least_loaded_worker_is_asked_first() -> None:
    crew = crew_of(3)
    assert crew.least_loaded(2) == [0, 1, 2, 0, 1, 2]
    crew.ask(0, {"steps": 1})
    crew.ask(2, {"steps": 1})
    crew.ask(2, {"steps": 1})
    assert crew.least_loaded(2) == [1, 0, 1]
    crew.settle()
    assert crew.least_loaded(1) == [0, 1, 2]
    crew.close()


def test_answers_are_taken_in_order() -> None:
    """They count as pending until then."""
    crew, pending = crew_of(2), [6, 4, 3]
    for i, steps in ((1, 2), (0, 1), (1, 3)):
        crew.ask(i, {"steps": steps})
        assert crew.answered(0.0)
    for i, steps, left in zip((1, 0, 1), (2, 1, 3), pending, strict=True):
        assert crew.pending == left
        assert crew.take() == (i, {"steps": steps})
    assert crew.pending == 0
    assert not crew.answered(0.0)
    crew.close()


def test_replacement_gets_its_own_init_message() -> None:
    """With the number of its restart; the lost requests are counted once."""
    lost: list[tuple[int, Any]] = []
    crew = crew_of(2, died=lambda i, unanswered: lost.append((i, list(unanswered))))
    process(crew, 1).kill()
    for steps in (3, 4):
        crew.ask(1, {"steps": steps})
    crew.settle()
    assert process(crew, 1).hand.greeting == {"who": 1, "life": 1}
    assert process(crew, 0).hand.greeting == {"who": 0, "life": 0}
    assert lost == [(1, [{"steps": 3}, {"steps": 4}])]
    assert not crew._answers
    assert crew.tally(10, dropped=5) == {"acting/deaths": 1.0, "acting/dropped_steps": 75.0}
    crew.clear()
    assert crew.tally(10) == {}
    crew.close()


def test_only_consecutive_deaths_give_up() -> None:
    crew = crew_of(1, deaths=2)

    def die() -> None:
        process(crew, 0).kill()
        crew.ask(0, {"steps": 1})
        crew.settle()

    for _ in range(3):
        die()
        crew.ask(0, {"steps": 1})
        crew.settle()
    assert crew.deaths == 3
    die()
    with pytest.raises(WorkerPoolError, match="process 0 died 2 times without finishing a block: killed"):
        die()
    crew.close()


def test_only_consecutive_silence_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only workers with pending requests can time out."""
    crew, killed = crew_of(2), []
    monkeypatch.setattr(Local, "kill", lambda self: killed.append(self))
    quiet = 0.6 * PATIENCE
    says: list[bool] = []
    monkeypatch.setattr(process_pool, "wait", lambda pipes, timeout: pipes[1:] if says.pop(0) else [])

    def hear(*script: bool) -> int:
        says.extend(script)
        for _ in script:
            crew._receive(quiet)
        return len(killed)

    assert hear(False, False, False) == 0  # nobody has been asked
    crew.ask(1, {"steps": 1})
    crew.ask(1, {"steps": 1})
    assert hear(False, True, False) == 0
    assert hear(False) == 1
    assert killed == [process(crew, 1)]
    assert hear(False) == 1  # those who take their places have time again
    monkeypatch.undo()
    crew.close()
