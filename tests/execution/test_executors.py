"""Inline and process executors give the same answers, also when workers are killed, and leave nothing behind."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import Population
from pbtrl.core.stopping import StopCriteria
from pbtrl.errors import WorkerError
from pbtrl.execution import Executor
from pbtrl.execution.host import Host
from pbtrl.execution.inline import Inline
from pbtrl.execution.processes import Processes
from pbtrl.execution.worker import WorkerSpec
from pbtrl.execution.worker_pool import PooledExecutor
from pbtrl.storage.journal import Journal, Line, digest, read_lines
from pbtrl.strategies.pbt import PBT
from pbtrl.system import child_process
from pbtrl.system.child_process import describe_exit
from pbtrl.testing.fakes import LAST
from pbtrl.training.controller import Controller
from tests.conformance import ExecutorConformance, drain, run_toy, toy_space, weights
from tests.fakes import FakeCohort, build

CORES = sorted(os.sched_getaffinity(0))


GROUPS = ExecutorConformance.groups


def inline(members: Path, config: dict[str, Any], *, discard: bool = False) -> Inline:
    return Inline(Host.local(build(json.dumps(config)), members, GROUPS, discard_on_stop=discard))


def processes(
    members: Path, config: dict[str, Any], workers: int, *, discard: bool = False,
    groups: Sequence[tuple[str, ...]] = GROUPS,
) -> Processes:  # fmt: skip
    specs = [
        WorkerSpec(
            builder="tests.fakes:build",
            config=json.dumps(config),
            members=str(members),
            groups=tuple(groups[i::workers]),
            cores=(CORES[i % len(CORES)],),
            threads=1,
            discard_on_stop=discard,
        )
        for i in range(workers)
    ]
    return Processes(specs)


class TestInline(ExecutorConformance):
    def executor(self, members: Path, config: dict[str, Any], *, discard_on_stop: bool = False) -> Inline:
        return inline(members, config, discard=discard_on_stop)

    def meeting(self, fifo: Path) -> dict[str, Any]:
        return {}

    def wait_for_the_middle(self, executor: Executor, fifo: Path) -> None:
        for _ in range(2):
            assert executor.collect(0.0) == []


class TestTwoWorkers(ExecutorConformance):
    def executor(self, members: Path, config: dict[str, Any], *, discard_on_stop: bool = False) -> Processes:
        return processes(members, config, 2, discard=discard_on_stop)


def test_one_worker_equals_inline(tmp_path: Path, quick_disk: None) -> None:
    """Journal and weights are the same."""
    expected = run_toy(inline(tmp_path / "inline", {"toy": True}), tmp_path / "inline.jsonl")
    worker = processes(tmp_path / "worker", {"toy": True}, 1)
    result = run_toy(worker, tmp_path / "worker.jsonl")
    worker.close()
    assert digest(result) == digest(expected)
    assert weights(tmp_path / "worker") == weights(tmp_path / "inline")


# Workers that die


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_killed_in_a_slice_changes_nothing(tmp_path: Path, workers: int) -> None:
    quiet = inline(tmp_path / "quiet", {})
    config = {"die_once": "m01/000001", "died": str(tmp_path / "died")}
    killed = processes(tmp_path / "killed", config, workers)
    result = []
    for executor, path in ((quiet, tmp_path / "quiet.jsonl"), (killed, tmp_path / "killed.jsonl")):
        strategy = PBT(space=toy_space(), slice_steps=8, horizon=24, synchronous=True)
        journal = Journal(path)
        assert Controller(Population(4, 1, LAST), strategy, executor, journal).run() == "budget"
        executor.close()
        journal.close()
        result.append(read_lines(path))
    failures = [line for line in result[1] if line["kind"] == "failure"]
    assert (tmp_path / "died").exists()
    assert {"m00/000001", "m01/000001"} <= {f["assignment"] for f in failures}
    assert all("killed by signal 9" in f["error"] and not f["given_up"] for f in failures)
    assert digest(result[1]) == digest(result[0])
    assert weights(tmp_path / "killed") == weights(tmp_path / "quiet")


IN_WORKERS = ["host.began:4", "host.loaded:2", "host.reports:4", "snapshot.staged:4", "snapshot.wrote state.json:4",
              "snapshot.synced:4", "snapshot.renamed:4", "snapshot.committed:4"]  # fmt: skip


@pytest.mark.parametrize("point", IN_WORKERS)
def test_workers_that_keep_dying_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str) -> None:
    """Both workers and their replacements die whenever one has reached the same point often enough."""
    expected = run_toy(inline(tmp_path / "quiet", {"toy": True}), tmp_path / "quiet.jsonl")
    monkeypatch.setenv("PBTRL_CRASH_AT", point)
    killed = processes(tmp_path / "killed", {"toy": True}, 2)
    result = run_toy(killed, tmp_path / "killed.jsonl")
    killed.close()
    failures = [line for line in result if line["kind"] == "failure"]
    assert failures
    assert all("killed by signal 9" in f["error"] and not f["given_up"] for f in failures)
    assert digest(result) == digest(expected)
    assert weights(tmp_path / "killed") == weights(tmp_path / "quiet")


def first() -> list[Assignment]:
    return TestInline().first()


def test_only_a_death_alone_is_blamed(tmp_path: Path) -> None:
    """The slice of m01 kills its worker. Members that trained beside it are excused and succeed when tried alone."""
    executor = processes(tmp_path / "members", {"die": ["m01/000000"]}, 1)
    assignments = {a.id: a for a in first()}
    executor.submit(list(assignments.values()))
    together = drain(executor)
    assert {r.assignment for r in together} == set(assignments)
    assert all(isinstance(r, Failure) and not r.alone for r in together)
    for name in assignments:
        executor.submit([assignments[name]])
    again = {r.assignment: r for r in drain(executor)}
    executor.close()
    assert [type(again[name]) for name in sorted(again)] == [Report, Failure, Report, Report]
    failure = again["m01/000000"]
    assert isinstance(failure, Failure)
    assert failure.alone


def test_death_is_noticed_despite_a_forked_helper(tmp_path: Path) -> None:
    """The helper outlives the worker and keeps inherited descriptors open, but not the worker's pipe."""
    fifo, helper = tmp_path / "fifo", tmp_path / "helper"
    os.mkfifo(fifo)
    config = {"endless": True, "tell": str(fifo), "helper": str(helper)}
    executor = processes(tmp_path / "members", config, 1)
    executor.submit([a for a in first() if a.member == "m00"])
    assert fifo.read_bytes() == b"half way"
    pid = executor._workers[0].process.pid
    assert pid
    try:
        os.kill(pid, signal.SIGKILL)
        (failure,) = drain(executor)
        assert isinstance(failure, Failure)
        assert "killed by signal 9" in failure.error
    finally:
        os.kill(int(helper.read_text()), signal.SIGKILL)
        executor.close()


