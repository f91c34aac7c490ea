"""Creation of run directories, and their replacement."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Literal

from pbtrl.core.naming import RUN_NAME
from pbtrl.errors import BusyError, DamagedError, DiskFullError, RunError
from pbtrl.storage.references import cli_reference
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_lock import LOCK, RunLock
from pbtrl.storage.run_lookup import is_run
from pbtrl.storage.run_state import state
from pbtrl.system.files import is_text, reason, sync_directory

IfExists = Literal["error", "resume", "overwrite", "suffix"]


def create(root: Path, name: str, if_exists: IfExists = "error") -> RunDirectory:
    """Create the directory of a new run; with `if_exists="resume"`, return that of an existing run.

    A directory without a journal (its run never started) counts as new.

    Raises:
        RunError: the name is invalid or taken, the directory is not writable, or the run to overwrite is in use.
        BusyError: another process begins the run to resume.
        DamagedError: the run to resume has lost its journal.
    """
    _check_name(name)
    if if_exists == "suffix":
        names = (name if n == 1 else f"{name[:58]}-{n}" for n in count(1))
        return next(run for n in names if _make(run := RunDirectory(root / n)))
    run = RunDirectory(root / name)
    if if_exists == "overwrite":
        shutil.rmtree(_removed(run), ignore_errors=True)  # left by a process that was killed in `_remove`
        if run.path.exists():
            _remove(run)
    if _claim(run):
        return run
    if if_exists == "resume" and is_run(run.path):
        if not os.access(run.path, os.W_OK):
            raise RunError(f"cannot write to {run}: permission denied")
        if not run.has_begun() and _has_trained(run):
            raise DamagedError(
                f"{run} has lost its journal: restore {run.journal_path}, or delete {run} to train it again"
            )
        return run
    if if_exists == "resume" and (run.holder() is not None or is_run(run.path)):
        raise BusyError(f"{run} has just been begun by another process")
    raise _taken(run)


def check_free(root: Path, name: str, if_exists: IfExists) -> None:
    """Raise the errors of `create` that can be foreseen without creating anything."""
    _check_name(name)
    run = RunDirectory(root / name)
    if if_exists == "error" and os.path.lexists(run.path) and not _is_blank(run):
        raise _taken(run)


def _check_name(name: str) -> None:
    if not RUN_NAME.fullmatch(name):
        raise RunError(f"{name[:80]!r} is not a run name: use up to 64 letters, digits, '.', '_' and '-', no '/'")


def group_folder(root: Path, name: str, file: str) -> Path:
    """Return the directory for several runs, which may exist if it is new or has the `file` that describes them.

    Raises:
        RunError: the name is invalid, or the directory holds something else.
    """
    if not RUN_NAME.fullmatch(name):
        raise RunError(
            f"{name[:80]!r} is not a name of a folder: give --name up to 64 letters, digits, '.', '_' and '-'"
        )
    folder = root / name
    early = {LOCK, f".tmp-{file}"}  # another process is about to write the file, or was killed before
    blank = not os.path.lexists(folder) or (folder.is_dir() and all(path.name in early for path in folder.iterdir()))
    if not blank and not (folder / file).is_file():
        raise RunError(f"{folder} exists and is not a {Path(file).stem}: choose another --name")
    return folder


@contextmanager
def lock_group(folder: Path, file: str) -> Iterator[None]:
    """Hold the lock under which the file of a `group_folder` is written; the directory is created if there is none.

    Raises:
        RunError: the directory cannot be created or written, or has become something else.
    """
    _make(RunDirectory(folder))
    with RunLock(folder, patience=60.0):
        group_folder(folder.parent, folder.name, file)
        try:
            yield
        except DiskFullError:
            raise
        except OSError as error:
            raise RunError(f"cannot write to {folder}: {reason(error)}") from error


def default_name(label: str) -> str:
    """Default name of a run, from what it trains and the time; not necessarily unique."""
    return f"{label[:40]}-{time.strftime('%Y%m%d-%H%M%S')}"


def _taken(run: RunDirectory) -> RunError:
    if not is_run(run.path):
        return RunError(f"{run} exists and is not a run: choose another --name or --runs, or use --suffix")
    hint = f"continue it with `pbtrl resume {cli_reference(run)}`, or start a new run with --suffix or --overwrite"
    return RunError(f"{run} exists ({state(run)}): {hint}")


def _claim(run: RunDirectory) -> bool:
    """Create the directory, or accept that of a run that never started; False if it holds a run."""
    return _make(run) or (_is_blank(run) and os.access(run.path, os.W_OK))


def _make(run: RunDirectory) -> bool:
    """Create the directory; False if it exists. Of several concurrent callers only one gets True."""
    root = run.path.parent
    if not is_text(run.path):
        raise RunError(f"cannot write to {run}: the path is not UTF-8")
    try:
        root.mkdir(parents=True, exist_ok=True)
        run.path.mkdir()
        sync_directory(root)
    except FileExistsError:
        if root.is_dir():
            return False
        raise RunError(f"cannot write to {root}: not a directory") from None
    except OSError as error:
        raise RunError(f"cannot write to {root}: {reason(error)}") from error
    return True


def _is_blank(run: RunDirectory) -> bool:
    """Return whether the directory is that of a run that never started: unlocked, no journal line, no foreign files."""
    if not run.path.is_dir() or run.holder() is not None:
        return False
    names = {p.name.removeprefix(".tmp-") for p in run.path.iterdir()}
    return not (run.has_begun() or _has_trained(run)) and names <= {path.name for path in run.entries}


def _has_trained(run: RunDirectory) -> bool:
    """Return whether there are snapshots of members; without a journal line, the journal was lost."""
    return any(path.parent.parent.name != "initial" for path in run.members.glob("*/snapshots/*"))


def _remove(run: RunDirectory) -> None:
    """Delete a run. It is renamed first, so that no other process starts a run in a half-deleted directory."""
    if run.path.is_symlink() or not (is_run(run.path) or _is_blank(run)):
        raise RunError(f"{run} is not a run directory; it was not overwritten")
    gone = _removed(run)
    try:
        with run.lock():
            run.path.rename(gone)
        with suppress(FileNotFoundError):  # another process that overwrites the run deletes it too
            shutil.rmtree(gone)
    except OSError as error:
        raise RunError(f"cannot remove {run}: {reason(error)}") from error


def _removed(run: RunDirectory) -> Path:
    """Return the path of a run while it is deleted."""
    return run.path.with_name(f".gone-{run.name}")
