"""Measure what the driver of a run costs, with workers that do not train but return canned reports.

    python benchmarks/driver_load.py                  # in this process, answers at once: 64, 256 and 1,000 members
    python benchmarks/driver_load.py --ray --members 1000   # workers on Ray that answer after 15 s
    python benchmarks/driver_load.py --profile 1000   # where the time goes

The session is the real one: strategy, journal, TensorBoard, retention of snapshots and progress in plain lines. Only
its executor is replaced. What that does for the workers (metrics, snapshots) is taken off. `cores` is the share of a
core that the driver needs for slices of 15 s. All workers on Ray are one process, behind the real pool: each has its
own call in flight, and answers every turn.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import io
import json
import os
import pstats
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from pbtrl.config.load import check, read
from pbtrl.config.sections import Execution
from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.naming import member_ids
from pbtrl.execution import Executor
from pbtrl.execution.worker import WorkerSpec
from pbtrl.execution.worker_messages import Answers, Stop, Stopped, decode, encode
from pbtrl.reporting.presenter import TerminalPresenter
from pbtrl.reporting.tables import aligned
from pbtrl.storage.member_files import MemberFiles
from pbtrl.training import start
from pbtrl.training.session import SessionHooks

SLICE = 15.0  # seconds
EPISODES, LINES = 48, 7  # of a slice of HalfCheetah: episodes, and lines of metrics, one every two seconds
TAGS = [f"loss/{number}" for number in range(10)]


def canned(a: Assignment, rng: np.random.Generator) -> Report:
    """Make the report of a slice, as large as one of HalfCheetah."""
    returns = tuple((a.generation + rng.normal(size=EPISODES)).tolist())
    return Report(
        a.id, a.member, a.stop, a.hyperparameters, returns=returns, lengths=(1000,) * EPISODES,
        curve=((a.stop, returns[-1]),),
        timing={"seconds": SLICE}, assigned=a.hyperparameters,
    )  # fmt: skip


def write_metrics(files: MemberFiles, a: Assignment, lines: int) -> None:
    """Write live metrics of a slice."""
    line = {"assignment": a.id, "attempt": 0.0, "time": time.time(), "step": a.stop, **dict.fromkeys(TAGS, 0.5)}
    for _ in range(lines):
        files.write_metrics(a.member, line)


class CannedExecutor(Executor):
    """Executor that answers one assignment per `collect`, the oldest, and measures its caller.

    Args:
        folder: that of the members.
        members: number of members. After a report of each, the measurement begins, at their pace.
    """

    def __init__(self, folder: Path, members: int) -> None:
        self._files, self._folder = MemberFiles(folder, []), folder
        self._open: deque[Assignment] = deque()
        self._rng = np.random.default_rng(0)
        self._warm_up = members
        self._cpu = self._due = 0.0
        self.reports = 0

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Accept assignments."""
        self._open += assignments

    def collect(self, timeout: float) -> list[Report | Failure]:
        """Return one report."""
        if self.reports > self._warm_up:
            time.sleep(max(0.0, self._due - time.perf_counter()))
            self._due += SLICE / self._warm_up
        cpu = time.thread_time()
        a = self._open.popleft()
        self._work(a)
        report = canned(a, self._rng)
        self._cpu -= time.thread_time() - cpu
        self.reports += 1
        if self.reports == self._warm_up:
            self._cpu, self._due = -time.process_time(), time.perf_counter()
        return [report]

    def _work(self, a: Assignment) -> None:
        write_metrics(self._files, a, LINES)
        folder = self._folder / a.member / "snapshots" / f"{a.generation:06d}"
        folder.mkdir(parents=True)
        for name in ("tensors.safetensors", "state.json", "MANIFEST.json"):
            (folder / name).touch()

    def busy(self) -> bool:
        """Return whether an assignment is open."""
        return bool(self._open)

    def stop(self, within: float | None = None) -> None:
        """Drop all open assignments."""
        self._open.clear()

    def close(self) -> None:
        """Do nothing."""

    def cost(self) -> float:
        """Return CPU seconds per report since the warm-up, without those of the workers."""
        return (self._cpu + time.process_time()) / (self.reports - self._warm_up)


class CannedWorkers:
    """All workers of a cluster in one process: an actor of Ray whose calls run side by side."""

    def __init__(self, folder: str, seconds: float) -> None:
        from pbtrl.execution.ray_worker import facts

        self._files, self._seconds = MemberFiles(Path(folder), []), seconds
        self._facts = json.dumps(facts(Path(folder)))
        self._open: dict[int, deque[tuple[float, Assignment]]] = defaultdict(deque)
        self._rng = np.random.default_rng(0)

    async def hello(self) -> str:
        """Answer as a worker that has started."""
        return self._facts

    async def work(self, worker: int, messages: Sequence[bytes], turn: float) -> list[bytes]:
        """Take assignments, and report them when their time is over; answers after `turn` at the latest."""
        now, mine = time.monotonic(), self._open[worker]
        for message in map(decode, messages):
            if isinstance(message, Stop):
                mine.clear()
                return [encode(Stopped())]
            long = self._rng.uniform(0.9, 1.1, len(message.assignments)) * self._seconds
            mine += [(now + s, a) for s, a in zip(long, message.assignments, strict=True)]
        until = now + turn
        while mine and now < min(until, mine[0][0]):
            await asyncio.sleep(min(2.0, until - now, mine[0][0] - now))
            if mine:
                write_metrics(self._files, mine[0][1], 1)
            now = time.monotonic()
        return [encode(Answers((canned(mine.popleft()[1], self._rng),)))] if mine and now >= mine[0][0] else []


