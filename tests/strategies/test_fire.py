"""FIRE PBT: its rules on hand-made curves, the guarantees of a strategy, and what it reaches on the deceptive toys."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from pbtrl.build.factory import make_header, make_strategy
from pbtrl.config.load import load
from pbtrl.config.schema import Config
from pbtrl.core.messages import Assignment, Report
from pbtrl.core.population import Population
from pbtrl.core.records import Record, RunChanged, RunResumed
from pbtrl.storage.journal import digest
from pbtrl.strategies.fire import FIRE, _Decision
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.rules import Exploit, Explore
from pbtrl.testing.fakes import LAST, died, trained
from pbtrl.testing.strategies import SPACE, BaseConformance
from pbtrl.trainables.chebykin import Chebykin
from pbtrl.trainables.noisy_quadratic import NoisyQuadratic
from tests.fakes import answer, decision
from tests.strategies.simulation import Simulation, simulate

ROLES = {
    **dict.fromkeys(("m00", "m01", "m02", "m03"), "p1"),
    **dict.fromkeys(("m04", "m05"), "p2"),
    **dict.fromkeys(("m06", "m07"), "evaluator"),
}
RULES = Exploit(bottom=0.25, top=0.25)


def fire(*, synchronous: bool = True, explore: str = "none", **changes: Any) -> FIRE:
    pbt = PBT(
        space=SPACE, slice_steps=100, horizon=600, exploit=RULES, synchronous=synchronous,
        explore=Explore(method=explore),  # type: ignore[arg-type]
    )  # fmt: skip
    return replace(FIRE(pbt=pbt, interval=10, max_eval_steps=300, min_steps_before_eval=100), **changes)


class Synchronous(BaseConformance):
    """All guarantees of a strategy; with one point of the curve per slice."""

    synchronous = True
    interval = 100
    size = 8

    @classmethod
    def strategy(cls) -> FIRE:
        return fire(synchronous=cls.synchronous, explore="perturb", interval=cls.interval)

    @classmethod
    def population(cls) -> Population:
        return Population(cls.size, 3, cls.rule, roles=ROLES, candidate_roles=("p1",))

    def test_evaluations_occur(self, records: list[Record]) -> None:
        copies = [a for _, assignments in self.moments(records) for a in assignments if a.donor]
        assert any(a.hparams_donor for a in copies)

    def test_only_evaluations_and_promotions_leave_a_sub_population(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            for a in (a for a in assignments if a.donor):
                receiver, donor = before.members[a.member], before.members[a.donor or ""]
                if receiver.is_evaluator:
                    assert donor.role == "p2"
                    assert before.members[a.hparams_donor or ""].role == "p1"
                    assert a.hyperparameters == before.members[a.hparams_donor or ""].snapshot_hparams
                elif a.inherit:
                    assert (receiver.role, donor.role) == ("p1", "evaluator")
                    assert a.hyperparameters == donor.snapshot_hparams
                else:
                    assert receiver.role == donor.role

    def test_an_evaluator_never_explores(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            for a in assignments:
                member = before.members[a.member]
                if member.is_evaluator and not a.donor:
                    assert a.hyperparameters == member.hyperparameters
                    assert a.parent == member.snapshot

    def test_at_most_one_evaluator_per_parent(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            under_way = {
                e.id: e.copy.donor
                for e in before.members.values()
                if e.is_evaluator and e.copy and e.pending and e.healthy
                if before.members[e.copy.donor or ""].copied_at < e.copied_at
                if before.members[e.copy.hparams_donor or ""].copied_at < e.copied_at
                if before.members[e.copy.donor or ""].healthy and before.members[e.copy.hparams_donor or ""].healthy
            }
            begun = [a.donor for a in assignments if before.members[a.member].is_evaluator and a.donor]
            assert len(set(begun)) == len(begun)
            assert not set(begun) & set(under_way.values())


class TestSynchronous(Synchronous):
    pass


class TestAsynchronous(Synchronous):
    synchronous = False


def overtaking(a: Assignment, attempt: int) -> Report:
    """Report curves of ten points, on which every evaluator is above its child."""
    level = {"p1": 1.0, "p2": 0.0, "evaluator": 2.0}[ROLES[a.member]]
    values = level + np.random.default_rng(a.seed).uniform(0.0, 0.5, 10)
    curve = tuple((a.start + 10 * (i + 1), float(v)) for i, v in enumerate(values))
    return replace(trained(a, float(values[-1])), curve=curve)


class Promoting(Synchronous):
    """The same guarantees in runs with promotions."""

    interval = 10

    @pytest.fixture(scope="class", params=[None, 1], ids=["in-order", "any-order"])
    @classmethod
    def records(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
        return cls.run(tmp_path_factory.mktemp("run"), overtaking, request.param)

    def test_promotions_occur(self, records: list[Record]) -> None:
        promotions = [a for _, assignments in self.moments(records) for a in assignments if a.inherit]
        assert promotions
        assert {ROLES[a.member] for a in promotions} == {"p1"}
        assert {ROLES[a.donor or ""] for a in promotions} == {"evaluator"}


class TestSynchronousPromoting(Promoting):
    pass


class TestAsynchronousPromoting(Promoting):
    synchronous = False


# --- rules, on hand-made curves ---


@dataclass
class Story:
    """Population whose members report hand-made curves; every decision is the strategy's own.

    Attributes:
        decided: the assignments of the last decision, by member.
    """

    strategy: FIRE = field(default_factory=fire)
    roles: Mapping[str, str] = field(default_factory=lambda: ROLES)
    decided: dict[str, Assignment] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.population = Population(len(self.roles), 3, LAST, roles=self.roles, candidate_roles=("p1",))
        self.decide()

    def decide(self) -> dict[str, Assignment]:
        assignments = self.strategy.decide(self.population)
        self.population.record(decision(*assignments))
        self.decided = {a.member: a for a in assignments}
        return self.decided

    def report(
        self, curves: Mapping[str, Sequence[float] | float], *, diverged: Sequence[str] = (), after: int = 100
    ) -> None:
        """Let members end their slices, each with a curve of ten points or at a constant level.

        An early stop cuts the slices and their curves `after` some steps.
        """
        for name, given in curves.items():
            a = self.population.members[name].pending
            assert a is not None
            values = [given] * 10 if isinstance(given, int | float) else list(given)
            points = [(a.start + 10 * (i + 1), float(v)) for i, v in enumerate(values)]
            step = min(a.start + after, a.stop)
            curve = tuple((s, v) for s, v in points if s <= step)
            message = Report(
                a.id, name, step, a.hyperparameters, returns=(curve[-1][1],), lengths=(1,), curve=curve,
                diverged=name in diverged,
            )  # fmt: skip
            self.population.record(answer(message))

    def turn(self, curves: Mapping[str, Sequence[float] | float], **kwargs: Any) -> dict[str, Assignment]:
        """Report for all members that train, then decide. Members that are not named stay at 0."""
        training = [m.id for m in self.population.members.values() if m.pending]
        self.report({name: curves.get(name, 0.0) for name in training}, **kwargs)
        return self.decide()


def ramp(start: float, stop: float) -> list[float]:
    return [float(v) for v in np.linspace(start, stop, 10)]


START = {"m00": 1.0, "m01": 0.9, "m04": 0.5, "m05": 0.4}


def evaluating(exploit: Exploit = RULES) -> Story:
    """Both parents are evaluated under m00: m04 by m06, m05 by m07."""
    strategy = fire()
    story = Story(strategy=replace(strategy, pbt=replace(strategy.pbt, exploit=exploit)))
    story.turn(START)
    assert {m: (a.donor, a.hparams_donor) for m, a in story.decided.items() if a.hparams_donor} == {
        "m06": ("m04", "m00"),
        "m07": ("m05", "m00"),
    }
    return story


def test_evaluators_wait_for_the_first_slice_of_the_parents() -> None:
    assert set(Story().decided) == {f"m0{i}" for i in range(6)}


def test_evaluator_combines_a_parents_weights_and_a_childs_hparams() -> None:
    story = evaluating()
    assert story.decided["m06"].parent == "m04/000000"
    assert story.decided["m06"].hyperparameters == story.population.members["m00"].snapshot_hparams
    assert story.decided["m06"].note == "evaluates m04 under m00"


def test_a_child_takes_over_an_evaluator_that_leads_significantly() -> None:
    story = evaluating()
    story.turn({"m00": 1.0, "m01": 0.9, "m06": ramp(0.5, 1.6), "m07": 0.4})
    story.turn({"m00": 1.0, "m01": 0.9, "m06": ramp(1.7, 3.0), "m07": 0.4})
    promotion = story.decided["m00"]
    assert (promotion.donor, promotion.inherit, promotion.parent) == ("m06", True, "m06/000001")
    assert promotion.hyperparameters == story.population.members["m06"].snapshot_hparams
    assert promotion.note.startswith("promotion of m06: ")
    child, evaluator = story.population.members["m00"], story.population.members["m06"]
    assert child.fitness == 3.0
    assert child.window == [3.0]
    assert len(child.curve.points) == 20
    assert child.curve.start == promotion.start - 200
    assert evaluator.pending
    assert evaluator.pending.hparams_donor, "it begins another evaluation at once"


@pytest.mark.parametrize(("points", "promoted"), [([8.0, 12.0], None), ([8.0, 12.0, 16.0], "m06")])
def test_two_points_above_the_child_are_no_success_yet(points: list[float], promoted: str | None) -> None:
    story = evaluating()
    story.turn({"m00": [0.8, 1.2] * 5, "m01": 0.7, "m06": points, "m07": 0.4})
    assert story.decided["m00"].donor == promoted


def test_an_evaluation_with_overlap_stops_when_it_loses() -> None:
    story = evaluating()
    story.turn({"m00": ramp(1.1, 2.0), "m01": 0.9, "m06": ramp(1.05, 1.0), "m07": 0.4})
    assert story.decided["m06"].note == "evaluates m04 under m00; before, m04 under m00: p 1 above 0.68"


@pytest.mark.parametrize(
    ("level", "why"), [(0.5, "never at the level of m00"), (5.0, "above m00, but does not improve faster")]
)
def test_an_evaluation_without_overlap_stops_after_the_longest_time(level: float, why: str) -> None:
    story = evaluating()
    for _ in range(2):
        story.turn({"m00": 1.0, "m01": 0.9, "m06": level, "m07": 0.4})
        assert not story.decided["m06"].donor
    story.turn({"m00": 1.0, "m01": 0.9, "m06": level, "m07": 0.4})
    assert f"m04 under m00: {why}" in story.decided["m06"].note


def test_an_evaluation_is_lost_with_its_child() -> None:
    story = evaluating()
    story.turn({"m00": 0.1, "m01": 5.0, "m02": 1.0, "m03": 1.0, "m06": 0.5, "m07": 0.4})
    assert story.decided["m00"].donor == "m01"
    assert story.decided["m06"].hparams_donor == "m01"
    assert "one of them copies another member" in story.decided["m06"].note


def test_an_evaluation_is_lost_with_its_parent() -> None:
    story = evaluating()
    story.turn({"m00": 1.0, "m01": 0.9, "m06": ramp(0.4, 0.9), "m07": ramp(0.4, 0.5)})
    assert story.decided["m05"].donor == "m04", "its score is lower"
    assert "m07" not in story.decided, "m05 was replaced, and no parent is free"
    story.turn({"m00": 1.0, "m01": 0.9})
    assert story.decided["m07"].donor == "m05"
    assert "before, m05 under m00: one of them has copied another member" in story.decided["m07"].note


def test_parents_are_ranked_by_the_lead_of_their_evaluators() -> None:
    story = evaluating()
    story.turn({"m00": 1.0, "m01": 0.9, "m04": 9.0, "m05": 0.1, "m06": ramp(0.4, 0.5), "m07": ramp(0.4, 0.9)})
    assert story.decided["m04"].donor == "m05", "although its fitness is higher"
    assert story.decided["m04"].scalars["fire/score"] == pytest.approx(-0.4, abs=0.1)
    assert story.decided["m05"].scalars["fire/score"] == pytest.approx(0.4, abs=0.1)
    assert story.decided["m04"].note.startswith("exploit m05, score 0.")


@pytest.mark.parametrize(("gap", "donor"), [(0.3, "m05"), (0.5, None)])
def test_gap_between_scores_is_one_of_fitness(gap: float, donor: str | None) -> None:
    """The evaluator of m05 leads by 0.4, so the scores are 0.4 and -0.4."""
    story = evaluating(replace(RULES, min_gap=gap))
    story.turn({"m00": 1.0, "m01": 0.9, "m06": ramp(0.4, 0.5), "m07": ramp(0.4, 0.9)})
    assert story.decided["m04"].donor == donor


def test_the_second_evaluator_of_a_promoted_child_begins_another() -> None:
    story = evaluating()
    story.turn({"m00": 1.0, "m01": 0.9, "m06": ramp(0.5, 1.2), "m07": ramp(0.5, 1.2)})
    story.turn({"m00": 1.0, "m01": 0.9, "m06": ramp(1.3, 3.0), "m07": ramp(1.3, 2.8)})
    assert story.decided["m00"].donor == "m06", "the better one"
    assert story.decided["m05"].donor == "m04"
    assert "m07" not in story.decided, "m00 was replaced, and no parent is free"
    story.turn({"m00": 3.0})
    assert story.decided["m07"].donor == "m05"


def test_a_diverged_evaluator_begins_another_and_its_child_is_left() -> None:
    story = evaluating()
    story.turn({**START, "m06": 0.5, "m07": 0.4}, diverged=["m06"])
    assert story.decided["m06"].donor
    assert "diverged" in story.decided["m06"].note
    assert story.decided["m00"].donor is None


def test_evaluator_begins_another_evaluation_without_exploits() -> None:
    """It needs no donor; a failed member of a sub-population does."""
    strategy = fire()
    story = Story(strategy=replace(strategy, pbt=replace(strategy.pbt, exploit=Exploit(method="none"))))
    story.turn(START)
    story.report({**START, "m02": 0.0, "m03": 0.0, "m06": 0.5, "m07": 0.4}, diverged=["m01", "m06"])
    assert story.strategy.retired(story.population) == ["m01"]
    assert story.decide()["m06"].hparams_donor == "m00"
    assert "diverged" in story.decided["m06"].note


def test_resumed_evaluator_without_a_snapshot_begins_another_evaluation() -> None:
    story = evaluating()
    for a in story.population.pending:
        story.population.record(answer(died(a)))
    story.population.record(RunResumed())
    assert story.decide()["m06"].note == "evaluates m04 under m00; before, m04 under m00: given up"
    assert story.decided["m00"].parent == "m00/000000"


def test_a_diverged_member_copies_inside_its_sub_population() -> None:
    story = evaluating()
    story.turn({**START, "m06": 0.5, "m07": 0.4}, diverged=["m04", "m01"])
    assert story.decided["m04"].donor == "m05"
    assert story.decided["m01"].donor == "m00"


def test_longest_waiting_parent_is_next() -> None:
    roles = {**{f"m0{i}": "p1" for i in range(2)}, **{f"m0{i}": "p2" for i in range(2, 6)}, "m06": "evaluator"}
    story = Story(strategy=fire(max_eval_steps=100), roles=roles)
    order = []
    for _ in range(5):
        story.turn({"m00": 5.0, "m01": 4.0})
        order.append(story.decided["m06"].donor)
    assert order == ["m02", "m03", "m04", "m05", "m02"]


def test_parent_of_a_retired_evaluator_is_evaluated_again() -> None:
    roles = {"m00": "p1", "m01": "p1", **{f"m0{i}": "p2" for i in (2, 3, 4)}, "m05": "evaluator", "m06": "evaluator"}
    story = Story(strategy=fire(max_eval_steps=100), roles=roles)
    story.turn({"m00": 5.0, "m01": 4.0})
    assert story.decided["m06"].donor == "m03"
    story.population.record(RunChanged({}, ("m06",)))
    order = []
    for _ in range(4):
        story.turn({"m00": 5.0, "m01": 4.0})
        order.append(story.decided["m05"].donor)
    assert order == ["m04", "m03", "m02", "m04"]


def test_parent_waits_from_the_end_of_its_evaluation() -> None:
    """The evaluation of m02 is as long as three of its rivals' and was the first to begin."""
    roles = {"m00": "p1", "m01": "p1", **{f"m0{i}": "p2" for i in (2, 3, 4)}, "m05": "evaluator", "m06": "evaluator"}
    story = Story(roles=roles)
    story.turn({"m00": 1.0, "m01": 0.9})
    assert [story.decided[e].donor for e in ("m05", "m06")] == ["m02", "m03"]
    for other in ("m04", "m03"):
        story.turn({"m00": ramp(1.1, 2.0), "m01": 0.9, "m05": 0.5, "m06": ramp(1.05, 1.0)})
        assert [story.decided[e].donor for e in ("m05", "m06")] == [None, other]
    story.turn({"m00": ramp(1.1, 2.0), "m01": 0.9, "m05": 0.5, "m06": ramp(1.05, 1.0)})
    assert [story.decided[e].donor for e in ("m05", "m06")] == ["m04", "m02"]
    assert story.population.members["m03"].evaluated_at == story.population.decisions


