"""Searches over trials: conformance, exact budgets, the grid, and constant values."""

import itertools
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pbtrl.core.dimensions import AGENT, Choice, IntLogUniform, IntUniform, LogUniform, OneMinusLogUniform, Uniform
from pbtrl.core.population import Population
from pbtrl.core.records import Record, RunResumed
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.strategies.asha import ASHA
from pbtrl.strategies.bayesian import bayesian
from pbtrl.strategies.brackets import halving
from pbtrl.strategies.brackets import hyperband as hyperband_brackets
from pbtrl.strategies.fixed import fixed
from pbtrl.strategies.grid import Grid, grid, grid_size, points
from pbtrl.strategies.hyperband import hyperband
from pbtrl.strategies.random_search import random_search, random_trials
from pbtrl.strategies.successive_halving import SuccessiveHalving
from pbtrl.strategies.suggestions import Suggestions, best_rung_results
from pbtrl.strategies.trials import IndependentTrials, Prior
from pbtrl.testing.fakes import LAST, died
from pbtrl.testing.strategies import SPACE, SearchConformance, rough, steady
from tests.strategies.trial_runs import run

COMMON: dict[str, Any] = {"slice_steps": 100, "horizon": 600}
RUNGS = (75, 150, 300, 600)


class TrialConformance(SearchConformance):
    """Adds that every trial ends, and that without failures the steps are exactly those planned.

    Attributes:
        steps: planned env steps of the run; None if the number of promotions depends on the order of reports.
        rungs: steps at which trials are compared; slices end there too.
    """

    steps: ClassVar[int | None] = None
    rungs: ClassVar[tuple[int, ...]] = ()

    def test_trials_end_retired(self, records: list[Record]) -> None:
        end = self.population().replay(records)
        begun = [m for m in end.members.values() if m.generation >= 0]
        assert list(end.members)[: len(begun)] == [m.id for m in begun]
        assert self.strategy().decide(end) == []
        finished = [m for m in begun if m.step == self.horizon or not m.healthy]
        assert all(m.retired for m in finished)

    def test_steps_are_exact_without_failures(self, records: list[Record], request: pytest.FixtureRequest) -> None:
        if self.steps is None:
            pytest.skip("the number of promotions depends on the order of reports")
        if "rough" in request.node.name:
            pytest.skip("the run has failures")
        assert self.population().replay(records).step == self.steps

    def test_slices_end_on_the_grid_or_at_a_rung(self, records: list[Record]) -> None:
        for _, assignments in self.moments(records):
            for a in assignments:
                assert a.stop - a.start <= self.slice_steps
                assert a.stop % self.slice_steps == 0 or a.stop in self.rungs

    def test_slices_begin_where_the_last_one_of_their_trial_ended(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            for a in assignments:
                member = before.members.get(a.member)
                assert (a.parent, a.start) == ((member.snapshot, member.step) if member else (None, 0))


class TestRandomTrials(TrialConformance):
    steps = 10 * 600

    @classmethod
    def strategy(cls) -> IndependentTrials:
        return random_trials(SPACE, trials=10, **COMMON)


class TestGrid(TrialConformance):
    steps = 16 * 600

    @classmethod
    def strategy(cls) -> IndependentTrials:
        return grid(SPACE, points=4, **COMMON)


class TestFixed(TrialConformance):
    steps = 6 * 600
    draws = False

    @classmethod
    def strategy(cls) -> IndependentTrials:
        return fixed(SPACE, {"unroll": 20}, **COMMON)

    def test_trials_end_retired(self, records: list[Record]) -> None:
        """Only those that failed: the others may continue with a longer budget."""
        end = self.population().replay(records)
        assert {m.retired for m in end.members.values() if m.healthy} <= {False}
        assert all(m.retired for m in end.members.values() if not m.healthy)


class TestSuccessiveHalving(TrialConformance):
    steps = halving(20, RUNGS, 2).steps
    rungs = RUNGS

    @classmethod
    def strategy(cls) -> SuccessiveHalving:
        return SuccessiveHalving(propose=Prior(SPACE), brackets=(halving(20, RUNGS, 2),), **COMMON)


class TestHyperband(TrialConformance):
    steps = sum(b.steps for b in hyperband_brackets(RUNGS, 2))
    rungs = RUNGS

    @classmethod
    def strategy(cls) -> SuccessiveHalving:
        return hyperband(Prior(SPACE), rungs=RUNGS, eta=2, **COMMON)


class TestPromotingASHA(TrialConformance):
    rungs = RUNGS

    @classmethod
    def strategy(cls) -> ASHA:
        return ASHA(propose=Prior(SPACE), count=20, rungs=RUNGS, eta=2, **COMMON)


class TestDelayedASHA(TrialConformance):
    steps = halving(20, RUNGS, 2).steps
    rungs = RUNGS

    @classmethod
    def strategy(cls) -> ASHA:
        return ASHA(propose=Prior(SPACE), count=20, rungs=RUNGS, eta=2, form="delay", **COMMON)


class TestStoppingASHA(TrialConformance):
    rungs = RUNGS

    @classmethod
    def strategy(cls) -> ASHA:
        return ASHA(propose=Prior(SPACE), count=20, rungs=RUNGS, eta=2, form="stop", **COMMON)


class TestSynchronousASHA(TrialConformance):
    rungs = RUNGS

    @classmethod
    def strategy(cls) -> ASHA:
        return ASHA(propose=Prior(SPACE), count=20, rungs=RUNGS, eta=2, synchronous=True, **COMMON)


class TestASHAWithTPE(TrialConformance):
    rungs = RUNGS

    @classmethod
    def strategy(cls) -> ASHA:
        def observe(population: Population) -> dict[str, float | None]:
            return best_rung_results(population, [halving(20, RUNGS, 2)], 100, 5)

        propose = Suggestions(space=SPACE, sampler="tpe", startup_trials=5, observe=observe)
        return ASHA(propose=propose, count=20, rungs=RUNGS, eta=2, **COMMON)


class TestBayesian(TrialConformance):
    steps = 12 * 600

    @classmethod
    def strategy(cls) -> IndependentTrials:
        return bayesian(SPACE, sampler="tpe", trials=12, startup_trials=4, **COMMON)


class TestOneTrialAtATime(TestSuccessiveHalving):
    size = 1


# Whole runs


def test_run_of_200_trials_in_random_order_ends(tmp_path: Path) -> None:
    strategy = ASHA(propose=Prior(SPACE), count=200, rungs=RUNGS, eta=2, **COMMON)
    for script in (steady, rough):
        end = run(strategy, tmp_path / script.__name__, script, order=5)
        assert len(end.members) == 200
        assert max(m.step for m in end.members.values()) == 600


def test_draws_are_those_of_random_search(tmp_path: Path) -> None:
    trials = random_trials(SPACE, trials=8, **COMMON).decide(Population(8, 3, LAST))
    assert trials == random_search(SPACE, **COMMON).decide(Population(8, 3, LAST))


def test_members_that_all_failed_try_again_after_a_resume(tmp_path: Path) -> None:
    strategy = random_trials(SPACE, trials=2, **COMMON)
    end = run(strategy, tmp_path, lambda a, attempt: died(a, fatal=True), size=2)
    assert [m.retired for m in end.members.values()] == [True, True]
    end.record(RunResumed())
    assert [a.hyperparameters for a in strategy.decide(end)] == [m.hyperparameters for m in end.members.values()]


# Grid


def test_points_stand_at_equal_distances_on_their_own_scale() -> None:
    assert points(Uniform(low=-1.0, high=1.0), 5) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert points(LogUniform(low=1e-4, high=1e-2), 3) == pytest.approx([1e-4, 1e-3, 1e-2])
    assert points(OneMinusLogUniform(low=0.9, high=0.999), 3) == pytest.approx([0.9, 0.99, 0.999])
    assert points(IntLogUniform(low=1, high=100), 3) == [1, 10, 100]
    assert points(Choice(values=("a", None, 3)), 2) == ["a", None, 3]


def test_points_contain_both_ends_exactly_and_no_integer_twice() -> None:
    odd = LogUniform(low=0.1, high=0.7)
    assert [points(odd, 4)[i] for i in (0, -1)] == [0.1, 0.7]
    assert points(IntUniform(low=1, high=3), 9) == [1, 2, 3]


def test_single_point_is_the_middle() -> None:
    assert points(LogUniform(low=1e-4, high=1e-2), 1) == pytest.approx([1e-3])
    assert points(IntUniform(low=1, high=4), 1) == [2]


def test_grid_is_the_product_of_all_points() -> None:
    space = SearchSpace({"a": Uniform(low=0.0, high=1.0), "b": Choice(values=(1, 2)), "c": IntUniform(low=0, high=9)})
    expected = itertools.product([0.0, 0.5, 1.0], [1, 2], [0, 4, 9])
    assert [tuple(cell.values()) for cell in Grid(space, 3).cells] == list(expected)
    assert grid_size(space, 3) == (18, "3 x 2 x 3")


def test_every_point_is_tried_once_in_an_order_of_the_seed(tmp_path: Path) -> None:
    tried = []
    for seed in (1, 2):
        end = run(grid(SPACE, points=3, slice_steps=600, horizon=600), tmp_path, size=2, seed=seed)
        tried.append([tuple(m.hyperparameters.values()) for m in end.members.values()])
    assert sorted(tried[0]) == sorted(tried[1]) == sorted(itertools.product(*(points(d, 3) for d in SPACE.values())))
    assert tried[0] != tried[1]
    assert tried[0] != sorted(tried[0])


# Mixed populations and constants

MIXED = MixedSearchSpace(
    {
        "a": SearchSpace({"x": Uniform(low=0.0, high=1.0)}, "a"),
        "b": SearchSpace({"x": Uniform(low=0.0, high=1.0), "n": IntUniform(low=1, high=5)}, "b"),
    },
    {"a": 2, "b": 1},
)


def test_agents_of_a_mix_repeat(tmp_path: Path) -> None:
    end = run(random_trials(MIXED, trials=9, **COMMON), tmp_path, size=3)
    assert [m.hyperparameters[AGENT] for m in end.members.values()] == list("aabaabaab")


def test_every_agent_of_a_mix_has_its_own_grid() -> None:
    assert Counter(cell[AGENT] for cell in Grid(MIXED, 3).cells) == {"a": 3, "b": 9}
    assert grid_size(MIXED, 3) == (12, "3 + 3 x 3")


def test_constants_default_to_the_middle() -> None:
    decided = fixed(MIXED, {"x": 0.25}, **COMMON).decide(Population(3, 0, LAST))
    assert [a.hyperparameters for a in decided] == [{AGENT: "a", "x": 0.25}] * 2 + [{AGENT: "b", "x": 0.25, "n": 3}]
    assert len({a.seed for a in decided}) == 3


def test_more_constant_trials_than_places(tmp_path: Path) -> None:
    end = run(fixed(SPACE, {}, trials=5, **COMMON), tmp_path, size=2)
    assert [m.step for m in end.members.values()] == [600] * 5
    assert all(m.retired for m in end.members.values())
    assert end.members["m00"].hyperparameters == {"lr": pytest.approx(10**-3.5), "unroll": 28}
