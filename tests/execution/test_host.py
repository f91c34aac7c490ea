"""The worker's host: its cohorts, loads, commits and reports."""

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.tensors import Tensors
from pbtrl.errors import DiskFullError, WorkerPoolError
from pbtrl.execution.host import Host
from pbtrl.storage import json_files
from pbtrl.storage.snapshot_store import SnapshotStore
from tests.fakes import FakeBuilder, FakeCohort

pytestmark = pytest.mark.usefixtures("quick_disk")


def slice_of(member: str, generation: int = 0, **changes: Any) -> Assignment:
    """Slice that continues from the member's own last snapshot."""
    parent = f"{member}/{generation - 1:06d}" if generation else None
    start = 8 * generation
    plain = Assignment(
        f"{member}/{generation:06d}", member, parent, start, start + 8, {"lr": 0.5}, seed=100 + generation
    )
    return replace(plain, **changes)


def drain(host: Host) -> list[Report | Failure]:
    answers: list[Report | Failure] = []
    while host.busy():
        answers += host.advance()
    return answers


class Workplace:
    """A host of four members in one group, with a log of the calls to its cohorts."""

    def __init__(self, members: Path, **config: Any) -> None:
        self.members, self.config = members, config
        self.store = SnapshotStore(members)
        self.fresh()

    def fresh(self, *, discard_on_stop: bool = False) -> Host:
        """A host that remembers nothing, over the same folder."""
        self.builder = FakeBuilder(self.config)
        self.host = Host.local(
            self.builder, self.members, [("m00", "m01", "m02", "m03")], discard_on_stop=discard_on_stop
        )
        return self.host

    def run(self, *assignments: Assignment) -> dict[str, Report | Failure]:
        self.host.submit(assignments)
        return {r.assignment: r for r in drain(self.host)}

    def calls(self) -> list[str]:
        """What happened since the last look."""
        seen = self.builder.calls[:]
        self.builder.calls.clear()
        return seen


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Workplace]:
    place = Workplace(tmp_path / "members")
    yield place
    place.host.close()


# Cohorts


def test_group_trains_as_one_cohort_in_name_order(place: Workplace) -> None:
    place.run(slice_of("m01"), slice_of("m00"))
    assert place.calls() == ["cohort m00 m01", "init m00", "init m01", "begin m00/000000 m01/000000"]


def test_continuing_member_is_not_loaded_again(place: Workplace) -> None:
    for generation in range(3):
        place.run(slice_of("m00", generation), slice_of("m01", generation))
    assert [line for line in place.calls() if line.startswith(("load", "cohort"))] == ["cohort m00 m01"]
    assert place.store.load("m01/000002")[0]["steps"] == [24.0]


def test_only_a_copying_member_is_loaded(place: Workplace) -> None:
    place.run(slice_of("m00"), slice_of("m01"))
    place.calls()
    place.run(slice_of("m00", 1, parent="m01/000000", donor="m01"), slice_of("m01", 1))
    assert place.calls() == ["load m00", "begin m00/000001 m01/000001"]