def test_ranking_and_best_are_of_the_first_sub_population() -> None:
    story = evaluating()
    story.turn({"m00": 1.0, "m01": 2.0, "m04": 9.0, "m06": 8.0})
    assert [m.id for m in story.population.ranking()] == ["m01", "m00", "m03"], "m02 has just copied another one"
    assert [m.id for m in story.population.candidates] == ["m00", "m01", "m02", "m03"]


def test_asynchronous_evaluator_holds_its_success_until_the_child_decides() -> None:
    story = Story(strategy=fire(synchronous=False))
    story.report(START)
    story.decide()
    assert story.decided["m06"].hparams_donor == "m00"
    story.report({"m06": ramp(0.5, 1.6)})
    assert story.decide()["m06"].donor is None
    story.report({"m06": ramp(1.7, 3.0)})
    assert story.decide() == {}, "m00 still trains"
    story.report({"m00": 1.0})
    decided = story.decide()
    assert decided["m00"].inherit
    assert decided["m00"].donor == "m06"
    assert decided["m06"].hparams_donor, "free at once"


def test_asynchronous_evaluator_forgets_a_success_that_its_child_outgrew() -> None:
    story = Story(strategy=fire(synchronous=False))
    story.report(START)
    story.decide()
    story.report({"m06": ramp(0.5, 1.6)})
    story.decide()
    story.report({"m06": ramp(1.7, 3.0)})
    assert story.decide() == {}
    story.report({"m00": ramp(3.5, 9.0)})
    assert not story.decide()["m00"].inherit


