"""PBT's decisions on journals written by hand, its guarantees in whole runs, and the paper's toy problem."""

import math
import statistics
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from pbtrl.core.dimensions import Choice, IntUniform, LogUniform, Uniform
from pbtrl.core.member import Member
from pbtrl.core.messages import Assignment
from pbtrl.core.population import FitnessRule, Population
from pbtrl.core.records import RunResumed
from pbtrl.core.search_space import SearchSpace
from pbtrl.execution.host import Host
from pbtrl.execution.inline import Inline
from pbtrl.storage.journal import Journal
from pbtrl.strategies import Strategy
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.random_search import random_search
from pbtrl.strategies.rules import Exploit, Explore
from pbtrl.testing.fakes import LAST, died, trained
from pbtrl.testing.strategies import SPACE, PopulationConformance, SearchConformance
from pbtrl.trainables.builder import TrainableBuilder
from pbtrl.trainables.quadratic import Quadratic
from pbtrl.training.controller import Controller
from tests.fakes import SliceResult, after_one_slice, answer, assign, decision

LR = SearchSpace({"lr": LogUniform(low=1e-3, high=10.0)})
STILL = Explore(method="none")


class TestAsynchronous(PopulationConformance):
    @classmethod
    def strategy(cls) -> PBT:
        return PBT(space=SPACE, slice_steps=100, horizon=600, exploit=Exploit(bottom=0.4, top=0.4))


class TestSynchronous(PopulationConformance):
    @classmethod
    def strategy(cls) -> PBT:
        return PBT(space=SPACE, slice_steps=100, horizon=600, synchronous=True)


class TestTournament(PopulationConformance):
    @classmethod
    def strategy(cls) -> PBT:
        return PBT(
            space=SPACE,
            slice_steps=100,
            horizon=600,
            exploit=Exploit(method="binary_tournament", ties="copy"),
            explore=Explore(method="gaussian", when="always", resample_probability=0.25),
        )


class TestTTest(PopulationConformance):
    rule = FitnessRule(window=10, min_episodes=2)

    @classmethod
    def strategy(cls) -> PBT:
        return PBT(space=SPACE, slice_steps=100, horizon=600, exploit=Exploit(method="t_test", alpha=0.4))


class TestReferencesAndOddHorizon(PopulationConformance):
    horizon = 550

    @classmethod
    def strategy(cls) -> PBT:
        return PBT(space=SPACE, slice_steps=100, horizon=550, burn_in=200, references=2, synchronous=True)


class TestRandomSearch(PopulationConformance, SearchConformance):
    @classmethod
    def strategy(cls) -> PBT:
        return random_search(SPACE, slice_steps=100, horizon=600)


# Who copies whom


def pbt(**changes: Any) -> PBT:
    settings: dict[str, Any] = {"space": LR, "slice_steps": 100, "horizon": 1000, "explore": STILL, **changes}
    return PBT(**settings)


def copies(strategy: PBT, population: Population) -> dict[str, str]:
    """Donor by receiver, in the next decision."""
    return {a.member: a.donor for a in strategy.decide(population) if a.donor}


def over_seeds(strategy: PBT, *results: SliceResult, rule: FitnessRule = LAST, seeds: int = 50) -> list[dict[str, str]]:
    return [copies(strategy, after_one_slice(*results, rule=rule, seed=seed)) for seed in range(seeds)]


def test_truncation_replaces_bottom_fifth_from_top_fifth() -> None:
    result = over_seeds(pbt(), *range(10))
    assert all(set(pairs) == {"m00", "m01"} for pairs in result)
    assert {donor for pairs in result for donor in pairs.values()} == {"m08", "m09"}


