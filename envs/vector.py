"""The interface of envs to the rest of pbtrl, which is the same for every backend.

A `Vector` steps N copies of an env, each with its own random generator, in gymnasium's NEXT_STEP autoreset mode. The
step that ends an episode returns the episode's last observation. The step after it ignores its action and only starts
the next episode. After a truncation, the value of the last observation is therefore the value of the next row. The
transition of the reset step is *dead*: its action is ignored, and its reward is 0.

Flags of transition t, and the kind of the next transition:

| at t                                     | terminated | truncated | episode_over | transition t+1 |
|------------------------------------------|------------|-----------|--------------|----------------|
| the episode continues                    | F          | F         | F            | live           |
| the episode terminates                   | T          | F         | T            | dead           |
| the time limit truncates the episode     | F          | T         | T            | dead           |
| both at once                             | T          | T         | T            | dead           |
| a life is lost (classic Atari, training) | T          | F         | F            | live, same game|
| t is dead, and starts an episode         | F          | F         | F            | live           |

Learning uses `terminated` (discount 0) and `truncated` (cut here, and bootstrap from the returned observation).
`episode_over` ends the episode's return and length. `is_reset_step` excludes a transition from losses, fitness and
lengths; it still counts on a member's clock, which counts simulator steps.
"""

import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from gymnasium.spaces import Space
from numpy.typing import NDArray

from pbtrl.envs.adapters import Convert, adapt_actions, adapt_observations
from pbtrl.envs.errors import ENV_EXCEPTIONS, SubEnvError, brief, warn
from pbtrl.envs.rendering import FPS
from pbtrl.errors import EnvError, RenderError

Array: TypeAlias = NDArray[Any]
Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float32]

SEED_LIMIT = 2**31
"""Seeds are in [0, SEED_LIMIT), because the C++ backends store them as signed 32-bit integers."""


class Spaces(NamedTuple):
    """Observation and action space of one env.

    Attributes:
        single_observation_space: observation space.
        single_action_space: action space.
        remark: description of a difference from the env's own spaces that users should know about.
        own_observation_space: the env's own observation space, before adaptation; None if it is the same.
        own_action_space: the env's own action space, before adaptation; None if it is the same.
    """

    single_observation_space: Space[Any]
    single_action_space: Space[Any]
    remark: str = ""
    own_observation_space: Space[Any] | None = None
    own_action_space: Space[Any] | None = None

    @property
    def own(self) -> tuple[Space[Any], Space[Any]]:
        """The env's own observation and action space. (`or` would not do: some spaces have a length.)"""
        observation, action = self.own_observation_space, self.own_action_space
        return (
            self.single_observation_space if observation is None else observation,
            self.single_action_space if action is None else action,
        )


