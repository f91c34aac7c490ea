"""Wrappers around each env: the user's own (`env.wrappers`), and one that turns Dict observations into vectors."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Space, Tuple
from gymnasium.wrappers import FlattenObservation
from typing_extensions import override

from pbtrl.envs.adapters import LARGEST_ONE_HOT, image_height
from pbtrl.envs.errors import ENV_EXCEPTIONS, brief, described, of_the_machine
from pbtrl.envs.importing import imported
from pbtrl.errors import EnvError

Env: TypeAlias = gymnasium.Env[Any, Any]
Wrappers: TypeAlias = Sequence[tuple[str, Mapping[str, Any]]]
"""`module:Wrapper` and its keyword arguments, from the innermost wrapper to the outermost."""


@dataclass(frozen=True)
class Wrapping:
    """Wrappers of each env.

    Attributes:
        wrappers: the user's own wrappers.
        flatten: whether observations become vectors at last.
    """

    wrappers: Wrappers = field(default=())
    flatten: bool = False

    def __bool__(self) -> bool:
        return bool(self.wrappers) or self.flatten

    @override
    def __str__(self) -> str:
        names = [*(name for name, _ in self.wrappers), *(["flatten_observations"] if self.flatten else [])]
        return f" in {', '.join(names)}" if names else ""

    @property
    def setting(self) -> str:
        """Key of the first setting that asks for a wrapper."""
        return "env.wrappers" if self.wrappers else "env.flatten_observations"

    def __call__(self, env: Env) -> Env:
        """Wrap an env.

        Raises:
            EnvError: a wrapper cannot be imported, raises or returns no env, or observations cannot become vectors.
        """
        for place, (name, kwargs) in enumerate(self.wrappers):
            env = _wrapped(env, name, kwargs, f"env.wrappers.{place}")
        return _Flattened(env) if self.flatten else env


def _wrapped(env: Env, name: str, kwargs: Mapping[str, Any], where: str) -> Env:
    where, (module, _, attribute) = f"{where}={name}", name.partition(":")
    wrapper = getattr(imported(where, module), attribute, None)
    if not callable(wrapper):
        raise EnvError(where, f"module {module} has no class or function {attribute}")
    try:
        outer = wrapper(env, **deepcopy(kwargs))
        spaces = (outer.observation_space, outer.action_space) if isinstance(outer, gymnasium.Env) else ()
    except ENV_EXCEPTIONS as error:
        if of_the_machine(error):
            raise
        raise EnvError(where, f"raised {brief(error)}") from error
    if not spaces:
        raise EnvError(where, f"returned {described(outer)}, not a gymnasium.Env")
    for kind, space in zip(("observation_space", "action_space"), spaces, strict=True):
        if not isinstance(space, Space):
            raise EnvError(where, f"its {kind} is {described(space)}, not a gymnasium.spaces.Space")
    wrapped: Env = outer
    return wrapped


class _Flattened(FlattenObservation[Any, Any, Any]):
    """gymnasium's FlattenObservation, which refuses images, and values outside discrete spaces."""

    def __init__(self, env: Env) -> None:
        for name, space in _parts(env.observation_space):
            _check_part(name, space)
        super().__init__(env)

    @override
    def observation(self, observation: Any) -> Any:
        for name, space, value in _values(self.env.observation_space, observation):
            if isinstance(space, Discrete | MultiDiscrete) and not space.contains(value):
                raise ValueError(f"{name} is {described(value)}, which is not in {space}")
        return super().observation(observation)


def _check_part(name: str, space: Space[Any]) -> None:
    where = "env.flatten_observations"
    if isinstance(space, Box) and space.dtype == np.uint8 and image_height(space.shape) is not None:
        sides = "x".join(map(str, space.shape))
        raise EnvError(
            where, f"{name} is an image of {sides}, which no vector should hold; with a wrapper in env.wrappers, "
            "let the env show the image alone, or features of it",
        )  # fmt: skip
    if isinstance(space, Discrete) and space.n > LARGEST_ONE_HOT:
        raise EnvError(where, f"{name} of type {space} has more than {LARGEST_ONE_HOT:,} states for a one-hot vector")
    if not space.is_np_flattenable:
        raise EnvError(where, f"{name} of type {type(space).__name__} has no fixed size, which a vector needs")


def _parts(space: Space[Any], name: str = "the observation") -> Iterator[tuple[str, Space[Any]]]:
    """Yield name and space of every part of a nested space."""
    if not isinstance(space, Dict | Tuple):
        yield name, space
        return
    for key, part in space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces):
        yield from _parts(part, f"{name}[{key!r}]")


def _values(space: Space[Any], value: Any, name: str = "the observation") -> Iterator[tuple[str, Space[Any], Any]]:
    """Yield name, space and value of every part of a nested observation; ValueError if it lacks one."""
    if not isinstance(space, Dict | Tuple):
        yield name, space, value
        return
    parts: dict[Any, Space[Any]] = dict(space.spaces if isinstance(space, Dict) else enumerate(space.spaces))
    result = dict(value if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple) else {})
    if result.keys() != parts.keys():
        raise ValueError(f"{name} is {described(value)}, which is not in {space}")
    for key, part in parts.items():
        yield from _values(part, result[key], f"{name}[{key!r}]")
