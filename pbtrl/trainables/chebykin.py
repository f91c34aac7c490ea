"""Toy problem in which greedy schedules fail (Chebykin et al. 2025, "To Be Greedy, or Not to Be", section 5.2).

The progress of a step falls with the distance d of the schedule so far from a linear decay. Per slice of 20 steps
under h, d grows by |h - (T - 20 i) / T|; a step is theta <- theta - 0.001 * 2 max(2 - h - 0.2 d, 0) theta. Fitness is
Q = 1.2 - theta^2. A small h pays at once, but only a linear decay from 1 to 0 is optimal, with Q = 1.198.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from typing_extensions import override

from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Trainable

SLICE = 20  # steps after which the schedule is compared with the linear decay


class Chebykin(Trainable):
    """One weight; a step is a gradient step under the hyperparameter `h`.

    Args:
        rng: unused; all members have the same start.
        horizon: T, the number of steps of the linear decay.
        h: the hyperparameter.
    """

    tunable: ClassVar = ("h",)

    def __init__(self, rng: np.random.Generator, *, horizon: int = 1000, h: float = 1.0) -> None:
        self._horizon, self._h = horizon, h
        self._theta, self._distance, self._steps = 0.9, 0.0, 0

    @override
    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        """Take `steps` steps with `h`; `rng` is unused."""
        h = float(hyperparameters.get("h", self._h))
        for _ in range(steps):
            if self._steps % SLICE == 0:
                self._distance += abs(h - (self._horizon - self._steps) / self._horizon)
            self._theta -= 0.001 * 2.0 * max(2.0 - h - 0.2 * self._distance, 0.0) * self._theta
            self._steps += 1
        return {"distance": self._distance}

    @override
    def evaluate(self, rng: np.random.Generator) -> float:
        """Return Q exactly."""
        return 1.2 - self._theta * self._theta

    @override
    def state_dict(self) -> Tensors:
        return {"theta": np.array([self._theta, self._distance]), "steps": np.array([self._steps], np.int64)}

    @override
    def load_state_dict(self, state: Tensors) -> None:
        self._theta, self._distance = map(float, state["theta"])
        self._steps = int(state["steps"][0])
