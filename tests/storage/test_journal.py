"""The journal: after crashes, while it is read, and equality of two journals."""

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pbtrl.core.population import Population
from pbtrl.core.records import RunChanged
from pbtrl.errors import DiskFullError, JournalError, NewerError, RunError
from pbtrl.storage.journal import Journal, Line, canonical, digest, dumps, read_journal, read_lines
from pbtrl.storage.json_files import SCHEMA
from pbtrl.storage.parsing import parse_record
from pbtrl.testing.fakes import LAST, died, trained
from tests.fakes import answer_line, assign, decision_line

pytestmark = pytest.mark.usefixtures("quick_disk")

RUN: Line = {"kind": "run", "schema": SCHEMA, "name": "té\nst", "seed": 0, "size": 3, "horizon": 200}


def journal_of(path: Path, *lines: Line) -> Path:
    journal = Journal(path)
    for line in lines:
        journal.append(line)
    journal.close()
    return path


def short_run(*, order: int = 0, retries: int = 0, seconds: float = 1.0) -> list[Line]:
    """Two generations of three members; `order` shuffles arrivals and the decisions for them."""
    population, shuffle = Population(3, 0, LAST), random.Random(order)
    lines: list[Line] = [RUN]
    for generation in range(2):
        assignments = [assign(population, m) for m in population.members]
        shuffle.shuffle(assignments)
        if order:
            lines += [decision_line(a) for a in assignments]
        else:
            lines.append(decision_line(*assignments))
        shuffle.shuffle(assignments)
        for a in assignments:
            lines += [answer_line(died(a), given_up=False)] * retries
            lines.append(answer_line(trained(a, 10.0 * generation + int(a.member[1:]))))
        population = Population(3, 0, LAST).replay(parse_record(line, "j") for line in lines)
    return [{**line, "timing": {"elapsed": seconds * i}} for i, line in enumerate(lines)]


# Reading and writing


def test_journal_round_trips(tmp_path: Path) -> None:
    lines = short_run()
    path = journal_of(tmp_path / "j", *lines)
    assert read_lines(path) == lines
    assert list(read_journal(path)) == [parse_record(line, "j") for line in lines]


def test_append_returns_the_record_as_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    seen = journal.append({"kind": "set", "settings": {"pair": (1, 2.5)}, "timing": {"elapsed": 3.0}})
    journal.close()
    assert seen == RunChanged({"pair": [1, 2.5]}, elapsed=3.0)
    assert list(read_journal(journal.path)) == [seen]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_round_trip_exactly(value: float) -> None:
    assert json.loads(dumps(value)) == value


def test_journal_is_read_while_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for place, line in enumerate(short_run()):
        assert len(list(read_journal(journal.path))) == place
        journal.append(line)
    journal.close()


def test_append_syncs_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    journal = Journal(tmp_path / "j")
    for line in short_run():
        journal.append(line)
        assert synced[-1] == journal.path.stat().st_size
    journal.close()


# What a crash leaves


REPORT = answer_line(trained(assign(Population(1, 0, LAST), "m00"), 1.0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"kind": "stop", "reason": 3}, "reason must be text, not 3"),
        ({**REPORT, "scalars": {"phase": "warmup"}}, "scalars must be numbers"),
        ({**REPORT, "lengths": [10.0]}, "lengths must be a list of numbers of steps"),
    ],
)
def test_line_that_readers_would_refuse_is_not_written(tmp_path: Path, line: Line, message: str) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"kind": "stop", "reason": "x"})
    before = journal.path.read_bytes()
    with pytest.raises(RunError, match=f"journal.jsonl cannot hold this {line['kind']}: {message}"):
        journal.append(line)
    journal.close()
    assert journal.path.read_bytes() == before


def test_contradicting_line_is_not_written(tmp_path: Path) -> None:
    population = Population(1, 0, LAST)
    line = decision_line(assign(population, "m00", parent="m00/000007"))
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(RunError, match=r"this decision: .* m00/000007, which was never made"):
        journal.append(line, accept=population.record)
    journal.close()
    assert journal.path.read_bytes() == b""


def test_torn_last_line_is_ignored(tmp_path: Path) -> None:
    lines = short_run()[:3]
    whole = journal_of(tmp_path / "whole", *lines).read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    torn = tmp_path / "torn"
    for end in range(last, len(whole)):
        torn.write_bytes(whole[:end])
        assert read_lines(torn) == lines[:2]
        journal = Journal(torn)
        journal.append(lines[2])
        journal.close()
        assert torn.read_bytes() == whole


