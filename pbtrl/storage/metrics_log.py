"""Reader of `members/<id>/metrics.jsonl`, the live metrics of open slices.

    {"assignment": "m03/000012", "attempt": 1699999990.0, "time": 1700000000.0, "step": 812000, "loss/policy": 0.1, ...}

`time` and `attempt` (start of the attempt at the assignment) are Unix seconds. `step` is the member's clock. Every
other key is a tag with a number. If there are several attempts, only the last one counts.
"""

import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeGuard

from pbtrl.core.messages import METRIC_FIELDS
from pbtrl.core.values import LARGEST_EXACT_INTEGER
from pbtrl.storage.member_files import METRICS

Metrics = dict[str, Any]


class MetricsTail:
    """Incremental reader of all members' metrics; a poll without news costs one `stat` per member.

    Args:
        members: directory of `<id>/metrics.jsonl`.
        names: ids of the members; those that are added later are read as well.
        from_end: whether to skip what the files contain so far.
        every: seconds between two polls that read.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self, members: Path, names: Collection[str], *, from_end: bool = False, every: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._members, self._names = members, names
        self._paths: dict[str, str] = {}
        self._read = {name: _size(self._path(name)) if from_end else 0 for name in names}
        self._every, self._clock, self._last = every, clock, float("-inf")

    def poll(self) -> list[tuple[str, Metrics]]:
        """Return (member, line) for all new lines; empty if called again within `every` seconds."""
        if self._clock() - self._last < self._every:
            return []
        self._last = self._clock()
        return [(name, line) for name in self._names for line in self.read(name)]

    def read(self, member: str) -> list[Metrics]:
        """Read one member's new complete lines; a line that is not JSON (its writer was killed) is skipped."""
        path, start = self._path(member), self._read.get(member, 0)
        if _size(path) <= start:
            return []
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._read[member] = start + len(complete)
        return list(_objects(complete))

    def _path(self, member: str) -> str:
        if member not in self._paths:  # joined once, because a poll asks for all of them
            self._paths[member] = os.path.join(self._members, member, METRICS)
        return self._paths[member]


class SliceMetrics:
    """Incremental reader of the metrics of finished slices.

    A slice that was repeated has lines of several attempts. Only those of the last attempt before its report are
    returned, so that no point exists twice.

    Args:
        members: directory of `<id>/metrics.jsonl`.
        names: ids of the members; those that are added later are read as well.
    """

    def __init__(self, members: Path, names: Collection[str]) -> None:
        self._tail = MetricsTail(members, names)
        self._open: defaultdict[str, list[Metrics]] = defaultdict(list)

    def take(self, member: str, assignment: str, reported: float) -> list[Metrics]:
        """Return the lines of a slice that was reported at `reported` (Unix seconds), oldest first, and forget them."""
        for line in self._tail.read(member):
            self._open[str(line.get("assignment"))].append(line)
        attempts: dict[float, list[Metrics]] = {}
        for line in self._open.pop(assignment, []):
            attempts.setdefault(_number(line, "attempt"), []).append(line)
        # The clock of another machine may be ahead, so only the first line says whether an attempt came later.
        before = [number for number, lines in attempts.items() if _number(lines[0], "time") <= reported]
        return attempts[max(before, default=min(attempts))] if attempts else []


def last_reported_step(path: Path, assignment: str) -> int | None:
    """Step in a member's last line; None if it has none, or belongs to another assignment."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, _size(path) - 65536))
            *_, line = _objects(file.read())
    except (OSError, ValueError):
        return None
    return _step(line) if line.get("assignment") == assignment else None


def tags(line: Metrics) -> dict[str, float]:
    """Numbers of a line to plot, by tag."""
    return {k: float(v) for k, v in line.items() if k not in METRIC_FIELDS and _is_number(v)}


def position(line: Metrics, step: int, now: float) -> tuple[int, float]:
    """Step and Unix time of a line; those given where it has none."""
    own_step, own_time = _step(line), line.get("time")
    return (
        step if own_step is None else own_step,
        float(own_time) if _is_number(own_time) and math.isfinite(own_time) else now,
    )


def _step(line: Metrics) -> int | None:
    step = line.get("step")
    return int(step) if _is_number(step) and math.isfinite(step) else None


def _number(line: Metrics, key: str) -> float:
    value = line.get(key)
    return float(value) if _is_number(value) else 0.0


def _is_number(value: Any) -> TypeGuard[float]:
    """Check for a number that a float can hold."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST_EXACT_INTEGER)


def _objects(data: bytes) -> Iterator[Metrics]:
    for raw in data.splitlines():
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            yield line


def _size(path: str | Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
