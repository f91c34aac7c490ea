"""PB2's model: a Gaussian process of the fitness that a slice gains, given its time, fitness and hyperparameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from pbtrl.strategies.results import standard_deviation
from pbtrl.strategies.time_varying_gp import Floats, GaussianProcess, Kernel, UpperBound, beta, fit

Time = Literal["rounds", "normalized"]


class SliceStart(NamedTuple):
    """Hyperparameters under which weights train from some moment on.

    Attributes:
        time: steps that the weights have trained before, in slices; a copy has those of its donor.
        fitness: fitness at the start; None if it is unknown.
        position: position of each numeric hyperparameter between its bounds.
    """

    time: float
    fitness: float | None
    position: tuple[float, ...]


class Row(NamedTuple):
    """Trained slice: its trial, the fitness after it, and the fitness gained per slice; -inf after a divergence."""

    trial: SliceStart
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
    def of(rows: Sequence[Row], time: Time, dimensions: int, kernel: Kernel | None = None) -> Model:
        """Condition the model on rows; without a kernel it is fitted to them."""
        times = [row.trial.time for row in rows] or [0.0]
        fitness = [x for row in rows for x in (row.trial.fitness, row.after) if x is not None and math.isfinite(x)]
        low, high = min(fitness, default=0.0), max(fitness, default=0.0)
        first, last = (min(times), max(times)) if time == "normalized" else (0.0, 1.0)
        model = Model(
            kernel or Kernel(),
            np.empty((0, 2 + dimensions)),
            _standardized(np.array([row.gain for row in rows], float)),
            (first, low),
            (last - first or 1.0, high - low or 1.0),
            sum(fitness) / len(fitness) if fitness else 0.0,
        )
        points = model.scaled([row.trial for row in rows])
        return replace(model, points=points, kernel=kernel or fit(points, model.targets))

    def scaled(self, trials: Sequence[SliceStart]) -> Floats:
        """Return trials as points, [n, 2 + d]: time, fitness and positions."""
        values = [(t.time, self.middle if t.fitness is None else t.fitness, *t.position) for t in trials]
        points = np.array(values, float).reshape(len(trials), self.points.shape[1])
        points[:, :2] = (points[:, :2] - self.origin) / self.unit
        return points

    def propose(
        self, now: SliceStart, tried: Sequence[SliceStart], spread: Literal["sd", "variance"], rng: np.random.Generator
    ) -> Floats:
        """Return the position with the highest upper confidence bound at the time and fitness of `now`.

        The spread is that after the gains of the open trials would be known, without noise: so proposals differ.
        """
        process = GaussianProcess(self.kernel, self.points, self.targets, self.scaled(tried))
        bound = UpperBound(process, math.sqrt(beta(len(self.points))), spread)
        return bound.argmax(self.scaled([now])[0, :2], len(now.position), rng)


def _standardized(gains: Floats) -> Floats:
    """Scale to mean 0 and standard deviation 1, then clip to [-2, 2]; -inf becomes -2."""
    finite = gains[np.isfinite(gains)]
    if len(finite) == 0:
        return np.full(len(gains), -2.0)
    clipped: Floats = np.clip((gains - finite.mean()) / (standard_deviation(finite) or 1.0), -2.0, 2.0)
    return clipped