def test_torn_first_line_gives_an_empty_journal(tmp_path: Path) -> None:
    path = tmp_path / "j"
    path.write_bytes(b'{"kind":"ru')
    assert list(read_journal(path)) == []
    Journal(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("garbage", [b"\0" * 40, b"{", b"[1]", b"3", b"\xff\xfe", b"{}", b"", b'{"kind":"run"}'])
def test_garbage_is_reported_with_its_line_number(tmp_path: Path, garbage: bytes) -> None:
    first, *rest = journal_of(tmp_path / "j", *short_run()).read_bytes().splitlines()
    (tmp_path / "j").write_bytes(b"\n".join([first, garbage, *rest]) + b"\n")
    with pytest.raises(JournalError, match=r"j:2: not a journal line"):
        list(read_journal(tmp_path / "j"))


@pytest.mark.parametrize("version", [SCHEMA + 1, "2", None])
def test_newer_schema_is_refused(tmp_path: Path, version: Any) -> None:
    newer = journal_of(tmp_path / "newer", {**RUN, "schema": version})
    with pytest.raises(NewerError, match=rf"newer:1: written by a newer pbtrl \(schema {version}; .* {SCHEMA}\)"):
        list(read_journal(newer))
    resumed = journal_of(tmp_path / "resumed", RUN, {"kind": "resume"}, {"kind": "resume", "schema": version})
    with pytest.raises(NewerError, match="resumed:3: written by a newer pbtrl"):
        list(read_journal(resumed))


# Where it is not what it was


def test_moved_or_deleted_run_is_not_recreated(tmp_path: Path) -> None:
    run = tmp_path / "a"
    run.mkdir()
    journal = Journal(run / "journal.jsonl")
    journal.append(RUN)
    run.rename(tmp_path / "b")
    with pytest.raises(RunError, match=r"a was moved or deleted during training; resume it at its new place$"):
        journal.append({"kind": "stop"})
    run.mkdir()
    (run / "journal.jsonl").touch()  # of another run
    with pytest.raises(RunError, match="was moved or deleted"):
        journal.append({"kind": "stop"})
    journal.close()
    assert read_lines(tmp_path / "b/journal.jsonl") == [RUN]


def test_read_only_file_system_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    journal = Journal(tmp_path / "j")
    monkeypatch.setattr(Journal, "_write", refuses)
    monkeypatch.setattr(os, "ftruncate", refuses)
    with pytest.raises(DiskFullError, match=r"^cannot write .*/j: Read-only file system$"):
        journal.append(RUN)
    journal.close()


# The same journal


def test_digest_ignores_clocks_retries_and_arrival_order() -> None:
    expected = digest(short_run())
    assert digest(short_run(seconds=7.0)) == expected
    assert digest(short_run(retries=2)) == expected
    assert all(digest(short_run(order=order)) == expected for order in range(1, 6))


def test_digest_ignores_resumes() -> None:
    lines = short_run()
    resumed = [*lines[:4], {"kind": "stop"}, {"kind": "resume", "timing": {"time": 1.0}}, *lines[4:]]
    assert digest([*resumed, {"kind": "finish", "reason": "budget"}]) == digest(lines)


def changed(lines: list[Line], place: int, **changes: Any) -> list[Line]:
    return [{**line, **changes} if i == place else line for i, line in enumerate(lines)]


def test_digest_changes_with_everything_else() -> None:
    lines = short_run()
    report = next(i for i, line in enumerate(lines) if line["kind"] == "report")
    decided = next(i for i, line in enumerate(lines) if line["kind"] == "decision")
    first, *rest = lines[decided]["assignments"]
    others = [
        lines[:-1],
        changed(lines, report, returns=[0.1]),
        changed(lines, report, diverged=True),
        changed(lines, decided, assignments=[{**first, "seed": 9}, *rest]),
    ]
    assert len({digest(x) for x in [lines, *others]}) == 5


def test_canonical_journal_is_sorted_by_generation_and_member() -> None:
    result = canonical(short_run(order=3, retries=1))
    assert [(x.get("id") or x["assignment"], "id" in x) for x in result] == [
        (f"m0{m}/00000{g}", decided) for g in range(2) for m in range(3) for decided in (True, False)
    ]
    assert not any("timing" in x for x in result)
