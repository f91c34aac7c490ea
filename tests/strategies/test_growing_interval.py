"""The ready interval of PBT that grows when the best fitness stagnates."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from pbtrl.build.factory import make_strategy
from pbtrl.config.load import parse, resolve
from pbtrl.core.dimensions import LogUniform
from pbtrl.core.messages import Assignment
from pbtrl.core.population import Population
from pbtrl.core.search_space import SearchSpace
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.rules import Exploit, Explore
from pbtrl.strategies.stagnation import growth
from pbtrl.testing.fakes import LAST
from pbtrl.testing.strategies import SPACE, PopulationConformance
from tests.command import Command
from tests.strategies.same_run import check_same_run
from tests.strategies.simulation import World, play


class TestSynchronous(PopulationConformance):
    @classmethod
    def strategy(cls) -> PBT:
        return PBT(space=SPACE, slice_steps=100, horizon=600, synchronous=True, grow=2, patience=1)


class TestAsynchronous(PopulationConformance):
    horizon = 2550

    @classmethod
    def strategy(cls) -> PBT:
        return PBT(space=SPACE, slice_steps=100, horizon=2550, exploit=Exploit(bottom=0.4, top=0.4), grow=3, patience=1)


# Rounds


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ([], 1),
        ([1.0] * 3, 1),  # the first moving average is a record
        ([1.0] * 5, 1),
        ([1.0] * 6, 2),  # three rounds without one
        ([1.0] * 11, 2),
        ([1.0] * 12, 4),  # three intervals of two rounds
        ([1.0] * 24, 8),
        ([float(r) for r in range(40)], 1),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 1.0, 1.0], 1),  # the sixth average is a record
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 1.0, 1.0, 1.0], 2),
        ([0.0, 9.0, 0.0, 5.0, 4.0, 4.0], 1),
    ],
)
def test_interval_doubles_after_three_intervals_without_a_record(best: list[float], expected: int) -> None:
    assert growth(best, 2, 3) == expected


def test_factor_and_patience() -> None:
    assert [growth([1.0] * n, 5, 1) for n in (3, 4, 8, 9, 33, 34)] == [1, 5, 5, 25, 25, 125]


# Decisions


def flat(a: Assignment) -> float:
    """Fitness that depends on the member and never grows."""
    return float(a.member[1:])


def pbt(**changes: Any) -> PBT:
    settings: dict[str, Any] = {"space": SPACE, "slice_steps": 10, "horizon": 300, "synchronous": True, **changes}
    return PBT(**settings)


def copies(strategy: PBT, world: World, order: int | None = None) -> list[int]:
    """Steps of the receivers' clocks at copies."""
    rng = None if order is None else np.random.default_rng(order)
    played = play(strategy, Population(4, 1, LAST), world, rng)
    return sorted({a.start for decided in played for a in decided if a.donor})


def test_members_copy_at_growing_intervals() -> None:
    """Records until 30; then three intervals of 10, of 20, and of 40 steps, on the grid of the grown interval."""
    assert copies(pbt(grow=2), flat) == [10, 20, 30, 40, 50, 60, 80, 100, 120, 160, 200, 240]
    assert copies(pbt(), flat) == [*range(10, 300, 10)]


def test_rising_fitness_keeps_the_interval() -> None:
    assert copies(pbt(grow=2), lambda a: a.stop + flat(a)) == [*range(10, 300, 10)]


def test_slices_keep_their_length() -> None:
    played = play(pbt(grow=2), Population(4, 1, LAST), flat)
    assert {a.stop - a.start for decided in played for a in decided} == {10}


def test_interval_grows_asynchronously() -> None:
    result = copies(pbt(grow=2, synchronous=False), flat, order=3)
    assert len([step for step in result if step <= 60]) >= 5
    assert {step % 20 for step in result if step > 150} == {0}


def test_round_counts_when_all_members_have_reached_it() -> None:
    population, strategy = Population(4, 1, LAST), pbt(grow=2, synchronous=False)
    intervals: dict[int, int] = {}
    for _ in play(strategy, population, flat, np.random.default_rng(3)):
        reached = min(m.step for m in population.members.values()) // 10
        assert strategy.ready_interval(population) == intervals.setdefault(reached, strategy.ready_interval(population))
    assert intervals[5] == 10
    assert intervals[6] == intervals[11] == 20


