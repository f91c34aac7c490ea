"""PB2, population based bandits (Parker-Holder et al. 2020, arXiv 2002.02518).

PBT in which a model chooses the receiver's hyperparameters: a time-varying Gaussian process predicts from the time, the
fitness before a slice and its hyperparameters how much fitness the slice gains. The receiver gets the hyperparameters
with the highest upper confidence bound, given the donor's time and fitness. Choices are drawn at random.

Members of one agent of a mix have a model of their own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from typing_extensions import override

from pbtrl.core.dimensions import AGENT, Choice
from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.population import Population
from pbtrl.core.search_space import SearchSpace
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.rules import Explore
from pbtrl.strategies.time_varying_gp import Floats, Kernel, Process, UpperBound, beta, fit

Time = Literal["rounds", "normalized"]


class Trial(NamedTuple):
    """Hyperparameters under which weights train from some moment on.

    Attributes:
        time: clock of the weights at the start, in slices.
        fitness: fitness at the start; None if it is unknown.
        position: position of each numeric hyperparameter between its bounds.
    """

    time: float
    fitness: float | None
    position: tuple[float, ...]


class Row(NamedTuple):
    """Trained slice: its trial, the fitness after it, and the fitness gained per slice; -inf after a divergence."""

    trial: Trial
    after: float
    gain: float


@dataclass(frozen=True)
class Model:
    """Gaussian process of the gains of rows.

    Attributes:
        kernel: fitted kernel.
        points: points of the rows, scaled.
        targets: gains, standardized and clipped to [-2, 2].
        origin: time and fitness that are scaled to 0.
        unit: lengths of time and fitness that are scaled to 1.
        middle: fitness that replaces an unknown one.
    """

    kernel: Kernel
    points: Floats
    targets: Floats
    origin: tuple[float, float]
    unit: tuple[float, float]
    middle: float

    @staticmethod
    @lru_cache(maxsize=8)
    def of(rows: tuple[Row, ...], time: Time, dimensions: int) -> "Model":
        """Fit the model to rows; memoized."""
        times = [row.trial.time for row in rows] or [0.0]
        fitness = [x for row in rows for x in (row.trial.fitness, row.after) if x is not None and math.isfinite(x)]
        low, high = min(fitness, default=0.0), max(fitness, default=0.0)
        first, last = (min(times), max(times)) if time == "normalized" else (0.0, 1.0)
        model = Model(
            Kernel(),
            np.empty((0, 2 + dimensions)),
            _standardized(np.array([row.gain for row in rows], float)),
            (first, low),
            (last - first or 1.0, high - low or 1.0),
            sum(fitness) / len(fitness) if fitness else 0.0,
        )
        points = model.scaled([row.trial for row in rows])
        return replace(model, points=points, kernel=fit(points, model.targets))

    def scaled(self, trials: Sequence[Trial]) -> Floats:
        """Return trials as points, [n, 2 + d]: time, fitness and positions."""
        values = [(t.time, self.middle if t.fitness is None else t.fitness, *t.position) for t in trials]
        points = np.array(values, float).reshape(len(trials), self.points.shape[1])
        points[:, :2] = (points[:, :2] - self.origin) / self.unit
        return points

    def propose(
        self, now: Trial, tried: Sequence[Trial], spread: Literal["sd", "variance"], rng: np.random.Generator
    ) -> Floats:
        """Return the position with the highest upper confidence bound at the time and fitness of `now`.

        The spread is that after the gains of the open trials would be known, without noise: so proposals differ.
        """
        known = Process(self.kernel, self.points, self.targets)
        points = np.concatenate([self.points, self.scaled(tried)])
        widened = Process(self.kernel, points, np.zeros(len(points)), exact=len(tried))
        bound = UpperBound(known, widened, math.sqrt(beta(len(self.points))), spread)
        return bound.argmax(self.scaled([now])[0, :2], len(now.position), rng)


@dataclass(frozen=True, kw_only=True)
class PB2(PBT):
    """Strategy of population based bandits.

    Attributes:
        time: time counts in slices (`rounds`), so that correlation fades with every slice, or is scaled to [0, 1]
            (`normalized`) as in the authors' code, where it hardly fades.
        spread: the upper confidence bound adds the standard deviation (`sd`), as in the theory, or the `variance`, as
            in the authors' code.
        window: number of latest slices that the model is fitted to.
    """

    explore: Explore = field(default_factory=lambda: Explore(method="none"))
    time: Time = "rounds"
    spread: Literal["sd", "variance"] = "sd"
    window: int = 200

    @override
    def decide(self, population: Population) -> list[Assignment]:
        """Decide as PBT, with hyperparameters from the model for those that copy: one by one, in the order of ids."""
        decided = super().decide(population)
        open_now = [*population.pending, *(a for a in decided if a.donor is None)]
        assignments = []
        rows: dict[object, tuple[Row, ...]] = {}
        for a in decided:
            if a.donor is not None:
                if _agent(a) not in rows:
                    rows[_agent(a)] = tuple(self.rows(population, a))
                a = replace(a, hyperparameters=self._values(population, a, rows[_agent(a)], open_now))
                open_now.append(a)
            assignments.append(a)
        return assignments

    def _values(
        self, population: Population, a: Assignment, rows: tuple[Row, ...], open_now: Sequence[Assignment]
    ) -> Hyperparameters:
        """Return the receiver's hyperparameters, given the donor's and the other open assignments."""
        space = self.space.of(a.hyperparameters)
        numeric = [name for name, dimension in space.items() if not isinstance(dimension, Choice)]
        rng = population.rng(a.member, a.generation, "pb2")
        tried = [
            self._trial(population, space, b.parent, b.hyperparameters) for b in open_now if _agent(b) == _agent(a)
        ]
        now = self._trial(population, space, a.parent, a.hyperparameters)
        model = Model.of(rows, self.time, len(numeric))
        position = dict(zip(numeric, model.propose(now, tried, self.spread, rng), strict=True))
        values = dict(a.hyperparameters)
        for name, dimension in space.items():
            if isinstance(dimension, Choice):
                values[name] = dimension.sample(rng)
            else:
                values[name] = dimension.from_unit(float(position[name]))
        return values

    def rows(self, population: Population, a: Assignment) -> list[Row]:
        """Return the latest slices of members of the assignment's agent, oldest first.

        A slice in several parts, because it was stopped, is one row. It has none if a fitness is unknown, as before the
        first slice, or if it is shorter than half a slice.
        """
        begun: dict[str, tuple[int, str | None]] = {}
        known: list[tuple[float, str]] = []
        for name, origin in population.snapshot_origin.items():
            goes_on = origin.parent in begun and origin.donor is None and origin.start % self.slice_steps != 0
            begun[name] = begun[origin.parent or ""] if goes_on else (origin.start, origin.parent)
            if _agent(origin) == _agent(a) and self._is_row(population, name, *begun[name]):
                known.append((self._time(population, begun[name][1]), name))
        rows = []
        for _, name in sorted(known)[-self.window :]:
            (start, source), origin = begun[name], population.snapshot_origin[name]
            trial = self._trial(population, self.space.of(origin.hyperparameters), source, origin.hyperparameters)
            after = population.snapshot_fitness[name]
            assert trial.fitness is not None
            assert after is not None
            rows.append(Row(trial, after, (after - trial.fitness) * self.slice_steps / (origin.stop - start)))
        return rows

    def _is_row(self, population: Population, name: str, start: int, source: str | None) -> bool:
        stop, fitness = population.snapshot_origin[name].stop, population.snapshot_fitness
        before, after = fitness.get(source or ""), fitness[name]
        if before is None or after is None or stop == start:
            return False
        whole = stop % self.slice_steps == 0 or stop == self.horizon
        return after == -math.inf or (whole and 2 * (stop - start) >= self.slice_steps)

    def _trial(
        self, population: Population, space: SearchSpace, parent: str | None, values: Hyperparameters
    ) -> Trial:  # fmt: skip
        """Return the trial that begins with a snapshot, or with fresh weights."""
        fitness = population.snapshot_fitness.get(parent or "")
        numeric = ((name, dimension) for name, dimension in space.items() if not isinstance(dimension, Choice))
        position = tuple(dimension.to_unit(values[name]) for name, dimension in numeric)
        return Trial(self._time(population, parent), fitness, position)

    def _time(self, population: Population, snapshot: str | None) -> float:
        origin = population.snapshot_origin.get(snapshot or "")
        return 0.0 if origin is None else origin.stop / self.slice_steps


def _agent(a: Assignment) -> object:
    return a.hyperparameters.get(AGENT)


def _standardized(gains: Floats) -> Floats:
    """Scale to mean 0 and standard deviation 1, then clip to [-2, 2]; -inf becomes -2."""
    finite = gains[np.isfinite(gains)]
    if len(finite) == 0:
        return np.full(len(gains), -2.0)
    clipped: Floats = np.clip((gains - finite.mean()) / (finite.std() or 1.0), -2.0, 2.0)
    return clipped
