"""Gymnasium ids (including MuJoCo) and user functions, run in this thread with checks of everything an env returns."""

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from typing import Any, Literal, NoReturn, cast

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Space
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray
from typing_extensions import override

from pbtrl.envs.errors import ENV_EXCEPTIONS, NOT_MADE, SubEnvError, brief, described, named, of_the_machine
from pbtrl.envs.importing import imported
from pbtrl.envs.rendering import FPS, MODE, take_picture
from pbtrl.envs.vector import Array, Spaces, Vector, closed, quiet_spaces
from pbtrl.envs.wrapping import Env, Wrapping
from pbtrl.errors import EnvError, RenderError


def spaces(id: str, kwargs: Mapping[str, Any], wrapping: Wrapping, where: str) -> Spaces:
    """Return the spaces of one env as a `Vector`, after a reset and a step that reveal its most obvious bugs.

    Raises:
        EnvError: the env cannot be created, no agent supports it, or it violates the Gymnasium API right away.
    """
    vector = make(id, [0], kwargs, wrapping, where)
    try:
        vector.reset()
        vector.single_action_space.seed(0)
        vector.step(np.stack([vector.single_action_space.sample()]))
    finally:
        vector.close()
    return vector.spaces


def make(
    id: str, seeds: Sequence[int], kwargs: Mapping[str, Any], wrapping: Wrapping, where: str, rendered: int = 0
) -> Vector:
    """Create `len(seeds)` envs in this thread, of which the first `rendered` can render."""
    constructor = _constructor(id, kwargs)
    rendering = _constructor(id, _with_rendering(id, kwargs, where)) if rendered else constructor
    envs: list[Env] = []
    try:
        envs += (_make_one(id, rendering if i < rendered else constructor, wrapping) for i in range(len(seeds)))
        _check_rendering(envs[:rendered], where)
        pool = Pool(envs, where)
        own = Spaces(pool.single_observation_space, pool.single_action_space)
        vector = GymVector(pool, own, seeds, where)
    except EnvError:
        for env in envs:
            closed(env, where)
        raise
    vector.fps = float(envs[0].metadata.get("render_fps") or FPS)
    limit = getattr(envs[0].spec, "max_episode_steps", None)
    vector.max_episode_steps = int(limit) if limit and limit > 0 else None  # -1 asks gymnasium for no limit
    return vector


def make_unwrapped(id: str, seeds: Sequence[int], kwargs: Mapping[str, Any], wrapping: Wrapping) -> Any:
    """Create gymnasium's own SyncVectorEnv."""
    constructor = _constructor(id, kwargs)
    with quiet_spaces():
        return SyncVectorEnv([lambda: _make_one(id, constructor, wrapping) for _ in seeds])


class GymVector(Vector):
    """A `Pool` as a `Vector`."""

    @override
    def render(self, index: int) -> NDArray[np.uint8]:
        return take_picture(self._pool.envs[index], self.where)

    @override
    def last_info(self, row: int) -> dict[str, Any]:
        return dict(self._pool.latest[row])


