"""Creation, checks and cleanup of run directories.

    runs/pong/  run.json config.yaml config.resolved.yaml journal.jsonl LOCK best.json
                members/<id>/{metrics.jsonl,log.txt,snapshots/}  tb/  eval/

The controller holds LOCK while it trains the run.
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
from pbtrl.system.files import reason, sync_directory

IfExists = Literal["error", "resume", "overwrite", "suffix"]


_FILES = frozenset(
    {"run.json", "config.yaml", "config.resolved.yaml", "LOCK", "members", "tb", "best.json", "eval", "log.txt"}
)


def create(root: Path, name: str, if_exists: IfExists = "error") -> Path:
    """Create the directory of a new run; with `if_exists="resume"`, return that of an existing run.

    A directory without a journal (its run never started) counts as new.

    Raises:
        RunError: the name is invalid or taken, the directory is not writable, or the run to overwrite is in use.
    """
    _check_name(name)
    if if_exists == "suffix":
        names = (name if n == 1 else f"{name[:58]}-{n}" for n in count(1))
        return next(run for n in names if _make(run := root / n))
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
    """Raise the errors of `create` that can be foreseen without creating anything."""
    _check_name(name)
    run = root / name
    if if_exists == "error" and os.path.lexists(run) and not _is_blank(run):
        raise _taken(run)


def _check_name(name: str) -> None:
    if not RUN_NAME.fullmatch(name):
        raise RunError(f"{name[:80]!r} is not a run name: use up to 64 letters, digits, '.', '_' and '-', no '/'")


def group_folder(root: Path, name: str, file: str) -> Path:
    """Return the directory for several runs, which may exist if it is empty or has the `file` that describes them.

    Raises:
        RunError: the name is invalid, or the directory holds something else.
    """
    if not RUN_NAME.fullmatch(name):
        raise RunError(
            f"{name[:80]!r} is not a name of a folder: give --name up to 64 letters, digits, '.', '_' and '-'"
        )
    folder = root / name
    blank = not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))
    if not blank and not (folder / file).is_file():
        raise RunError(f"{folder} exists and is not a {Path(file).stem}: choose another --name")
    return folder


def check_links(run: Path) -> None:
    """Check that a run directory holds only regular files and directories, so that no access leads out of it.

    Raises:
        RunError: it contains a symbolic link, a pipe or a device, which pbtrl never creates.
    """
    for folder, folders, files in os.walk(run):
        for path in (Path(folder, name) for name in (*folders, *files)):
            with contextlib.suppress(FileNotFoundError):  # the run may be in training
                kind = path.lstat().st_mode
                if stat.S_ISLNK(kind):
                    raise RunError(f"{path} is a symbolic link, which pbtrl refuses; replace it with the real file")
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                    raise RunError(f"{path} is neither a file nor a directory, which pbtrl refuses; remove it")


def has_begun(run: Path) -> bool:
    """Return whether the journal has a complete first line."""
    try:
        with open_plain_file(run / "journal.jsonl") as file:
            return file.readline().endswith(b"\n")
    except (OSError, DamagedError):
        return False


def default_name(label: str) -> str:
    """Default name of a run, from what it trains and the time; not necessarily unique."""
    return f"{label[:40]}-{time.strftime('%Y%m%d-%H%M%S')}"


def leftovers(run: Path) -> list[Path]:
    """Temporary files and directories that killed processes left behind; none of them is needed."""
    return [*sorted(run.glob(".tmp-*")), *SnapshotStore(run / "members").leftovers()]


def delete_leftovers(run: Path) -> list[Path]:
    """Delete the leftovers and return their paths; the caller must hold the lock."""
    paths = leftovers(run)
    for path in paths:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return paths


def _taken(run: Path) -> RunError:
    if not is_run(run):
        return RunError(f"{run} exists and is not a run: choose another --name or --runs, or use --suffix")
    hint = f"continue it with `pbtrl resume {cli_reference(run)}`, or start a new run with --suffix or --overwrite"
    return RunError(f"{run} exists ({state(run)}): {hint}")


def _claim(run: Path) -> Path | None:
    """Create the directory, or accept that of a run that never started; None if it holds a run."""
    return run if _make(run) or (_is_blank(run) and os.access(run, os.W_OK)) else None


def _make(run: Path) -> bool:
    """Create the directory; False if it exists. Of several concurrent callers only one gets True."""
    try:
        run.parent.mkdir(parents=True, exist_ok=True)
        run.mkdir()
        sync_directory(run.parent)
    except FileExistsError:
        if run.parent.is_dir():
            return False
        raise RunError(f"cannot write to {run.parent}: not a directory") from None
    except OSError as error:
        raise RunError(f"cannot write to {run.parent}: {reason(error)}") from error
    return True


def _is_blank(run: Path) -> bool:
    """Return whether the directory is that of a run that never started: unlocked, no journal line, no foreign files."""
    if not run.is_dir() or holder(run) is not None:
        return False
    names = {p.name.removeprefix(".tmp-") for p in run.iterdir()}
    snapshots = run.glob("members/*/snapshots/*")
    trained = any(path.parent.parent.name != "initial" for path in snapshots)  # if so, the journal was lost
    return not (has_begun(run) or trained) and names <= _FILES | {"journal.jsonl"}


def _remove(run: Path) -> None:
    """Delete a run. It is renamed first, so that no other process starts a run in a half-deleted directory."""
    if run.is_symlink() or not (is_run(run) or _is_blank(run)):
        raise RunError(f"{run} is not a run directory; it was not overwritten")
    gone = run.with_name(f".gone-{run.name}")
    try:
        shutil.rmtree(gone, ignore_errors=True)  # left by a process that was killed here
        with RunLock(run):
            run.rename(gone)
        shutil.rmtree(gone)
    except OSError as error:
        raise RunError(f"cannot remove {run}: {reason(error)}") from error
