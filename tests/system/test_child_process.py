"""Signals, module search paths and threads of child processes."""

import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pbtrl.system.child_process import SAFE, STOP_SIGNALS, call_in_child, init_child
from pbtrl.system.openblas import THREADS

SCRIPT = """
if __name__ == "__main__":
    from pbtrl.system.child_process import call_in_child
    from tests.system.test_child_process import send_blocked_signals

    for _ in range(2):
        print(call_in_child(send_blocked_signals).decode())
"""


def send_blocked_signals(pipe: Connection, parent: int) -> None:
    """Send the numbers of the signals that were blocked from the start."""
    pipe.send_bytes(" ".join(str(int(s)) for s in sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))).encode())


def test_first_child_of_a_process_ignores_signals_from_the_start() -> None:
    """Its start also launches multiprocessing's resource tracker, which unblocks signals."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, timeout=60
    )
    first, second = ({int(word) for word in line.split()} for line in result.stdout.splitlines())
    assert first == second
    assert first >= set(STOP_SIGNALS)


def test_own_signals_are_restored() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    call_in_child(send_blocked_signals)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def send_environment(pipe: Connection, parent: int) -> None:
    """Send OpenBLAS threads, whether the working directory is not searched, and PYTHONSAFEPATH as envs inherit it."""
    threads = os.environ.get(THREADS)
    init_child(parent, pipe)
    pipe.send_bytes(f"{threads} {sys.flags.safe_path} {os.environ.get(SAFE)}".encode())


@pytest.mark.parametrize(
    ("variable", "ours", "theirs"),
    [
        (SAFE, None, "1 True None"),
        (SAFE, "1", "1 True 1"),
        (THREADS, None, "1 True None"),
        (THREADS, "3", "3 True None"),
    ],
)
def test_children_have_one_thread_and_a_safe_path_unless_the_user_chose(
    monkeypatch: pytest.MonkeyPatch, variable: str, ours: str | None, theirs: str
) -> None:
    for name in (SAFE, THREADS):
        monkeypatch.delenv(name, raising=False)
    if ours is not None:
        monkeypatch.setenv(variable, ours)
    assert call_in_child(send_environment).decode() == theirs
    assert os.environ.get(variable) == ours
