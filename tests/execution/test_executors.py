"""Inline and worker processes: the same answers, also where workers are killed, and nothing left behind."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pbtrl.controller import Controller
from pbtrl.execution import Executor
from pbtrl.execution.host import Host
from pbtrl.execution.inline import Inline
from pbtrl.execution.processes import Processes, WorkerError, WorkerSpec
from pbtrl.journal import Journal, digest, read
from pbtrl.population import Failure, Population, Report
from pbtrl.strategies.pbt import PBT
from tests.conformance import ExecutorConformance, drain, toy_space, weights
from tests.fakes import LAST, build

CORES = sorted(os.sched_getaffinity(0))


def specs(
    members: Path, config: dict[str, Any], groups: Sequence[tuple[str, ...]], workers: int, *, discard: bool
) -> list[WorkerSpec]:
    return [
        WorkerSpec(
            builder="tests.fakes:build",
            config=json.dumps(config),
            members=str(members),
            groups=tuple(groups[i::workers]),
            cores=(CORES[i % len(CORES)],),
            discard_on_stop=discard,
        )
        for i in range(workers)
    ]


class TestInline(ExecutorConformance):
    def executor(self, members: Path, config: dict[str, Any], *, discard_on_stop: bool = False) -> Inline:
        return Inline(
            Host(build(json.dumps(config)), members, self.groups, discard_on_stop=discard_on_stop)
        )

    def meeting(self, fifo: Path) -> dict[str, Any]:
        return {}

    def wait_for_the_middle(self, executor: Executor, fifo: Path) -> None:
        for _ in range(2):
            assert executor.collect(0.0) == []


class TestOneWorker(ExecutorConformance):
    workers: ClassVar[int] = 1

    def executor(self, members: Path, config: dict[str, Any], *, discard_on_stop: bool = False) -> Processes:
        return Processes(specs(members, config, self.groups, self.workers, discard=discard_on_stop))


class TestTwoWorkers(TestOneWorker):
    workers = 2


# Workers that die


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_killed_in_the_middle_of_a_slice_changes_nothing(tmp_path: Path, workers: int) -> None:
    found = []
    for name, trouble in (("quiet", {}), ("killed", {"die_once": "m01/000001"})):
        config = {**trouble, "died": str(tmp_path / "died")}
        executor = Processes(
            specs(tmp_path / name, config, TestOneWorker.groups, workers, discard=False)
        )
        strategy = PBT(space=toy_space(), every=8, horizon=24, synchronous=True)
        journal = Journal(tmp_path / f"{name}.jsonl")
        assert Controller(Population(4, 1, LAST), strategy, executor, journal).run() == "budget"
        executor.close()
        journal.close()
        found.append(list(read(journal.path)))
    quiet, killed = found
    failures = [line for line in killed if line["kind"] == "failure"]
    assert (tmp_path / "died").exists()
    assert {"m00/000001", "m01/000001"} <= {f["assignment"] for f in failures}
    assert all("killed by signal 9" in f["error"] and not f["given_up"] for f in failures)
    assert digest(killed) == digest(quiet)
    assert weights(tmp_path / "killed") == weights(tmp_path / "quiet")


def first() -> Any:
    return TestOneWorker().first()


def test_only_who_dies_alone_is_to_blame(tmp_path: Path) -> None:
    """The slice of m01 kills whoever trains it; its company is acquitted at the second attempt."""
    groups = TestOneWorker.groups
    executor = Processes(specs(tmp_path / "members", {"die": ["m01/000000"]}, groups, 1, discard=False))
    assignments = {a.id: a for a in first()}
    executor.submit(list(assignments.values()))
    together = [r for r in drain(executor)]
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


def test_a_worker_dead_before_a_stop_does_not_hold_it_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    config = {"endless": True, "tell": str(tmp_path / "fifo")}
    executor = Processes(specs(tmp_path / "members", config, TestOneWorker.groups, 2, discard=False))
    executor.submit([a for a in first() if a.member in ("m00", "m01")])
    assert (tmp_path / "fifo").read_bytes() == b"half way"
    dead = executor._workers[1].process
    assert dead.pid
    os.kill(dead.pid, signal.SIGKILL)
    dead.join()
    executor.stop()
    assert [r.assignment for r in drain(executor)] == ["m00/000000", "m01/000000"]
    executor.close()


def test_a_worker_that_cannot_start_says_why(tmp_path: Path) -> None:
    executor = Processes(specs(tmp_path, {"unfit": True}, TestOneWorker.groups, 1, discard=False))
    executor.submit(first())
    with pytest.raises(WorkerError, match="ValueError: no such thing"):
        drain(executor)
    executor.close()


# Nothing is left behind


def ended(pid: int) -> bool:
    """Wait until a process is over; a corpse that nobody reaps counts."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 20)[0])
    finally:
        os.close(descriptor)


def test_no_worker_outlives_close(tmp_path: Path) -> None:
    executor = Processes(specs(tmp_path, {"endless": True}, TestOneWorker.groups, 2, discard=False))
    executor.submit(first())
    pids = [w.process.pid for w in executor._workers]
    executor.close()
    for pid in pids:
        assert pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    executor.close()


SCRIPT = """
import os, signal, sys
from pathlib import Path
from pbtrl.execution.processes import Processes
from tests.execution.test_executors import TestOneWorker, first, specs

if __name__ == "__main__":
    executor = Processes(specs(Path(sys.argv[1]), {"endless": True}, TestOneWorker.groups, 2, discard=False))
    executor.submit(first())
    print(*[w.process.pid for w in executor._workers], flush=True)
    EXIT
"""


@pytest.mark.parametrize("leave", ["sys.exit(3)", "raise KeyError", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_no_worker_outlives_its_parent_however_that_ends(tmp_path: Path, leave: str) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT.replace("EXIT", leave))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "members")],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert all(ended(pid) for pid in pids)

