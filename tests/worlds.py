"""Envs that a user might give as `tests.worlds:function`: for what no env of a library does."""

from __future__ import annotations

import os
from typing import Any

import gymnasium
from gymnasium.spaces import Box, Discrete, Tuple


def tuples() -> gymnasium.Env[Any, Any]:
    """Actions that come in pairs."""
    env = gymnasium.make("CartPole-v1")
    env.action_space = Tuple((Discrete(2), Discrete(2)))
    return env


def unbounded() -> gymnasium.Env[Any, Any]:
    """Actions as large as you like."""
    env = gymnasium.make("Pendulum-v1")
    env.action_space = Box(-float("inf"), float("inf"), (1,))
    return env


class Telling(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole that says at its nth step where it is, and then goes on, or waits for what never comes."""

    def __init__(self, fifo: str, after: int, *, hang: bool = False) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._fifo, self._left, self._hang = fifo, after, hang

    def step(self, action: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            with open(self._fifo, "w") as fifo:
                fifo.write(f"{os.getpid()}\n")
            if self._hang:
                os.read(os.pipe()[0], 1)  # the other end is open, and nobody writes
        return super().step(action)
