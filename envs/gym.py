"""Any Gymnasium id or user function, MuJoCo included, through gymnasium's SyncVectorEnv."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, TypeAlias, cast

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv

from envs.vector import EnvError, Floats, Spaces, Vector, quiet_spaces

Env: TypeAlias = gymnasium.Env[Any, Any]


def spaces(id: str, kwargs: Mapping[str, Any]) -> Spaces:
    """The spaces of one env as it gives them; makes one and closes it."""
    env = _make_one(id, _constructor(id, kwargs))
    env.close()
    return Spaces(env.observation_space, env.action_space)


def make(id: str, seeds: Sequence[int], kwargs: Mapping[str, Any], where: str) -> Vector:
    """`len(seeds)` envs in this thread."""
    constructor = _constructor(id, kwargs)
    with quiet_spaces():
        pool = _LazyInfos([lambda: _make_one(id, constructor) for _ in seeds], copy=False)
    own = Spaces(pool.single_observation_space, pool.single_action_space)
    vector = GymVector(pool, own, seeds, where)
    limit = getattr(pool.envs[0].spec, "max_episode_steps", None)
    vector.max_episode_steps = limit if limit and limit > 0 else None  # -1 asks gymnasium for no limit
    return vector


def bare(id: str, seeds: Sequence[int], kwargs: Mapping[str, Any]) -> Any:
    """gymnasium's own SyncVectorEnv, as its users have it."""
    constructor = _constructor(id, kwargs)
    with quiet_spaces():
        return SyncVectorEnv([lambda: _make_one(id, constructor) for _ in seeds])


class GymVector(Vector):
    """gymnasium's SyncVectorEnv as a Vector."""

    def info(self, key: str) -> Floats:
        """What the envs reported under `key` at the last step, [N] float32: NaN where they did not."""
        return np.array([latest.get(key, np.nan) for latest in self._pool.latest], np.float32)


class _LazyInfos(SyncVectorEnv):
    """Keeps each env's own info instead of merging them all at every step."""

    def __init__(self, env_fns: Sequence[Callable[[], Env]], copy: bool) -> None:
        self.latest: list[dict[str, Any]] = [{} for _ in env_fns]
        super().__init__(env_fns, copy=copy)

    def reset(self, **options: Any) -> Any:
        """As SyncVectorEnv; an observation of a wrong shape is told by its shape."""
        with self._shapes():
            return super().reset(**options)

    def step(self, actions: Any) -> Any:
        """Likewise."""
        with self._shapes():
            return super().step(actions)

    @contextmanager
    def _shapes(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            expected, observations = self.single_observation_space.shape, cast(list[Any], self._env_obs)
            for found in (np.shape(obs) for obs in observations if obs is not None):
                if found != expected:
                    said = f"an observation of shape {found}, where the observation space has {expected}"
                    raise ValueError(said) from error
            raise

    def _add_info(self, vector_infos: dict[str, Any], env_info: dict[str, Any], env_num: int) -> dict[str, Any]:
        self.latest[env_num] = env_info
        return vector_infos


def _constructor(id: str, kwargs: Mapping[str, Any]) -> Callable[[], Env]:
    module, colon, name = id.partition(":")
    if colon:
        function = getattr(_imported(id, module), name, None)
        if callable(function):
            return lambda: function(**kwargs)
        if name not in gymnasium.registry:
            raise EnvError(f"env.id={id}: module {module} has no function {name} and registers no such id")
    else:
        name = id
        check_known(id)
        if _is_ale(id):
            raise EnvError(f"env.id={id}: Atari games are run by their v5 id{_nearest(id)}")
    return lambda: gymnasium.make(name, disable_env_checker=True, **kwargs)


def _make_one(id: str, constructor: Callable[[], Env]) -> Env:
    try:
        with quiet_spaces(), _quiet_mujoco(id):
            env = constructor()
    except EnvError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise EnvError(f"env.id={id}: could not be made: {type(error).__name__}: {reason}") from error
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"env.id={id}: returned a {type(env).__name__}, not a gymnasium.Env")
    return env


def _imported(id: str, module: str) -> Any:
    # A console script does not see the directory it is run in, where a user's own env usually lies.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise EnvError(
            f"env.id={id}: cannot import {module}: {type(error).__name__}: {reason}; "
            "module:function is looked up from the current directory and the installed packages"
        ) from error


def check_known(id: str) -> None:
    """Raise EnvError, naming the nearest ids, unless Gymnasium has this one."""
    if id not in gymnasium.registry:
        importlib.import_module("ale_py")  # registers its games, so that they can be suggested
    if id not in gymnasium.registry:
        raise EnvError(f"env.id={id}: no such env{_nearest(id)}")


def ships(id: str) -> bool:
    """Whether this id is an env of Gymnasium itself, and not one that somebody registered."""
    return id in gymnasium.registry and str(gymnasium.registry[id].entry_point).startswith("gymnasium.envs.")


def _nearest(id: str) -> str:
    newest: dict[str, tuple[bool, int, str]] = {}
    for known, spec in gymnasium.registry.items():
        if known.startswith("ALE/") or not _is_ale(known):
            key, place = _plain(known), (spec.namespace is None, spec.version or 0, known)
            newest[key] = max(newest.get(key, place), place)
    near = [newest[key][-1] for key in get_close_matches(_plain(id), list(newest), 3, 0.7)]
    return f"; nearest: {', '.join(near)}" if near else "; an own env is given as module:function"


def _plain(id: str) -> str:
    """The bare name: ALE/MsPacman-v5, MsPacmanNoFrameskip-v4 and mspacman are one."""
    return id.rsplit("/", 1)[-1].rsplit("-v", 1)[0].lower().replace("noframeskip", "")


def _is_ale(id: str) -> bool:
    return str(gymnasium.registry[id].entry_point).startswith("ale_py")


@contextmanager
def _quiet_mujoco(id: str) -> Iterator[None]:
    """Keep MuJoCo from printing to the console and to ./MUJOCO_LOG.TXT while models load.

    Gymnasium's own XML files use an attribute that MuJoCo 4 calls deprecated; later warnings are about the
    simulation and stay.
    """
    spec = gymnasium.registry.get(id)
    if "mujoco" not in sys.modules and not (spec and str(spec.entry_point).startswith("gymnasium.envs.mujoco")):
        yield
        return
    try:
        config = importlib.import_module("mujoco").MjLogConfig.get()
    except (ImportError, AttributeError):
        yield
        return
    before = config.logto_console, config.logto_file
    config.logto_console = config.logto_file = False
    config.set()
    try:
        yield
    finally:
        config.logto_console, config.logto_file = before
        config.set()
