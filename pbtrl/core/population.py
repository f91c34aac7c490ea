"""The population: a fold over the journal that says where every member stands.

`Population.record` takes journal lines one by one. Nothing is known of a member that does not follow from them:
fitness, window, clock and lineage included.
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
    """Of at least one; NaN where it is no number, or one that no float can hold."""
    try:
        return statistics.fmean(numbers(returns))
    except (OverflowError, ValueError):
        return math.nan


@dataclass(frozen=True)
class FitnessRule:
    """How episodes become a fitness.

    Attributes:
        source: `training` episodes, or `evaluation` episodes played at the end of each slice: those of the last one.
        window: how many of the latest training episodes count.
        min_episodes: fewer since the last copy, and the fitness is absent.
        share: of the env steps since the last copy that must lie in training episodes that count, for as long as mostly
            short ones have ended the mean would favor them.
        cut_episodes: every slice cuts the episodes under way (`between_slices: reset`); then that share is asked of
            every slice, and one that has it not does not count.
    """

    source: str = "training"
    window: int = 100
    min_episodes: int = 10
    share: float = 0.0
    cut_episodes: bool = False


@dataclass
class Member:
    """Where one member stands.

    Attributes:
        hyperparameters: of the slice under way, or of the last one.
        snapshot: the newest one; `snapshot_hparams` are the hyperparameters of the slice that made it, so a
            donor gives away a pair that belongs together even while it is trying something else.
        fitness: a number or absent (None); `diverged` comes before either.
        placeholder: the number from before the last copy, until there is a new one; see `rank_fitness`.
        given_up: how often in a row an assignment was given up, with no report in between.
        skipped_updates: how many updates were skipped because their gradient was not finite, in all slices.
        window_start_step: the member's step at its last copy or start; where slices cut episodes, at the slice's start.
        counted_steps: env steps since then that lie in training episodes that count.
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
        """Neither diverged nor given up after repeated failures."""
        return not (self.diverged or self.lost)

    @property
    def ranked(self) -> bool:
        """May take part in a comparison: healthy, with a number for a fitness."""
        return self.healthy and self.fitness is not None

    @property
    def rank_fitness(self) -> float | None:
        """Number that ranks the member: its fitness, or its placeholder while it has none.

        A copy empties the fitness. If the member left the ranking with it, the others' ranks would fall, and
        asynchronous truncation would select far more than the bottom fraction. A placeholder never makes a donor.
        """
        return self.placeholder if self.fitness is None else self.fitness

    @property
    def before_copy(self) -> bool:
        """Whether `rank_fitness` is a placeholder."""
        return self.fitness is None and self.placeholder is not None


class Population:
    """All members, folded from the journal. A strategy reads it; only `record` changes it.

    Attributes:
        snapshot_origin: what made each snapshot, by its name; a slice that was stopped early ends where it did.
        lost_snapshots: snapshots that were lost and are to be made again.
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
        """The generator for one purpose: from (seed, member, generation, purpose) and nothing else."""
        return np.random.default_rng(self._sequence(member, generation, purpose))

    def slice_seed(self, member: str, generation: int) -> int:
        """The seed of a slice, 63 bits."""
        return int(self._sequence(member, generation, "slice").generate_state(1, np.uint64)[0] >> 1)

    def _sequence(self, member: str, generation: int, purpose: str) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, int(member[1:]), generation, zlib.crc32(purpose.encode())])

    @property
    def pending(self) -> list[Assignment]:
        """Assignments that were decided and have neither succeeded nor been given up."""
        return [m.pending for m in self.members.values() if m.pending]

    @property
    def step(self) -> int:
        """Env steps of the whole population."""
        return sum(m.step for m in self.members.values())

    @property
    def agents(self) -> dict[str, int]:
        """How many members each agent has, those that lost all of theirs included; empty where there is but one."""
        counts = Counter(m.hyperparameters.get(AGENT) for m in self.members.values())
        return {agent: counts[agent] for agent in self._agents}

    @property
    def best(self) -> Member | None:
        """The member of the highest fitness; the first of equals."""
        return max(self.ranking(), key=lambda m: m.fitness or 0.0, default=None)

    def ranking(self) -> list[Member]:
        """Members with a number for a fitness, best first; the order of equals is that of their ids."""
        return sorted((m for m in self.members.values() if m.ranked), key=lambda m: -(m.fitness or 0.0))

    def needed(self) -> set[str]:
        """Snapshots that must stay: each member's newest, its parent, and what open assignments and remakes load."""
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
        """Take one journal line. Kinds that say nothing of members are ignored."""
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
            raise ValueError(f"{assignment.id} was made before")
        if assignment.parent is not None and assignment.parent not in self.snapshot_origin:
            raise ValueError(f"{assignment.id} goes on from {assignment.parent}, which nobody made")
        member.pending, member.generation = assignment, assignment.generation
        member.hyperparameters = assignment.hyperparameters
        agent = assignment.hyperparameters.get(AGENT)
        if agent is not None and agent not in self._agents:
            self._agents.append(agent)
        anew = assignment.donor or not assignment.parent
        if anew:
            member.placeholder = member.rank_fitness
            member.window, member.fitness = [], None
            member.diverged = member.lost = False
        if anew or self.rule.cut_episodes:
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
        whole = True
        if self.rule.source == "training":
            member.counted_steps += sum(
                length + 1 for length in line["lengths"]
            )  # and the step in which the env resets
            whole = member.counted_steps >= self.rule.share * (member.step - member.window_start_step)
            if whole or not self.rule.cut_episodes:
                member.window = [*member.window, *numbers(line["returns"])][-self.rule.window :]
        elif line["evaluation"]:  # of these weights; whoever was stopped had no time for it
            member.window = numbers(line["evaluation"])
        enough = whole and len(member.window) >= self.rule.min_episodes
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
        """What is lost is looked for anew.

        Where nobody survived, whoever resumes has mended the cause: all try again, from where each of them is.
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