def test_all_receivers_of_a_decision_share_one_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    population, read = after_one_slice(*range(200)), Counter[str]()
    rank_fitness = Member.rank_fitness.fget  # type: ignore[attr-defined]

    def counted(member: Member) -> float | None:
        read[member.id] += 1
        result: float | None = rank_fitness(member)
        return result

    monkeypatch.setattr(Member, "rank_fitness", property(counted))
    assert len(copies(pbt(), population)) == 40
    assert max(read.values()) == 1
    population.record(RunResumed())  # as any line may change the ranking
    copies(pbt(), population)
    assert max(read.values()) == 2


def test_a_copy_says_the_donors_rank() -> None:
    first, second = (a.note for a in pbt(exploit=Exploit(top=0.1)).decide(after_one_slice(*range(10))) if a.donor)
    assert first == second == "exploit m09, rank 1 of 10"
    equals = after_one_slice(1.0, 5.0, 5.0, 5.0, 7.0)
    notes = [a.note for a in pbt(exploit=Exploit(top=0.8)).decide(equals) if a.donor and a.donor != "m04"]
    assert all("rank 2 of 5" in note for note in notes)


def test_donors_are_drawn_evenly() -> None:
    drawn = Counter(d for pairs in over_seeds(pbt(), *range(10), seeds=150) for d in pairs.values())
    assert drawn["m08"] == pytest.approx(150, abs=43)  # five standard deviations of a fair coin


def test_each_receiver_draws_its_own_donor() -> None:
    pairs = {(result["m00"], result["m01"]) for result in over_seeds(pbt(), *range(10))}
    assert len(pairs) == 4


def test_fraction_of_members_has_no_rounding_error() -> None:
    (result,) = over_seeds(pbt(exploit=Exploit(bottom=0.29, top=0.2)), *range(100), seeds=1)
    assert len(result) == 29  # 0.29 * 100 is 28.999999999999996


def test_three_members_have_one_receiver_and_one_donor() -> None:
    assert over_seeds(pbt(), 2.0, 3.0, 1.0, seeds=5) == [{"m02": "m01"}] * 5


def test_two_members_have_one_receiver_and_one_donor() -> None:
    assert over_seeds(pbt(), 2.0, 1.0, seeds=5) == [{"m01": "m00"}] * 5


@pytest.mark.parametrize("method", ["truncation", "binary_tournament", "t_test"])
@pytest.mark.parametrize("ties", ["random", "copy"])
def test_single_member_continues(method: Any, ties: Any) -> None:
    population = after_one_slice(1.0)
    (a,) = pbt(exploit=Exploit(method=method, ties=ties)).decide(population)
    assert (a.parent, a.donor, a.start, a.stop) == ("m00/000000", None, 100, 200)


@pytest.mark.parametrize(("bottom", "top"), [(0.5, 0.5), (0.9, 0.2), (0.2, 0.9), (1.0, 0.5), (0.5, 1.0)])
@pytest.mark.parametrize("size", [2, 3, 5, 10])
def test_two_fractions_never_overlap(bottom: float, top: float, size: int) -> None:
    for pairs in over_seeds(pbt(exploit=Exploit(bottom=bottom, top=top)), *range(size), seeds=5):
        assert not set(pairs) & set(pairs.values())


def test_ties_are_truncated_at_random() -> None:
    """Never more members than the fraction."""
    result = over_seeds(pbt(), *[1.0] * 10, seeds=100)
    assert all(len(pairs) == 2 and not set(pairs) & set(pairs.values()) for pairs in result)
    assert len({m for pairs in result for m in pairs}) == 10


def test_tournament_goes_to_the_fitter_of_two() -> None:
    result = over_seeds(pbt(exploit=Exploit(method="binary_tournament")), 1.0, 2.0, 3.0, seeds=200)
    assert not any("m02" in pairs for pairs in result)
    assert {pairs.get("m00") for pairs in result} == {"m01", "m02"}
    share = sum("m01" in pairs for pairs in result) / 200  # loses to one of the two others
    assert share == pytest.approx(0.5, abs=0.18)


