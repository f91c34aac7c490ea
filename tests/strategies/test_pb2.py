"""PB2's rows, proposals and whole runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest

from pbtrl.core.dimensions import AGENT, Choice, IntUniform, LogUniform, Uniform
from pbtrl.core.messages import Assignment
from pbtrl.core.population import Population
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.strategies.pb2 import PB2
from pbtrl.strategies.pb2_model import Model, Row, SliceStart
from pbtrl.strategies.pb2_rows import SliceRows
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.rules import Exploit, Explore
from pbtrl.strategies.time_varying_gp import Kernel
from pbtrl.testing.fakes import LAST, trained
from pbtrl.testing.strategies import SPACE, PopulationConformance
from pbtrl.trainables.drifting_bandit import DriftingBandit
from tests.command import Command
from tests.fakes import after_one_slice, answer, assign, decision
from tests.strategies.same_run import check_same_run
from tests.strategies.simulation import TrainableWorld, play

QUARTER = Exploit(bottom=0.25, top=0.25)
ARM = SearchSpace({"h": Uniform(low=0.0, high=1.0)})
LR = SearchSpace({"lr": LogUniform(low=1e-3, high=10.0)})


class TestSynchronous(PopulationConformance):
    @classmethod
    def strategy(cls) -> PB2:
        return PB2(space=SPACE, slice_steps=100, horizon=600, exploit=QUARTER, synchronous=True)


class TestAsynchronous(PopulationConformance):
    horizon = 550

    @classmethod
    def strategy(cls) -> PB2:
        return PB2(
            space=SPACE, slice_steps=100, horizon=550, exploit=QUARTER, time="normalized", spread="variance", window=9
        )


def pb2(**changes: Any) -> PB2:
    settings: dict[str, Any] = {"space": LR, "slice_steps": 100, "horizon": 1000, "exploit": QUARTER, **changes}
    return PB2(**settings)


def go_on(
    population: Population, member: str, fitness: float | None = None, step: int | None = None, **changes: Any
) -> Assignment:
    """One more slice of a member, with its report."""
    a = assign(population, member, **changes)
    population.record(decision(a))
    diverged = fitness is not None and math.isinf(fitness)
    returns = [] if fitness is None or diverged else [fitness]
    population.record(answer(trained(a, *returns, step=step, diverged=diverged)))
    return a


def rows(population: Population, **changes: Any) -> list[Row]:
    return rows_of(pb2(**changes), population)


def rows_of(strategy: PB2, population: Population, agent: str | None = None) -> list[Row]:
    return SliceRows.of(strategy, strategy.window, population).latest(agent)


# Rows


def test_row_is_the_gain_from_parent_to_snapshot() -> None:
    """The first slice has no fitness before it."""
    population = after_one_slice(1.0, 2.0)
    assert rows(population) == []
    go_on(population, "m00", 4.0, hyperparameters={"lr": 0.1})
    go_on(population, "m00", 3.0, hyperparameters={"lr": 10.0})
    assert rows(population) == [
        Row(SliceStart(1.0, 1.0, (pytest.approx(0.5),)), 4.0, 3.0),
        Row(SliceStart(2.0, 4.0, (1.0,)), 3.0, -1.0),
    ]


def test_row_of_a_receiver_begins_at_its_donor() -> None:
    population = after_one_slice(1.0, 2.0)
    go_on(population, "m01", 7.0)
    go_on(population, "m00", 7.5, parent="m01/000001", donor="m01", hyperparameters={"lr": 1e-3})
    assert rows(population)[-1] == Row(SliceStart(2.0, 7.0, (0.0,)), 7.5, 0.5)


def test_copied_weights_keep_the_time_that_they_have_trained() -> None:
    """In asynchronous mode a slow member copies weights that are ahead of its clock."""
    population = after_one_slice(1.0, 2.0)
    for fitness in (3.0, 4.0, 5.0):
        go_on(population, "m00", fitness)
    go_on(population, "m01", 6.0, parent="m00/000003", donor="m00")
    go_on(population, "m01", 7.0)
    times = {row.after: row.trial.time for row in rows(population)}
    assert times == {3.0: 1.0, 4.0: 2.0, 5.0: 3.0, 6.0: 4.0, 7.0: 5.0}


def test_slice_in_two_parts_is_one_row() -> None:
    population = after_one_slice(1.0)
    go_on(population, "m00", 50.0, step=130)
    assert rows(population) == []
    go_on(population, "m00", 4.0, every=70)
    (row,) = rows(population)
    assert (row.trial.time, row.trial.fitness, row.after, row.gain) == (1.0, 1.0, 4.0, 3.0)


@pytest.mark.parametrize(("every", "gain"), [(40, None), (50, 6.0), (60, 5.0)])
def test_row_needs_half_a_slice_and_is_per_slice(every: int, gain: float | None) -> None:
    population = after_one_slice(1.0)
    go_on(population, "m00", 4.0, every=every)
    assert [row.gain for row in rows(population, horizon=100 + every)] == (
        [] if gain is None else [pytest.approx(gain)]
    )


def test_absent_fitness_gives_no_row_on_either_side() -> None:
    population = after_one_slice(1.0, 2.0)
    go_on(population, "m00", parent="m01/000000", donor="m01")
    assert population.members["m00"].fitness is None
    for fitness in (4.0, 5.0):
        go_on(population, "m00", fitness)
    assert [row.after for row in rows(population)] == [5.0]


def test_divergence_is_the_worst_gain() -> None:
    population = after_one_slice(1.0, 2.0)
    go_on(population, "m00", 4.0)
    go_on(population, "m01", -math.inf)
    result = tuple(rows(population))
    assert [row.gain for row in result] == [3.0, -math.inf]
    assert Model.of(result, "rounds", 1).targets.tolist() == [0.0, -2.0]


def test_gains_of_divergences_alone() -> None:
    assert model([-math.inf] * 3).targets.tolist() == [-2.0] * 3


def test_divergence_is_a_row_wherever_it_happens() -> None:
    population = after_one_slice(1.0)
    go_on(population, "m00", -math.inf, step=110)
    assert [row.gain for row in rows(population)] == [-math.inf]


def test_row_of_a_rescue_between_slices_begins_at_its_donor() -> None:
    population = after_one_slice(1.0, 2.0)
    go_on(population, "m00", -math.inf, step=110)
    go_on(population, "m00", 8.0, parent="m01/000000", donor="m01", every=90)
    assert rows(population)[-1].trial.fitness == 2.0
    assert rows(population)[-1].gain == pytest.approx(6.0 / 0.9)


def test_row_of_a_rescue_begins_at_its_stopped_donor() -> None:
    population = after_one_slice(1.0, 2.0)
    go_on(population, "m01", 5.0, step=130)
    go_on(population, "m00", -math.inf, step=110)
    go_on(population, "m00", 8.5, parent="m01/000001", donor="m01", start=130, stop=200)
    assert rows(population)[-1].trial.fitness == 5.0
    assert rows(population)[-1].gain == pytest.approx(3.5 / 0.7)


def test_report_without_a_step_gives_no_row() -> None:
    population = after_one_slice(1.0)
    go_on(population, "m00", -math.inf, step=100)
    assert rows(population) == []


def test_window_keeps_the_latest_rows_in_order_of_time_and_member() -> None:
    """Whatever the order of reports."""
    population = after_one_slice(*[0.0] * 3)
    for member in ("m02", "m00", "m01"):
        go_on(population, member, float(member[1:]))
    for member in ("m01", "m02", "m00"):
        go_on(population, member, 10.0 + float(member[1:]))
    assert [row.after for row in rows(population, window=5)] == [1.0, 2.0, 10.0, 11.0, 12.0]


def test_rows_are_those_of_one_agent() -> None:
    spaces = {name: SearchSpace({"lr": LogUniform(low=1e-3, high=10.0)}, name) for name in ("a", "b")}
    population = Population(2, 0, LAST)
    for member, agent in (("m00", "a"), ("m01", "b")):
        for fitness in (1.0, 2.0 if agent == "a" else 4.0):
            go_on(population, member, fitness, hyperparameters={AGENT: agent, "lr": 0.1})
    strategy = pb2(space=MixedSearchSpace(spaces, {"a": 1, "b": 1}))
    for agent, gain in (("a", 1.0), ("b", 3.0)):
        assert [row.gain for row in rows_of(strategy, population, agent)] == [gain]


def test_rows_brought_up_to_date_equal_rows_of_the_whole_journal() -> None:
    """Also if a slice in two parts lies between two decisions, and after a change of the bounds."""
    population, strategy = after_one_slice(1.0, 2.0), pb2()
    go_on(population, "m00", 50.0, step=130)
    assert rows_of(strategy, population) == []
    go_on(population, "m00", 4.0, every=70)
    go_on(population, "m01", 3.0)
    wider = pb2(space=SearchSpace({"lr": LogUniform(low=1e-4, high=10.0)}))
    for each in (strategy, wider):
        result = rows_of(each, population)
        population.folds.clear()
        assert result == rows_of(each, population)
        assert [row.gain for row in result] == [3.0, 1.0]
    assert rows_of(strategy, population) != rows_of(wider, population)


def test_asynchronous_kernel_is_chosen_anew_when_each_member_gave_a_row() -> None:
    population, strategy = after_one_slice(1.0, 2.0, 3.0, 4.0), pb2()
    rng, kernels, counts = np.random.default_rng(0), [], []
    for i in range(22):
        go_on(population, f"m{i % 4:02d}", float(rng.random()), hyperparameters={"lr": float(10 ** rng.uniform(-3, 1))})
        rows = SliceRows.of(strategy, strategy.window, population)
        kernels.append(rows.model(None, "rounds", 1).kernel)
        counts.append(len(rows.latest(None)))
    assert kernels[:3] == [Kernel()] * 3
    for i in range(3, 22):
        size = counts[i] // 4 * 4
        assert kernels[i] == Model.of(rows_of(strategy, population)[:size], "rounds", 1).kernel
    assert len(set(kernels)) > 2
    always = SliceRows.of(pb2(synchronous=True), 200, population)
    assert always.model(None, "rounds", 1).kernel == Model.of(always.latest(None), "rounds", 1).kernel
    assert len(always.latest(None)) % 4 != 0


# Model


def model(gains: Sequence[float], time: Any = "rounds", after: float = 0.0) -> Model:
    result = [Row(SliceStart(2.0 + i, 10.0 + i, (i / 10,)), after, gain) for i, gain in enumerate(gains)]
    return Model.of(result, time, 1)


def test_gains_are_standardized_and_clipped() -> None:
    gains = [0.0, 1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 50.0]
    expected = (np.array(gains) - np.mean(gains)) / np.std(gains)
    assert expected[-1] > 2.0
    assert model(gains).targets == pytest.approx(np.clip(expected, -2.0, 2.0))
    assert model([0.3] * 10).targets == pytest.approx([0.0] * 10)


@pytest.mark.parametrize(("time", "times"), [("rounds", [2.0, 3.0, 4.0]), ("normalized", [0.0, 0.5, 1.0])])
def test_time_and_fitness_are_scaled(time: Any, times: list[float]) -> None:
    points = model([1.0, 2.0, 3.0], time, after=15.0).points
    assert points[:, 0].tolist() == times
    assert points[:, 1] == pytest.approx([0.0, 0.2, 0.4])
    assert points[:, 2] == pytest.approx([0.0, 0.1, 0.2])


def test_unknown_fitness_is_in_the_middle() -> None:
    (point,) = model([1.0, 2.0, 3.0], after=15.0).scaled([SliceStart(3.0, None, (0.5,))])
    assert point.tolist() == pytest.approx([3.0, (13.0 - 10.0) / 5.0, 0.5])


def propose(m: Model, count: int, spread: Any = "sd", seed: int = 0) -> list[float]:
    """Proposals of one round, one after another."""
    tried: list[SliceStart] = []
    for i in range(count):
        now = SliceStart(6.0, 12.0, (0.5,))
        (x,) = m.propose(now, tried, spread, np.random.default_rng([seed, i]))
        tried.append(replace_position(now, x))
    return [trial.position[0] for trial in tried]


def replace_position(trial: SliceStart, x: float) -> SliceStart:
    return trial._replace(position=(float(x),))


@pytest.mark.parametrize("spread", ["sd", "variance"])
@pytest.mark.parametrize("gains", [[], [1.0] * 5])
def test_batch_of_eight_spreads_over_a_flat_space(gains: list[float], spread: Any) -> None:
    result = sorted(propose(model(gains), 8, spread))
    edges = [0.0, *result, 1.0]
    assert max(b - a for a, b in pairwise(edges)) < 0.3
    assert min(b - a for a, b in pairwise(result)) > 0.05


@pytest.mark.parametrize("seed", range(5))
def test_two_proposals_of_a_round_differ(seed: int) -> None:
    rng = np.random.default_rng(seed)
    result = [
        Row(SliceStart(float(i // 6), 0.0, (h,)), 0.0, -((h - 0.5) ** 2) + 0.02 * rng.standard_normal())
        for i, h in enumerate(rng.random(36))
    ]
    one, other = propose(Model.of(result, "rounds", 1), 2, seed=seed)
    assert abs(one - other) > 0.05


# Decisions


def decision_after(population: Population, strategy: PB2, rounds: int = 2) -> list[Assignment]:
    """Decision after some slices of every member; the higher the index, the fitter."""
    for _ in range(rounds):
        decided = strategy.decide(population)
        population.record(decision(*decided))
        for a in decided:
            population.record(answer(trained(a, float(a.member[1:]) * a.stop)))
    return strategy.decide(population)


def test_copies_are_those_of_pbt() -> None:
    population, rules = Population(8, 1, LAST), {"space": LR, "slice_steps": 100, "horizon": 1000, "synchronous": True}
    result = decision_after(population, PB2(**rules, exploit=QUARTER))
    expected = PBT(**rules, exploit=QUARTER, explore=Explore(method="none")).decide(population)
    assert [replace(a, hyperparameters={}) for a in result] == [replace(a, hyperparameters={}) for a in expected]
    changed = {a.member for a, b in zip(result, expected, strict=True) if a.hyperparameters != b.hyperparameters}
    assert changed == {a.member for a in result if a.donor} != set()


def test_receivers_of_one_decision_get_different_values() -> None:
    result = [
        a.hyperparameters["lr"] for a in decision_after(Population(16, 1, LAST), pb2(synchronous=True)) if a.donor
    ]
    positions = [LR["lr"].to_unit(value) for value in result]
    assert len(result) == 4
    assert all(abs(a - b) > 0.05 for a, b in combinations(positions, 2))


def test_open_assignments_repel_a_proposal() -> None:
    """Asynchronously: what another member is trying is not tried a second time."""
    decided = decision_after(Population(8, 1, LAST), pb2())
    first = next(a for a in decided if a.donor)
    result = []
    for tried in (first.hyperparameters, {"lr": 1e-3 if first.hyperparameters["lr"] > 0.1 else 10.0}):
        population = Population(8, 1, LAST)
        decision_after(population, pb2())
        population.record(decision(replace(assign(population, "m07"), hyperparameters=tried)))
        again = next(a for a in pb2().decide(population) if a.member == first.member)
        result.append(LR["lr"].to_unit(again.hyperparameters["lr"]))
    assert abs(result[0] - LR["lr"].to_unit(first.hyperparameters["lr"])) > 0.05
    assert result[0] != result[1]


@pytest.mark.parametrize("seed", range(5))
def test_survivors_repel_a_proposal(seed: int) -> None:
    """Where a receiver would go, it does not go once the survivors are there."""
    population, strategy = after_one_slice("diverged", 1.0, 3.0, 2.0, seed=seed), pb2(synchronous=True)
    places = []
    for _ in range(2):
        first, *others = strategy.decide(population)
        places.append(LR["lr"].to_unit(first.hyperparameters["lr"]))
        for a in others:
            population.members[a.member].hyperparameters = first.hyperparameters
    assert abs(places[0] - places[1]) > 0.2


@pytest.mark.parametrize("change", [{"time": "normalized"}, {"spread": "variance"}, {"window": 3}])
def test_settings_change_the_proposals(change: dict[str, Any]) -> None:
    usual, other = (proposals(PB2(**{**RULES, **c, "horizon": 100})) for c in ({}, change))
    assert usual != other


def proposals(strategy: PB2) -> list[float]:
    """Values tried by receivers on the drifting bandit."""
    played = play(strategy, Population(8, 1, LAST), TrainableWorld(DriftingBandit))
    return [a.hyperparameters["h"] for decided in played for a in decided if a.donor]


def test_rescued_member_gets_values_of_the_model() -> None:
    population = after_one_slice("diverged", 1.0, 3.0, 2.0)
    a = pb2(synchronous=True).decide(population)[0]
    assert (a.donor, a.note) == ("m02", "diverged, exploit m02")
    assert a.hyperparameters["lr"] not in (0.1, 0.3)


def test_values_have_six_digits_and_choices_are_drawn() -> None:
    space = SearchSpace(
        {"lr": LogUniform(low=1e-3, high=10.0), "kind": Choice(values=("a", "b", "c")), "n": IntUniform(low=1, high=9)}
    )
    kinds = set()
    for seed in range(6):
        for a in decision_after(Population(8, seed, LAST), pb2(space=space, synchronous=True)):
            if a.donor:
                assert a.hyperparameters["lr"] == float(f"{a.hyperparameters['lr']:.6g}")
                assert type(a.hyperparameters["n"]) is int
                assert list(a.hyperparameters) == ["lr", "kind", "n"]
                kinds.add(a.hyperparameters["kind"])
    assert kinds == {"a", "b", "c"}


def bandit(strategy: PBT, seed: int, order: int | None = None) -> tuple[float, float]:
    """Highest score at the end of a run, and the mean distance of the values tried by receivers from the optimum."""
    population, world = Population(8, seed, LAST), TrainableWorld(partial(DriftingBandit, noise=0.002))
    rng = None if order is None else np.random.default_rng(order)
    tried = [a for decided in play(strategy, population, world, rng) for a in decided if a.donor]
    gaps = [abs(a.hyperparameters["h"] - 0.2 - 0.6 * min(1.0, a.start / 200)) for a in tried]
    scores = [float(world.states[m.snapshot or ""]["score"][0]) for m in population.members.values()]
    return max(scores), float(np.mean(gaps))


RULES: dict[str, Any] = {"space": ARM, "slice_steps": 10, "horizon": 200, "exploit": QUARTER, "synchronous": True}


def test_follows_the_drifting_bandit_better_than_draws_from_the_prior() -> None:
    result, drawn = bandit(PB2(**RULES), 1), bandit(PBT(**RULES, explore=Explore(method="resample")), 1)
    assert result[0] > 0.97 > drawn[0]
    assert result[1] < 0.16 < drawn[1]


TOY = ["toy_pb2", "budget.env_steps_per_member=60"]


def test_executor_and_stops_change_nothing(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    check_same_run(pbtrl, monkeypatch, TOY, [20, 37])
