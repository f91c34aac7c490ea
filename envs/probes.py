"""Tiny envs with optimal values in closed form; importing envs registers them as `probe/<Name>-v0`.

A bug in an agent shows up on one of them within seconds. V(s) is the optimal value of a state, and gamma the discount
per step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray
from typing_extensions import override

Floats: TypeAlias = NDArray[np.float32]
Step: TypeAlias = tuple[NDArray[Any], float, bool, bool, dict[str, Any]]


class Probe(gymnasium.Env[NDArray[Any], Any]):
    """Base class of all probes, with a clock `t` (steps since the episode began).

    A probe sets its spaces and overrides `outcome`, and if needed `observe` and `begin`.
    """

    t = 0

    def begin(self) -> None:
        """Draw the episode's random state from `self.np_random`."""

    def observe(self) -> NDArray[Any]:
        """Return the observation at time t; the default is the constant [1.]."""
        return np.ones(1, np.float32)

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """Return the reward of `action` at time t, terminated and truncated."""
        raise NotImplementedError

    @override
    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        self.begin()
        return self.observe(), {}

    @override
    def step(self, action: Any) -> Step:
        reward, terminated, truncated = self.outcome(action)
        self.t += 1
        return self.observe(), reward, terminated, truncated, {}


class ConstantReward(Probe):
    """The same reward at every step of an endless episode: V = reward / (1 - gamma)."""

    def __init__(self, reward: float = 1.0) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(2)
        self._reward = reward

    @override
    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        return self._reward, False, False


class ObservedReward(Probe):
    """One step, with the observation x as the reward, which is -1 or 1 at random: V(x) = x."""

    def __init__(self) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(2)
        self._x = 1.0

    @override
    def begin(self) -> None:
        self._x = float(self.np_random.choice((-1.0, 1.0)))

    @override
    def observe(self) -> Floats:
        return np.array([self._x], np.float32)

    @override
    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        return self._x, True, False


class TwoSteps(Probe):
    """Two steps with rewards 0 and 1, and the time as the observation: V(0) = gamma, V(1) = 1."""

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 2.0, (1,), np.float32)
        self.action_space = Discrete(2)

    @override
    def observe(self) -> Floats:
        return np.array([self.t], np.float32)

    @override
    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        return float(self.t), self.t == 1, False


class Bandit(Probe):
    """One step with reward rewards[action]: V = max(rewards), or mean(rewards) under the uniform policy."""

    def __init__(self, rewards: Sequence[float] = (0.0, 0.5, 1.0)) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(len(rewards))
        self._rewards = tuple(rewards)

    @override
    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        return self._rewards[int(action)], True, False


class Switches(Probe):
    """One step with one choice for each of several switches: the reward is the share that is right, so V = 1."""

    def __init__(self, sizes: Sequence[int] = (2, 3, 2), right: Sequence[int] = (1, 2, 0)) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = MultiDiscrete(list(sizes))
        self._right = np.array(right)

    @override
    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        return float((action == self._right).mean()), True, False


class PreviousAction(Probe):
    """The reward is the previous action (0 at first), which reveals off-by-one errors between acting and learning.

    An episode has `length` steps with two actions and observations [t, previous action]. Always taking action 1 is
    optimal: V(t, a) = a + gamma + ... + gamma^(length - 1 - t). Q(action 1) - Q(action 0) = gamma at every step but
    the last, whose action has no effect.
    """

    def __init__(self, length: int = 5) -> None:
        self.observation_space = Box(0.0, float(length), (2,), np.float32)
        self.action_space = Discrete(2)
        self._length = length
        self._previous = 0

    @override
    def begin(self) -> None:
        self._previous = 0

    @override
    def observe(self) -> Floats:
        return np.array([self.t, self._previous], np.float32)

    @override
    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        reward, self._previous = float(self._previous), int(action)
        return reward, self.t == self._length - 1, False


