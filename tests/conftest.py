"""Fixtures for all tests."""

import os
import signal
from pathlib import Path

import pytest

from tests.command import CART, ROOT, Command, in_process

# Processes that tests start find tests.faulty_envs and the like, wherever they are started.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what a shell starts with `&`; commands inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by `nohup`, which commands respect
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn fsync off. Other tests simulate crashes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def pbtrl(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, quick_disk: None
) -> Command:
    """The command line, in this process and in an empty directory but for `cart.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cart.yaml").write_text(CART)
    return in_process(capsys)