def test_timeout_while_suspended_is_excused_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The controller was suspended too (Ctrl-Z, a sleeping laptop): the first timeout is not blamed on the member."""
    monkeypatch.setattr("pbtrl.execution.processes.GAP", 0.3)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    executor = processes(tmp_path / "members", {"endless": True, "tell": str(fifo)}, 1)
    (a,) = (a for a in first() if a.member == "m00")
    blamed = []
    for number, stopped in ((signal.SIGALRM, 1.0), (signal.SIGALRM, 1.0), (signal.SIGKILL, 1.0), (signal.SIGALRM, 0.0)):
        executor.submit([a])
        assert fifo.read_bytes() == b"half way"
        pid = executor._workers[0].process.pid
        assert pid
        executor.collect(0.0)
        time.sleep(stopped)
        os.kill(pid, number)
        (failure,) = drain(executor)
        assert isinstance(failure, Failure)
        blamed.append(failure.alone)
    executor.close()
    assert blamed == [False, True, True, True]


def test_timeout_without_a_suspension_is_blamed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    executor = processes(tmp_path / "members", {"endless": True, "tell": str(fifo)}, 1)
    (a,) = (a for a in first() if a.member == "m00")
    executor.submit([a])
    assert fifo.read_bytes() == b"half way"
    executor._looked = time.monotonic()
    pid = executor._workers[0].process.pid
    assert pid
    os.kill(pid, signal.SIGALRM)
    (failure,) = drain(executor)
    executor.close()
    assert isinstance(failure, Failure)
    assert failure.alone


def test_death_reports_peak_memory() -> None:
    script = "import os; x = bytearray(300 << 20); os.kill(os.getpid(), 9)"
    code = subprocess.run([sys.executable, "-c", script], check=False).returncode
    result = re.fullmatch(r"killed by signal 9 \(out of memory\? it had at most ([\d,]+) MiB\)", describe_exit(code))
    assert result
    assert 300 < int(result[1].replace(",", "")) < 100_000
    assert (describe_exit(3), describe_exit(-11)) == ("exit code 3", "killed by signal 11")


def test_dead_worker_does_not_delay_a_stop(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    config = {"endless": True, "tell": str(tmp_path / "fifo")}
    executor = processes(tmp_path / "members", config, 2)
    executor.submit([a for a in first() if a.member in ("m00", "m01")])
    assert (tmp_path / "fifo").read_bytes() == b"half way"
    dead = executor._workers[1].process
    assert dead.pid
    os.kill(dead.pid, signal.SIGKILL)
    dead.join()
    executor.stop()
    assert [r.assignment for r in drain(executor)] == ["m00/000000", "m01/000000"]
    executor.close()


def test_worker_that_cannot_start_reports_the_reason(tmp_path: Path) -> None:
    executor = processes(tmp_path, {"unfit": True}, 1)
    executor.submit(first())
    with pytest.raises(WorkerError, match="ValueError: no such thing"):
        drain(executor)
    executor.close()


# Memory


def unfit(monkeypatch: pytest.MonkeyPatch, *, members: int = 4, never: str = "") -> None:
    """Cohorts of more than `members` members do not fit into memory, and `never` does not fit at all."""
    real = FakeCohort.advance

    def advance(self: FakeCohort) -> bool:
        if len(self.members) > members or never in self.members:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self)

    monkeypatch.setattr(FakeCohort, "advance", advance)


def trained(where: Path, executor: Executor | None = None) -> tuple[Population, list[Line]]:
    """Population of four after three slices each."""
    where.mkdir()
    executor = executor or inline(where / "members", {})
    population, journal = Population(4, 1, LAST), Journal(where / "j")
    strategy = PBT(space=toy_space(), slice_steps=8, horizon=24, synchronous=True)
    assert Controller(population, strategy, executor, journal, StopCriteria(max_attempts=2)).run() == "budget"
    executor.close()
    journal.close()
    return population, read_lines(where / "j")


def test_out_of_memory_group_is_trained_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_disk: None
) -> None:
    _, undisturbed = trained(tmp_path / "a")
    unfit(monkeypatch, members=1)
    _, lines = trained(tmp_path / "b")
    failures = [line for line in lines if line["kind"] == "failure"]
    assert failures
    assert all(f["error"].startswith("OutOfMemoryError: CUDA out of memory") for f in failures)
    assert not any(f["alone"] or f["given_up"] for f in failures)
    assert all(f["memory"] for f in failures)
    assert set(Counter(f["assignment"] for f in failures).values()) == {1}
    assert {f["assignment"].split("/")[1] for f in failures} == {"000000"}
    assert digest(lines) == digest(undisturbed)


def test_workers_short_of_memory_are_merged(tmp_path: Path, quick_disk: None) -> None:
    _, undisturbed = trained(tmp_path / "a")
    (tmp_path / "gpu").mkdir()
    executor = processes(tmp_path / "b" / "members", {"gpu": str(tmp_path / "gpu")}, 2)
    population, lines = trained(tmp_path / "b", executor)
    failures = [line for line in lines if line["kind"] == "failure"]
    assert any(f["error"].endswith("; continuing with 1 worker") for f in failures)
    assert not any(f["given_up"] for f in failures)
    assert {f["attempt"] for f in failures} <= {0, 1}
    assert [m.step for m in population.members.values()] == [24, 24, 24, 24]
    assert digest(lines) == digest(undisturbed)
    assert not [p for p in (tmp_path / "gpu").iterdir() if Path("/proc", p.name).exists()]


def test_oversized_member_does_not_affect_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_disk: None
) -> None:
    unfit(monkeypatch, never="m01")
    population, lines = trained(tmp_path / "a")
    assert {line["member"] for line in lines if line.get("given_up")} == {"m01"}
    assert [m.step for m in population.members.values()] == [24, 0, 24, 24]


def test_oversized_member_costs_one_worker_and_no_blame(tmp_path: Path, quick_disk: None) -> None:
    executor = processes(
        tmp_path / "a" / "members", {"huge": "m00"}, 4, groups=[(m,) for m in ("m00", "m01", "m02", "m03")]
    )
    population, lines = trained(tmp_path / "a", executor)
    assert [m.step for m in population.members.values()] == [0, 24, 24, 24]
    blamed = [line for line in lines if line["kind"] == "failure" and line["alone"]]
    assert {line["member"] for line in blamed} == {"m00"}
    assert len([line for line in lines if line.get("error", "").endswith("continuing with 3 workers")]) >= 1
    assert not any("continuing with 2 workers" in line.get("error", "") for line in lines)


def test_merged_worker_does_not_end_another(tmp_path: Path) -> None:
    """Two workers ran short of memory for the second time at once, and the first was already merged with the other."""
    executor = processes(tmp_path, {}, 4, groups=[(m,) for m in ("m00", "m01", "m02", "m03")])
    executor.submit(first())
    drain(executor)
    one, other = (executor._home[m] for m in ("m00", "m01"))

    def short(m: str) -> Failure:
        return Failure(f"{m}/000001", m, "MemoryError", memory=True)

    for worker, member in ((one, "m00"), (other, "m01"), (one, "m00")):
        (received,) = executor._merge_on_oom(worker, short(member))
        assert isinstance(received, Failure)
        assert not received.alone
    assert executor._home["m00"] is executor._home["m01"]
    assert len(executor._workers) == 3
    (received,) = executor._merge_on_oom(other, short("m01"))
    assert received == replace(short("m01"), alone=False)
    assert len(executor._workers) == 3
    (received,) = executor._merge_on_oom(executor._home["m00"], short("m00"))
    assert received == short("m00")  # merging did not help
    executor.close()


# Nothing is left behind


def sleeps(pipe: Connection, parent: int, fifo: str) -> None:
    """Answer nothing when asked."""
    child_process.init_child(parent, pipe)  # it ends with a killed pytest
    Path(fifo).write_text(str(os.getpid()))
    signal.pause()


def test_signal_while_a_child_starts_leaves_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fifo, real = tmp_path / "fifo", child_process.start_ignoring_signals
    os.mkfifo(fifo)

    def interrupted(process: BaseProcess) -> None:
        real(process)
        asked.append(int(fifo.read_text()))
        raise KeyboardInterrupt

    asked: list[int] = []
    monkeypatch.setattr(child_process, "start_ignoring_signals", interrupted)
    with pytest.raises(KeyboardInterrupt):
        child_process.call_in_child(sleeps, str(fifo))
    assert ended(asked[0])


def ended(pid: int) -> bool:
    """Wait until a process has ended, or is a zombie."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 20)[0])
    finally:
        os.close(descriptor)


