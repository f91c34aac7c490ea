"""Atari games through ale_py's own C++ vector env, in two protocols that must never share a table.

Both: 84 x 84 gray, the last 4 frames stacked, 4 frames per action, the maximum of the last two of them, raw
rewards, the game's minimal action set (all 18 actions with `env.kwargs: {full_action_space: true}`), at most
108,000 frames a game, after which it is truncated.

| protocol | sticky actions | no-ops at the start | FIRE at the start | losing a life                 |
|----------|----------------|---------------------|-------------------|-------------------------------|
| sticky   | 0.25           | none                | no                | nothing (Machado et al. 2018) |
| classic  | none           | up to 30            | where it exists   | terminates, in training       |

ale_py's `episodic_life` is not used: it starts a new game after every lost life, so that later lives are
never played and no game's score is known. Nor is `life_loss_info`: it does not tell a lost life from a lost
game. The lives reported at every step do: here a lost life sets `terminated` without `episode_over`, the game
goes on, and fitness sums whole games.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

import ale_py
import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv

from pbtrl.envs.gym import with_integers
from pbtrl.envs.vector import Array, Bools, Floats, Spaces, Vector
from pbtrl.errors import EnvError

FRAMES_PER_STEP = 4
"""Frames of the console per action."""

MAX_FRAMES = 108_000
"""Frames of a game, after which it is truncated: half an hour, the limit of both protocols."""

Protocol = Literal["sticky", "classic"]

_PROTOCOLS: dict[str, dict[str, Any]] = {
    "sticky": {"repeat_action_probability": 0.25, "noop_max": 0, "use_fire_reset": False},
    "classic": {"repeat_action_probability": 0.0, "noop_max": 30, "use_fire_reset": True},
}
_LARGEST = {"img_height": 1000, "img_width": 1000, "max_num_frames_per_episode": 2**31 - 1, "stack_num": 100}
"""Integer options, which are all at least 1."""
_OPTIONS = ("full_action_space", *_LARGEST)

gymnasium.register_envs(ale_py)


def spaces(id: str, kwargs: Mapping[str, Any]) -> Spaces:
    """The spaces of one game; the number of actions is known only to a loaded ROM (0.1 s, remembered)."""
    return _spaces(_game(id), tuple(sorted(_checked(kwargs).items())))


def make(
    id: str,
    seeds: Sequence[int],
    threads: int,
    protocol: Protocol,
    training: bool,
    kwargs: Mapping[str, Any],
    where: str,
) -> Vector:
    """`len(seeds)` consoles on `threads` C++ threads; each takes about 0.1 s to create and 0.1 s to seed."""
    pool = bare(id, seeds, threads, protocol, kwargs)
    own = Spaces(pool.single_observation_space, pool.single_action_space)
    vector = AtariVector(pool, own, seeds, where, lives_end=protocol == "classic" and training)
    vector.max_episode_steps = kwargs.get("max_num_frames_per_episode", MAX_FRAMES) // FRAMES_PER_STEP
    return vector


def bare(id: str, seeds: Sequence[int], threads: int, protocol: Protocol, kwargs: Mapping[str, Any]) -> Any:
    """ale_py's own vector env, under a protocol."""
    return AtariVectorEnv(
        _game(id),
        len(seeds),
        num_threads=threads,
        frameskip=FRAMES_PER_STEP,
        reward_clipping=False,
        **_PROTOCOLS[protocol],
        **_checked(kwargs),
    )


class AtariVector(Vector):
    """AtariVectorEnv as a Vector; if `lives_end`, a lost life terminates what is learned and not the game."""

    def __init__(self, pool: Any, spaces: Spaces, seeds: Sequence[int], where: str, lives_end: bool) -> None:
        super().__init__(pool, spaces, seeds, where)
        self._lives_end = lives_end
        self._lives = np.zeros(self.num_envs, np.int32)

    def step(self, actions: Array) -> tuple[Array, Floats, Bools, Bools]:
        """As `Vector.step`."""
        obs, rewards, terminated, truncated = super().step(actions)
        if self._lives_end:
            lives = self._infos["lives"]
            # The last life counts with the end of the game alone, lest a game that shows no lives for a while
            # before it ends be terminated twice. A new game may have fewer lives than the one cut short.
            terminated = terminated | ((lives < self._lives) & (lives > 0) & ~self.is_reset_step)
            self._lives = lives
        return obs, rewards, terminated, truncated

    def _begin(self, seeds: list[int] | None) -> tuple[Array, Mapping[str, Any]]:
        obs, infos = self._pool.reset(seed=None if seeds is None else np.array(seeds))
        self._lives = infos["lives"]
        return obs, infos


@cache
def _spaces(game: str, kwargs: tuple[tuple[str, Any], ...]) -> Spaces:
    env = AtariVectorEnv(game, 1, **dict(kwargs))
    env.close()
    return Spaces(env.single_observation_space, env.single_action_space)


def _game(id: str) -> str:
    """ALE/MsPacman-v5 -> ms_pacman, as ale_py registers it."""
    spec = gymnasium.registry[id]
    return str(spec.kwargs["game"])


def _checked(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    given = with_integers(kwargs, dict.fromkeys(_LARGEST, True))
    for name, value in given.items():
        if name not in _OPTIONS:
            raise EnvError(
                f"env.kwargs.{name} is not an option of Atari games, which take {', '.join(_OPTIONS)}; "
                "stickiness, no-ops and lives belong to env.protocol"
            )
        if name not in _LARGEST and not isinstance(value, bool):
            raise EnvError(f"env.kwargs.{name}={value}: should be true or false")
        if name in _LARGEST and not (type(value) is int and 1 <= value <= _LARGEST[name]):
            raise EnvError(f"env.kwargs.{name}={value}: should be an integer from 1 to {_LARGEST[name]:,}")
    return given
