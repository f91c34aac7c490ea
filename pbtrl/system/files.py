"""A full or failing disk: what was being written is taken back; the run ends with exit code 75, and can be resumed."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pbtrl.errors import DiskFullError
from pbtrl.system.crash_points import crash_point

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FAULTY = frozenset({errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN})  # the last two: a server that went
PAUSES = (0.5, 2.0)  # seconds between attempts: somebody may be tidying up


def is_disk_error(error: BaseException) -> bool:
    """Whether this is the disk's fault: full, or failing."""
    return isinstance(error, OSError) and (isinstance(error, DiskFullError) or error.errno in FULL | FAULTY)


@contextmanager
def translate_disk_errors(path: Path, size: int = 0) -> Iterator[None]:
    """Turn an OSError that means a full or failing disk into a DiskFullError that says so.

    Args:
        path: what is written.
        size: bytes that it needs; 0 where nobody knows.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno in FAULTY:
            raise DiskFullError(f"cannot write {path}: {error.strerror}") from error
        if error.errno not in FULL:
            raise
        needed = f"{size:,} bytes are needed" if size else "more is needed"
        raise DiskFullError(f"no room on the disk for {path}: {needed}, {_free(path):,} are free") from error


def check_free_space(run: Path, size: int, what: str) -> None:
    """Raise DiskFullError where a run will not have room for `size` bytes: better now than after an hour.

    A file system without any space at all is not full: nothing can be written to it, which its writer will say.
    """
    if shutil.disk_usage(_existing(run)).total and (free := _free(run / "members")) < size:
        raise DiskFullError(f"no room on the disk for {run}: {size:,} bytes are needed for {what}, {free:,} are free")


def make_directory(path: Path) -> None:
    """A folder in one that is there, also after a power failure; nobody but `train` makes that of a run."""
    with translate_disk_errors(path):
        try:
            path.mkdir()
        except FileExistsError:
            return
        sync_directory(path.parent)


def is_same_file(path: Path, file: IO[bytes]) -> bool:
    """Whether an open file is still what lies there: its folder may have been moved, removed or made anew since."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def sync_directory(path: Path) -> None:
    """Make what was created or renamed in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def retry_attempts() -> Iterator[bool]:
    """Whether this is the last one; the next one comes after a pause."""
    for pause in PAUSES:
        yield False
        time.sleep(pause)
    yield True


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path.parent)).free


def _existing(path: Path) -> Path:
    """The path, or of the folders above it the lowest that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if os.path.exists(p))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a small file in one step."""
    staged = path.with_name(f".tmp-{path.name}")
    data = content.encode() if isinstance(content, str) else content
    try:
        with translate_disk_errors(path, len(data)):
            write_durably(staged, data)
    except DiskFullError:
        staged.unlink(missing_ok=True)
        raise
    crash_point(f"{path.name}.staged")
    staged.replace(path)
    crash_point(f"{path.name}.replaced")
    sync_directory(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
