"""The envpool backend: Gymnasium's classic-control, Box2D, toy-text and MuJoCo envs in C++.

This is the only module that imports envpool, which is optional (`pip install "pbtrl[fast]"`).
"""

import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from typing_extensions import override

# Importing envpool.entry would load all families of envs and matplotlib, which takes 1.5 s in every process.
sys.modules.setdefault("envpool.entry", ModuleType("envpool.entry"))

import envpool  # noqa: E402
import gymnasium  # noqa: E402
from envpool.registration import registry  # noqa: E402

from pbtrl.envs import gym  # noqa: E402
from pbtrl.envs.errors import NOT_MADE, named  # noqa: E402
from pbtrl.envs.vector import Spaces, Vector, quiet_spaces  # noqa: E402
from pbtrl.errors import EnvError  # noqa: E402

for _family in ("box2d", "classic_control", "mujoco.gym", "toy_text"):
    importlib.import_module(f"envpool.{_family}.registration")

UNLIMITED = 2**31 - 1  # envpool's value for an env without a step limit; some envs use 0 instead

_OURS = {"num_envs", "batch_size", "num_threads", "seed", "env_seed", "max_num_players", "base_path"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


_SHARED: dict[str, Callable[[Any], bool]] = {
    "contact_cost_weight": _is_number,
    "ctrl_cost_weight": _is_number,
    "exclude_current_positions_from_observation": _is_flag,
    "forward_reward_weight": _is_number,
    "frame_skip": _is_count,
    "healthy_reward": _is_number,
    "max_episode_steps": _is_count,
    "reset_noise_scale": lambda value: _is_number(value) and value >= 0,
    "terminate_when_unhealthy": _is_flag,
}
"""Options with the same meaning in gymnasium and envpool, with a test for values that both accept."""


def has(id: str) -> bool:
    """Return whether envpool has exactly this id."""
    return id in registry.specs


def unlike(id: str, kwargs: Mapping[str, Any]) -> list[str]:
    """Return the `kwargs` whose meaning differs between gymnasium and envpool, or whose value one of them rejects."""
    both = _defaults(id).keys() & gym.options(id).keys() if kwargs else set()
    return [k for k, v in _given(id, kwargs).items() if k not in both or not _is_shared(k, v)]


def spaces(id: str, kwargs: Mapping[str, Any]) -> Spaces:
    """Return envpool's spaces of one env, without creating it."""
    given = _checked(id, kwargs)
    with quiet_spaces(), named(id, NOT_MADE):
        spec: Any = envpool.make_spec(id, **given)
        return Spaces(spec.gymnasium_observation_space, spec.gymnasium_action_space)


def make(id: str, seeds: Sequence[int], threads: int, kwargs: Mapping[str, Any], where: str) -> Vector:
    """Create `len(seeds)` envs on `threads` C++ threads."""
    with named(id, NOT_MADE):
        pool = make_unwrapped(id, seeds, threads, _checked(id, kwargs))
    with quiet_spaces():
        own = Spaces(pool.observation_space, pool.action_space)
    vector = PoolVector(pool, own, seeds, where)
    limit = pool.config["max_episode_steps"]
    vector.max_episode_steps = limit if 0 < limit < UNLIMITED else None
    return vector


def make_unwrapped(id: str, seeds: Sequence[int], threads: int, kwargs: Mapping[str, Any]) -> Any:
    """Create envpool's own pool."""
    given = _given(id, kwargs)
    with quiet_spaces():
        pool: Any = envpool.make_gymnasium(
            id, num_envs=len(seeds), num_threads=threads, seed=[int(seed) for seed in seeds], **given
        )
        _ = pool.observation_space, pool.action_space  # cached here, where the warnings about bounds are silenced
    return pool


class PoolVector(Vector):
    """envpool's pool as a `Vector`.

    The pool is seeded when it is created, and converts the type of actions itself. An episode that terminates exactly
    at its time limit is reported as truncated only.
    """

    @override
    def _begin(self, seeds: list[int] | None) -> tuple[Any, Mapping[str, Any]]:
        obs, infos = self._pool.reset()
        return obs, infos


def _defaults(id: str) -> dict[str, Any]:
    """Return envpool's options of an env, with their defaults."""
    with quiet_spaces():
        spec: Any = envpool.make_spec(id)
    return {name: value for name, value in spec.config._asdict().items() if name not in _OURS}


def _given(id: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if not kwargs:
        return {}
    return gym.with_integers(kwargs, {name: type(value) is int for name, value in _defaults(id).items()})


def _is_shared(name: str, value: Any) -> bool:
    return name in _SHARED and _SHARED[name](value)


def _checked(id: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Validate the options for envpool, if the user chose it; options that only envpool has are allowed."""
    if id not in registry.specs:
        sys.modules.pop("envpool.entry", None)
        importlib.import_module("envpool.entry")
    if id not in registry.specs:
        near = get_close_matches(id, list(registry.specs), 3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise EnvError(f"env.id={id}", f"envpool has no such env{hint}; or set env.backend=gymnasium")
    given = _given(id, kwargs)
    if given and (unknown := sorted(given.keys() - _defaults(id).keys())):
        raise EnvError("env.kwargs", f"envpool's {id} has no option {', '.join(unknown)}; try env.backend=gymnasium")
    for name, value in given.items():
        if name in _SHARED and not _SHARED[name](value):
            raise EnvError(
                f"env.kwargs.{name}={value}", "envpool does not accept this value; try env.backend=gymnasium"
            )
        if name not in _SHARED and id in gymnasium.registry and name in gym.options(id):
            raise EnvError(
                f"env.kwargs.{name}", "envpool and gymnasium interpret it differently; set env.backend=gymnasium"
            )
    return given
