"""Asynchronous successive halving, ASHA (Li et al. 2020, arXiv 1810.05934), in three forms.

`promote`, the paper's algorithm 2: a free place goes to the best trial that is in the top 1/eta of a rung and was not
promoted yet, from the top rung down; without one, to a new trial. The others pause with their snapshot. A trial may be
promoted early that later ones turn out to beat, so a few more than 1/eta may be promoted.

`delay`, that of Hyper-Tune (Li et al. 2022, arXiv 2201.06834): as `promote`, but only while the promoted ones are fewer
than 1/eta of the rung. The number of promotions, and so the steps of the run, are exact.

`stop`, the form of Ray and Optuna: a trial goes on if it is in the top 1/eta of those that have reached its rung so
far, else it is stopped for good. The first ones always go on, so the result depends on the order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from pbtrl.core.member import Member
from pbtrl.core.population import Population
from pbtrl.strategies.rungs import WORST, Trial, ranked, started, target, trial
from pbtrl.strategies.trials import TrialSearch, is_idle, unstarted

Form = Literal["promote", "delay", "stop"]


@dataclass(frozen=True, kw_only=True)
class ASHA(TrialSearch):
    """Strategy of ASHA.

    Attributes:
        count: number of trials.
        rungs: env steps of each rung, from the lowest one up; the top one is the horizon.
        eta: 1/eta of the trials of a rung go on.
        form: `promote`, `delay` or `stop`.
    """

    count: int
    rungs: tuple[int, ...]
    eta: int = 4
    form: Form = "promote"

    @override
    def wanted(self, population: Population) -> Iterator[tuple[Member, int]]:
        """Yield trials between two rungs, then those that go on from one, then new ones."""
        trials = self.trials(population)
        chosen = [t for t in trials if t.ahead and is_idle(t.member)]
        chosen += self._passing(trials)
        fresh = unstarted(population, self.count - len(trials))
        if self.form != "stop" and not (chosen or fresh or population.pending):
            chosen = self._last(trials)
        yield from ((t.member, target(t, self.rungs, self.slice_steps)) for t in chosen)
        yield from ((m, self.rungs[0]) for m in fresh)

    @override
    def retired(self, population: Population) -> list[str]:
        """Return the trials that are finished, diverged, given up, or stopped or never to be promoted."""
        trials = self.trials(population)
        over = [t for t in trials if not t.member.healthy or len(t.results) == len(self.rungs)]
        if self.form != "stop":
            over += self._hopeless(trials)
        elif not self.waits(population):
            over += self._stopped(trials)
        return [t.member.id for t in over]

    def trials(self, population: Population) -> list[Trial]:
        """Return all trials that have begun."""
        return [trial(m, self.rungs, self.slice_steps) for m in started(population)]

    def _passing(self, trials: list[Trial]) -> list[Trial]:
        """Return the trials at the top of their rung, from the top rung down (the paper's `get_job`).

        In the stopping form the best one of a rung always passes, so that the first one does.
        """
        least = 1 if self.form == "stop" else 0
        passing: list[Trial] = []
        for rung in range(len(self.rungs) - 2, -1, -1):
            completed = ranked(trials, rung)
            share = max(least, len(completed) // self.eta)
            waiting = [t for t in completed[:share] if _waits_at(t, rung)]
            promoted = sum(_is_beyond(t, rung) for t in completed)
            passing += waiting[: max(0, share - promoted)] if self.form == "delay" else waiting
        return passing

    def _last(self, trials: list[Trial]) -> list[Trial]:
        """Return the trial to promote when no rung is large enough, so that one reaches the horizon: the best one of
        the highest rung; none if one is there.
        """
        if any(t.member.healthy and len(t.results) == len(self.rungs) for t in trials):
            return []
        highest = range(len(self.rungs) - 2, -1, -1)
        return [t for rung in highest for t in ranked(trials, rung) if _waits_at(t, rung)][:1]

    def _hopeless(self, trials: list[Trial]) -> list[Trial]:
        """Return the paused trials that never go on.

        They are below the cut of their rung even if all that can come to it are worse. Or the form is `delay`, and
        1/eta of the rung have arrived at the next one.
        """
        result: list[Trial] = []
        for rung in range(len(self.rungs) - 1):
            completed = ranked(trials, rung)
            active = [t for t in trials if len(t.results) <= rung and t.member.healthy and not t.member.retired]
            most = len(completed) + len(active) + self.count - len(trials)
            share = max(1, most // self.eta)
            arrived = sum(len(t.results) > rung + 1 and t.results[rung + 1] != WORST for t in completed)
            spent = self.form == "delay" and arrived >= share
            result += [t for t in completed[0 if spent else share :] if _waits_at(t, rung)]
        return result

    def _stopped(self, trials: list[Trial]) -> list[Trial]:
        passing = {t.member.id for t in self._passing(trials)}
        paused = [t for t in trials if t.paused and len(t.results) < len(self.rungs)]
        return [t for t in paused if t.member.id not in passing]


def _waits_at(trial: Trial, rung: int) -> bool:
    """Return whether a trial is paused at the rung of this index, and may go on."""
    return trial.paused and len(trial.results) == rung + 1 and is_idle(trial.member)


def _is_beyond(trial: Trial, rung: int) -> bool:
    """Return whether a trial was promoted from the rung of this index."""
    return len(trial.results) > rung + 1 or (len(trial.results) == rung + 1 and trial.ahead)
