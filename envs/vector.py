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

Learning reads `terminated` (discount 0) and `truncated` (cut here, bootstrap from the returned observation).
`episode_over` closes returns and lengths. `is_reset_step` leaves a transition out of losses, fitness and lengths; it
still counts on a member's clock, which counts steps of the simulator.
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

from pbtrl.envs.adapters import adapt_actions, adapt_observations
from pbtrl.envs.errors import RAISED, SubEnvError, brief, warn
from pbtrl.errors import EnvError

Array: TypeAlias = NDArray[Any]
Bools: TypeAlias = NDArray[np.bool_]
Floats: TypeAlias = NDArray[np.float32]

SEED_LIMIT = 2**31
"""Seeds lie in [0, SEED_LIMIT): the C++ back ends hold them in 32 signed bits."""


class Spaces(NamedTuple):
    """What one env shows and takes.

    Attributes:
        remark: how its own spaces differ, where users should know it.
        own_observation_space: the env's own, before adapters.py changed it; None where it is the same.
        own_action_space: likewise.
    """

    single_observation_space: Space[Any]
    single_action_space: Space[Any]
    remark: str = ""
    own_observation_space: Space[Any] | None = None
    own_action_space: Space[Any] | None = None


class Vector:
    """N envs of one kind, stepped together; see the module's docstring for the meaning of a step.

    What env j does depends on its seed and its actions alone, neither on the number of threads nor on its
    neighbors. adapters.py says what observations and actions look like.

    Attributes:
        single_observation_space: of one env; a Box, uint8 for pictures and else float32.
        single_action_space: of one env; a float32 Box with one dimension, or a Discrete that starts at 0.
        remark: as in `Spaces`.
        num_envs: N.
        episode_over: [N] bool, the last transition ended a whole episode; exactly then the next one is dead.
        is_reset_step: [N] bool, the last transition was dead.
        max_episode_steps: live steps after which the env itself truncates an episode; None where it has no such limit.
    """

    max_episode_steps: int | None = None

    def __init__(self, pool: Any, spaces: Spaces, seeds: Sequence[int], where: str) -> None:
        """Wrap `pool`, a vector env in NEXT_STEP mode whose own spaces, for one env, are `spaces`.

        Raises:
            EnvError: no agent can live in these spaces.
        """
        observations = adapt_observations(spaces.single_observation_space, where)
        actions = adapt_actions(spaces.single_action_space, where)
        self.single_observation_space = observations.space
        self.single_action_space = actions.space
        self.remark = observations.remark
        self.spaces = Spaces(observations.space, actions.space, observations.remark, *spaces[:2])
        self.num_envs = len(seeds)
        self.episode_over: Bools = np.zeros(self.num_envs, np.bool_)
        self.is_reset_step: Bools = np.zeros(self.num_envs, np.bool_)
        self._pool, self._where, self._steps = pool, where, 0
        self._infos: Mapping[str, Any] = {}
        self._seeds: list[int] | None = [int(seed) for seed in seeds]
        self._shown, self._taken = observations.convert, actions.convert

    def reset(self) -> Array:
        """Start an episode in every env: [N, *observation]. The first reset seeds, later ones draw on.

        Raises:
            EnvError: an env raised, or broke its contract; which one, at which of its steps, and how.
        """
        self._steps = 0
        try:
            obs, self._infos = self._begin(self._seeds)
            self._seeds = None
            self.episode_over = np.zeros(self.num_envs, np.bool_)
            self.is_reset_step = np.zeros(self.num_envs, np.bool_)
            return self._shown(obs)
        except SubEnvError as error:
            raise self._named(error) from error.__cause__

    def step(self, actions: Array) -> tuple[Array, Floats, Bools, Bools]:
        """Take one action in every env.

        Args:
            actions: int64 [N] for Discrete, float32 [N, A] within the bounds for Box.

        Returns:
            Observations [N, *observation], in a buffer the next step may overwrite; raw rewards [N], float32;
            terminated [N]; truncated [N].

        Raises:
            EnvError: as `reset`.
        """
        self._steps += 1
        try:
            obs, rewards, terminated, truncated, self._infos = self._pool.step(self._taken(actions))
            self.is_reset_step = self.episode_over
            self.episode_over = terminated | truncated
            return self._shown(obs), self._paid(rewards), terminated, truncated
        except SubEnvError as error:
            raise self._named(error) from error.__cause__

    def info(self, key: str) -> Floats:
        """What the envs reported under `key` at the last step, [N] float32: NaN where they did not."""
        values = np.full(self.num_envs, np.nan, np.float32)
        if key in self._infos:
            values[:] = self._infos[key]
        return values

    def close(self) -> None:
        """Free the envs; calling it again does nothing. What an env raises then is only a warning."""
        pool, self._pool = self._pool, None
        if pool is not None:
            closed(pool, self._where)

    def _begin(self, seeds: list[int] | None) -> tuple[Array, Mapping[str, Any]]:
        obs, infos = self._pool.reset(seed=seeds)
        return obs, infos

    def _paid(self, rewards: Array) -> Floats:
        with np.errstate(over="ignore"):
            paid: Floats = rewards.astype(np.float32, copy=False)
        finite = np.isfinite(paid)
        if not finite.all():
            index = int(finite.argmin())
            raise SubEnvError(index, f"the reward is not finite: {rewards[index]}")
        return paid

    def _named(self, error: SubEnvError) -> EnvError:
        return EnvError(f"{self._where}: {error} (env {error.index} of {self.num_envs}, step {self._steps})")


def closed(env: Any, where: str) -> None:
    """Close an env that is needed no more; what it raises is only a warning."""
    try:
        env.close()
    except EnvError:  # it took too long
        raise
    except RAISED as error:
        warn(f"{where}: close() raised {brief(error)}")


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
    observations = adapt_observations(spaces.single_observation_space, where)
    actions = adapt_actions(spaces.single_action_space, where)
    return Spaces(
        observations.space,
        actions.space,
        observations.remark,
        spaces.single_observation_space,
        spaces.single_action_space,
    )


@contextmanager
def quiet_spaces() -> Iterator[None]:
    """Silence gymnasium's remark that a Box's bounds were rounded to float32: nobody can act on it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        yield
