"""Budgets, donors, lineage and journal stay valid for all failures of members and deaths of the controller.

Retention never deletes a snapshot that is still needed.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest.mock import patch

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pbtrl.core.dimensions import LogUniform
from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import Population
from pbtrl.core.records import Decision, Record, ReportRecord
from pbtrl.core.search_space import SearchSpace
from pbtrl.core.stopping import StopCriteria
from pbtrl.storage import journal, snapshot_store
from pbtrl.storage.journal import Journal, read_journal
from pbtrl.storage.retention import Retention
from pbtrl.strategies.pbt import PBT
from pbtrl.system.child_process import TIMEOUT_EXIT, describe_exit
from pbtrl.testing.fakes import LAST, between, died, trained
from pbtrl.training.controller import Controller

SIZE, EVERY, HORIZON, MILESTONES = 4, 100, 400, 150
FITNESS = st.floats(allow_nan=True, allow_infinity=True, width=32) | st.sampled_from([0.0, 1.0])


@dataclass
class Shelf:
    """Simulated snapshots, each at its step, which retention deletes and faults take away."""

    disk: dict[str, int] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def names(self, member: str) -> list[str]:
        return sorted(name for name in self.disk if name.startswith(f"{member}/"))

    def remove(self, name: str) -> None:
        del self.disk[name]

    def quarantine(self, name: str) -> None:
        self.disk.pop(name, None)
        self.lost.add(name)


@dataclass
class Hands:
    """Executor whose assignments wait until a rule answers them."""

    shelf: Shelf
    population: Population
    held: list[Assignment] = field(default_factory=list)
    answers: list[Report | Failure] = field(default_factory=list)
    part: float = 0.0

    def submit(self, assignments: Sequence[Assignment]) -> None:
        for a in assignments:
            assert a.member not in {other.member for other in self.held}, "two slices of one member at a time"
            assert 0 <= a.start < a.stop <= HORIZON
            if a.id in self.shelf.disk:
                self.answers.append(trained(a, 0.0, step=self.shelf.disk[a.id]))
            elif a.parent is not None and a.parent not in self.shelf.disk:
                again = (
                    a.id in self.population.snapshot_origin
                )  # of a snapshot that is made again nobody keeps all ancestors
                assert again or a.parent in self.shelf.lost, f"{a.id} needs {a.parent}, which retention deleted"
                self.answers.append(replace(died(a), snapshot=a.parent))
            else:
                part = "a part of a slice is not what was reported"
                assert (
                    a.parent is None or self.shelf.disk[a.parent] == self.population.snapshot_origin[a.parent].stop
                ), part
                self.held.append(a)

    def collect(self, timeout: float) -> list[Report | Failure]:
        answers, self.answers = self.answers, []
        return answers

    def busy(self) -> bool:
        return bool(self.held or self.answers)

    def stop(self, within: float | None = None) -> None:
        held, self.held = self.held, []
        if self.part:
            for a in held:
                if (step := between(a, self.part)) > a.start:  # who has not trained at all has nothing to report
                    self.report(a, trained(a, 0.0, step=step))

    def commit(self, a: Assignment, step: int) -> None:
        self.shelf.disk[a.id] = step
        self.shelf.lost.discard(a.id)

    def report(self, a: Assignment, message: Report) -> None:
        self.commit(a, message.step)
        self.answers.append(message)

    def close(self) -> None:
        pass


class Machine(RuleBasedStateMachine):
    """Controller with restarts, and members that report, diverge, die and lose their snapshots."""

    @initialize(synchronous=st.booleans(), seed=st.integers(0, 99))
    def begin(self, synchronous: bool, seed: int) -> None:
        self.synchronous, self.seed, self.shelf, self.best = synchronous, seed, Shelf(), set[str]()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal.jsonl"
        self.quick = [patch.object(module.os, "fsync", lambda _: None) for module in (journal, snapshot_store)]
        for one in self.quick:
            one.start()
        self.steps = dict.fromkeys((f"m{i:02}" for i in range(SIZE)), 0)
        self.run_session()

    def run_session(self) -> None:
        """A new controller, from what the journal says."""
        population = Population(SIZE, self.seed, LAST)
        records = list(read_journal(self.path)) if self.path.exists() else []
        population.replay(records)
        self.journal = Journal(self.path)
        if records:
            population.record(self.journal.append({"kind": "resume"}))
        if population.best and population.best.snapshot in self.shelf.disk:  # of an earlier session, in its best.json
            self.best = {population.best.snapshot}
        retention = Retention(
            self.shelf,
            population,
            keep_last=1,
            milestones_every=MILESTONES,
            records=records,
            always=self.best,  # type: ignore[arg-type]
        )
        space = SearchSpace({"lr": LogUniform(low=1e-4, high=1e-1)})
        strategy = PBT(space=space, slice_steps=EVERY, horizon=HORIZON, synchronous=self.synchronous)
        self.hands, self.over = Hands(self.shelf, population), ""
        lost: list[str] = []
        for m in population.members.values():
            name = m.pending.parent if m.pending else m.snapshot
            done = m.pending is not None and m.pending.id in self.shelf.disk
            if name and name not in lost and self.shelf.disk.get(name) != population.snapshot_origin[name].stop:
                self.shelf.quarantine(name)
                lost += [] if done else [name]
        self.controller = Controller(
            population, strategy, self.hands, self.journal, StopCriteria(max_attempts=2),
            [retention, self], lost=lost,
        )  # fmt: skip
        self.controller.begin()
        self.go()

    def go(self) -> None:
        """On to where the members have to act."""
        before = -1
        while not self.over and (before != (size := self.path.stat().st_size) or self.hands.answers):
            before = size
            self.over = self.controller.step()

    def pick(self, which: int) -> Assignment:
        return self.hands.held.pop(which % len(self.hands.held))

    waiting = precondition(lambda self: bool(self.hands.held))

    @waiting
    @rule(which=st.integers(0, 9), fitness=FITNESS)
    def reports(self, which: int, fitness: float) -> None:
        a = self.pick(which)
        self.hands.report(a, trained(a, fitness))
        self.go()

    @waiting
    @rule(which=st.integers(0, 9))
    def has_no_episode(self, which: int) -> None:
        a = self.pick(which)
        self.hands.report(a, trained(a))
        self.go()

    @waiting
    @rule(which=st.integers(0, 9))
    def diverges(self, which: int) -> None:
        a = self.pick(which)
        self.hands.report(a, trained(a, diverged=True))
        self.go()

    @waiting
    @rule(which=st.integers(0, 9), alone=st.booleans())
    def dies(self, which: int, alone: bool) -> None:
        self.hands.answers.append(died(self.pick(which), alone=alone))
        self.go()

    @waiting
    @rule(which=st.integers(0, 9), rounds=st.integers(1, 4), alone=st.booleans())
    def hangs(self, which: int, rounds: int, alone: bool) -> None:
        """For a while nothing is heard of it, and nothing happens; then its watchdog bites."""
        before = len(list(read_journal(self.path)))
        for _ in range(rounds):
            assert not self.controller.step()
        assert len(list(read_journal(self.path))) == before
        a = self.pick(which)
        self.hands.answers.append(Failure(a.id, a.member, f"worker {describe_exit(TIMEOUT_EXIT)}", alone=alone))
        self.go()

    @waiting
    @rule(which=st.integers(0, 9))
    def dies_after_its_commit(self, which: int) -> None:
        a = self.pick(which)
        self.hands.commit(a, a.stop)
        self.hands.answers.append(died(a, alone=False))
        self.go()

    @precondition(lambda self: bool(self.shelf.disk))
    @rule(which=st.integers(0, 99))
    def a_snapshot_is_lost(self, which: int) -> None:
        name = sorted(self.shelf.disk)[which % len(self.shelf.disk)]
        self.shelf.quarantine(name)

    @rule()
    def the_controller_is_killed(self) -> None:
        self.journal.close()
        self.run_session()

    @rule(part=st.sampled_from([0.0, 0.5]))
    def the_controller_is_stopped(self, part: float) -> None:
        self.hands.part = part
        self.controller.interrupted = lambda: True
        while not self.over:
            self.over = self.controller.step()
        self.journal.close()
        self.run_session()

    @invariant()
    def clocks_only_go_forward(self) -> None:
        members = self.controller.population.members
        assert set(members) == set(self.steps)
        for name, member in members.items():
            assert self.steps[name] <= member.step <= HORIZON
            self.steps[name] = member.step

    @invariant()
    def only_numbers_are_ranked(self) -> None:
        ranking = self.controller.population.ranking()
        assert all(m.fitness is not None and math.isfinite(m.fitness) for m in ranking)
        assert [m.fitness for m in ranking] == sorted((m.fitness or 0.0 for m in ranking), reverse=True)

    @invariant()
    def the_journal_says_it_all(self) -> None:
        again = Population(SIZE, self.seed, LAST)
        if self.path.exists():
            again.replay(read_journal(self.path))
        assert repr(again.members) == repr(self.controller.population.members)  # NaN is not equal to itself

    def event(self, record: Record) -> None:
        """A listener of the controller, after retention: of the reporter's snapshots only the needed are left."""
        if isinstance(record, ReportRecord):
            *older, _ = self.shelf.names(record.report.member)
            assert set(older) <= self.needed()

    def tick(self) -> None:
        """Nothing to do."""

    @invariant()
    def what_is_needed_is_there(self) -> None:
        """Save what a fault took, and what a snapshot to be made again went on from, which may be long gone."""
        population = self.controller.population
        again = {str(population.snapshot_origin[name].parent) for name in population.lost_snapshots}
        assert self.needed() <= self.shelf.disk.keys() | self.shelf.lost | again

    def needed(self) -> set[str]:
        """What somebody trains from, the best one, and the milestones."""
        result = self.controller.population.needed() | self.best
        clocks = dict.fromkeys(self.steps, 0)
        for record in read_journal(self.path) if self.path.exists() else ():
            if isinstance(record, ReportRecord):
                report = record.report
                before, clocks[report.member] = clocks[report.member], report.step
                result |= {report.assignment} if before // MILESTONES < report.step // MILESTONES else set()
        return result

    @invariant()
    def parents_were_reported_before(self) -> None:
        reported: set[str] = set()
        for record in read_journal(self.path) if self.path.exists() else ():
            if isinstance(record, ReportRecord):
                reported.add(record.report.assignment)
            for a in record.assignments if isinstance(record, Decision) else ():
                assert a.parent is None or a.parent in reported
                assert a.id not in reported

    def teardown(self) -> None:
        """From wherever it is, the run comes to its end when nothing more goes wrong."""
        for _ in range(200):
            if self.over:
                break
            if self.hands.held:
                self.reports(0, 1.0)
            else:
                self.go()
        assert self.over == "budget"
        assert all(m.step == HORIZON or m.given_up for m in self.controller.population.members.values())
        self.journal.close()
        for one in self.quick:
            one.stop()
        self.folder.cleanup()


Machine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestController = Machine.TestCase
