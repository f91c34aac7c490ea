"""A toy that says when it trains, for tests of what happens to a run in the middle of a slice."""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from pbtrl.trainables.quadratic import Quadratic


class Telling(Quadratic):
    """Toy that writes its process id to a named pipe after some steps, and continues; at most 10,000 steps a second."""

    max_steps_per_call = 10

    def __init__(self, rng: np.random.Generator, *, fifo: str, after: int) -> None:
        super().__init__(rng)
        self._fifo, self._left = fifo, after

    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        if 0 < self._left <= steps:
            with open(self._fifo, "w") as fifo:
                fifo.write(f"{os.getpid()}\n")
        self._left -= steps
        time.sleep(0.001)
        return super().train(steps, hyperparameters, rng)
