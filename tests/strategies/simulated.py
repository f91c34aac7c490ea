"""Simulated runs of trainables in memory, without snapshots on disk, for tests of strategies on toys."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pbtrl.core.messages import Assignment, Report
from pbtrl.core.population import Population
from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Trainable
from pbtrl.storage.journal import Line, dumps
from pbtrl.strategies import Strategy
from pbtrl.trainables.sequential import SequentialCohort


@dataclass
class Simulation:
    """Result of a simulated run.

    Attributes:
        lines: decisions and reports, as in a journal.
        states: learned state by snapshot.
    """

    population: Population
    lines: list[Line] = field(default_factory=list)
    states: dict[str, Tensors] = field(default_factory=dict)

    def record(self, line: Line) -> None:
        parsed: Line = json.loads(dumps({**line, "timing": {"elapsed": 0.0, "time": 0.0}}))
        self.lines.append(parsed)
        self.population.record(parsed)


def simulate(
    strategy: Strategy, population: Population, make: Callable[[np.random.Generator], Trainable], interval: int, *,
    speeds: Mapping[str, float] | None = None,
) -> Simulation:  # fmt: skip
    """Run a strategy to its end; a slice of a member takes its steps divided by the member's speed, by default 1."""
    run, queue, now = Simulation(population), [], 0.0
    count = 0
    while True:
        population.free = population.size - len(population.pending)
        assignments = strategy.decide(population)
        retired = [m for m in strategy.retired(population) if not population.members[m].retired]
        if assignments or retired:
            bodies = [a.to_json() for a in assignments]
            run.record({"kind": "decision", "assignments": bodies, "free": population.free, "retired": retired})
        for a in assignments:
            seconds = (a.stop - a.start) / (speeds or {}).get(a.member, 1.0)
            heapq.heappush(queue, (now + seconds, count, a))
            count += 1
        if not queue:
            return run
        now, _, done = heapq.heappop(queue)
        run.record({"kind": "report", **_train(run, done, make, interval)})


def _train(
    run: Simulation, a: Assignment, make: Callable[[np.random.Generator], Trainable], interval: int
) -> dict[str, Any]:
    cohort = SequentialCohort([a.member], make, interval)
    if a.parent is None:
        cohort.init(0, a.seed)
    else:
        cohort.load(0, run.states[a.parent])
    cohort.begin([a])
    while not cohort.advance():
        pass
    outcome = cohort.outcome(0)
    run.states[a.id] = cohort.save(0)
    return Report(
        a.id, a.member, a.start + outcome.steps, outcome.hyperparameters,
        tuple(outcome.returns), tuple(outcome.lengths), tuple(outcome.evaluation), tuple(outcome.curve),
        diverged=outcome.diverged,
    ).to_json()  # fmt: skip
