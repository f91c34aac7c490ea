"""What every strategy, executor and trainable promises; a new one inherits it by a short subclass."""

import copy
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pbtrl.core.dimensions import IntUniform, LogUniform
from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import FitnessRule, Population
from pbtrl.core.search_space import SearchSpace
from pbtrl.core.trainable import Trainable
from pbtrl.execution import Executor
from pbtrl.execution.host import Host
from pbtrl.execution.inline import Inline
from pbtrl.storage.journal import Journal, Line, digest, dumps, read_journal
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.strategies import Strategy
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.random_search import random_search
from pbtrl.training.controller import Controller
from tests.fakes import LAST, FakeExecutor, build, died, trained

SPACE = SearchSpace({"lr": LogUniform(low=1e-5, high=1e-2), "unroll": IntUniform(low=5, high=50)})


# Strategies


def steady(a: Assignment, attempt: int) -> Report:
    """Everybody reports; the fitness depends on the assignment alone."""
    return trained(a, float(a.seed % 1000))


def rough(a: Assignment, attempt: int) -> Report | Failure:
    """Much goes wrong: failures, some of them fatal, divergence, slices without an episode."""
    roll = np.random.default_rng([a.seed, attempt]).random()
    if roll < 0.15:
        return died(a, fatal=roll < 0.05)
    if roll < 0.2:
        return trained(a, diverged=True)
    return trained(a) if roll < 0.25 else trained(a, round(roll, 1))


def alike(a: Assignment, attempt: int) -> Report:
    """Nobody is better than anybody."""
    return trained(a, 1.0)


