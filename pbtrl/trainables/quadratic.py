"""The PBT paper's toy (Jaderberg et al. 2017, figure 2): what the gradient sees is not what counts.

Fitness is Q(theta) = 1.2 - (theta_0^2 + theta_1^2); training ascends the gradient of a surrogate,
Q_hat(theta | h) = 1.2 - (h_0 theta_0^2 + h_1 theta_1^2), whose weights are the hyperparameters.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pbtrl.core.tensors import Tensors


class Quadratic:
    """Two weights under gradient ascent on Q_hat. A step is a gradient step.

    Args:
        rng: unused; the start is the same for all.
        start: theta before the first step.
        learning_rate: of the gradient ascent.
        clamp: use max(h, 0); under a negative h the ascent diverges.
    """

    def __init__(
        self, rng: np.random.Generator, *, start: Sequence[float] = (0.9, 0.9), learning_rate: float = 0.01,
        clamp: bool = False,
    ) -> None:  # fmt: skip
        self._theta = np.array(start, np.float64)
        self._learning_rate = learning_rate
        self._clamp = clamp

    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        """`steps` gradient steps under `h0` and `h1`; draws nothing from `rng`."""
        h = np.array([hyperparameters["h0"], hyperparameters["h1"]], np.float64)
        if self._clamp:
            h = np.maximum(h, 0.0)
        for _ in range(steps):
            self._theta += self._learning_rate * -2.0 * h * self._theta
        (h0, h1), (first, second) = map(float, h), map(float, self._theta)
        return {"surrogate": 1.2 - (h0 * (first * first) + h1 * (second * second))}  # no BLAS: equal on any machine

    def evaluate(self, rng: np.random.Generator) -> float:
        """Q, exactly."""
        first, second = map(float, self._theta)
        return 1.2 - (first * first + second * second)  # symmetric in the two, to the last bit

    def state_dict(self) -> Tensors:
        """The two weights."""
        return {"theta": self._theta.copy()}

    def load_state_dict(self, state: Tensors) -> None:
        """Take over the two weights."""
        self._theta = state["theta"].copy()
