"""CPU quota and memory limit of this process's control groups, as set by batch systems and containers.

Linux shows every hierarchy of groups as directories, and a group's limits apply to all groups below it:

    /proc/self/cgroup      our group in each hierarchy                        4:memory:/slurm/job_7/step_0
    /proc/self/mountinfo   mount point of a hierarchy, or of a part of it     /slurm on /sys/fs/cgroup/memory
    directories to read    our group's and those above it, up to the mount    /sys/fs/cgroup/memory/job_7/step_0, ...

Version 1 has one hierarchy per controller, version 2 has a single one, and a hybrid machine has both. Limits that are
missing, unreadable or malformed count as no limit, so other systems have none. (psutil does not read control groups.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED = 2**62  # bytes; version 1 shows "no limit" as the last whole page below 2**63
MEMORY_FILES = (
    (("memory.max", "memory.high"), "memory.current", "inactive_file"),
    (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
)
"""For versions 2 and 1: files of the limits and the usage, and the key of the inactive file cache in `memory.stat`.

A group above `memory.high` is slowed down until it frees memory, so this is a limit like `memory.max`.
"""


@dataclass(frozen=True)
class MemoryLimit:
    """Memory limit of a group.

    Attributes:
        limit: bytes.
        free: bytes left; inactive file cache counts as free, because the kernel drops it on demand.
    """

    limit: int
    free: int


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Return the smallest CPU quota of our groups, in cores (0.5: half the time of one core); None without a limit.

    Args:
        root: directory of `proc` and the mounts.
    """
    return min((quota for group in _groups(root, "cpu") if (quota := _quota(group))), default=None)


def memory_limit(root: Path = Path("/")) -> MemoryLimit | None:
    """Return the memory limit of our groups with the least free memory; None without a limit.

    Args:
        root: directory of `proc` and the mounts.
    """
    limits = [limit for group in _groups(root, "memory") if (limit := _memory(group))]
    return min(limits, key=lambda limit: limit.free, default=None)


def _quota(group: Path) -> float | None:
    """CPU quota of the group itself, in cores; "max" and -1 mean no limit."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    microseconds, per = _number(quota), _number(period)
    return microseconds / per if microseconds and per else None


def _memory(group: Path) -> MemoryLimit | None:
    """Memory limit of the group itself."""
    for limits, usage, cache in MEMORY_FILES:
        numbers = [number for name in limits if (number := _number(_read(group / name))) is not None]
        if (limit := min(numbers, default=UNLIMITED)) < UNLIMITED:
            used = _number(_read(group / usage)) or 0
            dropped = re.search(rf"^{cache} ([0-9]{{1,20}})$", _read(group / "memory.stat"), re.MULTILINE)
            used -= min(used, int(dropped[1]) if dropped else 0)
            return MemoryLimit(limit, max(0, limit - used))
    return None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the directories of our group and its parents in each hierarchy that may limit the controller."""
    paths: dict[str, str] = {}  # by controller; the one of version 2 is ""
    for line in _read(root / "proc/self/cgroup").split("\n"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        paths |= dict.fromkeys(controllers.split(","), path)
    for line in _read(root / "proc/self/mountinfo").split("\n"):
        mounted, _, kind = line.partition(" - ")
        match mounted.split(" "), kind.split(" "):
            case [_, _, _, top, point, *_], ["cgroup2", *_] if "" in paths:
                path = paths[""]
            case [_, _, _, top, point, *_], ["cgroup", _, options] if controller in {*options.split(",")} & {*paths}:
                path = paths[controller]
            case _:
                continue
        yield from _upwards(root / _unescaped(point).lstrip("/"), _unescaped(top), path)


def _upwards(mount: Path, top: str, group: str) -> Iterator[Path]:
    """Yield directories from that of `group` up to the mount of `top`, a group above it."""
    inner = _below(top, group)
    own = _searched(mount) if inner is None else mount / inner
    if own is not None:
        depth = len(own.parts) - len(mount.parts)
        yield from [own, *own.parents][: depth + 1]


def _below(top: str, group: str) -> PurePosixPath | None:
    """Path of the group relative to `top`; None if it cannot be derived from their names.

    Both names are relative to the namespace's root group. Groups above that have no names, only "..".
    """
    try:
        inner = PurePosixPath(group).relative_to(top)
    except ValueError:
        return None
    return None if ".." in inner.parts else inner


def _searched(mount: Path) -> Path | None:
    """Find the group's directory below a mount by its list of processes."""
    folders = (Path(folder) for folder, *_ in os.walk(mount))
    return next((f for f in folders if str(os.getpid()) in _read(f / "cgroup.procs").split()), None)


def _unescaped(field: str) -> str:
    """Decode a path in mountinfo, which writes spaces and backslashes as octal numbers."""
    return re.sub(r"\\([01][1-7][0-7])", lambda code: chr(int(code[1], 8)), field)


def _read(path: Path) -> str:
    """Text of a file; empty if it cannot be read."""
    try:
        return path.read_text(errors="surrogateescape").replace("\0", "").strip()
    except OSError:
        return ""


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None
