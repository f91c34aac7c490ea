"""Tiny envs with optimal values in closed form; importing envs registers them as `probe/<Name>-v0`.

An agent that is wrong somewhere is wrong on one of these within seconds. V(s) is the optimal value of a state
and gamma the discount per step.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]
Step: TypeAlias = tuple[NDArray[Any], float, bool, bool, dict[str, Any]]


class Probe(gymnasium.Env[NDArray[Any], Any]):
    """What all probes share: a clock `t` (steps since the episode began) and an observation made from state.

    A probe states its spaces and overrides `observe` and `outcome`; `begin` draws what is random in an
    episode.
    """

    t = 0

    def begin(self) -> None:
        """Draw the episode's random state from `self.np_random`."""

    def observe(self) -> NDArray[Any]:
        """The observation at time t; by default the constant [1.]."""
        return np.ones(1, np.float32)

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """The reward of `action` at time t, and whether it terminates and truncates the episode."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """As gymnasium.Env.reset."""
        super().reset(seed=seed)
        self.t = 0
        self.begin()
        return self.observe(), {}

    def step(self, action: Any) -> Step:
        """As gymnasium.Env.step."""
        reward, terminated, truncated = self.outcome(action)
        self.t += 1
        return self.observe(), reward, terminated, truncated, {}


class ConstantReward(Probe):
    """The same reward for ever, whatever is done: V = reward / (1 - gamma). No episode ever ends."""

    def __init__(self, reward: float = 1.0) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(2)
        self._reward = reward

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """Always `reward`."""
        return self._reward, False, False


class ObservedReward(Probe):
    """One step whose reward is what was observed, -1 or 1 at random: V(x) = x."""

    def __init__(self) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(2)
        self._x = 1.0

    def begin(self) -> None:
        """Draw x."""
        self._x = float(self.np_random.choice((-1.0, 1.0)))

    def observe(self) -> Floats:
        """[x]."""
        return np.array([self._x], np.float32)

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """The observed reward, and the end."""
        return self._x, True, False


class TwoSteps(Probe):
    """Two steps, reward 0 and then 1, the observation is the time: V(0) = gamma, V(1) = 1."""

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 2.0, (1,), np.float32)
        self.action_space = Discrete(2)

    def observe(self) -> Floats:
        """[t]."""
        return np.array([self.t], np.float32)

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """1 for the second step, which ends it."""
        return float(self.t), self.t == 1, False


class Bandit(Probe):
    """One step; action a pays rewards[a]: V = max(rewards), and mean(rewards) under the uniform policy."""

    def __init__(self, rewards: Sequence[float] = (0.0, 0.5, 1.0)) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(len(rewards))
        self._rewards = tuple(rewards)

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """rewards[action], and the end."""
        return self._rewards[int(action)], True, False


class PreviousAction(Probe):
    """The reward is the previous action, 0 at first: an off-by-one between acting and learning shows.

    `length` steps, two actions, observation [t, previous action]. Always acting 1 is optimal:
    V(t, a) = a + gamma + ... + gamma^(length - 1 - t). In every step but the last, whose action pays nobody,
    Q(action 1) - Q(action 0) = gamma.
    """

    def __init__(self, length: int = 5) -> None:
        self.observation_space = Box(0.0, float(length), (2,), np.float32)
        self.action_space = Discrete(2)
        self._length = length
        self._previous = 0

    def begin(self) -> None:
        """Forget the action of the episode before."""
        self._previous = 0

    def observe(self) -> Floats:
        """[t, previous action]."""
        return np.array([self.t, self._previous], np.float32)

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """The previous action."""
        reward, self._previous = float(self._previous), int(action)
        return reward, self.t == self._length - 1, False


class Recall(Probe):
    """A cue, -1 or 1, is shown at the first of `length` steps; naming it at the last (action 0 or 1) pays 1.

    Observation [cue or 0, whether this is the last step]. With memory V(first) = gamma^(length - 1) and the
    mean return is 1; without it half of that, as soon as `length` > 1.
    """

    def __init__(self, length: int = 4) -> None:
        self.observation_space = Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = Discrete(2)
        self._length = length
        self._cue = 1

    def begin(self) -> None:
        """Draw the cue."""
        self._cue = int(self.np_random.choice((-1, 1)))

    def observe(self) -> NDArray[Any]:
        """[cue or 0, last]."""
        return np.array([self._cue * (self.t == 0), self.t == self._length - 1], np.float32)

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """1 for the right answer at the last step."""
        last = self.t == self._length - 1
        right = int(action) == (self._cue + 1) // 2
        return float(last and right), last, False


class TimeLimit(Probe):
    """Reward 1 for `length` steps, then truncation or termination; one-hot of the phase t mod length is seen.

    `truncate=True` (probe/Truncated-v0): the world goes on beyond the limit, V = 1 / (1 - gamma) always.
    `truncate=False` (probe/Terminated-v0): V(phase) = (1 - gamma^(length - phase)) / (1 - gamma).
    The rewards are the same, so an agent that confuses the two ends learns the same values in both.
    """

    def __init__(self, truncate: bool, length: int = 3) -> None:
        self.observation_space = Box(0.0, 1.0, (length,), np.float32)
        self.action_space = Discrete(2)
        self._truncate = truncate
        self._length = length

    def observe(self) -> Floats:
        """The phase, one-hot [length]."""
        phase = np.zeros(self._length, np.float32)
        phase[self.t % self._length] = 1.0
        return phase

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """1, and the end at the limit."""
        last = self.t == self._length - 1
        return 1.0, last and not self._truncate, last and self._truncate


class Target(Probe):
    """One step with a continuous action: reward -|a - target|^2, so V = 0 at a = target.

    A Gaussian policy with mean m and variances s^2 expects -(|m - target|^2 + sum of s^2).
    """

    def __init__(self, target: Sequence[float] = (0.5, -0.3)) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Box(-1.0, 1.0, (len(target),), np.float32)
        self._target = np.array(target)

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """-|action - target|^2, and the end."""
        return -float(np.square(np.asarray(action, np.float64) - self._target).sum()), True, False


class BrightSide(Probe):
    """One half of a uint8 picture [size, size, 3] is bright; naming it (0 left, 1 right) pays 1: V = 1."""

    def __init__(self, size: int = 36) -> None:
        self.observation_space = Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = Discrete(2)
        self._size = size
        self._side = 0

    def begin(self) -> None:
        """Draw the side."""
        self._side = int(self.np_random.integers(2))

    def observe(self) -> NDArray[np.uint8]:
        """The picture, channels last."""
        half = self._size // 2
        picture = np.zeros((self._size, self._size, 3), np.uint8)
        picture[:, self._side * half : (self._side + 1) * half] = 255
        return picture

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """1 for the bright side."""
        return float(int(action) == self._side), True, False


class Glimpse(Recall):
    """`Recall` in pictures uint8 [size, size, 1]: the bright half is seen at the first step alone, a gray one at last.

    In between all is dark.
    """

    def __init__(self, length: int = 4, size: int = 36) -> None:
        super().__init__(length)
        self.observation_space = Box(0, 255, (size, size, 1), np.uint8)
        self._size = size

    def observe(self) -> NDArray[np.uint8]:
        """The picture, channels last."""
        half = self._size // 2
        picture = np.zeros((self._size, self._size, 1), np.uint8)
        if self.t == 0:
            picture[:, half * (self._cue > 0) : half * (1 + (self._cue > 0))] = 255
        elif self.t == self._length - 1:
            picture[:] = 128
        return picture


class Raising(Probe):
    """Pays 1 for `after` steps, counted from its making, and raises RuntimeError at the next. No value."""

    def __init__(self, after: int = 10) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(2)
        self._left = after

    def outcome(self, action: Any) -> tuple[float, bool, bool]:
        """1, or the error."""
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
