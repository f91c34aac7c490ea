"""Checks of this machine: versions, cores, memory, envs, and the file system of the runs.

With a config, also its env and the memory that its workers need, measured on one worker; with `execution.backend: ray`
also the cluster. Cores and memory are those available to this job, within CPU affinity and control groups.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil

from pbtrl import envs
from pbtrl.errors import ChildDiedError
from pbtrl.system import cgroups
from pbtrl.system.child_process import call_in_child, init_child
from pbtrl.system.strict_json import to_json
from pbtrl.system.versions import PACKAGES, installed_version

if TYPE_CHECKING:
    from pbtrl.config.schema import Config

STEPS = 100


def examine(runs: Path, config: Config | None = None) -> list[dict[str, Any]]:
    """Run all checks; returns `{check, ok, what}` for each.

    Args:
        runs: directory of the runs; it need not exist yet.
        config: config to check, or None.
    """
    while not runs.exists():
        runs = runs.parent
    env = None if config is None else config.env
    on_ray = config is not None and config.execution.backend == "ray"
    own = [] if env is None else [("env", partial(_steps, env.id, **env.options))]
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: f"{platform.python_version()} on {platform.platform()}"),
        ("packages", _packages),
        ("cores", partial(_cores, None if on_ray else config)),
        ("memory", partial(_memory, config)),
        ("MuJoCo", partial(_steps, "HalfCheetah-v5")),
        ("Atari", partial(_steps, "ALE/Pong-v5")),
        *own,
        ("disk", lambda: _disk(runs)),
        ("file system", lambda: _file_system(runs)),
        ("terminal", lambda: f"{'yes' if sys.stdout.isatty() else 'no'}, {shutil.get_terminal_size().columns} columns"),
    ]
    result = [_check(name, function) for name, function in checks]
    return [*result, *(_examine_cluster(config, runs) if config is not None and on_ray else [])]


def _examine_cluster(config: Config, runs: Path) -> list[dict[str, Any]]:
    from pbtrl.diagnostics.cluster import cluster_checks
    from pbtrl.execution.ray import Cluster

    try:
        cluster = Cluster(config.execution, Path(os.devnull), config.spread_actors)
    except Exception as error:
        return [{"check": "cluster", "ok": False, "what": str(error)}]
    with contextlib.closing(cluster):
        return [_check(name, function) for name, function in cluster_checks(config, runs, cluster)]


def text(checks: list[dict[str, Any]]) -> str:
    """Format the checks, one line each."""
    return "\n".join(f"{'ok  ' if c['ok'] else 'FAIL'}  {c['check']:12}  {c['what']}" for c in checks)


def _check(name: str, function: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"check": name, "ok": True, "what": function()}
    except Exception as error:  # report any error and continue with the next check
        return {"check": name, "ok": False, "what": f"{type(error).__name__}: {error}"}


def _packages() -> str:
    missing = {"envpool": 'missing (pip install "pbtrl[fast]")'}
    names = (*PACKAGES, "tensorboard", "pydantic", "rich")
    return ", ".join(f"{name} {installed_version(name) or missing.get(name, 'missing')}" for name in names)


def _cores(config: Config | None) -> str:
    """Number of usable cores, and the limit that restricts them."""
    from pbtrl.build.placement import available_cores, usable_cores, worker_count

    usable, available, there = usable_cores(), len(available_cores()), os.cpu_count()
    limited = (quota := cgroups.cpu_quota()) is not None and quota < available
    why = f" (cgroup quota {quota:.3g})" if limited else " (CPU affinity)" if available != there else ""
    shared = "" if config is None or (count := worker_count(config)) <= usable else f"; {count} workers share them"
    return f"{usable} of {there} cores may be used{why}{shared}"


def _memory(config: Config | None) -> str:
    """Memory that the config's workers need; without an env, the memory of workers before they have members."""
    from pbtrl.build.placement import usable_cores, worker_count

    on_ray = config is not None and config.execution.backend == "ray"  # how many there are on a node is its affair
    workers = 1 if on_ray else worker_count(config) if config else usable_cores()
    if config is None or config.env is None:
        import torch  # noqa: F401, the largest library: with it this process is as large as a worker at its start

        each, what = psutil.Process().memory_info().rss, "before they have members"
    else:
        each, what = _measured(config), "with members and envs"
    free, limit = _free_memory()
    need = "1 worker needs" if workers == 1 else f"{workers} workers need {_size(workers * each)},"
    text = f"{_size(free)} free{limit}; {need} {_size(each)}{'' if workers == 1 else ' each'} {what}"
    if workers * each > free:
        raise MemoryError(f"{text}: {'set execution.workers lower' if workers > 1 else 'the job needs more memory'}")
    return text