CHILD = [0.8, 1.2] * 5
LEADING = [float(v) for v in range(8, 48, 4)]


def test_evaluator_of_a_finished_child_begins_another_evaluation() -> None:
    story = Story(strategy=fire(synchronous=False))
    story.report(START)
    story.decide()
    while story.population.members["m00"].step < 600:
        story.report({"m00": CHILD})
        story.decide()
    story.report({"m06": LEADING})
    assert story.decide()["m06"].hparams_donor == "m01", "m00 is the best, but will never decide again"
    assert story.decided["m06"].note.endswith("before, m04 under m00: m00 has finished")


def test_finished_evaluator_neither_scores_nor_holds_its_parent() -> None:
    story = Story(strategy=fire(synchronous=False, max_eval_steps=10_000))
    story.report(START)
    story.decide()
    while story.population.members["m06"].step < 600:
        story.report({"m06": 0.5})
        story.decide()
    story.report({"m04": 0.5})
    assert story.decide()["m04"].scalars == {}
    story.report({"m07": 0.4}, diverged=["m07"])
    assert story.decide()["m07"].donor == "m04"


def test_newest_evaluation_of_a_parent_is_its_score() -> None:
    """The evaluators m06 and m07 stop together; m06 takes over the parent of m07, which then has none to begin with."""
    roles = {"m00": "p1", "m01": "p1", "m02": "p2", "m03": "p2", "m04": "p2"}
    story = Story(
        strategy=fire(synchronous=False), roles={**roles, **dict.fromkeys(("m05", "m06", "m07"), "evaluator")}
    )
    story.report(dict.fromkeys(roles, 0.0) | {"m00": 5.0})
    story.decide()
    story.report({"m05": ramp(0.4, 0.9), "m06": 0.3, "m07": 0.3})
    story.decide()
    story.report({"m03": 0.0, "m06": 0.3, "m07": 0.3}, diverged=["m03", "m07"])
    assert story.decide()["m06"].donor == "m04"
    story.report({"m06": ramp(0.4, 2.0)})
    story.decide()
    story.report({"m02": 0.0})
    assert story.decide()["m02"].scalars["fire/score"] < 0.0


