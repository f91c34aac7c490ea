"""Promotions of successive halving, Hyperband and ASHA on known qualities, and the results at rungs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbtrl.core.dimensions import Uniform
from pbtrl.core.messages import Assignment, Report
from pbtrl.core.population import Population
from pbtrl.core.records import Decision
from pbtrl.core.search_space import SearchSpace
from pbtrl.strategies.asha import ASHA, Form
from pbtrl.strategies.brackets import halving, rung_steps
from pbtrl.strategies.brackets import hyperband as hyperband_brackets
from pbtrl.strategies.hyperband import hyperband
from pbtrl.strategies.rungs import WORST, Trial, ranked, trial
from pbtrl.strategies.successive_halving import SuccessiveHalving
from pbtrl.strategies.suggestions import best_rung_results
from pbtrl.strategies.trials import Prior
from pbtrl.testing.fakes import LAST, trained
from tests.strategies.trial_runs import run, slices

QUALITY = SearchSpace({"quality": Uniform(low=0.0, high=1.0)})
R256 = rung_steps(256, 1, 4)


def constant(a: Assignment, attempt: int) -> Report:
    return trained(a, a.hyperparameters["quality"])


def asha(count: int = 256, rungs: tuple[int, ...] = R256, *, eta: int = 4, form: Form = "promote", **more: Any) -> ASHA:
    settings = {"propose": Prior(QUALITY), "slice_steps": 256, "horizon": rungs[-1], **more}
    return ASHA(count=count, rungs=rungs, eta=eta, form=form, **settings)


def sha(trials: int, rungs: tuple[int, ...], eta: int) -> SuccessiveHalving:
    brackets = (halving(trials, rungs, eta),)
    return SuccessiveHalving(propose=Prior(QUALITY), brackets=brackets, slice_steps=rungs[-1], horizon=rungs[-1])


def reached(population: Population, rungs: Sequence[int]) -> list[set[str]]:
    """Trials at each rung."""
    return [{m.id for m in population.members.values() if m.step >= rung} for rung in rungs]


def best(population: Population, count: int) -> set[str]:
    order = sorted(population.members.values(), key=lambda m: -m.hyperparameters["quality"])
    return {m.id for m in order[:count]}


# Successive halving and Hyperband


@pytest.mark.parametrize("order", [None, 1, 2])
@pytest.mark.parametrize("size", [1, 8, 81])
def test_halving_keeps_exactly_the_best(tmp_path: Path, size: int, order: int | None) -> None:
    rungs = rung_steps(81, 1, 3)
    end = run(sha(81, rungs, 3), tmp_path, constant, size=size, order=order)
    assert reached(end, rungs) == [best(end, count) for count in (81, 27, 9, 3, 1)]


def test_hyperband_keeps_the_best_of_each_bracket(tmp_path: Path) -> None:
    rungs = rung_steps(81, 1, 3)
    end = run(hyperband(Prior(QUALITY), rungs=rungs, slice_steps=10, horizon=81), tmp_path, constant, order=1)
    members = iter(end.members.values())
    for bracket in hyperband_brackets(rungs, 3):
        own = sorted(itertools.islice(members, bracket.sizes[0]), key=lambda m: -m.hyperparameters["quality"])
        steps = [sum(m.step >= rung for m in own) for rung in bracket.rungs]
        assert tuple(steps) == bracket.sizes
        assert [m.step for m in own] == sorted((m.step for m in own), reverse=True)
    assert next(members, None) is None


def test_trials_of_the_next_bracket_train_while_a_rung_ends(tmp_path: Path) -> None:
    strategy = hyperband(Prior(QUALITY), rungs=(1, 3, 9), slice_steps=9, horizon=9)
    population = Population(10, 0, LAST)  # places; the brackets have 9, 5 and 3 trials
    assert [a.stop for a in strategy.decide(population)] == [1] * 9 + [3]


def test_trial_below_the_cut_retires_before_its_rung_ends() -> None:
    population = Population(4, 0, LAST)
    strategy = sha(4, (10, 20), 2)
    for name, fitness in (("m00", 1.0), ("m01", 3.0)):
        slices(population, name, (10, fitness))
    assert strategy.retired(population) == []
    slices(population, "m02", (10, 2.0))
    assert strategy.retired(population) == ["m00"]
    assert [a.member for a in strategy.decide(population)] == ["m03"]


def test_ties_are_cut_by_member_id(tmp_path: Path) -> None:
    end = run(sha(9, (1, 3, 9), 3), tmp_path, lambda a, attempt: trained(a, 1.0), order=4)
    assert reached(end, (1, 3, 9))[1:] == [{"m00", "m01", "m02"}, {"m00"}]


def test_ties_of_later_rungs_are_cut_by_member_id_too(tmp_path: Path) -> None:
    def rising_then_equal(a: Assignment, attempt: int) -> Report:
        return trained(a, float(a.member.removeprefix("m")) if a.stop == 1 else 1.0)

    end = run(sha(9, (1, 3, 9), 3), tmp_path, rising_then_equal)
    assert reached(end, (1, 3, 9))[1:] == [{"m06", "m07", "m08"}, {"m06"}]


def test_failed_trials_fill_their_rung_but_never_go_on() -> None:
    population = Population(4, 0, LAST)
    slices(population, "m00", (10, "diverged"))
    slices(population, "m01", (10, "given up"))
    slices(population, "m02", (10, None), (20, None))
    slices(population, "m03", (10, "diverged"))
    decided = sha(4, (10, 40), 2).decide(population)
    assert [(a.member, a.stop) for a in decided] == [("m02", 40)]
    slices(population, "m02", (80, 1.0))
    decided = sha(4, (10, 80, 160), 2).decide(population)
    assert [(a.member, a.stop) for a in decided] == [("m02", 160)]


# ASHA


@pytest.mark.parametrize("form", ["promote", "delay", "stop"])
def test_asha_of_256_trials_at_once_promotes_a_quarter(tmp_path: Path, form: Form) -> None:
    end = run(asha(form=form, synchronous=True), tmp_path, constant, size=256)
    assert reached(end, R256) == [best(end, count) for count in (256, 64, 16, 4, 1)]


@pytest.mark.parametrize("order", [None, 1, 2])
def test_delayed_asha_promotes_exactly_a_quarter(tmp_path: Path, order: int | None) -> None:
    end = run(asha(form="delay"), tmp_path, constant, order=order)
    assert [len(members) for members in reached(end, R256)] == [256, 64, 16, 4, 1]


@pytest.mark.parametrize("seed", range(3))
def test_delayed_asha_leaves_no_trial_waiting(tmp_path: Path, seed: int) -> None:
    end = run(asha(40, (1, 2, 4, 8), form="delay", eta=2), tmp_path, constant, order=seed, seed=seed)
    assert [m.id for m in end.members.values() if not m.retired and m.step < 8] == []


def test_delayed_asha_keeps_a_substitute_for_one_that_broke() -> None:
    strategy, population = asha(3, (2, 4), form="delay", eta=2), Population(3, 0, LAST)
    for place, fitness in ((0, 5.0), (1, 3.0)):
        slices(population, f"m{place:02d}", (2, fitness))
    slices(population, "m00", (4, "diverged"))
    slices(population, "m02", (2, 7.0))
    assert [a.member for a in strategy.decide(population)] == ["m02"]
    assert "m02" not in strategy.retired(population)


@pytest.mark.parametrize("order", [None, 1, 2])
def test_promotions_contain_the_best_in_any_order(tmp_path: Path, order: int | None) -> None:
    end = run(asha(), tmp_path, constant, order=order)
    assert best(end, 64) <= reached(end, R256)[1]
    assert best(end, 1) <= reached(end, R256)[-1]
    assert len(reached(end, R256)[1]) < 2 * 64


def arrive(form: Form, order: Sequence[int], fitness: Sequence[float]) -> list[tuple[str, int]]:
    """Members and stops that ASHA decides for after eight trials have arrived one by one at the lowest rung."""
    strategy, population = asha(8, (10, 40), form=form, eta=4), Population(8, 0, LAST)
    for place in order:
        slices(population, f"m{place:02d}", (10, fitness[place]))
        retired = strategy.retired(population)
        population.record(Decision((), tuple(retired)))
    return [(a.member, a.stop) for a in strategy.decide(population)]


def test_promoting_form_does_not_depend_on_the_order_once_all_arrived() -> None:
    fitness = [3.0, 7.0, 1.0, 8.0, 2.0, 6.0, 5.0, 4.0]
    orders = [range(8), range(7, -1, -1), (3, 1, 4, 0, 5, 2, 6, 7)]
    assert {tuple(arrive("promote", order, fitness)) for order in orders} == {(("m03", 40), ("m01", 40))}


def test_stopping_form_depends_on_the_order() -> None:
    """The first one always goes on; the best one is stopped by none."""
    rising = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    upwards, downwards = arrive("stop", range(8), rising), arrive("stop", range(7, -1, -1), rising)
    assert {name for name, _ in downwards} == {"m07"}
    assert {name for name, _ in upwards} > {"m07"}


def test_stopped_trial_never_returns() -> None:
    strategy, population = asha(8, (10, 40), form="stop", eta=2), Population(8, 0, LAST)
    slices(population, "m00", (10, 5.0))
    slices(population, "m01", (10, 4.0))
    assert strategy.retired(population) == ["m01"]
    population.record(Decision((), ("m01",)))
    for place in (2, 3, 4, 5):  # now the top half, three, has room for it
        slices(population, f"m{place:02d}", (10, 0.0))
    assert {a.member for a in strategy.decide(population)} == {"m00", "m02", "m06", "m07"}


def test_higher_rung_is_promoted_first() -> None:
    strategy, population = asha(100, (10, 20, 40), eta=2), Population(8, 0, LAST)
    for place in range(4):
        slices(population, f"m{place:02d}", (10, float(place)))
    for name in ("m02", "m03"):
        slices(population, name, (20, 1.0))
    slices(population, "m04", (10, 9.0))
    slices(population, "m05", (10, 8.0))
    assert [(a.member, a.stop) for a in strategy.decide(population)][:4] == [
        ("m02", 40), ("m04", 20), ("m05", 20), ("m06", 10),
    ]  # fmt: skip


def test_free_places_limit_decisions() -> None:
    population = Population(8, 0, LAST)
    population.free = 3
    assert [a.member for a in asha().decide(population)] == ["m00", "m01", "m02"]


def test_small_rungs_still_bring_one_trial_to_the_horizon(tmp_path: Path) -> None:
    end = run(asha(5, (1, 4, 16, 64), synchronous=True), tmp_path, constant, size=5)
    assert [len(members) for members in reached(end, (1, 4, 16, 64))] == [5, 1, 1, 1]
    assert reached(end, (64,)) == [best(end, 1)]


def test_next_best_takes_the_place_of_one_that_broke() -> None:
    """m03 was promoted and given up; m02 is the best one left."""
    population = Population(4, 0, LAST)
    for place in range(4):
        slices(population, f"m{place:02d}", (10, float(place)))
    slices(population, "m03", (40, "given up"))
    assert [(a.member, a.stop) for a in asha(4, (10, 40)).decide(population)] == [("m02", 40)]


def test_hopeless_trials_retire_and_promotable_ones_do_not() -> None:
    """Of 16 trials four can be promoted: the fifth best retires, whatever the others will be."""
    strategy, population = asha(16, (10, 40)), Population(16, 0, LAST)
    for place in range(6):
        slices(population, f"m{place:02d}", (10, float(place)))
    assert sorted(strategy.retired(population)) == ["m00", "m01"]


def test_snapshots_of_paused_trials_are_bounded(tmp_path: Path) -> None:
    end = run(asha(), tmp_path, constant, order=1)
    assert sum(not m.retired for m in end.members.values()) <= 3


@pytest.mark.parametrize("seed", range(3))
def test_retired_trials_would_never_have_been_promoted(tmp_path: Path, seed: int) -> None:
    """Promotions are the same in a run that ignores retirements."""

    class Keeping(ASHA):
        def retired(self, population: Population) -> list[str]:
            return []

    made = asha(40, (1, 2, 4, 8), eta=2)
    keeping = Keeping(**{name: getattr(made, name) for name in made.__dataclass_fields__})
    ends = [run(s, tmp_path / str(i), constant, order=seed, seed=seed) for i, s in enumerate((made, keeping))]
    assert reached(ends[0], made.rungs) == reached(ends[1], made.rungs)


# Results at rungs

RUNGS = (10, 30, 90)


def standing(*results: tuple[int, Any], slice_steps: int = 5) -> Trial:
    population = Population(1, 0, LAST)
    slices(population, "m00", *results)
    return trial(population.members["m00"], RUNGS, slice_steps)


@pytest.mark.parametrize(
    ("history", "results", "ahead"),
    [
        ([(5, 1.0)], (), True),
        ([(5, 1.0), (10, 2.0)], (2.0,), False),
        ([(5, 1.0), (10, 2.0), (15, 3.0)], (2.0,), True),
        ([(10, 2.0), (20, 3.0), (30, 4.0)], (2.0, 4.0), False),
        ([(10, None)], (), True),
        ([(10, None), (15, 3.0)], (3.0,), False),
        ([(10, None), (15, None)], (WORST,), False),
        ([(10, None), (15, None), (20, 7.0)], (WORST,), True),
        ([(10, None), (12, None), (15, 4.0)], (4.0,), False),
        ([(10, 1.0), (30, 2.0), (90, 3.0)], (1.0, 2.0, 3.0), False),
        ([(10, None), (15, None), (30, None), (35, None), (90, None)], (WORST, WORST, WORST), False),
        ([(10, "diverged")], (WORST,), False),
        ([(5, 1.0), (10, 2.0), (15, "diverged")], (2.0, WORST), False),
        ([(5, 1.0), (10, 2.0), (15, "given up")], (2.0, WORST), False),
        ([(10, math.nan), (15, 1.0)], (1.0,), False),
    ],
)
def test_results_at_rungs(history: list[tuple[int, Any]], results: tuple[float, ...], ahead: bool) -> None:
    result = standing(*history)
    assert (result.results, result.ahead) == (results, ahead)


def test_retry_is_one_slice_but_no_longer_than_the_lowest_rung() -> None:
    population = Population(1, 0, LAST)
    slices(population, "m00", (10, None))
    for slice_steps, stop in ((5, 15), (10, 20), (50, 20)):
        strategy = asha(1, RUNGS, slice_steps=slice_steps)
        (decided,) = strategy.decide(population)
        assert decided.stop == stop


def test_fitness_that_stays_absent_is_worse_than_any_other() -> None:
    population = Population(3, 0, LAST)
    slices(population, "m00", (10, "diverged"))
    slices(population, "m01", (10, None), (15, None))
    slices(population, "m02", (10, -1e300))
    order = ranked([trial(m, RUNGS, 5) for m in population.members.values()], 0)
    assert [t.member.id for t in order] == ["m02", "m01", "m00"]


def test_trial_that_broke_later_keeps_its_earlier_result() -> None:
    population = Population(2, 0, LAST)
    slices(population, "m00", (10, 5.0), (20, "given up"))
    slices(population, "m01", (10, 4.0))
    trials = [trial(m, RUNGS, 10) for m in population.members.values()]
    assert [t.member.id for t in ranked(trials, 0)] == ["m00", "m01"]


# The model of BOHB


def test_model_uses_the_highest_rung_with_enough_results() -> None:
    population, brackets = Population(6, 0, LAST), [halving(6, RUNGS, 2)]
    for place in range(4):
        slices(population, f"m{place:02d}", (10, float(place)))
    slices(population, "m03", (30, 9.0))
    slices(population, "m02", (30, "diverged"))
    slices(population, "m04", (5, 1.0))
    assert best_rung_results(population, brackets, 5, 2) == {"m02": WORST, "m03": 9.0, "m04": None}
    lowest = {"m00": 0.0, "m01": 1.0, "m02": 2.0, "m03": 3.0, "m04": None}
    for enough in (3, 4, 99):
        assert best_rung_results(population, brackets, 5, enough) == lowest


def test_model_joins_the_results_of_all_brackets() -> None:
    population, brackets = Population(20, 0, LAST), hyperband_brackets((10, 30, 90), 3)
    for place in range(9):
        slices(population, f"m{place:02d}", (10, 0.0))
    slices(population, "m00", (30, 1.0))
    slices(population, "m09", (30, 2.0))
    assert best_rung_results(population, brackets, 30, 2) == {"m00": 1.0, "m09": 2.0}


def test_quality_is_uniform_so_that_orders_differ() -> None:
    """Guards the tests above: their orders are not already sorted."""
    population = Population(8, 3, LAST)
    values = [a.hyperparameters["quality"] for a in asha().decide(population)]
    assert sorted(values) != values
    assert np.ptp(values) > 0.2
