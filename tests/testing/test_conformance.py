"""Built-in agents pass the shipped conformance tests, which detect broken implementations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from pbtrl.agents.settings import AGENTS
from pbtrl.core.messages import Assignment
from pbtrl.core.population import Population
from pbtrl.core.records import Record
from pbtrl.strategies.pbt import PBT
from pbtrl.testing import AgentConformance, PopulationConformance, SearchConformance, TrainableConformance
from pbtrl.testing.strategies import steady
from pbtrl.trainables.quadratic import Quadratic
from tests.fakes import after_one_slice, assign


class TestImpala(AgentConformance):
    settings = AGENTS["impala"](hidden=(8,))


class TestA3C(TestImpala):
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    settings = AGENTS["a3c"](hidden=(8,), unroll_mode="budget")


class TestVMPO(TestImpala):
    settings = AGENTS["vmpo"](hidden=(8,))


class TestPPO(TestImpala):
    settings = AGENTS["ppo"](hidden=(8,), minibatches=3)


class TestRecurrentPPO(TestImpala):
    action_space = Box(-1.0, 1.0, (2,), np.float32)

    settings = AGENTS["ppo"](hidden=(8,), minibatches=2, core="lstm", core_units=8)


class Leaking(PBT):
    """Strategy that remembers its decisions."""

    def decide(self, population: Population) -> list[Assignment]:
        object.__setattr__(self, "horizon", self.horizon - 1)
        return super().decide(population)


class Constant(PBT):
    """Strategy that ignores the seed of the run."""

    def decide(self, population: Population) -> list[Assignment]:
        return [replace(a, hyperparameters={"lr": 1e-3, "unroll": 20}) for a in super().decide(population)]


class Plain(PopulationConformance):
    kind: ClassVar[type[PBT]] = PBT

    @classmethod
    def strategy(cls) -> PBT:
        return cls.kind(space=cls.space, slice_steps=cls.slice_steps, horizon=cls.horizon)


def test_strategy_that_ignores_the_seed_is_detected() -> None:
    class Seedless(Plain):
        kind = Constant

    Plain().test_different_seeds_start_differently()
    with pytest.raises(AssertionError):
        Seedless().test_different_seeds_start_differently()
    Seedless.draws = False
    Seedless().test_different_seeds_start_differently()


def test_weights_of_another_trial_are_detected() -> None:
    """Those of m100, whose id begins as m10 does."""
    population = after_one_slice(1.0)
    assignment = replace(assign(population, "m00"), member="m10", parent="m100/000000")

    class Check(SearchConformance):
        def moments(self, records: list[Record]) -> Iterator[tuple[Population, list[Assignment]]]:
            yield population, [assignment]

    with pytest.raises(AssertionError):
        Check().test_members_never_copy([])


def test_stateful_strategy_is_detected(tmp_path_factory: pytest.TempPathFactory) -> None:
    class Stateful(Plain):
        kind = Leaking

    plain, stateful = Plain(), Stateful()
    plain.test_decides_the_same_from_the_same_history(plain.run(tmp_path_factory.mktemp("plain"), steady))
    records = stateful.run(tmp_path_factory.mktemp("stateful"), steady)
    with pytest.raises(AssertionError) as caught:
        stateful.test_decides_the_same_from_the_same_history(records)
    assert "decide(before) == assignments" in str(caught.traceback[-1].statement)


def test_trainable_with_shared_state_is_detected() -> None:
    class Sharing(Quadratic):
        def state_dict(self) -> dict[str, np.ndarray]:
            return {"theta": self._theta}

    class Check(TrainableConformance):
        hyperparameters: ClassVar = {"h0": 1.0, "h1": 0.5}

        def make(self, rng: np.random.Generator) -> Any:
            return Sharing(rng)

    with pytest.raises(AssertionError):
        Check().test_a_state_does_not_change_when_training_continues()


def test_agent_that_mixes_members_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    check = TestImpala()
    agent = check.settings.build(check.observation_space, check.action_space)
    learn = type(agent).learn

    def mixing(self: Any, state: Any, *arguments: Any) -> Any:
        result = learn(self, state, *arguments)
        params = state.tensors["params"]
        params += 1e-3 * (params.mean(0, keepdim=True) - params) + 1e-4 * torch.ones(()) * len(params)
        return result

    monkeypatch.setattr(type(agent), "learn", mixing)
    with pytest.raises(AssertionError):
        check.test_a_member_is_the_same_in_every_slot_and_cohort(agent)