# --- slices that an early stop cut ---


@pytest.mark.parametrize("torn", [("m00", "m06"), ("m06",), tuple(f"m0{i}" for i in range(6))], ids="-".join)
def test_torn_members_end_their_slices_before_anything_else(torn: tuple[str, ...]) -> None:
    """Although m06 already leads significantly."""
    story = evaluating()
    curves = {"m00": CHILD, "m01": 0.7, "m06": LEADING, "m07": 0.4}
    values = {m: curves.get(m, 0.0) for m in ROLES}
    story.report({m: values[m] for m in torn}, after=40)
    story.report({m: values[m] for m in ROLES if m not in torn})
    assert set(story.decide()) == set(torn)
    for m, a in story.decided.items():
        assert (a.donor, a.parent, a.stop - a.start) == (None, story.population.members[m].snapshot, 60)
    story.turn({**curves, "m06": LEADING[4:]})
    assert story.decided["m00"].donor == "m06"


def test_torn_child_is_promoted_only_at_the_end_of_its_slice() -> None:
    story = Story(strategy=fire(synchronous=False))
    story.report({**START, "m00": CHILD})
    story.decide()
    story.report({"m06": LEADING}, after=40)
    assert (story.decide()["m06"].donor, story.decided["m06"].stop) == (None, 100)
    story.report({"m06": LEADING[4:]})
    assert story.decide() == {}, "m00 still trains"
    story.report({"m00": CHILD}, after=40)
    assert {m: (a.donor, a.stop) for m, a in story.decide().items()} == {"m00": (None, 200)}
    story.report({"m00": CHILD})
    assert story.decide()["m00"].donor == "m06"


