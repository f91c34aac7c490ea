"""Any Gymnasium id or user function, MuJoCo included, in this thread; an env that breaks its contract is named."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Literal, NoReturn, TypeAlias, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Space
from gymnasium.vector import SyncVectorEnv

from pbtrl.envs.errors import NOT_MADE, RAISED, SubEnvError, brief, described, named, of_the_machine
from pbtrl.envs.vector import Array, Floats, Spaces, Vector, closed, quiet_spaces
from pbtrl.errors import EnvError

Env: TypeAlias = gymnasium.Env[Any, Any]


def spaces(id: str, kwargs: Mapping[str, Any], where: str) -> Spaces:
    """The spaces of one env as a `Vector` shows them, after a reset and a step, so that its first mistakes show.

    Raises:
        EnvError: it cannot be made, no agent can live in it, or it breaks its contract at once.
    """
    vector = make(id, [0], kwargs, where)
    try:
        vector.reset()
        vector.single_action_space.seed(0)
        vector.step(np.stack([vector.single_action_space.sample()]))
    finally:
        vector.close()
    return vector.spaces


def make(id: str, seeds: Sequence[int], kwargs: Mapping[str, Any], where: str) -> Vector:
    """`len(seeds)` envs in this thread."""
    constructor = _constructor(id, kwargs)
    envs: list[Env] = []
    try:
        envs += (_make_one(id, constructor) for _ in seeds)
        pool = Pool(envs, where)
        own = Spaces(pool.single_observation_space, pool.single_action_space)
        vector = GymVector(pool, own, seeds, where)
    except EnvError:
        for env in envs:
            closed(env, where)
        raise
    limit = getattr(envs[0].spec, "max_episode_steps", None)
    vector.max_episode_steps = limit if limit and limit > 0 else None  # -1 asks gymnasium for no limit
    return vector


def bare(id: str, seeds: Sequence[int], kwargs: Mapping[str, Any]) -> Any:
    """gymnasium's own SyncVectorEnv, as its users have it."""
    constructor = _constructor(id, kwargs)
    with quiet_spaces():
        return SyncVectorEnv([lambda: _make_one(id, constructor) for _ in seeds])


class GymVector(Vector):
    """A `Pool` as a Vector."""

    def info(self, key: str) -> Floats:
        """What the envs reported under `key` at the last step, [N] float32: NaN where they did not."""
        return np.array([latest.get(key, np.nan) for latest in self._pool.latest], np.float32)


