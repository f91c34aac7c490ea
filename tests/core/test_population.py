"""The population as a fold over the journal."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pbtrl.core.dimensions import LogUniform
from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import FitnessRule, Population
from pbtrl.core.records import (
    Decision,
    Record,
    RunChanged,
    RunFinished,
    RunResumed,
    RunStopped,
    SnapshotLost,
    UnknownRecord,
)
from pbtrl.core.search_space import SearchSpace
from pbtrl.core.stopping import StopCriteria
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.rules import Exploit, Explore
from pbtrl.testing.fakes import LAST, between, died, trained
from tests.fakes import after_one_slice, answer, assign, decision


def test_member_names_sort_in_order() -> None:
    for size in (1, 10, 101):
        names = list(Population(size, 0).members)
        assert len(names) == size
        assert names == sorted(names)
    assert list(Population(2, 0).members) == ["m00", "m01"]


def test_assignment_is_pending_until_answered() -> None:
    population = Population(2, 0, LAST)
    one, two = assign(population, "m00"), assign(population, "m01")
    population.record(decision(one, two))
    assert population.pending == [one, two]
    population.record(answer(trained(one, 1.0)))
    assert population.pending == [two]
    population.record(answer(died(two), given_up=False))
    assert population.pending == [two]
    population.record(answer(died(two)))
    assert population.pending == []
    assert population.members["m01"].given_up


def test_report_moves_the_member() -> None:
    population = after_one_slice(1.0, 2.0)
    a = assign(population, "m00", parent="m01/000000", donor="m01", hyperparameters={"lr": 5.0})
    population.record(decision(a))
    member = population.members["m00"]
    assert (member.hyperparameters, member.snapshot_hparams) == ({"lr": 5.0}, {"lr": 0.1})
    population.record(answer(trained(a, 3.0, step=150)))
    assert (member.step, member.snapshot, member.parent) == (150, "m00/000001", "m01/000000")
    assert (member.fitness, member.snapshot_hparams) == (3.0, {"lr": 5.0})
    assert member.history == [(100, 1.0), (150, 3.0)]
    assert (population.step, population.copies) == (250, 1)


def test_copies_show_what_both_members_had_before_the_decision() -> None:
    """Also where a donor is itself a receiver of that decision."""
    population = after_one_slice(1.0, 2.0, 3.0)
    whole = assign(population, "m00", parent="m01/000000", donor="m01", hyperparameters={"lr": 5.0})
    partial = assign(population, "m01", parent="m01/000000", donor="m02", hyperparameters={"lr": 6.0})
    population.record(decision(partial, whole, assign(population, "m02", parent="m02/000000")))
    first, second = population.latest_copies
    assert (first.receiver, first.donor, first.kind, first.weights) == ("m01", "m02", "exploit", False)
    assert (first.fitness_before, first.fitness_after, first.hyperparameters_before) == (2.0, 3.0, {"lr": 0.2})
    assert (second.receiver, second.donor, second.kind, second.weights) == ("m00", "m01", "exploit", True)
    assert (second.fitness_before, second.fitness_after) == (1.0, 2.0)
    member = population.members["m00"]
    assert (member.previous_hparams, member.hyperparameters, member.fitness) == ({"lr": 0.1}, {"lr": 5.0}, None)
    population.record(answer(trained(whole, 3.0)))
    population.record(decision(assign(population, "m00", parent="m00/000001", hyperparameters={"lr": 7.0})))
    assert population.latest_copies == []
    assert member.previous_hparams == {"lr": 5.0}


@pytest.mark.parametrize("source", ["training", "evaluation"])
def test_null_return_is_nan(source: str) -> None:
    """The journal has null where a number was not finite."""
    population = Population(1, 0, FitnessRule(source, window=2, min_episodes=1))
    fitness: list[float | None] = []
    for returns in ([1.0, None], [2.0, 4.0]):
        a = assign(population, "m00")
        population.record(decision(a))
        report = replace(trained(a), returns=tuple(returns), evaluation=tuple(returns), lengths=(1, 1))
        population.record(answer(report))
        fitness.append(population.members["m00"].fitness)
        assert all(isinstance(value, float) for value in population.members["m00"].window)
    assert fitness == [None, 3.0]


def test_skipped_updates_are_counted() -> None:
    """Counts add up over slices and copies; older journals have none."""
    population = after_one_slice(1.0, 2.0)
    for donor, skipped in ((None, 3.0), ("m01", 4.0), (None, 0.0)):
        changes = {"donor": donor, "parent": "m01/000000"} if donor else {}
        a = assign(population, "m00", **changes)
        population.record(decision(a))
        scalars = {"learning/skipped_updates": skipped, "learning/updates": 9.0} if skipped else {}
        population.record(answer(replace(trained(a, 1.0), scalars=scalars)))
    assert [m.skipped_updates for m in population.members.values()] == [7, 0]


def test_answer_without_pending_assignment_is_refused() -> None:
    population = after_one_slice(1.0)
    stale = Assignment("m00/000000", "m00", None, 0, 100, {}, 1)
    before = repr(population.members)
    for message in (trained(stale, 1.0), died(stale)):
        with pytest.raises(ValueError, match="m00/000000, which is not open"):
            population.record(answer(message))
    assert repr(population.members) == before


def test_lines_about_other_things_are_ignored() -> None:
    population = after_one_slice(1.0)
    before = repr(population.members)
    for record in (RunResumed(), RunStopped(), RunFinished(), UnknownRecord("new")):
        population.record(record)
    assert repr(population.members) == before


# Fitness


def test_fitness_is_the_mean_of_the_window() -> None:
    population = after_one_slice([1.0, 2.0, 3.0, 6.0], rule=FitnessRule(window=3, min_episodes=3))
    member = population.members["m00"]
    assert member.window == [2.0, 3.0, 6.0]
    assert member.fitness == pytest.approx(11 / 3)
    a = assign(population, "m00")
    population.record(decision(a))
    population.record(answer(trained(a, 9.0)))
    assert member.window == [3.0, 6.0, 9.0]


def test_too_few_episodes_give_no_fitness() -> None:
    rule = FitnessRule(window=10, min_episodes=3)
    assert after_one_slice([1.0, 2.0], rule=rule).members["m00"].fitness is None
    assert after_one_slice([1.0, 2.0, 3.0], rule=rule).members["m00"].fitness == 2.0


@pytest.mark.parametrize("worst", [[math.nan], [math.inf], [-math.inf], [math.inf, -math.inf], [1e308, 1e308]])
def test_fitness_is_finite_or_absent(worst: list[float]) -> None:
    rule = FitnessRule(window=10, min_episodes=1)
    population = after_one_slice([*worst, 1.0], [1.0], rule=rule)
    assert population.members["m00"].fitness is None
    assert [m.id for m in population.ranking()] == ["m01"]


def test_fitness_may_ask_for_evaluation_episodes() -> None:
    population = Population(1, 0, FitnessRule(source="evaluation", window=10, min_episodes=1))
    a = assign(population, "m00")
    population.record(decision(a))
    report = Report(a.id, "m00", 100, {}, returns=(1.0,), lengths=(100,), evaluation=(7.0, 9.0))
    population.record(answer(report))
    assert population.members["m00"].fitness == 8.0
    for evaluation, fitness in (((900.0,), 900.0), ((), 900.0), ((5.0, 7.0), 6.0)):  # of the newest weights alone
        a = assign(population, "m00")
        population.record(decision(a))
        population.record(answer(Report(a.id, "m00", a.stop, {}, evaluation=evaluation)))
        assert population.members["m00"].fitness == fitness


SHORT, LONG = 9, 39  # and a step each in which the env resets


def played(population: Population, shorts: int, longs: int, **changes: Any) -> float | None:
    """Fitness after a slice of 100 steps with finished episodes of these lengths, each worth its length."""
    a = assign(population, "m00", **changes)
    population.record(decision(a))
    lengths = (SHORT,) * shorts + (LONG,) * longs
    population.record(answer(Report(a.id, "m00", a.stop, {}, returns=tuple(map(float, lengths)), lengths=lengths)))
    return population.members["m00"].fitness


def test_cut_episodes_need_half_of_each_slice_for_fitness() -> None:
    """Where slices cut episodes, at least half of a slice's steps must be in finished episodes."""
    population = Population(1, 0, FitnessRule(window=10, min_episodes=1, share=0.5, cut_episodes=True))
    assert played(population, 1, 1) == 24.0
    assert played(population, 4, 0) is None
    assert played(population, 0, 0) is None
    assert played(population, 0, 2) == 31.5  # the two before, and nothing of what did not count


