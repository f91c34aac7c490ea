"""State of a run, from its lock, the journal's last line and its heartbeat."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

from pbtrl.storage.json_files import open_plain_file
from pbtrl.storage.member_files import METRICS
from pbtrl.storage.run_directory import RunDirectory

State = Literal["running", "finished", "stopped", "crashed", "stale"]


STALE_AFTER = 600.0  # seconds without a new line while the lock is held


def heartbeat(run: RunDirectory) -> float:
    """Seconds since the run last wrote a journal line, a metrics line or its lock."""
    written = [run.journal_path, run.lock_file, *run.members.glob(f"*/{METRICS}")]
    return max(0.0, time.time() - max((modified_at(p) for p in written), default=0.0))


def state(run: RunDirectory) -> State:
    """State of a run.

    - `running`: the lock is held.
    - `stale`: the lock is held, but nothing was written for ten minutes.
    - `finished`, `stopped`: the lock is free and the journal ends with that line.
    - `crashed`: the lock is free and the journal ends with any other line. Lines of `pbtrl set` do not count.
    """
    if run.holder() is not None:
        return "stale" if heartbeat(run) > STALE_AFTER else "running"
    match _last_kind(run.journal_path):
        case "finish":
            return "finished"
        case "stop":
            return "stopped"
        case _:
            return "crashed"


def is_complete(run: RunDirectory) -> bool:
    """Return whether a run is finished and has its best member. Without best.json, resuming it chooses again."""
    return state(run) == "finished" and run.best_file.exists()


def is_training(state: str) -> bool:
    """Return whether a run of this state has a process that trains it."""
    return state in ("running", "stale")


def _last_kind(journal: Path) -> str | None:
    """Kind of the last complete line other than `set`, read from the end of the file."""
    try:
        with open_plain_file(journal) as file:
            file.seek(max(0, journal.stat().st_size - 65536))
            lines = file.read().split(b"\n")[:-1]
        kinds = (json.loads(line)["kind"] for line in reversed(lines))
        return next((str(kind) for kind in kinds if kind != "set"), None)
    except (OSError, ValueError, IndexError, KeyError, TypeError, RecursionError):
        return None


def modified_at(path: Path) -> float:
    """Modification time of a file (Unix seconds); 0 if there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
