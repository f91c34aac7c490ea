"""Sessions: signals, resuming, extending, and one journal for all executors and numbers of stops."""

from __future__ import annotations

import json
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pbtrl.build import evaluators
from pbtrl.core.records import Record, ReportRecord
from pbtrl.reporting.lineage import copies
from pbtrl.storage import run_lock
from pbtrl.storage.journal import digest, read_journal
from pbtrl.storage.retention import Retention
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.trainables.quadratic import Quadratic
from pbtrl.trainables.sequential import SequentialCohort
from pbtrl.training import final_choice, scoring, session
from pbtrl.training.controller import Controller
from tests.command import ROOT, Command, contents, descendants, journal, kinds, spawn, weights

CONTINUE = ["env.between_slices=continue", "population.mode=async"]


@contextmanager
def signalled(patch: pytest.MonkeyPatch, number: signal.Signals, report: int) -> Iterator[None]:
    """Send a signal with the nth report of a session."""
    left, real = [report], Retention.event

    def event(self: Retention, record: Record) -> None:
        real(self, record)
        left[0] -= isinstance(record, ReportRecord)
        if left[0] == 0:
            left[0] = -1
            signal.raise_signal(number)

    with patch.context() as inside:
        inside.setattr(Retention, "event", event)
        yield


def keep_lines(journal: Path, count: int) -> None:
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:count]))


def canonical(run: str) -> tuple[str, dict[str, str]]:
    path = Path("runs") / run
    return digest(journal(path)), weights(path)


# Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signal_saves_and_resume_finishes(pbtrl: Command, monkeypatch, number, code):
    with signalled(monkeypatch, number, report=2):
        stopped = pbtrl("train", "cart.yaml", "--name", "a", *CONTINUE)
    run = Path("runs/a")
    assert stopped.code == code
    assert "saving all members (Ctrl-C again: quit at once without saving)" in stopped.out
    assert stopped.err.splitlines()[-1] == "stopped; resume with: pbtrl resume a"
    assert kinds(run)[-1] == "stop"
    assert not (run / "best.json").exists()
    assert pbtrl("status", "a", "--json").json["state"] == "stopped"
    assert "continue with: pbtrl resume a" in pbtrl("status", "a").out
    resumed = pbtrl("resume", "a")
    assert resumed.code == 0
    assert "env steps are done" in resumed.out
    assert re.search(r"\n +m03 from m03/00000\d, verified", resumed.out)
    members = pbtrl("status", "a", "--json").json["members"]
    assert [m["env_steps"] for m in members] == [720] * 4
    assert kinds(run)[-1] == "finish"
    assert "resume" in kinds(run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signal_during_the_final_choice_stops(pbtrl: Command, monkeypatch, number, code):
    with monkeypatch.context() as inside:
        inside.setattr(scoring, "evaluate", lambda *_, **__: signal.raise_signal(number))
        assert pbtrl("train", "cart.yaml", "--name", "a").code == code
    assert kinds(Path("runs/a"))[-1] == "stop"
    assert not Path("runs/a/best.json").exists()
    reports = kinds(Path("runs/a")).count("report")
    assert pbtrl("resume", "a").code == 0
    assert kinds(Path("runs/a")).count("report") == reports
    assert Path("runs/a/best.json").exists()


def test_lost_snapshots_are_remade_before_the_final_choice(pbtrl: Command, monkeypatch):
    enough = "budget.until_fitness=0.5"
    assert pbtrl("train", "toy_quadratic", "--name", "whole", enough).code == 0
    with monkeypatch.context() as inside:
        inside.setattr(scoring, "evaluate", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        assert pbtrl("train", "toy_quadratic", enough).code == 130
    run = Path("runs/toy_quadratic")
    for folder in run.glob("members/*/snapshots"):
        shutil.rmtree(max(folder.iterdir()))
    assert pbtrl("resume", "toy_quadratic").code == 0
    assert kinds(run).count("remade") == 2
    assert weights(run) == weights(Path("runs/whole"))
    assert pbtrl("verify", "toy_quadratic").out.startswith(f"{run}: clean")


def test_snapshot_that_cannot_be_remade_is_not_chosen(pbtrl: Command, monkeypatch):
    """Its parent is lost as well. If no other member is left, the run is damaged."""
    with monkeypatch.context() as inside:
        inside.setattr(scoring, "evaluate", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        assert pbtrl("train", "toy_quadratic").code == 130
    run = Path("runs/toy_quadratic")
    _, _, population = RunDirectory(run).load()
    best = population.best
    assert best
    shutil.rmtree(run / "members" / best.id / "snapshots")
    assert pbtrl("resume", "toy_quadratic").code == 0
    assert json.loads((run / "best.json").read_text())["member"] != best.id
    for folder in run.glob("members/*/snapshots"):
        shutil.rmtree(folder)
    refused = pbtrl("resume", "toy_quadratic", "final.episodes=2")
    assert refused.code == 4
    assert "no intact snapshot among the candidates for the best" in refused.err


def test_nan_score_is_not_the_best(pbtrl: Command, monkeypatch):
    real = scoring.evaluate

    def first_is_nan(*args: Any, **how: Any) -> list[dict[str, Any]]:
        rows = real(*args, **how)
        if len(rows) > 1:
            rows[0]["return_mean"] = float("nan")
        return rows

    monkeypatch.setattr(scoring, "evaluate", first_is_nan)
    assert pbtrl("train", "toy_quadratic").code == 0
    best = json.loads(Path("runs/toy_quadratic/best.json").read_text())
    assert best["member"] == best["selection"][1]["member"]


def test_opening_says_what_was_rounded_to_whole_blocks(pbtrl: Command):
    options = ("strategy.ready.slice_steps=250", "budget.env_steps_per_member=480", "--progress", "plain")
    result = pbtrl("train", "cart.yaml", "--name", "a", *options)
    assert result.code == 0
    (line,) = (line for line in result.out.splitlines() if line.startswith("slices "))
    assert line.endswith("280 env steps each; in whole blocks of 40: ready.slice_steps 250 to 280")


def test_two_controllers_cannot_start_the_same_run(pbtrl: Command, monkeypatch):
    asked = iter([False])
    monkeypatch.setattr(RunDirectory, "has_begun", lambda _: next(asked, True))
    refused = pbtrl("train", "toy_quadratic")
    assert (refused.code, refused.err) == (
        2,
        "runs/toy_quadratic has just been trained by another process: try again\n",
    )
    assert not Path("runs/toy_quadratic/journal.jsonl").exists()


def test_signal_just_before_the_final_choice_is_kept(pbtrl: Command, monkeypatch):
    with signalled(monkeypatch, signal.SIGTERM, report=40):  # the toy's last one
        assert pbtrl("train", "toy_quadratic").code == 143
    assert kinds(Path("runs/toy_quadratic"))[-1] == "stop"
    assert pbtrl("resume", "toy_quadratic").code == 0


def workers_of(pid: int) -> list[int]:
    """Children of a process that train; multiprocessing has another one."""
    return [p for p in descendants(pid) if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]


def ended(pid: int) -> bool:
    """Whether a process ends within ten seconds."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], 10.0)[0])
    finally:
        os.close(handle)


def at_work(pid: int) -> int:
    """Processor time of a process."""
    fields = stat(Path(f"/proc/{pid}"))
    return int(fields[11]) + int(fields[12])


def stat(process: Path) -> list[str]:
    """State of a process or thread and its numbers, from the kernel."""
    return (process / "stat").read_text().rpartition(")")[2].split()


def stop(pids: Sequence[int]) -> None:
    """Send SIGSTOP and wait until the last thread has stopped."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    threads = [thread for pid in pids for thread in Path(f"/proc/{pid}/task").iterdir()]
    while any(stat(thread)[0] != "T" for thread in threads):
        time.sleep(0.001)


TELLING = """\
trainable: {name: "tests.telling:Telling", fifo: FIFO, after: 30}
population: {size: 1, mode: async}
budget: {env_steps_per_member: 100000000}
hparams: {h0: {prior: uniform, low: 0, high: 1}, h1: {prior: uniform, low: 0, high: 1}}
strategy: {ready: {slice_steps: 10000000}}
"""
CONTINUES = "env={id: tests.faulty_envs:Telling, num_envs: 1, kwargs: {fifo: FIFO, after: 30}}"
HANGS = CONTINUES.replace("30}", "30, hang: true}")


def telling(tmp_path: Path, env: str = "") -> list[str]:
    """Arguments that train the toy, or `env`, for hours; a pipe tells when it has trained for 30 steps."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "telling.yaml").write_text(TELLING.replace("FIFO", str(tmp_path / "fifo")))
    if not env:
        return ["train", "telling.yaml", "--name", "a"]
    size = ["population.size=1", "budget.env_steps_per_member=100000000", "strategy.ready.slice_steps=10000000"]
    return ["train", "cart.yaml", "--name", "a", env.replace("FIFO", str(tmp_path / "fifo")), *size, *CONTINUE]


@contextmanager
def training(tmp_path: Path, *argv: str, env: str = "") -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """Start a run in its own process group, and wait until it trains; yields it and its process ids."""
    with spawn(tmp_path, *telling(tmp_path, env), *argv) as process:
        try:
            (tmp_path / "fifo").read_text()
            yield process, descendants(process.pid)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also whom a test that failed left stopped


@pytest.mark.parametrize(
    ("backend", "env", "number", "code"),
    [
        ("processes", CONTINUES, signal.SIGINT, 130),
        ("inline", "", signal.SIGTERM, 143),
        ("processes", "", signal.SIGHUP, 129),
    ],
    ids=["env", "inline", "toy"],
)
def test_terminal_signal_during_a_slice(pbtrl: Command, tmp_path: Path, backend, env, number, code):
    """The terminal sends it to the workers as well."""
    with training(tmp_path, f"execution.backend={backend}", env=env) as (process, family):
        assert bool(family) == (backend == "processes")
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=20)
        assert process.returncode == code
        assert "saving all members" in out
        assert err.splitlines()[-1] == "stopped; resume with: pbtrl resume a --trust-imports"
        assert all(map(ended, family))
    (member,) = pbtrl("status", "a", "--json").json["members"]
    assert 30 <= member["env_steps"] < 10_000_000
    assert list(Path("runs/a/members/m00/snapshots").iterdir())


def test_second_sighup_does_not_end_at_once(pbtrl: Command, monkeypatch: pytest.MonkeyPatch):
    """A shell and the kernel may both send it when a terminal closes."""
    real = Controller.step

    def step(self: Controller) -> str:
        signal.raise_signal(signal.SIGHUP)
        return real(self)

    with monkeypatch.context() as inside:
        inside.setattr(Controller, "step", step)
        assert pbtrl("train", "toy_quadratic").code == 129
    assert kinds(Path("runs/toy_quadratic"))[-1] == "stop"
    assert pbtrl("resume", "toy_quadratic").code == 0


def test_nohup_is_respected(pbtrl: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The command and its workers ignore SIGHUP; other signals work as usual."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signalled(monkeypatch, signal.SIGHUP, report=2):
            assert pbtrl("train", "toy_quadratic").code == 0
        with training(tmp_path, "execution.backend=processes") as (process, family):
            os.killpg(process.pid, signal.SIGHUP)
            time.sleep(0.3)
            assert process.poll() is None
            assert descendants(process.pid) == family
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=20)
            assert process.returncode == 143
    finally:
        signal.signal(signal.SIGHUP, before)
    assert "failure" not in kinds(Path("runs/a"))


CLOSING = """\
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
shown = b""
while b"fitness" not in shown:
    shown += os.read(terminal, 4096)
open(sys.argv[1], "rb").read()  # until its env has stepped
os.close(terminal)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("mode", ["live", "plain"])
def test_closed_terminal_saves_the_run(pbtrl: Command, tmp_path: Path, mode: str):
    """The kernel sends SIGHUP to the run and its workers, and fails whatever they write from then on."""
    command = [sys.executable, "-m", "pbtrl", *telling(tmp_path), "execution.backend=processes", "--progress", mode]
    closing = CLOSING if mode == "live" else CLOSING.replace("fitness", "Ctrl-C")
    path = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "TERM": "xterm"}
    result = subprocess.run(
        [sys.executable, "-c", closing, tmp_path / "fifo", *command],
        cwd=tmp_path, env=path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (result.stdout, result.stderr) == ("129\n", "")
    assert kinds(Path("runs/a"))[-1] == "stop"
    assert json.loads(Path("runs/a/run.json").read_text())["status"] == "stopped"


def test_suspended_run_continues(pbtrl: Command, tmp_path: Path):
    """As by Ctrl-Z and fg, or when a laptop sleeps: the controller alone, a worker alone, and both."""
    with training(tmp_path, "execution.backend=processes") as (process, family):
        for pids in ([process.pid], family, [process.pid, *family]):
            stop(pids)
            still = {pid: at_work(pid) for pid in pids}
            time.sleep(0.3)
            assert pbtrl("status", "a", "--json").json["state"] == "running"
            assert {pid: at_work(pid) for pid in pids} == still
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
            for pid in {*pids} & {process.pid, *workers_of(process.pid)}:
                while at_work(pid) == still[pid]:
                    time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
    assert "failure" not in kinds(Path("runs/a"))
    assert pbtrl("verify", "a").out.startswith("runs/a: clean")


def test_workers_end_with_a_killed_controller(pbtrl: Command, tmp_path: Path):
    """While the controller lives, no other process can use the run."""
    with training(tmp_path, "execution.backend=processes") as (process, family):
        before = contents(Path("runs/a") / "members")
        for command in (["resume", "a", "--trust-imports"], ["train", "cart.yaml", "--name", "a", "--overwrite"]):
            refused = pbtrl(*command)
            assert (refused.code, refused.out) == (2, "")
            assert re.fullmatch(rf"runs/a is in use by process {process.pid} on .+, since 20.+\n", refused.err)
        assert pbtrl("train", "cart.yaml", "--name", "a").err.startswith("runs/a exists (running): ")
        assert contents(Path("runs/a") / "members").keys() >= before.keys()
        process.kill()
        assert all(map(ended, family))
        process.wait()
    assert pbtrl("status", "a", "--json").json["state"] == "crashed"
    assert pbtrl("verify", "a", "--repair").code == 0


def test_moved_run_ends_and_is_intact_at_its_new_path(pbtrl: Command, tmp_path: Path):
    with training(tmp_path, "execution.backend=processes") as (process, family):
        Path("runs/a").rename("runs/b")
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        message = "runs/a was moved or deleted during training; resume it at its new place"
        assert [line for line in err.splitlines() if not line.startswith("warning: ")] == [message]
        assert all(map(ended, family))
    assert not Path("runs/a").exists()
    assert pbtrl("verify", "b").code == 0
    assert pbtrl("status", "b", "--json").json["state"] == "crashed"


def test_killed_worker_is_replaced_at_once(pbtrl: Command, tmp_path: Path):
    with training(tmp_path, "execution.backend=processes") as (process, family):
        before = set(family)
        os.kill(workers_of(process.pid)[0], signal.SIGKILL)
        path = Path("runs/a/journal.jsonl")
        while "failure" not in kinds(Path("runs/a")):
            assert process.poll() is None
            time.sleep(0.01)
        failure = json.loads(path.read_text().splitlines()[-1])
        assert failure["error"].startswith("worker killed by signal 9 (out of memory?")
        while not set(descendants(process.pid)) - before:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=20)
        assert process.returncode == 143


def test_second_signal_ends_at_once(pbtrl: Command, tmp_path: Path):
    """The env hangs, so that the first signal alone would be waited for."""
    with training(tmp_path, "execution.backend=processes", env=HANGS) as (process, family):
        assert process.stdout
        process.send_signal(signal.SIGINT)
        assert any("saving all members" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert all(map(ended, family))
    assert pbtrl("status", "a", "--json").json["state"] == "crashed"


TERMINAL = """\
import os, pty, sys
sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])) % 256)
"""
BEFORE_PYTHON_BEGAN = 256 - signal.SIGINT  # its own end by the signal, with nothing of ours yet


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_ctrl_c_at_random_times(pbtrl: Command, tmp_path: Path, seed):
    """Several times, then the run continues to the end; journal and weights show nothing of it."""
    rng, run = random.Random(seed), Path("runs/a")
    assert pbtrl("train", "cart.yaml", "--name", "b").code == 0
    command = [sys.executable, "-m", "pbtrl", "train", "cart.yaml", "--name", "a", "--if-exists", "resume",
               "execution.backend=processes", "--progress", "live"]  # fmt: skip
    for delay in [*(rng.uniform(0.1, 4.0) for _ in range(4)), None]:
        with subprocess.Popen(
            [sys.executable, "-c", TERMINAL, *command],
            cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as terminal:  # fmt: skip
            if delay is None:
                terminal.communicate(timeout=60)
            else:
                time.sleep(delay)
                terminal.communicate(b"\x03", timeout=10)
        assert terminal.returncode in ([0] if delay is None else [0, 130, BEFORE_PYTHON_BEGAN])
        assert not run.exists() or not RunDirectory(run).has_begun() or pbtrl("status", "a").code == 0
    assert canonical("a") == canonical("b")
    assert pbtrl("verify", "a").out.startswith("runs/a: clean")


def test_one_signal_ends_a_run_with_a_hanging_env(pbtrl: Command, tmp_path: Path):
    with training(tmp_path, "execution.backend=processes", env=HANGS) as (process, family):
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
        assert all(map(ended, family))
    assert kinds(Path("runs/a"))[-1] == "stop"
    assert pbtrl("status", "a", "--json").json["state"] == "stopped"


# Whatever is there


@pytest.fixture
def finished(pbtrl: Command) -> Path:
    assert pbtrl("train", "toy_quadratic", "--name", "a").code == 0
    return Path("runs/a")


def test_damaged_run_json_is_rewritten(pbtrl: Command, finished: Path):
    (finished / "run.json").write_text("{")
    resumed = pbtrl("resume", "a", "budget.env_steps_per_member=240")
    assert resumed.code == 0
    assert re.fullmatch(r"warning: runs/a/run.json cannot be read: .+; it will be rewritten\n", resumed.err)
    assert pbtrl("verify", "a").out.startswith("runs/a: clean")


@pytest.mark.parametrize("action", ["resume", "overwrite"])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_only_a_named_run_is_resumed_or_overwritten(pbtrl: Command, action: str, more: list[str]):
    refused = pbtrl("train", "cart.yaml", "--if-exists", action, *more)
    assert (refused.code, refused.out) == (2, "")
    assert f"to {action} a run, name it: give --name, or name: in the config" in refused.err
    assert not Path("runs").exists()


@pytest.mark.parametrize("left", [0, 20, None])
@pytest.mark.parametrize(
    "command", [["resume", "a"], ["train", "toy_quadratic", "--name", "a", "--if-exists", "resume"]]
)
def test_run_with_a_torn_first_line_starts(pbtrl: Command, finished: Path, left, command):
    before = canonical("a")
    if left is None:
        (finished / "journal.jsonl").unlink()
    else:
        os.truncate(finished / "journal.jsonl", left)
    for path in ("members", "tb", "eval"):
        shutil.rmtree(finished / path, ignore_errors=True)
    assert pbtrl(*command).code == 0
    assert canonical("a") == before


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["train", "toy_quadratic", "--name", "a", "seed=7"], 2, "runs/a exists "),
        (["train", "toy_quadratic", "--name", "a", "--if-exists", "resume"], 4, "runs/a has lost its journal: "),
        (["resume", "a", "budget.env_steps_per_member=20"], 4, "runs/a has lost its journal: "),
    ],
)
@pytest.mark.parametrize("empty", [False, True])
def test_run_without_its_journal_is_left_alone(
    pbtrl: Command, finished: Path, command: list[str], code: int, message: str, empty: bool
):
    (finished / "journal.jsonl").unlink()
    if empty:
        (finished / "journal.jsonl").touch()
    before = contents(finished)
    refused = pbtrl(*command)
    assert (refused.code, refused.err[: len(message)], refused.err.count("\n")) == (code, message, 1)
    assert contents(finished) == before


def test_snapshots_unknown_to_the_journal_serve_the_same_assignments(pbtrl: Command, finished: Path):
    before, hashes = canonical("a"), weights(finished)
    keep_lines(finished / "journal.jsonl", 1)
    assert pbtrl("resume", "a").code == 0
    assert (canonical("a"), weights(finished)) == (before, hashes)
    assert not list(finished.glob("members/*/quarantine"))


def test_snapshots_of_another_history_are_quarantined(pbtrl: Command, finished: Path):
    assert pbtrl("train", "toy_quadratic", "--name", "b", "seed=7").code == 0
    for file in ("config.resolved.yaml", "journal.jsonl"):
        shutil.copy(Path("runs/b", file), finished)
    keep_lines(finished / "journal.jsonl", 1)
    assert pbtrl("resume", "a").code == 0
    assert canonical("a") == canonical("b")
    assert weights(finished) == weights(Path("runs/b"))
    assert pbtrl("verify", "a").out.startswith("runs/a: clean")


def test_run_without_its_config_is_reported(pbtrl: Command, finished: Path):
    (finished / "config.resolved.yaml").unlink()
    for command in (["resume", "a"], ["eval", "a"]):
        refused = pbtrl(*command)
        assert (refused.code, refused.err) == (
            4,
            "runs/a/config.resolved.yaml is missing; restore it or start a new run\n",
        )
    (finished / "journal.jsonl").unlink()
    refused = pbtrl("resume", "a")
    assert (refused.code, refused.err) == (
        2, "runs/a never began: train its config again, with --if-exists resume\n"
    )  # fmt: skip


# The same journal


def test_executor_and_stops_change_nothing(pbtrl: Command, monkeypatch):
    assert pbtrl("train", "cart.yaml", "--name", "inline").code == 0
    assert pbtrl("status", "inline", "--json").json["generation"] == 2
    expected = canonical("inline")
    for workers in (1, 2):
        name = f"workers{workers}"
        override = ["execution.backend=processes", f"execution.workers={workers}"]
        assert pbtrl("train", "cart.yaml", "--name", name, *override).code == 0
        assert canonical(name) == expected
    assert {pbtrl("verify", run, "--digest").out for run in ("inline", "workers1", "workers2")} == {f"{expected[0]}\n"}
    for report in (1, 3, 6):
        with signalled(monkeypatch, signal.SIGINT, report):
            assert pbtrl("train", "cart.yaml", "--name", f"stopped{report}").code == 130
        assert pbtrl("resume", f"stopped{report}").code == 0
        assert canonical(f"stopped{report}") == expected


# Going on


def test_resume_of_a_finished_run_changes_nothing(pbtrl: Command):
    pbtrl("train", "toy_quadratic")
    before = contents(Path("runs/toy_quadratic"))
    message = (
        "runs/toy_quadratic is finished (budget): nothing to do. "
        "To continue: pbtrl resume toy_quadratic budget.env_steps_per_member=400\n"
    )
    for command in (["resume", "last"], ["train", "toy_quadratic", "--if-exists", "resume"]):
        result = pbtrl(*command)
        assert (result.code, result.out, result.err) == (0, message, "")
    assert contents(Path("runs/toy_quadratic")) == before


def test_resume_of_a_finished_run_without_best_json_chooses_again(pbtrl: Command):
    pbtrl("train", "toy_quadratic")
    run = RunDirectory(Path("runs/toy_quadratic"))
    best, steps = run.best_file.read_text(), run.load()[2].step
    run.best_file.unlink()
    result = pbtrl("resume", "last")
    assert result.code == 0
    assert run.best_file.read_text() == best
    assert run.load()[2].step == steps
    assert kinds(run.path)[-2:] == ["resume", "finish"]


def test_same_command_starts_resumes_and_finishes(pbtrl: Command, monkeypatch):
    """For clusters that start a job again until it is done."""
    line = ["train", "toy_quadratic", "--if-exists", "resume"]
    with signalled(monkeypatch, signal.SIGTERM, report=10):
        assert pbtrl(*line).code == 143
    assert pbtrl(*line).code == 0
    assert pbtrl(*line).code == 0
    assert kinds(Path("runs/toy_quadratic")).count("run") == 1
    assert kinds(Path("runs/toy_quadratic")).count("finish") == 1
    pbtrl("train", "toy_quadratic", "--name", "whole")
    assert canonical("toy_quadratic") == canonical("whole")


def test_longer_budget_extends_a_finished_run(pbtrl: Command):
    pbtrl("train", "toy_quadratic")
    first = json.loads(Path("runs/toy_quadratic/best.json").read_text())
    result = pbtrl("resume", "toy_quadratic", "budget.env_steps_per_member=230")
    assert result.code == 0
    assert "400 of 460 steps are done" in result.out
    run = Path("runs/toy_quadratic")
    status = pbtrl("status", "toy_quadratic", "--json").json
    assert (status["steps_budget"], [m["env_steps"] for m in status["members"]]) == (460, [230, 230])
    resumed = next(line for line in journal(run) if line["kind"] == "resume")
    assert (resumed["horizon"], resumed["changes"]) == (230, ["budget.env_steps_per_member=230"])
    assert "env_steps_per_member: 230" in (run / "config.resolved.yaml").read_text()
    assert json.loads((run / "best.json").read_text())["snapshot"] > first["snapshot"]
    assert len({a["stop"] - a["start"] for line in journal(run) for a in line.get("assignments", [])}) == 1
    pbtrl("train", "toy_quadratic", "--name", "whole", "budget.env_steps_per_member=230")
    assert canonical("toy_quadratic")[0] == canonical("whole")[0]
    assert pbtrl("train", "toy_quadratic", "--if-exists", "resume").code == 0  # asks for less than there is
    assert pbtrl("status", "toy_quadratic", "--json").json["steps_budget"] == 460


def test_best_of_an_earlier_session_stays_until_replaced(pbtrl: Command, monkeypatch):
    pbtrl("train", "toy_quadratic")
    with signalled(monkeypatch, signal.SIGINT, report=9):
        assert pbtrl("resume", "toy_quadratic", "budget.env_steps_per_member=400").code == 130
    best = json.loads(Path("runs/toy_quadratic/best.json").read_text())
    assert pbtrl("eval", "toy_quadratic", "--json").json["snapshot"] == best["snapshot"]


def test_total_budget_can_be_extended(pbtrl: Command):
    budget = ["budget.env_steps_per_member=null", "budget.total_steps=100"]
    assert pbtrl("train", "toy_quadratic", *budget).code == 0
    assert pbtrl("resume", "toy_quadratic", "budget.total_steps=200").code == 0
    assert [m["env_steps"] for m in pbtrl("status", "toy_quadratic", "--json").json["members"]] == [100, 100]
    assert "To continue: pbtrl resume toy_quadratic budget.total_steps=400\n" in pbtrl("resume", "toy_quadratic").out


def test_stop_inside_a_slice_changes_nothing_in_a_deterministic_run(pbtrl: Command, monkeypatch):
    """Also of a model that is not RL: its open slices are trained again as a whole."""
    train = ["train", "toy_deceptive", "budget.env_steps_per_member=200", "fitness.curve_interval=10"]
    assert pbtrl(*train, "--name", "a").code == 0
    calls = iter(range(1000))
    train_part = SequentialCohort.advance

    def advance(self):
        if next(calls) == 15:
            signal.raise_signal(signal.SIGINT)
        return train_part(self)

    monkeypatch.setattr(SequentialCohort, "advance", advance)
    assert pbtrl(*train, "--name", "b").code == 130
    assert pbtrl("resume", "b").code == 0
    assert canonical("a") == canonical("b")


def test_target_fitness_ends_a_run_and_a_higher_one_resumes(pbtrl: Command):
    assert pbtrl("train", "toy_quadratic", "budget.until_fitness=0.5").code == 0
    assert journal(Path("runs/toy_quadratic"))[-1]["reason"] == "fitness reached"
    assert "finished (fitness reached)" in pbtrl("resume", "toy_quadratic").out
    assert pbtrl("resume", "toy_quadratic", "budget.until_fitness=null").code == 0
    assert journal(Path("runs/toy_quadratic"))[-1]["reason"] == "budget"


CHANGED = {
    "seed=9": "seed (1 -> 9)",
    "population.size=3": "population.size (2 -> 3)",
    "hparams.h0.high=2": "hparams.h0.high (1.0 -> 2.0)",
    "hparams.h0.bounds=[0, 3]": "hparams.h0.bounds (None -> [0, 3])",
    "trainable.clamp=false": "trainable.clamp (True -> False)",
    "strategy.ready.slice_steps=20": "strategy.ready.slice_steps (10 -> 20)",
}


@pytest.mark.parametrize("override", CHANGED)
def test_fixed_settings_cannot_change_on_resume(pbtrl: Command, override: str):
    pbtrl("train", "toy_quadratic")
    before = contents(Path("runs/toy_quadratic"))
    for command in (["resume", "toy_quadratic"], ["train", "toy_quadratic", "--if-exists", "resume"]):
        result = pbtrl(*command, override)
        assert (result.code, result.out) == (2, "")
        assert result.err.startswith(f"cannot change on resume: {CHANGED[override]}")
        assert len(result.err.splitlines()) == 1
    assert contents(Path("runs/toy_quadratic")) == before


def test_env_and_agent_cannot_change_on_resume(pbtrl: Command):
    pbtrl("train", "cart.yaml", "--name", "a")
    for override, message in (
        ("env.id=Acrobot-v1", "env.id (CartPole-v1 -> Acrobot-v1)"),
        ("agent.optimizer=adam", "agent.optimizer (rmsprop -> adam)"),
        ("env.backend=envpool", "env.backend (gymnasium -> envpool)"),
    ):
        assert f"cannot change on resume: {message}." in pbtrl("resume", "a", override).err
    assert pbtrl("train", "cart.yaml", "--name", "a", "env.backend=auto", "--if-exists", "resume").code == 0


def test_budget_cannot_shrink(pbtrl: Command):
    pbtrl("train", "toy_quadratic")
    result = pbtrl("resume", "toy_quadratic", "budget.env_steps_per_member=100")
    assert result.code == 2
    assert result.err == "a budget can only grow: this run's is 200 steps per member, more than 100 steps\n"


def test_one_controller_at_a_time(pbtrl: Command):
    pbtrl("train", "toy_quadratic")
    before = contents(Path("runs/toy_quadratic"))
    with run_lock.RunLock(Path("runs/toy_quadratic")):
        for command in (
            ["resume", "toy_quadratic", "budget.env_steps_per_member=400"],
            ["train", "toy_quadratic", "--if-exists", "resume"],
            ["train", "toy_quadratic", "--overwrite"],
        ):
            result = pbtrl(*command)
            assert result.code == 2
            assert f"in use by process {os.getpid()} on" in result.err
    assert contents(Path("runs/toy_quadratic")) == before


def test_lineage_and_curves_continue_after_a_stop(pbtrl: Command, monkeypatch):
    pbtrl("train", "toy_quadratic", "--name", "whole")
    with signalled(monkeypatch, signal.SIGINT, report=13):
        pbtrl("train", "toy_quadratic")
    pbtrl("resume", "toy_quadratic")
    result = {}
    for name in ("whole", "toy_quadratic"):
        run = Path("runs") / name
        received = [{k: v for k, v in c.items() if k != "time"} for c in copies(read_journal(run / "journal.jsonl"))]
        curves = {}
        for member in ("m00", "m01", "population"):
            events = EventAccumulator(str(run / "tb" / member)).Reload()
            curves[member] = {t: [(e.step, e.value) for e in events.Scalars(t)] for t in events.Tags()["scalars"]}
        result[name] = received, curves
    assert result["toy_quadratic"] == result["whole"]


def test_default_hyperparameters_are_always_shown(pbtrl: Command):
    """Also those that are not searched, with the values that the learner used."""
    assert pbtrl("train", "cart.yaml", "--name", "a", "agent.entropy_cost=0.003").code == 0
    events = EventAccumulator("runs/a/tb/m00").Reload()
    assert {round(e.value, 6) for e in events.Scalars("hparams/entropy_cost")} == {0.003}
    assert {"hparams/learning_rate", "hparams/unroll_length"} <= set(events.Tags()["scalars"])


# Failures


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("abort", "IsolatedCallError: its process died (killed by signal 6)"),
        (
            "hang",
            "IsolatedCallError: its process died (killed by signal 14: its envs took longer than failure.env_step_time",
        ),
        (
            "raise",
            "IsolatedCallError: EnvError: env.id=tests.faulty_envs:Odd: step() raised RuntimeError: not now (env 0 of ",
        ),
    ],
)
def test_env_failing_the_final_choice_loses_nothing(pbtrl: Command, how, why):
    env = f"env={{id: tests.faulty_envs:Odd, num_envs: 4, kwargs: {{how: {how}}}}}"
    processes = ["execution.backend=processes", "execution.workers=1", "failure.env_step_timeout=1"]
    result = pbtrl("train", "cart.yaml", "--name", "a", env, *processes)
    assert result.code == 3
    assert result.err.splitlines()[-1].startswith(f"the final evaluation failed: {why}")
    assert "see runs/a/log.txt" in result.err
    assert ("not now" in Path("runs/a/log.txt").read_text()) == (how == "raise")
    assert [m["env_steps"] for m in pbtrl("status", "a", "--json").json["members"]] == [720] * 4
    assert pbtrl("eval", "a", "--member", "m00", "--episodes", 2, "--trust-imports").code == 0


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("reset", "reset() raised RuntimeError: not ready (env 0 of 1, step "),
        ("shape", "the observation has shape (3,), but the observation space has shape (4,) (env 0 of 1, step "),
    ],
)
def test_env_errors_are_reported(pbtrl: Command, how, why):
    env = f"env={{id: tests.faulty_envs:Odd, num_envs: 1, kwargs: {{how: {how}}}}}"
    result = pbtrl("train", "cart.yaml", "--name", "a", env, "population.size=1")
    message = f"no member survived: EnvError: env.id=tests.faulty_envs:Odd: {why}"
    assert (result.code, result.err.splitlines()[-1].startswith(message)) == (3, True), result.err