@pytest.mark.parametrize(("ties", "expected"), [("random", 0.5), ("copy", 1.0)])
def test_tournament_between_equals(ties: Any, expected: float) -> None:
    result = over_seeds(pbt(exploit=Exploit(method="binary_tournament", ties=ties)), 1.0, 1.0, seeds=200)
    share = sum(len(pairs) for pairs in result) / 400
    assert share == pytest.approx(expected, abs=0.13 if ties == "random" else 0)


def test_minimum_gap_is_respected() -> None:
    strategy = pbt(exploit=Exploit(method="binary_tournament", min_gap=5.0))
    assert copies(strategy, after_one_slice(1.0, 6.0)) == {}
    assert copies(strategy, after_one_slice(1.0, 6.1)) == {"m00": "m01"}
    assert copies(pbt(exploit=Exploit(min_gap=5.0)), after_one_slice(1.0, 5.9)) == {}


BROKEN = [None, "diverged", "given up", math.nan]


@pytest.mark.parametrize("method", ["truncation", "binary_tournament", "t_test"])
@pytest.mark.parametrize("broken", BROKEN)
def test_member_without_fitness_never_donates(method: Any, broken: SliceResult) -> None:
    strategy = pbt(exploit=Exploit(method=method, ties="copy", bottom=0.5, top=0.5))
    for pairs in over_seeds(strategy, broken, 1.0, 2.0, broken, seeds=20):
        assert not {"m00", "m03"} & set(pairs.values())


@pytest.mark.parametrize("absent", [None, math.nan, math.inf])
def test_member_without_fitness_never_receives(absent: SliceResult) -> None:
    assert copies(pbt(), after_one_slice(absent, 1.0, 2.0)) == {"m01": "m02"}


@pytest.mark.parametrize("results", [[None] * 4, [math.nan] * 4])
def test_no_copies_without_any_fitness(results: list[SliceResult]) -> None:
    decided = pbt().decide(after_one_slice(*results))
    assert [(a.parent, a.donor) for a in decided] == [(f"m0{i}/000000", None) for i in range(4)]


@pytest.mark.parametrize("broken", ["diverged", "given up"])
def test_broken_members_do_not_count_in_fractions(broken: str) -> None:
    population = after_one_slice(*range(100, 106))
    population.record(decision(a := assign(population, "m05")))
    population.record(answer(died(a) if broken == "given up" else trained(a, 1.0, diverged=True)))
    strategy = pbt(exploit=Exploit(bottom=0.34, top=0.2))  # of five one, of six two
    assert {m: d for m, d in copies(strategy, population).items() if m != "m05"} == {"m00": "m04"}


def test_absent_fitness_counts_neither_below_nor_above() -> None:
    result = over_seeds(pbt(), *[None] * 10, *range(10))
    assert all(set(pairs) == {"m10", "m11"} for pairs in result)


# The t-test


def test_t_test_agrees_with_scipy() -> None:
    rng, rule, decided = np.random.default_rng(0), FitnessRule(window=100, min_episodes=2), Counter[bool]()
    strategy = pbt(exploit=Exploit(method="t_test", alpha=0.05, episodes=10))
    for _ in range(60):
        own, theirs = rng.normal(0, 1, 10).tolist(), rng.normal(0.7, 3, 10).tolist()
        pvalue = ttest_ind(theirs, own, equal_var=False, alternative="greater").pvalue
        expected = bool(pvalue < 0.05)
        assert ("m00" in copies(strategy, after_one_slice(own, theirs, rule=rule))) == expected
        decided[expected] += 1
    assert min(decided[True], decided[False]) > 5


@pytest.mark.parametrize("own", [[0.0, 1.0, 5.0], [0.0, 0.1]], ids=["wide", "narrow"])
@pytest.mark.parametrize("theirs", [[4.0, 5.0, 9.0, 9.5], [3.0, 3.1]], ids=["wide", "narrow"])
def test_t_test_copies_exactly_below_its_level(own: list[float], theirs: list[float]) -> None:
    population = after_one_slice(own, theirs, rule=FitnessRule(window=100, min_episodes=2))
    pvalue = float(ttest_ind(theirs, own, equal_var=False, alternative="greater").pvalue)
    for alpha, expected in ((pvalue * (1 - 1e-6), {}), (pvalue * (1 + 1e-6), {"m00": "m01"})):
        assert copies(pbt(exploit=Exploit(method="t_test", alpha=alpha)), population) == expected


