"""Durable and atomic writes, and errors of a full or failing disk (exit code 75, after which a run can be resumed)."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TextIO

from pbtrl.errors import DiskFullError
from pbtrl.system.crash_points import crash_point

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FAULTY = frozenset({errno.EIO, errno.EROFS, errno.ESTALE, errno.ENOTCONN})  # the last two: a lost file server
PAUSES = (0.5, 2.0)  # seconds between attempts, in which space may be freed


def reason(error: OSError) -> str:
    """Return the system's message for an error, without its number and file."""
    return error.strerror or str(error)


def open_log(path: Path) -> TextIO:
    """Open a log to append to; it takes every character in every locale."""
    return path.open("a", encoding="utf-8", errors="backslashreplace")


def is_disk_error(error: BaseException) -> bool:
    """Return whether the disk is the cause: full or failing."""
    return isinstance(error, OSError) and (isinstance(error, DiskFullError) or error.errno in FULL | FAULTY)


@contextmanager
def translate_disk_errors(path: Path, size: int = 0) -> Iterator[None]:
    """Turn OSErrors of a full or failing disk into DiskFullError.

    Args:
        path: file or directory that is written.
        size: bytes that it needs; 0 if unknown.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno in FAULTY:
            raise DiskFullError(f"cannot write {path}: {reason(error)}") from error
        if error.errno not in FULL:
            raise
        needed = f"{size:,} bytes are needed" if size else "more is needed"
        why = f"{needed}, {_free(path):,} are free" if error.errno == errno.ENOSPC else f"{reason(error)}, {needed}"
        raise DiskFullError(f"no space on the disk for {path}: {why}") from error


def check_free_space(members: Path, size: int, what: str) -> None:
    """Raise DiskFullError before a run starts if there is no space for the `size` bytes of its `members`.

    File systems of total size 0, such as /proc, are not checked; writing to them raises a clearer error.
    """
    run = members.parent
    if shutil.disk_usage(_existing(run)).total and (free := _free(members)) < size:
        raise DiskFullError(f"no space on the disk for {run}: {size:,} bytes are needed for {what}, {free:,} are free")


def make_directory(path: Path) -> None:
    """Create a directory durably; the parent must exist."""
    with translate_disk_errors(path):
        try:
            path.mkdir()
        except FileExistsError:
            return
        sync_directory(path.parent)


def is_text(path: Path) -> bool:
    """Return whether a path is valid UTF-8, which TensorBoard and JSON files need."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_same_file(path: Path, file: IO[bytes]) -> bool:
    """Return whether `path` still leads to this open file; its directory may have been moved, deleted or recreated."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def sync_directory(path: Path) -> None:
    """Make creations and renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def retry_attempts() -> Iterator[bool]:
    """Yield once per attempt, with pauses in between; the value says whether it is the last attempt."""
    for pause in PAUSES:
        yield False
        time.sleep(pause)
    yield True


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path.parent)).free


def _existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if os.path.exists(p))


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a small file atomically and durably."""
    staged = path.with_name(f".tmp-{path.name}")
    data = content.encode() if isinstance(content, str) else content
    try:
        with translate_disk_errors(path, len(data)):
            staged.unlink(missing_ok=True)  # it may be a link or a pipe of a stranger's
            write_durably(staged, data)
    except DiskFullError:
        with suppress(OSError):  # the file system may be read-only, or the file missing
            staged.unlink()
        raise
    crash_point(f"{path.name}.staged")
    staged.replace(path)
    crash_point(f"{path.name}.replaced")
    sync_directory(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file and sync it to disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
