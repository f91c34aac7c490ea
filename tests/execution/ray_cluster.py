"""Ray clusters on this machine for tests: fake nodes, and a look at the processes that belong to them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "5" * 64,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
}
STORE = 80 * 2**20  # bytes of shared memory per node


@contextmanager
def environment() -> Iterator[None]:
    """Ray's settings while its processes start; it must not be imported before."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class Nodes:
    """A head and further fake nodes; `ray.cluster_utils.Cluster` with its shutdown."""

    def __init__(self, **head: Any) -> None:
        from ray.cluster_utils import Cluster

        args = {"include_dashboard": False, "object_store_memory": STORE, **head}
        self.cluster: Any = Cluster(initialize_head=True, head_node_args=args)
        self.address: str = self.cluster.address

    def add(self, **args: Any) -> Any:
        return self.cluster.add_node(object_store_memory=STORE, **args)

    def close(self) -> None:
        self.cluster.shutdown()


def raylet(node: Any) -> int:
    """Process id of a node's raylet."""
    return int(node.all_processes["raylet"][0].process.pid)


def children(pid: int, title: str = "") -> list[int]:
    """Children of a process whose command line contains `title`."""
    result = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat, line = (folder / "stat").read_text(), (folder / "cmdline").read_text()
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid and title in line:
                result.append(int(folder.name))
    return result


def left_behind(mark: str, driver: int) -> list[str]:
    """Command lines of the processes that inherited this text, or have files of the driver's local cluster open.

    Ray's own processes overwrite their environment when they set their title.
    """
    lines = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                files = [os.readlink(link) for link in (folder / "fd").iterdir()]
                if mark.encode() in (folder / "environ").read_bytes() or any(f"_{driver}/logs/" in f for f in files):
                    lines.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return lines


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Wait until a function returns something true, and return that."""
    until = time.monotonic() + seconds
    while not (result := what()):
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return result


def kill_one(raylets: list[int], title: str = "ray::WorkerActor") -> None:
    """Kill an actor of one of these nodes."""
    pid = wait_for(lambda: [p for parent in raylets for p in children(parent, title)])[0]
    os.kill(pid, signal.SIGKILL)