class Pool:
    """gymnasium's SyncVectorEnv in NEXT_STEP mode, with checks of everything that an env returns.

    `reset` and `step` raise SubEnvError for an env that raises, or whose return values do not match its spaces.

    Attributes:
        envs: the envs.
        single_observation_space: observation space of each env.
        single_action_space: action space of each env.
        latest: last info of each env.
    """

    def __init__(self, envs: Sequence[Env], where: str) -> None:
        """Raise EnvError if an env lacks a space, or has a different one from the first env."""
        self.envs, self._where = envs, where
        self.single_observation_space, self.single_action_space = (
            _common_space(envs, name, where) for name in ("observation_space", "action_space")
        )
        self.latest: list[dict[str, Any]] = [{} for _ in envs]
        self._over = [False for _ in envs]
        self._last_obs: list[Any] = [None for _ in envs]
        space = self.single_observation_space
        self._stacked = np.empty((len(envs), *(space.shape or ())), space.dtype)
        # Floats may be rounded, but integers must not lose information.
        self._casting: Literal["safe", "same_kind"] = "safe" if self._stacked.dtype.kind in "iu" else "same_kind"

    def reset(self, seed: Sequence[int] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start a new episode in all envs; return observations [N, ...] and an empty info."""
        for index in range(len(self.envs)):
            self._reset(index, None if seed is None else seed[index])
        self._over = [False for _ in self.envs]
        return self._observations(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Step all envs; return observations, rewards, terminated and truncated, [N, ...], and an empty info."""
        rewards: list[Any] = [0.0 for _ in self.envs]
        terminated: list[Any] = [False for _ in self.envs]
        truncated: list[Any] = [False for _ in self.envs]
        for index, env in enumerate(self.envs):
            if self._over[index]:
                self._reset(index)
                continue
            try:
                result = env.step(actions[index])
            except ENV_EXCEPTIONS as error:
                _blame(index, "step", error)
            try:
                (
                    self._last_obs[index],
                    rewards[index],
                    terminated[index],
                    truncated[index],
                    self.latest[index],
                ) = result
            except (TypeError, ValueError):
                raise _returned(index, "step", result, "observation, reward, terminated, truncated, info") from None
        reward_array = _numbers(rewards, "fiub", "reward", "a number")
        terminations = _numbers(terminated, "biu", "flag terminated", "true or false").astype(np.bool_)
        truncations = _numbers(truncated, "biu", "flag truncated", "true or false").astype(np.bool_)
        self._over = (terminations | truncations).tolist()
        return self._observations(), reward_array, terminations, truncations, {}

    def close(self) -> None:
        """Close every env, even if closing another one raises."""
        for env in self.envs:
            closed(env, self._where)

    def _reset(self, index: int, seed: int | None = None) -> None:
        try:
            result = self.envs[index].reset(seed=seed)
        except ENV_EXCEPTIONS as error:
            _blame(index, "reset", error)
        if not isinstance(result, tuple) or len(result) != 2:
            raise _returned(index, "reset", result, "observation, info")
        self._last_obs[index], self.latest[index] = result

    def _observations(self) -> Array:
        try:
            return np.stack(self._last_obs, out=self._stacked, casting=self._casting)
        except (TypeError, ValueError, OverflowError):
            return self._cast()

    def _cast(self) -> Array:
        """Cast the observations to the space's type; each must have its shape, and no integer may change."""
        space, rows = self.single_observation_space, []
        for index, observation in enumerate(self._last_obs):
            try:
                row = np.asarray(observation)
            except ValueError:  # a ragged list
                row = np.asarray(None)
            if row.dtype.kind not in "biuf":
                message = f"the observation is {described(observation)}, but the observation space is {space}"
                raise SubEnvError(index, message)
            if row.shape != space.shape:
                message = f"the observation has shape {row.shape}, but the observation space has shape {space.shape}"
                raise SubEnvError(index, message)
            with np.errstate(invalid="ignore"):
                cast = row.astype(space.dtype)
            if not np.can_cast(row.dtype, cast.dtype, "same_kind"):
                message = f"the observation has type {row.dtype}, but the observation space has type {space.dtype}"
                raise SubEnvError(index, message)
            if row.dtype.kind != "f" and (lost := cast != row).any():
                value = row[lost].flat[0]
                message = f"the observation contains {value}, which does not fit the space's type {space.dtype}"
                raise SubEnvError(index, message)
            rows.append(cast)
        return np.stack(rows)


def _common_space(envs: Sequence[Env], name: str, where: str) -> Space[Any]:
    spaces: list[Space[Any]] = []
    for env in envs:
        try:
            space = getattr(env, name)
        except ENV_EXCEPTIONS as error:
            raise EnvError(where, f"the env has no {name}: {brief(error)}") from error
        if not isinstance(space, Space):
            raise EnvError(where, f"the env's {name} is {described(space)}, not a gymnasium.spaces.Space")
        if spaces and space != spaces[0]:
            raise EnvError(where, f"the env's {name} must always be the same, but is {spaces[0]} and then {space}")
        spaces.append(space)
    return spaces[0]


def _blame(index: int, method: str, error: BaseException) -> NoReturn:
    """Raise an error as one of this env, unless it is a shortage of memory or disk space."""
    if isinstance(error, EnvError) or of_the_machine(error):
        raise error
    raise SubEnvError(index, f"{method}() raised {brief(error)}") from error


def _returned(index: int, method: str, result: object, need: str) -> SubEnvError:
    actual = f"{len(result)} values" if isinstance(result, tuple) else described(result)
    return SubEnvError(index, f"{method}() returned {actual}; gymnasium requires {need.count(',') + 1} values: {need}")


def _numbers(values: list[Any], kinds: str, what: str, need: str) -> Array:
    """Convert one number per env to [N]; raise SubEnvError for the first whose numpy type is not of the given kinds."""
    array = _array(values)
    if array.ndim == 1 and array.dtype.kind in kinds:
        return array
    for index, value in enumerate(values):
        one = _array(value)
        if one.ndim or one.dtype.kind not in kinds:
            raise SubEnvError(index, f"the {what} is {described(value)}, but must be {need}")
    return np.array([float(value) for value in values])


def _array(values: Any) -> Array:
    """Convert values to an array; to a scalar object array if they have no common shape."""
    try:
        return np.asarray(values)
    except ValueError:
        return np.array(None)


def _constructor(id: str, kwargs: Mapping[str, Any]) -> Callable[[], Env]:
    creator = resolve(id)
    if creator is not None:
        given = with_integers(kwargs, _integers(creator))
        return lambda: creator(**deepcopy(given))
    name = id.rpartition(":")[2]
    given = with_integers(kwargs, options(name))
    if is_builtin(name) and isinstance(skip := given.get("frame_skip"), int) and skip < 1:
        raise EnvError(f"env.kwargs.frame_skip={skip}", "must be at least 1")
    return lambda: gymnasium.make(name, disable_env_checker=True, **deepcopy(given))


def _with_rendering(id: str, kwargs: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Add the render mode to an env's arguments, where it takes one."""
    creator = resolve(id)
    if creator is not None:
        try:
            accepts = "render_mode" in inspect.signature(creator).parameters
        except (TypeError, ValueError):  # not every callable has a signature
            accepts = False
        return {**kwargs, "render_mode": MODE} if accepts else kwargs
    entry = gymnasium.registry[id.rpartition(":")[2]].entry_point
    with named(id, NOT_MADE):
        creator = load_env_creator(entry) if isinstance(entry, str) else entry
    modes = getattr(creator, "metadata", {}).get("render_modes", ())
    if MODE not in modes:
        raise RenderError(where, f"cannot render: it has {', '.join(modes) or 'no render modes'}, not {MODE}")
    return {**kwargs, "render_mode": MODE}


def _check_rendering(envs: Sequence[Env], where: str) -> None:
    for env in envs:
        if (mode := getattr(env, "render_mode", None)) != MODE:
            raise RenderError(
                where, f"cannot render: its render_mode is {mode}; its function needs a parameter render_mode, "
                f"and an env that has {MODE}",
            )  # fmt: skip


def resolve(id: str) -> Callable[..., Any] | None:
    """Return the user's function that an id refers to, or None for a Gymnasium id.

    Raises:
        EnvError: the id is neither.
    """
    module, colon, name = id.partition(":")
    if not colon:
        check_known(id)
        if _is_ale(id):
            raise EnvError(f"env.id={id}", f"Atari games are available only by their v5 id{_nearest(id)}")
        return None
    function = getattr(imported(f"env.id={id}", module), name, None)
    if callable(function):
        return cast(Callable[..., Any], function)
    if name not in gymnasium.registry:
        raise EnvError(f"env.id={id}", f"module {module} has no function {name}, and did not register an env {name}")
    return None


def options(id: str) -> dict[str, bool]:
    """Options of a Gymnasium id, and whether each is an integer; only the common ones if its code cannot be loaded."""
    creator = gymnasium.registry[id].entry_point
    try:
        own = _integers(load_env_creator(creator) if isinstance(creator, str) else creator)
    except Exception:  # raised by its module; creating the env will report it
        own = {}
    return {**own, "max_episode_steps": True}


def _integers(creator: Any) -> dict[str, bool]:
    try:
        parameters = inspect.signature(creator).parameters.values()
    except (TypeError, ValueError):  # not every callable has a signature
        return {}
    return {p.name: type(p.default) is int or p.annotation in (int, "int") for p in parameters}


def with_integers(kwargs: Mapping[str, Any], integers: Mapping[str, bool]) -> dict[str, Any]:
    """Convert whole floats (such as 1e3) to integers for the options that need one."""
    whole = {k: v for k, v in kwargs.items() if integers.get(k) and isinstance(v, float) and v.is_integer()}
    return {**kwargs, **{k: int(v) for k, v in whole.items()}}


def _make_one(id: str, constructor: Callable[[], Env], wrapping: Wrapping) -> Env:
    with named(id, NOT_MADE), quiet_spaces(), _quiet_mujoco(id):
        env = constructor()
    if not isinstance(env, gymnasium.Env):
        raise EnvError(f"env.id={id}", f"returned a {type(env).__name__}, not a gymnasium.Env")
    with quiet_spaces():
        return wrapping(env)


def check_known(id: str) -> None:
    """Raise EnvError with the most similar ids if Gymnasium does not have this one."""
    if id not in gymnasium.registry:
        importlib.import_module("ale_py")  # registers its games, so that they can be found and suggested
    if id not in gymnasium.registry:
        raise EnvError(f"env.id={id}", f"no such env{_nearest(id)}")


def is_builtin(id: str) -> bool:
    """Return whether this id is one of Gymnasium's own envs, rather than registered by another package."""
    return id in gymnasium.registry and str(gymnasium.registry[id].entry_point).startswith("gymnasium.envs.")


def _nearest(id: str) -> str:
    newest: dict[str, tuple[bool, int, str]] = {}
    for known, spec in gymnasium.registry.items():
        if known.startswith("ALE/") or not _is_ale(known):
            key, rank = _plain(known), (spec.namespace is None, spec.version or 0, known)
            newest[key] = max(newest.get(key, rank), rank)
    near = [newest[key][-1] for key in get_close_matches(_plain(id), list(newest), 3, 0.7)]
    return f"; nearest: {', '.join(near)}" if near else "; for an env of your own, use module:function"


def _plain(id: str) -> str:
    """Reduce an id to its bare name: ALE/MsPacman-v5, MsPacmanNoFrameskip-v4 and mspacman give the same."""
    return id.rsplit("/", 1)[-1].rsplit("-v", 1)[0].lower().replace("noframeskip", "")


def _is_ale(id: str) -> bool:
    return str(gymnasium.registry[id].entry_point).startswith("ale_py")


@contextmanager
def _quiet_mujoco(id: str) -> Iterator[None]:
    """Silence MuJoCo's log on the console and in ./MUJOCO_LOG.TXT while models are loaded.

    Gymnasium's own XML files use an attribute that MuJoCo 4 reports as deprecated. Later warnings are about the
    simulation and are not silenced.
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
