"""Controller loop: retries, stop criteria, interruption and resumption, on a scripted executor."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbtrl.core.dimensions import LogUniform
from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import Population
from pbtrl.core.records import Decision, Record, ReportRecord
from pbtrl.core.search_space import SearchSpace
from pbtrl.core.stopping import StopCriteria
from pbtrl.errors import RunError
from pbtrl.storage.journal import Journal, Line, digest, read_journal, read_lines
from pbtrl.strategies import Strategy
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.random_search import random_search
from pbtrl.testing.fakes import LAST, FakeExecutor, Script, died, trained
from pbtrl.training.controller import Controller

pytestmark = pytest.mark.usefixtures("quick_disk")

SPACE = SearchSpace({"lr": LogUniform(low=1e-4, high=1e-1)})
SIZE, EVERY, HORIZON = 4, 100, 500


def steady(a: Assignment, attempt: int) -> Report:
    return trained(a, float(a.seed % 1000))


def pbt(*, synchronous: bool = True) -> PBT:
    return PBT(space=SPACE, slice_steps=EVERY, horizon=HORIZON, synchronous=synchronous)


@dataclass
class Session:
    """Results of one session of a run."""

    reason: str
    population: Population
    executor: FakeExecutor
    lines: list[Line]

    def of(self, kind: str) -> list[Line]:
        return [line for line in self.lines if line["kind"] == kind]


def run_session(
    path: Path, script: Script = steady, *, strategy: Any = None, partial: float = 0.0,
    order: int | None = None, **settings: Any,
) -> Session:  # fmt: skip
    """Run, or resume from the journal at `path`."""
    population = Population(SIZE, 5, LAST)
    if path.exists():
        population.replay(read_journal(path))
    rng = None if order is None else np.random.default_rng(order)
    executor, journal = FakeExecutor(script, order=rng, partial=partial), Journal(path)
    reason = Controller(population, strategy or pbt(), executor, journal, **settings).run()
    journal.close()
    return Session(reason, population, executor, read_lines(path))


def after(rounds: int) -> Any:
    """Interrupt after more than `rounds` checks."""
    asked = iter(range(rounds))
    return lambda: next(asked, None) is None


# To the end


@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize("order", [None, 1])
def test_every_member_trains_exactly_its_budget(tmp_path: Path, synchronous: bool, order: Any) -> None:
    done = run_session(tmp_path / "j", strategy=pbt(synchronous=synchronous), order=order)
    assert done.reason == "budget"
    assert [m.step for m in done.population.members.values()] == [HORIZON] * SIZE
    assert sum(a.stop - a.start for a in done.executor.submitted) == SIZE * HORIZON
    assert len(done.of("report")) == SIZE * HORIZON // EVERY
    assert not done.of("failure")


def test_population_equals_the_journal(tmp_path: Path) -> None:
    done = run_session(tmp_path / "j")
    assert repr(Population(SIZE, 5, LAST).replay(read_journal(tmp_path / "j")).members) == repr(done.population.members)


def test_sync_run_does_not_depend_on_arrival_order(tmp_path: Path) -> None:
    assert len({digest(run_session(tmp_path / str(order), order=order).lines) for order in range(4)}) == 1


def test_decision_is_written_before_it_is_submitted(tmp_path: Path) -> None:
    """As one line."""
    seen: list[int] = []

    class Looking(FakeExecutor):
        def submit(self, assignments: Any) -> None:
            decided = [record for record in read_journal(tmp_path / "j") if isinstance(record, Decision)]
            assert decided[-1].assignments == tuple(assignments)
            seen.append(len(decided))
            super().submit(assignments)

    journal = Journal(tmp_path / "j")
    Controller(Population(SIZE, 5, LAST), pbt(), Looking(steady), journal).run()
    journal.close()
    assert seen == [1, 2, 3, 4, 5]


def test_contradictory_decision_is_not_written(tmp_path: Path) -> None:
    """The run can go on when the strategy is corrected."""

    class Confused(PBT):
        def decide(self, population: Population) -> list[Assignment]:
            made = super().decide(population)
            return [replace(a, parent="m00/000077") for a in made] if population.decisions else made

    journal = Journal(tmp_path / "j")
    with pytest.raises(RunError, match=r"this decision: .* m00/000077, which was never made"):
        Controller(
            Population(SIZE, 5, LAST),
            Confused(space=SPACE, slice_steps=EVERY, horizon=HORIZON),
            FakeExecutor(steady),
            journal,
        ).run()
    journal.close()
    assert run_session(tmp_path / "j").reason == "budget"


def test_listeners_get_records_after_they_are_applied(tmp_path: Path) -> None:
    @dataclass
    class Reader:
        population: Population
        records: list[Record] = field(default_factory=list)
        ticks: int = 0

        def event(self, record: Record) -> None:
            self.records.append(record)
            if isinstance(record, ReportRecord):
                assert self.population.members[record.report.member].step == record.report.step

        def tick(self) -> None:
            self.ticks += 1

    population = Population(SIZE, 5, LAST)
    journal, reader = Journal(tmp_path / "j"), Reader(population)
    Controller(population, pbt(), FakeExecutor(steady), journal, listeners=[reader]).run()
    journal.close()
    assert reader.records == list(read_journal(tmp_path / "j"))
    assert reader.ticks == 20


# When slices fail


def failing(fails: dict[str, int], **how: Any) -> Script:
    """These assignments fail so many times, then succeed."""

    def script(a: Assignment, attempt: int) -> Report | Failure:
        return died(a, **how) if attempt <= fails.get(a.id, 0) else steady(a, attempt)

    return script


def test_failed_slice_is_retried(tmp_path: Path) -> None:
    """It leaves no trace in the canonical journal."""
    done = run_session(tmp_path / "j", failing({"m01/000002": 2, "m02/000000": 1}))
    assert [(f["assignment"], f["attempt"], f["given_up"]) for f in done.of("failure")] == [
        ("m02/000000", 1, False),
        ("m01/000002", 1, False),
        ("m01/000002", 2, False),
    ]
    assert digest(done.lines) == digest(run_session(tmp_path / "undisturbed").lines)


def test_member_is_rescued_after_too_many_failures(tmp_path: Path) -> None:
    done = run_session(tmp_path / "j", failing({"m01/000002": 99}), limits=StopCriteria(max_attempts=3))
    assert [f["given_up"] for f in done.of("failure")] == [False, False, True]
    rescue = next(a for a in done.executor.submitted if a.id == "m01/000003")
    assert rescue.donor
    assert (rescue.start, rescue.stop) == (200, 300)
    assert "given up" in rescue.note
    assert [m.step for m in done.population.members.values()] == [HORIZON] * SIZE


def test_rescued_member_catches_up_in_sync_mode(tmp_path: Path) -> None:
    done = run_session(tmp_path / "j", failing({"m01/000002": 99}))
    for line in done.of("decision"):
        assert len({a["start"] for a in line["assignments"]}) == 1
    assert [[a["member"] for a in line["assignments"]] for line in done.of("decision")][3] == ["m01"]


def test_fatal_failure_is_not_retried(tmp_path: Path) -> None:
    done = run_session(tmp_path / "j", failing({"m01/000002": 1}, fatal=True))
    assert [(f["assignment"], f["given_up"]) for f in done.of("failure")] == [("m01/000002", True)]
    assert Counter(a.id for a in done.executor.submitted)["m01/000002"] == 1


def test_failure_in_a_group_is_not_blamed_on_a_member(tmp_path: Path) -> None:
    done = run_session(tmp_path / "j", failing({"m01/000002": 9}, alone=False), limits=StopCriteria(max_attempts=1))
    assert len(done.of("failure")) == 9
    assert not any(f["given_up"] for f in done.of("failure"))


def test_search_continues_without_a_lost_member(tmp_path: Path) -> None:
    search = random_search(SPACE, slice_steps=EVERY, horizon=HORIZON)
    done = run_session(tmp_path / "j", failing({"m01/000002": 99}), strategy=search)
    assert done.reason == "budget"
    assert [m.step for m in done.population.members.values()] == [500, 200, 500, 500]


@pytest.mark.parametrize("fatal", [False, True])
def test_run_ends_if_every_slice_fails(tmp_path: Path, fatal: bool) -> None:
    done = run_session(tmp_path / "j", lambda a, attempt: died(a, fatal=fatal))
    assert done.population.step == 0
    assert all(m.given_up for m in done.population.members.values())
    assert len(done.of("failure")) == SIZE * (1 + 3) * (1 if fatal else 3)


# Limits


def test_total_of_steps_ends_the_run(tmp_path: Path) -> None:
    done = run_session(tmp_path / "j", limits=StopCriteria(total_steps=900))
    assert done.reason == "total steps"
    assert done.population.step == 900


def test_target_fitness_ends_the_run(tmp_path: Path) -> None:
    done = run_session(
        tmp_path / "j",
        lambda a, attempt: trained(a, 10.0 if a.id == "m02/000001" else 1.0),
        limits=StopCriteria(until_fitness=10.0),
    )
    assert done.reason == "fitness reached"
    assert done.of("report")[-1]["assignment"] == "m02/000001"


@pytest.mark.parametrize("limit", [StopCriteria(total_steps=SIZE * EVERY + 1, synchronous=True),
                                   StopCriteria(until_fitness=10.0, synchronous=True)])  # fmt: skip
def test_synchronous_generation_is_finished_before_a_limit_ends_the_run(tmp_path: Path, limit: StopCriteria) -> None:
    """So its end does not depend on who reports first."""
    fitness = {"m02/000001": 10.0}
    ends = [
        run_session(tmp_path / f"{order}", lambda a, attempt: trained(a, fitness.get(a.id, 1.0)),
                    strategy=pbt(synchronous=True), order=order, limits=limit)
        for order in (None, 1, 2)
    ]  # fmt: skip
    assert [[m.step for m in end.population.members.values()] for end in ends] == [[2 * EVERY] * SIZE] * 3


def test_limit_holds_where_the_strategy_never_waits(tmp_path: Path) -> None:
    """Members of random search go on by themselves; none gets another slice once the limit is reached."""
    limit = StopCriteria(total_steps=SIZE * EVERY, synchronous=True)
    done = run_session(tmp_path / "j", strategy=pbt(synchronous=False), order=1, limits=limit)
    assert done.reason == "total steps"
    assert SIZE * EVERY <= done.population.step < 2 * SIZE * EVERY


def test_wall_clock_ends_the_run_and_sessions_add_up(tmp_path: Path) -> None:
    done = run_session(tmp_path / "j", limits=StopCriteria(wall_clock=100.0), previous_seconds=100.0)
    assert (done.reason, done.lines) == ("wall clock", [])
    assert run_session(tmp_path / "k", limits=StopCriteria(wall_clock=100.0), previous_seconds=10.0).reason == "budget"


def test_stop_criteria_are_off_by_default() -> None:
    assert StopCriteria().reached(Population(1, 0), 1e12) is None


# Interrupted and resumed


@pytest.mark.parametrize("rounds", range(0, 22, 3))
@pytest.mark.parametrize("synchronous", [False, True])
def test_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path, rounds: int, synchronous: bool) -> None:
    """Slices are all or nothing here; only a synchronous run does not depend on the order of events."""
    strategy = pbt(synchronous=synchronous)
    first = run_session(tmp_path / "j", strategy=strategy, interrupted=after(rounds))
    assert first.reason == ("interrupted" if rounds <= 20 else "budget")
    done = run_session(tmp_path / "j", strategy=strategy)
    assert done.reason == "budget"
    assert [m.step for m in done.population.members.values()] == [HORIZON] * SIZE
    if synchronous:
        assert digest(done.lines) == digest(run_session(tmp_path / "whole", strategy=strategy).lines)


@pytest.mark.parametrize("rounds", range(1, 20, 4))
@pytest.mark.parametrize("synchronous", [False, True])
def test_partial_slices_are_completed_first(tmp_path: Path, rounds: int, synchronous: bool) -> None:
    strategy = pbt(synchronous=synchronous)
    first = run_session(tmp_path / "j", strategy=strategy, partial=0.4, interrupted=after(rounds))
    assert first.reason == "interrupted"
    assert first.of("report")[-1]["step"] % EVERY == 40
    assert not first.population.pending
    done = run_session(tmp_path / "j", strategy=strategy)
    assert [m.step for m in done.population.members.values()] == [HORIZON] * SIZE
    assert sum(len(m.history) for m in done.population.members.values()) > SIZE * HORIZON // EVERY
    if synchronous:
        for line in done.of("decision"):
            assert len({a["stop"] for a in line["assignments"]}) == 1


def test_journal_cut_after_any_line_leads_to_the_same_end(tmp_path: Path) -> None:
    whole = run_session(tmp_path / "whole", failing({"m01/000001": 2})).lines
    data = (tmp_path / "whole").read_bytes().splitlines(keepends=True)
    for lines in range(len(data)):
        path = tmp_path / f"cut{lines}"
        path.write_bytes(b"".join(data[:lines]) + data[lines][: len(data[lines]) // 2])
        assert digest(run_session(path, failing({"m01/000001": 2})).lines) == digest(whole)


def test_failure_while_stopping_leaves_the_assignment_open(tmp_path: Path) -> None:
    class Dying(FakeExecutor):
        def stop(self, within: float | None = None) -> None:
            self._stopped = [died(a, fatal=True) for a in self._open]
            self._open = []

    population, journal = Population(SIZE, 5, LAST), Journal(tmp_path / "j")
    controller = Controller(population, pbt(), Dying(steady), journal, interrupted=after(2))
    assert controller.run() == "interrupted"
    journal.close()
    assert [a.member for a in population.pending] == ["m02", "m03"]
    assert not any(m.given_up for m in population.members.values())


# Snapshots that were lost


def test_interrupted_remake_is_made_again(tmp_path: Path) -> None:
    """A signal ends the remake of a lost snapshot in the middle: the next session makes it again."""
    run_session(tmp_path / "j", interrupted=after(6))
    stopped = run_session(tmp_path / "j", partial=0.4, lost=["m01/000000"], interrupted=after(0))
    assert [line["snapshot"] for line in stopped.of("void")] == ["m01/000000"]
    assert not stopped.of("remade")
    assert stopped.population.lost_snapshots == {"m01/000000"}
    done = run_session(tmp_path / "j", lost=["m01/000000"])
    assert [line["snapshot"] for line in done.of("remade")] == ["m01/000000"]
    assert not done.population.lost_snapshots
    assert [m.step for m in done.population.members.values()] == [HORIZON] * SIZE


class AllCopyTheFirst(Strategy):
    """One generation, and a second in which all members copy m00."""

    def decide(self, population: Population) -> list[Assignment]:
        members = population.members.values()
        if any(m.pending or m.generation for m in members) and any(m.pending or m.generation > 0 for m in members):
            return []
        start = 0 if any(m.generation < 0 for m in members) else EVERY
        parent = "m00/000000" if start else None
        name = "000001" if start else "000000"
        return [Assignment(f"{m.id}/{name}", m.id, parent, start, start + EVERY, {"lr": 0.1}, 1) for m in members]


def losing(name: str) -> Script:
    """Loading this snapshot finds it damaged until it is remade; the remake fails once, in a group."""
    made: list[int] = []

    def script(a: Assignment, attempt: int) -> Report | Failure:
        if a.id == name and attempt > 1:
            made.append(attempt)
            return died(a, alone=False) if len(made) == 1 else trained(a, 1.0)
        if a.parent == name and len(made) < 2:
            return Failure(a.id, a.member, "SnapshotError: damaged", snapshot=name)
        return trained(a, 1.0)

    return script


def test_several_copies_wait_for_one_remade_snapshot(tmp_path: Path) -> None:
    done = run_session(
        tmp_path / "j", losing("m00/000000"), strategy=AllCopyTheFirst(), limits=StopCriteria(max_attempts=1)
    )
    assert [m.step for m in done.population.members.values()] == [2 * EVERY] * SIZE
    assert (len(done.of("void")), len(done.of("remade")), len(done.of("failure"))) == (1, 1, 0)


def test_stop_criteria_wait_for_remade_snapshots(tmp_path: Path) -> None:
    """Otherwise the best could be lost. Nothing new is decided meanwhile."""
    limit = StopCriteria(total_steps=SIZE * EVERY)
    assert run_session(tmp_path / "j", limits=limit).reason == "total steps"
    again = run_session(tmp_path / "j", limits=limit, lost=["m02/000000"])
    assert again.reason == "total steps"
    assert [line["snapshot"] for line in again.of("remade")] == ["m02/000000"]
    assert len(again.of("decision")) == 1


def test_signal_counts_while_a_limit_ends_slices(tmp_path: Path) -> None:
    stops = []

    class Slow(FakeExecutor):
        def stop(self, within: float | None = None) -> None:
            stops.append(within)
            super().stop(within)

    population, journal = Population(SIZE, 5, LAST), Journal(tmp_path / "j")
    executor = Slow(steady, partial=0.4)
    limits = StopCriteria(total_steps=2 * EVERY)
    controller = Controller(population, pbt(synchronous=False), executor, journal, limits)
    controller.interrupted = lambda: bool(stops)
    assert controller.run() == "interrupted"
    journal.close()
    assert stops[0] is None
    assert stops[1] is not None