def test_failing_env_is_retried_then_given_up(pbtrl: Command):
    result = pbtrl("train", "cart.yaml", "--name", "a", "env.id=probe/Raising-v0", "population.size=2")
    assert result.code == 3
    why = (
        "EnvError: env.id=probe/Raising-v0: step() raised RuntimeError: probe/Raising-v0 raised, as it was asked to "
        "(env 0 of 4, step 11)"
    )
    again = "see runs/a/members/m01/log.txt; when the cause is fixed: pbtrl resume a"
    assert result.err.splitlines()[-1] == f"no member survived: {why}; {again}"
    assert "Traceback" not in result.out + result.err
    assert "Traceback" in Path("runs/a/members/m01/log.txt").read_text()
    failures = [line for line in journal(Path("runs/a")) if line["kind"] == "failure"]
    first = [(f["alone"], f["given_up"]) for f in failures if f["member"] == "m00"][:4]
    assert first == [(False, False), (True, False), (True, False), (True, True)]
    assert kinds(Path("runs/a"))[-2:] == ["failure", "decision"]  # which retires the members
    assert pbtrl("status", "a", "--json").json["state"] == "crashed"
    assert "no member survived" in pbtrl("status", "a").out
    assert pbtrl("eval", "a").err == "runs/a has no snapshot yet: no member has finished a slice\n"


