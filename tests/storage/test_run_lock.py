"""Locks of run directories where the file system has none."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from pbtrl.errors import BusyError, RunError
from pbtrl.storage import run_lock
from pbtrl.storage.run_lock import RunLock, holder


def test_held_lock_is_busy(tmp_path: Path) -> None:
    with RunLock(tmp_path):
        assert (holder(tmp_path) or {})["pid"] == os.getpid()
        with pytest.raises(BusyError, match=f"process {os.getpid()}"):
            RunLock(tmp_path, patience=0.01).acquire()
    assert holder(tmp_path) is None
    RunLock(tmp_path).acquire().release()


def test_file_system_without_locks_is_not_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "LOCK").touch()

    def flock(file: Any, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(run_lock.fcntl, "flock", flock)
    assert holder(tmp_path) is None
    with pytest.raises(RunError, match=r"cannot lock .*LOCK: Function not implemented; its file system must"):
        RunLock(tmp_path).acquire()