def test_t_test_uses_the_last_episodes_only() -> None:
    rule = FitnessRule(window=100, min_episodes=2)
    noise = np.random.default_rng(1).normal(0, 0.1, 10)
    rising, falling = [-100.0] * 20 + list(1 + noise), [100.0] * 20 + list(noise)
    strategy = pbt(exploit=Exploit(method="t_test"))
    assert copies(strategy, after_one_slice(rising, falling, rule=rule)) == {"m01": "m00"}


def test_t_test_never_copies_on_equal_or_single_episodes() -> None:
    strategy = pbt(exploit=Exploit(method="t_test", ties="copy"))
    rule = FitnessRule(window=10, min_episodes=1)
    same = [1.0, 2.0, 3.0]
    assert copies(strategy, after_one_slice(same, same, rule=rule)) == {}
    assert copies(strategy, after_one_slice([1.0], [9.0], rule=rule)) == {}


def test_t_test_needs_no_variance() -> None:
    strategy, rule = pbt(exploit=Exploit(method="t_test")), FitnessRule(window=10, min_episodes=1)
    assert copies(strategy, after_one_slice([1.0] * 10, [2.0] * 10, rule=rule)) == {"m00": "m01"}


def test_t_test_false_positive_rate_is_alpha() -> None:
    """On samples of the same distribution."""
    rng, rule = np.random.default_rng(5), FitnessRule(window=10, min_episodes=2)
    strategy = pbt(exploit=Exploit(method="t_test", alpha=0.1))
    draws = [after_one_slice(*rng.normal(size=(2, 10)).tolist(), rule=rule) for _ in range(200)]
    share = sum(len(copies(strategy, population)) for population in draws) / 400
    assert share == pytest.approx(0.1, abs=0.05)


# When


def test_no_copies_during_burn_in() -> None:
    population = after_one_slice(1.0, 2.0)
    assert copies(pbt(burn_in=101), population) == {}
    assert copies(pbt(burn_in=100), population) == {"m00": "m01"}


def test_sync_mode_waits_for_the_whole_generation() -> None:
    population, strategy = after_one_slice(1.0, 2.0, 3.0), pbt(synchronous=True)
    population.record(decision(*strategy.decide(population)))
    for a in population.pending:
        assert strategy.decide(population) == []
        population.record(answer(trained(a, 1.0)))
    assert [(a.start, a.stop) for a in strategy.decide(population)] == [(200, 300)] * 3


def test_async_mode_decides_for_free_members() -> None:
    population, strategy = after_one_slice(1.0, 2.0, 3.0), pbt()
    population.record(decision(*strategy.decide(population)))
    population.record(answer(trained(population.pending[1], 5.0)))
    (a,) = strategy.decide(population)
    assert (a.member, a.start, a.stop) == ("m01", 200, 300)


@pytest.mark.parametrize("synchronous", [False, True])
def test_stopped_slice_is_completed_unchanged(synchronous: bool) -> None:
    """The member continues to the end of the slice before anything is decided about it."""
    population = after_one_slice(1.0, 2.0)
    slow, fast = assign(population, "m00"), assign(population, "m01")
    population.record(decision(slow, fast))
    population.record(answer(trained(slow, 1.0, step=140)))
    population.record(answer(trained(fast, 2.0)))
    strategy = pbt(synchronous=synchronous, explore=Explore(when="always"))
    decided = {a.member: a for a in strategy.decide(population)}
    assert (decided["m00"].start, decided["m00"].stop, decided["m00"].donor) == (140, 200, None)
    assert decided["m00"].hyperparameters == slow.hyperparameters
    assert ("m01" in decided) == (not synchronous)  # a generation is complete when all stand at one grid point


