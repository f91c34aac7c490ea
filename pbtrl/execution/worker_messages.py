"""Messages between a controller and its workers, as JSON; Ray's workers take the same."""

from __future__ import annotations

from dataclasses import dataclass

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.system.typed_json import Codec


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

_codec = Codec[ToWorker | FromWorker](
    ToWorker | FromWorker, parts={"assignments": Assignment, "reports": Report, "failures": Failure}
)
encode, decode = _codec.encode, _codec.decode
