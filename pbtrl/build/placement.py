"""Placement of members and cores on workers."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pbtrl.config.schema import Config
from pbtrl.system import cgroups


@dataclass(frozen=True)
class WorkerShare:
    """Share of a worker in the machine and the population.

    Attributes:
        cores: cores that the worker is pinned to.
        threads: number of threads that it may keep busy.
        groups: groups of members, each trained as one cohort if their structure allows it.
    """

    cores: tuple[int, ...]
    threads: int
    groups: list[list[str]]


def worker_shares(config: Config, members: Sequence[str]) -> list[WorkerShare]:
    """Split cores and members among the workers.

    Workers are not pinned under a CPU quota below the number of cores. A quota limits time, not cores, and several such
    jobs on one machine would all crowd the first cores.
    """
    cores, usable, count = available_cores(), usable_cores(), worker_count(config)
    groups, threads = _groups(config, members, count), max(1, usable // count)
    pinned = usable == len(cores)
    return [
        WorkerShare(_share(cores, w, count) if pinned else tuple(cores), threads, groups[w::count])
        for w in range(count)
    ]


def worker_count(config: Config, room: int | None = None) -> int:
    """Number of workers; 1 for `inline`.

    Args:
        config: config of the run.
        room: number of workers that a cluster has room for; by default, what this machine has room for.
    """
    if config.execution.backend == "inline":
        return 1
    workers, size = config.execution.workers, config.population.size
    groups = size if (cohort := _cohort(config)) == "auto" else math.ceil(size / cohort)
    if room is None:
        room = usable_cores() // (1 if config.acting is None else config.acting.processes)
    return min(groups, max(1, room) if workers == "auto" else workers)


def cluster_groups(config: Config, members: Sequence[str], room: int) -> list[list[list[str]]]:
    """Split members among the workers of a cluster that has room for so many; returns each worker's groups."""
    count = worker_count(config, room)
    groups = _groups(config, members, count)
    return [groups[w::count] for w in range(count)]


def torch_threads(config: Config) -> int:
    """Torch threads per worker: 1, or all cores for a single inline member; on Ray, those reserved for it.

    For several members the number does not depend on the executor, because sums over two threads differ in bits from
    sums over one.
    """
    if config.population.size > 1 or config.acting is None or config.acting.mode != "inline":
        return 1
    if config.execution.backend == "ray":
        return config.execution.cores_per_worker
    (share,) = worker_shares(config, [""])
    return share.threads


def describe_placement(config: Config) -> str:
    """Describe the number of members, workers and envs: `8 members on 2 workers, 16 envs each`."""
    size = config.population.size
    text = "1 member" if size == 1 else f"{size} members"
    if config.strategy.runs_trials:
        text = f"{size} trial{'s' if size > 1 else ''} at once"
    count = worker_count(config)
    if config.execution.backend == "inline":
        text += " in this process"
    elif config.execution.backend == "ray":
        text += " on Ray"
    else:
        text += f" on {count} worker{'s' if count > 1 else ''}"
    if config.env is None:
        return text
    return f"{text}, {config.env.num_envs} envs each{_acting(config)}"


def _acting(config: Config) -> str:
    """Describe the acting processes of a cohort; empty for inline acting."""
    acting = config.acting
    if acting is None or acting.mode == "inline":
        return ""
    named = {"actors": "actor", "hogwild": "hogwild process"}[acting.mode]
    plural = ("s" if acting.mode == "actors" else "es") if acting.processes > 1 else ""
    return f" in {acting.processes} {named}{plural}{' on any node' if config.spread_actors else ''}"


def available_cores() -> list[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Return the number of cores that this process may keep busy: all available ones, or the CPU quota, rounded up."""
    cores, quota = len(available_cores()), cgroups.cpu_quota()
    return cores if quota is None else min(cores, math.ceil(quota))


def _groups(config: Config, members: Sequence[str], count: int) -> list[list[str]]:
    """Divide members into cohorts of the configured size, or into one cohort per worker."""
    size = _cohort(config)
    if size == "auto":
        cuts = [len(members) * i // count for i in range(count + 1)]
        return [list(members[a:b]) for a, b in itertools.pairwise(cuts)]
    return [list(members[i : i + size]) for i in range(0, len(members), size)]


def _cohort(config: Config) -> int | Literal["auto"]:
    """Return the number of members in a cohort; 1 if each has updates of its own length."""
    return 1 if config.has_own_updates else config.execution.cohort


def _share(cores: Sequence[int], worker: int, count: int) -> tuple[int, ...]:
    """Return the cores of a worker: an equal share, or a single core, shared with others if there are too few."""
    each = len(cores) // count
    return tuple(cores[worker * each : (worker + 1) * each]) if each else (cores[worker % len(cores)],)
