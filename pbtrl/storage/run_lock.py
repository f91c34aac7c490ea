"""Lock of a run directory (file LOCK), so that only one controller trains a run.

The kernel holds the lock (flock) and releases it when the process dies. The file's text names the holder. Without
fcntl (Windows) the text alone counts: a killed controller leaves it behind, and the error says what to delete.
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

from pbtrl.errors import BusyError, RunError
from pbtrl.system.child_process import close_in_forks
from pbtrl.system.files import is_same_file, reason
from pbtrl.system.strict_json import to_json

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]


LOCK = "LOCK"
PATIENCE = 0.2  # seconds to try: status checks hold the lock briefly


class RunLock:
    """Lock of a run directory; use it as a context manager, or call `acquire` and `release`.

    Args:
        run: path of the run directory.
        name: file of the lock; another one than LOCK is for something else than training.
        patience: seconds to wait for another holder; without fcntl there is no waiting.
    """

    def __init__(self, run: Path, name: str = LOCK, *, patience: float = PATIENCE) -> None:
        self._path = run / name
        self._patience = patience
        self._file: IO[bytes] | None = None

    def acquire(self) -> RunLock:
        """Take the lock.

        Raises:
            BusyError: another controller holds it; the message names its process and host.
            RunError: it cannot be created, or the file system has no locks.
        """
        try:
            file = open(self._path, "a+b", opener=_open)  # noqa: SIM115, held until `release`
        except OSError as error:
            raise RunError(f"cannot write to {self._path.parent}: {reason(error)}") from error
        if not _is_plain(file):
            file.close()
            raise RunError(f"{self._path} is not a regular file")
        try:
            taken = _take(file, self._patience)
        except OSError as error:
            file.close()
            raise RunError(f"cannot lock {self._path}: {reason(error)}; its file system must support flock") from error
        if not taken:
            owner = _text(file)
            file.close()
            raise BusyError(_busy(self._path, owner))
        if not is_same_file(self._path, file):
            file.close()
            raise RunError(f"{self._path.parent} was removed by another process: try again")
        close_in_forks(file)
        start = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        text = to_json({"pid": os.getpid(), "host": socket.gethostname(), "start": start}).encode()
        with contextlib.suppress(OSError):  # a full or failing disk; the kernel's lock is what counts
            file.truncate(0)
            os.write(file.fileno(), text)
        self._file = file
        return self

    def release(self) -> None:
        """Release the lock. The file stays, empty, because deleting it would race with the next holder."""
        if self._file:
            with contextlib.suppress(OSError):  # the kernel's lock is what counts
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
    """Holder of a run's lock, as far as known: `pid`, `host`, `start`; None if the lock is free."""
    try:
        with open(run / LOCK, "rb", opener=_open) as file:
            owner = _text(file) if _is_plain(file) else {}
            return owner if _is_held(file) and (owner or fcntl) else None
    except OSError:
        return None


def _open(path: str, flags: int) -> int:
    """Open without following links, since the target would be emptied, and without blocking on a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)


def _is_plain(file: IO[bytes]) -> bool:
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


def _take(file: IO[bytes], patience: float) -> bool:
    """Try to lock for so many seconds."""
    if fcntl is None:
        return not _text(file)
    for _ in range(round(patience / 0.01)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return True
    return False


def _is_held(file: IO[bytes]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _text(file: IO[bytes]) -> dict[str, Any]:
    file.seek(0)
    try:
        content = json.loads(file.read(4096))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _busy(path: Path, owner: dict[str, Any]) -> str:
    name = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}, since {owner.get('start', '?')}"
    hint = "" if fcntl else f"; if that process is gone, delete {path}"
    return f"{path.parent if path.name == LOCK else path} is in use by {name}{hint}"