def test_fitness_needs_half_of_the_steps_since_the_last_copy() -> None:
    """Before that mostly short episodes have ended. Some envs make these look good, others bad."""
    population = Population(2, 0, FitnessRule(window=10, min_episodes=1, share=0.5))
    assert played(population, 4, 0) is None
    assert played(population, 0, 2) == 19.0
    assert played(population, 0, 0) is None
    assert played(population, 0, 1) is None
    assert played(population, 0, 4) == 30.0  # the last ten, three of them short
    assert played(population, 4, 0, donor="m01", parent="m00/000000") is None
    assert played(population, 1, 3) == (5 * SHORT + 3 * LONG) / 8


def test_steps_of_episodes_that_the_metric_cannot_measure_count() -> None:
    population = Population(1, 0, FitnessRule(window=10, min_episodes=1, share=0.5))
    a = assign(population, "m00")
    population.record(decision(a))
    population.record(answer(Report(a.id, "m00", a.stop, {}, returns=(7.0,), lengths=(39, 39))))
    assert population.members["m00"].fitness == 7.0


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Decision((Assignment("m07/000001", "m07", None, 0, 100, {}, 1),)), "m07 is not the next new member"),
        (Decision((Assignment("m00/000001", "m01", None, 0, 100, {}, 1),)), "not the name of a slice of m01"),
        (Decision((Assignment("m01/000001", "m01", None, 0, 100, {}, 1, "m07"),)), "there is no member m07"),
        (
            Decision((Assignment("m01/000001", "m01", None, 0, 100, {}, 1, inherit=True),)),
            "inherits, but has no donor",
        ),
        (
            Decision((Assignment("m01/000001", "m01", None, 0, 100, {}, 1, hparams_donor="m00"),)),
            "copies hyperparameters, but has no donor",
        ),
        (Decision((), ("m07",)), "there is no member m07"),
        (RunChanged({}, ("m07",)), "there is no member m07"),
        (SnapshotLost("m01/000007", "missing"), "m01/000007 is lost, which was never made"),
    ],
)
def test_contradiction_to_earlier_records_is_refused(record: Record, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        after_one_slice(1.0, 2.0).record(record)


def test_copy_or_fresh_start_clears_the_members_history() -> None:
    for changes in ({"donor": "m01", "parent": "m01/000000"}, {"parent": None}):
        population = after_one_slice("diverged", 1.0)
        population.record(decision(Assignment(**{**assign(population, "m00").to_json(), **changes})))
        member = population.members["m00"]
        assert (member.window, member.fitness, member.healthy) == ([], None, True)
        assert member.step == 100


@pytest.mark.parametrize(("donor", "expected"), [(None, (None, 1.0, 1.0)), (2.0, (2.0, None, 2.0))])
def test_inheriting_member_keeps_its_rank_without_a_fitness_of_the_donor(donor: Any, expected: Any) -> None:
    population = after_one_slice(1.0, donor)
    population.record(decision(assign(population, "m00", parent="m01/000000", donor="m01", inherit=True)))
    member = population.members["m00"]
    assert (member.fitness, member.placeholder, member.rank_fitness) == expected


def test_diverged_member_does_not_rank_after_a_fresh_start() -> None:
    population = after_one_slice(1.0, 2.0)
    a = assign(population, "m00")
    population.record(decision(a))
    population.record(answer(trained(a, 99.0, diverged=True)))
    population.record(decision(Assignment(**{**assign(population, "m00").to_json(), "parent": None})))
    assert population.members["m00"].rank_fitness is None


def test_ranking_is_best_first_without_broken_members() -> None:
    population = after_one_slice(2.0, "diverged", 3.0, None, "given up", 3.0, -1.0)
    assert [m.id for m in population.ranking()] == ["m02", "m05", "m00", "m06"]
    best = population.best
    assert best is not None
    assert best.id == "m02"
    assert after_one_slice("given up", None).best is None


# Snapshots that must stay


def test_needed_snapshots() -> None:
    """Newest snapshots, their parents, and the parents of pending assignments are needed."""
    population = after_one_slice(1.0, 2.0, 3.0)
    for a in (assign(population, "m00"), assign(population, "m01", parent="m02/000000", donor="m02")):
        population.record(decision(a))
        population.record(answer(trained(a, 1.0)))
    expected = {"m00/000001", "m00/000000", "m01/000001", "m02/000000"}
    assert population.needed() == expected
    population.record(decision(assign(population, "m02", parent="m01/000001", donor="m01")))
    assert population.needed() == expected | {"m01/000001"}


# Randomness


def test_early_stop_sets_the_slices_last_step() -> None:
    population = Population(1, 0, LAST)
    population.record(decision(a := assign(population, "m00")))
    population.record(answer(trained(a, 1.0, step=30)))
    assert population.snapshot_origin["m00/000000"] == replace(a, stop=30)


def test_resume_checks_lost_snapshots_again() -> None:
    population = after_one_slice(1.0)
    population.record(SnapshotLost("m00/000000", "missing"))
    assert population.lost_snapshots == {"m00/000000"}
    population.record(RunResumed())
    assert population.lost_snapshots == set()


@pytest.mark.parametrize(
    ("fates", "given_up"), [(("given up", 1.0), [True, False]), (("given up",) * 2, [False, False])]
)
def test_resume_revives_members_only_if_none_survived(fates: Any, given_up: list[bool]) -> None:
    population = after_one_slice(*fates)
    population.record(RunResumed())
    assert [m.given_up for m in population.members.values()] == given_up


@pytest.mark.parametrize("second", ["p1", "p2", "evaluator"])
def test_resume_revives_candidates_beside_members_that_cannot_be_the_best(second: str) -> None:
    """Another candidate would have survived; the last evaluator never began."""
    roles = {"m00": "p1", "m01": second, "m02": "evaluator"}
    population = Population(3, 0, LAST, roles=roles, candidate_roles=("p1",))
    assert not population.all_given_up
    failed, healthy = assign(population, "m00"), assign(population, "m01")
    population.record(decision(failed, healthy))
    population.record(answer(died(failed)))
    population.record(answer(trained(healthy, 1.0)))
    population.record(Decision((), ("m00",)))
    survived = second == "p1"
    assert population.all_given_up != survived
    population.record(RunResumed())
    assert [(m.given_up, m.retired) for m in population.members.values()] == [(survived,) * 2, *[(False,) * 2] * 2]


def test_resume_leaves_members_retired_on_request_retired() -> None:
    population = after_one_slice(1.0, "given up")
    population.record(RunChanged({}, ("m00",)))
    assert population.all_given_up
    population.record(Decision((), ("m01",)))
    population.record(RunResumed())
    assert [(m.given_up, m.retired) for m in population.members.values()] == [(False, True), (False, False)]


def test_a_trial_that_its_strategy_retired_has_survived() -> None:
    population = after_one_slice(1.0, "given up")
    population.record(Decision((), ("m00", "m01")))
    assert not population.all_given_up


def test_parent_of_a_pending_copy_is_needed() -> None:
    """It stays needed while the donor continues from newer snapshots."""
    population = after_one_slice(1.0, 2.0)
    population.record(decision(assign(population, "m00", parent="m01/000000", donor="m01")))
    for _ in range(2):
        population.record(decision(a := assign(population, "m01")))
        population.record(answer(trained(a, 2.0)))
    assert population.needed() == {"m00/000000", "m01/000000", "m01/000001", "m01/000002"}


def test_random_streams_depend_on_seed_member_and_purpose() -> None:
    """And on the generation."""

    def draw(seed: int, *place: Any) -> float:
        return Population(20, seed).rng(*place).random()

    base = draw(1, "m01", 2, "explore")
    assert draw(1, "m01", 2, "explore") == base
    others = [
        (2, "m01", 2, "explore"),
        (1, "m02", 2, "explore"),
        (1, "m01", 3, "explore"),
        (1, "m01", 2, "tie"),
    ]
    assert len({draw(*other) for other in others} | {base}) == 5


def test_slice_seeds_differ_and_fit_a_signed_integer() -> None:
    population = Population(30, 1)
    seeds = [population.slice_seed(m, g) for m in population.members for g in range(30)]
    assert len(set(seeds)) == 900
    assert all(type(s) is int and 0 <= s < 2**63 for s in seeds)


# Any history whatever


SPACE = SearchSpace({"lr": LogUniform(low=1e-5, high=1e-2)})
EXPLOITS = [
    Exploit(method="truncation", bottom=0.5, top=0.3),
    Exploit(method="binary_tournament", ties="copy"),
]
HORIZON, EVERY = 40, 10


class AnyHistory(RuleBasedStateMachine):
    """PBT decides; members report, stop early, fail, are given up and diverge in any order."""

    @initialize(
        size=st.integers(1, 5),
        seed=st.integers(0, 9),
        exploit=st.sampled_from(EXPLOITS),
        synchronous=st.booleans(),
        references=st.integers(0, 1),
        when=st.sampled_from(["always", "after_copy"]),
    )
    def start(self, size: int, seed: int, exploit: Exploit, synchronous: bool, references: int, when: Any) -> None:
        self.size, self.seed = size, seed
        self.records: list[Record] = []
        self.committed: dict[str, int] = {}
        self.trained_steps = 0
        self.population = Population(size, seed, FitnessRule(window=2, min_episodes=1))
        self.strategy = PBT(
            space=SPACE,
            slice_steps=EVERY,
            horizon=HORIZON,
            exploit=exploit,
            explore=Explore(when=when),
            synchronous=synchronous,
            references=references,
        )

    def write(self, record: Record) -> None:
        self.records.append(record)
        self.population.record(record)

    @rule()
    def decide(self) -> None:
        decided = self.strategy.decide(self.population)
        assert decided == self.strategy.decide(self.population)
        assert not {a.member for a in decided} & {a.member for a in self.population.pending}
        for a in decided:
            assert a.generation == self.population.members[a.member].generation + 1
            assert a.start == self.population.members[a.member].step
            assert a.start < a.stop <= HORIZON
            assert a.parent is None or a.parent in self.committed
            assert a.donor is None or self.population.members[a.donor].healthy
            assert SPACE.contains(a.hyperparameters)
        assert decided or self.population.pending or self.over()
        if decided:
            self.write(decision(*decided))

    def over(self) -> bool:
        return all(m.step == HORIZON or not m.healthy for m in self.population.members.values())

    def answer(self, message: Report | Failure, *, given_up: bool = True) -> None:
        if isinstance(message, Report):
            self.trained_steps += message.step - self.population.members[message.member].step
            self.committed[message.assignment] = len(self.records)
        self.write(answer(message, given_up=given_up))

    def drawn(self, data: st.DataObject) -> Assignment:
        return data.draw(st.sampled_from(self.population.pending))

    @precondition(lambda self: self.population.pending)
    @rule(data=st.data(), returns=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=3))
    def report(self, data: st.DataObject, returns: list[float]) -> None:
        self.answer(trained(self.drawn(data), *returns))

    @precondition(lambda self: self.population.pending)
    @rule(data=st.data(), part=st.floats(0.1, 0.9), diverged=st.booleans())
    def stop_early(self, data: st.DataObject, part: float, diverged: bool) -> None:
        a = self.drawn(data)
        self.answer(trained(a, 1.0, step=max(a.start + 1, between(a, part)), diverged=diverged))

    @precondition(lambda self: self.population.pending)
    @rule(data=st.data(), given_up=st.booleans())
    def fail(self, data: st.DataObject, given_up: bool) -> None:
        self.answer(died(self.drawn(data)), given_up=given_up)

    @invariant()
    def the_population_is_constant(self) -> None:
        assert len(self.population.members) == self.size

    @invariant()
    def ranks_are_finite_and_ordered(self) -> None:
        ranks = [m.fitness for m in self.population.ranking()]
        assert all(f is not None and math.isfinite(f) for f in ranks)
        assert ranks == sorted(ranks, key=lambda f: -(f or 0.0))

    @invariant()
    def the_budget_is_conserved(self) -> None:
        assert self.population.step == self.trained_steps <= self.size * HORIZON

    @invariant()
    def needed_snapshots_were_committed(self) -> None:
        assert self.population.needed() <= set(self.committed)

    @invariant()
    def the_lineage_runs_forward_in_time(self) -> None:
        decisions = (record for record in self.records if isinstance(record, Decision))
        for a in (a for decided in decisions for a in decided.assignments):
            if a.parent and a.id in self.committed:
                assert self.committed[a.parent] < self.committed[a.id]

    @invariant()
    def replaying_the_journal_gives_the_same_state(self) -> None:
        again = Population(self.size, self.seed, FitnessRule(window=2, min_episodes=1)).replay(self.records)
        assert repr(again.members) == repr(self.population.members)
        assert again.copies == self.population.copies


