"""Predict the efficiency of runs on clusters larger than this machine, by a discrete-event simulation.

    python benchmarks/cluster_simulation.py             # table of efficiencies, and the knees
    python benchmarks/cluster_simulation.py --check     # predictions for 2 workers beside short real runs
    python benchmarks/cluster_simulation.py --measure   # the constants of the driver and the store on this machine

Controller, PBT and population are the real code. Only the executor is simulated: it has a clock of its own, which the
driver, the store and the workers move on, and answers with canned reports. One member trains per worker.

    driver   one server: reports and decisions cost it CPU time and a sync of the journal each
    store    one server: snapshots, by size, and a line of metrics per member every two seconds. On a shared file system
             workers write themselves, and only the bytes queue, at the file server
    worker   loads a donor's snapshot, trains a slice, commits; it may die and be replaced

Efficiency is the share of the time of all workers that is training: the share of linear speed-up over one worker
without any overhead. The first slice of a member, before any waiting, does not count.
"""

from __future__ import annotations

import argparse
import bisect
import functools
import heapq
import itertools
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pbtrl.core.dimensions import LogUniform
from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import FitnessRule, Population
from pbtrl.core.records import Record, ReportRecord
from pbtrl.core.search_space import SearchSpace
from pbtrl.execution import Executor
from pbtrl.execution.remote_store import StoreDesk
from pbtrl.reporting.tables import aligned
from pbtrl.storage.journal import Journal, Line, dumps, read_journal
from pbtrl.storage.parsing import parse_record
from pbtrl.storage.snapshot_store import pack
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.rules import Exploit
from pbtrl.training.controller import Controller

WORKERS = (8, 64, 256, 1000)
KNEE = 0.9
SEED = 0
METRICS_EVERY = 2.0  # seconds


@dataclass(frozen=True)
class Constants:
    """What things cost, in seconds; a pair is a fixed cost and one per byte or per member of the population.

    "Section" is one of shared/ray.md (2 cores of an AMD EPYC). "Here" is `--measure` on 2 cores of an Intel Xeon with
    other jobs on them, so rather too much.
    """

    call: float = 0.64e-3  # a call to an actor on another node and back, with 2 kB of JSON (section 0)
    report: tuple[float, float] = (2.9e-3, 2.7e-6)  # the driver per report (here)
    decision: tuple[float, float] = (0.05e-3, 0.09e-6)  # and per assignment of a decision (here)
    sync: float = 3.8e-3  # and per line of the journal: one per report, and one per decision (here)
    store: tuple[float, float] = (1.4e-3, 12.3e-9)  # the store per snapshot, hashed and synced (here)
    line: float = 0.3e-3  # the store per line of metrics: a call that waits for nothing (section 0)
    pack: tuple[float, float] = (0.0, 10.5e-9)  # the worker per snapshot: hashed (here), and carried (section 0)
    server: tuple[float, float] = (0.5e-3, 1e-9)  # assumed: a file server of 1 GB/s
    local: tuple[float, float] = (3e-3, 2.2e-9)  # a synced commit of a worker's own: 5 MB in 14 ms (section 0)
    spread: float = 0.05  # assumed: standard deviation of a slice's duration, as a share of its mean
    deaths: float = 0.01  # assumed: of a worker per hour, half of them with their node
    detect: tuple[float, float] = (0.02, 14.0)  # until Ray notices a dead process, a dead node (section 0)
    restart: float = 10.0  # assumed: a new worker with all imports


@dataclass(frozen=True)
class Work:
    """What every member does: slices of so many seconds, and snapshots of so many bytes."""

    name: str
    seconds: float
    size: int


WORKS = (
    Work("HalfCheetah, 15 s", 15.0, 147_000),
    Work("Pong, 60 s", 60.0, 5_400_000),
    Work("Pong, 15 s", 15.0, 5_400_000),
)


def cost(line: tuple[float, float], amount: float) -> float:
    """Evaluate fixed cost + cost per unit."""
    return line[0] + line[1] * amount


