"""LOCK: one controller per run.

The lock is the kernel's (flock), so it goes with its process however that dies; the file's text says who has
it. Without fcntl (Windows) the text alone counts: a controller that was killed leaves it behind, and the
error says what to delete.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pbtrl.errors import RunError
from pbtrl.system.child_process import close_in_forks
from pbtrl.system.files import is_same_file
from pbtrl.system.strict_json import to_json

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]


class RunLock:
    """The lock of a run directory, held from entering to leaving, or from `acquire` to `release`."""

    def __init__(self, run: Path) -> None:
        self._path = run / "LOCK"
        self._file: IO[bytes] | None = None

    def acquire(self) -> RunLock:
        """Take the lock.

        Raises:
            RunError: another controller holds it; the message names process and host.
        """
        try:
            file = open(self._path, "a+b", opener=_open)  # noqa: SIM115, held until `release`
        except OSError as error:
            raise RunError(f"cannot write to {self._path.parent}: {error.strerror}") from error
        if not _is_plain(file):
            file.close()
            raise RunError(f"{self._path} is no file")
        if not _take(file):
            who = _text(file)
            file.close()
            raise RunError(_busy(self._path, who))
        if not is_same_file(self._path, file):
            file.close()
            raise RunError(f"{self._path.parent} was removed by somebody else: try again")
        close_in_forks(file)
        start = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        text = to_json({"pid": os.getpid(), "host": socket.gethostname(), "start": start}).encode()
        with contextlib.suppress(OSError):  # a full or failing disk; what counts is the kernel's
            file.truncate(0)
            os.write(file.fileno(), text)
        self._file = file
        return self

    def release(self) -> None:
        """Give it back; the file stays, empty, because removing it would race with the next holder."""
        if self._file:
            with contextlib.suppress(OSError):  # what counts is the kernel's
                self._file.truncate(0)
            if fcntl:  # a forked child may still have the file open
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()
            self._file = None

    def __enter__(self) -> RunLock:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def holder(run: Path) -> dict[str, Any] | None:
    """Who holds a run's lock: `pid`, `host`, `start` (what of it is known); None if nobody does."""
    try:
        with open(run / "LOCK", "rb", opener=_open) as file:
            who = _text(file) if _is_plain(file) else {}
            return who if _is_held(file) and (who or fcntl) else None
    except OSError:
        return None


def _open(path: str, flags: int) -> int:
    """A link could lead to any file of the user's, which would be emptied; at a pipe one would wait for ever."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def _is_plain(file: IO[bytes]) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _take(file: IO[bytes]) -> bool:
    """Try for a fifth of a second: somebody who merely asks for the state holds it for an instant too."""
    if fcntl is None:
        return not _text(file)
    for _ in range(20):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.01)
        else:
            return True
    return False


def _is_held(file: IO[bytes]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _text(file: IO[bytes]) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read(4096))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _busy(path: Path, who: dict[str, Any]) -> str:
    name = f"process {who.get('pid', '?')} on {who.get('host', '?')}, since {who.get('start', '?')}"
    hint = "" if fcntl else f"; if it is gone, delete {path}"
    return f"{path.parent} is in use by {name}{hint}"
