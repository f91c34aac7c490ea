"""Environments: N copies of any Gymnasium id or user function behind one `Vector` interface.

This package imports gymnasium, ale_py, mujoco and envpool, but no agents. `make` creates a `Vector`; vector.py defines
the meaning of a step.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from pbtrl.envs import gym, maze, probes
from pbtrl.envs.errors import named
from pbtrl.envs.vector import SEED_LIMIT, Spaces, Vector, convert_spaces, with_step_timeout, with_timeout
from pbtrl.envs.wrapping import Wrappers, Wrapping
from pbtrl.errors import EnvError, MissingPackageError

__all__ = [
    "EnvError",
    "Spaces",
    "Vector",
    "describe_backend",
    "make",
    "make_unwrapped",
    "maze",
    "named",
    "probes",
    "resolve_backend",
    "spaces",
    "with_step_timeout",
    "with_timeout",
]

Backend = Literal["auto", "gymnasium", "envpool"]
Protocol = Literal["sticky", "classic"]

_known_spaces: dict[tuple[Any, ...], Spaces] = {}


def make(
    id: str,
    seeds: Sequence[int],
    *,
    threads: int = 1,
    backend: Backend = "auto",
    protocol: Protocol = "sticky",
    training: bool = True,
    kwargs: Mapping[str, Any] | None = None,
    wrappers: Wrappers = (),
    flatten_observations: bool = False,
    rendered: int = 0,
) -> Vector:
    """Create one env per seed.

    Args:
        id: a Gymnasium id, or `module:function` with a function that returns a gymnasium.Env.
        seeds: one per env, in [0, 2**31).
        threads: number of threads that step the envs, in C++ backends only; it does not change the results.
        backend: see `resolve_backend`.
        protocol: evaluation protocol of Atari games (see atari.py); ignored for other envs.
        training: False for evaluation; then a lost life does not terminate the episode in `classic` Atari.
        kwargs: passed to the env or to the user's function.
        wrappers: `module:Wrapper` and keyword arguments of each wrapper around the env, the innermost first. With any,
            gymnasium runs the env.
        flatten_observations: whether observations, such as of type Dict, become vectors; also by a wrapper.
        rendered: number of envs, from the first on, that `Vector.render` can show. With any, `backend` is ignored and
            gymnasium runs the env, because envpool cannot render without a display.

    Raises:
        RenderError: the env cannot render.
        EnvError: the env cannot be created; the message is one line.
    """
    kwargs, wrapping = kwargs or {}, Wrapping(wrappers, flatten_observations)
    _check(protocol, threads, seeds)
    chosen = resolve_backend(id, "gymnasium" if rendered else backend, kwargs, wrappers, flatten_observations)
    where = f"env.id={id}{wrapping}"
    if _is_atari(id):
        vector: Vector = _atari(id).make(id, seeds, threads, protocol, training, kwargs, where, rendered)
    elif chosen == "envpool":
        vector = _envpool().make(id, seeds, threads, kwargs, where)
    else:
        vector = gym.make(id, seeds, kwargs, wrapping, where, rendered)
    return vector


def make_unwrapped(
    id: str,
    seeds: Sequence[int],
    *,
    threads: int = 1,
    backend: Backend = "auto",
    protocol: Protocol = "sticky",
    kwargs: Mapping[str, Any] | None = None,
    wrappers: Wrappers = (),
    flatten_observations: bool = False,
) -> Any:
    """Create the underlying library's vector env without our wrapper, as a baseline for benchmarks."""
    kwargs, wrapping = kwargs or {}, Wrapping(wrappers, flatten_observations)
    chosen = resolve_backend(id, backend, kwargs, wrappers, flatten_observations)
    if _is_atari(id):
        return _atari(id).make_unwrapped(id, seeds, threads, protocol, kwargs)
    if chosen == "envpool":
        return _envpool().make_unwrapped(id, seeds, threads, kwargs)
    return gym.make_unwrapped(id, seeds, kwargs, wrapping)