class Vector:
    """N envs of one kind, stepped together; see the module docstring for the meaning of a step.

    Each env depends only on its own seed and actions, and not on the number of threads or the other envs. adapters.py
    defines the format of observations and actions.

    Attributes:
        single_observation_space: observation space of one env: a Box, uint8 for images and float32 otherwise.
        single_action_space: action space of one env: a one-dimensional float32 Box, or a Discrete or one-dimensional
            MultiDiscrete that starts at 0.
        remark: as in `Spaces`.
        spaces: these spaces and the env's own.
        num_envs: N.
        episode_over: [N] bool, true if the last transition ended an episode, so the next one is dead.
        is_reset_step: [N] bool, true if the last transition was dead.
        fps: frames per second of a video that shows the env at its own speed.
        where: setting that errors name, as in `env.id=CartPole-v1`.
        max_episode_steps: number of live steps after which the env truncates an episode; None if it has no limit.
    """

    max_episode_steps: int | None = None
    fps: float = FPS

    def __init__(self, pool: Any, spaces: Spaces, seeds: Sequence[int], where: str) -> None:
        """Wrap `pool`, a vector env in NEXT_STEP mode; `spaces` are its own spaces of a single env.

        Raises:
            EnvError: no agent supports these spaces.
        """
        self.spaces, self._convert_observations, self._convert_actions = _adapt(spaces, where)
        self.single_observation_space, self.single_action_space, self.remark, *_ = self.spaces
        self.num_envs = len(seeds)
        self.episode_over: Bools = np.zeros(self.num_envs, np.bool_)
        self.is_reset_step: Bools = np.zeros(self.num_envs, np.bool_)
        self._pool, self.where, self._steps = pool, where, 0
        self._infos: Mapping[str, Any] = {}
        self._seeds: list[int] | None = [int(seed) for seed in seeds]

    def reset(self) -> Array:
        """Start a new episode in every env; return observations [N, *observation]. Only the first reset uses the seeds.

        Raises:
            EnvError: an env raised an error or returned invalid values; the message has its index and step.
        """
        self._steps = 0
        try:
            obs, self._infos = self._begin(self._seeds)
            self._seeds = None
            self.episode_over = np.zeros(self.num_envs, np.bool_)
            self.is_reset_step = np.zeros(self.num_envs, np.bool_)
            return self._convert_observations(obs)
        except SubEnvError as error:
            raise self._env_error(error) from error.__cause__

    def step(self, actions: Array) -> tuple[Array, Floats, Bools, Bools]:
        """Take one action in every env.

        Args:
            actions: int64 [N] for Discrete, [N, slots] for MultiDiscrete, float32 [N, A] within the bounds for Box.

        Returns:
            Observations [N, *observation], in a buffer that the next step may overwrite; raw rewards [N], float32;
            terminated [N]; truncated [N].

        Raises:
            EnvError: as in `reset`.
        """
        self._steps += 1
        try:
            obs, rewards, terminated, truncated, self._infos = self._pool.step(self._convert_actions(actions))
            self.is_reset_step = self.episode_over
            self.episode_over = terminated | truncated
            return self._convert_observations(obs), self._check_rewards(rewards), terminated, truncated
        except SubEnvError as error:
            raise self._env_error(error) from error.__cause__

    def render(self, index: int) -> NDArray[np.uint8]:
        """Return a picture [H, W, 3] of an env as it is now, if it was made with `rendered` > index.

        Raises:
            RenderError: the env cannot render.
        """
        raise RenderError(self.where, "cannot render")

    def last_info(self, row: int) -> dict[str, Any]:
        """Return the info of one env at the last step or reset."""
        everywhere = np.ones(self.num_envs, np.bool_)
        return {
            key: values[row]
            for key, values in self._infos.items()
            # _key is gymnasium's mask of the envs that have the key
            if np.ndim(values) and not key.startswith("_") and self._infos.get(f"_{key}", everywhere)[row]
        }

    def close(self) -> None:
        """Close the envs; a second call does nothing. Exceptions from envs become warnings."""
        pool, self._pool = self._pool, None
        if pool is not None:
            closed(pool, self.where)

    def _begin(self, seeds: list[int] | None) -> tuple[Array, Mapping[str, Any]]:
        obs, infos = self._pool.reset(seed=seeds)
        return obs, infos

    def _check_rewards(self, rewards: Array) -> Floats:
        with np.errstate(over="ignore"):
            converted: Floats = rewards.astype(np.float32, copy=False)
        finite = np.isfinite(converted)
        if not finite.all():
            index = int(finite.argmin())
            raise SubEnvError(index, f"the reward is not finite: {rewards[index]}")
        return converted

    def _env_error(self, error: SubEnvError) -> EnvError:
        return EnvError(self.where, f"{error} (env {error.index} of {self.num_envs}, step {self._steps})")


def closed(env: Any, where: str) -> None:
    """Close an env that is no longer needed; exceptions become warnings."""
    try:
        env.close()
    except EnvError:  # it took too long
        raise
    except ENV_EXCEPTIONS as error:
        warn(f"{where}: close() raised {brief(error)}")


def with_timeout(seconds: float, function: Callable[..., Any], error: Exception | None = None) -> Callable[..., Any]:
    """Wrap a function with a timeout after which SIGALRM kills this process, even while native code hangs.

    With `error`, Python raises it instead of dying, but only once native code has returned. There is no timeout on
    platforms without `setitimer`, or in threads other than the main one, which receive no signals.
    """
    if not hasattr(signal, "setitimer"):
        return function

    def on_timeout(*_: Any) -> None:
        assert error is not None
        raise error

    def run(*args: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return function(*args)
        previous = signal.signal(signal.SIGALRM, on_timeout) if error else None
        timer = signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            return function(*args)
        finally:
            signal.setitimer(signal.ITIMER_REAL, *timer)
            if error:
                signal.signal(signal.SIGALRM, previous)

    return run


def with_step_timeout(vector: Vector, seconds: float) -> Vector:
    """Add a timeout to `step`, `reset` and `close` of a vector; see `with_timeout`."""
    for name in ("step", "reset", "close"):
        setattr(vector, name, with_timeout(seconds, getattr(vector, name)))
    return vector


def convert_spaces(spaces: Spaces, where: str) -> Spaces:
    """Convert an env's own spaces to those of a `Vector`; raise EnvError for spaces that no agent supports."""
    return _adapt(spaces, where)[0]


def _adapt(spaces: Spaces, where: str) -> tuple[Spaces, Convert, Convert]:
    """Return a `Vector`'s spaces, and the conversions of observations from and actions to the env's own."""
    observations = adapt_observations(spaces.single_observation_space, where)
    actions = adapt_actions(spaces.single_action_space, where)
    converted = Spaces(observations.space, actions.space, observations.remark, *spaces[:2])
    return converted, observations.convert, actions.convert


@contextmanager
def quiet_spaces() -> Iterator[None]:
    """Silence gymnasium's warning that a Box's bounds were rounded to float32, which users cannot fix."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield
