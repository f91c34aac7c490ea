"""Checks of a Ray cluster: login, room for the workers, and on every node versions, niceness and the shared folder."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pbtrl.build.placement import worker_count
from pbtrl.config.schema import Config
from pbtrl.execution.ray_checks import cluster_address, login_problem, token_problem
from pbtrl.execution.ray_worker import facts, version_differences

if TYPE_CHECKING:
    from pbtrl.execution.ray import Cluster

Check = tuple[str, Callable[[], str]]


def cluster_checks(config: Config, runs: Path, cluster: Cluster) -> list[Check]:
    """Return the checks of a cluster that this process has joined; `runs` is the folder of the runs."""
    return [
        ("login", lambda: _login(config)),
        ("cluster", lambda: f"{cluster.describe()}; {_room(config, cluster)}"),
        ("nodes", lambda: _nodes(config, cluster)),
        *([("shared", lambda: _shared(runs, cluster))] if config.execution.shared else []),
    ]


def _login(config: Config) -> str:
    if problem := token_problem():
        raise PermissionError(problem)
    if cluster_address(config.execution) != "local" and (why := login_problem()):
        return f"NONE: {why}; whoever reaches the cluster can run code on it (execution.insecure)"
    return "by token; it travels in clear text unless RAY_USE_TLS=1, so only for networks that you trust"


def _room(config: Config, cluster: Cluster) -> str:
    if shortage := cluster.shortage():
        raise RuntimeError(shortage)
    room, count = cluster.room(), worker_count(config, cluster.room())
    if count > room:
        raise RuntimeError(f"room for {room} workers, and {count} are wanted: set execution.workers to auto or {room}")
    return f"{count} of {room} possible workers"


def _nodes(config: Config, cluster: Cluster) -> str:
    here, texts, other = facts(), [], []
    for node, there in cluster.survey():
        resources = node["Resources"]
        if wrong := version_differences(here, there):
            other.append(f"{there['host']} has {', '.join(wrong)}")
        nice = f", nice {there['nice']}: set RAY_worker_niceness=0 for `ray start`" if there["nice"] > 0 else ""
        size = f"{resources.get('CPU', 0):.0f} cores, {resources.get('memory', 0) / 2**30:.1f} GiB"
        texts.append(f"{there['host']} ({node['NodeManagerAddress']}): {size}{nice}")
    if other and not config.execution.allow_mixed:
        raise RuntimeError(f"{'; '.join(other)}: install the same versions, or set execution.allow_mixed: true")
    return "; ".join([*texts, *other])


def _shared(runs: Path, cluster: Cluster) -> str:
    nonce = secrets.token_hex(16)
    with TemporaryDirectory(dir=runs, prefix=".pbtrl-doctor-") as folder:
        probe = Path(folder).resolve() / "nonce"
        probe.write_text(nonce)
        os.chmod(folder, 0o755)
        answers: list[tuple[dict[str, Any], dict[str, Any]]] = cluster.survey(probe)
    blind = [there["host"] for _, there in answers if there["probe"] != nonce]
    if blind:
        raise RuntimeError(
            f"{', '.join(blind)} cannot read what was written in {runs.resolve()}: set execution.shared: false"
        )
    return f"all {len(answers)} nodes read what was written in {runs.resolve()}"
