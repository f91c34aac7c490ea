"""Actors behind a wire: what travels, and what happens while one is gone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from pbtrl.errors import WorkerPoolError
from pbtrl.rl.actors import SLOTS, ActorsCohort
from pbtrl.rl.pool_messages import Act, Raised, ResetEnvs, ToWorker, decode
from pbtrl.rl.remote_actors import pack, unpack
from tests.rl.conftest import Call, MemoryActor, MemoryWire
from tests.rl.test_cohort import CARTPOLE, builder, slice_of

STEPS, ENVS = 10, 4
PONG = {"id": "ALE/Pong-v5", "kwargs": {"max_num_frames_per_episode": 40}}


class RecordingWire(MemoryWire):
    """Wire that notes its traffic, and whose actors may be slow to start.

    Attributes:
        sent: every message with its reference.
        open: calls of which each actor has not told the result.
        most: the largest of these numbers that was seen.
        slow: actors whose calls do not end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[ToWorker, int | None]] = []
        self.open: dict[int, list[Call]] = {}
        self.most, self.slow = 0, False
        self._stuck: set[int] = set()

    def start(self, place: int, entry: str, argument: str) -> MemoryActor:
        actor = super().start(place, entry, argument)
        if self.slow:
            self._stuck.add(id(actor))
        return actor

    def call(self, actor: MemoryActor, message: bytes, reference: int | None) -> Call:
        call = super().call(actor, message, reference)
        self.sent.append((decode(message), reference))
        self.open.setdefault(id(actor), []).append(call)
        if isinstance(self.sent[-1][0], Act):
            self.most = max(self.most, len(self.open[id(actor)]))
        return call

    def wait(self, calls: Sequence[Call], timeout: float) -> Sequence[Call]:
        stuck = {id(call) for actor in self._stuck for call in self.open.get(actor, [])}
        return [call for call in calls if id(call) not in stuck]

    def result(self, call: Call) -> bytes:
        for calls in self.open.values():
            if call in calls:
                calls.remove(call)
        return super().result(call)


def cohort_of(wire: MemoryWire, processes: int = 2, env: Any = CARTPOLE, **more: Any) -> ActorsCohort:
    build = builder(env, ENVS, acting={"mode": "actors", "processes": processes}, **more)
    build._wire = lambda: wire
    cohort = build.cohort(("m00",), 1)
    assert isinstance(cohort, ActorsCohort)
    cohort.init(0, 1)
    return cohort


def begin(cohort: ActorsCohort, blocks: int, generation: int = 0) -> None:
    cohort.begin([slice_of("m00", ENVS * STEPS * blocks, generation)])


def train(cohort: ActorsCohort) -> Any:
    while not cohort.advance():
        pass
    return cohort.outcome(0)


def test_request_carries_the_newest_weights_which_are_put_once_per_version() -> None:
    wire = RecordingWire()
    cohort = cohort_of(wire)
    begin(cohort, 12)
    sent = 0
    while not cohort.advance():
        newest = len(wire.references) - 1
        assert all(reference == newest - bool(cohort._done) for m, reference in wire.sent[sent:] if isinstance(m, Act))
        sent = len(wire.sent)
    versions = [unpack(data)[0].version for data in wire.references]
    assert versions == list(range(13))
    weights = unpack(wire.references[-1])[1]
    assert weights.keys() == set(cohort._spec.agent.acting_tensors)
    assert all(torch.equal(value, cohort._state.tensors[name]) for name, value in weights.items())
    assert wire.places == [0, 1]
    cohort.close()


def test_at_most_two_requests_are_in_flight_and_none_at_the_end() -> None:
    wire = RecordingWire()
    cohort = cohort_of(wire)
    begin(cohort, 9)
    outcome = train(cohort)
    assert (outcome.steps, wire.most) == (ENVS * STEPS * 9, SLOTS)
    assert outcome.scalars == {}
    assert not any(wire.open.values())
    begin(cohort, 500, 1)
    for _ in range(3):
        cohort.advance()
    outcome = cohort.outcome(0)  # stopped early
    assert not any(wire.open.values())
    assert outcome.scalars["acting/dropped_steps"] > 0
    asked = sum(message.steps for message, _ in wire.sent if isinstance(message, Act))
    assert asked * ENVS == ENVS * STEPS * 9 + outcome.steps + outcome.scalars["acting/dropped_steps"]
    cohort.close()