def test_retired_member_holds_nothing_up() -> None:
    population, strategy = Population(4, 1, LAST), pbt(grow=2)
    for _ in play(strategy, population, flat):
        pass
    assert strategy.ready_interval(population) == 80
    population.members["m02"].step = 0
    assert strategy.ready_interval(population) == 10
    population.members["m02"].retired = True
    assert strategy.ready_interval(population) == 80


# Noisy quadratic, T1 (fire.md 2)

State = tuple[tuple[float, float], tuple[float, float]]
CURVATURES = (1.0, 0.01)
START: State = ((1.0, 0.0), (10.0, 0.0))


def descend(state: State, h: float, steps: int) -> State:
    """Exact moments (m, v) after `steps` of SGD: m <- (1 - h c) m; v <- (1 - h c)^2 v + (h c)^2, with curvature c."""
    moments = []
    for (m, v), c in zip(state, CURVATURES, strict=True):
        a = (1.0 - h * c) ** 2
        moments.append((m * (1.0 - h * c) ** steps, a**steps * v + (h * c) ** 2 * (1.0 - a**steps) / (1.0 - a)))
    return moments[0], moments[1]


def quality(state: State) -> float:
    return -math.log10(0.5 * sum(c * (m * m + v) for (m, v), c in zip(state, CURVATURES, strict=True)))


@pytest.mark.parametrize(("h", "expected"), [(0.1, 0.360872), (0.01, 0.252383), (1.0, 0.246408)])
def test_noisy_quadratic_by_the_specification(h: float, expected: float) -> None:
    assert quality(START) == pytest.approx(0.0, abs=1e-12)
    assert quality(descend(START, h, 100)) == pytest.approx(expected, abs=1e-6)


def noisy_quadratic(grow: int, seed: int, *, ready: int = 25) -> float:
    """True quality of the best of 22 members after 4,000 steps of PBT."""
    strategy = PBT(
        space=SearchSpace({"h": LogUniform(low=1e-2, high=1.0, bounds=(1e-4, 1.0))}), slice_steps=ready, horizon=4000,
        exploit=Exploit(bottom=0.25, top=0.25), explore=Explore(factors=(0.5, 0.8, 1.25, 2.0)), synchronous=True,
        grow=grow,
    )  # fmt: skip
    states: dict[str | None, State] = {None: START}

    def world(a: Assignment) -> float:
        states[a.id] = descend(states[a.parent], a.hyperparameters["h"], a.stop - a.start)
        return quality(states[a.id]) + 0.02 * float(np.random.default_rng(a.seed).standard_normal())

    population = Population(22, seed, LAST)
    for _ in play(strategy, population, world):
        pass
    assert population.best is not None
    return quality(states[population.best.snapshot])


def test_growing_interval_is_less_greedy() -> None:
    """At an interval that is too short, PBT is greedy: the short-horizon bias of the noisy quadratic."""
    seeds = range(2)
    assert fmean(noisy_quadratic(2, s) for s in seeds) > fmean(noisy_quadratic(1, s) for s in seeds) + 0.05


# Config

CONFIG = """\
trainable: {name: quadratic, clamp: true}
population: {size: 4, mode: sync}
budget: {env_steps_per_member: 200}
hparams:
  h0: {prior: uniform, low: 0.0, high: 1.0}
  h1: {prior: uniform, low: 0.0, high: 1.0}
strategy: {name: pbt, ready: {slice_steps: 10, grow: 2, patience: 1}}
"""


def test_settings_reach_the_strategy_also_resolved() -> None:
    for config in (parse(CONFIG), resolve(parse(CONFIG))):
        strategy = make_strategy(config)
        assert isinstance(strategy, PBT)
        assert (strategy.slice_steps, strategy.grow, strategy.patience) == (10, 2, 1)


def test_executor_and_stops_change_nothing(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    ready = "strategy.ready={slice_steps: 10, grow: 2, patience: 1}"
    check_same_run(pbtrl, monkeypatch, ["toy_quadratic", "population.size=4", ready], [9, 50])