AnyHistory.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyHistory = AnyHistory.TestCase


# Fitness by snapshot and by step


def test_fitness_of_each_snapshot_is_kept() -> None:
    """Absent after a copy without an episode, minus infinity after a divergence."""
    population = after_one_slice(1.0, 2.0, "diverged")
    a = assign(population, "m00", parent="m01/000000", donor="m01")
    population.record(decision(a))
    population.record(answer(trained(a)))
    expected = {"m00/000000": 1.0, "m01/000000": 2.0, "m02/000000": -math.inf, "m00/000001": None}
    assert population.snapshot_fitness == expected


def test_best_fitness_at_each_step_ignores_divergence_and_absence() -> None:
    population = after_one_slice(-2.0, -1.0, -3.0)
    for member, returns, diverged in (("m00", (-9.0,), False), ("m01", (5.0,), True), ("m02", (-8.0,), False)):
        a = assign(population, member)
        population.record(decision(a))
        population.record(answer(trained(a, *returns, diverged=diverged)))
    assert population.best_at == {100: -1.0, 200: -8.0}


def test_members_are_ranked_only_for_a_limit_of_fitness(monkeypatch: pytest.MonkeyPatch) -> None:
    population = Population(1, 0)
    monkeypatch.setattr(Population, "ranking", lambda self: pytest.fail("ranked"))
    assert StopCriteria(wall_clock=10, total_steps=10).reached(population, 1.0) is None
