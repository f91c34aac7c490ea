"""MF-PBT's tables of donors, failures, and whole runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pbtrl.core.dimensions import LogUniform
from pbtrl.core.messages import Assignment
from pbtrl.core.naming import member_id
from pbtrl.core.population import Population
from pbtrl.core.records import Record
from pbtrl.core.search_space import SearchSpace
from pbtrl.strategies.mf_pbt import MFPBT
from pbtrl.strategies.pbt_variants_settings import MFPBTSettings
from pbtrl.strategies.rules import Explore
from pbtrl.testing.fakes import LAST, died, trained
from pbtrl.testing.strategies import SPACE, PopulationConformance
from tests.command import Command
from tests.fakes import answer, decision
from tests.strategies.same_run import check_same_run

LR = SearchSpace({"lr": LogUniform(low=1e-3, high=10.0)})
REWARDS = [5, 1, 9, 3, 7, 2, 8, 4, 15, 6, 0, 11, 13, 10, 14, 12]
ITSELF = list(range(16))


class TestMFPBT(PopulationConformance):
    size = 8

    @classmethod
    def strategy(cls) -> MFPBT:
        return MFPBT(space=SPACE, slice_steps=100, horizon=600, frequencies={"p1": 1, "p2": 2})

    @classmethod
    def population(cls) -> Population:
        return Population(cls.size, 3, cls.rule, roles=MFPBTSettings(frequencies=(1, 2)).roles(cls.size))

    def test_hyperparameters_come_from_their_donor_or_are_kept(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            for a in assignments:
                if a.hparams_donor:
                    assert a.hparams_donor not in (a.donor, a.member)
                    donor = before.members[a.hparams_donor]
                    assert donor.ranked
                    assert a.hyperparameters == donor.snapshot_hparams

    def test_rescues_stay_inside_a_sub_population(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            for a in assignments:
                receiver = before.members[a.member]
                if a.donor and not receiver.healthy:
                    assert before.members[a.donor].role == receiver.role


def mf_pbt(*frequencies: int, **changes: Any) -> MFPBT:
    settings: dict[str, Any] = {"space": LR, "slice_steps": 100, "horizon": 10_000, **changes}
    return MFPBT(frequencies={f"p{i}": f for i, f in enumerate(frequencies, 1)}, **settings)


Reward = float | str | None


def after_rounds(strategy: MFPBT, rounds: int, rewards: Sequence[Reward]) -> Population:
    """Population after this many rounds; all members but the last round's are equal, so that nobody migrates."""
    roles = MFPBTSettings(frequencies=tuple(strategy.frequencies.values())).roles(len(rewards))
    population = Population(len(rewards), 0, LAST, roles=roles)
    for step in range(100, 100 * rounds + 1, 100):
        for member, reward in zip(list(population.members.values()), rewards, strict=True):
            a = Assignment(
                f"{member.id}/{member.generation + 1:06d}", member.id, member.snapshot, member.step, step,
                {"lr": 0.1 * (1 + int(member.id[1:]))}, 1,
            )  # fmt: skip
            population.record(decision(a))
            if step < 100 * rounds or isinstance(reward, int | float):
                last = float(reward) if isinstance(reward, int | float) else 0.0
                population.record(answer(trained(a, last)))
            elif reward == "given up":
                population.record(answer(died(a)))
            else:
                population.record(answer(trained(a, diverged=reward == "diverged")))
    return population


def table(strategy: MFPBT, population: Population) -> tuple[list[int], list[int], list[int]]:
    """Sources of hyperparameters and of weights, by member, and the members that explore."""
    hyperparameters, weights, explore = [], [], []
    for a in strategy.decide(population):
        place, parent = int(a.member[1:]), int((a.parent or "m").split("/")[0][1:])
        source = int((a.hparams_donor or a.donor or a.member)[1:])
        hyperparameters.append(source)
        weights.append(parent)
        assert a.donor == (None if parent == place else member_id(parent, 16))
        if a.hyperparameters != {"lr": 0.1 * (1 + source)}:
            explore.append(place)
    return hyperparameters, weights, explore


@pytest.mark.parametrize(
    ("rounds", "frequencies", "hyperparameters", "weights", "explore"),
    [
        (1, (1, 10), [0, 6, 2, 14, 4, 2, 6, 8, *ITSELF[8:]], None, [1, 5]),
        (10, (1, 10), [0, 6, 2, 14, 4, 2, 6, 8, 8, 8, 14, 11, 12, 13, 14, 15], None, [1, 5, 9, 10]),
        (
            10, (10, 1),
            [0, 6, 2, 2, 4, 2, 6, 2, 8, 8, 14, 11, 12, 13, 14, 15],
            [0, 6, 2, 14, 4, 2, 6, 8, 8, 8, 14, 11, 12, 13, 14, 15],
            [1, 5, 9, 10],
        ),
        (9, (10, 1), [*ITSELF[:8], 8, 8, 14, 11, 12, 13, 14, 15], None, [9, 10]),
        (9, (10, 10), ITSELF, None, []),
    ],
)  # fmt: skip
def test_tables_of_donors(
    rounds: int, frequencies: tuple[int, int], hyperparameters: list[int], weights: list[int] | None, explore: list[int]
) -> None:
    """The first three from search.md, run through the authors' function."""
    strategy = mf_pbt(*frequencies)
    result = table(strategy, after_rounds(strategy, rounds, REWARDS))
    assert result == (hyperparameters, weights or hyperparameters, explore)


