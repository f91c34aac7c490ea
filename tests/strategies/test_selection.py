"""Asynchronous selection, event by event: each member is ranked among all when it reports."""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from pbtrl.core.dimensions import LogUniform
from pbtrl.core.messages import Assignment
from pbtrl.core.population import FitnessRule, Population
from pbtrl.core.search_space import SearchSpace
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.rules import Exploit, Explore
from pbtrl.testing.fakes import LAST, died, trained
from tests.fakes import after_one_slice, answer, assign, decision

Fitness = Callable[[int, np.random.Generator], float]
"""Of a member's index: what its next report says."""

NOISE: Fitness = lambda i, rng: rng.normal()  # noqa: E731
QUALITY: Fitness = lambda i, rng: i + rng.normal()  # noqa: E731


@dataclass(frozen=True)
class Copy:
    """One copy: the members with a lower latest fitness, and whether the donor had a fitness of its own."""

    receiver: str
    below: int
    donor_reported: bool


@dataclass
class Simulation:
    """Members that report at different times, in cohorts that report together.

    Attributes:
        exploit: the rule.
        size: members.
        cohort: members that report together.
        speeds: seconds of a slice, drawn evenly from this interval for each cohort.
        fitness: what members report.
        until: decisions, after which everything ends.
        episodes: of a slice, each with a number of its own; their mean is the fitness.
    """

    exploit: Exploit
    size: int
    cohort: int = 1
    speeds: tuple[float, float] = (1.0, 1.0)
    fitness: Fitness = NOISE
    until: int = 500
    episodes: int = 1
    seed: int = 0
    decisions: int = 0
    copies: list[Copy] = field(default_factory=list)

    def run(self) -> Simulation:
        rng = np.random.default_rng(self.seed)
        population = Population(self.size, self.seed, FitnessRule(window=self.episodes, min_episodes=1))
        strategy = PBT(
            space=SearchSpace({"lr": LogUniform(low=1e-3, high=1.0)}),
            slice_steps=100,
            horizon=10**9,
            exploit=self.exploit,
            explore=Explore(method="none"),
        )
        members = list(population.members)
        cohorts = [members[i : i + self.cohort] for i in range(0, self.size, self.cohort)]
        seconds = rng.uniform(*self.speeds, len(cohorts))
        self._latest: dict[str, float] = {}
        self._own: set[str] = set()  # members whose latest number is younger than their last copy
        self._decide(strategy, population)
        events = [(float(seconds[c] * rng.uniform(0.5, 1.0)), c) for c in range(len(cohorts))]
        heapq.heapify(events)
        while self.decisions < self.until:
            now, c = heapq.heappop(events)
            for member in cohorts[c]:
                returns = [self.fitness(members.index(member), rng) for _ in range(self.episodes)]
                a = population.members[member].pending
                assert a
                population.record(answer(trained(a, *returns)))
                self._latest[member] = statistics.fmean(returns)
                self._own.add(member)
            self._decide(strategy, population)
            heapq.heappush(events, (now + float(seconds[c] * rng.uniform(0.9, 1.1)), c))
        return self

    def _decide(self, strategy: PBT, population: Population) -> None:
        decided = strategy.decide(population)
        self.decisions += sum(a.parent is not None for a in decided)
        for a in decided:
            if a.donor:
                below = sum(number < self._latest[a.member] for number in self._latest.values())
                self.copies.append(Copy(a.member, below, a.donor in self._own))
        self._own -= {a.member for a in decided if a.donor}
        if decided:
            population.record(decision(*decided))

    @property
    def share(self) -> float:
        """Copies per decision."""
        return len(self.copies) / self.decisions


SHAPES = [
    pytest.param({"size": size, "cohort": cohort, "speeds": speeds}, id=f"{size} members, cohorts of {cohort}, {name}")
    for size in (4, 8, 20, 40)
    for cohort, speeds, name in (
        (1, (1.0, 1.0), "equal speeds"),
        (1, (1.0, 3.0), "speeds 1 to 3"),
        (2, (1.0, 2.0), "1 to 2"),
    )
]


def bottom_of(size: int) -> float:
    return 0.25 if size < 10 else 0.2


@pytest.mark.parametrize("shape", SHAPES)
def test_truncation_copies_the_bottom_fraction_under_noise(shape: dict[str, Any]) -> None:
    bottom = bottom_of(shape["size"])
    done = Simulation(Exploit(bottom=bottom, top=bottom), until=1500, **shape).run()
    assert done.share == pytest.approx(bottom, rel=0.1)


@pytest.mark.parametrize("fitness", [NOISE, QUALITY], ids=["noise", "quality and noise"])
@pytest.mark.parametrize("shape", SHAPES)
def test_truncation_never_replaces_above_the_bottom(shape: dict[str, Any], fitness: Fitness) -> None:
    size, bottom = shape["size"], bottom_of(shape["size"])
    done = Simulation(Exploit(bottom=bottom, top=bottom), fitness=fitness, until=12 * size, **shape).run()
    assert done.copies
    assert max(copy.below for copy in done.copies) < math.floor(bottom * size)


@pytest.mark.parametrize("method", ["truncation", "binary_tournament", "t_test"])
def test_donor_has_its_own_fitness(method: Any) -> None:
    exploit = Exploit(method=method, bottom=0.5, top=0.5, alpha=0.4)
    done = Simulation(exploit, 8, speeds=(1.0, 3.0), episodes=3).run()
    assert done.copies
    assert all(copy.donor_reported for copy in done.copies)