def test_reference_members_only_donate() -> None:
    """They never copy and never change."""
    strategy = pbt(references=1, explore=Explore(when="always"))
    poor = after_one_slice(1.0, 2.0)
    decided = strategy.decide(poor)
    assert (decided[0].donor, decided[0].hyperparameters) == (None, {"lr": 0.1})
    assert decided[1].hyperparameters != {"lr": 0.2}
    assert copies(strategy, after_one_slice(2.0, 1.0)) == {"m01": "m00"}


@pytest.mark.parametrize("broken", ["diverged", "given up"])
def test_broken_reference_member_is_retired(broken: str) -> None:
    assert [a.member for a in pbt(references=1).decide(after_one_slice(broken, 1.0, 2.0))] == ["m01", "m02"]


# What is taken over


@pytest.mark.parametrize(
    ("what", "parent", "lr"),
    [
        ({"weights", "hparams"}, "m01/000000", 0.2),
        ({"weights"}, "m01/000000", 0.1),
        ({"hparams"}, "m00/000000", 0.2),
    ],
)
def test_values_taken_over_by_a_copy(what: set[str], parent: str, lr: float) -> None:
    receiver, donor = pbt(copy=frozenset(what)).decide(after_one_slice(1.0, 2.0))
    assert (receiver.parent, receiver.hyperparameters, receiver.donor) == (parent, {"lr": lr}, "m01")
    assert (receiver.start, receiver.stop) == (100, 200)
    assert (donor.parent, donor.hyperparameters, donor.donor) == ("m01/000000", {"lr": 0.2}, None)
    assert receiver.note == "exploit m01, rank 1 of 2"


@pytest.mark.parametrize(("what", "base"), [({"weights", "hparams"}, 0.2), ({"weights"}, 0.1), ({"hparams"}, 0.2)])
def test_exploring_starts_from_the_kept_or_copied_values(what: set[str], base: float) -> None:
    strategy = pbt(copy=frozenset(what), explore=Explore(factors=(1.2, 0.8)))
    result = {
        round(strategy.decide(after_one_slice(1.0, 2.0, seed=seed))[0].hyperparameters["lr"] / base, 6)
        for seed in range(20)
    }
    assert result == {1.2, 0.8}


def test_donor_gives_hyperparameters_of_its_snapshot() -> None:
    population = after_one_slice(1.0, 2.0)
    trying = assign(population, "m01", hyperparameters={"lr": 9.0})
    population.record(decision(trying))
    receiver = pbt().decide(population)[0]
    assert (receiver.parent, receiver.hyperparameters) == ("m01/000000", {"lr": 0.2})


def test_copy_empties_the_fitness_window() -> None:
    population = after_one_slice([1.0, 1.0], [2.0, 2.0], rule=FitnessRule(window=10, min_episodes=2))
    strategy = pbt()
    population.record(decision(*strategy.decide(population)))
    receiver = population.members["m00"]
    assert (receiver.window, receiver.fitness, receiver.step) == ([], None, 100)
    population.record(answer(trained(population.pending[0], 7.0)))
    assert (receiver.window, receiver.fitness, receiver.step) == ([7.0], None, 200)
    assert copies(strategy, population) == {}  # no number yet: neither donor nor receiver


# Exploring


def explored(rule: Explore, space: SearchSpace, start: dict[str, Any], seeds: int) -> list[dict[str, Any]]:
    population = after_one_slice(1.0)
    strategy = pbt(space=space, explore=replace(rule, when="always"), exploit=Exploit(method="none"))
    result = []
    for seed in range(seeds):
        population.seed = seed
        population.members["m00"].hyperparameters = start
        result.append(strategy.decide(population)[0].hyperparameters)
    return result