def test_non_finite_values_are_not_learned_stored_or_copied(pbtrl: Command, tmp_path: Path):
    """Twelve blocks of huge rewards make a member diverge; it copies another, and the run ends as usual."""
    kwargs = f"{{marker: {tmp_path / 'x'}, after: 5, steps: 130}}"
    env = f"env={{id: tests.faulty_envs:Poisoned, num_envs: 4, kwargs: {kwargs}}}"
    longer = ["budget.env_steps_per_member=1680", "strategy.ready.slice_steps=560", "population.size=2"]
    assert pbtrl("train", "cart.yaml", "--name", "a", env, *longer, "agent.rewards=none").code == 0
    run = Path("runs/a")
    lines = journal(run)
    broken = [line for line in lines if line.get("diverged")]
    assert [line["assignment"] for line in broken] == ["m00/000000"]
    assert broken[0]["scalars"]["learning/skipped_updates"] >= 10
    decided = [a for line in lines if line["kind"] == "decision" for a in line["assignments"]]
    (after,) = (a for a in decided if a["id"] == "m00/000001")
    assert (after["parent"], after["donor"], after["note"]) == ("m01/000000", "m01", "diverged, exploit m01")
    snapshots = list(run.glob("members/*/snapshots/*/tensors.safetensors"))
    assert not (run / "members/m00/snapshots/000000").exists()
    assert snapshots
    for path in snapshots:
        assert all(t.isfinite().all() for t in load_file(path).values() if t.is_floating_point())
    assert [m["env_steps"] for m in pbtrl("status", "a", "--json").json["members"]] == [1680] * 2
    assert pbtrl("verify", "a").code == 0


