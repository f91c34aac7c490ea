"""User envs `tests.faulty_envs:NAME` that hang, raise, kill their process or signal the test."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, Tuple

from pbtrl.system import isolated_call


def cart() -> gymnasium.Env[Any, Any]:
    """CartPole."""
    return gymnasium.make("CartPole-v1")


def tuples() -> gymnasium.Env[Any, Any]:
    """CartPole with a Tuple action space."""
    env = gymnasium.make("CartPole-v1")
    env.action_space = Tuple((Discrete(2), Discrete(2)))
    return env


def unbounded() -> gymnasium.Env[Any, Any]:
    """Pendulum with an unbounded action space."""
    env = gymnasium.make("Pendulum-v1")
    env.action_space = Box(-float("inf"), float("inf"), (1,))
    return env


class Telling(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole that writes its process id to a named pipe at its nth step, and then continues or hangs."""

    def __init__(self, fifo: str, after: int, *, hang: bool = False) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._fifo, self._left, self._hang = fifo, after, hang

    def step(self, action: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            with open(self._fifo, "w") as fifo:
                fifo.write(f"{os.getpid()}\n")
            if self._hang:
                os.read(os.pipe()[0], 1)  # the other end is open, so this never returns
        return super().step(action)


class Detour(gymnasium.Env[Any, Any]):
    """Action 0 pays 0.3 and ends the episode; action 1 leads to a state where action 1 pays 1 and action 0 costs 1.

    A policy that has learned the second state gets 1 there. A uniform policy gets 0, so 0.3 is better for it.
    """

    observation_space = Box(0.0, 1.0, (2,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._there = False
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        there, self._there = self._there, True
        reward = (1.0 if action else -1.0) if there else 0.0 if action else 0.3
        return self._seen(), reward, there or not action, False, {}

    def _seen(self) -> Any:
        return np.array([not self._there, self._there], np.float32)


class Endless(gymnasium.Env[Any, Any]):
    """Episodes never end, and no limit is registered; the nth step of an env writes to `fifo`."""

    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, fifo: str | None = None, after: int = 50) -> None:
        self._fifo, self._left = fifo, after

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._left -= 1
        if self._left == 0 and self._fifo:
            Path(self._fifo).write_text("here")
        return np.zeros(2, np.float32), 1.0, False, False, {}


class Fatal(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole in which one step of one env fails as `how` says, once: the file `marker` then exists."""

    def __init__(self, marker: str, after: int, how: str = "hang") -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._marker, self._left, self._how = Path(marker), after, how
        if how == "never made":
            self._hang_once()

    def close(self) -> None:
        super().close()
        if self._how == "never closed":
            self._hang_once()

    def _hang_once(self) -> None:
        if multiprocessing.parent_process() and not self._marker.exists():
            self._marker.touch()
            self._how = "hang"
            self._go_wrong()

    def step(self, action: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._marker.exists():
            self._marker.touch()
            self._go_wrong()
        return super().step(action)

    def _go_wrong(self) -> None:
        match self._how:
            case "hang":
                os.read(os.pipe()[0], 1)  # the other end is open, so this never returns
            case "abort":
                os.abort()
            case "exit":
                sys.exit(0)
            case "memory":
                soft, hard = resource.getrlimit(resource.RLIMIT_AS)
                resource.setrlimit(resource.RLIMIT_AS, (1, hard))
                try:
                    bytearray(2**30)
                finally:
                    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Poisoned(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole; the first env that reaches its nth step creates `marker` and pays huge rewards for some steps."""

    def __init__(self, marker: str, after: int, steps: int) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._marker, self._left, self._steps = Path(marker), after, steps
        self._poisoned = False

    def step(self, action: Any) -> Any:
        seen, reward, terminated, truncated, info = super().step(action)
        self._left -= 1
        if self._left == 0 and not self._marker.exists():
            self._marker.touch()
            self._poisoned = True
        if self._poisoned and self._left > -self._steps:
            reward = 3e38  # finite, but its square is not
        return seen, reward, terminated, truncated, info


class Helped(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole with a helper process, whose id it appends to a file, and which `close` terminates."""

    def __init__(self, pids: str) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._helper = subprocess.Popen(["sleep", "987654"])
        with Path(pids).open("a") as file:
            file.write(f"{self._helper.pid}\n")

    def close(self) -> None:
        self._helper.terminate()
        self._helper.wait()
        super().close()


class Breakable(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole that raises while `broken` exists."""

    def __init__(self, broken: str) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._broken = Path(broken)

    def step(self, action: Any) -> Any:
        if self._broken.exists():
            raise RuntimeError("broken")
        return super().step(action)


class Raising(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole whose nth step raises."""

    def __init__(self, after: int = 1) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._left = after

    def step(self, action: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            raise RuntimeError("no more")
        return super().step(action)


class Odd(gymnasium.Wrapper[Any, Any, Any, Any]):
    """CartPole whose second episode fails (`reset`, `shape`), or which fails in the final choice's process."""

    def __init__(self, how: str) -> None:
        super().__init__(gymnasium.make("CartPole-v1"))
        self._how, self._begun = how, 0

    def reset(self, **options: Any) -> Any:
        self._begun += 1
        if self._begun > 1 and self._how == "reset":
            raise RuntimeError("not ready")
        seen, info = super().reset(**options)
        return seen[: 3 if self._begun > 1 and self._how == "shape" else 4], info

    def step(self, action: Any) -> Any:
        if multiprocessing.current_process().name == isolated_call.PROCESS_NAME:
            if self._how == "abort":
                os.abort()
            if self._how == "hang":
                os.read(os.pipe()[0], 1)
            if self._how == "raise":
                raise RuntimeError("not now")
        return super().step(action)
