"""Reading along in `members/<id>/metrics.jsonl`, what a slice under way says of itself.

    {"assignment": "m03/000012", "attempt": 1699999990.0, "time": 1700000000.0, "step": 812000, "loss/policy": 0.1, ...}

`time` and `attempt`, when this try at the assignment began, are Unix seconds, `step` is the member's own clock; every
other key is a tag with a number. Of several attempts the last one counts.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Metrics = dict[str, Any]
NOT_TAGS = frozenset({"assignment", "attempt", "time", "step"})


class MetricsTail:
    """New lines of all members' metrics; a call costs one `stat` per member where nothing is new."""

    def __init__(
        self, members: Path, names: Iterable[str], *, from_end: bool = False, every: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._paths = {name: members / name / "metrics.jsonl" for name in names}
        self._read = {name: _size(path) if from_end else 0 for name, path in self._paths.items()}
        self._every, self._clock, self._last = every, clock, float("-inf")

    def poll(self) -> list[tuple[str, Metrics]]:
        """(member, line) of everything new, at most once every `every` seconds."""
        if self._clock() - self._last < self._every:
            return []
        self._last = self._clock()
        return [(name, line) for name in self._paths for line in self.read(name)]

    def read(self, member: str) -> list[Metrics]:
        """New whole lines of one member, now; one that is no JSON (its writer was killed) is passed over."""
        path, start = self._paths[member], self._read[member]
        if _size(path) <= start:
            return []
        with path.open("rb") as file:
            file.seek(start)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read[member] = start + len(whole)
        return list(_objects(whole))


def last_reported_step(path: Path, assignment: str) -> int | None:
    """How far a member's last line says that it came with an assignment; None if that line is of another."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, _size(path) - 65536))
            *_, line = _objects(file.read())
    except (OSError, ValueError):
        return None
    return int(line["step"]) if line.get("assignment") == assignment and "step" in line else None


def tags(line: Metrics) -> dict[str, float]:
    """The numbers of a line that are to be plotted."""
    return {k: float(v) for k, v in line.items() if k not in NOT_TAGS and isinstance(v, int | float)}


def _objects(data: bytes) -> Iterator[Metrics]:
    for raw in data.splitlines():
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            yield line


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
