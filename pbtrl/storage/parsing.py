"""Parsing of journal lines and best.json: every value is checked here, once, so that readers need not."""

from __future__ import annotations

import json
import math
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, NamedTuple, TypeVar

from pbtrl.core.dimensions import AGENT
from pbtrl.core.messages import SKIPPED_UPDATES, UPDATES, Assignment, Failure, Report
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
)
from pbtrl.core.scores import BestMember, Score
from pbtrl.core.values import LARGEST_EXACT_INTEGER, LATEST
from pbtrl.errors import JournalError
from pbtrl.storage.run_header import HeaderRecord, RunHeader
from pbtrl.system.strict_json import to_json

Parsed = TypeVar("Parsed")

NUMBER = (int, float)
LARGEST_FLOAT = sys.float_info.max


class _Check(NamedTuple):
    """Valid values of a key, in words, and their conversion from JSON."""

    valid: Callable[[Any], bool]
    description: str
    convert: Callable[[Any], Any] | None = None


def parse_record(line: Mapping[str, Any], place: str) -> Record:
    """Parse a journal line, as `parse_line` does.

    Args:
        line: the line, which has a `kind`.
        place: file and number of the line, for errors.

    Raises:
        JournalError: a key is missing or has an invalid value.
    """
    try:
        return parse_line(line)
    except ValueError as error:
        raise JournalError(f"{place} is damaged: {error}") from error


def parse_report(body: Mapping[str, Any]) -> Report:
    """Parse a report, as JSON has it or as `Report.to_json` returns it, as if it were a line of a journal.

    Raises:
        ValueError: a key is missing or has an invalid value.
        TypeError: a value cannot be expressed in JSON.
    """
    record = parse_line({**json.loads(to_json(body)), "kind": "report"})
    assert isinstance(record, ReportRecord)
    return record.report


def parse_best(content: Mapping[str, Any]) -> BestMember:
    """Parse the content of best.json; unknown keys are ignored.

    Raises:
        ValueError: a key is missing or has an invalid value.
    """
    return _parse(BestMember, content)


def parse_line(line: Mapping[str, Any]) -> Record:
    """Parse a journal line, which has a `kind`; unknown keys are ignored.

    Raises:
        ValueError: a key is missing or has an invalid value.
    """
    timing, kind = line.get("timing", {}), line["kind"]
    if not _is_timing(timing):
        raise ValueError(f"timing must consist of numbers in [0, {LATEST:.0e}], not {reprlib.repr(timing)}")
    clock = {"elapsed": timing.get("elapsed", 0.0), "time": timing.get("time", 0.0)}
    if type(kind) is not str:
        raise ValueError(f"kind must be text, not {reprlib.repr(kind)}")
    match kind:
        case "run":
            return HeaderRecord(RunHeader.from_line(line))
        case "report":
            return ReportRecord(_parse(Report, line), **clock)
        case "failure":
            return _parse(FailureRecord, line, {**clock, "failure": _parse(Failure, line)})
        case _ if kind in _KINDS:
            return _parse(_KINDS[kind], line, clock)
        case _:
            return UnknownRecord(kind, **clock)


def _parse(cls: Callable[..., Parsed], body: Mapping[str, Any], parsed: Mapping[str, Any] | None = None) -> Parsed:
    values: dict[str, Any] = dict(parsed or {})
    for name, expected in _KEYS[cls].items():
        if name in body:
            value = body[name]
            if not expected.valid(value):
                raise ValueError(f"{name} must be {expected.description}, not {reprlib.repr(value)}")
            values[name] = expected.convert(value) if expected.convert else value
        elif name in _REQUIRED[cls]:
            raise ValueError(f"{name} is missing")
    return cls(**values)


def _are_numbers_or_nulls(values: Iterable[Any]) -> bool:
    """Check for numbers and nulls; earlier versions wrote NaN where there is null now."""
    try:
        set(map(math.isfinite, [v for v in values if v is not None]))
    except (TypeError, OverflowError):
        return False
    return True


def _is_interval(x: Any) -> bool:
    return x is None or (type(x) is list and len(x) == 2 and _are_numbers_or_nulls(x))


def _finite_interval(x: list[float | None] | None) -> tuple[float, ...] | None:
    ends = [end for end in x or () if end is not None and math.isfinite(end)]
    return tuple(ends) if len(ends) == 2 else None


def _is_timing(x: Any) -> bool:
    return type(x) is dict and all(isinstance(v, NUMBER) and 0 <= v <= LATEST for v in x.values())


def _is_step(x: Any) -> bool:
    return type(x) is int and 0 <= x <= LARGEST_EXACT_INTEGER


def _are_steps(values: Sequence[Any]) -> bool:
    return not values or (set(map(type, values)) == {int} and min(values) >= 0 and max(values) <= LARGEST_EXACT_INTEGER)


def _is_curve(x: Any) -> bool:
    if type(x) is not list or not set(map(type, x)) <= {list} or not set(map(len, x)) <= {2}:
        return False
    return _are_steps([step for step, _ in x]) and _are_numbers_or_nulls([value for _, value in x])


def _finite_or_null(x: dict[str, Any]) -> dict[str, Any]:
    return {tag: y if y is not None and math.isfinite(y) else None for tag, y in x.items()}


def _finite_only(x: dict[str, Any]) -> dict[str, Any]:
    return {tag: y for tag, y in x.items() if y is not None and math.isfinite(y)}


def _are_hyperparameters(x: Any) -> bool:
    if type(x) is not dict or type(x.get(AGENT, "")) is not str:
        return False
    return all(
        v is None or type(v) in (str, bool) or (isinstance(v, NUMBER) and abs(v) <= LARGEST_FLOAT) for v in x.values()
    )