def test_learner_goes_on_while_a_dead_actor_is_replaced() -> None:
    """What it had not delivered is not counted, and the budget stays exact, with the replacement or without."""
    wire = RecordingWire()
    cohort = cohort_of(wire)
    begin(cohort, 12)
    while not cohort._done:
        cohort.advance()
    wire.slow = True
    wire.end(wire.started[0])
    outcome = train(cohort)
    assert outcome.steps == ENVS * STEPS * 12
    assert outcome.scalars["acting/deaths"] == 1
    assert wire.places == [0, 1, 0]
    assert sum(isinstance(m, ResetEnvs) for m, _ in wire.sent) == 3  # the replacement has envs of its own
    wire.slow = False
    wire._stuck.clear()
    begin(cohort, 8, 1)
    outcome = train(cohort)
    assert (outcome.steps, outcome.scalars) == (ENVS * STEPS * 8, {})
    assert cohort._actors.pool._links[0].begun  # it acts again
    assert [len(free) for free in cohort._actors._free] == [SLOTS, SLOTS]
    cohort.close()
    assert not any(actor.alive for actor in wire.started)


def test_unreachable_actor_is_ended_before_it_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = MemoryWire()
    cohort = cohort_of(wire, 1)
    begin(cohort, 8)
    while not cohort._done:
        cohort.advance()
    result = MemoryWire.result

    def unreachable(self: MemoryWire, call: Call) -> bytes:
        monkeypatch.setattr(MemoryWire, "result", result)
        raise ConnectionError("node 10.0.0.7 cannot be reached")

    monkeypatch.setattr(MemoryWire, "result", unreachable)
    outcome = train(cohort)
    assert (outcome.steps, outcome.scalars["acting/deaths"]) == (ENVS * STEPS * 8, 1)
    assert [actor.alive for actor in wire.started] == [False, True]
    cohort.close()


def test_frames_travel_unstacked() -> None:
    wire = RecordingWire()
    cohort = cohort_of(wire, 1, PONG)
    begin(cohort, 3)
    (link,) = cohort._actors._transport.links
    while not link.blocks:  # type: ignore[attr-defined]
        cohort._ready()
    tensors = next(iter(link.blocks.values()))  # type: ignore[attr-defined]
    assert "observations" not in tensors
    episodes = int(tensors["is_reset_step"].sum())
    assert len(tensors["frames"]) <= ENVS * (STEPS + 4) + 3 * episodes
    assert train(cohort).steps == ENVS * STEPS * 3
    cohort.close()


def test_exception_of_an_actor_names_its_reason() -> None:
    cohort = cohort_of(MemoryWire(), 1, {"id": "probe/Raising-v0", "kwargs": {"after": 25}})
    begin(cohort, 50)
    with pytest.raises(WorkerPoolError, match=r"process 0 raised EnvError: .* as it was asked to") as raised:
        train(cohort)
    assert 'raise RuntimeError("probe/Raising-v0 raised' in raised.value.__notes__[0]
    cohort.close()


def test_bytes_keep_every_kind_of_tensor() -> None:
    tensors = {
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(2, 3, 0),
        "long": torch.tensor([2**40]),
        "odd": torch.arange(12, dtype=torch.uint8).view(3, 4).T,
        "double": torch.tensor([float("inf"), float("nan")], dtype=torch.float64),
    }
    header, result = unpack(pack(Raised("error", "two\nlines"), tensors))
    assert header == Raised("error", "two\nlines")
    assert result.keys() == tensors.keys()
    for name, value in tensors.items():
        assert result[name].dtype == value.dtype
        assert torch.equal(result[name].nan_to_num(), value.nan_to_num())