def test_failed_load_does_not_keep_old_weights(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.run(slice_of("m00"), slice_of("m01"))

    def half_loaded(self: FakeCohort, slot: int, tensors: Tensors) -> None:
        self._weights[slot] = tensors
        raise ValueError("does not fit")

    with monkeypatch.context() as patch:
        patch.setattr(FakeCohort, "load", half_loaded)
        place.run(slice_of("m00", 1, parent="m01/000000"), slice_of("m01", 1))
    place.calls()
    place.run(slice_of("m00", 1), slice_of("m01", 1))
    assert "load m00" in place.calls()


def test_two_members_may_swap_weights(place: Workplace) -> None:
    place.run(slice_of("m00", seed=11), slice_of("m01", seed=22))
    place.run(slice_of("m00", 1, parent="m01/000000"), slice_of("m01", 1, parent="m00/000000"))
    assert place.store.load("m00/000001")[0]["seed"] == [22.0]
    assert place.store.load("m01/000001")[0]["seed"] == [11.0]


def test_fresh_start_is_not_loaded(place: Workplace) -> None:
    place.run(slice_of("m00"))
    place.calls()
    place.run(slice_of("m00", 1, parent=None))
    assert place.calls() == ["init m00", "begin m00/000001"]
    assert place.store.load("m00/000001")[0]["steps"] == [8.0]


def test_structure_length_and_group_separate_cohorts(tmp_path: Path) -> None:
    builder = FakeBuilder()
    host = Host.local(builder, tmp_path, [("m00", "m01", "m02"), ("m03",)])
    wide = {"lr": 0.5, "structure": "wide"}
    host.submit([slice_of("m00"), slice_of("m01", hyperparameters=wide), slice_of("m02", stop=4), slice_of("m03")])
    assert [line for line in builder.calls if line.startswith("cohort")] == [
        "cohort m00",
        "cohort m01",
        "cohort m02",
        "cohort m03",
    ]
    host.close()


def test_changed_structure_moves_the_member_to_another_cohort(place: Workplace) -> None:
    """The members that it leaves and those that it joins continue from their snapshots."""
    wide = {"lr": 0.5, "structure": "wide"}
    place.run(slice_of("m00"), slice_of("m01"), slice_of("m02", hyperparameters=wide))
    place.calls()
    joins = slice_of("m01", 1, parent="m02/000000", donor="m02", hyperparameters=wide)
    place.run(slice_of("m00", 1), joins, slice_of("m02", 1, hyperparameters=wide))
    received = [line for line in place.calls() if not line.startswith("begin")]
    assert received == [
        "close m00 m01",
        "cohort m00",
        "load m00",
        "close m02",
        "cohort m01 m02",
        "load m01",
        "load m02",
    ]
    assert [place.store.load(f"m0{i}/000001")[0]["steps"] for i in range(3)] == [[16.0]] * 3


def test_new_structure_of_all_members_is_another_cohort(place: Workplace) -> None:
    place.run(slice_of("m00"))
    place.run(slice_of("m00", 1, hyperparameters={"lr": 0.5, "structure": "wide"}))
    place.run(slice_of("m00", 2))
    cohorts = [line for line in place.calls() if line.startswith(("cohort", "close", "load"))]
    assert cohorts == ["cohort m00", *["close m00", "cohort m00", "load m00"] * 2]


def test_cohort_with_the_fewest_steps_has_its_turn(place: Workplace) -> None:
    """A turn of m00 is two steps long, and one of m01 is one; each has four."""
    place.host.submit([slice_of("m00"), slice_of("m01", stop=4)])
    finished = [[r.assignment for r in place.host.advance()] for _ in range(8)]
    assert finished == [[]] * 5 + [["m01/000000"], [], ["m00/000000"]]
    assert not place.host.busy()


def test_new_slice_does_not_catch_up_first(place: Workplace) -> None:
    """When the second slice of m01 begins, m00 has eight of its 16 steps."""
    place.host.submit([slice_of("m00", stop=16), slice_of("m01")])
    finished: list[str] = []
    while place.host.busy():
        answers = [r.assignment for r in place.host.advance()]
        finished += answers
        if answers == ["m01/000000"]:
            place.host.submit([slice_of("m01", 1)])
    assert finished == ["m01/000000", "m00/000000", "m01/000001"]


def test_cohorts_with_as_many_steps_take_turns(place: Workplace) -> None:
    place.host.submit([slice_of("m00"), slice_of("m01", hyperparameters={"lr": 0.5, "structure": "wide"})])
    finished = [[r.assignment for r in place.host.advance()] for _ in range(8)]
    assert finished == [[]] * 6 + [["m00/000000"], ["m01/000000"]]


def test_cohort_that_waits_for_others_does_not_keep_the_worker(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, real = Counter[str](), FakeCohort.advance

    def waiting(cohort: FakeCohort) -> bool:
        turns[cohort.members[0]] += 1
        return real(cohort) if cohort.members != ("m00",) else False

    monkeypatch.setattr(FakeCohort, "advance", waiting)
    place.host.submit([slice_of("m00"), slice_of("m01", stop=4)])
    finished = [r.assignment for _ in range(8) for r in place.host.advance()]
    assert (finished, turns) == (["m01/000000"], {"m00": 4, "m01": 4})


def test_member_keeps_its_weights_in_a_new_cohort(place: Workplace) -> None:
    place.run(slice_of("m00"), slice_of("m01"))
    place.run(slice_of("m00", 1), slice_of("m02"))
    assert place.calls()[4:] == [
        "close m00 m01",
        "cohort m00 m02",
        "load m00",
        "init m02",
        "begin m00/000001 m02/000000",
    ]
    place.run(slice_of("m00", 2), slice_of("m01", 1))
    assert place.store.load("m00/000002")[0]["steps"] == [24.0]
    assert place.store.load("m01/000001")[0]["steps"] == [16.0]


def test_close_closes_every_cohort(place: Workplace) -> None:
    place.run(slice_of("m00"), slice_of("m01", stop=4))
    place.calls()
    place.host.close()
    assert sorted(place.calls()) == ["close m00", "close m01"]


# Reports


def test_report_contents(place: Workplace) -> None:
    report = place.run(slice_of("m00", 1, parent=None, start=8, stop=24, seed=342))["m00/000001"]
    assert isinstance(report, Report)
    assert (report.member, report.step, report.hyperparameters) == ("m00", 24, {"lr": 0.5})
    assert (report.returns, report.lengths, report.diverged) == ((42.0,), (16,), False)
    assert report.timing["seconds"] >= 0


def test_report_has_assigned_and_used_hyperparameters(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ where single precision rounds."""
    outcome = FakeCohort.outcome
    monkeypatch.setattr(
        FakeCohort, "outcome", lambda self, slot: replace(outcome(self, slot), hyperparameters={"lr": 0.1})
    )
    report = place.run(slice_of("m00", hyperparameters={"lr": 0.100000001}))["m00/000000"]
    assert isinstance(report, Report)
    assert (report.assigned, report.hyperparameters) == ({"lr": 0.100000001}, {"lr": 0.1})


def test_snapshot_contains_the_report(place: Workplace) -> None:
    report = place.run(slice_of("m00"))["m00/000000"]
    _, state = place.store.load("m00/000000")
    assert state["report"] == json.loads(json.dumps(report.to_json()))


def test_metrics_name_their_assignment(place: Workplace) -> None:
    place.run(slice_of("m00"), slice_of("m01"))
    path = place.members / "m01" / "metrics.jsonl"
    (line,) = map(json.loads, path.read_text().splitlines())
    assert {k: v for k, v in line.items() if k not in ("time", "attempt")} == {"assignment": "m01/000000", "turns": 4}
    assert line["attempt"] <= line["time"]
    shutil.rmtree(path.parent / "snapshots")
    place.fresh()
    place.run(slice_of("m01"))
    first, again = map(json.loads, path.read_text().splitlines())
    assert (again["assignment"], again["attempt"] > first["attempt"]) == ("m01/000000", True)


@pytest.mark.parametrize(
    ("assigned", "used", "same"),
    [(0.1, 0.1 * (1 + 1e-8), True), (0.1, 0.1001, False), (3, 4, False), ("a", "a", True), (2.0, 2, True)],
)
def test_used_hyperparameters_must_equal_assigned_ones(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, assigned: Any, used: Any, same: bool
) -> None:
    outcome = FakeCohort.outcome
    monkeypatch.setattr(
        FakeCohort, "outcome", lambda self, slot: replace(outcome(self, slot), hyperparameters={"x": used})
    )
    answer = place.run(slice_of("m00", hyperparameters={"x": assigned}))["m00/000000"]
    assert isinstance(answer, Report) == same
    if isinstance(answer, Failure):
        assert answer.fatal
        assert "assigned and effective hyperparameters differ: x" in answer.error
        assert place.store.names("m00") == []


@pytest.mark.parametrize(
    "odd", [{"scalars": {"phase": "warmup"}}, {"scalars": {"x": {1}}}, {"timing": {"bytes": 2e10}}, {"lengths": [10.0]}]
)
def test_result_that_the_journal_could_not_hold_fails_its_slice(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, odd: dict[str, Any]
) -> None:
    real = FakeCohort.outcome
    monkeypatch.setattr(FakeCohort, "outcome", lambda self, slot: replace(real(self, slot), **odd))
    (failure,) = place.run(slice_of("m00")).values()
    assert isinstance(failure, Failure)
    assert place.store.names("m00") == []


# Again after a crash


def test_committed_slice_is_reported_without_training(place: Workplace) -> None:
    first = place.run(slice_of("m00"), slice_of("m01"))
    place.fresh()
    again = place.run(slice_of("m00"), slice_of("m01"))
    assert place.calls() == []
    assert {k: json.dumps(v.to_json()) for k, v in again.items()} == {
        k: json.dumps(v.to_json()) for k, v in first.items()
    }
    place.run(slice_of("m00", 1))
    assert place.store.load("m00/000001")[0]["steps"] == [16.0]


@pytest.mark.parametrize(
    "changes",
    [{"seed": 7}, {"hyperparameters": {"lr": 0.25}}, {"parent": "m01/000000"}, {"start": 4, "stop": 12}],
    ids=lambda changes: next(iter(changes)),
)
def test_slice_of_another_history_is_quarantined_and_retrained(place: Workplace, changes: dict[str, Any]) -> None:
    place.run(slice_of("m00"), slice_of("m01"))
    place.run(slice_of("m00", 1))
    place.fresh()
    (report,) = place.run(slice_of("m00", 1, **changes)).values()
    assert isinstance(report, Report)
    assert place.calls()[-1] == "begin m00/000001"
    _, state = place.store.load("m00/000001")
    assert state["assignment"] == json.loads(json.dumps(slice_of("m00", 1, **changes).to_json()))


def test_damaged_snapshot_of_a_slice_is_retrained(place: Workplace) -> None:
    place.run(slice_of("m00"))
    (place.store.path("m00/000000") / "tensors.safetensors").write_bytes(b"")
    place.fresh()
    assert isinstance(place.run(slice_of("m00"))["m00/000000"], Report)
    assert place.store.load("m00/000000")[0]["steps"] == [8.0]


def test_missing_parent_fails_only_its_member(place: Workplace) -> None:
    answers = place.run(slice_of("m00"), slice_of("m01", 1))
    assert isinstance(answers["m00/000000"], Report)
    failure = answers["m01/000001"]
    assert isinstance(failure, Failure)
    assert (failure.snapshot, failure.fatal) == ("m01/000000", False)
    assert "m01/000000 is missing" in failure.error


def test_parent_that_cannot_be_read_for_a_while_fails_nothing(place: Workplace, monkeypatch) -> None:
    place.run(slice_of("m00"))
    place.fresh()

    real = json_files._open_nonblocking

    def stale(path: str, flags: int) -> int:
        if "000000" in path:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)
        return real(path, flags)

    with monkeypatch.context() as inside:
        inside.setattr(json_files, "_open_nonblocking", stale)
        with pytest.raises(DiskFullError, match="cannot read snapshot m00/000000: Stale"):
            place.run(slice_of("m00", 1))
    place.fresh()
    assert isinstance(place.run(slice_of("m00", 1))["m00/000001"], Report)


def test_broken_cohort_is_rebuilt(tmp_path: Path) -> None:
    place = Workplace(tmp_path / "members", **{"raise": ["m00/000001"]})
    place.run(slice_of("m00"))
    failure = place.run(slice_of("m00", 1))["m00/000001"]
    assert isinstance(failure, Failure)
    assert not failure.fatal
    assert "scripted" in (place.members / "m00" / "log.txt").read_text()
    place.config["raise"] = []
    place.calls()
    assert isinstance(place.run(slice_of("m00", 1))["m00/000001"], Report)
    assert place.calls()[:2] == ["cohort m00", "load m00"]
    place.host.close()


# Stopped early


def test_stop_reports_and_commits_finished_steps(place: Workplace) -> None:
    place.host.submit([slice_of("m00"), slice_of("m01")])
    place.host.advance()
    answers = place.host.stop()
    assert [(r.assignment, r.step) for r in answers if isinstance(r, Report)] == [
        ("m00/000000", 2),
        ("m01/000000", 2),
    ]
    assert place.store.load("m00/000000")[0]["steps"] == [2.0]
    assert not place.host.busy()


def test_stop_before_the_first_step_reports_nothing(place: Workplace) -> None:
    place.host.submit([slice_of("m00")])
    assert place.host.stop() == []
    assert place.store.names("m00") == []


def test_indivisible_slices_are_discarded_on_stop(place: Workplace) -> None:
    host = place.fresh(discard_on_stop=True)
    host.submit([slice_of("m00")])
    host.advance()
    assert host.stop() == []
    assert place.store.names("m00") == []


def test_unreportable_slice_does_not_affect_others(tmp_path: Path) -> None:
    place = Workplace(tmp_path / "members", ignore_hyperparameters=["m00/000000"])
    place.host.submit([slice_of("m00"), slice_of("m01", stop=4)])
    for _ in range(2):
        place.host.advance()
    bad, good = place.host.stop()
    assert isinstance(bad, Failure)
    assert isinstance(good, Report)
    assert (good.assignment, good.step) == ("m01/000000", 1)
    place.host.close()


# What is not finite


def test_non_finite_values_are_never_in_a_snapshot(tmp_path: Path) -> None:
    place = Workplace(tmp_path / "members", overflow=["m00/000001"])
    place.run(slice_of("m00"))
    report = place.run(slice_of("m00", 1))["m00/000001"]
    assert isinstance(report, Report)
    assert report.diverged
    assert report.step == 16
    assert place.store.load("m00/000001")[0]["steps"] == [8.0]  # what the slice began with
    place.run(slice_of("m00", 2))
    assert place.calls()[-2:] == ["load m00", "begin m00/000002"]
    assert place.store.load("m00/000002")[0]["steps"] == [16.0]


def test_retried_slice_is_loaded_from_its_snapshot(tmp_path: Path) -> None:
    """The member trained from this snapshot before, but its weights have changed since."""
    place = Workplace(tmp_path / "members", overflow=["m00/000001"])
    place.run(slice_of("m00"))
    place.run(slice_of("m00", 1))
    place.run(slice_of("m00", 2, parent="m00/000000"))
    assert place.calls()[-2:] == ["load m00", "begin m00/000002"]
    assert place.store.load("m00/000002")[0]["steps"] == [16.0]


def test_non_finite_first_slice_fails(tmp_path: Path) -> None:
    place = Workplace(tmp_path / "members", overflow=["m00/000000"])
    failure = place.run(slice_of("m00"))["m00/000000"]
    assert isinstance(failure, Failure)
    assert failure.error == "NotFiniteError: m00/000000: not finite after the first slice: steps"
    assert failure.fatal  # the same weights and hyperparameters would diverge again
    assert not place.store.names("m00")


# Too little memory


def cramped(monkeypatch: pytest.MonkeyPatch, members: int, error: Exception, when: str = "advance") -> None:
    """More than this number of members at a time do not fit into memory, also if some are idle."""
    live: dict[int, int] = {}
    real, real_close = getattr(FakeCohort, when), FakeCohort.close

    def needs_memory(self: FakeCohort, *received: Any) -> Any:
        live[id(self)] = len(self.members)
        if sum(live.values()) > members:
            raise error
        return real(self, *received)

    def close(self: FakeCohort) -> None:
        live.pop(id(self), None)
        real_close(self)

    monkeypatch.setattr(FakeCohort, when, needs_memory)
    monkeypatch.setattr(FakeCohort, "close", close)


MEMBERS = ("m00", "m01", "m02", "m03")


SHORTAGES = [
    MemoryError("no"),
    torch.OutOfMemoryError("CUDA out of memory."),
    torch.AcceleratorError("CUDA error: out of memory"),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    WorkerPoolError("process 0 raised OutOfMemoryError: CUDA out of memory."),
    None,
]


@pytest.mark.parametrize("when", ["advance", "begin"])
@pytest.mark.parametrize("error", SHORTAGES)
def test_out_of_memory_cohort_is_split_in_halves(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, error: Exception | None, when: str
) -> None:
    if error is None:
        with pytest.raises(RuntimeError) as caught:
            torch.empty(10**16)
        error = caught.value
    cramped(monkeypatch, 2, error, when)
    failures = place.run(*(slice_of(m) for m in MEMBERS))
    assert all(isinstance(f, Failure) and f.memory and not f.alone for f in failures.values())
    place.calls()
    reports = place.run(*(slice_of(m) for m in MEMBERS))
    assert all(isinstance(r, Report) for r in reports.values())
    cohorts = ["cohort m00 m01", "close m00 m01", "cohort m02 m03"]
    assert [received for received in place.calls() if received.startswith(("cohort", "close"))] == cohorts
    again = place.run(*(slice_of(m, 1) for m in MEMBERS))  # the first two were given back, and are loaded again
    assert all(isinstance(r, Report) and r.step == 16 for r in again.values())
    assert place.store.load("m00/000001")[0]["steps"] == [16.0]


def test_member_waiting_for_memory_reports_nothing_on_stop(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then it keeps the host busy."""
    cramped(monkeypatch, 2, MemoryError())
    place.run(*(slice_of(m) for m in MEMBERS))
    place.host.submit([slice_of(m) for m in MEMBERS])
    place.host.advance()
    assert [r.assignment for r in place.host.stop()] == ["m00/000000", "m01/000000"]
    assert not place.host.busy()


@pytest.mark.parametrize("when", ["advance", "begin"])
def test_only_out_of_memory_alone_is_blamed(place: Workplace, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    cramped(monkeypatch, 1, MemoryError("no"), when)
    place.run(slice_of("m00"))
    blamed = place.run(slice_of("m01"))["m01/000000"]  # beside the idle m00
    assert isinstance(blamed, Failure)
    assert not blamed.alone
    assert isinstance(place.run(slice_of("m01"))["m01/000000"], Report)
    monkeypatch.undo()
    cramped(monkeypatch, 0, MemoryError("no"), when)
    blamed = place.run(slice_of("m02"))["m02/000000"]
    assert isinstance(blamed, Failure)
    assert blamed.alone


def test_oversized_member_leaves_room_for_another(tmp_path: Path) -> None:
    place = Workplace(tmp_path / "members", huge="m00")
    (blamed,) = place.run(slice_of("m00")).values()
    assert isinstance(blamed, Failure)
    assert blamed.alone
    place.host.submit([slice_of("m01")])
    answers = [answer for _ in range(6) for answer in place.host.advance()]  # waits for ever where there is no room
    assert [(answer.assignment, type(answer)) for answer in answers] == [("m01/000000", Report)]