class Pool:
    """What gymnasium's SyncVectorEnv does in NEXT_STEP mode, with a check of everything that an env returns.

    `reset` and `step` raise SubEnvError for an env that raises or returns something else than its spaces say.

    Attributes:
        single_observation_space, single_action_space: of each env.
        latest: each env's last info.
    """

    def __init__(self, envs: Sequence[Env], where: str) -> None:
        """Raise EnvError where an env has no spaces, or others than the first."""
        self.envs, self._where = envs, where
        self.single_observation_space, self.single_action_space = (
            _common_space(envs, name, where) for name in ("observation_space", "action_space")
        )
        self.latest: list[dict[str, Any]] = [{} for _ in envs]
        self._over = [False for _ in envs]
        self._seen: list[Any] = [None for _ in envs]
        space = self.single_observation_space
        self._stacked = np.empty((len(envs), *(space.shape or ())), space.dtype)
        # Among floats rounding is fine; among integers nothing may be lost.
        self._casting: Literal["safe", "same_kind"] = "safe" if self._stacked.dtype.kind in "iu" else "same_kind"

    def reset(self, seed: Sequence[int] | None = None) -> tuple[Array, dict[str, Any]]:
        """Observations [N, ...] of new episodes in all envs, and an empty info."""
        for index in range(len(self.envs)):
            self._reset(index, None if seed is None else seed[index])
        self._over = [False for _ in self.envs]
        return self._observations(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Observations, rewards, terminated and truncated, [N, ...], and an empty info."""
        rewards: list[Any] = [0.0 for _ in self.envs]
        terminated: list[Any] = [False for _ in self.envs]
        truncated: list[Any] = [False for _ in self.envs]
        for index, env in enumerate(self.envs):
            if self._over[index]:
                self._reset(index)
                continue
            try:
                result = env.step(actions[index])
            except RAISED as error:
                _blame(index, "step", error)
            try:
                self._seen[index], rewards[index], terminated[index], truncated[index], self.latest[index] = result
            except (TypeError, ValueError):
                raise _returned(index, "step", result, "observation, reward, terminated, truncated, info") from None
        paid = _numbers(rewards, "fiub", "reward", "a number")
        ended = _numbers(terminated, "biu", "flag terminated", "true or false").astype(np.bool_)
        cut = _numbers(truncated, "biu", "flag truncated", "true or false").astype(np.bool_)
        self._over = (ended | cut).tolist()
        return self._observations(), paid, ended, cut, {}

    def close(self) -> None:
        """Close every env, whatever the others do."""
        for env in self.envs:
            closed(env, self._where)

    def _reset(self, index: int, seed: int | None = None) -> None:
        try:
            result = self.envs[index].reset(seed=seed)
        except RAISED as error:
            _blame(index, "reset", error)
        if not isinstance(result, tuple) or len(result) != 2:
            raise _returned(index, "reset", result, "observation, info")
        self._seen[index], self.latest[index] = result

    def _observations(self) -> Array:
        try:
            return np.stack(self._seen, out=self._stacked, casting=self._casting)
        except (TypeError, ValueError, OverflowError):
            return self._cast()

    def _cast(self) -> Array:
        """The observations in the space's type, where each has its shape and no value is lost."""
        space, rows = self.single_observation_space, []
        for index, seen in enumerate(self._seen):
            try:
                row = np.asarray(seen)
            except ValueError:  # a ragged list
                row = np.asarray(None)
            if row.dtype.kind not in "biuf":
                raise SubEnvError(index, f"an observation that is {described(seen)}, where the space is {space}")
            if row.shape != space.shape:
                said = f"an observation of shape {row.shape}, where the observation space has {space.shape}"
                raise SubEnvError(index, said)
            with np.errstate(invalid="ignore"):
                cast = row.astype(space.dtype)
            if not np.can_cast(row.dtype, cast.dtype, "same_kind"):
                said = f"an observation of type {row.dtype}, where the observation space has {space.dtype}"
                raise SubEnvError(index, said)
            if row.dtype.kind != "f" and (lost := cast != row).any():
                said = f"an observation of {row[lost].flat[0]}, which the observation space's {space.dtype} cannot hold"
                raise SubEnvError(index, said)
            rows.append(cast)
        return np.stack(rows)


def _common_space(envs: Sequence[Env], name: str, where: str) -> Space[Any]:
    found: list[Space[Any]] = []
    for env in envs:
        try:
            space = getattr(env, name)
        except RAISED as error:
            raise EnvError(f"{where}: it has no {name}: {brief(error)}") from error
        if not isinstance(space, Space):
            raise EnvError(f"{where}: its {name} is {described(space)}, not a space of gymnasium.spaces")
        if found and space != found[0]:
            raise EnvError(f"{where}: its {name} differs from env to env: {found[0]} and {space}")
        found.append(space)
    return found[0]


def _blame(index: int, method: str, error: BaseException) -> NoReturn:
    """Name the env that raised an error, unless it is the machine's."""
    if isinstance(error, EnvError) or of_the_machine(error):
        raise error
    raise SubEnvError(index, f"{method}() raised {brief(error)}") from error


def _returned(index: int, method: str, result: object, need: str) -> SubEnvError:
    came = f"{len(result)} values" if isinstance(result, tuple) else described(result)
    return SubEnvError(index, f"{method}() returned {came}, where gymnasium has {need.count(',') + 1}: {need}")


def _numbers(values: list[Any], kinds: str, what: str, need: str) -> Array:
    """One number per env, as [N]; SubEnvError for the first that is none of the kinds of numpy types."""
    array = _array(values)
    if array.ndim == 1 and array.dtype.kind in kinds:
        return array
    for index, value in enumerate(values):
        one = _array(value)
        if one.ndim or one.dtype.kind not in kinds:
            raise SubEnvError(index, f"the {what} is {described(value)}, where {need} is needed")
    return np.array([float(value) for value in values])


def _array(values: Any) -> Array:
    """An array of the values; of objects where they have no common shape."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.array(None)


def _constructor(id: str, kwargs: Mapping[str, Any]) -> Callable[[], Env]:
    creator = resolve(id)
    if creator is not None:
        given = with_integers(kwargs, _integers(creator))
        return lambda: creator(**given)
    name = id.rpartition(":")[2]
    given = with_integers(kwargs, options(name))
    if ships(name) and isinstance(skip := given.get("frame_skip"), int) and skip < 1:
        raise EnvError(f"env.kwargs.frame_skip={skip}: should be at least 1")
    return lambda: gymnasium.make(name, disable_env_checker=True, **given)


def resolve(id: str) -> Callable[..., Any] | None:
    """The user's function that an id names; None where it is an id of Gymnasium's.

    Raises:
        EnvError: there is neither.
    """
    module, colon, name = id.partition(":")
    if not colon:
        check_known(id)
        if _is_ale(id):
            raise EnvError(f"env.id={id}: Atari games are run by their v5 id{_nearest(id)}")
        return None
    function = getattr(_imported(id, module), name, None)
    if callable(function):
        return cast(Callable[..., Any], function)
    if name not in gymnasium.registry:
        raise EnvError(f"env.id={id}: module {module} has no function {name} and registers no such id")
    return None


def options(id: str) -> dict[str, bool]:
    """What an id of Gymnasium's takes, and whether it is an integer; only what all take if its code is not there."""
    creator = gymnasium.registry[id].entry_point
    try:
        found = _integers(load_env_creator(creator) if isinstance(creator, str) else creator)
    except Exception:  # whatever its module raises; the making of the env tells
        found = {}
    return {**found, "max_episode_steps": True}


def _integers(creator: Any) -> dict[str, bool]:
    try:
        parameters = inspect.signature(creator).parameters.values()
    except (TypeError, ValueError):  # not everything callable has one
        return {}
    return {p.name: type(p.default) is int or p.annotation in (int, "int") for p in parameters}


def with_integers(kwargs: Mapping[str, Any], integers: Mapping[str, bool]) -> dict[str, Any]:
    """The kwargs with whole floats (1e3) as integers where one is needed."""
    whole = {k: v for k, v in kwargs.items() if integers.get(k) and isinstance(v, float) and v.is_integer()}
    return {**kwargs, **{k: int(v) for k, v in whole.items()}}


def _make_one(id: str, constructor: Callable[[], Env]) -> Env:
    with named(id, NOT_MADE), quiet_spaces(), _quiet_mujoco(id):
        env = constructor()
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"env.id={id}: returned a {type(env).__name__}, not a gymnasium.Env")
    return env


def _imported(id: str, module: str) -> Any:
    # A console script does not see the directory it is run in, where a user's own env usually lies.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except RAISED as error:
        raise EnvError(
            f"env.id={id}: cannot import {module}: {brief(error)}; "
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
