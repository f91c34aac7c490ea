"""Searches over trials: members that start with fresh weights, never copy each other, and come and go."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from typing_extensions import override

from pbtrl.core.member import Member
from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.population import Population
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.strategies import Strategy
from pbtrl.strategies.assigning import assign, next_stop
from pbtrl.strategies.rungs import started


class Proposer(Protocol):
    """Source of the hyperparameters of new trials."""

    def __call__(self, population: Population, member: Member, proposed: Sequence[Hyperparameters]) -> Hyperparameters:
        """Return the hyperparameters of a new trial; `proposed` are those of the decision's other new trials so far."""


@dataclass(frozen=True)
class Prior:
    """Independent draws from the prior, the same as those of PBT's initial members."""

    space: SearchSpace | MixedSearchSpace

    def __call__(self, population: Population, member: Member, proposed: Sequence[Hyperparameters]) -> Hyperparameters:
        """Draw from the prior."""
        return space_of(self.space, population, member).sample(population.rng(member.id, 0, "prior"))


@dataclass(frozen=True, kw_only=True)
class TrialSearch(Strategy):
    """Base of searches over trials.

    Attributes:
        propose: source of the hyperparameters of new trials.
        slice_steps: env steps of a trial between two reports.
        horizon: budget of a trial (env steps).
        synchronous: decide only when no trial is training. Decisions then do not depend on the order of reports.
    """

    propose: Proposer
    slice_steps: int
    horizon: int
    synchronous: bool = False

    @override
    def decide(self, population: Population) -> list[Assignment]:
        """Return assignments for the first wanted trials, as many as may start."""
        if self.waits(population):
            return []
        assignments: list[Assignment] = []
        proposed: list[Hyperparameters] = []
        for member, target in itertools.islice(self.wanted(population), population.free):
            values, note = member.hyperparameters, ""
            if member.generation < 0:
                values, note = self.propose(population, member, proposed), "initial"
                proposed.append(values)
            stop = next_stop(member.step, self.slice_steps, target)
            assignments.append(assign(population, member, member.snapshot, values, stop, note=note))
        return assignments

    def waits(self, population: Population) -> bool:
        """Return whether decisions wait for the trials that are training."""
        return self.synchronous and bool(population.pending)

    def wanted(self, population: Population) -> Iterator[tuple[Member, int]]:
        """Yield the trials that should train next, the most important one first, and the step that each trains to."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class IndependentTrials(TrialSearch):
    """Trials that all train to the horizon.

    Attributes:
        count: number of trials; by default one per member of the population.
    """

    count: int | None = None

    @override
    def wanted(self, population: Population) -> Iterator[tuple[Member, int]]:
        """Yield trials that have begun, then new ones."""
        trials = started(population)
        yield from ((m, self.horizon) for m in trials if is_idle(m) and m.step < self.horizon)
        count = population.size if self.count is None else self.count
        yield from ((m, self.horizon) for m in unstarted(population, count - len(trials)))

    @override
    def retired(self, population: Population) -> list[str]:
        """Return the trials that diverged, were given up or are finished.

        Without `count`, members stay when they are finished: a longer budget lets them continue.
        """
        trials = [m for m in started(population) if not m.pending]
        return [m.id for m in trials if not m.healthy or (self.count is not None and m.step >= self.horizon)]


def is_idle(member: Member) -> bool:
    """Return whether a member may get an assignment."""
    return member.healthy and not member.pending and not member.retired


def unstarted(population: Population, missing: int) -> list[Member]:
    """Return the next members without any assignment: `missing` of them, or as many as may start now."""
    return population.unstarted(max(0, min(missing, population.free)))


def space_of(space: SearchSpace | MixedSearchSpace, population: Population, member: Member) -> SearchSpace:
    """Return the search space of a new trial. In a mixed population the agents of the mix repeat."""
    return space.initial_space(member.place % population.size)
