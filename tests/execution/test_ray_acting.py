"""Actors on other nodes than their learner, on fake nodes of this machine, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from pbtrl.storage.journal import read_lines
from tests.execution import ray_cluster
from tests.execution.ray_cluster import Nodes, children, raylet, wait_for

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("default"),  # Ray leaves sockets and processes to the garbage collector
]
LEARNER, ACTOR = "ray::WorkerActor", "ray::ActingActor"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two fake nodes with two cores each."""
    with ray_cluster.environment():
        nodes = Nodes(num_cpus=2)
        try:
            nodes.add(num_cpus=2)
            yield nodes
        finally:
            nodes.close()


def command(verb: str, nodes: Nodes, where: Path, *overrides: str) -> list[str]:
    return [
        sys.executable, "-m", "pbtrl", verb, "cartpole", "population.size=2", "env.num_envs=4", "acting.mode=actors",
        "acting.placement=spread", "execution.backend=ray", f"execution.address={nodes.address}", "final.episodes=2",
        "final.selection_episodes=2", "--runs", str(where), *overrides,
    ]  # fmt: skip


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **ray_cluster.ENVIRONMENT}
    return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=200, check=False)


def placed(nodes: Nodes, title: str) -> dict[int, int]:
    """Processes of this title, with the raylets of their nodes."""
    raylets = [raylet(node) for node in nodes.cluster.list_all_nodes()]
    return {pid: parent for parent in raylets for pid in children(parent, title)}


def test_learner_goes_on_when_an_actor_on_another_node_dies(nodes: Nodes, tmp_path: Path) -> None:
    """Also when the learner dies, and its actors with it. Budgets are exact, and nothing is left behind."""
    train = command("train", nodes, tmp_path, "acting.processes=2", "execution.workers=1", "--name", "run",
                    "budget.env_steps_per_member=40000", "strategy.ready.slice_steps=4000",
                    "--progress", "plain")  # fmt: skip
    journal = tmp_path / "run" / "journal.jsonl"

    def slices() -> int:
        return journal.read_text().count('"kind":"report"') if journal.exists() else 0

    with subprocess.Popen(
        train, cwd="/", env={**os.environ, **ray_cluster.ENVIRONMENT}, stdout=subprocess.PIPE, text=True
    ) as process:
        wait_for(lambda: slices() >= 2, 200)
        (learner,), actors = placed(nodes, LEARNER).items(), placed(nodes, ACTOR)
        elsewhere = [pid for pid, node in actors.items() if node != learner[1]]
        assert len(actors) == 2
        assert elsewhere
        os.kill(elsewhere[0], signal.SIGKILL)
        wait_for(lambda: len(placed(nodes, ACTOR).keys() - actors.keys()) == 1, 100)
        before = slices()
        wait_for(lambda: slices() >= before + 4, 200)
        os.kill(learner[0], signal.SIGKILL)
        wait_for(lambda: not placed(nodes, ACTOR).keys() & actors.keys())
        assert process.wait(200) == 0
    lines = read_lines(journal)
    (failures, reports) = ([line for line in lines if line["kind"] == kind] for kind in ("failure", "report"))
    assert {f["error"].partition(":")[0] for f in failures} == {"worker died"}
    assert sum(r["scalars"].get("acting/deaths", 0) for r in reports if r["member"] == "m00") == 1
    assert {r["member"]: r["step"] for r in reports} == dict.fromkeys(("m00", "m01"), lines[0]["horizon"])
    verified = run([sys.executable, "-m", "pbtrl", "verify", "run", "--runs", str(tmp_path)])
    assert verified.returncode == 0, verified.stdout
    metrics = (tmp_path / "run/members/m00/metrics.jsonl").read_text()
    assert '"acting/lag"' in metrics
    wait_for(lambda: not placed(nodes, LEARNER) and not placed(nodes, ACTOR), 20)


def test_too_few_cores_are_one_line(nodes: Nodes, tmp_path: Path) -> None:
    need = "a worker and its 8 actors (acting.processes) need 9 cores, and all nodes together have 4"
    train = command("train", nodes, tmp_path, "acting.processes=8", "execution.wait_for_workers=3", "--name", "run")
    done = run(train)
    assert done.returncode == 3, done.stderr
    assert done.stderr.count(need) >= 1
    assert f"no worker came up within 3 s (execution.wait_for_workers): {need}" in done.stderr
    checked = run(command("doctor", nodes, tmp_path, "acting.processes=8"))
    assert need in checked.stdout
    assert checked.returncode == 3


def test_actor_whose_envs_hang_is_replaced(nodes: Nodes, tmp_path: Path) -> None:
    env = f"env={{id: tests.faulty_envs:Fatal, num_envs: 2, kwargs: {{marker: {tmp_path / 'wrong'}, after: 100}}}}"
    train = command("train", nodes, tmp_path, env, "acting.processes=1", "execution.workers=1", "--name", "run",
                    "budget.env_steps_per_member=2000", "failure.env_step_timeout=3s")  # fmt: skip
    path = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        train, env={**os.environ, **ray_cluster.ENVIRONMENT, **path}, cwd="/", capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = read_lines(tmp_path / "run" / "journal.jsonl")
    reports = [line for line in lines if line["kind"] == "report"]
    assert not [line for line in lines if line["kind"] == "failure"]
    assert sum(r["scalars"].get("acting/deaths", 0) for r in reports if r["member"] == "m00") == 1
    assert {r["member"]: r["step"] for r in reports} == dict.fromkeys(("m00", "m01"), lines[0]["horizon"])