def test_equal_frequencies_keep_the_hyperparameters() -> None:
    strategy = mf_pbt(1, 1)
    moved = {a.member: a for a in strategy.decide(after_rounds(strategy, 1, REWARDS))}["m03"]
    assert (moved.donor, moved.hparams_donor, moved.note) == ("m14", None, "migrant m14, own hyperparameters")
    assert moved.hyperparameters == {"lr": pytest.approx(0.4)}


def test_notes_name_the_sources() -> None:
    fast, slow = (
        {a.member: a.note for a in s.decide(after_rounds(s, 10, REWARDS))} for s in (mf_pbt(1, 10), mf_pbt(10, 1))
    )
    assert (fast["m05"], fast["m07"], fast["m00"]) == ("exploit m02, rank 1 of 8", "migrant m08", "")
    assert (slow["m01"], slow["m07"]) == ("exploit m06, rank 2 of 8", "migrant m08, hyperparameters of m02")


def test_each_sub_population_has_its_own_migrants() -> None:
    """One migrant may move to two sub-populations; within one it moves once."""
    strategy = mf_pbt(1, 1, 1)
    rewards = [*range(8), *range(10, 18), *range(20, 28)]
    result = {a.member: a.donor for a in strategy.decide(after_rounds(strategy, 1, rewards)) if "migrant" in a.note}
    assert result == {"m03": "m23", "m02": "m22", "m11": "m23", "m10": "m22"}


def test_single_sub_population_has_no_migrants() -> None:
    strategy = mf_pbt(1)
    result = {a.member: a.donor for a in strategy.decide(after_rounds(strategy, 1, REWARDS[:8])) if a.donor}
    assert result == {"m05": "m02", "m01": "m06"}


def test_equal_fitness_does_not_migrate() -> None:
    strategy = mf_pbt(1, 1)
    for fitness, expected in ((1.0, None), (1.5, "m04")):
        population = after_rounds(strategy, 1, [3, 2, 1, 0, fitness, 0, 0, 0])
        assert {a.member: a.donor for a in strategy.decide(population)}["m02"] == expected


def test_no_evolution_before_burn_in_or_between_slices() -> None:
    strategy = mf_pbt(1, 1, burn_in=200)
    assert [a for a in strategy.decide(after_rounds(strategy, 1, REWARDS)) if a.donor] == []
    assert [a for a in strategy.decide(after_rounds(strategy, 2, REWARDS)) if a.donor] != []


def test_variance_exploitation_explores_nothing() -> None:
    strategy = mf_pbt(1, 10, explore=Explore(method="none"))
    assert table(strategy, after_rounds(strategy, 1, REWARDS))[2] == []


@pytest.mark.parametrize(
    ("broken", "others"),
    [("diverged", {"m01": "m07", "m02": "m14"}), ("given up", {})],
)
def test_failed_member_copies_the_best_of_its_sub_population(broken: str, others: dict[str, str]) -> None:
    """Also in a round in which the sub-population does not evolve.

    A diverged member stands where the others do, which are quartered without it; one given up catches up first.
    """
    strategy = mf_pbt(1, 10)
    population = after_rounds(strategy, 1, [broken, *range(2, 9), *range(20, 27), broken])
    result = {a.member: a for a in strategy.decide(population)}
    assert {m: a.donor for m, a in result.items() if a.donor} == {"m00": "m07", "m15": "m14", **others}
    assert result["m15"].note == f"{broken}, exploit m14"
    assert result["m15"].hyperparameters != {"lr": pytest.approx(1.5)}


def test_members_without_fitness_continue() -> None:
    strategy = mf_pbt(1, 1)
    population = after_rounds(strategy, 1, [4, 3, 2, 1, 0, None, None, None])
    assert {a.member: a.donor for a in strategy.decide(population) if a.donor} == {"m03": "m00"}
    population = after_rounds(strategy, 1, [9, 8, 7, 6, 5, 4, 3, None, *REWARDS[8:]])
    result = {a.member: a.donor for a in strategy.decide(population) if a.donor}
    assert {m: d for m, d in result.items() if m < "m08"} == {"m06": "m00", "m05": "m08"}


TOY = [
    "toy_quadratic", "population={size: 8, mode: sync}", "budget.env_steps_per_member=80",
    "strategy={name: mf_pbt, frequencies: [1, 2], ready: {slice_steps: 10}}",
]  # fmt: skip


def test_executor_and_stops_change_nothing(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    check_same_run(pbtrl, monkeypatch, TOY, [20, 37])