def _measured(config: Config) -> int:
    """Resident bytes of one worker and its acting processes after one block of training."""
    from pbtrl.build.placement import worker_shares
    from pbtrl.core.naming import member_ids

    members = member_ids(config.population.size)
    share = worker_shares(config, members)[0]
    try:
        answer = json.loads(call_in_child(_live, config.to_json(), share.groups, share.threads))
    except ChildDiedError as error:
        free, limit = _free_memory()
        left = f"; {_size(free)} free{limit}" if limit else ""
        raise ChildProcessError(f"a worker of this config: {error}{left}") from None
    if "error" in answer:
        raise ChildProcessError(f"a worker of this config: {answer['error']}")
    resident: int = answer["resident"]
    return resident


def _live(pipe: Connection, parent: int, config: str, groups: list[list[str]], threads: int) -> None:
    init_child(parent, pipe)
    with contextlib.suppress(OSError):  # if memory runs out, the kernel should kill this process and not the doctor
        Path("/proc/self/oom_score_adj").write_text("1000")
    from pbtrl.diagnostics.bench_worker import BenchWorker

    try:
        worker = BenchWorker(config, groups, threads)
    except envs.EnvError as error:
        pipe.send_bytes(to_json({"error": str(error)}).encode())
        return
    pids = os.getpid(), *(child.pid for child in multiprocessing.active_children())
    pipe.send_bytes(to_json({"resident": sum(psutil.Process(pid).memory_info().rss for pid in pids)}).encode())
    worker.close()


def _free_memory() -> tuple[int, str]:
    """Free bytes for this job, and the job's limit in words if it is lower than the machine's free memory."""
    free, job = psutil.virtual_memory().available, cgroups.memory_limit()
    if job is None or free <= job.free:
        return free, ""
    return job.free, f" of the job's limit of {_size(job.limit)}"


def _size(memory: int) -> str:
    """Format bytes as `812 MiB` or `22.7 GiB`."""
    return f"{memory / 2**30:.1f} GiB" if memory >= 2**30 else f"{memory / 2**20:.0f} MiB"


def _steps(env: str, **options: Any) -> str:
    import numpy as np

    vector = envs.make(env, [0, 1], **options)
    try:
        vector.reset()
        space = vector.single_action_space
        space.seed(0)
        begun = time.perf_counter()
        for _ in range(STEPS):
            vector.step(np.stack([space.sample(), space.sample()]))
        seconds = time.perf_counter() - begun
    finally:
        vector.close()
    return f"{env} with {envs.resolve_backend(env, **options)}: {STEPS} steps of 2 envs took {seconds:.2f} s"


def _disk(runs: Path) -> str:
    free = shutil.disk_usage(runs).free
    if free < 2**30:
        raise OSError(f"only {free / 2**20:.0f} MiB free in {runs.resolve()}")
    return f"{free / 2**30:.0f} GiB free in {runs.resolve()}"


def _file_system(runs: Path) -> str:
    from pbtrl.system.files import write_atomically

    with TemporaryDirectory(dir=runs, prefix=".pbtrl-doctor-") as folder:
        begun = time.perf_counter()
        write_atomically(Path(folder) / "probe", "x")
        milliseconds = 1000 * (time.perf_counter() - begun)
    slow = "; slow, perhaps a network disk" if milliseconds > 200 else ""
    return f"write, fsync and rename take {milliseconds:.0f} ms{slow}"
