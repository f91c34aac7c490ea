"""PBT's decisions in populations of several agents, each by itself or competing."""

from typing import Any

import pytest

from pbtrl.core.dimensions import AGENT, LogUniform, Uniform
from pbtrl.core.messages import Assignment
from pbtrl.core.population import FitnessRule, Population
from pbtrl.core.records import Record
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.random_search import random_search
from pbtrl.strategies.rules import Exploit, Explore
from pbtrl.testing import SearchConformance
from pbtrl.testing.fakes import LAST, died, trained
from pbtrl.testing.strategies import SPACE, PopulationConformance
from tests.fakes import SliceResult, answer, decision

LR = LogUniform(low=1e-3, high=10.0)
MIX = MixedSearchSpace(
    {
        "a": SearchSpace({"lr": LR, "clip": Uniform(low=1.0, high=2.0)}, "a"),
        "b": SearchSpace({"lr": LR, "eps": LogUniform(low=1e-9, high=1e9)}, "b"),
    },
    {"a": 3, "b": 2},
)
NAMES = {"a": ["agent", "lr", "clip"], "b": ["agent", "lr", "eps"]}


def pbt(*, across: bool = False, **changes: Any) -> PBT:
    rules = {"bottom": 0.5, "top": 0.5, "across_agents": across, **changes.pop("exploit", {})}
    return PBT(**{"space": MIX, "slice_steps": 100, "horizon": 1000, "exploit": Exploit(**rules), **changes})


def after(strategy: PBT, *results: SliceResult, seed: int = 0, rule: FitnessRule = LAST) -> Population:
    """Population whose members have ended the first slice that the strategy assigned, with these results."""
    population = Population(len(results), seed, rule)
    assignments = strategy.decide(population)
    population.record(decision(*assignments))
    for a, result in zip(assignments, results, strict=True):
        if result == "given up":
            population.record(answer(died(a)))
        elif result == "diverged":
            population.record(answer(trained(a, diverged=True)))
        else:
            returns = [result] if isinstance(result, float | int) else result or []
            population.record(answer(trained(a, *map(float, returns))))
    return population


def decided(strategy: PBT, *results: SliceResult, **options: Any) -> dict[str, Assignment]:
    return {a.member: a for a in strategy.decide(after(strategy, *results, **options))}


def copies(strategy: PBT, *results: SliceResult, **options: Any) -> dict[str, str]:
    """Donor by receiver."""
    return {m: a.donor for m, a in decided(strategy, *results, **options).items() if a.donor}


class Mixed(PopulationConformance):
    """Half the members of each agent."""

    mix = MixedSearchSpace({"a": SearchSpace(SPACE, "a"), "b": SearchSpace({"lr": SPACE["lr"]}, "b")}, {"a": 3, "b": 3})

    def test_hyperparameters_stay_inside_their_bounds_and_pass_through_json(self, records: list[Record]) -> None:
        for _, assignments in self.moments(records):
            for a in assignments:
                space = self.mix.of(a.hyperparameters)
                assert list(a.hyperparameters) == [AGENT, *space.names]
                assert space.contains(a.hyperparameters)

    def kinds(self, records: list[Record]) -> list[list[str]]:
        """What each member was, one after the other."""
        result: dict[str, list[str]] = {}
        for _, assignments in self.moments(records):
            for a in assignments:
                result.setdefault(a.member, []).append(a.hyperparameters[AGENT])
        return [result[f"m{i:02d}"] for i in range(6)]


class TestWithin(Mixed):
    @classmethod
    def strategy(cls) -> PBT:
        return PBT(space=cls.mix, slice_steps=100, horizon=600, exploit=Exploit(bottom=0.4, top=0.4))

    def test_no_member_changes_its_agent(self, records: list[Record]) -> None:
        assert [set(kinds) for kinds in self.kinds(records)] == [{"a"}] * 3 + [{"b"}] * 3


class TestAcross(Mixed):
    @classmethod
    def strategy(cls) -> PBT:
        exploit = Exploit(method="binary_tournament", ties="copy", across_agents=True)
        return PBT(space=cls.mix, slice_steps=100, horizon=600, exploit=exploit)

    def test_some_member_changes_its_agent(self, records: list[Record]) -> None:
        kinds = self.kinds(records)
        assert [k[0] for k in kinds] == ["a"] * 3 + ["b"] * 3
        assert any(len(set(k)) > 1 for k in kinds)