@pytest.mark.parametrize("strategy", ["pbt", "random_search"])
def test_resume_retries_if_no_member_survived(pbtrl: Command, monkeypatch, tmp_path: Path, strategy: str):
    """From the members' snapshots, with the hyperparameters that made these."""
    env = f"env={{id: tests.faulty_envs:Breakable, num_envs: 4, kwargs: {{broken: {tmp_path / 'x'}}}}}"
    rules = [f"strategy={{name: {strategy}, ready: {{slice_steps: 240}}}}", "failure.max_restarts_per_member=1"]
    with signalled(monkeypatch, signal.SIGTERM, report=2):
        command = ["train", "cart.yaml", "--name", "a", env, *rules, "population.size=2", "env.between_slices=reset"]
        assert pbtrl(*command).code == 143
    run = Path("runs/a")
    first = next(line["assignments"] for line in journal(run) if line["kind"] == "decision")
    (tmp_path / "x").touch()
    for _ in range(2):
        result = pbtrl("resume", "a", "--trust-imports")
        assert result.code == 3
        why = "EnvError: env.id=tests.faulty_envs:Breakable: step() raised RuntimeError: broken (env 0 of 4, step 1)"
        assert f"no member survived: {why}; see runs/a/members/" in result.err
        assert result.err.endswith("; when the cause is fixed: pbtrl resume a --trust-imports\n")
        assert [m.step for m in RunDirectory(run).load()[2].members.values()] == [240] * 2
    (tmp_path / "x").unlink()
    before = len(journal(run))
    assert pbtrl("resume", "a", "--trust-imports").code == 0
    assert [m.step for m in RunDirectory(run).load()[2].members.values()] == [720] * 2
    again = next(line["assignments"] for line in journal(run)[before:] if line["kind"] == "decision")
    assert [a["parent"] for a in again] == [a["id"] for a in first]
    assert [a["hyperparameters"] for a in again] == [a["hyperparameters"] for a in first]


