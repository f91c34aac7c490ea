"""Metadata of a run in run.json: command, host, versions, git commit and final status.

The journal is authoritative. run.json is for people, and for the warning that a resume is not bit-exact.
"""

from __future__ import annotations

import contextlib
import platform
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pbtrl
from pbtrl.core.values import LATEST
from pbtrl.errors import DamagedError, DiskFullError, NewerError, RunError
from pbtrl.storage.json_files import SCHEMA, read_json_if_exists
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.system.files import reason, write_atomically
from pbtrl.system.strict_json import to_json
from pbtrl.system.versions import PACKAGES, installed_version

Status = Literal["finished", "stopped", "failed"]

SESSIONS = "sittings"  # key of the number of sessions, as in the files of existing runs
KINDS: dict[str, type | tuple[type, ...]] = {
    "id": str, "status": str, "reason": str, "versions": dict, SESSIONS: int, "created": (int, float),
    "started": (int, float),
}  # fmt: skip
_SECRETS = r"(?i)[\w.-]*(?:key|token|secret|passw|credential|auth)[\w.-]*"
_SECRET = re.compile(_SECRETS)
_INLINE = re.compile(_SECRETS + r"""["']?\s*[=:]\s*(?P<value>"[^"]*"|'[^']*'|[^\s,}\]]+)|://(?P<user>[^/@\s]+)@""")


def record_start(run: RunDirectory, command: Sequence[str], threads: int = 1) -> list[str]:
    """Write `run.json` at the start of a session, new or resumed; `threads` is the number of torch threads per worker.

    Returns:
        Warnings: versions, processor or threads that differ from those of the previous session.
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
        SESSIONS: before.get(SESSIONS, 0) + 1,
    })  # fmt: skip
    earlier = before.get("versions", versions)
    changed = [f"{k} {earlier[k]} -> {v}" for k, v in versions.items() if k in earlier and earlier[k] != v]
    return [*unreadable, *(f"{change} since the last session: not bit-exact from here on" for change in changed)]


def record_end(run: RunDirectory, status: Status, reason: str = "") -> None:
    """Record in `run.json` how a session ended; the journal's last line, which is authoritative, says so too."""
    _write(run, {**_readable(run)[0], "status": status, "reason": reason, "ended": time.time()})


def read_run_info(run: RunDirectory) -> dict[str, Any]:
    """Read `run.json`; empty if there is none.

    Raises:
        DamagedError: it is not a JSON object, has invalid values, or a newer pbtrl wrote it.
    """
    content = read_json_if_exists(run.info_file)
    for key, value in content.items():
        known = isinstance(value, KINDS.get(key, object))
        if not known or (isinstance(value, int | float) and not 0 <= value <= LATEST):
            raise DamagedError(f"{run.info_file} cannot be read: invalid value of {key!r}")
    return content


def _readable(run: RunDirectory) -> tuple[dict[str, Any], list[str]]:
    """Content of `run.json` before a rewrite, and warnings; empty with a warning if it is damaged."""
    try:
        return read_run_info(run), []
    except NewerError:
        raise
    except DamagedError as error:
        return {}, [f"{error}; it will be rewritten"]


def _write(run: RunDirectory, content: Mapping[str, Any]) -> None:
    try:
        write_atomically(run.info_file, to_json(content, indent=2) + "\n")
    except DiskFullError:
        raise
    except OSError as error:
        raise RunError(f"cannot write to {run}: {reason(error)}") from error


def _versions() -> dict[str, str | None]:
    ours = {"pbtrl": pbtrl.__version__, "python": platform.python_version(), "processor": _processor()}
    return {**ours, **{p: installed_version(p) for p in (*PACKAGES, "optuna", "cmaes")}}


def _processor() -> str:
    """Name of the processor; another one may have other vector instructions and round differently."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _redacted(command: Sequence[str]) -> list[str]:
    """Replace everything that looks like a secret in a command line by `...`."""
    redacted: list[str] = []
    hide_next = False
    for word in command:
        name, equals, _ = word.partition("=")
        secret = bool(_SECRET.fullmatch(name))
        redacted.append(f"{name}=..." if secret and equals else "..." if hide_next else _INLINE.sub(_hidden, word))
        hide_next = secret and not equals and word.startswith("-")
    return redacted


def _hidden(match: re.Match[str]) -> str:
    start, end = (x - match.start() for x in match.span("value" if match["value"] else "user"))
    return f"{match[0][:start]}...{match[0][end:]}"


def _git_commit() -> str | None:
    """Commit of the working directory, with `-dirty` if tracked files differ; None if it is not a git checkout."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
