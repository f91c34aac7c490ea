"""Curves of a whole run against the steps of all its members and against time, without the maximum of noise.

The best training fitness is the largest of many noisy numbers and therefore too high. The curve of the best member
avoids that: at each decision the ranking names a member, and the score is the mean of the episodes in that member's
*next* report, which the ranking had not seen. It stands where that report came in. The last point is the final
score.

    decision   m00 1.2   m01 3.0   m02 2.0      m01 ranks best
    reports    m00 1.5   m01 2.4   m02 2.6      2.4 is the point; 3.0 is not
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from pbtrl.core.member import Member
from pbtrl.core.messages import Report, numbers
from pbtrl.core.population import FitnessRule, Population, mean
from pbtrl.core.records import Decision, Record, ReportRecord
from pbtrl.storage.run_header import RunHeader


@dataclass
class RunCurve:
    """Step curve: each value holds until the next point.

    Attributes:
        steps: steps of the whole run at each point, all members together.
        seconds: seconds since the run's start, without the time between its sessions.
        values: finite values.
    """

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, steps: int, seconds: float, value: float | None) -> None:
        """Append a point, unless its value is absent or not finite; it replaces one at the same number of steps."""
        if value is None or not math.isfinite(value):
            return
        if self.steps and self.steps[-1] == steps:
            del self.steps[-1], self.seconds[-1], self.values[-1]
        self.steps.append(steps)
        self.seconds.append(seconds)
        self.values.append(value)

    def at(self, x: float, axis: str = "steps") -> float:
        """Value at a number of steps or `seconds`; NaN before the first point."""
        place = bisect.bisect_right(getattr(self, axis), x) - 1
        return self.values[place] if place >= 0 else math.nan

    def steps_to(self, value: float) -> float:
        """Steps of the run at the first point that reaches a value; infinity if none does."""
        return next((float(s) for s, v in zip(self.steps, self.values, strict=True) if v >= value), math.inf)


@dataclass(frozen=True)
class RunCurves:
    """Curves of a run.

    Attributes:
        best: the best member's re-evaluated score.
        median: median of what ranks the members: their fitness or, just after a copy, the one from before. Members that
            retired count with their last fitness, diverged ones as minus infinity, evaluators not at all.
        final_median: the median at the end; None if there is none, as where most members diverged.
    """

    best: RunCurve
    median: RunCurve
    final_median: float | None = None


def run_curves(
    header: RunHeader, records: Sequence[Record], means: Mapping[str, float | None], score: float | None
) -> RunCurves:
    """Compute the curves of a run.

    Args:
        header, records: the run's journal.
        means: scores of the final choice by member; empty before it.
        score: the run's final score, None if it has no valid one.
    """
    curves, population = RunCurves(RunCurve(), RunCurve()), header.population()
    last_report = {r.report.member: i for i, r in enumerate(records) if isinstance(r, ReportRecord)}
    ranked: dict[str, int] = {}  # number of the last decision at which a member ranked best, until it reports
    newest = 0  # number of the decision whose point is the newest
    seconds = 0.0
    for i, record in enumerate(records):
        if isinstance(record, ReportRecord):
            member = population.members[record.report.member]
            start = member.step
            population.record(record)
            seconds = record.elapsed
            if member.id in ranked and (episodes := _new_episodes(record.report, start, header.rule)):
                number = ranked.pop(member.id)
                if number > newest:
                    newest = number
                    curves.best.add(population.step, seconds, mean(episodes))
        elif isinstance(record, Decision):
            curves.median.add(population.step, record.elapsed, _median(population))
            population.record(record)
            for name in [m for m in ranked if population.members[m].copied_at == population.decisions]:
                del ranked[name]
            if (leader := population.best) is None:
                continue
            if last_report.get(leader.id, -1) > i:
                ranked[leader.id] = population.decisions
            elif leader.id in means:  # it has finished: its score is known from the final choice
                newest = population.decisions
                curves.best.add(population.step, record.elapsed, means[leader.id])
        else:
            population.record(record)
    final = _median(population)
    curves.median.add(population.step, seconds, final)
    curves.best.add(population.step, seconds, score)
    return replace(curves, final_median=final if final is not None and math.isfinite(final) else None)


def _new_episodes(report: Report, start: int, rule: FitnessRule) -> list[float]:
    """Episodes of a report by which it may be judged; none if they cover too little of the slice, as for a fitness."""
    if rule.source != "training":
        return numbers(report.evaluation)
    representative = rule.is_representative(report.finished_steps, report.step - start)
    return numbers(report.returns) if representative else []


def _median(population: Population) -> float | None:
    known = [_standing(m) for m in population.members.values() if not m.is_evaluator]
    return statistics.median(finite) if (finite := [k for k in known if k is not None]) else None


def _standing(member: Member) -> float | None:
    return -math.inf if member.diverged else member.rank_fitness