def spaces(
    id: str,
    *,
    backend: Backend = "auto",
    protocol: Protocol = "sticky",
    kwargs: Mapping[str, Any] | None = None,
    wrappers: Wrappers = (),
    flatten_observations: bool = False,
) -> Spaces:
    """Return the spaces of one env of `make`, as cheaply as possible; the result is cached.

    With the gymnasium backend, this creates an env, resets it and steps it once.

    Raises:
        EnvError: the env cannot be created; the message is one line.
    """
    kwargs, wrapping = kwargs or {}, Wrapping(wrappers, flatten_observations)
    _check(protocol)
    chosen = resolve_backend(id, backend, kwargs, wrappers, flatten_observations)
    key = (id, chosen, protocol, repr(sorted(kwargs.items())), repr(wrapping), gym.resolve(id) if ":" in id else None)
    if key not in _known_spaces:
        _known_spaces[key] = _look(id, chosen, protocol, kwargs, wrapping, f"env.id={id}{wrapping}")
    return _known_spaces[key]


def resolve_backend(
    id: str,
    backend: Backend = "auto",
    kwargs: Mapping[str, Any] | None = None,
    wrappers: Wrappers = (),
    flatten_observations: bool = False,
    protocol: Protocol = "sticky",
) -> Literal["gymnasium", "envpool"]:
    """Choose the library that runs `id`.

    `auto` uses envpool for Gymnasium's own envs if envpool is installed, has this exact id and gives all `kwargs` the
    same meaning. Atari games always run in ale_py's own vector env, which counts as gymnasium. Envs with
    wrappers run in gymnasium. `protocol` does not matter.
    """
    wrapping = Wrapping(wrappers, flatten_observations)
    if backend not in get_args(Backend):
        raise EnvError(f"env.backend={backend}", f"must be one of {', '.join(get_args(Backend))}")
    if wrapping and _is_atari(id):
        raise EnvError(
            wrapping.setting, "Atari games run in ale_py's own vector env, where none can be wrapped; set env.id to a "
            "module:function that returns a wrapped game",
        )  # fmt: skip
    if wrapping and backend == "envpool":
        raise EnvError("env.backend", f"envpool cannot run what {wrapping.setting} wraps; set env.backend=auto")
    if backend == "gymnasium" or wrapping:
        return "gymnasium"
    if _is_atari(id) or ":" in id:
        if backend == "auto":
            return "gymnasium"
        raise EnvError("env.backend", f"envpool cannot run env.id={id}; set env.backend=auto")
    if backend == "auto" and not gym.is_builtin(id):
        return "gymnasium"
    pool = _envpool(required=backend == "envpool")
    same = backend == "envpool" or (pool and pool.has(id) and not pool.unlike(id, kwargs or {}))
    return "envpool" if same else "gymnasium"


def describe_backend(id: str, backend: str, kwargs: Mapping[str, Any]) -> str:
    """Describe the resolved backend, with the reason if envpool has the env but interprets some kwargs differently."""
    if backend == "gymnasium" and kwargs and ":" not in id and gym.is_builtin(id):
        pool = _envpool(required=False)
        if pool and pool.has(id) and (unlike := pool.unlike(id, kwargs)):
            names = ", ".join(f"env.kwargs.{name}" for name in unlike)
            return f"gymnasium, because envpool interprets {names} differently"
    return backend


def _look(
    id: str, backend: str, protocol: Protocol, kwargs: Mapping[str, Any], wrapping: Wrapping, where: str
) -> Spaces:
    if _is_atari(id):
        return convert_spaces(_atari(id).spaces(id, protocol, kwargs), where)
    if backend == "envpool":
        return convert_spaces(_envpool().spaces(id, kwargs), where)
    return gym.spaces(id, kwargs, wrapping, where)


def _is_atari(id: str) -> bool:
    return id.startswith("ALE/")


def _atari(id: str) -> Any:
    gym.check_known(id)
    return importlib.import_module("pbtrl.envs.atari")


def _envpool(required: bool = True) -> Any:
    try:
        return importlib.import_module("pbtrl.envs.pool")
    except ImportError as error:
        if required:
            raise MissingPackageError("the back end", "envpool", "fast", ("env", "backend")) from error
        return None


def _check(protocol: str, threads: int = 1, seeds: Sequence[int] = (0,)) -> None:
    if protocol not in get_args(Protocol):
        raise EnvError(f"env.protocol={protocol}", f"must be one of {', '.join(get_args(Protocol))}")
    if threads < 1:
        raise EnvError(f"threads={threads}", "must be at least 1")
    if not len(seeds):
        raise EnvError("seeds", "must contain at least one seed, because there is one env per seed")
    wrong = [seed for seed in seeds if not 0 <= seed < SEED_LIMIT]
    if wrong:
        raise EnvError(f"seed {wrong[0]}", "env seeds must be in [0, 2**31)")
