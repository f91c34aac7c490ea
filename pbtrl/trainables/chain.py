"""Toy problem whose hyperparameters depend on each other in a chain: the best value of each is set by the one before.

The fitness is that of the hyperparameters alone, so one step of training is enough. It tells searches that model the
dependence from those that draw each hyperparameter independently.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from typing_extensions import override

from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Trainable

WIDTH = 0.12


def chain(values: list[float]) -> float:
    """Return the mean over i of exp(-((l_{i+1} - |1 - 2 l_i|) / 0.12)^2), for at least two values in [0, 1]."""
    if len(values) < 2:
        raise ValueError(f"a chain needs at least 2 hyperparameters, not {len(values)}")
    return sum(math.exp(-(((b - abs(1 - 2 * a)) / WIDTH) ** 2)) for a, b in pairwise(values)) / (len(values) - 1)


class Chain(Trainable):
    """Fitness of the hyperparameters of the last step, in the order of the config.

    Args:
        rng: unused; all members have the same start.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._fitness, self._steps = 0.0, 0

    @override
    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        """Keep the fitness of the hyperparameters and count `steps`; `rng` is unused."""
        self._steps += steps
        self._fitness = chain([float(value) for value in hyperparameters.values()])
        return {}

    @override
    def evaluate(self, rng: np.random.Generator) -> float:
        return self._fitness

    @override
    def state_dict(self) -> Tensors:
        return {"fitness": np.array([self._fitness]), "steps": np.array([self._steps])}

    @override
    def load_state_dict(self, state: Tensors) -> None:
        self._fitness, self._steps = float(state["fitness"][0]), int(state["steps"][0])
