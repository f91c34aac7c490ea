"""How cores and members are shared among workers."""

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
    """A worker's share of the machine and of the population.

    Attributes:
        cores: that it is pinned to.
        threads: that it may keep busy.
        groups: of members, each a cohort where it can be one.
    """

    cores: tuple[int, ...]
    threads: int
    groups: list[list[str]]


def worker_shares(config: Config, members: Sequence[str]) -> list[WorkerShare]:
    """Split cores and members among the workers.

    A CPU quota limits time, on whatever core, and other jobs may have the same cores. Where it allows less than all
    cores, workers are therefore not pinned to one each (every such job would crowd the first ones): all may use all.
    """
    cores, usable, count = available_cores(), usable_cores(), worker_count(config)
    groups, threads = _groups(config, members, count), max(1, usable // count)
    pinned = usable == len(cores)
    return [
        WorkerShare(_share(cores, w, count) if pinned else tuple(cores), threads, groups[w::count])
        for w in range(count)
    ]


def worker_count(config: Config) -> int:
    """Worker processes; one for `inline`."""
    if config.execution.backend == "inline":
        return 1
    asked, size = config.execution.workers, config.population.size
    groups = size if (cohort := _cohort(config)) == "auto" else math.ceil(size / cohort)
    each = 1 if config.acting is None else config.acting.processes
    return min(groups, max(1, usable_cores() // each) if asked == "auto" else asked)


def torch_threads(config: Config) -> int:
    """How many a worker computes with: one, as who shares a worker depends on the executor; all cores for one alone.

    Sums over two threads are not those over one, so the results depend on it.
    """
    if config.population.size > 1 or config.acting is None or config.acting.mode != "inline":
        return 1
    (share,) = worker_shares(config, [""])
    return share.threads


def describe_placement(config: Config) -> str:
    """How many members train where, in a few words."""
    size = config.population.size
    text = "1 member" if size == 1 else f"{size} members"
    count = worker_count(config)
    if config.execution.backend == "inline":
        text += " in this process"
    else:
        text += f" on {count} worker{'s' if count > 1 else ''}"
    if config.env is None:
        return text
    return f"{text}, {config.env.num_envs} envs each{_acting(config)}"


def _acting(config: Config) -> str:
    """Who acts for a cohort, where it does not act itself."""
    acting = config.acting
    if acting is None or acting.mode == "inline":
        return ""
    named = {"actors": "actor", "hogwild": "hogwild process"}[acting.mode]
    plural = ("s" if acting.mode == "actors" else "es") if acting.processes > 1 else ""
    return f" in {acting.processes} {named}{plural}"


def available_cores() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """How many of the available cores this process may keep busy: all, or a CPU quota, rounded up."""
    cores, quota = len(available_cores()), cgroups.cpu_quota()
    return cores if quota is None else min(cores, math.ceil(quota))


def _groups(config: Config, members: Sequence[str], count: int) -> list[list[str]]:
    """Members in cohorts: as many as asked for, or one cohort per worker."""
    size = _cohort(config)
    if size == "auto":
        cuts = [len(members) * i // count for i in range(count + 1)]
        return [list(members[a:b]) for a, b in itertools.pairwise(cuts)]
    return [list(members[i : i + size]) for i in range(0, len(members), size)]


def _cohort(config: Config) -> int | Literal["auto"]:
    """Members in a cohort; one where their updates differ in length."""
    exact = config.agent is not None and config.agent.unroll_mode == "exact"
    return 1 if exact else config.execution.cohort


def _share(cores: Sequence[int], worker: int, count: int) -> tuple[int, ...]:
    """A worker's own cores: an equal share, or one that it shares where there are too few."""
    each = len(cores) // count
    return tuple(cores[worker * each : (worker + 1) * each]) if each else (cores[worker % len(cores)],)
