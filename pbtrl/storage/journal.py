"""Append-only journal of a run, its single source of truth: one JSON object per line, one writer, many readers.

    {"kind": "run", "schema": 1, "name": ..., "seed": ..., "size": ...}          first line
    {"kind": "decision", "assignments": [...], "free": 8, "retired": [], "timing": {...}}
                                           assignments, free places for members, and members that will not train again
    {"kind": "report", "assignment": "m03/000012", "step": ..., ..., "timing": {...}}
    {"kind": "failure", "assignment": ..., "error": ..., "given_up": false, "timing": {...}}
    {"kind": "void", "snapshot": "m03/000012", "error": ..., "timing": {...}}    the snapshot is lost
    {"kind": "remade", "snapshot": "m03/000012", "member": ..., ...}             the lost snapshot was made again
    {"kind": "set", "settings": {...}, "retired": [...], ...}
    {"kind": "resume" | "stop" | "finish", ...}

Values that depend on clocks are under `timing`. The canonical journal consists of the decisions and the successful
reports, sorted by (generation, member), without `timing`. Two runs have "the same journal" if its SHA-256 is equal.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pbtrl.core.records import Record
from pbtrl.errors import DiskFullError, JournalError, RunError
from pbtrl.storage.json_files import check_version, read_plain_file
from pbtrl.storage.parsing import parse_line, parse_record
from pbtrl.system.crash_points import crash_point
from pbtrl.system.files import is_same_file, reason, sync_directory, translate_disk_errors
from pbtrl.system.strict_json import to_json

Line = dict[str, Any]


class Journal:
    """Writer of the journal at `path`; every line is on disk before `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():
            raise JournalError(f"{path} is not a regular file")
        self._drop_torn_line()
        self._file = path.open("ab", buffering=0)
        with translate_disk_errors(path):
            sync_directory(path.parent)

    def append(self, line: Line, accept: Callable[[Record], None] = lambda record: None) -> Record:
        """Write one line durably and return its record, as readers will have it; after an error there is no new line.

        Args:
            line: its content.
            accept: gets the record before it is written; a ValueError says that readers would refuse it. After any
                error it may have been called, so its state is ahead of the journal.

        Raises:
            DiskFullError: no space is left.
            RunError: the line cannot be written, readers would refuse it, or the run directory was moved.
        """
        data = dumps(line).encode() + b"\n"
        try:
            record = parse_line(json.loads(data))
            accept(record)
        except ValueError as error:
            raise RunError(f"{self.path} cannot hold this {line['kind']}: {error}") from error
        self._check_place()
        crash_point(f"journal.before {line['kind']}")
        before = os.fstat(self._file.fileno()).st_size
        try:
            with translate_disk_errors(self.path, len(data)):
                self._write(data)
                crash_point(f"journal.wrote {line['kind']}")
                os.fsync(self._file.fileno())
        except DiskFullError:  # part of the line may be in the file
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), before)
            raise
        except OSError as error:
            raise RunError(f"cannot write to {self.path}: {reason(error)}") from error
        crash_point(f"journal.synced {line['kind']}")
        return record

    def _check_place(self) -> None:
        """Refuse to write if the run directory was moved: workers write to its path, the journal to the open file."""
        if not is_same_file(self.path, self._file):
            raise RunError(f"{self.path.parent} was moved or deleted during training; resume it at its new place")

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _drop_torn_line(self) -> None:
        if is_torn(self.path):
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)


def is_torn(path: Path) -> bool:
    """Return whether the last line is incomplete; readers ignore such a line."""
    return path.is_file() and not (b"\n" + read_plain_file(path)).endswith(b"\n")


def read_journal(path: Path) -> Iterator[Record]:
    """Yield the record of every complete line of a journal; the writer may still be at work.

    Raises:
        JournalError: a line is damaged; the message has its number.
        NewerError: a newer pbtrl began or resumed the run.
    """
    yield from _records(read_plain_file(path), path, 0)


def read_lines(path: Path) -> list[Line]:
    """Read every complete line with all its keys, to compare journals.

    Raises:
        JournalError: a line is no JSON object or has no kind; values are not checked.
        NewerError: a newer pbtrl began or resumed the run.
    """
    return [line for line, _ in _parsed(read_plain_file(path), path, 0)]


class JournalTail:
    """Incremental reader of a journal whose writer may be at work.

    Attributes:
        count: number of lines that were read.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._start, self.count = path, 0, 0

    def read(self) -> list[Record]:
        """Return the records of new complete lines; the errors are those of `read_journal`."""
        data = read_plain_file(self._path, start=self._start)
        complete = data[: data.rfind(b"\n") + 1]
        records = list(_records(complete, self._path, self.count))
        self._start += len(complete)
        self.count += len(records)
        return records


def _records(data: bytes, path: Path, before: int) -> Iterator[Record]:
    """Yield the records in a part of a journal; `before` is the number of lines before it."""
    return (parse_record(line, place) for line, place in _parsed(data, path, before))


def _parsed(data: bytes, path: Path, before: int) -> Iterator[tuple[Line, str]]:
    """Yield every complete line with its place."""
    for number, raw in enumerate(data.split(b"\n")[:-1], before + 1):
        yield _parse(raw, place := f"{path}:{number}"), place


def _parse(raw: bytes, place: str) -> Line:
    try:
        line: Line = json.loads(raw)
        begins = line["kind"] in ("run", "resume")
        if line["kind"] == "run" and "schema" not in line:
            raise KeyError("schema")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise JournalError(f"{place}: not a journal line") from error
    if begins:
        check_version(line, place)
    return line


def dumps(value: object) -> str:
    """Serialize to one-line JSON; floats round-trip exactly."""
    return to_json(value, separators=(",", ":"))


def canonical(lines: Iterable[Line]) -> list[Line]:
    """Decided assignments and successful reports, sorted by (generation, member, kind), without `timing`.

    Reports are without `assigned`, which repeats the decision.
    """
    entries: list[tuple[tuple[int, str, str], Line]] = []
    for line in lines:
        if line["kind"] == "decision":
            entries += [(_sort_key(a["id"], "assignment"), a) for a in line["assignments"]]
        elif line["kind"] == "report":
            body = {k: v for k, v in line.items() if k not in ("timing", "assigned")}
            entries.append((_sort_key(line["assignment"], "report"), body))
    return [body for _, body in sorted(entries, key=lambda pair: pair[0])]


def digest(lines: Iterable[Line]) -> str:
    """SHA-256 of the canonical journal in hexadecimal."""
    return hashlib.sha256(dumps(canonical(lines)).encode()).hexdigest()


def _sort_key(name: str, kind: str) -> tuple[int, str, str]:
    member, generation = name.rsplit("/", 1)
    return int(generation), member, kind
