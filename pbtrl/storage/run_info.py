"""run.json: what a run directory says of itself. Who trained it, where, with which versions, and how that ended.

The journal is what counts; this file is for people, and for the warning that a resume is not bit-exact.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pbtrl import __version__
from pbtrl.errors import DamagedError, DiskFullError, NewerError, RunError
from pbtrl.storage.json_files import SCHEMA, read_json_if_exists
from pbtrl.system.files import write_atomically
from pbtrl.system.strict_json import to_json

Status = Literal["finished", "stopped", "failed"]

KINDS: dict[str, type | tuple[type, ...]] = {
    "id": str, "status": str, "reason": str, "versions": dict, "sittings": int, "created": (int, float),
    "started": (int, float),
}  # fmt: skip
LATEST = 1e12  # seconds since 1970, more than any clock says
PACKAGES = ("torch", "gymnasium", "ale_py", "mujoco", "envpool")
_SECRETS = r"(?i)[\w.-]*(?:key|token|secret|passw|credential|auth)[\w.-]*"
_SECRET = re.compile(_SECRETS)
_TOLD = re.compile(_SECRETS + r"""["']?\s*[=:]\s*(?P<value>"[^"]*"|'[^']*'|[^\s,}\]]+)|://(?P<user>[^/@\s]+)@""")


def record_start(run: Path, command: Sequence[str], threads: int = 1) -> list[str]:
    """Write `run.json` at the start of a sitting, the first or a resumed one; `threads` are torch's in a worker.

    Returns:
        What to warn of: versions that differ from those of the sitting before, the processor and threads among them.
    """
    before, unreadable = _readable(run)
    versions, now = {**_versions(), "torch threads": threads}, time.time()
    _write(run, {
        "schema": SCHEMA,
        "id": before.get("id", uuid.uuid4().hex),
        "name": run.name,
        "status": "running",
        "versions": versions,
        "host": socket.gethostname(),
        "command": _redacted(command),
        "git": _git_commit(),
        "created": before.get("created", now),
        "started": now,
        "ended": None,
        "sittings": before.get("sittings", 0) + 1,
    })  # fmt: skip
    earlier = before.get("versions", versions)
    changed = [f"{k} {earlier[k]} -> {v}" for k, v in versions.items() if k in earlier and earlier[k] != v]
    return [*unreadable, *(f"{change} since the last sitting: from here on not bit-exact" for change in changed)]


def record_end(run: Path, status: Status, reason: str = "") -> None:
    """Note in `run.json` how a sitting ended; the journal's last line says so too and is what counts."""
    _write(run, {**_readable(run)[0], "status": status, "reason": reason, "ended": time.time()})


def read_run_info(run: Path) -> dict[str, Any]:
    """What `run.json` says; empty where there is none.

    Raises:
        DamagedError: it is no JSON object, says what pbtrl never wrote, or a newer pbtrl wrote it.
    """
    found = read_json_if_exists(run / "run.json")
    for key, value in found.items():
        known = isinstance(value, KINDS.get(key, object))
        if not known or (isinstance(value, int | float) and not 0 <= value < LATEST):
            raise DamagedError(f"{run / 'run.json'} cannot be read: pbtrl never writes such a {key!r}")
    return found


def _readable(run: Path) -> tuple[dict[str, Any], list[str]]:
    """What `run.json` says, for who writes it anew; where it is damaged nothing, and a line that says so."""
    try:
        return read_run_info(run), []
    except NewerError:
        raise
    except DamagedError as error:
        return {}, [f"{error}; it is written anew"]


def _write(run: Path, content: Mapping[str, Any]) -> None:
    try:
        write_atomically(run / "run.json", to_json(content, indent=2) + "\n")
    except DiskFullError:
        raise
    except OSError as error:
        raise RunError(f"cannot write to {run}: {error.strerror or error}") from error


def _versions() -> dict[str, str | None]:
    ours = {"pbtrl": __version__, "python": platform.python_version(), "processor": _processor()}
    return {**ours, **{p: _version(p) for p in PACKAGES}}


def _processor() -> str:
    """On which results depend bit for bit: another one has other vector instructions."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _redacted(command: Sequence[str]) -> list[str]:
    """The command line without what looks like a secret."""
    shown: list[str] = []
    hide_next = False
    for word in command:
        name, equals, _ = word.partition("=")
        secret = bool(_SECRET.fullmatch(name))
        shown.append(f"{name}=..." if secret and equals else "..." if hide_next else _TOLD.sub(_hidden, word))
        hide_next = secret and not equals and word.startswith("-")
    return shown


def _hidden(told: re.Match[str]) -> str:
    start, record_end = (x - told.start() for x in told.span("value" if told["value"] else "user"))
    return f"{told[0][:start]}...{told[0][record_end:]}"


def _git_commit() -> str | None:
    """The commit of the working directory, where it is a git checkout."""
    command = ["git", "rev-parse", "--verify", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
