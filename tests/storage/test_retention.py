"""Snapshots of retired members: kept while they may be chosen, or needed again."""

from __future__ import annotations

from typing import Any

import pytest

from pbtrl.core.messages import Assignment
from pbtrl.core.population import Population
from pbtrl.core.records import Decision, Record, RunChanged, RunResumed
from pbtrl.storage.retention import Retention
from pbtrl.testing.fakes import LAST, died, trained
from tests.fakes import answer, assign, decision


class Store:
    """Names of snapshots."""

    def __init__(self) -> None:
        self.all: set[str] = set()

    def names(self, member: str) -> list[str]:
        return sorted(name for name in self.all if name.startswith(member))

    def remove(self, name: str) -> None:
        self.all.remove(name)


class Run:
    """Population of six whose retired members may keep three snapshots, after one slice each."""

    def __init__(self) -> None:
        self.population, self.store = Population(6, 0, LAST), Store()
        store: Any = self.store
        self.retention = Retention(store, self.population, keep_last=1, keep_retired=3)
        for fitness in range(6):
            self.train(f"m{fitness:02d}", float(fitness))

    def apply(self, record: Record) -> None:
        self.population.record(record)
        self.retention.event(record)

    def begin(self, member: str) -> Assignment:
        a = assign(self.population, member, parent=self.population.members[member].snapshot)
        self.apply(decision(a))
        return a

    def finish(self, a: Assignment, fitness: float) -> None:
        self.store.all.add(a.id)
        self.apply(answer(trained(a, fitness)))

    def train(self, member: str, fitness: float) -> None:
        self.finish(self.begin(member), fitness)


def test_fittest_retired_members_keep_their_newest_snapshot() -> None:
    run = Run()
    run.apply(Decision((), tuple(f"m{i:02d}" for i in range(5))))
    assert run.store.all == {f"m{i:02d}/000000" for i in range(2, 6)}
    run.apply(Decision((), ("m05",)))
    assert run.store.all == {f"m{i:02d}/000000" for i in range(3, 6)}


@pytest.mark.parametrize("fitness", [9.0, -1.0])
def test_last_slice_of_a_retired_member_counts(fitness: float) -> None:
    """`pbtrl set` retires a member while it trains; its last report may make it the fittest, or not."""
    run = Run()
    a = run.begin("m00")
    run.apply(RunChanged({}, tuple(f"m{i:02d}" for i in range(5))))
    assert run.store.all == {"m00/000000", *(f"m{i:02d}/000000" for i in range(2, 6))}
    run.finish(a, fitness)
    kept = ["m00/000001", "m03/000000"] if fitness > 0 else ["m02/000000", "m03/000000"]
    assert run.store.all == {*kept, "m04/000000", "m05/000000"}


def test_snapshot_without_its_report_is_kept() -> None:
    run = Run()
    a = run.begin("m02")
    run.apply(RunChanged({}, ("m00", "m01", "m02")))
    run.store.all.add(a.id)
    run.apply(RunChanged({}, ("m03", "m04")))
    assert a.id in run.store.all
    run.finish(a, 9.0)
    assert "m02/000001" in run.store.all


def test_given_up_members_keep_what_they_need_to_try_again() -> None:
    run = Run()
    for name in run.population.members:
        a = run.begin(name)
        run.apply(answer(died(a)))
    run.apply(Decision((), tuple(run.population.members)))
    assert run.store.all == {f"m{i:02d}/000000" for i in range(6)}
    run.apply(RunResumed(None))
    assert run.population.needed() == run.store.all
