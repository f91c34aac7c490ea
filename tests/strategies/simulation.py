"""Whole runs of a strategy in this process, without files: `play` with any world, `simulate` with trainables.

`simulate` gives members speeds and curves, and keeps the journal's lines.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pbtrl.core.messages import Assignment, Report
from pbtrl.core.population import Population
from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Trainable
from pbtrl.storage.journal import Line, dumps
from pbtrl.storage.parsing import parse_record
from pbtrl.strategies import Strategy
from pbtrl.testing.fakes import trained
from pbtrl.trainables.sequential import SequentialCohort
from tests.fakes import answer, decision

World = Callable[[Assignment], float]
"""Trains one slice; returns its fitness."""


def play(
    strategy: Strategy, population: Population, world: World, order: np.random.Generator | None = None
) -> Iterator[list[Assignment]]:
    """Play a run to its end and yield every decision before it is recorded.

    Assignments are answered in the order of their decision, or, with `order`, one at a time at random.
    """
    pending: list[Assignment] = []
    while True:
        population.free = population.size - len(population.pending)
        if assignments := strategy.decide(population):
            yield assignments
            population.record(decision(*assignments))
            pending += assignments
        if not pending:
            return
        a = pending.pop(0 if order is None else int(order.integers(len(pending))))
        population.record(answer(trained(a, world(a))))


class TrainableWorld:
    """World of trainables; `states` holds the state of each snapshot."""

    def __init__(self, make: Callable[[np.random.Generator], Trainable]) -> None:
        self.make = make
        self.states: dict[str, Any] = {}

    def __call__(self, a: Assignment) -> float:
        rng = np.random.default_rng(a.seed)
        trainable = self.make(rng)
        if a.parent:
            trainable.load_state_dict(self.states[a.parent])
        trainable.train(a.stop - a.start, a.hyperparameters, rng)
        self.states[a.id] = trainable.state_dict()
        return trainable.evaluate(rng)


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
        self.population.record(parse_record(parsed, "line"))


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
