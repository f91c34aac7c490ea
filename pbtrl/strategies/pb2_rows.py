"""PB2's data: rows of trained slices, kept up to date from the journal.

A slice in several parts, because it was stopped, is one row. It has none if a fitness is unknown, as before the first
slice, or if it is shorter than half a slice.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter, defaultdict
from itertools import islice

from pbtrl.core.dimensions import AGENT, Choice
from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.population import Population
from pbtrl.strategies.pb2_model import Model, Row, SliceStart, Time
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.time_varying_gp import Kernel


class SliceRows:
    """Latest rows of each agent, oldest first; a fold over the population's snapshots.

    Args:
        strategy: strategy whose rows these are.
        window: number of rows.
    """

    def __init__(self, strategy: PBT, window: int) -> None:
        self._strategy, self._window = strategy, window
        self._read = 0
        self._trained: dict[str, int] = {}  # steps of each snapshot's weights, those of its ancestors included
        self._begun: dict[str, tuple[int, str | None]] = {}  # start and parent of each slice that a stop interrupted
        self._latest: dict[object, list[tuple[float, str, Row]]] = defaultdict(list)
        self._count: Counter[object] = Counter()
        self._kernels: dict[object, Kernel] = {}
        self._basis: dict[object, list[Row]] = {}

    @classmethod
    def of(cls, strategy: PBT, window: int, population: Population) -> SliceRows:
        """Return the latest rows of the slices that the population has reported."""
        rows = population.folds.setdefault(strategy, cls(strategy, window))
        assert isinstance(rows, cls)
        rows._update(population)
        return rows

    def latest(self, agent: object) -> list[Row]:
        """Return the latest rows of an agent, in the order of time and member."""
        return [row for _, _, row in self._latest[agent]]

    def model(self, agent: object, time: Time, dimensions: int) -> Model:
        """Return the model of an agent's latest rows.

        In asynchronous mode its kernel is fitted again after as many rows as the population has members.
        """
        rows = self.latest(agent)
        if self._strategy.synchronous:
            return Model.of(rows, time, dimensions)
        if agent in self._basis:
            self._kernels[agent] = Model.of(self._basis.pop(agent), time, dimensions).kernel
        return Model.of(rows, time, dimensions, self._kernels.get(agent, Kernel()))

    def start(self, population: Population, parent: str | None, values: Hyperparameters) -> SliceStart:
        """Return the start of a slice from a snapshot, or from fresh weights."""
        space = self._strategy.space.of(values)
        numeric = ((name, dimension) for name, dimension in space.items() if not isinstance(dimension, Choice))
        position = tuple(dimension.to_unit(values[name]) for name, dimension in numeric)
        time = self._trained.get(parent or "", 0) / self._strategy.slice_steps
        return SliceStart(time, population.snapshot_fitness.get(parent or ""), position)

    def _update(self, population: Population) -> None:
        for name, origin in islice(population.snapshot_origin.items(), self._read, None):
            self._add(population, name, origin)
        self._read = len(population.snapshot_origin)

    def _add(self, population: Population, name: str, origin: Assignment) -> None:
        self._trained[name] = self._trained.get(origin.parent or "", 0) + origin.stop - origin.start
        begun = (origin.start, origin.parent)
        if origin.donor is None:
            begun = self._begun.get(origin.parent or "", begun)
        if origin.stop % self._strategy.slice_steps != 0:
            self._begun[name] = begun
        row = self._row(population, name, origin, *begun)
        if row is None:
            return
        agent = agent_of(origin)
        latest = self._latest[agent]
        insort(latest, (row.trial.time, name, row))
        del latest[: -self._window]
        self._count[agent] += 1
        if self._count[agent] % population.size == 0:
            self._basis[agent] = self.latest(agent)

    def _row(
        self, population: Population, name: str, origin: Assignment, start: int, source: str | None
    ) -> Row | None:  # fmt: skip
        slice_steps, horizon = self._strategy.slice_steps, self._strategy.horizon
        before, after = population.snapshot_fitness.get(source or ""), population.snapshot_fitness[name]
        steps = origin.stop - start
        if before is None or after is None or steps == 0:
            return None
        whole = (origin.stop % slice_steps == 0 or origin.stop == horizon) and 2 * steps >= slice_steps
        if not whole and after != -math.inf:
            return None
        trial = self.start(population, source, origin.hyperparameters)
        return Row(trial, after, (after - before) * slice_steps / steps)


def agent_of(a: Assignment) -> object:
    """Return the agent of an assignment's member; None in a population of one agent."""
    return a.hyperparameters.get(AGENT)
