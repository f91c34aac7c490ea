"""The env contract, in one place: what every back end looks like to the rest of the suite.

A `Vector` steps N copies of an env, each with its own generator, in gymnasium's NEXT_STEP autoreset mode: the
step that ends an episode returns that episode's last observation, and the step after it, whatever its action,
only starts the next one. So V(obs) after a truncation is the next row's value, and the transition in between
is *dead*: its action is ignored and its reward is 0.

What is said of transition t, and what follows it:

| at t                                     | terminated | truncated | episode_over | transition t+1 |
|------------------------------------------|------------|-----------|--------------|----------------|
| the episode goes on                      | F          | F         | F            | live           |
| the episode ends in the world            | T          | F         | T            | dead           |
| the time limit cuts it                   | F          | T         | T            | dead           |
| both at once                             | T          | T         | T            | dead           |
| a life is lost (classic Atari, training) | T          | F         | F            | live, same game|
| t is dead: it started an episode         | F          | F         | F            | live           |

Learning reads `terminated` (discount 0) and `truncated` (cut here, bootstrap from the returned observation);
`episode_over` closes returns and lengths; `dead` leaves a transition out of losses, fitness and lengths. (It is part
of a member's clock, which counts steps of the simulator.)
"""

import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float32]

SEED_LIMIT = 2**31
"""Seeds lie in [0, SEED_LIMIT): the C++ back ends hold them in 32 signed bits."""


class EnvError(ValueError):
    """An env that cannot be had as asked for: one line that says what, where, and what would be right."""


class Spaces(NamedTuple):
    """What one env shows and takes."""

    single_observation_space: Space[Any]
    single_action_space: Space[Any]