class Recall(Probe):
    """A cue, -1 or 1, is shown at the first of `length` steps; recalling it at the last (action 0 or 1) pays 1.

    The observation is [cue, or 0 after the first step; 1 at the last step]. With memory, V(first) = gamma^(length - 1)
    and the mean return is 1. Without memory, both are half of that if `length` > 1.
    """

    def __init__(self, length: int = 4) -> None:
        self.observation_space = Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = Discrete(2)
        self._length = length
        self._cue = 1

    @override
    def begin(self) -> None:
        self._cue = int(self.np_random.choice((-1, 1)))

    @override
    def observe(self) -> NDArray[Any]:
        return np.array([self._cue * (self.t == 0), self.t == self._length - 1], np.float32)

    @override
    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        last = self.t == self._length - 1
        right = int(action) == (self._cue + 1) // 2
        return float(last and right), last, False


class TimeLimit(Probe):
    """Reward 1 for `length` steps, then truncation or termination; observations are one-hot of phase = t mod length.

    `truncate=True` (probe/Truncated-v0): the return continues beyond the limit, so V = 1 / (1 - gamma) always.
    `truncate=False` (probe/Terminated-v0): V(phase) = (1 - gamma^(length - phase)) / (1 - gamma).
    The rewards are the same, so an agent that confuses termination and truncation learns the same values in both.
    """

    def __init__(self, truncate: bool, length: int = 3) -> None:
        self.observation_space = Box(0.0, 1.0, (length,), np.float32)
        self.action_space = Discrete(2)
        self._truncate = truncate
        self._length = length

    @override
    def observe(self) -> Floats:
        phase = np.zeros(self._length, np.float32)
        phase[self.t % self._length] = 1.0
        return phase

    @override
    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        last = self.t == self._length - 1
        return 1.0, last and not self._truncate, last and self._truncate


class Target(Probe):
    """One step with a continuous action: reward -|a - target|^2, so V = 0 at a = target.

    The expected reward of a Gaussian policy with mean m and variances s^2 is -(|m - target|^2 + sum of s^2).
    """

    def __init__(self, target: Sequence[float] = (0.5, -0.3)) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Box(-1.0, 1.0, (len(target),), np.float32)
        self._target = np.array(target)

    @override
    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        return -float(np.square(np.asarray(action, np.float64) - self._target).sum()), True, False


class BrightSide(Probe):
    """One half of a uint8 image [size, size, 3] is bright; choosing it (0 left, 1 right) pays 1: V = 1."""

    def __init__(self, size: int = 36) -> None:
        self.observation_space = Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = Discrete(2)
        self._size = size
        self._side = 0

    @override
    def begin(self) -> None:
        self._side = int(self.np_random.integers(2))

    @override
    def observe(self) -> NDArray[np.uint8]:
        half = self._size // 2
        image = np.zeros((self._size, self._size, 3), np.uint8)
        image[:, self._side * half : (self._side + 1) * half] = 255
        return image

    @override
    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        return float(int(action) == self._side), True, False


class Glimpse(Recall):
    """`Recall` with uint8 images [size, size, 1]: a bright half at the first step, gray at the last, black in between.

    The cue is the side of the bright half.
    """

    def __init__(self, length: int = 4, size: int = 36) -> None:
        super().__init__(length)
        self.observation_space = Box(0, 255, (size, size, 1), np.uint8)
        self._size = size

    @override
    def observe(self) -> NDArray[np.uint8]:
        half = self._size // 2
        image = np.zeros((self._size, self._size, 1), np.uint8)
        if self.t == 0:
            image[:, half * (self._cue > 0) : half * (1 + (self._cue > 0))] = 255
        elif self.t == self._length - 1:
            image[:] = 128
        return image


class Raising(Probe):
    """Pays 1 for `after` steps since its creation, and raises RuntimeError at the next step. It has no value."""

    def __init__(self, after: int = 10) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(2)
        self._left = after

    @override
    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("probe/Raising-v0 raised, as it was asked to")
        return 1.0, False, False


def _register() -> None:
    for probe in (
        ConstantReward,
        ObservedReward,
        TwoSteps,
        Bandit,
        Switches,
        PreviousAction,
        Recall,
        Target,
        BrightSide,
        Glimpse,
        Raising,
    ):
        gymnasium.register(f"probe/{probe.__name__}-v0", f"pbtrl.envs.probes:{probe.__name__}")
    for name, truncate in (("Truncated", True), ("Terminated", False)):
        gymnasium.register(f"probe/{name}-v0", "pbtrl.envs.probes:TimeLimit", kwargs={"truncate": truncate})


_register()
