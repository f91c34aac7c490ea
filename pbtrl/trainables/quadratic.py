"""Toy problem of the PBT paper (Jaderberg et al. 2017, figure 2): training follows a surrogate of the fitness.

Fitness is Q(theta) = 1.2 - (theta_0^2 + theta_1^2); training ascends the gradient of a surrogate,
Q_hat(theta | h) = 1.2 - (h_0 theta_0^2 + h_1 theta_1^2), whose weights are the hyperparameters.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Trainable


class Quadratic(Trainable):
    """Two weights, trained by gradient ascent on Q_hat; a step is a gradient step.

    Args:
        rng: unused; all members have the same start.
        start: initial theta.
        learning_rate: learning rate of the gradient ascent.
        clamp: whether to use max(h, 0); with a negative h the ascent diverges.
        h0: weight of theta_0 in the surrogate.
        h1: weight of theta_1 in the surrogate.
    """

    tunable: ClassVar = ("h0", "h1")

    def __init__(
        self, rng: np.random.Generator, *, start: Sequence[float] = (0.9, 0.9), learning_rate: float = 0.01,
        clamp: bool = False, h0: float = 1.0, h1: float = 1.0,
    ) -> None:  # fmt: skip
        self._theta = np.array(start, np.float64)
        self._learning_rate = learning_rate
        self._clamp = clamp
        self._h = {"h0": h0, "h1": h1}

    @override
    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        """Take `steps` gradient steps with `h0` and `h1`; `rng` is unused."""
        h = np.array([hyperparameters.get(name, value) for name, value in self._h.items()], np.float64)
        if self._clamp:
            h = np.maximum(h, 0.0)
        for _ in range(steps):
            self._theta += self._learning_rate * -2.0 * h * self._theta
        (h0, h1), (first, second) = map(float, h), map(float, self._theta)
        return {"surrogate": 1.2 - (h0 * (first * first) + h1 * (second * second))}  # no BLAS: equal on any machine

    @override
    def evaluate(self, rng: np.random.Generator) -> float:
        """Return Q exactly."""
        first, second = map(float, self._theta)
        return 1.2 - (first * first + second * second)  # symmetric in the two weights, to the last bit

    @override
    def state_dict(self) -> Tensors:
        return {"theta": self._theta.copy()}

    @override
    def load_state_dict(self, state: Tensors) -> None:
        self._theta = state["theta"].copy()
