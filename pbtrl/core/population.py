"""State of the population, computed from the journal.

`Population.record` takes journal lines one by one. Everything about a member follows from them, including its fitness,
window, clock and lineage.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pbtrl.core.dimensions import AGENT
from pbtrl.core.messages import Assignment, Hyperparameters, numbers, skips


def mean(returns: Iterable[float | None]) -> float:
    """Mean of at least one return; NaN if a return is not finite or the sum overflows."""
    try:
        return statistics.fmean(numbers(returns))
    except (OverflowError, ValueError):
        return math.nan


@dataclass(frozen=True)
class FitnessRule:
    """Definition of a member's fitness as a mean over episodes.

    Attributes:
        source: `training` episodes, or the `evaluation` episodes at the end of the last slice.
        window: number of latest training episodes in the mean.
        min_episodes: with fewer episodes since the last copy the fitness is absent.
        share: fraction of the env steps since the last copy that must lie in finished training episodes. Short episodes
            finish first, so below it the mean would be biased towards them.
        cut_episodes: whether every slice cuts its unfinished episodes (`between_slices: reset`). Then `share` applies
            to each slice, and a slice below it does not count.
    """

    source: str = "training"
    window: int = 100
    min_episodes: int = 10
    share: float = 0.0
    cut_episodes: bool = False


@dataclass
class Member:
    """State of one member.

    Attributes:
        hyperparameters: hyperparameters of the open slice, or of the last one.
        snapshot: newest snapshot.
        snapshot_hparams: hyperparameters of the slice that made `snapshot`. A donor gives both, so that they match even
            while it already tries other hyperparameters.
        fitness: a number, or None if absent; meaningless while `diverged`.
        placeholder: fitness from before the last copy, until there is a new one; see `rank_fitness`.
        given_up: number of consecutive assignments that were given up.
        skipped_updates: updates skipped because their gradient was not finite, in all slices.
        window_start_step: the member's step at its start or last copy; if slices cut episodes, at the slice's start.
        counted_steps: env steps since `window_start_step` that lie in finished training episodes.
    """

    id: str
    step: int = 0
    generation: int = -1
    hyperparameters: Hyperparameters = field(default_factory=dict)
    snapshot: str | None = None
    snapshot_hparams: Hyperparameters = field(default_factory=dict)
    parent: str | None = None
    window: list[float] = field(default_factory=list)
    fitness: float | None = None
    placeholder: float | None = None
    diverged: bool = False
    lost: bool = False
    given_up: int = 0
    skipped_updates: int = 0
    window_start_step: int = 0
    counted_steps: int = 0
    pending: Assignment | None = None
    history: list[tuple[int, float | None]] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether the member has neither diverged nor been given up after repeated failures."""
        return not (self.diverged or self.lost)

    @property
    def ranked(self) -> bool:
        """Whether the member may be compared with others: healthy, with a fitness."""
        return self.healthy and self.fitness is not None

    @property
    def rank_fitness(self) -> float | None:
        """Number that ranks the member: its fitness, or its placeholder if the fitness is absent.

        A copy empties the fitness. Without a placeholder the member would leave the ranking, the others' ranks would
        fall, and asynchronous truncation would select far more than the bottom fraction. A placeholder never makes a
        member a donor.
        """
        return self.placeholder if self.fitness is None else self.fitness

    @property
    def before_copy(self) -> bool:
        """Whether `rank_fitness` is a placeholder."""
        return self.fitness is None and self.placeholder is not None