class Breakable(Quadratic):
    """Toy that raises while the file `broken` exists."""

    def __init__(self, rng: np.random.Generator, *, broken: str) -> None:
        super().__init__(rng)
        self._broken = Path(broken)

    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        if self._broken.exists():
            raise RuntimeError("broken")
        return super().train(steps, hyperparameters, rng)


BREAKABLE = """\
trainable: {name: "tests.training.test_session:Breakable", broken: BROKEN}
population: {size: 6, mode: sync}
execution: {backend: inline}
budget: {env_steps_per_member: 60}
hparams: {h0: {prior: uniform, low: 0, high: 1}, h1: {prior: uniform, low: 0, high: 1}}
strategy: {name: fire, subpopulations: [2, 2], ready: {slice_steps: 20}}
"""


def test_resume_retries_fire_whose_first_slices_all_failed(pbtrl: Command, tmp_path: Path):
    """Its evaluators never began."""
    broken = tmp_path / "x"
    Path("fire.yaml").write_text(BREAKABLE.replace("BROKEN", str(broken)))
    broken.touch()
    failed = pbtrl("train", "fire.yaml", "--name", "a")
    assert failed.code == 3
    assert failed.err.splitlines()[-1].startswith("no member survived: RuntimeError: broken; see runs/a/")
    broken.unlink()
    assert pbtrl("resume", "a", "--trust-imports").code == 0
    members = RunDirectory(Path("runs/a")).load()[2].members
    assert [members[f"m0{i}"].step for i in range(4)] == [60] * 4
    assert members["m04"].step > 0


