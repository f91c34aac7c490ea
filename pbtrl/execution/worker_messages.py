"""Messages between a controller and its workers, as JSON; Ray's workers take the same."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.system.strict_json import to_json


@dataclass(frozen=True)
class Submit:
    """To a worker: carry these out."""

    assignments: tuple[Assignment, ...]


@dataclass(frozen=True)
class Stop:
    """To a worker: end every slice now, and answer."""


@dataclass(frozen=True)
class Close:
    """To a worker: end."""


@dataclass(frozen=True)
class Began:
    """From a worker: it is at its first turn, and has something to lose."""


@dataclass(frozen=True)
class Answers:
    """From a worker: assignments that ended."""

    reports: tuple[Report, ...] = ()
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Stopped:
    """From a worker: all slices ended, as `Stop` asked for."""


@dataclass(frozen=True)
class StartFailed:
    """From a worker: it cannot work; `traceback` says why."""

    traceback: str


@dataclass(frozen=True)
class DiskFull:
    """From a worker: no space for a snapshot; `text` says where."""

    text: str


ToWorker = Submit | Stop | Close
FromWorker = Began | Answers | Stopped | StartFailed | DiskFull
_KINDS: dict[str, type] = {
    kind.__name__: kind for kind in (Submit, Stop, Close, Began, Answers, Stopped, StartFailed, DiskFull)
}
_PARTS: dict[str, type] = {"assignments": Assignment, "reports": Report, "failures": Failure}


def encode(message: ToWorker | FromWorker) -> bytes:
    """A message as bytes."""
    return to_json({"kind": type(message).__name__, **asdict(message)}).encode()


def decode(data: bytes) -> Any:
    """The message in bytes that `encode` made."""
    fields = json.loads(data)
    kind = _KINDS[fields.pop("kind")]
    for name, part in _PARTS.items():
        if name in fields:
            fields[name] = tuple(part(**values) for values in fields[name])
    return kind(**fields)