def test_no_exploring_without_a_copy_unless_configured() -> None:
    population = after_one_slice(1.0, 2.0)
    assert pbt(explore=Explore()).decide(population)[1].hyperparameters == {"lr": 0.2}
    assert pbt(explore=Explore(when="always")).decide(population)[1].hyperparameters != {"lr": 0.2}


def test_dimensions_change_independently() -> None:
    space = SearchSpace({n: LogUniform(low=1e-9, high=1e9) for n in "ab"})
    result = explored(Explore(probability=1 / 3), space, {"a": 1.0, "b": 1.0}, 1200)
    changed = [(v["a"] != 1.0, v["b"] != 1.0) for v in result]
    assert statistics.mean(a for a, _ in changed) == pytest.approx(1 / 3, abs=0.06)
    assert statistics.mean(a and b for a, b in changed) == pytest.approx(1 / 9, abs=0.04)


def test_each_dimension_draws_its_own_factor() -> None:
    space = SearchSpace({n: LogUniform(low=1e-9, high=1e9) for n in "ab"})
    result = explored(Explore(factors=(2.0, 0.5)), space, {"a": 1.0, "b": 1.0}, 60)
    assert {(v["a"], v["b"]) for v in result} == {(2.0, 2.0), (2.0, 0.5), (0.5, 2.0), (0.5, 0.5)}


def test_resample_probability_applies_per_changed_dimension() -> None:
    result = explored(Explore(resample_probability=0.25), LR, {"lr": 1.0}, 1200)
    perturbed = sum(v["lr"] in (1.2, 1 / 1.2) for v in result) / len(result)
    assert perturbed == pytest.approx(0.75, abs=0.06)


def test_resampling_draws_from_the_prior() -> None:
    result = [math.log10(v["lr"]) for v in explored(Explore(method="resample"), LR, {"lr": 1.0}, 800)]
    assert min(result) >= -3
    assert max(result) <= 1
    assert statistics.mean(result) == pytest.approx(-1, abs=0.2)


def test_gaussian_steps_have_the_configured_width() -> None:
    space = SearchSpace({"x": Uniform(low=0.0, high=2.0, bounds="none")})
    result = [v["x"] for v in explored(Explore(method="gaussian", sd=0.1), space, {"x": 5.0}, 800)]
    assert statistics.mean(result) == pytest.approx(5.0, abs=0.04)
    assert statistics.stdev(result) == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize(("factors", "drift"), [((1.2, 0.8), math.log(0.96) / 2), ((1.2, 1 / 1.2), 0.0)])
def test_paper_factors_drift_and_default_ones_do_not(factors: tuple[float, ...], drift: float) -> None:
    space = SearchSpace({"x": LogUniform(low=1e-9, high=1e9)})
    result = [math.log(v["x"]) for v in explored(Explore(factors=factors), space, {"x": 1.0}, 3000)]
    assert statistics.mean(result) == pytest.approx(drift, abs=5 * statistics.stdev(result) / 3000**0.5)
    assert {round(math.exp(x), 9) for x in result} == {round(f, 9) for f in factors}


def test_bounds_hold_over_many_perturbations() -> None:
    space = SearchSpace(
        {"lr": LogUniform(low=1e-3, high=1.0), "n": IntUniform(low=5, high=9), "c": Choice(values=("a", "b"))}
    )
    strategy = pbt(space=space, explore=Explore(when="always"), exploit=Exploit(method="none"), horizon=10**9)
    population = Population(1, 0, LAST)
    seen = set()
    for _ in range(1000):
        (a,) = strategy.decide(population)
        assert space.contains(a.hyperparameters)
        seen.add(a.hyperparameters["n"])
        population.record(decision(a))
        population.record(answer(trained(a, 0.0)))
    assert seen == {5, 6, 7, 8, 9}


# What happens to the broken