def test_failed_final_choice_can_be_repeated(pbtrl: Command, monkeypatch):
    def raises(*_: object, **__: object) -> None:
        raise RuntimeError("no such luck")

    with monkeypatch.context() as inside:
        inside.setattr(scoring, "evaluate", raises)
        result = pbtrl("train", "toy_quadratic")
    assert result.code == 3
    message = "the final evaluation failed: RuntimeError: no such luck; see runs/toy_quadratic/log.txt"
    assert result.err.splitlines()[-1] == message
    assert "Traceback" in Path("runs/toy_quadratic/log.txt").read_text()
    assert pbtrl("status", "toy_quadratic").out.splitlines()[-1].startswith(message)
    assert pbtrl("resume", "toy_quadratic").code == 0


# Episodes that need not end, and scores that are no numbers

ENDLESS = "env={id: tests.faulty_envs:Endless, num_envs: 4, between_slices: reset}"


@pytest.mark.parametrize("backend", ["inline", "processes"])
def test_endless_env_is_trained_evaluated_and_resumed(pbtrl: Command, backend: str):
    options = [f"execution.backend={backend}", "execution.workers=1", "population.size=2"]
    done = pbtrl("train", "cart.yaml", "--name", "a", ENDLESS, *options)
    assert done.code == 0
    assert (
        "mean return 1000, 95 % interval 1000 to 1000, 3 fresh episodes; 3 of 3 episodes cut at 1,000 steps" in done.out
    )
    best = json.loads(Path("runs/a/best.json").read_text())
    assert (best["evaluation"]["truncated"], best["evaluation"]["max_steps"]) == (3, 1000)
    assert [s["truncated"] for s in best["selection"]] == [2] * 2
    result = pbtrl("eval", "a", "--episodes", 20, "--trust-imports")
    assert (result.code, result.out.splitlines()[-1]) == (0, f"{best['member']}: 20 of 20 episodes cut at 1,000 steps")
    resumed = pbtrl("resume", "a", "final.max_steps=7", "--trust-imports")
    assert (resumed.code, "3 of 3 episodes cut at 7 steps" in resumed.out) == (0, True)
    played = pbtrl("eval", "a", "--json", "--trust-imports").json
    assert (played["truncated"], played["length_mean"], played["timed_out"]) == (30, 7.0, False)


def test_evaluation_fitness_has_the_step_limit(pbtrl: Command):
    rules = ["fitness.source=evaluation", "fitness.episodes=2", "final.max_steps=7", "population.size=1"]
    assert pbtrl("train", "cart.yaml", "--name", "a", ENDLESS, *rules).code == 0
    assert [line["evaluation"] for line in journal(Path("runs/a")) if line["kind"] == "report"] == [[7.0, 7.0]] * 3


@pytest.mark.parametrize(
    ("budget", "elapsed", "seconds"),
    [("720", 50.0, None), ("720, wall_clock: 100s", 30.0, 130.0), ("720, wall_clock: 1h", 4000.0, 360.0)],
)
def test_final_choice_gets_a_tenth_of_the_wall_clock(
    pbtrl: Command, monkeypatch, budget: str, elapsed: float, seconds: float | None
):
    """And at least a minute."""
    given = []

    def choose(config: Any, run: Any, population: Any, seconds: float | None) -> dict[str, Any]:
        given.append(seconds)
        return {}

    monkeypatch.setattr(final_choice, "choose", choose)
    monkeypatch.setattr(Controller, "seconds", elapsed)
    pbtrl("train", "cart.yaml", "--name", "a", f"budget={{env_steps_per_member: {budget}}}")
    assert given == [seconds]


def test_episodes_cut_by_the_wall_clock_are_counted(pbtrl: Command, monkeypatch):
    """The choice leaves time to the score; with next to none each env takes a step."""
    monkeypatch.setattr(session, "CHOICE_SECONDS", 0.0)
    limits = ["budget.wall_clock=0.01s", "final.max_steps=20000", "env.between_slices=continue"]
    done = pbtrl("train", "cart.yaml", "--name", "a", ENDLESS, *limits)
    assert done.code == 0, done.err
    assert "3 of 3 episodes cut at 20,000 steps or by the wall clock" in done.out
    assert json.loads(Path("runs/a/best.json").read_text())["evaluation"]["timed_out"]


@pytest.mark.parametrize("command", ["train", "eval"])
@pytest.mark.parametrize("backend", ["inline", "processes"])
def test_ctrl_c_ends_an_evaluation(pbtrl: Command, tmp_path: Path, command: str, backend: str):
    """It waits for no episode's end, and the run can be resumed."""
    os.mkfifo(tmp_path / "fifo")
    slow, quick = (f"final={{selection_episodes: 1, episodes: 1, max_steps: {n}}}" for n in (10**8, 3))
    received, silent = (
        f"env={{id: tests.faulty_envs:Endless, num_envs: 2, kwargs: {{fifo: {f}}}}}"
        for f in (tmp_path / "fifo", "null")
    )
    small = ["population.size=1", "budget.env_steps_per_member=40", "strategy.ready.slice_steps=40"]
    argv = ["train", "cart.yaml", "--name", "a", received, slow, *small, f"execution.backend={backend}"]
    if command == "eval":
        assert pbtrl("train", "cart.yaml", "--name", "a", silent, quick, *small).code == 0
        path = Path("runs/a/config.resolved.yaml")
        path.write_text(
            path.read_text()
            .replace("fifo: null", f"fifo: {tmp_path / 'fifo'}")
            .replace("max_steps: 3", f"max_steps: {10**8}")
        )
        argv = ["eval", "a", "--episodes", "1", "--trust-imports"]
    with spawn(tmp_path, *argv) as process:
        try:
            assert (tmp_path / "fifo").read_text() == "here"
            os.killpg(process.pid, signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, "Traceback" in err) == (130, False)
    if command == "train":
        assert kinds(Path("runs/a"))[-1] == "stop"
        (tmp_path / "fifo").unlink()
        assert pbtrl("resume", "a", quick, "--trust-imports").code == 0