class Server:
    """Queue that serves one request at a time, in the order of their arrival."""

    def __init__(self) -> None:
        self.free = 0.0

    def finish(self, now: float, seconds: float) -> float:
        """Return when a request that arrives now, not before earlier ones, is done."""
        self.free = max(self.free, now) + seconds
        return self.free


@dataclass
class SimulatedCluster(Executor):
    """Executor in simulated time.

    Attributes:
        now: time of the driver.
        trained, spent: seconds that members trained, and that passed between their reports; without first slices.
    """

    work: Work
    constants: Constants
    members: int
    shared: bool = False
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(SEED))
    now: float = 0.0
    trained: float = 0.0
    spent: float = 0.0

    def __post_init__(self) -> None:
        self._events: list[tuple[float, int, Generator[float, None, None]]] = []
        self._number = itertools.count()
        self._store, self._lines = Server(), Server()  # it has threads: lines do not wait for snapshots
        self._arrived: list[Report | Failure] = []
        self._held: dict[str, str | None] = {}
        self._reported_at: dict[str, float] = {}
        self._open = 0

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Start slices when the driver has decided about them, one after another."""
        self.now += self.constants.sync
        for a in assignments:
            self.now += cost(self.constants.decision, self.members)
            begun = self.now + self.constants.call / 2
            self._schedule(begun, self._slice(a, begun))
        self._open += len(assignments)

    def collect(self, timeout: float) -> list[Report | Failure]:
        """Return what has arrived when the driver looks, or next; `timeout` has no meaning here."""
        while self._events and (not self._arrived or self._events[0][0] <= self.now):
            at, _, process = heapq.heappop(self._events)
            if not self._arrived:
                self.now = max(self.now, at)
            if (until := next(process, None)) is not None:
                self._schedule(until, process)
        found, self._arrived = self._arrived, []
        self.now += len(found) * (self.constants.sync + cost(self.constants.report, self.members))
        self._open -= len(found)
        return found

    def busy(self) -> bool:
        """Return whether an assignment is unanswered."""
        return self._open > 0

    def stop(self, within: float | None = None) -> None:
        """Do nothing: a simulation ends with its budget."""

    def close(self) -> None:
        """Do nothing."""

    @property
    def efficiency(self) -> float:
        """Share of the time that is training."""
        return self.trained / self.spent

    def _schedule(self, at: float, process: Generator[float, None, None]) -> None:
        heapq.heappush(self._events, (at, next(self._number), process))

    def _transfer(self, now: float) -> float:
        """Return when a snapshot that is sent now is at its other end."""
        return self._store.finish(
            now, cost(self.constants.server if self.shared else self.constants.store, self.work.size)
        )

    def _slice(self, a: Assignment, now: float) -> Generator[float, None, None]:
        """Run one slice in its worker, from `now` on: a process that yields the time at which it goes on."""
        c = self.constants
        if a.parent and self._held.get(a.member) != a.parent:
            yield (now := self._transfer(now) + cost(c.pack, self.work.size))
        seconds = self.work.seconds * max(0.1, self.rng.normal(1.0, c.spread))
        dies = self.rng.random() < 1.0 - math.exp(-c.deaths * seconds / 3600)
        end = now + seconds * (self.rng.random() if dies else 1.0)
        while not self.shared and now + METRICS_EVERY < end:
            yield (now := now + METRICS_EVERY)
            waited = self._lines.finish(now, c.line) + c.call - now
            now, end = now + waited, end + waited
        yield end
        if dies:
            self._held.pop(a.member, None)
            yield end + c.detect[int(self.rng.integers(2))] + c.restart
            self._arrived.append(Failure(a.id, a.member, "worker died"))
            return
        yield (now := end + cost(c.local if self.shared else c.pack, self.work.size))
        yield (now := self._transfer(now) + c.call / 2)
        self._held[a.member] = a.id
        if a.member in self._reported_at:
            self.trained += seconds
            self.spent += now - self._reported_at[a.member]
        self._reported_at[a.member] = now
        y = float(a.generation + self.rng.normal())
        self._arrived.append(Report(a.id, a.member, a.stop, a.hyperparameters, returns=(y,), lengths=(1,)))


class MemoryJournal(Journal):
    """Journal without a file: what writing costs is among the constants."""

    def __init__(self) -> None:
        pass

    def append(self, line: Line, accept: Callable[[Record], None] = lambda record: None) -> Record:
        """Return the record."""
        record = parse_record(json.loads(dumps(line)), "memory")
        accept(record)
        return record


def strategy(slices: int, *, sync: bool = False, copies: bool = True) -> PBT:
    """Make PBT with truncation, or without copies, over slices of one step."""
    return PBT(
        space=SearchSpace({"learning_rate": LogUniform(low=1e-4, high=1e-2)}), slice_steps=1, horizon=slices, burn_in=1,
        exploit=Exploit(method="truncation" if copies else "none"), synchronous=sync,
    )  # fmt: skip


def simulate(
    work: Work, workers: int, constants: Constants, *, sync: bool = False, shared: bool = False, copies: bool = True,
    slices: int = 0,
) -> float:  # fmt: skip
    """Return the efficiency of a run; `slices` of each member, by default fewer for more workers."""
    slices = slices or min(100, max(8, 1500 // workers))
    cluster = SimulatedCluster(work, constants, workers, shared)
    population = Population(workers, SEED, FitnessRule(window=1, min_episodes=1))
    Controller(population, strategy(slices, sync=sync, copies=copies), cluster, MemoryJournal()).run()
    return cluster.efficiency


def knee(efficiency: Callable[[int], float]) -> str:
    """Return the largest number of workers that are at least 90 % efficient, of the powers of two and 1,000."""
    counts = [*(2**k for k in range(1, 10)), WORKERS[-1]]
    found = bisect.bisect_left(counts, True, key=lambda n: efficiency(n) < KNEE)
    return "none" if not found else f"{'>= ' if found == len(counts) else ''}{counts[found - 1]:,}"


def row(constants: Constants, work: Work, sync: bool, shared: bool) -> list[str]:
    """Simulate a row of the table."""
    run = functools.cache(lambda n: simulate(work, n, constants, sync=sync, shared=shared))
    shown = [f"{run(n):.3f}" for n in WORKERS]
    return [work.name, "sync" if sync else "async", "shared" if shared else "store", *shown, knee(run)]


def table(constants: Constants) -> str:
    """Simulate everything."""
    cases = itertools.product(WORKS, (False, True), (False, True))
    with ProcessPoolExecutor() as processes:
        rows = list(processes.map(functools.partial(row, constants), *zip(*cases, strict=True)))
    return aligned(["work", "mode", "snapshots", *(f"{n:,}" for n in WORKERS), "knee"], rows)


def measure() -> dict[str, str]:
    """Measure the constants that depend on this machine: the driver's and the store's."""
    from benchmarks import driver_load

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, "journal.jsonl"))
        sync = _median(lambda: journal.append({"kind": "set", "settings": {"returns": [0.5] * 50}}), 50)
        journal.close()
        for size in {work.size for work in WORKS}:
            packed, written = snapshot_seconds(Path(folder, f"members-{size}"), size)
            found[f"snapshot of {size:,} bytes"] = f"pack {1e3 * packed:.1f} ms, write {1e3 * written:.1f} ms"
    found["journal, one line synced"] = f"{1e3 * sync:.2f} ms"
    for members in (64, 1000):
        found[f"driver per report, {members:,} members"] = f"{1e3 * driver_load.measure(members):.2f} ms of CPU"
        found[f"decision per member, {members:,} members"] = f"{1e3 * decision_seconds(members):.2f} ms"
    return found


def snapshot_seconds(members: Path, size: int, count: int = 24) -> tuple[float, float]:
    """Measure a snapshot: to pack it, and to check, write and sync it in the store, which has eight threads."""
    tensors, names = {"w": np.zeros(size // 4, np.float32)}, [f"m{n:02}/000000" for n in range(count)]
    files = {name: pack(name, tensors, {}) for name in names}
    desk, begun = StoreDesk(members), time.perf_counter()
    with ThreadPoolExecutor(8) as threads:
        assert not any(error for error, _ in threads.map(lambda n: desk.answer("write", n, files[n]), names))
    written = (time.perf_counter() - begun) / count
    return _median(lambda: pack(names[0], tensors, {}), 10), written


def decision_seconds(members: int) -> float:
    """Measure how long the strategy takes per member, in a decision about all."""
    population = Population(members, SEED, FitnessRule(window=1, min_episodes=1))
    pbt = strategy(3, sync=True)
    executor = SimulatedCluster(WORKS[0], Constants(deaths=0.0), members)
    controller = Controller(population, pbt, executor, MemoryJournal())
    while not (population.step == members and not population.pending):
        controller.step()
    begun = time.thread_time()
    pbt.decide(population)
    return (time.thread_time() - begun) / members


def _median(call: Callable[[], object], count: int) -> float:
    seconds = []
    for _ in range(count):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def observed(records: Sequence[Record]) -> tuple[float, float, float]:
    """Return efficiency, mean and spread of the slices of a real run; as simulated, without first slices.

    The spread is that within a generation: what slows all members alike, such as other jobs, lets nobody wait.
    """
    at, seconds = defaultdict[str, list[float]](list), defaultdict[int, list[float]](list)
    for record in records:
        if isinstance(record, ReportRecord):
            member = record.report.member
            at[member].append(record.elapsed)
            seconds[len(at[member])].append(record.report.timing["seconds"])
    later = [seconds[generation] for generation in seconds if generation > 1]
    mean = statistics.fmean(itertools.chain(*later))
    variance = statistics.fmean(statistics.variance(s) for s in later if len(s) > 1)
    trained, spent = sum(map(sum, later)), sum(times[-1] - times[0] for times in at.values())
    return trained / spent, mean, math.sqrt(variance) / mean


def compare_with_real(slices: int = 10, modes: Sequence[str] = ("async", "sync")) -> str:
    """Train two members on two workers, and predict the efficiency from the durations of their slices."""
    rows = []
    for backend, mode in itertools.product(("processes", "ray"), modes):
        with tempfile.TemporaryDirectory() as root:
            address = ["execution.address=local"] if backend == "ray" else []
            overrides = [*address, f"population.mode={mode}", f"execution.backend={backend}", "population.size=2",
                         "execution.workers=2", "strategy.ready.slice_steps=16_000",
                         "strategy.ready.burn_in=16_000", f"budget.env_steps_per_member={16_000 * slices}",
                         "final.candidates=1", "final.episodes=2", "final.selection_episodes=1"]  # fmt: skip
            command = [sys.executable, "-m", "pbtrl", "train", "quickstart", "--runs", root, "--progress", "none"]
            subprocess.run([*command, "--name", "run", *overrides], check=True, stdout=subprocess.DEVNULL)
            records = list(read_journal(Path(root, "run", "journal.jsonl")))
        real, mean, spread = observed(records)
        constants = replace(Constants(), spread=spread, deaths=0.0)
        local = backend == "processes"
        if local:  # pipes, and a disk of this machine
            constants = replace(constants, call=0.1e-3, server=(0.0, 0.0))
        work = Work("", mean, WORKS[0].size)
        predicted = simulate(work, 2, constants, sync=mode == "sync", shared=local, slices=400)
        rows.append([backend, mode, f"{mean:.1f} s", f"{spread:.2f}", f"{predicted:.3f}", f"{real:.3f}"])
    return aligned(["backend", "mode", "slice", "spread", "predicted", "measured"], rows)


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--spread", type=float, default=Constants.spread)
    given = parser.parse_args()
    if given.measure:
        print("\n".join(f"{name:40}{value}" for name, value in measure().items()))
    elif given.check:
        print(compare_with_real())
    else:
        print(table(replace(Constants(), spread=given.spread)))


if __name__ == "__main__":
    main()