class StrategyConformance:
    """Subclasses give `strategy`; the rest has defaults.

    Attributes:
        edges: whether a member may ever depend on another one; baselines have no edge between members.
    """

    size: ClassVar[int] = 6
    slice_steps: ClassVar[int] = 100
    horizon: ClassVar[int] = 600
    space: ClassVar[SearchSpace] = SPACE
    rule: ClassVar[FitnessRule] = LAST
    edges: ClassVar[bool] = True

    @classmethod
    def strategy(cls) -> Strategy:
        raise NotImplementedError

    @classmethod
    def population(cls) -> Population:
        return Population(cls.size, 3, cls.rule)

    @pytest.fixture(
        scope="class",
        params=[(s, o) for s in (steady, rough, alike) for o in (None, 1)],
        ids=lambda p: f"{p[0].__name__}-{'in-order' if p[1] is None else 'any-order'}",
    )
    @classmethod
    def lines(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
        """The journal of a whole run."""
        path = tmp_path_factory.mktemp("run") / "journal.jsonl"
        script, order = request.param
        executor = FakeExecutor(script, None if order is None else np.random.default_rng(order))
        population, journal = cls.population(), Journal(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)
            reason = Controller(population, cls.strategy(), executor, journal).run()
        journal.close()
        assert reason == "budget"
        assert not population.pending
        return list(read_journal(path))

    def moments(self, lines: list[Line]) -> Iterator[tuple[Population, list[Assignment]]]:
        """Every decision, with the population that it was made for, as it stood then."""
        population = self.population()
        for line in lines:
            if line["kind"] == "decision":
                yield population, [Assignment(**a) for a in line["assignments"]]
            population.record(line)

    def test_decides_the_same_from_the_same_history(self, lines: list[Line]) -> None:
        fresh, moments = self.strategy(), 0
        for before, assignments in self.moments(lines):
            moments += 1
            state = repr(before.members)
            assert self.strategy().decide(before) == assignments
            assert fresh.decide(before) == assignments
            assert repr(before.members) == state
        assert moments >= self.horizon // self.slice_steps

    def test_decides_nothing_more_until_a_decision_is_recorded(self, lines: list[Line]) -> None:
        for before, assignments in self.moments(lines):
            after = copy.deepcopy(before)
            after.record({"kind": "decision", "assignments": [a.to_json() for a in assignments]})
            again = self.strategy().decide(after)
            assert not {a.member for a in again} & {a.member for a in assignments}

    def test_assigns_to_free_members_from_where_they_stand(self, lines: list[Line]) -> None:
        for before, assignments in self.moments(lines):
            assert len({a.member for a in assignments}) == len(assignments)
            for a in assignments:
                member = before.members[a.member]
                assert member.pending is None
                assert a.start == member.step
                assert a.id == f"{member.id}/{member.generation + 1:06d}"

    def test_stops_on_the_grid_and_never_beyond_the_horizon(self, lines: list[Line]) -> None:
        for _, assignments in self.moments(lines):
            for a in assignments:
                assert a.start < a.stop <= self.horizon
                assert a.stop % self.slice_steps == 0 or a.stop == self.horizon
                assert a.stop - a.start <= self.slice_steps

    def test_donors_are_healthy_and_parents_committed(self, lines: list[Line]) -> None:
        for before, assignments in self.moments(lines):
            for a in assignments:
                if a.donor:
                    donor, receiver = before.members[a.donor], before.members[a.member]
                    assert donor.healthy
                    assert donor.snapshot
                    assert a.donor != a.member
                    assert donor.ranked or not receiver.healthy
                committed = {m.snapshot for m in before.members.values()}
                assert a.parent is None or a.parent in committed
                assert a.parent is None or a.donor or a.parent.startswith(a.member)

    def test_hyperparameters_stay_inside_their_bounds_and_pass_through_json(self, lines: list[Line]) -> None:
        for before, assignments in self.moments(lines):
            for a in assignments:
                assert list(a.hyperparameters) == list(self.space.names)
                assert self.space.contains(a.hyperparameters)
            for a in self.strategy().decide(before):
                assert Assignment(**json.loads(dumps(a.to_json()))) == a

    def test_everybody_trains_to_the_horizon_or_is_retired(self, lines: list[Line]) -> None:
        end = self.population().replay(lines)
        assert len(end.members) == self.size
        for member in end.members.values():
            assert member.step == self.horizon or not member.healthy
            assert member.step <= self.horizon
        assert self.strategy().decide(end) == []

    def test_baselines_have_no_edge_between_members(self, lines: list[Line]) -> None:
        assigned = [a for _, assignments in self.moments(lines) for a in assignments]
        edges = [a for a in assigned if a.donor or (a.parent and not a.parent.startswith(a.member))]
        assert self.edges or not edges

    def test_different_seeds_start_differently(self) -> None:
        one, other = Population(self.size, 1, self.rule), Population(self.size, 2, self.rule)
        assert self.strategy().decide(one) != self.strategy().decide(other)


# Executors


def toy_space() -> SearchSpace:
    """For executors: values that the trainables take as they are."""
    return SearchSpace({"h0": LogUniform(low=0.1, high=1.0), "h1": LogUniform(low=0.1, high=1.0)})


class ExecutorConformance:
    """Subclasses give an `executor` that trains `groups` by what `tests.fakes.build` makes of `config`."""

    groups: ClassVar[Sequence[tuple[str, ...]]] = (("m00", "m01"), ("m02", "m03"))

    def meeting(self, fifo: Path) -> dict[str, Any]:
        """Settings with which `wait_for_the_middle` can tell that an endless slice stands in its middle."""
        return {"tell": str(fifo)}

    def wait_for_the_middle(self, executor: Executor, fifo: Path) -> None:
        assert fifo.read_bytes() == b"half way"

    def executor(self, members: Path, config: dict[str, Any], *, discard_on_stop: bool = False) -> Executor:
        raise NotImplementedError

    @pytest.fixture
    def start(self, tmp_path: Path) -> Any:
        """Starts executors, and ends them after the test."""
        started: list[Executor] = []

        def start(folder: str = "members", discard_on_stop: bool = False, **config: Any) -> Executor:
            started.append(self.executor(tmp_path / folder, config, discard_on_stop=discard_on_stop))
            return started[-1]

        yield start
        for executor in started:
            executor.close()

    def first(self, *, seed: int = 1) -> list[Assignment]:
        """The first slice of every member."""
        return random_search(toy_space(), slice_steps=8, horizon=8).decide(Population(4, seed))

    def test_answers_every_assignment_exactly_once(self, start: Callable[..., Executor]) -> None:
        executor, assignments = start(), self.first()
        executor.submit(assignments)
        answers = drain(executor)
        assert Counter(r.assignment for r in answers) == Counter(a.id for a in assignments)
        assert all(isinstance(r, Report) and r.step == 8 for r in answers)
        assert not executor.busy()

    def test_commits_the_snapshot_before_it_reports(self, start: Callable[..., Executor], tmp_path: Path) -> None:
        executor, store = start(), SnapshotStore(tmp_path / "members")
        executor.submit(self.first())
        while executor.busy():
            for report in executor.collect(0.1):
                tensors, state = store.load(report.assignment)
                assert tensors["steps"] == [8.0]
                assert state["report"]["assignment"] == report.assignment

    def test_gives_the_same_journal_and_the_same_weights_as_inline(
        self, start: Callable[..., Executor], tmp_path: Path, quick_disk: None
    ) -> None:
        here = Inline(Host(build('{"toy": true}'), tmp_path / "inline", [("m00", "m01", "m02", "m03")]))
        expected = run_toy(here, tmp_path / "inline.jsonl")
        found = run_toy(start(toy=True), tmp_path / "found.jsonl")
        assert digest(found) == digest(expected)
        assert any(a["donor"] for line in found if line["kind"] == "decision" for a in line["assignments"])
        assert weights(tmp_path / "members") == weights(tmp_path / "inline")
        assert len(weights(tmp_path / "inline")) == 4 * 5

    def test_a_failing_slice_gives_failures_and_leaves_the_rest_alone(
        self, start: Callable[..., Executor], tmp_path: Path
    ) -> None:
        executor = start(**{"raise": ["m01/000000"]})
        executor.submit(self.first())
        answers = {r.assignment: r for r in drain(executor)}
        failed = {k: r for k, r in answers.items() if isinstance(r, Failure)}
        assert set(failed) == {"m00/000000", "m01/000000"}
        assert all("ValueError: scripted" in r.error and not r.fatal for r in failed.values())
        assert "in advance" in (tmp_path / "members/m01/log.txt").read_text()

        executor.submit([a for a in self.first() if a.member == "m00"])
        executor.submit([a for a in self.first() if a.member == "m01"])
        answers = {r.assignment: r for r in drain(executor)}
        assert isinstance(answers["m00/000000"], Report)
        assert isinstance(answers["m01/000000"], Failure)

    def test_a_missing_parent_is_named(self, start: Callable[..., Executor]) -> None:
        executor, (a, *_) = start(), self.first()
        executor.submit([Assignment(**{**a.to_json(), "parent": "m03/000009"})])
        (failure,) = drain(executor)
        assert isinstance(failure, Failure)
        assert failure.snapshot == "m03/000009"
        assert "m03/000009" in failure.error

    @pytest.mark.parametrize("discard", [False, True])
    def test_a_stop_gives_partial_reports_or_none(
        self, start: Callable[..., Executor], tmp_path: Path, discard: bool
    ) -> None:
        os.mkfifo(tmp_path / "fifo")
        executor = start(discard_on_stop=discard, endless=True, **self.meeting(tmp_path / "fifo"))
        executor.submit([a for a in self.first() if a.member in self.groups[0]])
        self.wait_for_the_middle(executor, tmp_path / "fifo")
        executor.stop()
        answers, store = drain(executor), SnapshotStore(tmp_path / "members")
        assert [(r.assignment, getattr(r, "step", None)) for r in answers] == (
            [] if discard else [("m00/000000", 4), ("m01/000000", 4)]
        )
        for report in answers:
            assert store.load(report.assignment)[0]["steps"] == [4.0]
        assert len([*store.names("m00"), *store.names("m01")]) == len(answers)

    def test_a_stop_before_the_first_step_reports_nothing(self, start: Callable[..., Executor]) -> None:
        executor = start()
        executor.stop()
        assert drain(executor) == []

    def test_a_retry_reads_the_report_of_a_committed_snapshot_again(self, start: Callable[..., Executor]) -> None:
        first, again = start(), start(**{"raise": [a.id for a in self.first()]})
        first.submit(self.first())
        expected = {r.assignment: dumps(r.to_json()) for r in drain(first)}
        again.submit(self.first())
        assert {r.assignment: dumps(r.to_json()) for r in drain(again)} == expected


def drain(executor: Executor) -> list[Report | Failure]:
    """Everything until nothing is open any more."""
    answers: list[Report | Failure] = []
    while executor.busy():
        answers += executor.collect(0.1)
    return answers


def run_toy(executor: Executor, path: Path) -> list[Line]:
    """A short synchronous PBT run of the toy quadratic."""
    strategy = PBT(space=toy_space(), slice_steps=5, horizon=25, synchronous=True)
    journal = Journal(path)
    assert Controller(Population(4, 1, LAST), strategy, executor, journal).run() == "budget"
    journal.close()
    return list(read_journal(path))


def weights(members: Path) -> dict[str, str]:
    """SHA-256 of every committed tensor file."""
    files = members.glob("*/snapshots/[0-9]*/tensors.safetensors")
    return {f"{p.parts[-4]}/{p.parts[-2]}": hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


# Trainables


class TrainableConformance:
    """Subclasses give `make` and hyperparameters; the steps are kept small."""

    hyperparameters: ClassVar[dict[str, Any]] = {}
    steps: ClassVar[int] = 5

    def make(self, rng: np.random.Generator) -> Trainable:
        raise NotImplementedError

    def trained(self, seed: int = 0) -> Trainable:
        trainable = self.make(np.random.default_rng(seed))
        trainable.train(self.steps, self.hyperparameters, np.random.default_rng(1))
        return trainable

    def test_goes_on_from_a_loaded_state_as_if_nothing_had_happened(self) -> None:
        original, copy = self.trained(), self.make(np.random.default_rng(7))
        copy.load_state_dict(original.state_dict())
        for trainable in (original, copy):
            trainable.train(self.steps, self.hyperparameters, np.random.default_rng(2))
        assert_equal(original.state_dict(), copy.state_dict())
        assert original.evaluate(np.random.default_rng(3)) == copy.evaluate(np.random.default_rng(3))

    def test_a_state_does_not_change_when_training_goes_on(self) -> None:
        trainable = self.trained()
        state = trainable.state_dict()
        before = {k: v.copy() for k, v in state.items()}
        trainable.train(self.steps, self.hyperparameters, np.random.default_rng(2))
        assert_equal(state, before)
        assert any(not np.array_equal(v, before[k]) for k, v in trainable.state_dict().items())

    def test_a_loaded_state_is_not_shared(self) -> None:
        donor = self.trained()
        state = donor.state_dict()
        receiver = self.make(np.random.default_rng(7))
        receiver.load_state_dict(state)
        receiver.train(self.steps, self.hyperparameters, np.random.default_rng(2))
        assert_equal(donor.state_dict(), state)

    def test_evaluating_does_not_change_training(self) -> None:
        evaluated, plain = self.trained(), self.trained()
        fitness = evaluated.evaluate(np.random.default_rng(3))
        assert fitness == evaluated.evaluate(np.random.default_rng(3))
        for trainable in (evaluated, plain):
            trainable.train(self.steps, self.hyperparameters, np.random.default_rng(2))
        assert_equal(evaluated.state_dict(), plain.state_dict())

    def test_training_in_two_pieces_or_anew_is_the_same(self) -> None:
        assert_equal(self.trained().state_dict(), self.trained().state_dict())

    def test_returns_plain_numbers(self) -> None:
        trainable = self.make(np.random.default_rng(0))
        scalars = trainable.train(self.steps, self.hyperparameters, np.random.default_rng(1))
        assert all(type(v) is float for v in scalars.values())
        assert type(trainable.evaluate(np.random.default_rng(0))) is float


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Bit for bit."""
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