class Vector:
    """N envs of one kind, stepped together; see the module's docstring for the meaning of a step.

    What env j does depends on its seed and its actions alone, neither on the number of threads nor on its
    neighbours. Observations are channels-first for images (uint8 with three dimensions: the shorter of the
    first and the last axis is taken for the channels), one-hot float32 for Discrete spaces, and otherwise as
    the library gives them. Discrete actions always count from 0.

    Attributes:
        single_observation_space: of one env, after the changes above; a Box.
        single_action_space: of one env; a float32 Box with one dimension, or a Discrete that starts at 0.
        num_envs: N.
        episode_over: [N] bool, the last transition ended a whole episode; exactly then the next one is dead.
        dead: [N] bool, the last transition was dead.
    """

    def __init__(self, pool: Any, spaces: Spaces, seeds: Sequence[int], where: str) -> None:
        """Wrap `pool`, a vector env in NEXT_STEP mode whose own spaces, for one env, are `spaces`."""
        shown = present(spaces, where)
        self.single_observation_space = shown.single_observation_space
        self.single_action_space = shown.single_action_space
        self.num_envs = len(seeds)
        self.episode_over: Bools = np.zeros(self.num_envs, np.bool_)
        self.dead: Bools = np.zeros(self.num_envs, np.bool_)
        self._pool = pool
        self._infos: Mapping[str, Any] = {}
        self._seeds: list[int] | None = [int(seed) for seed in seeds]
        observation, action = spaces
        self._one_hot = _rows(observation) if isinstance(observation, Discrete) else None
        self._channels_last = _channels_last(observation)
        self._first_observation = int(observation.start) if isinstance(observation, Discrete) else 0
        self._first_action = int(action.start) if isinstance(action, Discrete) else 0

    def reset(self) -> Array:
        """Start an episode in every env: [N, *observation]. The first reset seeds, later ones draw on."""
        obs, self._infos = self._begin(self._seeds)
        self._seeds = None
        self.episode_over = np.zeros(self.num_envs, np.bool_)
        self.dead = np.zeros(self.num_envs, np.bool_)
        return self._shown(obs)

    def step(self, actions: Array) -> tuple[Array, Floats, Bools, Bools]:
        """Take one action in every env.

        Args:
            actions: int64 [N] for Discrete, float32 [N, A] within the bounds for Box.

        Returns:
            Observations [N, *observation], in a buffer the next step may overwrite; raw rewards [N], float32;
            terminated [N]; truncated [N].
        """
        if self._first_action:
            actions = actions + self._first_action
        obs, rewards, terminated, truncated, self._infos = self._pool.step(actions)
        self.dead = self.episode_over
        self.episode_over = terminated | truncated
        return self._shown(obs), rewards.astype(np.float32, copy=False), terminated, truncated

    def info(self, key: str) -> Floats:
        """What the envs reported under `key` at the last step, [N] float32: NaN where they did not."""
        values = np.full(self.num_envs, np.nan, np.float32)
        if key in self._infos:
            values[:] = self._infos[key]
        return values

    def close(self) -> None:
        """Free the envs; calling it again does nothing."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _begin(self, seeds: list[int] | None) -> tuple[Array, Mapping[str, Any]]:
        obs, infos = self._pool.reset(seed=seeds)
        return obs, infos

    def _shown(self, obs: Array) -> Array:
        if self._one_hot is not None:
            obs = self._one_hot[obs - self._first_observation]
        return obs.transpose(0, 3, 1, 2) if self._channels_last else obs


def within(seconds: float, function: Callable[..., Any], error: Exception | None = None) -> Callable[..., Any]:
    """The function; when a call takes longer the kernel ends this process (SIGALRM), because nobody else could.

    With `error` Python raises that instead, once it can: not while foreign code hangs. Where there is no alarm, and in
    threads other than the main one, which get no signals, nobody watches.
    """
    if not hasattr(signal, "setitimer"):
        return function

    def late(*_: Any) -> None:
        assert error is not None
        raise error

    def run(*args: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return function(*args)
        before = signal.signal(signal.SIGALRM, late) if error else None
        timer = signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return function(*args)
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            if error:
                signal.signal(signal.SIGALRM, before)

    return run


def impatient(vector: Vector, seconds: float) -> Vector:
    """The vector, whose steps, resets and end may each take so long."""
    for name in ("step", "reset", "close"):
        setattr(vector, name, within(seconds, getattr(vector, name)))
    return vector


def present(spaces: Spaces, where: str) -> Spaces:
    """The spaces as a `Vector` shows them, given an env's own; EnvError for those that no agent can take."""
    return Spaces(
        _present_observation(spaces.single_observation_space, where),
        _present_action(spaces.single_action_space, where),
    )


@contextmanager
def quiet_spaces() -> Iterator[None]:
    """Silence gymnasium's remark that a Box's bounds were rounded to float32: nobody can act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield


def _present_observation(space: Space[Any], where: str) -> Space[Any]:
    if isinstance(space, Discrete):
        return Box(0.0, 1.0, (int(space.n),), np.float32)
    if not isinstance(space, Box):
        raise EnvError(
            f"{where}: observations of type {type(space).__name__} are not supported; wrap the env in "
            "gymnasium.wrappers.FlattenObservation and give it as module:function"
        )
    if not _channels_last(space):
        return space
    return Box(space.low.transpose(2, 0, 1), space.high.transpose(2, 0, 1), dtype=np.uint8)


def _present_action(space: Space[Any], where: str) -> Space[Any]:
    if isinstance(space, Discrete):
        return Discrete(int(space.n))
    if isinstance(space, Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        return Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    kind = f"Box{space.shape} {space.dtype}" if isinstance(space, Box) else type(space).__name__
    raise EnvError(
        f"{where}: actions of type {kind} are not supported, only Discrete and one-dimensional float Box; "
        "wrap the env in gymnasium.wrappers.TransformAction and give it as module:function"
    )


def _channels_last(space: Space[Any]) -> bool:
    image = isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3
    return image and space.shape is not None and space.shape[-1] < space.shape[0]


def _rows(space: Discrete) -> Floats:
    return np.eye(int(space.n), dtype=np.float32)
