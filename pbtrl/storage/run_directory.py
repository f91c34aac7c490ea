"""Run directories: created, claimed, checked and cleared.

    runs/pong/  run.json config.yaml config.resolved.yaml journal.jsonl LOCK best.json
                members/<id>/{metrics.jsonl,log.txt,snapshots/}  tb/  eval/

The journal says what happened. LOCK, held for the controller's life, says whether somebody is training the run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from itertools import count
from pathlib import Path
from typing import Literal

from pbtrl.errors import DamagedError, RunError
from pbtrl.storage.json_files import open_plain_file
from pbtrl.storage.references import cli_reference
from pbtrl.storage.run_lock import RunLock, holder
from pbtrl.storage.run_lookup import RUN_NAME, is_run
from pbtrl.storage.run_state import state
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.system.files import sync_directory

IfExists = Literal["error", "resume", "overwrite", "suffix"]


_FILES = frozenset(
    {"run.json", "config.yaml", "config.resolved.yaml", "LOCK", "members", "tb", "best.json", "eval", "log.txt"}
)


def create(root: Path, name: str, if_exists: IfExists = "error") -> Path:
    """Make the directory of a new run, or return that of the old one where `if_exists` is `resume`.

    A directory that holds no journal yet (its run never began) counts as new.

    Raises:
        RunError: the name is taken or no name, the directory not writable, or the run to overwrite is alive.
    """
    _check_name(name)
    if if_exists == "suffix":
        names = (name if n == 1 else f"{name[:58]}-{n}" for n in count(1))
        return next(run for n in names if _made(run := root / n))
    run = root / name
    if if_exists == "overwrite" and run.exists():
        _remove(run)
    if claimed := _claim(run):
        return claimed
    if if_exists == "resume" and is_run(run):
        if not os.access(run, os.W_OK):
            raise RunError(f"cannot write to {run}: permission denied")
        return run
    raise _taken(run)


def check_free(root: Path, name: str, if_exists: IfExists) -> None:
    """Raise what `create` would raise, as far as that can be known without making anything."""
    _check_name(name)
    run = root / name
    if if_exists == "error" and os.path.lexists(run) and not _is_blank(run):
        raise _taken(run)


def _check_name(name: str) -> None:
    if not RUN_NAME.fullmatch(name):
        raise RunError(f"{name[:80]!r} is no name for a run: letters, digits, '.', '_', '-', at most 64, no '/'")


def check_links(run: Path) -> None:
    """Whoever writes into a run directory, or reads weights from it, must not end up elsewhere.

    Raises:
        RunError: there is a link, a pipe or a device in it, which pbtrl never makes.
    """
    for folder, folders, files in os.walk(run):
        for path in (Path(folder, name) for name in (*folders, *files)):
            with contextlib.suppress(FileNotFoundError):  # somebody is at the run
                kind = path.lstat().st_mode
                if stat.S_ISLNK(kind):
                    raise RunError(f"{path} is a link, and could lead anywhere: put there what it leads to")
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                    raise RunError(f"{path} is neither file nor folder: pbtrl makes nothing else")


def has_begun(run: Path) -> bool:
    """Whether there is a whole first line in its journal."""
    try:
        with open_plain_file(run / "journal.jsonl") as file:
            return file.readline().endswith(b"\n")
    except (OSError, DamagedError):
        return False


def default_name(label: str) -> str:
    """A name for a run that was given none: what it trains, and the time; others may think of the same one."""
    return f"{label[:40]}-{time.strftime('%Y%m%d-%H%M%S')}"


def leftovers(run: Path) -> list[Path]:
    """What killed writers left behind in a run: nothing that counts."""
    return [*sorted(run.glob(".tmp-*")), *SnapshotStore(run / "members").leftovers()]


def delete_leftovers(run: Path) -> list[Path]:
    """Delete the leftovers, and name them; only for who holds the lock."""
    found = leftovers(run)
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def _taken(run: Path) -> RunError:
    if not is_run(run):
        return RunError(f"{run} exists and is no run: choose another --name or --runs, or --suffix")
    ways = f"go on with `pbtrl resume {cli_reference(run)}`, or start anew with --suffix or --overwrite"
    return RunError(f"{run} exists ({state(run)}): {ways}")


def _claim(run: Path) -> Path | None:
    """The directory, made, or there already and untouched; None if a run is in it."""
    return run if _made(run) or (_is_blank(run) and os.access(run, os.W_OK)) else None


def _made(run: Path) -> bool:
    """Make the directory; False if it is there already, as for all but one of several who begin together."""
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        run.mkdir()
        sync_directory(run.parent)
    except FileExistsError:
        if run.parent.is_dir():
            return False
        raise RunError(f"cannot write to {run.parent}: not a directory") from None
    except OSError as error:
        raise RunError(f"cannot write to {run.parent}: {error.strerror or error}") from error
    return True


def _is_blank(run: Path) -> bool:
    """Made for a run that never began: no journal line, nobody at it, and nothing in it that is not ours."""
    if not run.is_dir() or holder(run) is not None:
        return False
    names = {p.name.removeprefix(".tmp-") for p in run.iterdir()}
    trained = any(run.glob("members/*/snapshots/*"))  # and the journal was lost
    return not (has_begun(run) or trained) and names <= _FILES | {"journal.jsonl"}


def _remove(run: Path) -> None:
    """Out of the way first, so that nobody begins in what is being deleted."""
    if run.is_symlink() or not (is_run(run) or _is_blank(run)):
        raise RunError(f"{run} is no run directory: it is left as it is")
    gone = run.with_name(f".gone-{run.name}")
    try:
        shutil.rmtree(gone, ignore_errors=True)  # of somebody who was killed here
        with RunLock(run):
            run.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise RunError(f"cannot remove {run}: {error.strerror or error}") from error