def test_everything_ends_with_the_first_sub_population() -> None:
    story = evaluating()
    while story.turn({"m00": 1.0}):
        pass
    steps = {m.id: m.step for m in story.population.members.values()}
    assert steps["m00"] == steps["m01"] == 600
    assert steps["m06"] == 500, "it waited for one slice"


# --- equal to PBT without evaluators; toys ---


def toy(name: str, *changes: str, seed: int) -> Simulation:
    config = load(name, [f"seed={seed}", *changes])
    make = {"chebykin": Chebykin, "noisy_quadratic": NoisyQuadratic}[config.trainable.name if config.trainable else ""]
    speeds = {}
    if config.population.mode == "async":
        rng = np.random.default_rng(seed)
        speeds = {m: float(rng.uniform(1, 2)) for m in population(config).members}
    return simulate(make_strategy(config), population(config), make, config.curve_interval, speeds=speeds)


def population(config: Config) -> Population:
    return make_header(config, "toy").population()


def true_quality(run: Simulation) -> float:
    """Q of the best member without evaluation noise."""
    best = run.population.best
    assert best
    if "mean" not in (state := run.states[best.snapshot or ""]):
        return best.fitness or 0.0
    chosen = NoisyQuadratic(np.random.default_rng(0), evaluation_noise=0.0)
    chosen.load_state_dict(state)
    return chosen.evaluate(np.random.default_rng(0))


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_one_sub_population_is_pbt(mode: str) -> None:
    changes = (f"population.mode={mode}", "population.size=6", "budget.env_steps_per_member=1000")
    alone = toy("toy_deceptive", *changes, "strategy.subpopulations=[6]", seed=1)
    assert digest(alone.lines) == digest(toy("toy_deceptive", *changes, "strategy.name=pbt", seed=1).lines)
    assert any(a["donor"] for line in alone.lines if line["kind"] == "decision" for a in line["assignments"])


