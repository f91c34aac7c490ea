"""Whole runs of a strategy in this process, without files: its decisions, and a world that answers them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pbtrl.core.messages import Assignment
from pbtrl.core.population import Population
from pbtrl.core.trainable import Trainable
from pbtrl.strategies import Strategy
from pbtrl.testing.fakes import trained
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
