"""Fixtures for all tests."""

import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import CART, ROOT, Command, ForkServer, in_process

# Processes that tests start find tests.faulty_envs and the like, wherever they are started.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what a shell starts with `&`; commands inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by `nohup`, which commands respect
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def torch_as_in_a_worker() -> Iterator[None]:
    """Give every test one torch thread, the same random numbers and torch's own modes, whatever ran before it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_deterministic_debug_mode("default")
        torch.utils.deterministic.fill_uninitialized_memory = True


@pytest.fixture
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn fsync off. Other tests simulate crashes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def warm_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork workers, actors and the like from a process that has imported torch, which takes two seconds.

    They inherit nothing from the test, such as a limit or the environment, unless it is marked `cold_workers`. Commands
    that `spawn` starts, and the tests of executors, start workers as users do.
    """
    if request.node.get_closest_marker("cold_workers"):
        return
    forking = multiprocessing.get_context("forkserver")
    forking.set_forkserver_preload(["tests.warm_workers"])
    real = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda how: forking if how == "spawn" else real(how))


@pytest.fixture
def pbtrl(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    quick_disk: None,
    warm_workers: None,
) -> Command:
    """The command line, in this process and in an empty directory but for `cart.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cart.yaml").write_text(CART)
    return in_process(capsys)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Run a command in its own process, to be killed at a crash point."""
    command = [sys.executable, "-m", "tests.fork_server"]
    env, numbers = {**os.environ, "PYTHONPATH": str(ROOT)}, itertools.count()
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout

        def run(where: Path, *argv: str, crash: str = "", stop: bool = False) -> dict[str, Any]:
            assert process.stdin
            assert process.stdout
            number = next(numbers)
            task = {"number": number, "where": str(where), "argv": argv, "crash": crash, "stop": stop}
            print(json.dumps(task), file=process.stdin, flush=True)
            while True:  # a test that was interrupted has left its answer
                answer: dict[str, Any] = json.loads(process.stdout.readline())
                if answer["number"] == number:
                    return answer

        yield run
        process.stdin.close()