class Population:
    """State of all members, computed from the journal. Strategies read it; only `record` and `replay` change it.

    Attributes:
        snapshot_origin: the assignment that made each snapshot, by the snapshot's name. After an early stop its `stop`
            is the step that was reached.
        lost_snapshots: snapshots that are lost and must be made again.
    """

    def __init__(self, size: int, seed: int, rule: FitnessRule | None = None) -> None:
        digits = max(2, len(str(size - 1)))
        self.seed = seed
        self.rule = rule or FitnessRule()
        self.members = {m: Member(m) for m in (f"m{i:0{digits}d}" for i in range(size))}
        self.copies = 0
        self.snapshot_origin: dict[str, Assignment] = {}
        self.lost_snapshots: set[str] = set()
        self._agents: list[str] = []

    def rng(self, member: str, generation: int, purpose: str) -> np.random.Generator:
        """Random generator for one purpose, seeded from (seed, member, generation, purpose) alone."""
        return np.random.default_rng(self._sequence(member, generation, purpose))

    def slice_seed(self, member: str, generation: int) -> int:
        """Seed of a slice, 63 bits."""
        return int(self._sequence(member, generation, "slice").generate_state(1, np.uint64)[0] >> 1)

    def _sequence(self, member: str, generation: int, purpose: str) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, int(member[1:]), generation, zlib.crc32(purpose.encode())])

    @property
    def pending(self) -> list[Assignment]:
        """Open assignments: decided, but neither reported nor given up."""
        return [m.pending for m in self.members.values() if m.pending]

    @property
    def step(self) -> int:
        """Env steps of the whole population."""
        return sum(m.step for m in self.members.values())

    @property
    def agents(self) -> dict[str, int]:
        """Number of members per agent, including agents without any left; empty in a population of one agent."""
        counts = Counter(m.hyperparameters.get(AGENT) for m in self.members.values())
        return {agent: counts[agent] for agent in self._agents}

    @property
    def best(self) -> Member | None:
        """Member with the highest fitness; the first one in a tie."""
        return max(self.ranking(), key=lambda m: m.fitness or 0.0, default=None)

    def ranking(self) -> list[Member]:
        """Members that have a fitness, best first; ties in the order of their ids."""
        return sorted((m for m in self.members.values() if m.ranked), key=lambda m: -(m.fitness or 0.0))

    def needed(self) -> set[str]:
        """Snapshots to keep: each member's newest, its parent, and those that open assignments and remakes load."""
        names = {m.snapshot for m in self.members.values()} | {m.parent for m in self.members.values()}
        names |= {a.parent for a in self.pending} | {
            self.snapshot_origin[n].parent for n in self.lost_snapshots if n in self.snapshot_origin
        }
        return {n for n in names if n}

    def replay(self, lines: Iterable[Mapping[str, Any]]) -> Population:
        """Record every line; returns self."""
        for line in lines:
            self.record(line)
        return self

    def record(self, line: Mapping[str, Any]) -> None:
        """Apply one journal line; kinds that do not concern members are ignored."""
        match line["kind"]:
            case "decision":
                for body in line["assignments"]:
                    self._assigned(Assignment(**body))
            case "report":
                self._reported(line)
            case "failure":
                self._failed(line)
            case "void":
                self.lost_snapshots.add(line["snapshot"])
            case "remade":
                self.lost_snapshots.discard(line["snapshot"])
            case "resume":
                self._resumed()

    def _assigned(self, assignment: Assignment) -> None:
        member = self.members[assignment.member]
        if assignment.id in self.snapshot_origin:
            raise ValueError(f"{assignment.id} was already made")
        if assignment.parent is not None and assignment.parent not in self.snapshot_origin:
            raise ValueError(f"{assignment.id} continues from {assignment.parent}, which was never made")
        member.pending, member.generation = assignment, assignment.generation
        member.hyperparameters = assignment.hyperparameters
        agent = assignment.hyperparameters.get(AGENT)
        if agent is not None and agent not in self._agents:
            self._agents.append(agent)
        copied_or_fresh = assignment.donor or not assignment.parent
        if copied_or_fresh:
            member.placeholder = member.rank_fitness
            member.window, member.fitness = [], None
            member.diverged = member.lost = False
        if copied_or_fresh or self.rule.cut_episodes:
            member.window_start_step, member.counted_steps = assignment.start, 0
        self.copies += assignment.donor is not None

    def _reported(self, line: Mapping[str, Any]) -> None:
        member, assignment = self._answered(line)
        member.parent, member.snapshot = assignment.parent, assignment.id
        self.snapshot_origin[assignment.id] = replace(assignment, stop=line["step"])
        member.snapshot_hparams, member.given_up = assignment.hyperparameters, 0
        member.step, member.pending, member.diverged = line["step"], None, line["diverged"]
        if counts := skips(line):
            member.skipped_updates += counts[0]
        representative = True
        if self.rule.source == "training":
            member.counted_steps += sum(length + 1 for length in line["lengths"])  # + 1: the env's reset is a step
            representative = member.counted_steps >= self.rule.share * (member.step - member.window_start_step)
            if representative or not self.rule.cut_episodes:
                member.window = [*member.window, *numbers(line["returns"])][-self.rule.window :]
        elif line["evaluation"]:  # empty after an early stop
            member.window = numbers(line["evaluation"])
        enough = representative and len(member.window) >= self.rule.min_episodes
        fitness = mean(member.window) if enough else math.nan
        member.fitness = fitness if math.isfinite(fitness) else None
        if member.fitness is not None:
            member.placeholder = None
        member.history.append((member.step, member.fitness))

    def _failed(self, line: Mapping[str, Any]) -> None:
        member, _ = self._answered(line)
        if line["given_up"]:
            member.pending, member.lost = None, True
            member.given_up += 1

    def _resumed(self) -> None:
        """Look for lost snapshots again; if every member was given up, let all of them try again.

        A user who resumes such a run has presumably fixed the cause.
        """
        self.lost_snapshots.clear()
        if all(m.lost for m in self.members.values()):
            for member in self.members.values():
                member.lost, member.given_up = False, 0
                member.hyperparameters = member.snapshot_hparams or member.hyperparameters

    def _answered(self, line: Mapping[str, Any]) -> tuple[Member, Assignment]:
        member = self.members[line["member"]]
        if member.pending is None or member.pending.id != line["assignment"]:
            raise ValueError(f"{line['kind']} of {line['assignment']}, which is not open")
        return member, member.pending