def test_steps_of_evaluators_count() -> None:
    run = toy("toy_deceptive", "budget.env_steps_per_member=500", seed=1)
    assert run.population.step == 16 * 500 + 6 * 400
    assert run.population.copies < sum(
        a["donor"] is not None for line in run.lines for a in line.get("assignments", ())
    )


def test_three_levels_promote_from_one_to_the_next() -> None:
    changes = ("population.size=36", "strategy.subpopulations=[8, 8, 8]", "budget.env_steps_per_member=1500")
    run = toy("toy_deceptive", *changes, seed=1)
    roles = {m.id: m.role for m in run.population.members.values()}
    promoted = {
        (roles[a["member"]], roles[a["donor"]])
        for line in run.lines for a in line.get("assignments", ()) if a.get("inherit")
    }  # fmt: skip
    assert promoted <= {("p1", "evaluator p2"), ("p2", "evaluator p3")}
    assert len(promoted) == 2


@pytest.mark.parametrize("name", ["toy_deceptive", "toy_chebykin"])
def test_fire_beats_pbt_where_greed_fails(name: str) -> None:
    assert true_quality(toy(name, seed=1)) > true_quality(toy(name, "strategy.name=pbt", seed=1)) + 0.1


@pytest.mark.slow
def test_deceptive_toy_over_ten_seeds() -> None:
    ours = [true_quality(toy("toy_deceptive", seed=seed)) for seed in range(10)]
    greedy = [true_quality(toy("toy_deceptive", "strategy.name=pbt", seed=seed)) for seed in range(10)]
    late = [true_quality(toy("toy_deceptive", "population.mode=async", seed=seed)) for seed in range(10)]
    assert statistics.median(ours) >= 3.0
    assert statistics.median(greedy) <= 2.8
    assert statistics.median(late) >= 2.9
    assert all(a > b for a, b in zip(ours, greedy, strict=True))


@pytest.mark.slow
def test_score_of_parents_matters_where_they_must_climb(monkeypatch: pytest.MonkeyPatch) -> None:
    ranked = [true_quality(toy("toy_deceptive_low", seed=seed)) for seed in range(10)]
    scores = _Decision._scores

    def drawn(self: _Decision, level: int) -> dict[str, float]:
        rng = self._population.rng("m00", self._population.decisions, "score")
        return {parent: float(rng.random()) for parent in scores(self, level)}

    monkeypatch.setattr(_Decision, "_scores", drawn)
    at_random = [true_quality(toy("toy_deceptive_low", seed=seed)) for seed in range(10)]
    assert statistics.mean(ranked) > statistics.mean(at_random)


@pytest.mark.slow
def test_chebykin_over_ten_seeds() -> None:
    ours = [true_quality(toy("toy_chebykin", seed=seed)) for seed in range(10)]
    greedy = [true_quality(toy("toy_chebykin", "strategy.name=pbt", seed=seed)) for seed in range(10)]
    assert statistics.median(ours) >= 1.13
    assert sum(q < 0.9546 for q in greedy) >= 9
