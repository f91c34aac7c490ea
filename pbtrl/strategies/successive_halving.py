"""Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943), and Hyperband as several brackets of it.

All trials of a bracket train to its lowest rung, the best 1/eta of them to the next one, and so on up to a trial's full
budget. A rung ends when all its trials have reported, whatever the number that trains at once. Brackets are independent
of each other: while one waits for the end of a rung, trials of the next one train.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from typing_extensions import override

from pbtrl.core.member import Member
from pbtrl.core.population import Population
from pbtrl.strategies.brackets import Bracket
from pbtrl.strategies.rungs import Trial, bracket_trials, ranked, started, target
from pbtrl.strategies.trials import TrialSearch, is_idle, unstarted


@dataclass(frozen=True, kw_only=True)
class SuccessiveHalving(TrialSearch):
    """Strategy of successive halving.

    Attributes:
        brackets: brackets, in the order of their trials' ids.
    """

    brackets: tuple[Bracket, ...]

    @override
    def wanted(self, population: Population) -> Iterator[tuple[Member, int]]:
        """Yield the trials of each bracket that have not completed its rung."""
        total = sum(bracket.sizes[0] for bracket in self.brackets)
        fresh = iter(unstarted(population, total - len(started(population))))
        for bracket, trials in bracket_trials(population, self.brackets, self.slice_steps):
            rung, alive = _stage(bracket, trials)
            for t in alive:
                if is_idle(t.member) and len(t.results) <= rung:
                    yield t.member, target(t, bracket.rungs, self.slice_steps)
            yield from ((m, bracket.rungs[0]) for m in itertools.islice(fresh, bracket.sizes[0] - len(trials)))

    @override
    def retired(self, population: Population) -> list[str]:
        """Return the trials that are below a cut, finished, diverged or were given up.

        A trial is below the cut of its rung as soon as enough others are better, before the rung ends.
        """
        names: list[str] = []
        for bracket, trials in bracket_trials(population, self.brackets, self.slice_steps):
            rung, alive = _stage(bracket, trials)
            kept = {t.member.id for t in alive if t.member.healthy and len(t.results) < len(bracket.rungs)}
            if rung + 1 < len(bracket.rungs):
                kept -= {t.member.id for t in ranked(alive, rung)[bracket.sizes[rung + 1] :]}
            names += [t.member.id for t in trials if t.member.id not in kept]
        return names


def _stage(bracket: Bracket, trials: list[Trial]) -> tuple[int, list[Trial]]:
    """Return the index of the rung that a bracket trains for, and the trials that do."""
    if len(trials) < bracket.sizes[0]:
        return 0, trials
    for rung, size in enumerate(bracket.sizes[1:]):
        if any(len(t.results) <= rung for t in trials):
            return rung, trials
        kept = {t.member.id for t in [t for t in ranked(trials, rung) if not t.broke_at(rung)][:size]}
        trials = [t for t in trials if t.member.id in kept]
    return len(bracket.sizes) - 1, trials
