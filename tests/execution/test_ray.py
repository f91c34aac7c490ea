"""The executor on Ray gives the answers of the others, whatever dies, on fake nodes of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pbtrl.config.sections import Execution
from pbtrl.core.messages import Report
from pbtrl.errors import WorkerError
from pbtrl.execution.worker import WorkerSpec
from pbtrl.storage.journal import digest, read_journal
from pbtrl.storage.snapshot_store import SnapshotStore
from tests.conformance import ExecutorConformance, drain, run_toy, weights
from tests.execution import ray_cluster
from tests.execution.ray_cluster import Nodes, children, kill_one, marked, raylet, wait_for
from tests.execution.test_executors import inline, processes

pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
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


@pytest.mark.usefixtures("nodes")
def test_journal_and_weights_equal_those_of_the_other_executors(tmp_path: Path) -> None:
    executors = {
        "inline": inline(tmp_path / "inline/members", {"toy": True}),
        "processes": processes(tmp_path / "processes/members", {"toy": True}, 2),
        "ray": pool(tmp_path / "ray/members", {"toy": True}),
        "shared": pool(tmp_path / "shared/members", {"toy": True}, probe=Path(__file__), shared=True),
    }
    digests = set()
    for name, executor in executors.items():
        (tmp_path / name).mkdir(exist_ok=True)
        digests.add(digest(run_toy(executor, tmp_path / name / "journal.jsonl")))
        executor.close()
    assert len(digests) == 1
    assert len({json.dumps(weights(tmp_path / name / "members")) for name in executors}) == 1
