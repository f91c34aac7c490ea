"""Bandit whose best arm drifts, a toy for PB2: the best hyperparameter depends on how long the weights have trained.

With t the trained fraction of the duration, at most 1, the best `h` is 0.2 + 0.6 t. A step with another one gains less:

    score += (1 - ((h - 0.2 - 0.6 t) / width)^2) / duration

so the highest score after the whole duration is 1.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Trainable


class DriftingBandit(Trainable):
    """Score that `h` increases the faster, the closer it is to the drifting optimum; a step is one pull.

    Args:
        rng: unused; all members have the same start.
        duration: steps in which the optimum drifts from 0.2 to 0.8.
        width: distance from the optimum at which a step gains nothing.
        noise: standard deviation of the noise of an evaluation.
        h: arm that is pulled.
    """

    tunable: ClassVar = ("h",)

    def __init__(
        self, rng: np.random.Generator, *, duration: int = 200, width: float = 0.3, noise: float = 0.0, h: float = 0.5
    ) -> None:
        self._duration, self._width, self._noise, self._h = duration, width, noise, h
        self._steps, self._score = 0, 0.0

    @override
    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        """Take `steps` steps with `h`; `rng` is unused."""
        h = hyperparameters.get("h", self._h)
        for _ in range(steps):
            gap = (h - self.optimum) / self._width
            self._score += (1.0 - gap * gap) / self._duration
            self._steps += 1
        return {"optimum": self.optimum}

    @property
    def optimum(self) -> float:
        """Best `h` of the next step."""
        return 0.2 + 0.6 * min(1.0, self._steps / self._duration)

    @override
    def evaluate(self, rng: np.random.Generator) -> float:
        """Return the score, with noise."""
        return self._score + self._noise * float(rng.standard_normal())

    @override
    def state_dict(self) -> Tensors:
        return {"steps": np.array([self._steps]), "score": np.array([self._score])}

    @override
    def load_state_dict(self, state: Tensors) -> None:
        self._steps, self._score = int(state["steps"][0]), float(state["score"][0])
