"""The executor on Ray gives the answers of the others, whatever dies, on fake nodes of this machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbtrl.config.sections import Execution
from pbtrl.core.messages import Failure, Report
from pbtrl.errors import SnapshotError, WorkerError
from pbtrl.execution import Executor
from pbtrl.execution.remote_store import RemoteStore
from pbtrl.execution.worker import WorkerSpec
from pbtrl.storage.journal import digest, read_lines
from tests.conformance import ExecutorConformance, drain, run_toy, weights
from tests.execution import ray_cluster
from tests.execution.ray_cluster import Nodes, kill_one, left_behind, raylet, wait_for
from tests.execution.test_executors import inline, processes

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.filterwarnings("default"),  # Ray leaves sockets and processes to the garbage collector
]
ROOT = Path(__file__).parents[2]
GROUPS = ExecutorConformance.groups


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two fake nodes, which this process has joined."""
    with ray_cluster.environment():
        import ray

        nodes = Nodes(num_cpus=4, resources={"first": 1})
        try:
            nodes.add(num_cpus=4, resources={"second": 1})
            ray.init(nodes.address, log_to_driver=False, configure_logging=False)
            yield nodes
        finally:
            ray.shutdown()
            nodes.close()


def pool(
    members: Path, config: dict[str, Any], *, discard: bool = False, groups: Any = GROUPS, workers: int = 2,
    probe: Path | None = None, **settings: Any,
) -> Any:  # fmt: skip
    from pbtrl.execution.ray import Cluster, RayPool

    specs = [
        WorkerSpec("tests.fakes:build", json.dumps(config), str(members), tuple(groups[w::workers]), (), 1, discard)
        for w in range(workers)
    ]
    members.parent.mkdir(exist_ok=True)
    cluster = Cluster(Execution(backend="ray", insecure=True, **settings), members.parent / "ray.log")
    return RayPool(cluster, specs, probe)


@pytest.mark.usefixtures("nodes")
class TestRay(ExecutorConformance):
    def executor(self, members: Path, config: dict[str, Any], *, discard_on_stop: bool = False) -> Any:
        return pool(members, config, discard=discard_on_stop)

    def wait_for_the_middle(self, executor: Executor, fifo: Path) -> None:
        """Collect meanwhile: a worker has something to do only while the controller asks."""
        pipe, received = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK), b""
        while received != b"half way":
            assert executor.collect(0.1) == []
            with contextlib.suppress(BlockingIOError):
                received += os.read(pipe, 100)
        os.close(pipe)


@pytest.mark.usefixtures("nodes")
def test_journal_and_weights_equal_those_of_the_other_executors(tmp_path: Path) -> None:
    toy = {"toy": True}
    starts: dict[str, Callable[[Path], Any]] = {
        "inline": lambda members: inline(members, toy),
        "processes": lambda members: processes(members, toy, 2),
        "ray": lambda members: pool(members, toy),
        "shared": lambda members: pool(members, toy, probe=Path(__file__), shared=True),
    }
    digests = set()
    for name, start in starts.items():
        (tmp_path / name).mkdir()
        executor = start(tmp_path / name / "members")
        digests.add(digest(run_toy(executor, tmp_path / name / "journal.jsonl")))
        executor.close()
    assert len(digests) == 1
    assert len({json.dumps(weights(tmp_path / name / "members")) for name in starts}) == 1


def end_to_end(where: Path, name: str, *overrides: str) -> list[str]:
    """Command that trains CartPole synchronously and deterministically."""
    return [
        sys.executable, "-m", "pbtrl", "train", "cartpole", "population.size=4", "population.mode=sync", "seed=3",
        "env.between_slices=reset", "env.num_envs=4", "budget.env_steps_per_member=8000", "final.episodes=2",
        "final.selection_episodes=2", "strategy.ready.slice_steps=2000", "--runs", str(where), "--name", name,
        "--progress", "plain", *overrides,
    ]  # fmt: skip


def on_ray(address: str) -> list[str]:
    return ["execution.backend=ray", f"execution.address={address}"]


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env={**os.environ, **env}, cwd="/", capture_output=True, text=True, timeout=150, check=False
    )


def journal(where: Path, name: str) -> str:
    return digest(read_lines(where / name / "journal.jsonl"))


def test_cartpole_on_two_nodes_equals_processes_and_inline(nodes: Nodes, tmp_path: Path) -> None:
    backends = {
        "inline": ["execution.backend=inline"],
        "processes": ["execution.workers=2"],
        "ray": on_ray(nodes.address),
    }
    for name, overrides in backends.items():
        done = run(end_to_end(tmp_path, name, *overrides), **ray_cluster.ENVIRONMENT)
        assert done.returncode == 0, done.stderr
        assert "Ray" not in done.stderr
    assert journal(tmp_path, "inline") == journal(tmp_path, "processes") == journal(tmp_path, "ray")
    result = [weights(tmp_path / name / "members") for name in backends]  # older ones depend on the order of reports
    assert len({tuple(kept[f"m0{member}/000003"] for member in range(4)) for kept in result}) == 1