def unscored(config: Any) -> Any:
    """Evaluator whose episodes fail."""
    real = evaluators.make_evaluator(config)

    def play(*args: Any, **options: Any) -> list[Any]:
        played = real(*args, **options)
        for one in played:
            one.returns[-1] = float("nan")
        return played

    return play


def test_run_without_a_finite_score_fails(pbtrl: Command, monkeypatch):
    with monkeypatch.context() as inside:
        inside.setattr(scoring, "make_evaluator", unscored)
        done = pbtrl("train", "cart.yaml", "--name", "a", "population.size=1")
        assert done.code == 3
        why = "no score: the mean return of m00/000002 in env.id=CartPole-v1 is not finite"
        assert done.err.splitlines()[-1] == f"{why}; to choose again: pbtrl resume a"
        assert not Path("runs/a/best.json").exists()
        assert kinds(Path("runs/a"))[-1] == "report"
        assert why in pbtrl("status", "a").out
        result = pbtrl("eval", "a", "--member", "m00", "--episodes", 2)
        assert (result.code, result.err) == (3, f"{why}\n")
        assert result.out.splitlines()[1].split()[:7] == ["m00", "m00/000002", "2", "-", "-", "-", "-"]
        printed = pbtrl("eval", "a", "--member", "m00", "--json")
        assert printed.code == 3
        assert [printed.json[k] for k in ("return_mean", "return_std", "ci95", "return_min")] == [None] * 4
    assert pbtrl("resume", "a").code == 0
    assert Path("runs/a/best.json").exists()


def test_run_that_ends_before_its_first_slice_fails(pbtrl: Command, monkeypatch):
    monkeypatch.setattr(Controller, "seconds", 1.0)
    done = pbtrl("train", "cart.yaml", "--name", "a", "budget.wall_clock=1s")
    assert done.code == 3
    message = "no score: the run ended (wall clock) before any member came to the end of a slice"
    assert done.err.splitlines()[-1].startswith(message)


def test_journals_with_null_or_nan_can_be_read(pbtrl: Command):
    """Journals have null where a number is not finite; those of earlier versions have NaN."""
    assert pbtrl("train", "cart.yaml", "--name", "a").code == 0
    path = Path("runs/a/journal.jsonl")
    lines = journal(Path("runs/a"))
    Path("runs/a/best.json").unlink()
    for odd in ("null", "NaN"):
        broken = [json.loads(json.dumps(line)) for line in lines]
        for line in (line for line in broken if line["kind"] == "report" and line["member"] == "m01"):
            line["returns"][0], line["curve"], line["scalars"] = "odd", [[line["step"], "odd"]], {"x": "odd"}
        path.write_text("".join(json.dumps(line).replace('"odd"', odd) + "\n" for line in broken))
        members = {m["id"]: m["fitness"] for m in pbtrl("status", "a", "--json").json["members"]}
        assert members["m01"] is None
        assert members["m00"] is not None
        for command in (["status"], ["report"], ["lineage"], ["lineage", "--json"]):
            assert pbtrl(command[0], "a", *command[1:]).code == 0, command
        assert pbtrl("list", "--json").json[0]["best"]["member"] != "m01"
        assert pbtrl("eval", "a", "--member", "m01", "--episodes", 1).code == 0


# What is kept


def test_retention_keeps_newest_milestones_and_referenced(pbtrl: Command, monkeypatch):
    milestones = ["snapshots.milestones_every=50", "population.size=1"]
    with signalled(monkeypatch, signal.SIGINT, report=12):
        pbtrl("train", "toy_quadratic", *milestones)
    pbtrl("resume", "toy_quadratic")
    kept = sorted(p.name for p in Path("runs/toy_quadratic/members/m00/snapshots").iterdir())
    assert kept == ["000004", "000009", "000014", "000018", "000019"]  # at 50, 100, 150, and the last two


def test_slice_timing_is_in_the_journal(pbtrl: Command):
    pbtrl("train", "toy_quadratic")
    lines = journal(Path("runs/toy_quadratic"))
    reports = [line["timing"] for line in lines if line["kind"] == "report"]
    assert all(0 <= t["seconds"] <= t["elapsed"] for t in reports)
    elapsed = [line["timing"]["elapsed"] for line in lines if "timing" in line]
    assert elapsed == sorted(elapsed)


# Envs


def test_helper_processes_of_an_env_are_ended(pbtrl: Command):
    """Signals that the worker ignores still end its envs' own processes."""
    env = "env={id: tests.faulty_envs:Helped, num_envs: 2, kwargs: {pids: ./pids}}"
    processes = ["execution={backend: processes, workers: 1}", "population.size=2", "failure.env_step_timeout=5s"]
    assert pbtrl("train", "cart.yaml", "--name", "a", env, *processes).code == 0
    assert "failure" not in kinds(Path("runs/a"))
    pids = Path("pids").read_text().split()
    assert len(pids) >= 4  # two envs of two members
    assert all(ended(int(pid)) for pid in pids)


WRONG = {
    "hang": "worker killed by signal 14: its envs took longer than failure.env_step_timeout",
    "never made": "worker killed by signal 14: its envs took longer than failure.env_step_timeout",
    "never closed": "worker killed by signal 14: its envs took longer than failure.env_step_timeout",
    "abort": "worker killed by signal 6",
    "exit": "EnvError: env.id=tests.faulty_envs:Fatal: step() raised SystemExit: 0 (env ",
    "memory": "MemoryError: ",
}
"""What an env does -> how what the journal says begins; a worker of its own only where that dies."""


@pytest.mark.parametrize("how", WRONG)
def test_env_that_kills_its_worker_costs_one_slice(pbtrl: Command, tmp_path: Path, how: str):
    kwargs = f"{{marker: {tmp_path / 'wrong'}, after: 50, how: {how}}}"
    env = f"env={{id: tests.faulty_envs:Fatal, num_envs: 2, between_slices: reset, kwargs: {kwargs}}}"
    backend = "{backend: processes, workers: 1}" if WRONG[how].startswith("worker") else "{backend: inline}"
    patience = ["failure.env_step_timeout=1s", f"execution={backend}", "population.size=2"]
    assert pbtrl("train", "cart.yaml", "--name", "a", env, *patience).code == 0
    assert (tmp_path / "wrong").exists()
    failures = [line for line in journal(Path("runs/a")) if line["kind"] == "failure"]
    assert {f["assignment"] for f in failures[:2]} == {"m00/000000", "m01/000000"}
    assert all(f["error"].startswith(WRONG[how]) for f in failures[:2])
    assert not any(f["given_up"] for f in failures)
    assert [m["env_steps"] for m in pbtrl("status", "a", "--json").json["members"]] == [720] * 2
