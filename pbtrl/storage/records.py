"""Typed records of journal lines, so that readers need not know the keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.errors import JournalError
from pbtrl.system.strict_json import to_json


@dataclass(frozen=True)
class Decision:
    """Decision of the strategy with all its assignments.

    Attributes:
        elapsed: seconds since the run's start, including previous sessions.
        retired: members that will not train again.
    """

    assignments: tuple[Assignment, ...]
    elapsed: float
    retired: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportRecord:
    """Report of a trained slice."""

    report: Report
    elapsed: float


@dataclass(frozen=True)
class FailureRecord:
    """Failed attempt at an assignment.

    Attributes:
        attempt: number of attempts that failed because of the assignment itself.
        given_up: whether it will not be retried, so that the strategy decides how to continue.
    """

    failure: Failure
    attempt: int
    given_up: bool
    elapsed: float


@dataclass(frozen=True)
class SnapshotLost:
    """Missing or damaged snapshot; the assignment that made it is run again."""

    snapshot: str
    error: str
    elapsed: float


@dataclass(frozen=True)
class SnapshotRemade:
    """Lost snapshot that `member` has made again; its report remains valid."""

    snapshot: str
    member: str
    step: int
    elapsed: float


@dataclass(frozen=True)
class RunResumed:
    """Start of a session that continues the run, with its config changes."""

    horizon: int
    changes: tuple[str, ...]


@dataclass(frozen=True)
class RunChanged:
    """Change by `pbtrl set`, which later decisions read.

    Attributes:
        settings: new values by dotted key.
        retired: members that will not train again.
    """

    settings: Mapping[str, Any]
    retired: tuple[str, ...]
    elapsed: float


@dataclass(frozen=True)
class RunStopped:
    """End of a session that was stopped and can be resumed."""

    reason: str
    elapsed: float


@dataclass(frozen=True)
class RunFinished:
    """End of a run, after the choice of its best member."""

    reason: str
    elapsed: float


Record = (
    Decision
    | ReportRecord
    | FailureRecord
    | SnapshotLost
    | SnapshotRemade
    | RunResumed
    | RunChanged
    | RunStopped
    | RunFinished
)


def parse_record(line: Mapping[str, Any]) -> Record | None:
    """Parse a journal line; None for the header and for kinds that this version does not know.

    Raises:
        JournalError: a key is missing or has an invalid value.
    """
    try:
        elapsed = float(line.get("timing", {}).get("elapsed", 0.0))
        match line["kind"]:
            case "decision":
                assignments = tuple(Assignment(**a) for a in line["assignments"])
                return Decision(assignments, elapsed, tuple(line.get("retired", ())))
            case "report":
                return ReportRecord(_message(Report, line), elapsed)
            case "failure":
                return FailureRecord(_message(Failure, line), int(line["attempt"]), bool(line["given_up"]), elapsed)
            case "void":
                return SnapshotLost(line["snapshot"], line["error"], elapsed)
            case "remade":
                return SnapshotRemade(line["snapshot"], line["member"], line["step"], elapsed)
            case "resume":
                return RunResumed(line.get("horizon", 0), tuple(line.get("changes", ())))
            case "set":
                return RunChanged(dict(line["settings"]), tuple(line["retired"]), elapsed)
            case "stop":
                return RunStopped(line["reason"], elapsed)
            case "finish":
                return RunFinished(line["reason"], elapsed)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise JournalError(f"a journal line of kind {line.get('kind')!r} is damaged: {error}") from error
    return None


def describe_change(line: Mapping[str, Any]) -> str:
    """Format a `set` line: `strategy.explore.factors [1.5, 0.7], m03 retired`."""
    parts = [f"{key} {value if isinstance(value, str) else to_json(value)}" for key, value in line["settings"].items()]
    return ", ".join([*parts, *(f"{member} retired" for member in line["retired"])])


def changes_made(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """List the changes of a journal as JSON: `elapsed` (seconds since the run's start), `settings` and `retired`."""
    return [
        {"elapsed": line["timing"]["elapsed"], "settings": line["settings"], "retired": line["retired"]}
        for line in lines
        if line["kind"] == "set"
    ]


def _message(kind: Any, line: Mapping[str, Any]) -> Any:
    """Parse the message in a line; keys of newer versions are ignored."""
    return kind(**{f.name: line[f.name] for f in fields(kind) if f.name in line})