def test_no_worker_outlives_close(tmp_path: Path) -> None:
    executor = processes(tmp_path, {"endless": True}, 2)
    executor.submit(first())
    pids = [w.process.pid for w in executor._workers]
    executor.close()
    for pid in pids:
        assert pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    executor.close()


SCRIPT = """
import json, os, signal, sys
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":
    from pbtrl.execution.processes import Processes, WorkerSpec
    from pbtrl.core.messages import Assignment

    members, config, core = sys.argv[1:]
    executor = Processes([WorkerSpec("tests.fakes:build", config, members, (("m00",),), (int(core),), 1, False)])
    executor.submit([Assignment("m00/000000", "m00", None, 0, 8, {}, 1)])
    Path(json.loads(config)["tell"]).read_bytes()
    print(executor._workers[0].process.pid, flush=True)
    EXIT
"""


@pytest.mark.parametrize(
    ("leave", "config"),
    [
        ("sys.exit(3)", {"endless": True}),
        ("raise KeyError", {"endless": True}),
        ("os.kill(os.getpid(), signal.SIGKILL)", {"endless": True, "hang": True}),
    ],
)
def test_no_worker_outlives_its_parent(tmp_path: Path, leave: str, config: dict[str, Any]) -> None:
    script, root, fifo = tmp_path / "run.py", Path(__file__).parents[2], tmp_path / "fifo"
    script.write_text(SCRIPT.replace("EXIT", leave))
    os.mkfifo(fifo)
    settings = json.dumps({**config, "tell": str(fifo)})
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "members"), settings, str(CORES[0])],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert ended(int(done.stdout))


# Members outside all groups: trials that come later


class Place:
    """Worker of one place that is free or not."""

    def __init__(self, spec: Any) -> None:
        self.spec, self.places, self.queue = spec, 1, SimpleNamespace(open=[])

    def submit(self, batch: Sequence[Assignment]) -> None:
        self.queue.open += batch


class Places(PooledExecutor[Any]):
    """Executor that only places assignments."""

    def _start_worker(self, spec: Any) -> Any:
        return Place(spec)

    def collect(self, timeout: float) -> list[Report | Failure]:
        return []

    def close(self) -> None:
        pass


def test_trial_goes_where_a_place_is_free_and_stays_there() -> None:
    executor = Places([SimpleNamespace(groups=[]), SimpleNamespace(groups=[])])  # type: ignore[list-item]
    zero, one = executor._workers
    trial = [Assignment("m09/000000", "m09", None, 0, 8, {}, 1)]
    zero.queue.open = ["another"]
    executor.submit(trial)
    assert executor._home["m09"] is one
    zero.queue.open, one.queue.open = [], []
    executor.submit(trial)
    assert executor._home["m09"] is one
    executor.submit(trial)
    assert executor._home["m09"] is zero
