"""Results of trials at rungs, read from the histories of members."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pbtrl.core.member import Member
from pbtrl.core.population import Population
from pbtrl.strategies.brackets import Bracket

WORST = -math.inf


@dataclass(frozen=True)
class Trial:
    """Position of a trial among the rungs.

    Attributes:
        results: fitness at each rung that the trial has completed, the lowest one first.
        ahead: the trial is on its way to the next rung.
    """

    member: Member
    results: tuple[float, ...]
    ahead: bool

    @property
    def paused(self) -> bool:
        """Whether the trial waits at a rung for its promotion."""
        return bool(self.results) and not self.ahead and self.member.healthy

    def broke_at(self, rung: int) -> bool:
        """Whether the trial diverged or was given up on its way to the rung of this index, and so fills its place."""
        return not self.member.healthy and len(self.results) == rung + 1


def started(population: Population) -> list[Member]:
    """Return the members that had an assignment, in the order of their ids."""
    return [m for m in population.members.values() if m.generation >= 0]


def trial(member: Member, rungs: Sequence[int], slice_steps: int) -> Trial:
    """Return the position of a member among the rungs.

    The result at a rung is the fitness of the first report at or after it. Without a fitness there, as with long
    episodes, the trial trains for one more slice, but no longer than the lowest rung; without one then, its result is
    the worst. A trial that diverged or was given up has the worst result at the rung that it was on its way to.
    """
    history = member.history[:-1] if member.diverged else member.history
    results: list[float] = []
    used = 0
    for rung in rungs:
        last = min(rung + retry_steps(rungs, slice_steps), rungs[-1])
        end = next(
            (
                i
                for i, (step, fitness) in enumerate(history[used:], used)
                if step >= last or (step >= rung and fitness is not None)
            ),
            None,
        )
        if end is None:
            break
        fitness = history[end][1]
        results.append(WORST if fitness is None else fitness)
        used = end + 1
    ahead = bool(member.pending) or len(history) > used or not results
    if not member.healthy:
        return Trial(member, (*results, WORST), ahead=False)
    return Trial(member, tuple(results), ahead)


def bracket_trials(
    population: Population, brackets: Iterable[Bracket], slice_steps: int
) -> Iterator[tuple[Bracket, list[Trial]]]:
    """Yield the brackets, which share out the trials in the order of their ids, with those that have begun."""
    members = iter(started(population))
    for bracket in brackets:
        own = itertools.islice(members, bracket.sizes[0])
        yield bracket, [trial(m, bracket.rungs, slice_steps) for m in own]


def retry_steps(rungs: Sequence[int], slice_steps: int) -> int:
    """Return how many env steps a trial without a fitness trains beyond a rung."""
    return min(slice_steps, rungs[0])


def target(trial: Trial, rungs: Sequence[int], slice_steps: int) -> int:
    """Return the step to which a trial trains next: the next rung, or the end of its retry beyond it."""
    rung, step = rungs[len(trial.results)], trial.member.step
    return rung if step < rung else min(rungs[-1], rung + retry_steps(rungs, slice_steps))


def ranked(trials: Iterable[Trial], rung: int) -> list[Trial]:
    """Return the trials that completed the rung of this index, best first.

    Equal ones stand in the order of their ids; those that broke on the way come last.
    """
    completed = [t for t in trials if len(t.results) > rung]
    return sorted(completed, key=lambda t: (t.broke_at(rung), -t.results[rung]))
