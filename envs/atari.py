"""Atari games in ale_py's C++ vector env, under two protocols whose scores must never be compared.

Both use 84 x 84 grayscale, a stack of 4 frames, an action repeat of 4 with the maximum over the last two frames, and
raw rewards. Games are truncated after 108,000 frames. `env.kwargs: {full_action_space: ...}` chooses the other actions.

| protocol | sticky actions | actions       | no-ops at the start | FIRE at the start | losing a life                 |
|----------|----------------|---------------|---------------------|-------------------|-------------------------------|
| sticky   | 0.25           | all 18        | none                | no                | nothing (Machado et al. 2018) |
| classic  | none           | of the game   | up to 29            | where it exists   | terminates, in training       |

ale_py's `episodic_life` is not used: it starts a new game after every lost life, so later lives are never played, and
no game gets a score. Nor is `life_loss_info`, which does not distinguish a lost life from a lost game. The number of
lives reported at every step does. Here a lost life sets `terminated` but not `episode_over`, the game continues, and
fitness sums the rewards of whole games.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import ale_py
import gymnasium
import numpy as np
from ale_py.vector_env import AtariVectorEnv
from numpy.typing import NDArray
from typing_extensions import override

from pbtrl.envs import Protocol
from pbtrl.envs.gym import with_integers
from pbtrl.envs.vector import Array, Bools, Floats, Spaces, Vector, closed
from pbtrl.errors import EnvError

FRAMES_PER_STEP = 4
"""Frames of the console per action."""

CONSOLE_FPS = 60.0
"""Frames of the console per second."""

MAX_FRAMES = 108_000
"""Frames after which a game is truncated: half an hour, in both protocols."""

_PROTOCOLS: dict[str, dict[str, Any]] = {
    "sticky": {"repeat_action_probability": 0.25, "noop_max": 0, "use_fire_reset": False, "full_action_space": True},
    "classic": {"repeat_action_probability": 0.0, "noop_max": 30, "use_fire_reset": True, "full_action_space": False},
}
_PICTURE = {"img_height": 210, "img_width": 160, "stack_num": 1}
"""Options of games that are shown."""
_LARGEST = {"img_height": 1000, "img_width": 1000, "max_num_frames_per_episode": 2**31 - 1, "stack_num": 100}
"""Integer options and their maximum values; the minimum is 1."""
_OPTIONS = ("full_action_space", *_LARGEST)

gymnasium.register_envs(ale_py)


def spaces(id: str, protocol: Protocol, kwargs: Mapping[str, Any]) -> Spaces:
    """Return the spaces of one game; finding the number of actions means loading the ROM (0.1 s, cached)."""
    options = {"full_action_space": _PROTOCOLS[protocol]["full_action_space"], **_checked(kwargs)}
    return _spaces(_game(id), tuple(sorted(options.items())))


def make(
    id: str,
    seeds: Sequence[int],
    threads: int,
    protocol: Protocol,
    training: bool,
    kwargs: Mapping[str, Any],
    where: str,
    rendered: int = 0,
) -> Vector:
    """Create `len(seeds)` games on `threads` C++ threads; each takes about 0.1 s to create and 0.1 s to seed.

    The first `rendered` games are played twice, because their pictures are in color and of the console's size.
    """
    pool = make_unwrapped(id, seeds, threads, protocol, kwargs)
    own = Spaces(pool.single_observation_space, pool.single_action_space)
    twin = make_unwrapped(id, seeds[:rendered], threads, protocol, {**kwargs, **_PICTURE}, False) if rendered else None
    vector = AtariVector(pool, own, seeds, where, lives_end=protocol == "classic" and training, twin=twin)
    vector.fps = CONSOLE_FPS / FRAMES_PER_STEP
    frames = _checked(kwargs).get("max_num_frames_per_episode", MAX_FRAMES)
    vector.max_episode_steps = -(-frames // FRAMES_PER_STEP)  # the game ends with a whole step
    return vector


def make_unwrapped(
    id: str, seeds: Sequence[int], threads: int, protocol: Protocol, kwargs: Mapping[str, Any], grayscale: bool = True
) -> Any:
    """Create ale_py's own vector env for a protocol."""
    return AtariVectorEnv(
        _game(id),
        len(seeds),
        num_threads=threads,
        frameskip=FRAMES_PER_STEP,
        reward_clipping=False,
        grayscale=grayscale,
        **{**_PROTOCOLS[protocol], **_checked(kwargs)},
    )


