"""What this machine has, and whether it works: versions, cores, envs, and the file system under the runs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "mujoco", "envpool", "tensorboard", "pydantic", "rich")
STEPS = 100


def examine(runs: Path) -> list[dict[str, Any]]:
    """Every check as `{check, ok, what}`; `runs` is where run directories go, or will."""
    while not runs.exists():
        runs = runs.parent
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: f"{platform.python_version()} on {platform.platform()}"),
        ("packages", _packages),
        ("cores", _cores),
        ("memory", _memory),
        ("MuJoCo", lambda: _steps("HalfCheetah-v5")),
        ("Atari", lambda: _steps("ALE/Pong-v5")),
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


def _memory() -> str:
    """What workers need before they have members, envs and replays: as much as this process with the same libraries."""
    import torch  # noqa: F401, the largest of them

    from pbtrl.build import available_cores

    workers, each, free = len(available_cores()), _resident(), _free_memory()
    if free is None or each is None:
        return "cannot be told here"
    told = f"{free / 2**30:.1f} GiB free; {workers} workers, one per core, begin with {each / 2**20:.0f} MiB each"
    if workers * each > free:
        raise MemoryError(f"{told}: set execution.workers lower")
    return told


def _resident() -> int | None:
    return _kilobytes(Path("/proc/self/status"), "VmRSS")


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


def _steps(env: str) -> str:
    import numpy as np

    import envs

    vector = envs.make(env, [0, 1])
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
    return f"{env} with {envs.resolve_backend(env)}: {STEPS} steps of 2 envs took {seconds:.2f} s"


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