@pytest.mark.timeout(400)
def test_three_kills_and_a_lost_node_change_nothing(nodes: Nodes, tmp_path: Path) -> None:
    """Also a death of the store. The budget is exact and every snapshot is intact."""
    lost = nodes.add(num_cpus=2, resources={"short-lived": 2})
    command = end_to_end(tmp_path, "killed", *on_ray(nodes.address), "execution.wait_for_workers=2m")
    command += ["budget.env_steps_per_member=40000", "strategy.ready.slice_steps=4000"]
    with subprocess.Popen(
        command, cwd="/", env={**os.environ, **ray_cluster.ENVIRONMENT}, stdout=subprocess.PIPE, text=True
    ) as process:
        raylets = [raylet(node) for node in nodes.cluster.list_all_nodes()]
        reports = tmp_path / "killed" / "journal.jsonl"

        def slices() -> int:
            return reports.read_text().count('"kind":"report"') if reports.exists() else 0

        for after in (1, 4, 8):
            wait_for(lambda after=after: slices() >= after, 120)
            kill_one(raylets)
        kill_one(raylets, "ray::StoreActor")
        wait_for(lambda: slices() >= 12)
        os.kill(raylet(lost), signal.SIGKILL)
        assert process.wait(120) == 0
    lines = read_lines(reports)
    failures = [line for line in lines if line["kind"] == "failure"]
    deaths = [f["error"] for f in failures]
    assert sum("its process on node" in d for d in deaths) >= 3, deaths
    assert any(d.startswith("worker lost: ") for d in deaths), deaths
    assert not any(f["given_up"] for f in failures)
    steps = {line["member"]: line["step"] for line in lines if line["kind"] == "report"}
    assert steps == dict.fromkeys(("m00", "m01", "m02", "m03"), lines[0]["horizon"])
    quiet = end_to_end(tmp_path, "quiet", "budget.env_steps_per_member=40000", "strategy.ready.slice_steps=4000")
    assert run(quiet).returncode == 0
    assert journal(tmp_path, "killed") == journal(tmp_path, "quiet")
    verified = run([sys.executable, "-m", "pbtrl", "verify", "killed", "--runs", str(tmp_path)])
    assert verified.returncode == 0, verified.stdout
    nodes.cluster.remove_node(lost, allow_graceful=False)


# Room


@pytest.mark.usefixtures("nodes")
def test_members_of_a_worker_without_room_move(tmp_path: Path) -> None:
    """Only one node has a `second`, so one of two workers never comes up."""
    expected = run_toy(inline(tmp_path / "quiet", {"toy": True}), tmp_path / "quiet.jsonl")
    executor = pool(tmp_path / "run/members", {"toy": True}, resources={"second": 1}, wait_for_workers=6)
    assert executor.notes[0].endswith("; 2 workers")
    result = run_toy(executor, tmp_path / "found.jsonl")
    executor.close()
    errors = {line["error"] for line in result if line["kind"] == "failure"}
    assert errors == {"no node has room for its worker; continuing with 1 worker"}
    assert digest(result) == digest(expected)
    assert weights(tmp_path / "run/members") == weights(tmp_path / "quiet")


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("stop", [False, True])
def test_no_room_at_all_ends_the_wait(tmp_path: Path, stop: bool) -> None:
    executor = pool(tmp_path / "run/members", {}, resources={"trainer": 1}, wait_for_workers=3)
    assert "no node has {CPU: 1, trainer: 1} for a worker" in executor.notes[1]
    executor.submit(TestRay().first())
    began = time.monotonic()
    if stop:
        executor.stop(1.0)
        assert drain(executor) == []
    else:
        with pytest.raises(WorkerError, match=r"no worker came up within 3 s .*no node has \{CPU: 1, trainer: 1\}"):
            drain(executor)
    assert time.monotonic() - began < 10
    executor.close()


@pytest.mark.usefixtures("nodes")
def test_only_a_death_alone_is_blamed(tmp_path: Path) -> None:
    executor = pool(tmp_path / "run/members", {"die": ["m01/000000"]}, workers=1)
    executor.submit(TestRay().first())
    together = drain(executor)
    assert len(together) == 4
    assert all(isinstance(r, Failure) and not r.alone for r in together)
    assert all("its process on node" in r.error for r in together if isinstance(r, Failure))
    executor.submit(TestRay().first())
    again = {r.assignment: r for r in drain(executor)}
    executor.close()
    assert [type(again[name]) for name in sorted(again)] == [Report, Failure, Report, Report]
    assert getattr(again["m01/000000"], "alone", None) is True