@pytest.mark.parametrize("speeds", [(1.0, 1.0), (1.0, 3.0)])
def test_tournament_copies_if_the_opponent_ranks_higher(speeds: tuple[float, float]) -> None:
    done = Simulation(Exploit(method="binary_tournament"), 8, speeds=speeds, until=1500).run()
    assert done.share == pytest.approx(0.5, rel=0.1)


def test_first_reports_wait_until_a_receiver_is_known() -> None:
    """One of four copies: with one of the four unknown, no member is surely at the bottom."""
    for population in joining(4):
        ranked = [m for m in population.members.values() if m.ranked]
        strategy = PBT(space=SearchSpace({}), slice_steps=100, horizon=1000, exploit=Exploit(bottom=0.25, top=0.25))
        copied = [a.member for a in strategy.decide(population) if a.donor]
        assert copied == (["m00"] if len(ranked) == 4 else [])


def joining(size: int) -> Iterator[Population]:
    """Populations in which one member, two, ... have reported; the first member is the worst."""
    population = Population(size, 0, LAST)
    opened = {m: assign(population, m) for m in population.members}
    population.record(decision(*opened.values()))
    for i, a in enumerate(opened.values()):
        population.record(answer(trained(a, float(i))))
        yield population


def test_members_without_fitness_do_not_delay_others() -> None:
    population = Population(4, 0, FitnessRule(window=5, min_episodes=2))
    opened = {m: assign(population, m) for m in population.members}
    population.record(decision(*opened.values()))
    for m, returns in zip(opened, ([1.0, 1.0], [2.0, 2.0], [3.0], [4.0]), strict=True):
        population.record(answer(trained(opened[m], *returns)))
    strategy = PBT(space=SearchSpace({}), slice_steps=100, horizon=1000, exploit=Exploit(bottom=0.25, top=0.25))
    assert [(a.member, a.donor) for a in strategy.decide(population) if a.donor] == [("m00", "m01")]


# The placeholder is a fold


def copied(fitness: float = 1.0) -> Population:
    """m00 has reported `fitness` and copied m01, whose fitness is 5."""
    population = Population(2, 0, FitnessRule(window=4, min_episodes=2))
    for m, number in (("m00", fitness), ("m01", 5.0)):
        a = assign(population, m)
        population.record(decision(a))
        population.record(answer(trained(a, number, number)))
    population.record(decision(assign(population, "m00", parent="m01/000000", donor="m01")))
    return population


def test_copy_keeps_the_old_fitness_for_ranking_only() -> None:
    m = copied().members["m00"]
    assert (m.fitness, m.placeholder, m.rank_fitness, m.ranked, m.window) == (None, 1.0, 1.0, False, [])


def test_placeholder_stays_until_there_is_a_fitness() -> None:
    population = copied()
    m = population.members["m00"]
    population.record(answer(trained(open_of(population, "m00"), 7.0)))
    assert (m.fitness, m.rank_fitness) == (None, 1.0)
    population.record(decision(assign(population, "m00")))
    population.record(answer(trained(open_of(population, "m00"), 9.0)))
    assert (m.fitness, m.placeholder, m.rank_fitness) == (8.0, None, 8.0)


@pytest.mark.parametrize("method", ["truncation", "binary_tournament", "t_test"])
def test_member_with_too_few_episodes_is_no_donor(method: Any) -> None:
    """Counted since its last copy."""
    population = Population(2, 0, FitnessRule(window=9, min_episodes=3))
    for m, number in (("m00", 2.0), ("m01", 1.0)):
        population.record(decision(assign(population, m)))
        population.record(answer(trained(open_of(population, m), number, number, number)))
    population.record(decision(assign(population, "m01", parent="m00/000000", donor="m00")))
    population.record(answer(trained(open_of(population, "m01"), 9.0, 9.0)))
    strategy = PBT(
        space=SearchSpace({}), slice_steps=100, horizon=1000, exploit=Exploit(method=method, bottom=0.5, top=0.5)
    )
    assert [a.donor for a in strategy.decide(population)] == [None, None]


def test_tournament_lost_to_a_placeholder_takes_another_donor() -> None:
    """The donor is then a fitter member with a fitness of its own."""
    donors = set()
    for seed in range(40):
        population = after_one_slice(2.0, 9.0, 1.0, 3.0, seed=seed)
        population.record(decision(assign(population, "m01", parent="m03/000000", donor="m03")))
        strategy = PBT(
            space=SearchSpace({}), slice_steps=100, horizon=1000, exploit=Exploit(method="binary_tournament")
        )
        donors |= {a.donor for a in strategy.decide(population) if a.member == "m00"}
    assert donors == {None, "m03"}


def test_second_copy_without_fitness_keeps_the_placeholder() -> None:
    population = copied()
    population.record(answer(died(open_of(population, "m00"))))
    population.record(decision(assign(population, "m00", parent="m01/000000", donor="m01")))
    assert population.members["m00"].rank_fitness == 1.0


def test_best_member_never_has_a_placeholder() -> None:
    population = copied(fitness=100.0)
    assert population.best is population.members["m01"]
    assert population.ranking() == [population.members["m01"]]


def open_of(population: Population, member: str) -> Assignment:
    a = population.members[member].pending
    assert a
    return a
