"""Envs that play from a script, and an agent that only counts."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from pbtrl.agents.types import ActOutput, Inputs
from pbtrl.envs.vector import Spaces, Vector

SPACES = Spaces(Box(0.0, np.inf, (2,), np.float32), Discrete(1000))


class ScriptedPool:
    """Env j plays episodes of `lengths[j]` steps with reward 10 (j + 1); its observation is [j, steps so far].

    Attributes:
        actions: the actions of every step.
    """

    def __init__(self, lengths: Sequence[int], truncated: Sequence[int] = ()) -> None:
        self.lengths, self.truncated = np.array(lengths), np.isin(np.arange(len(lengths)), truncated)
        self.t = np.zeros(len(lengths), np.int64)
        self.actions: list[np.ndarray] = []

    def reset(self, seed: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.t[:] = 0
        return self.seen(), {}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        self.actions.append(actions.copy())
        dead = self.t == self.lengths
        self.t = np.where(dead, 0, self.t + 1)
        over, rewards = self.t == self.lengths, np.where(dead, 0.0, 10.0 * (np.arange(len(dead)) + 1))
        return self.seen(), rewards, over & ~self.truncated, over & self.truncated, {}

    def seen(self) -> np.ndarray:
        return np.stack([np.arange(len(self.t)), self.t], 1).astype(np.float32)

    def close(self) -> None:
        pass


class Lives(Vector):
    """A life is lost with every second step of an episode: terminated, but the episode continues."""

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        obs, rewards, terminated, truncated = super().step(actions)
        return obs, rewards, terminated | (obs[:, 1] == 2), truncated


class CountingAgent:
    """Agent whose actions are its noise 0, 1, 2, ... and whose policy parameters are the observations."""

    def __init__(self, actions: int = 1000) -> None:
        self.actions = actions

    def init(self, generators: Sequence[Any]) -> Any:
        return SimpleNamespace(tensors={})

    def noise(self, generators: Sequence[Any], time: int, envs: int) -> torch.Tensor:
        return torch.arange(time * len(generators) * envs).view(time, len(generators), envs) % self.actions

    def begin(self, members: int, envs: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((members, envs), -1), torch.zeros(members, envs, 1)

    def act(self, state: Any, inputs: Inputs, memory: torch.Tensor, noise: Any) -> ActOutput:
        """Its memory counts the steps of the episode."""
        memory = memory.masked_fill(inputs.first[..., None], 0.0) + 1
        return ActOutput(noise, inputs.observations.flatten(2).float().clone(), memory)


def scripted_envs(lengths: Sequence[int], truncated: Sequence[int] = (), kind: type[Vector] = Vector) -> Vector:
    """One env per length."""
    return kind(ScriptedPool(lengths, truncated), SPACES, range(len(lengths)), "scripted")
