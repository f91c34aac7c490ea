"""Toy problem with a short-horizon bias (after Wu et al. 2018, arXiv 1803.02021): SGD with noise on a quadratic.

The mean m and variance v of each weight under SGD with learning rate h are exact: m <- (1 - h lambda) m and
v <- (1 - h lambda)^2 v + (h lambda sigma)^2, with sigma = 1. Fitness is Q = -log10(1/2 sum lambda (m^2 + v)), 0 at the
start. A small h pays at once, because it lowers the noise floor. A large h pays later, because the flat direction needs
it. So a greedy choice of h at every step is far below the best schedule.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Trainable


class NoisyQuadratic(Trainable):
    """Two weights with their mean and variance; a step is an SGD step with `learning_rate`.

    Args:
        rng: unused; all members have the same start.
        curvatures: lambda of each weight.
        start: initial mean of each weight; the initial variance is 0.
        evaluation_noise: standard deviation of the noise on every evaluated Q.
        learning_rate: h.
    """

    tunable: ClassVar = ("learning_rate",)

    def __init__(
        self, rng: np.random.Generator, *, curvatures: Sequence[float] = (1.0, 0.01),
        start: Sequence[float] = (1.0, 10.0), evaluation_noise: float = 0.02, learning_rate: float = 0.1,
    ) -> None:  # fmt: skip
        self._curvatures = [float(curvature) for curvature in curvatures]
        self._mean = [float(mean) for mean in start]
        self._variance = [0.0 for _ in start]
        self._noise, self._h = evaluation_noise, learning_rate

    @override
    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        """Take `steps` SGD steps with `learning_rate`; `rng` is unused, because the moments are exact."""
        h = float(hyperparameters.get("learning_rate", self._h))
        for i, curvature in enumerate(self._curvatures):
            shrink, noise = 1.0 - h * curvature, h * curvature
            mean, variance = self._mean[i], self._variance[i]
            for _ in range(steps):
                mean *= shrink
                variance = shrink * shrink * variance + noise * noise
            self._mean[i], self._variance[i] = mean, variance
        return {"loss": self._loss()}

    @override
    def evaluate(self, rng: np.random.Generator) -> float:
        """Return Q plus noise; NaN after a divergence."""
        loss = self._loss()
        if not 0.0 < loss < math.inf:
            return math.nan
        return -math.log10(loss) + self._noise * float(rng.standard_normal())

    @override
    def state_dict(self) -> Tensors:
        return {"mean": np.array(self._mean), "variance": np.array(self._variance)}

    @override
    def load_state_dict(self, state: Tensors) -> None:
        self._mean, self._variance = state["mean"].tolist(), state["variance"].tolist()

    def _loss(self) -> float:
        moments = zip(self._curvatures, self._mean, self._variance, strict=True)
        return 0.5 * sum(curvature * (mean * mean + variance) for curvature, mean, variance in moments)
