"""Threads of OpenBLAS in this process and in its children."""

import os
from multiprocessing.connection import Connection

import pytest

from pbtrl.system.child_process import call_in_child
from pbtrl.system.openblas import THREADS


def send_threads(pipe: Connection, parent: int) -> None:
    """Send the number of threads that OpenBLAS reads."""
    pipe.send_bytes(os.environ.get(THREADS, "none").encode())


@pytest.mark.parametrize(("ours", "theirs"), [(None, b"1"), ("3", b"3")])
def test_children_have_one_thread_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, ours: str | None, theirs: bytes
) -> None:
    monkeypatch.setenv(THREADS, ours or "")
    if ours is None:
        monkeypatch.delenv(THREADS)
    assert call_in_child(send_threads) == theirs
    assert os.environ.get(THREADS) == ours
