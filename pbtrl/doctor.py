"""What this machine has, and whether it works: versions, cores, envs, and the file system under the runs.

With a config also its env, and the memory that its workers need, measured on one of them.
"""

from __future__ import annotations

import importlib.metadata
import json
import multiprocessing
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import envs
from pbtrl.children import DiedError, answer, belong_to
from pbtrl.strict_json import to_json

if TYPE_CHECKING:
    from pbtrl.config import Config

PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "mujoco", "envpool", "tensorboard", "pydantic", "rich")
STEPS = 100


def examine(runs: Path, config: Config | None = None) -> list[dict[str, Any]]:
    """Every check as `{check, ok, what}`; `runs` is where run directories go, or will, `config` what is to run."""
    while not runs.exists():
        runs = runs.parent
    env = None if config is None else config.env
    own = [] if env is None else [("env", partial(_steps, env.id, env.backend, env.protocol, env.kwargs))]
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: f"{platform.python_version()} on {platform.platform()}"),
        ("packages", _packages),
        ("cores", _cores),
        ("memory", partial(_memory, config if env else None)),
        ("MuJoCo", partial(_steps, "HalfCheetah-v5")),
        ("Atari", partial(_steps, "ALE/Pong-v5")),
        *own,
        ("disk", lambda: _disk(runs)),
        ("file system", lambda: _file_system(runs)),
        ("terminal", lambda: f"{'yes' if sys.stdout.isatty() else 'no'}, {shutil.get_terminal_size().columns} columns"),
    ]
    return [_check(name, function) for name, function in checks]


def text(checks: list[dict[str, Any]]) -> str:
    """One line per check."""
    return "\n".join(f"{'ok  ' if c['ok'] else 'FAIL'}  {c['check']:12}  {c['what']}" for c in checks)


def _check(name: str, function: Callable[[], str]) -> dict[str, Any]:
    try:
        return {"check": name, "ok": True, "what": function()}
    except Exception as error:  # whatever it is, the doctor reports it and goes on
        return {"check": name, "ok": False, "what": f"{type(error).__name__}: {error}"}


def _packages() -> str:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} missing" + (' (pip install "pbtrl[fast]")' if name == "envpool" else ""))
    return ", ".join(found)


def _cores() -> str:
    from pbtrl.build import available_cores

    return f"{len(available_cores())} of {os.cpu_count()} may be used"


def _memory(config: Config | None) -> str:
    """What the config's workers need; without one, what they need before they have members, envs and replays."""
    from pbtrl import build

    if config is None:
        import torch  # noqa: F401, the largest of the libraries: workers begin with as much as this process has then

        workers, each, what = len(build.available_cores()), _resident(os.getpid()), "one per core, begin with"
    else:
        workers, each, what = build.workers(config), _measured(config), "with their members and envs, need"
    free = _free_memory()
    if free is None or each is None:
        return "cannot be told here"
    told = f"{free / 2**30:.1f} GiB free; {workers} workers, {what} {each / 2**20:.0f} MiB each"
    if workers * each > free:
        raise MemoryError(f"{told}: set execution.workers lower")
    return told


def _measured(config: Config) -> int | None:
    """Bytes resident of one worker, with those who act for it, once it has learned from a block."""
    from pbtrl import build
    from pbtrl.population import Population

    members = list(Population(config.population.size, config.seed).members)
    try:
        found: int | None = json.loads(answer(_live, config.to_json(), build.shares(config, members)[0]))
    except DiedError as error:
        raise ChildProcessError(f"a worker of this config: {error}") from None
    return found


def _live(pipe: Connection, parent: int, config: str, share: tuple[tuple[int, ...], list[list[str]]]) -> None:
    belong_to(parent, pipe)
    from pbtrl.bench import Share

    cores, groups = share
    worker = Share(config, groups, len(cores))
    each = [_resident(pid) for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children()))]
    pipe.send_bytes(to_json(None if None in each else sum(each)).encode())
    worker.close()


def _resident(pid: int | None) -> int | None:
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS")


def _free_memory() -> int | None:
    """Bytes that may still be had, of the machine's or of our own control group's."""
    free = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    group = Path("/sys/fs/cgroup")
    try:
        left = int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such group, or no limit
        return free
    return left if free is None else min(left, free)


def _kilobytes(path: Path, key: str) -> int | None:
    """A line of /proc as bytes; None where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def _steps(
    env: str,
    backend: envs.Backend = "auto",
    protocol: envs.Protocol = "sticky",
    kwargs: Mapping[str, Any] | None = None,
) -> str:
    import numpy as np

    vector = envs.make(env, [0, 1], backend=backend, protocol=protocol, kwargs=kwargs)
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
    return f"{env} with {envs.resolve_backend(env, backend, kwargs)}: {STEPS} steps of 2 envs took {seconds:.2f} s"


def _disk(runs: Path) -> str:
    free = shutil.disk_usage(runs).free
    if free < 2**30:
        raise OSError(f"only {free / 2**20:.0f} MiB free in {runs.resolve()}")
    return f"{free / 2**30:.0f} GiB free in {runs.resolve()}"


def _file_system(runs: Path) -> str:
    from pbtrl.snapshots import write_atomically

    with TemporaryDirectory(dir=runs, prefix=".pbtrl-doctor-") as folder:
        begun = time.perf_counter()
        write_atomically(Path(folder) / "probe", "x")
        milliseconds = 1000 * (time.perf_counter() - begun)
    slow = "; slow, perhaps a network disk" if milliseconds > 200 else ""
    return f"write, fsync and rename take {milliseconds:.0f} ms{slow}"