def _are_scalars(x: Any) -> bool:
    if type(x) is not dict or not _are_numbers_or_nulls(x.values()):
        return False
    return all(0 <= x[tag] <= LARGEST_EXACT_INTEGER for tag in (SKIPPED_UPDATES, UPDATES) if x.get(tag) is not None)


def _is_slice_name(x: Any) -> bool:
    """Check for a name such as `m03/000012`."""
    return type(x) is str and (number := x.rpartition("/")[2]).isascii() and number.isdigit() and len(number) < 19


_TEXT = _Check(lambda x: type(x) is str, "text")
_OPTIONAL_TEXT = _Check(lambda x: x is None or type(x) is str, "text or null")
_TEXTS = _Check(lambda x: type(x) is list and set(map(type, x)) <= {str}, "a list of text", tuple)
_SLICE = _Check(_is_slice_name, "a member and a number, as in m03/000012")
_FLAG = _Check(lambda x: type(x) is bool, "true or false")
_INTEGER = _Check(lambda x: type(x) is int, "an integer")
_STEP = _Check(_is_step, f"an integer in [0, {LARGEST_EXACT_INTEGER}]")
_OBJECT = _Check(lambda x: type(x) is dict, "an object")
_HYPERPARAMETERS = _Check(_are_hyperparameters, "finite numbers, texts, true, false or null by hyperparameter")
_NUMBERS = _Check(lambda x: type(x) is list and _are_numbers_or_nulls(x), "a list of numbers or nulls", tuple)
_SCALARS = _Check(_are_scalars, "numbers or nulls by tag", _finite_or_null)
_ASSIGNMENTS = _Check(
    lambda x: type(x) is list and set(map(type, x)) <= {dict},
    "a list of assignments",
    lambda x: tuple(_parse(Assignment, body) for body in x),
)
_SCORE = _Check(lambda x: type(x) is dict, "an object", lambda x: _parse(Score, x))
_SCORES = _Check(
    lambda x: type(x) is list and set(map(type, x)) <= {dict},
    "a list of objects",
    lambda x: tuple(_parse(Score, body) for body in x),
)
_OPTIONAL_INTEGER = _Check(lambda x: x is None or type(x) is int, "an integer or null")

_KEYS: dict[Any, dict[str, _Check]] = {
    Assignment: {
        "id": _SLICE, "member": _TEXT, "parent": _OPTIONAL_TEXT, "start": _STEP, "stop": _STEP,
        "hyperparameters": _HYPERPARAMETERS, "seed": _INTEGER, "donor": _OPTIONAL_TEXT, "note": _TEXT,
        "hparams_donor": _OPTIONAL_TEXT, "inherit": _FLAG, "scalars": _SCALARS._replace(convert=_finite_only),
    },
    Report: {
        "assignment": _TEXT, "member": _TEXT, "step": _STEP, "hyperparameters": _HYPERPARAMETERS, "returns": _NUMBERS,
        "lengths": _Check(lambda x: type(x) is list and _are_steps(x), "a list of numbers of steps", tuple),
        "evaluation": _NUMBERS,
        "curve": _Check(_is_curve, "pairs of a step and a number or null", lambda x: tuple(map(tuple, x))),
        "scalars": _SCALARS, "diverged": _FLAG, "timing": _OBJECT, "assigned": _HYPERPARAMETERS,
    },
    Failure: {
        "assignment": _TEXT, "member": _TEXT, "error": _TEXT, "fatal": _FLAG, "alone": _FLAG,
        "snapshot": _OPTIONAL_TEXT, "memory": _FLAG,
    },
    Decision: {"assignments": _ASSIGNMENTS, "retired": _TEXTS, "free": _OPTIONAL_INTEGER},
    FailureRecord: {"attempt": _INTEGER, "given_up": _FLAG},
    SnapshotLost: {"snapshot": _TEXT, "error": _TEXT},
    SnapshotRemade: {"snapshot": _TEXT, "member": _TEXT, "step": _STEP},
    RunResumed: {"horizon": _OPTIONAL_INTEGER, "total": _OPTIONAL_INTEGER, "changes": _TEXTS},
    RunChanged: {
        "settings": _OBJECT, "retired": _TEXTS, "request": _OPTIONAL_TEXT,
        "bounds": _Check(lambda x: x is None or type(x) is dict, "an object or null"),
    },
    RunStopped: {"reason": _TEXT},
    RunFinished: {"reason": _TEXT},
    Score: {
        "member": _TEXT, "episodes": _INTEGER, "held_out": _FLAG, "truncated": _INTEGER, "timed_out": _FLAG,
        "unmeasured": _INTEGER,
        "return_mean": _Check(
            lambda x: _are_numbers_or_nulls([x]), "a number or null", lambda x: _finite_or_null({"": x})[""]
        ),
        "ci95": _Check(_is_interval, "two numbers or null", _finite_interval), "max_steps": _OPTIONAL_INTEGER,
    },
    BestMember: {
        "member": _TEXT, "snapshot": _TEXT, "sha256": _TEXT, "evaluation": _SCORE, "selection": _SCORES,
    },
}  # fmt: skip
_KINDS: dict[str, Callable[..., Record]] = {
    "decision": Decision, "void": SnapshotLost, "remade": SnapshotRemade, "resume": RunResumed, "set": RunChanged,
    "stop": RunStopped, "finish": RunFinished,
}  # fmt: skip

_REQUIRED = {
    cls: {f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING} for cls in _KEYS
}