@pytest.mark.usefixtures("nodes")
def test_nodes_that_differ_are_refused(tmp_path: Path) -> None:
    for change, settings, message in (
        ({"torch": "1.0"}, {}, r"node \S+ has torch \S+ \(here 1.0\): install the same versions"),
        ({}, {"shared": True}, r"node \S+ does not see .*: execution.shared needs a file system"),
    ):
        probe = tmp_path / "run/probe" if settings else None
        executor = pool(tmp_path / "run/members", {}, probe=probe, **settings)
        executor.here["versions"] |= change
        if probe:
            executor.here["probe"] = "what this machine has written"
        executor.submit(TestRay().first())
        with pytest.raises(WorkerError, match=message):
            drain(executor)
        executor.close()
    executor = pool(tmp_path / "run/members", {}, allow_mixed=True)
    executor.here["versions"]["torch"] = "1.0"
    executor.submit(TestRay().first())
    assert len(drain(executor)) == 4
    executor.close()


@pytest.mark.usefixtures("nodes")
def test_worker_that_cannot_start_reports_the_reason(tmp_path: Path) -> None:
    executor = pool(tmp_path / "run/members", {"unfit": True})
    executor.submit(TestRay().first())
    with pytest.raises(WorkerError, match="ValueError: no such thing"):
        drain(executor)
    executor.close()


def test_donor_goes_to_a_node_once_and_only_while_it_is_unchanged(nodes: Nodes, tmp_path: Path) -> None:
    import ray

    from pbtrl.execution.ray import Cluster, _ask

    cluster = Cluster(Execution(backend="ray", insecure=True), tmp_path / "ray.log")
    store = cluster.store(str(tmp_path / "members"))
    remote = RemoteStore(partial(_ask, store))
    remote.commit("m00/000001", {"w": np.zeros(3)}, {})
    first, second = (ray.get(store.answer.remote("read", "m00/000001"))[1][0] for _ in range(2))
    assert first == second
    remote.commit("m00/000001", {"w": np.ones(3)}, {})
    assert remote.load("m00/000001")[0]["w"].tolist() == [1, 1, 1]
    remote.quarantine("m00/000001")
    with pytest.raises(SnapshotError):
        remote.load("m00/000001")
    ray.kill(store)
    cluster.close()
    assert ray.is_initialized()  # it was before


# Ends


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_signals_leave_no_process_and_a_run_to_resume(tmp_path: Path, number: int, code: int) -> None:
    """As a terminal's Ctrl-C, the signal reaches the whole process group."""
    mark = f"PBTRL_TEST_MARK={uuid.uuid4()}"
    env = {**os.environ, **dict([mark.split("=")])}
    command = end_to_end(tmp_path, "run", *on_ray("local"), "budget.env_steps_per_member=400000")
    with subprocess.Popen(
        command, cwd="/", env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        reports = tmp_path / "run" / "journal.jsonl"
        wait_for(lambda: reports.exists() and '"kind":"report"' in reports.read_text(), 120)
        if number == signal.SIGKILL:
            process.kill()
        else:
            os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    wait_for(lambda: all("Agent" in line for line in left_behind(mark, process.pid)), 20)
    # If Ray is killed with us, two agents of it try for a minute to tell it that a raylet has died.
    wait_for(lambda: not left_behind(mark, process.pid), 100 if number == signal.SIGKILL else 1)
    sessions = list(Path(tempfile.gettempdir()).glob(f"pbtrl-ray-*/*_{process.pid}"))
    if number == signal.SIGKILL:
        shutil.rmtree(sessions[0].parent)
    else:
        assert "stopped; resume with: pbtrl resume" in output
        assert not sessions
    resumed = run([sys.executable, "-m", "pbtrl", "resume", "run", "--runs", str(tmp_path), "execution.backend=inline",
                   "budget.wall_clock=1s"])  # fmt: skip
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    lines = read_lines(reports)
    assert not [line for line in lines if line["kind"] == "failure"]


def test_answers_of_many_workers_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle ones among a thousand answer hundreds of times a second, and each round costs the controller."""
    from pbtrl.execution import ray as executor

    asked: list[int] = []
    monkeypatch.setattr(executor.ray, "wait", lambda calls, **how: (asked.append(how["num_returns"]) or calls[:1], []))
    for workers in (1, 49, 1000):
        assert executor.RayPool._wait(None, [object()] * workers, 0.1)
    assert asked == [1, 1, 21]