class TestRandomSearch(Mixed, SearchConformance):
    @classmethod
    def strategy(cls) -> PBT:
        return random_search(cls.mix, slice_steps=100, horizon=600)

    def test_members_keep_their_hyperparameters(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            for a in assignments:
                held = before.members[a.member].hyperparameters
                assert a.hyperparameters == held or not held


# Who begins as what


def test_members_are_assigned_to_agents_in_order() -> None:
    first = pbt().decide(Population(5, 1))
    assert [a.hyperparameters[AGENT] for a in first] == ["a", "a", "a", "b", "b"]
    assert [list(a.hyperparameters) for a in first] == [NAMES["a"]] * 3 + [NAMES["b"]] * 2


def test_shared_hyperparameters_are_drawn_as_without_a_mix() -> None:
    alone = PBT(space=SearchSpace({"lr": LR}), slice_steps=100, horizon=1000).decide(Population(5, 1))
    mixed = pbt().decide(Population(5, 1))
    assert [a.hyperparameters["lr"] for a in mixed] == [a.hyperparameters["lr"] for a in alone]


# Each kind by itself


def test_worst_of_an_agent_copies_its_best() -> None:
    result = decided(pbt(), 1, 2, 3, 100, 200)
    assert {m: a.donor for m, a in result.items() if a.donor} == {"m00": "m02", "m03": "m04"}
    assert result["m00"].note == "exploit m02, rank 1 of 3"
    assert result["m03"].note == "exploit m04, rank 1 of 2"


@pytest.mark.parametrize("method", ["binary_tournament", "t_test"])
def test_only_members_of_the_same_agent_are_compared(method: str) -> None:
    rule, strategy = FitnessRule(window=10, min_episodes=1), pbt(exploit={"method": method})
    for seed in range(20):
        result = copies(strategy, [1, 2], [1, 2], [1, 2], [101, 102], [1, 2], rule=rule, seed=seed)
        assert all(receiver == "m04" for receiver, donor in result.items() if donor == "m03")
        assert not {(r, d) for r, d in result.items() if (int(r[1:]) < 3) != (int(d[1:]) < 3)}


def test_only_member_of_an_agent_continues() -> None:
    strategy = pbt(space=MixedSearchSpace(MIX.spaces, {"a": 2, "b": 1}))
    assert copies(strategy, 1, 2, -100) == {"m00": "m01"}


def test_exploring_never_changes_the_agent() -> None:
    before = after(pbt(), 1, 2, 3, 100, 200)
    for a in pbt().decide(before):
        if a.donor:
            given = before.members[a.donor].snapshot_hparams
            assert list(a.hyperparameters) == list(given) == NAMES[given[AGENT]]
            assert a.hyperparameters[AGENT] == given[AGENT]
            assert a.hyperparameters["lr"] != given["lr"]


@pytest.mark.parametrize("broken", ["diverged", "given up"])
def test_rescue_uses_the_same_agent_or_a_fresh_start(broken: str) -> None:
    result = decided(pbt(), broken, 2, 3, broken, broken)
    assert (result["m00"].donor, result["m00"].parent) == ("m02", "m02/000000")
    for m in ("m03", "m04"):
        assert (result[m].donor, result[m].parent) == (None, None)
        assert result[m].note.endswith("starts afresh")
        assert list(result[m].hyperparameters) == NAMES["b"]
        assert result[m].hyperparameters[AGENT] == "b"


def test_tournament_stays_within_an_agent() -> None:
    result = decided(pbt(copy=frozenset({"hparams"}), explore=Explore(method="none")), 1, 2, 3, 100, 200)
    assert (result["m00"].parent, result["m00"].hyperparameters[AGENT]) == ("m00/000000", "a")
    assert result["m03"].hyperparameters == result["m04"].hyperparameters


# Kinds that compete


def test_across_agents_the_worst_takes_the_best_agent() -> None:
    strategy = pbt(across=True, exploit={"bottom": 0.2, "top": 0.2}, explore=Explore(method="none"))
    before = after(strategy, 1, 2, 3, 100, 200)
    result = {a.member: a for a in strategy.decide(before)}
    assert {m: a.donor for m, a in result.items() if a.donor} == {"m00": "m04"}
    copied, given = result["m00"], before.members["m04"].snapshot_hparams
    assert (copied.parent, copied.note) == ("m04/000000", "exploit m04, rank 1 of 5")
    assert (copied.hyperparameters, given[AGENT]) == (given, "b")


def test_member_continues_as_its_new_agent() -> None:
    strategy = pbt(across=True, exploit={"bottom": 0.2, "top": 0.2}, explore=Explore(when="always"))
    population = after(strategy, 1, 2, 3, 100, 200)
    assert population.agents == {"a": 3, "b": 2}
    second = strategy.decide(population)
    population.record(decision(*second))
    assert population.agents == {"a": 2, "b": 3}
    for a in second:
        population.record(answer(trained(a, 150.0 if a.member == "m00" else float(a.member[1:]))))
    third = {a.member: a for a in strategy.decide(population)}
    moved = third["m00"].hyperparameters
    assert list(moved) == NAMES["b"]
    assert MIX.spaces["b"].contains(moved)
    assert moved["eps"] != population.members["m00"].snapshot_hparams["eps"]
    assert third["m00"].parent == "m00/000001"
    assert (third["m01"].donor, third["m01"].hyperparameters[AGENT]) == ("m00", "b")


def test_across_agents_any_healthy_member_rescues() -> None:
    result = decided(pbt(across=True), "diverged", "given up", "diverged", "given up", 5)
    assert {a.donor for m, a in result.items() if m != "m04"} == {"m04"}
    assert {a.hyperparameters[AGENT] for a in result.values()} == {"b"}


def test_reference_members_donate_but_never_change_agent() -> None:
    strategy = pbt(across=True, references=1)
    assert copies(strategy, 9, 1, 1, 0, 0, seed=1)
    for seed in range(10):
        assert "m00" not in copies(strategy, 0, 9, 9, 9, 9, seed=seed)
    assert copies(pbt(across=True, references=1, exploit={"top": 0.2}), 9, 8, 8, 8, 0)["m04"] == "m00"


def test_agent_without_members_counts_zero() -> None:
    strategy = pbt(across=True, exploit={"bottom": 0.6, "top": 0.2})
    population = after(strategy, 9, 8, 7, 0, 1)
    population.record(decision(*strategy.decide(population)))
    assert population.agents == {"a": 5, "b": 0}
