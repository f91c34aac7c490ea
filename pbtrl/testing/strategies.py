"""Conformance tests of strategies: `BaseConformance` for all, and more for populations and for independent trials.

Every test uses journals of whole runs: without failures, with many failures, or with equal members, and with reports in
order or out of order.
"""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from pbtrl.core.dimensions import IntUniform, LogUniform
from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import FitnessRule, Population
from pbtrl.core.records import Decision, Record
from pbtrl.core.search_space import SearchSpace
from pbtrl.storage.journal import Journal, dumps, read_journal
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.strategies import Strategy
from pbtrl.testing.fakes import LAST, FakeExecutor, Script, died, trained
from pbtrl.training.controller import Controller

SPACE = SearchSpace({"lr": LogUniform(low=1e-5, high=1e-2), "unroll": IntUniform(low=5, high=50)})


def steady(a: Assignment, attempt: int) -> Report:
    """Report every assignment, with a fitness that depends only on the assignment."""
    return trained(a, float(a.seed % 1000))


def rough(a: Assignment, attempt: int) -> Report | Failure:
    """Answer with many failures, some of them fatal, with divergence, and with slices without an episode."""
    roll = np.random.default_rng([a.seed, attempt]).random()
    if roll < 0.15:
        return died(a, fatal=roll < 0.05)
    if roll < 0.2:
        return trained(a, diverged=True)
    return trained(a) if roll < 0.25 else trained(a, round(roll, 1))


def alike(a: Assignment, attempt: int) -> Report:
    """Report every assignment with the same fitness."""
    return trained(a, 1.0)


