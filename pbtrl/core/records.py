"""Records of a journal: a class for each kind of line, so that readers need not know the keys.

That of the first line is `storage.run_header.HeaderRecord`. `storage.parsing` makes them from lines and checks every
value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.system.strict_json import to_json


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a journal.

    Attributes:
        elapsed: seconds since the run's start, including previous sessions; 0 if the line has no time.
        time: Unix seconds; 0 if the line has none.
    """

    elapsed: float = 0.0
    time: float = 0.0


@dataclass(frozen=True)
class Decision(Record):
    """Decision of the strategy with all its assignments.

    Attributes:
        retired: members that will not train again.
        free: number of members that could get an assignment; None in journals of earlier versions.
    """

    assignments: tuple[Assignment, ...]
    retired: tuple[str, ...] = ()
    free: int | None = None


@dataclass(frozen=True)
class ReportRecord(Record):
    """Report of a trained slice."""

    report: Report


@dataclass(frozen=True)
class FailureRecord(Record):
    """Failed attempt at an assignment.

    Attributes:
        given_up: whether it will not be retried, so that the strategy decides how to continue.
        attempt: number of attempts that failed because of the assignment itself.
    """

    failure: Failure
    given_up: bool
    attempt: int = 0


@dataclass(frozen=True)
class SnapshotLost(Record):
    """Missing or damaged snapshot; the assignment that made it is run again."""

    snapshot: str
    error: str


@dataclass(frozen=True)
class SnapshotRemade(Record):
    """Lost snapshot that `member` has made again; its report remains valid."""

    snapshot: str
    member: str
    step: int


@dataclass(frozen=True)
class RunResumed(Record):
    """Start of a session that continues the run, with its config changes.

    Attributes:
        horizon: budget of a member from then on; None if it is the same.
        total: budget of the whole population, if it is not that of all members.
    """

    horizon: int | None = None
    total: int | None = None
    changes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunChanged(Record):
    """Change by `pbtrl set`, which later decisions read.

    Attributes:
        settings: new values by dotted key.
        retired: members that will not train again.
        bounds: bounds of exploration from then on, as in the header; None if they are the same.
        request: name of the request that a run in training has answered; None for a stopped run.
    """

    settings: Mapping[str, Any]
    retired: tuple[str, ...] = ()
    bounds: Mapping[str, Any] | None = None
    request: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As the body of a line."""
        body = {"settings": self.settings, "retired": self.retired, "bounds": self.bounds, "request": self.request}
        return {key: value for key, value in body.items() if value is not None}

    @property
    def text(self) -> str:
        """The change in words."""
        return describe_change(self.settings, self.retired)


@dataclass(frozen=True)
class RunStopped(Record):
    """End of a session that was stopped and can be resumed."""

    reason: str = ""


@dataclass(frozen=True)
class RunFinished(Record):
    """End of a run, after the choice of its best member."""

    reason: str = ""


@dataclass(frozen=True)
class UnknownRecord(Record):
    """Line of a kind that this version does not know."""

    kind: str


def describe_change(settings: Mapping[str, Any], retired: Iterable[str]) -> str:
    """Describe a change by `pbtrl set`: `strategy.explore.factors [1.5, 0.7], m03 retired`."""
    parts = [f"{key} {value if isinstance(value, str) else to_json(value)}" for key, value in settings.items()]
    return ", ".join([*parts, *(f"{member} retired" for member in retired)])


def duration(records: Iterable[Record]) -> float:
    """Seconds that all sessions of a run took."""
    return max((record.elapsed for record in records), default=0.0)


def changes_made(records: Iterable[Record]) -> list[dict[str, Any]]:
    """List the changes of a journal as JSON: `elapsed` (seconds since the run's start), `settings` and `retired`."""
    return [
        {"elapsed": record.elapsed, "settings": record.settings, "retired": list(record.retired)}
        for record in records
        if isinstance(record, RunChanged)
    ]