@pytest.mark.parametrize("broken", ["diverged", "given up"])
def test_broken_member_copies_the_best(broken: str) -> None:
    a = pbt(copy=frozenset({"weights"})).decide(after_one_slice(broken, 1.0, 3.0, 2.0))[0]
    assert (a.donor, a.parent, a.hyperparameters["lr"]) == ("m02", "m02/000000", pytest.approx(0.3))
    assert a.note == f"{broken}, exploit m02"


@pytest.mark.parametrize("broken", ["diverged", "given up"])
def test_rescue_explores_from_the_donors_snapshot_values(broken: str) -> None:
    population = after_one_slice(broken, 1.0)
    population.record(decision(assign(population, "m01", hyperparameters={"lr": 9.0})))
    rescued = set()
    for seed in range(20):
        population.seed = seed
        (a,) = pbt(explore=Explore(factors=(2.0, 0.5))).decide(population)
        rescued.add(a.hyperparameters["lr"])
    assert rescued == {0.4, 0.1}


def test_rescue_uses_a_placeholder_if_no_member_has_fitness() -> None:
    population = after_one_slice("diverged", 1.0, 2.0)
    for m in ("m01", "m02"):
        population.record(decision(assign(population, m, donor="m00", parent=f"{m}/000000")))
    (a,) = pbt().decide(population)
    assert a.donor == "m02"


def test_rescue_prefers_fitness_over_a_higher_placeholder() -> None:
    population = after_one_slice("diverged", 1.0, 2.0)
    population.record(decision(assign(population, "m02", donor="m01", parent="m01/000000")))
    (a,) = pbt().decide(population)[:1]
    assert (a.member, a.donor) == ("m00", "m01")


def test_rescue_happens_off_grid_and_during_burn_in() -> None:
    population = after_one_slice(1.0, 2.0)
    a = assign(population, "m00")
    population.record(decision(a))
    population.record(answer(trained(a, step=130, diverged=True)))
    rescue = pbt(burn_in=900).decide(population)[0]
    assert (rescue.donor, rescue.start, rescue.stop) == ("m01", 130, 200)


def test_rescue_may_use_a_member_without_fitness() -> None:
    a, _ = pbt().decide(after_one_slice("diverged", None))
    assert (a.donor, a.parent) == ("m01", "m01/000000")


def test_all_members_restart_if_none_is_healthy() -> None:
    population = after_one_slice("diverged", "given up")
    decided = pbt().decide(population)
    assert [(a.parent, a.donor) for a in decided] == [(None, None)] * 2
    assert [a.note for a in decided] == ["diverged, starts afresh", "given up, starts afresh"]
    assert [a.start for a in decided] == [100, 0]
    assert decided[0].hyperparameters != {"lr": 0.1}
    population.record(decision(*decided))
    assert all(m.healthy for m in population.members.values())


def test_member_is_retired_after_repeated_failures() -> None:
    population, strategy, max_consecutive_failures = Population(2, 0, LAST), pbt(max_consecutive_failures=3), 0
    while decided := strategy.decide(population):
        population.record(decision(*decided))
        for a in decided:
            population.record(answer(died(a)))
        max_consecutive_failures += 1
    assert max_consecutive_failures == 1 + 3
    assert population.step == 0


def test_report_resets_the_failure_count() -> None:
    population, strategy = Population(1, 0, LAST), pbt(max_consecutive_failures=1)
    for fate in (died, trained, died, trained, died):
        (a,) = strategy.decide(population)
        population.record(decision(a))
        population.record(answer(fate(a)))
    assert len(strategy.decide(population)) == 1
    assert pbt(max_consecutive_failures=0).decide(population) == []


# Random search


def test_random_search_starts_as_pbt_and_never_changes() -> None:
    population = Population(4, 9, LAST)
    search = random_search(LR, slice_steps=100, horizon=1000)
    start = search.decide(population)
    assert start == pbt().decide(population)
    population.record(decision(*start))
    for a in start:
        population.record(answer(trained(a, float(a.member[1:]))))
    assert [(a.hyperparameters, a.parent, a.donor) for a in search.decide(population)] == [
        (a.hyperparameters, a.id, None) for a in start
    ]


