"""Toy of searches over trials: fitness is a hidden quality of the hyperparameters, the same after any number of steps.

Every numeric hyperparameter x has a hidden optimum t in [0, 1), drawn from its name; the quality is the mean of
1 - |x - t|. Any other value has a hidden quality in [0, 1) of its own.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from typing_extensions import override

from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Trainable
from pbtrl.system.strict_json import to_json


class Constant(Trainable):
    """Trainable that only counts its steps.

    Args:
        rng: unused.
        seed: seed of the hidden qualities and of the noise.
        noise: standard deviation of a normal error of the fitness, drawn from the hyperparameters alone: the same ones
            have the same fitness in every trial.
    """

    def __init__(self, rng: np.random.Generator, *, seed: int = 0, noise: float = 0.0) -> None:
        self._seed, self._noise = seed, noise
        self._steps, self._fitness = 0, 0.0

    @override
    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        """Count the steps; `rng` is unused."""
        self._steps += steps
        self._fitness = hidden = quality(hyperparameters, self._seed)
        if self._noise:
            self._fitness += self._noise * float(_hidden(self._seed, hyperparameters).standard_normal())
        return {"quality": hidden}

    @override
    def evaluate(self, rng: np.random.Generator) -> float:
        """Return the quality of the hyperparameters of the last step, with its noise."""
        return self._fitness

    @override
    def state_dict(self) -> Tensors:
        return {"steps": np.array([self._steps]), "fitness": np.array([self._fitness])}

    @override
    def load_state_dict(self, state: Tensors) -> None:
        self._steps, self._fitness = int(state["steps"][0]), float(state["fitness"][0])


def quality(hyperparameters: Mapping[str, Any], seed: int = 0) -> float:
    """Return the quality of hyperparameters, at most 1."""
    parts = []
    for name, value in hyperparameters.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            parts.append(1.0 - abs(value - float(_hidden(seed, name).random())))
        else:
            parts.append(float(_hidden(seed, [name, value]).random()))
    return sum(parts) / len(parts) if parts else 0.0


def _hidden(seed: int, what: object) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(to_json(what, sort_keys=True).encode())])
