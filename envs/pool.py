"""envpool: Gymnasium's classic-control, Box2D, toy-text and MuJoCo envs in C++.

The only file that imports envpool, which is optional (`pip install "pbtrl[fast]"`).
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from types import ModuleType
from typing import Any

# On import, envpool imports all its families of envs, and matplotlib with them: 1.5 s in every process.
sys.modules.setdefault("envpool.entry", ModuleType("envpool.entry"))

import envpool  # noqa: E402
from envpool.registration import registry  # noqa: E402

from envs.vector import EnvError, Spaces, Vector, quiet_spaces  # noqa: E402

for _family in ("box2d", "classic_control", "mujoco.gym", "toy_text"):
    importlib.import_module(f"envpool.{_family}.registration")

UNLIMITED = 2**31 - 1  # as envpool writes that an env has no step limit; for some it is 0

_OURS = {"num_envs", "batch_size", "num_threads", "seed", "env_seed", "max_num_players", "base_path"}


def has(id: str, kwargs: Mapping[str, Any]) -> bool:
    """Whether envpool has this very id and understands every one of `kwargs`."""
    return id in registry.specs and not _unknown(id, kwargs)


def spaces(id: str, kwargs: Mapping[str, Any]) -> Spaces:
    """The spaces of one env as envpool gives them, without making one."""
    _check(id, kwargs)
    with quiet_spaces():
        spec: Any = envpool.make_spec(id, **kwargs)
        return Spaces(spec.gymnasium_observation_space, spec.gymnasium_action_space)


def make(id: str, seeds: Sequence[int], threads: int, kwargs: Mapping[str, Any], where: str) -> Vector:
    """A pool of `len(seeds)` envs on `threads` C++ threads."""
    _check(id, kwargs)
    pool = bare(id, seeds, threads, kwargs)
    with quiet_spaces():
        own = Spaces(pool.observation_space, pool.action_space)
    vector = PoolVector(pool, own, seeds, where)
    limit = pool.config["max_episode_steps"]
    vector.max_episode_steps = limit if 0 < limit < UNLIMITED else None
    return vector


def bare(id: str, seeds: Sequence[int], threads: int, kwargs: Mapping[str, Any]) -> Any:
    """envpool's own pool."""
    with quiet_spaces():
        pool: Any = envpool.make_gymnasium(
            id, num_envs=len(seeds), num_threads=threads, seed=[int(seed) for seed in seeds], **kwargs
        )
        _ = pool.observation_space, pool.action_space  # it remembers them, and at the first step would speak up
    return pool


class PoolVector(Vector):
    """envpool's pool as a Vector.

    It is seeded at its making and converts the actions' type itself. An episode that ends in the world at the
    very step of its time limit is reported as truncated only.
    """

    def _begin(self, seeds: list[int] | None) -> tuple[Any, Mapping[str, Any]]:
        obs, infos = self._pool.reset()
        return obs, infos


def _unknown(id: str, kwargs: Mapping[str, Any]) -> list[str]:
    if not kwargs:
        return []
    with quiet_spaces():
        spec: Any = envpool.make_spec(id)
    return sorted(set(kwargs) - (set(spec.config._fields) - _OURS))


def _check(id: str, kwargs: Mapping[str, Any]) -> None:
    if id not in registry.specs:
        sys.modules.pop("envpool.entry", None)
        importlib.import_module("envpool.entry")
    if id not in registry.specs:
        near = get_close_matches(id, list(registry.specs), 3)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise EnvError(f"env.id={id}: envpool has no such env{hint}; or set env.backend=gymnasium")
    unknown = _unknown(id, kwargs)
    if unknown:
        raise EnvError(f"env.kwargs: envpool's {id} takes no {', '.join(unknown)}; try env.backend=gymnasium")
