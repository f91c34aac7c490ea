"""Envs that stand still, for measuring what acting costs without them."""

from __future__ import annotations

import numpy as np
from typing_extensions import override

from pbtrl.envs import Vector
from pbtrl.envs.vector import Array, Bools, Floats


class StillVector(Vector):
    """Envs with the spaces of another vector that return the same observations at every step, no rewards and no ends.

    Args:
        vector: envs whose spaces these have.
        observations: observations that they return, [N, *observation].
    """

    def __init__(self, vector: Vector, observations: Array) -> None:
        self.single_observation_space = vector.single_observation_space
        self.single_action_space = vector.single_action_space
        self.num_envs, self._observations = vector.num_envs, observations
        self._rewards, self._no = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, np.bool_)
        self.episode_over = self.is_reset_step = self._no

    @override
    def reset(self) -> Array:
        return self._observations

    @override
    def step(self, actions: Array) -> tuple[Array, Floats, Bools, Bools]:
        return self._observations, self._rewards, self._no, self._no

    @override
    def close(self) -> None:
        pass