@pytest.mark.parametrize("broken", ["diverged", "given up"])
def test_random_search_retires_broken_members(broken: str) -> None:
    search = random_search(LR, slice_steps=100, horizon=1000)
    assert [a.member for a in search.decide(after_one_slice(1.0, broken, 2.0))] == ["m00", "m02"]


# The paper's toy (algorithms.md 1.6)


@dataclass
class StartAt(Strategy):
    """Strategy whose members start from given hyperparameters instead of draws from the prior."""

    strategy: PBT
    values: dict[str, dict[str, float]]

    def decide(self, population: Population) -> list[Assignment]:
        return [
            replace(a, hyperparameters=self.values[a.member]) if a.generation == 0 else a
            for a in self.strategy.decide(population)
        ]


TOURNAMENT = {"copy": Exploit(method="binary_tournament", ties="copy")}
TOURNAMENT["strict"] = replace(TOURNAMENT["copy"], min_gap=1e-9)


def toy(folder: Path, *, seed: int = 0, slice_steps: int, clamp: bool = True, **rules: Any) -> tuple[float, float]:
    """Final Q of both members after 200 steps of a complete run."""
    free = {n: Uniform(low=0.0, high=1.0, bounds="none") for n in ("h0", "h1")}
    strategy: Strategy = StartAt(
        PBT(
            space=SearchSpace(free),
            slice_steps=slice_steps,
            horizon=200,
            copy=frozenset({"weights"}),
            synchronous=True,
            **rules,
        ),
        {"m00": {"h0": 1.0, "h1": 0.0}, "m01": {"h0": 0.0, "h1": 1.0}},
    )
    folder.mkdir()
    population, journal = Population(2, seed, LAST), Journal(folder / "journal.jsonl")
    executor = Inline(Host.local(TrainableBuilder(Quadratic, {"clamp": clamp}), folder / "members", [("m00", "m01")]))
    assert Controller(population, strategy, executor, journal).run() == "budget"
    journal.close()
    one, other = (m.fitness for m in population.members.values())
    assert one is not None
    assert other is not None
    return one, other


@pytest.mark.usefixtures("quick_disk")
class TestToy:
    def test_grid_search(self, tmp_path: Path) -> None:
        result = toy(tmp_path / "run", slice_steps=20, exploit=Exploit(method="none"), explore=STILL)
        assert result == pytest.approx((0.3897, 0.3897), abs=5e-5)

    @pytest.mark.parametrize("slice_steps", [5, 10])
    @pytest.mark.parametrize(("ties", "expected"), [("copy", 1.1715), ("strict", 0.3897)])
    def test_exploit_only(self, tmp_path: Path, slice_steps: int, ties: str, expected: float) -> None:
        result = toy(tmp_path / "run", slice_steps=slice_steps, exploit=TOURNAMENT[ties], explore=STILL)
        assert max(result) == pytest.approx(expected, abs=5e-5)

    @pytest.mark.parametrize("clamp", [False, True])
    def test_pbt_beats_everything_else(self, tmp_path: Path, clamp: bool) -> None:
        explore = Explore(method="gaussian", sd=0.1, when="after_copy")
        best = self.best(tmp_path, clamp=clamp, exploit=TOURNAMENT["copy"], explore=explore)
        assert statistics.median(best) > 1.1715 - 0.01
        assert max(best) < 1.2

    def test_explore_only_lies_between_grid_search_and_pbt(self, tmp_path: Path) -> None:
        explore = Explore(method="gaussian", sd=0.1, when="always")
        best = self.best(tmp_path, clamp=True, exploit=Exploit(method="none"), explore=explore)
        assert 0.6 < statistics.median(best) < 1.15

    def best(self, folder: Path, **settings: Any) -> list[float]:
        """The better member's Q in each of a few runs."""
        return [max(toy(folder / str(seed), seed=seed, slice_steps=10, **settings)) for seed in range(11)]