def measure_ray(members: int, seconds: float = SLICE, duration: float = 60.0) -> tuple[float, float]:
    """Return the cores that the driver's process needs with workers on Ray, and reports per second."""
    from pbtrl.execution import ray as pool

    marks: list[tuple[float, float, int]] = []

    def ask(method: Any, *before: Any) -> Any:
        return SimpleNamespace(remote=lambda *arguments: method.remote(*before, *arguments))

    class FakeCluster(pool.Cluster):
        """A cluster whose workers are one actor."""

        started = 0

        def worker(self, spec: WorkerSpec, store: Any, group: Any = None) -> Any:
            if not self.started:
                actor: Any = pool.ray.remote(CannedWorkers)
                self._all = actor.options(num_cpus=0, max_concurrency=2 * members).remote(spec.members, seconds)
            self.started += 1
            hello = SimpleNamespace(remote=lambda *_: self._all.hello.remote())
            return SimpleNamespace(hello=hello, work=ask(self._all.work, self.started))

    reports = 0

    class Pool(pool.RayPool):
        def collect(self, timeout: float) -> list[Report | Failure]:
            nonlocal reports
            found = super().collect(timeout)
            reports += len(found)
            return found

    def executor(folder: Path) -> Executor:
        specs = [WorkerSpec("", "", str(folder), ((name,),), (), 1, True) for name in member_ids(members)]
        return Pool(FakeCluster(Execution(backend="ray", address="local"), folder.parent / "ray.log"), specs, folder)

    def stop() -> bool:
        now = time.perf_counter()
        if reports >= members and (not marks or (len(marks) == 1 and now - marks[0][0] >= duration)):
            marks.append((now, time.process_time(), reports))
        return len(marks) == 2

    with mock.patch.object(pool, "_kill"):
        session(members, "async", executor, stop)
    wall, cpu, count = (b - a for a, b in zip(*marks, strict=True))
    return cpu / wall, count / wall


def session(members: int, mode: str, executor: Callable[[Path], Executor], stop: Callable[[], bool]) -> None:
    """Run a session with this executor until `stop`."""
    overrides = [f"population.size={members}", f"population.mode={mode}", "budget.env_steps_per_member=1_000_000_000",
                 "strategy.ready.burn_in=48_000", "final.candidates=1"]  # fmt: skip
    source = read("quickstart", overrides)
    hooks = SessionHooks(TerminalPresenter("plain"), stop_requested=stop)
    with tempfile.TemporaryDirectory(dir=given_folder()) as root, redirect_stdout(io.StringIO()):
        make = lambda config, run: executor(run.members)  # noqa: E731
        with mock.patch("pbtrl.training.session.make_executor", make):
            start.start(check(source), source, hooks, root=Path(root))


def given_folder() -> str | None:
    """Return a folder in memory: how fast this machine's disk syncs is another question."""
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def measure(members: int, mode: str = "async", slices: float = 1) -> float:
    """Return CPU seconds per report, over `slices` reports of each member after the first."""
    made: list[CannedExecutor] = []
    found: list[float] = []

    def executor(folder: Path) -> Executor:
        made.append(CannedExecutor(folder, members))
        return made[0]

    def stop() -> bool:
        if made[0].reports < members * (1 + slices):
            return False
        found.append(made[0].cost())
        return True

    session(members, mode, executor, stop)
    return found[0]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="*", default=[64, 256, 1000])
    parser.add_argument("--ray", action="store_true", help="workers on Ray, for a minute")
    parser.add_argument("--slices", type=float, default=1)
    parser.add_argument("--profile", type=int, metavar="MEMBERS")
    given = parser.parse_args()
    if given.profile:
        profile = cProfile.Profile()
        print(profile.runcall(measure, given.profile, slices=given.slices))
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(45)
        return
    if given.ray:
        for members in given.members:
            cores, rate = measure_ray(members)
            print(f"{members:,} workers on Ray: {cores:.2f} cores at {rate:.1f} reports/s")
        return
    rows = []
    for mode in ("async", "sync"):
        for members in given.members:
            cpu = measure(members, mode, given.slices)
            rows.append([f"{members:,}", mode, f"{1e3 * cpu:.2f}", f"{cpu * members / SLICE:.2f}"])
    print(aligned(["members", "mode", "CPU ms per report", "cores"], rows))


if __name__ == "__main__":
    main()
