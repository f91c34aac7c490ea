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

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FAULTY = frozenset({errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN})  # the last two: a server that went
PAUSES = (0.5, 2.0)  # seconds between attempts: somebody may be tidying up


class DiskFullError(OSError):
    """There is no room for a file, or its disk fails; one line that says where, and how much is needed."""


def ends_here(error: BaseException) -> bool:
    """Whether this is the disk's fault: full, or failing."""
    return isinstance(error, OSError) and (isinstance(error, DiskFullError) or error.errno in FULL | FAULTY)


@contextmanager
def room_for(path: Path, size: int = 0) -> Iterator[None]:
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


def expect_room(run: Path, size: int, what: str) -> None:
    """Raise DiskFullError where a run will not have room for `size` bytes: better now than after an hour.

    A file system without any space at all is not full: nothing can be written to it, which its writer will say.
    """
    if shutil.disk_usage(_existing(run)).total and (free := _free(run / "members")) < size:
        raise DiskFullError(f"no room on the disk for {run}: {size:,} bytes are needed for {what}, {free:,} are free")


def make_folder(path: Path) -> None:
    """A folder in one that is there, also after a power failure; nobody but `train` makes that of a run."""
    with room_for(path):
        try:
            path.mkdir()
        except FileExistsError:
            return
        sync_directory(path.parent)


def is_at(path: Path, file: IO[bytes]) -> bool:
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


def attempts() -> Iterator[bool]:
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
