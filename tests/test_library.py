"""pbtrl called from programs: without a main guard, from a heredoc, a thread or a child process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pbtrl import api
from pbtrl.cli import main as cli
from tests.command import CART, ROOT, Command, kinds

TOY = ["budget.env_steps_per_member=20", "name=null"]
APART = "execution={backend: processes, workers: 1}"
REFUSED = (
    "training was called while multiprocessing imports the main module for another process, which would train as well: "
    'put the call under `if __name__ == "__main__":`'
)

SESSION = f"""
print("imported")
import pbtrl

run = pbtrl.train("toy_quadratic", overrides={[*TOY, APART]!r}, progress="none")
raise SystemExit(0 if run.status()["state"] == "finished" else 1)
"""
COMMAND = f"""
print("imported")
from pbtrl.cli import main as cli

raise SystemExit(cli.main({["train", "toy_quadratic", "--progress", "none", *TOY, APART]!r}))
"""
ACTORS = """
print("imported")
from pbtrl.cli import main as cli

raise SystemExit(cli.main(["train", "cart.yaml", "--progress", "none", "agent.name=impala", "population.size=1",
    "budget.env_steps_per_member=240", "execution={backend: processes, workers: 1}", "population.mode=async",
    "acting={mode: actors, processes: 1}"]))
"""
BENCH = """
print("imported")
from pbtrl.cli import main as cli

code = cli.main(["bench", "cart.yaml", "--seconds", "0.1", "population.size=1"])
raise SystemExit(code)
"""


def script(where: Path, text: str) -> list[str]:
    (where / "script.py").write_text(text)
    return [sys.executable, "script.py"]


def module(where: Path, text: str) -> list[str]:
    (where / "script.py").write_text(text)
    return [sys.executable, "-m", "script"]


def inline(where: Path, text: str) -> list[str]:
    return [sys.executable, "-c", text]


def heredoc(where: Path, text: str) -> list[str]:
    (where / "input").write_text(text)
    return ["sh", "-c", 'exec "$0" <input', sys.executable]


def run(where: Path, argv: list[str]) -> subprocess.CompletedProcess[str]:
    (where / "cart.yaml").write_text(CART)
    path = f"{ROOT}{os.pathsep}{where}"
    return subprocess.run(
        argv, cwd=where, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=100
    )


@pytest.mark.parametrize(
    ("text", "how"),
    [
        (SESSION, script),
        (SESSION, inline),
        (COMMAND, script),
        (ACTORS, script),
        pytest.param(SESSION, module, marks=pytest.mark.slow),
        pytest.param(SESSION, heredoc, marks=pytest.mark.slow),
    ],
)
def test_script_without_a_guard_trains_once(tmp_path: Path, text: str, how: Callable[[Path, str], list[str]]):
    """Worker, actor and final choice do not import the script."""
    result = run(tmp_path, how(tmp_path, text))
    assert (result.returncode, result.stdout.count("imported")) == (0, 1), result.stderr
    (only,) = (tmp_path / "runs").iterdir()
    assert kinds(only)[-1] == "finish"
    assert "failure" not in kinds(only)
    assert not any(path.read_text() for path in only.rglob("log.txt"))


def test_bench_does_not_import_the_script(tmp_path: Path):
    result = run(tmp_path, script(tmp_path, BENCH))
    assert (result.returncode, result.stdout.count("imported")) == (0, 1), result.stderr


OWN_CHILDREN = """
import multiprocessing

def work():
    print("worked", flush=True)

TRAIN

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=work)
    child.start()
    child.join()
    raise SystemExit(child.exitcode)
"""


def test_training_during_import_in_a_child_is_refused(tmp_path: Path):
    """In a child of another library: the command prints an error and continues, the library raises."""
    train = f"from pbtrl.cli import main as cli; cli.main({['train', 'toy_quadratic', '--progress', 'none', *TOY]!r})"
    result = run(tmp_path, script(tmp_path, OWN_CHILDREN.replace("TRAIN", train)))
    assert (result.returncode, result.stdout, result.stderr) == (0, "worked\n", f"{REFUSED}\n")
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert run(
        tmp_path, script(tmp_path, OWN_CHILDREN.replace("TRAIN", SESSION.replace("raise", "#")))
    ).stderr.endswith(f"pbtrl.errors.RunError: {REFUSED}\n")


def test_other_child_processes_still_get_the_main_module(tmp_path: Path):
    """Also those that another thread starts at the same moment."""
    text = """
import multiprocessing, threading
from pbtrl.system.child_process import without_main_module
from tests.test_library import OWN_CHILDREN

def work():
    print("worked", flush=True)

def start():
    child = multiprocessing.get_context("spawn").Process(target=work)
    child.start()
    child.join()

if __name__ == "__main__":
    with without_main_module():
        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
    start()
"""
    result = run(tmp_path, script(tmp_path, text))
    assert (result.stdout, result.stderr) == ("worked\nworked\n", "")


# Threads


def elsewhere(function: Callable[[], Any]) -> Any:
    """Result of a function in another thread."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(function()))
    thread.start()
    thread.join()
    return answers[0]


@pytest.mark.parametrize("execution", [["execution.backend=inline"], [APART]])
def test_training_in_a_thread(pbtrl: Command, execution: list[str]):
    """Signals and alarms are the main thread's."""
    small = ["population.size=1", "budget.env_steps_per_member=240", *execution]
    assert elsewhere(lambda: api.train("cart.yaml", overrides=small, name="a").status()["state"]) == "finished"
    assert kinds(Path("runs/a"))[-1] == "finish"
    longer = ["budget.env_steps_per_member=480"]
    assert elsewhere(lambda: api.resume("a", overrides=longer).status()["state"]) == "finished"
    assert elsewhere(lambda: cli.main(["status", "a"])) == 0


def test_command_in_a_thread(pbtrl: Command, capsys: pytest.CaptureFixture[str]):
    small = ["population.size=1", "budget.env_steps_per_member=240", "--progress", "none"]
    assert elsewhere(lambda: cli.main(["train", "cart.yaml", "--name", "a", *small])) == 0
    assert elsewhere(lambda: cli.main(["eval", "a", "--episodes", "2"])) == 0
    assert not [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
