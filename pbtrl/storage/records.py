"""Journal lines as typed records: parsed once, so that a reader need not know their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.errors import JournalError


@dataclass(frozen=True)
class Decision:
    """A decision of the strategy: all of its assignments.

    Attributes:
        elapsed: seconds since the run began, previous sessions included.
    """

    assignments: tuple[Assignment, ...]
    elapsed: float


@dataclass(frozen=True)
class ReportRecord:
    """A report of a member that trained a slice."""

    report: Report
    elapsed: float


@dataclass(frozen=True)
class FailureRecord:
    """A failed attempt at an assignment.

    Attributes:
        attempt: how many attempts have failed because of the assignment itself.
        given_up: whether it is not tried again, so that the strategy decides.
    """

    failure: Failure
    attempt: int
    given_up: bool
    elapsed: float


@dataclass(frozen=True)
class SnapshotLost:
    """A snapshot that is missing or damaged; the assignment that made it is run again."""

    snapshot: str
    error: str
    elapsed: float


@dataclass(frozen=True)
class SnapshotRemade:
    """A lost snapshot that was made again by `member`; its report still holds."""

    snapshot: str
    member: str
    step: int
    elapsed: float


@dataclass(frozen=True)
class RunResumed:
    """A session that continues the run, with the config changes that came with it."""

    horizon: int
    changes: tuple[str, ...]


@dataclass(frozen=True)
class RunStopped:
    """A session that was stopped, and can be resumed."""

    reason: str
    elapsed: float


@dataclass(frozen=True)
class RunFinished:
    """The end of a run, after its best member was named."""

    reason: str
    elapsed: float


Record = Decision | ReportRecord | FailureRecord | SnapshotLost | SnapshotRemade | RunResumed | RunStopped | RunFinished


def parse_record(line: Mapping[str, Any]) -> Record | None:
    """A journal line as a record; None for the header and for kinds that this version does not know.

    Raises:
        JournalError: a key is missing, or holds something that pbtrl never wrote.
    """
    try:
        elapsed = float(line.get("timing", {}).get("elapsed", 0.0))
        match line["kind"]:
            case "decision":
                return Decision(tuple(Assignment(**a) for a in line["assignments"]), elapsed)
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
            case "stop":
                return RunStopped(line["reason"], elapsed)
            case "finish":
                return RunFinished(line["reason"], elapsed)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise JournalError(f"a journal line of kind {line.get('kind')!r} is damaged: {error}") from error
    return None


def _message(kind: Any, line: Mapping[str, Any]) -> Any:
    """A message in a line; keys of newer versions are ignored."""
    return kind(**{f.name: line[f.name] for f in fields(kind) if f.name in line})
