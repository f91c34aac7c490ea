"""Parsing of journal lines: what is valid becomes a record, anything else is damage with its place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.records import (
    Decision,
    FailureRecord,
    Record,
    ReportRecord,
    RunChanged,
    RunFinished,
    RunResumed,
    RunStopped,
    SnapshotLost,
    SnapshotRemade,
    UnknownRecord,
    changes_made,
    duration,
)
from pbtrl.errors import JournalError
from pbtrl.storage.journal import JournalTail, Line, read_journal
from pbtrl.storage.parsing import parse_best, parse_record
from pbtrl.storage.run_header import RunHeader, read_header
from tests.journal_writer import best_json

HEADER = RunHeader("a", 1, 2, 1000, total=1500)
GIVEN = Assignment(
    "m01/000003", "m01", "m00/000002", 300, 400, {"lr": 0.1, "cell": "gru", "hidden": None}, 7, "m00", "why", "m01",
    True, {"gap": 2.0},
)  # fmt: skip
DONE = Report(
    "m01/000003", "m01", 390, {"lr": 0.1}, (1.0, None, 3), (5, 6, 7), (2.5,), ((310, 1.0), (320, None)),
    {"learning/updates": 9.0, "loss": None}, True, {"seconds": 2.0, "time": 9.0, "elapsed": 8.5}, {"lr": 0.1},
)  # fmt: skip
DIED = Failure("m01/000003", "m01", "killed", True, False, "m00/000002", True)
TIMING = {"time": 9.0, "elapsed": 8.5}
CLOCK: dict[str, Any] = {"time": 9.0, "elapsed": 8.5}

RECORDS: dict[str, tuple[Line, Record]] = {
    "decision": (
        {"assignments": [GIVEN.to_json()], "free": 2, "retired": ["m00"]},
        Decision((GIVEN,), ("m00",), 2, **CLOCK),
    ),
    "report": ({k: v for k, v in DONE.to_json().items() if k != "timing"}, ReportRecord(DONE, **CLOCK)),
    "failure": ({**DIED.to_json(), "attempt": 3, "given_up": True}, FailureRecord(DIED, True, 3, **CLOCK)),
    "void": ({"snapshot": "m00/000002", "error": "missing"}, SnapshotLost("m00/000002", "missing", **CLOCK)),
    "remade": (
        {"snapshot": "m00/000002", "member": "m01", "step": 300},
        SnapshotRemade("m00/000002", "m01", 300, **CLOCK),
    ),
    "resume": ({"horizon": 2000, "total": None, "changes": ["x"]}, RunResumed(2000, None, ("x",), **CLOCK)),
    "set": (
        {"settings": {"a.b": [1, 2]}, "retired": ["m00"], "bounds": {"": {"lr": [0.1, 1]}}, "request": "1.json"},
        RunChanged({"a.b": [1, 2]}, ("m00",), {"": {"lr": [0.1, 1]}}, "1.json", **CLOCK),
    ),
    "stop": ({"reason": "interrupted"}, RunStopped("interrupted", **CLOCK)),
    "finish": ({"reason": "budget"}, RunFinished("budget", **CLOCK)),
    "newer": ({"x": 1}, UnknownRecord("newer", **CLOCK)),
}


def line_of(kind: str, **changes: Any) -> Line:
    timing = {**TIMING, "seconds": 2.0} if kind == "report" else TIMING
    line: Line = json.loads(json.dumps({"kind": kind, **RECORDS[kind][0], "timing": timing, **changes}))
    return line


@pytest.mark.parametrize("kind", RECORDS)
def test_line_becomes_its_record(kind: str) -> None:
    """Also one with a key of a later version."""
    assert parse_record(line_of(kind), "j:2") == RECORDS[kind][1]
    assert parse_record(line_of(kind, later=[1]), "j:2") == RECORDS[kind][1]


def test_assignment_may_have_keys_of_a_later_version() -> None:
    later = {**GIVEN.to_json(), "later": 1}
    assert parse_record(line_of("decision", assignments=[later]), "j:2") == RECORDS["decision"][1]


def test_earlier_versions_wrote_fewer_keys() -> None:
    first = {
        "id": "m00/000000",
        "member": "m00",
        "parent": None,
        "start": 0,
        "stop": 100,
        "hyperparameters": {},
        "seed": 1,
    }
    assert parse_record({"kind": "decision", "assignments": [first]}, "j:2") == Decision(
        (Assignment("m00/000000", "m00", None, 0, 100, {}, 1),)
    )
    done = {"assignment": "m00/000000", "member": "m00", "step": 100, "hyperparameters": {}}
    assert parse_record({"kind": "report", **done}, "j:3") == ReportRecord(Report("m00/000000", "m00", 100, {}))
    assert parse_record({"kind": "resume"}, "j:4") == RunResumed()


def test_earlier_versions_wrote_nan() -> None:
    """It is NaN where results are averaged, and null among the scalars, which are shown."""
    line = line_of("report", returns=[math.nan, 1.0], curve=[[1, math.nan]], scalars={"x": math.nan, "y": 1.0})
    record = parse_record(line, "j:2")
    assert isinstance(record, ReportRecord)
    assert repr((record.report.returns, record.report.curve)) == "((nan, 1.0), ((1, nan),))"
    assert record.report.scalars == {"x": None, "y": 1.0}
    decided = parse_record(line_of("decision", assignments=[{**GIVEN.to_json(), "scalars": {"x": None, "y": 1}}]), "j")
    assert isinstance(decided, Decision)
    assert decided.assignments[0].scalars == {"y": 1}


GARBAGE = [None, -1, 10**400, 1.5, float("nan"), float("inf"), True, "x", [3], [None, "x"], {"x": []}, {"x": 1e999}]
ALLOWED: dict[str, list[Any]] = {  # by key: the values in GARBAGE that are valid
    "free": [None, -1, 10**400], "attempt": [-1, 10**400], "horizon": [None, -1, 10**400], "total": [None, -1, 10**400],
    "scalars": [{"x": 1e999}], "failure snapshot": [None, "x"], "snapshot": ["x"], "error": ["x"], "reason": ["x"],
    "member": ["x"],
    "assignment": ["x"],
    "request": [None, "x"],
    "fatal": [True], "alone": [True], "memory": [True], "given_up": [True], "diverged": [True],
    "settings": [{"x": []}, {"x": 1e999}], "bounds": [None, {"x": []}, {"x": 1e999}], "x": GARBAGE,
    "lengths": [[3]], "returns": [[3]], "evaluation": [[3]],
}  # fmt: skip


@pytest.mark.parametrize("kind", RECORDS)
def test_value_of_another_type_is_damage(kind: str) -> None:
    for key in RECORDS[kind][0]:
        allowed = [repr(x) for x in ALLOWED.get(f"{kind} {key}", ALLOWED.get(key, []))]
        for value in GARBAGE:
            line = {**line_of(kind), key: value}
            if repr(value) in allowed:
                assert parse_record(line, "j:2") != RECORDS["decision"][1]
            else:
                with pytest.raises(JournalError, match=rf"^runs/a/journal.jsonl:7 is damaged: {key} must be .*, not "):
                    parse_record(line, "runs/a/journal.jsonl:7")


ID_ERROR = "id must be a member and a number, as in m03/000012, not "


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "m01"}, ID_ERROR + "'m01'"),
        ({"id": "m01/x"}, ID_ERROR),
        ({"id": "m01/²"}, ID_ERROR),
        ({"id": "m01/" + "1" * 19}, ID_ERROR),
        ({"seed": 0.5}, "seed must be an integer, not 0.5"),
        ({"start": -1}, "start must be an integer in"),
        ({"stop": 2**53 + 1}, "stop must be an integer in"),
        ({"parent": 3}, "parent must be text or null"),
        ({"hyperparameters": {"agent": ["a"]}}, "hyperparameters must be finite numbers"),
        ({"hyperparameters": {"lr": 1e999}}, "hyperparameters must be finite numbers"),
        ({"inherit": 1}, "inherit must be true or false"),
        ({"scalars": {"x": "y"}}, "scalars must be numbers or nulls by tag"),
    ],
)
def test_damaged_assignment(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(JournalError, match=f"j:2 is damaged: {message}"):
        parse_record(line_of("decision", assignments=[{**GIVEN.to_json(), **changes}]), "j:2")


@pytest.mark.parametrize("curve", [[[1]], [[1, 2, 3]], [[-1, 0.5]], [[0.5, 0.5]], [[1, "x"]], [1], [{}]])
def test_damaged_curve(curve: Any) -> None:
    with pytest.raises(JournalError, match="curve must be pairs of a step and"):
        parse_record(line_of("report", curve=curve), "j:2")


@pytest.mark.parametrize("timing", [None, 3, {"elapsed": "x"}, {"seconds": -1.0}, {"elapsed": 2e10}, {"time": None}])
def test_impossible_time_is_damage(timing: Any) -> None:
    with pytest.raises(JournalError, match=r"timing must consist of numbers in \[0, 1e\+10\], not "):
        parse_record(line_of("stop", timing=timing), "j:2")


@pytest.mark.parametrize("counts", [{"learning/skipped_updates": 1e308}, {"learning/updates": -1}])
def test_impossible_number_of_updates_is_damage(counts: dict[str, float]) -> None:
    with pytest.raises(JournalError, match="j:2 is damaged: scalars must be"):
        parse_record(line_of("report", scalars=counts), "j:2")


def test_kind_that_is_no_text_is_damage() -> None:
    with pytest.raises(JournalError, match=r"j:2 is damaged: kind must be text, not \['stop'\]"):
        parse_record({"kind": ["stop"]}, "j:2")


def test_missing_key_is_damage() -> None:
    with pytest.raises(JournalError, match="j:2 is damaged: member is missing"):
        parse_record({"kind": "report", "assignment": "m00/000000", "step": 1, "hyperparameters": {}}, "j:2")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 0), ("size", "2"), ("horizon", 1.5), ("seed", 2**300), ("name", 3), ("total", 0),
        ("rule", {"window": "x"}), ("rule", {"min_episodes": None}), ("rule", {"share": "x"}), ("rule", {"source": 3}),
        ("seed", -1), ("horizon", 0), ("horizon", 2**60), ("rule", {"cut_episodes": 1}),
        ("bounds", {"": {"lr": [0, 10**400]}}), ("bounds", {"": 3}), ("initial", {"run": "x"}),
        ("hyperparameters", [3]), ("roles", {"m00": 1}),
    ],
)  # fmt: skip
def test_damaged_header(key: str, value: Any) -> None:
    with pytest.raises(JournalError, match="j:1 is damaged: it does not describe a run: "):
        parse_record({**HEADER.to_line(), key: value}, "j:1")


def test_later_lines_change_the_header() -> None:
    first = parse_record(json.loads(json.dumps(HEADER.to_line())), "j:1")
    header, records = read_header([first, RunResumed(2000), RunChanged({}, bounds={"": {"lr": [0.5, 1.0]}})])
    assert (header.horizon, header.total, header.bounds, len(records)) == (2000, None, {"": {"lr": [0.5, 1.0]}}, 3)
    for change in (RunResumed(2**300), RunResumed(0), RunResumed(-7), RunResumed(1, 0), RunChanged({}, bounds={"": 3})):
        with pytest.raises(JournalError, match="a/j:2 is damaged: "):
            read_header([first, change], "a/j")
    with pytest.raises(JournalError, match="a/j:2 is damaged: only the first line is of kind run"):
        read_header([first, first], "a/j")
    with pytest.raises(JournalError, match="a/j is empty"):
        read_header([], "a/j")


def test_place_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = [json.dumps(line) + "\n" for line in (HEADER.to_line(), line_of("stop"), line_of("stop", reason=3))]
    path.write_text("".join(lines[:2]))
    tail = JournalTail(path)
    assert len(tail.read()) == 2
    path.write_text("".join(lines))
    for read in (tail.read, lambda: list(read_journal(path))):
        with pytest.raises(JournalError, match=r"journal\.jsonl:3 is damaged: reason must be text, not 3"):
            read()


def test_duration_and_changes() -> None:
    records = [RunResumed(), RunChanged({"a": 1}, ("m00",), elapsed=3.0), RunStopped(elapsed=2.0)]
    assert duration(records) == 3.0
    assert duration([]) == 0.0
    assert changes_made(records) == [{"elapsed": 3.0, "settings": {"a": 1}, "retired": ["m00"]}]
    assert RunChanged({"a": "x", "b": [1.5, 2]}, ("m00",)).text == "a x, b [1.5, 2], m00 retired"
    assert RunChanged({"a": 1}, request="r").to_json() == {"settings": {"a": 1}, "retired": (), "request": "r"}


def test_best_json_of_an_older_version_is_read() -> None:
    best = parse_best(json.loads(Path("tests/golden/run-0.1.0/best.json").read_text()))
    assert (best.member, best.snapshot, best.evaluation.ci95) == ("m01", "m01/000002", None)
    assert best.means == {"m01": 0.27354145023245935, "m00": 0.2499357643421959}


def test_scores_that_are_not_finite_are_absent() -> None:
    best = parse_best(best_json("m00", math.nan, ci95=[0.0, math.inf], selection={"m01": None}))
    assert (best.evaluation.return_mean, best.evaluation.ci95) == (None, None)
    assert best.means == {"m01": None, "m00": None}
