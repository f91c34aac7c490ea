"""Signals and module search paths of child processes."""

import os
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from pbtrl.system.child_process import SAFE, STOP_SIGNALS, call_in_child, init_child

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


def send_safe_path(pipe: Connection, parent: int) -> None:
    """Send whether modules are not looked for in the working directory, and what programs of an env inherit."""
    init_child(parent, pipe)
    pipe.send_bytes(f"{sys.flags.safe_path} {os.environ.get(SAFE)}".encode())


@pytest.mark.parametrize("ours", [None, "1"])
def test_only_our_own_children_get_safe_path(monkeypatch: pytest.MonkeyPatch, ours: str | None) -> None:
    monkeypatch.setenv(SAFE, ours or "")
    if ours is None:
        monkeypatch.delenv(SAFE)
    assert call_in_child(send_safe_path).decode() == f"True {ours}"
    assert os.environ.get(SAFE) == ours