class BaseConformance:
    """Tests that every strategy must pass. Subclasses define `strategy`; the rest has defaults.

    Attributes:
        size: number of members.
        slice_steps: env steps between two decisions about a member.
        horizon: budget of a member (env steps).
        space: search space.
        rule: fitness rule.
        draws: whether the first hyperparameters are drawn; False for a strategy that starts with given ones.
    """

    size: ClassVar[int] = 6
    slice_steps: ClassVar[int] = 100
    horizon: ClassVar[int] = 600
    space: ClassVar[SearchSpace] = SPACE
    rule: ClassVar[FitnessRule] = LAST
    draws: ClassVar[bool] = True

    @classmethod
    def strategy(cls) -> Strategy:
        """Make a new instance of the strategy."""
        raise NotImplementedError

    @classmethod
    def population(cls) -> Population:
        """Make the population before the first decision."""
        return Population(cls.size, 3, cls.rule)

    @pytest.fixture(
        scope="class",
        params=[(s, o) for s in (steady, rough, alike) for o in (None, 1)],
        ids=lambda p: f"{p[0].__name__}-{'in-order' if p[1] is None else 'any-order'}",
    )
    @classmethod
    def records(cls, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
        """Journal of a whole run."""
        return cls.run(tmp_path_factory.mktemp("run"), *request.param)

    @classmethod
    def run(cls, folder: Path, script: Script, order: int | None = None) -> list[Record]:
        """Run the strategy to its end; returns the journal. `order` is the seed of a random order of reports."""
        path = RunDirectory(folder).journal_path
        executor = FakeExecutor(script, None if order is None else np.random.default_rng(order))
        population, journal = cls.population(), Journal(path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)
            reason = Controller(population, cls.strategy(), executor, journal).run()
        journal.close()
        assert reason == "budget"
        assert not population.pending
        return list(read_journal(path))

    def moments(self, records: list[Record]) -> Iterator[tuple[Population, list[Assignment]]]:
        """Yield every decision, with the population at that time."""
        population = self.population()
        for record in records:
            if isinstance(record, Decision):
                population.free = record.free or 0
                yield population, list(record.assignments)
            population.record(record)

    def test_decides_the_same_from_the_same_history(self, records: list[Record]) -> None:
        fresh, moments = self.strategy(), 0
        for before, assignments in self.moments(records):
            moments += 1
            state = repr(before.members)
            assert self.strategy().decide(before) == assignments
            assert fresh.decide(before) == assignments
            assert repr(before.members) == state
        assert moments >= self.horizon // self.slice_steps

    def test_decides_nothing_more_until_a_decision_is_recorded(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            after = copy.deepcopy(before)
            after.record(Decision(tuple(assignments)))
            again = self.strategy().decide(after)
            assert not {a.member for a in again} & {a.member for a in assignments}

    def test_assigns_to_free_members_from_where_they_stand(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            assert len({a.member for a in assignments}) == len(assignments)
            new = {m.id: m for m in before.unstarted(before.free)}
            for a in assignments:
                member = before.members.get(a.member) or new[a.member]
                assert member.pending is None
                assert a.start == member.step
                assert a.id == f"{member.id}/{member.generation + 1:06d}"

    def test_hyperparameters_stay_inside_their_bounds_and_pass_through_json(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            for a in assignments:
                assert list(a.hyperparameters) == list(self.space.names)
                assert self.space.contains(a.hyperparameters)
            for a in self.strategy().decide(before):
                assert Assignment(**json.loads(dumps(a.to_json()))) == a

    def test_retired_members_never_train_again(self, records: list[Record]) -> None:
        retired: set[str] = set()
        for decision in (record for record in records if isinstance(record, Decision)):
            assert not retired & {a.member for a in decision.assignments}
            retired |= set(decision.retired)

    def test_no_more_members_train_at_once_than_there_are_places(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            assert len(assignments) <= before.free

    def test_different_seeds_start_differently(self) -> None:
        one, other = Population(self.size, 1, self.rule), Population(self.size, 2, self.rule)
        first, second = ([a.hyperparameters for a in self.strategy().decide(p)] for p in (one, other))
        assert (first != second) == self.draws

    def test_no_slice_ends_beyond_the_horizon(self, records: list[Record]) -> None:
        for _, assignments in self.moments(records):
            assert all(a.start < a.stop <= self.horizon for a in assignments)


class PopulationConformance(BaseConformance):
    """Tests of a strategy whose members all train to the horizon, such as PBT."""

    def test_stops_on_the_grid_and_never_beyond_the_horizon(self, records: list[Record]) -> None:
        for _, assignments in self.moments(records):
            for a in assignments:
                assert a.start < a.stop <= self.horizon
                assert a.stop % self.slice_steps == 0 or a.stop == self.horizon
                assert a.stop - a.start <= self.slice_steps

    def test_donors_are_healthy_and_parents_committed(self, records: list[Record]) -> None:
        for before, assignments in self.moments(records):
            for a in assignments:
                if a.donor:
                    donor, receiver = before.members[a.donor], before.members[a.member]
                    assert donor.healthy
                    assert donor.snapshot
                    assert a.donor != a.member
                    assert donor.ranked or not receiver.healthy
                committed = {m.snapshot for m in before.members.values()}
                assert a.parent is None or a.parent in committed
                assert a.parent is None or a.donor or _owner(a.parent) == a.member

    def test_members_train_to_the_horizon_or_are_retired(self, records: list[Record]) -> None:
        end = self.population().replay(records)
        assert len(end.members) == self.size
        for member in end.members.values():
            assert member.step == self.horizon or not member.healthy
            assert member.step <= self.horizon
        assert self.strategy().decide(end) == []


class SearchConformance(BaseConformance):
    """Tests of a search of independent trials, such as random search or ASHA; a trial may end before the horizon."""

    def test_members_never_copy(self, records: list[Record]) -> None:
        assigned = [a for _, assignments in self.moments(records) for a in assignments]
        edges = [a for a in assigned if a.donor or (a.parent and _owner(a.parent) != a.member)]
        assert not edges


def _owner(snapshot: str) -> str:
    """Return the member whose slice made a snapshot."""
    return snapshot.rpartition("/")[0]