class AtariVector(Vector):
    """AtariVectorEnv as a `Vector`; if `lives_end`, a lost life sets `terminated`, but the game continues.

    `twin` plays the first games with the same seeds and actions, for their pictures.
    """

    def __init__(
        self, pool: Any, spaces: Spaces, seeds: Sequence[int], where: str, lives_end: bool, twin: Any = None
    ) -> None:
        super().__init__(pool, spaces, seeds, where)
        self._twin, self._pictures = twin, np.zeros(0, np.uint8)
        self._lives_end = lives_end
        self._lives = np.zeros(self.num_envs, np.int32)

    @override
    def step(self, actions: Array) -> tuple[Array, Floats, Bools, Bools]:
        """Take one action in every env, like `Vector.step`."""
        obs, rewards, terminated, truncated = super().step(actions)
        if self._twin is not None:
            count = self._twin.num_envs
            self._pictures, twin_rewards, *_ = self._twin.step(self._convert_actions(actions[:count]))
            assert (twin_rewards == rewards[:count]).all(), "the games differ"
        if self._lives_end:
            lives = self._infos["lives"]
            # The last life counts only at the end of the game. Some games report 0 lives for a while before they end,
            # and would be terminated twice. On reset steps the count may drop because a truncated game had more lives.
            terminated = terminated | ((lives < self._lives) & (lives > 0) & ~self.is_reset_step)
            self._lives = lives
        return obs, rewards, terminated, truncated

    @override
    def _begin(self, seeds: list[int] | None) -> tuple[Array, Mapping[str, Any]]:
        obs, infos = self._pool.reset(seed=None if seeds is None else np.array(seeds))
        if self._twin is not None:
            count = self._twin.num_envs
            self._pictures, _ = self._twin.reset(seed=None if seeds is None else np.array(seeds[:count]))
        self._lives = infos["lives"]
        return obs, infos

    @override
    def render(self, index: int) -> NDArray[np.uint8]:
        picture: NDArray[np.uint8] = self._pictures[index, -1].copy()
        return picture

    @override
    def close(self) -> None:
        super().close()
        twin, self._twin = self._twin, None
        if twin is not None:
            closed(twin, self.where)


@cache
def _spaces(game: str, kwargs: tuple[tuple[str, Any], ...]) -> Spaces:
    env = AtariVectorEnv(game, 1, **dict(kwargs))
    env.close()
    return Spaces(env.single_observation_space, env.single_action_space)


def _game(id: str) -> str:
    """Return ale_py's name of a game: ALE/MsPacman-v5 -> ms_pacman."""
    spec = gymnasium.registry[id]
    return str(spec.kwargs["game"])


def _checked(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    given = with_integers(kwargs, dict.fromkeys(_LARGEST, True))
    for name, value in given.items():
        if name not in _OPTIONS:
            raise EnvError(
                f"env.kwargs.{name}",
                f"is not an option of Atari games; the options are {', '.join(_OPTIONS)}; "
                "sticky actions, no-ops and lives are set by env.protocol",
            )
        if name not in _LARGEST and not isinstance(value, bool):
            raise EnvError(f"env.kwargs.{name}={value}", "must be true or false")
        if name in _LARGEST and not (type(value) is int and 1 <= value <= _LARGEST[name]):
            raise EnvError(f"env.kwargs.{name}={value}", f"must be an integer from 1 to {_LARGEST[name]:,}")
    return given
