"""Conversion between an env's own spaces and those that agents support.

| observations of the env                                       | observations of the agent                         |
|---------------------------------------------------------------|---------------------------------------------------|
| Discrete(n), n <= LARGEST_ONE_HOT                             | one-hot float32 [n]                               |
| Box, uint8, three dimensions                                  | image uint8 [C, H, W]                             |
| Box, uint8, two dimensions, both >= SMALLEST_PICTURE          | image uint8 [1, H, W]                             |
| Box, uint8, four dimensions, two of them >= SMALLEST_PICTURE  | image uint8 [C, H, W], with the other two merged  |
| any other Box                                                 | float32 of the same shape; [1] for a scalar       |

The height and width of an image are the largest pair of adjacent dimensions.

| actions of the env   | actions from the agent                                 | actions passed to the env         |
|----------------------|--------------------------------------------------------|-----------------------------------|
| Discrete(n, start)   | int64 from 0                                           | int64 from `start`                |
| MultiDiscrete(n, start) | int64 [slots] from 0                                | its own type and shape, from `start` |
| Box, float [A]       | float32 [A] within the bounds, rounded to float32      | the Box's type, within its bounds |

All other spaces are refused. wrapping.py turns Dict, Tuple and similar observations into vectors first, on request.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space
from numpy.typing import NDArray

from pbtrl.envs.errors import SubEnvError
from pbtrl.errors import EnvError

LARGEST_ONE_HOT = 10_000
"""Maximum number of states of a Discrete observation, as each costs a row of weights and a float per observation."""
SMALLEST_PICTURE = 20
"""Minimum side in pixels of an image, the input size of the smallest convolutional network; below, it is a vector."""

Array = NDArray[Any]
Convert = Callable[[Array], Array]


class Adapter(NamedTuple):
    """The agent's side of a space, and the conversion of a batch [N, ...] of observations to it or actions from it.

    Attributes:
        space: the space that the agent sees.
        convert: conversion of a batch.
        remark: description of a change that users should know about.
    """

    space: Space[Any]
    convert: Convert
    remark: str = ""


def adapt_observations(space: Space[Any], where: str) -> Adapter:
    """Adapt an env's observation space to agents; the conversion raises SubEnvError for invalid observations.

    Raises:
        EnvError: no agent supports this space.
    """
    if isinstance(space, Discrete):
        return _one_hot(space, where)
    if not isinstance(space, Box):
        flat = "set env.flatten_observations=true to see them as a vector"
        remedy = flat if space.is_np_flattenable else "wrap the env in a gymnasium.ObservationWrapper with env.wrappers"
        raise EnvError(
            where, f"observations of type {type(space).__name__} are not supported, only Box and Discrete; {remedy}"
        )
    if 0 in space.shape:
        raise EnvError(where, f"observations are empty: the observation space is a Box of shape {space.shape}")
    if space.dtype == np.uint8 and (first := image_height(space.shape)) is not None:
        return _picture(space, first)
    return _vector(space)


def adapt_actions(space: Space[Any], where: str) -> Adapter:
    """Adapt an env's action space to agents.

    Raises:
        EnvError: no agent supports this space.
    """
    if isinstance(space, Discrete):
        start = int(space.start)
        return Adapter(Discrete(int(space.n)), (lambda actions: actions + start) if start else _same)
    if isinstance(space, MultiDiscrete):
        first, shape, kind = space.start, space.shape, space.dtype
        return Adapter(
            MultiDiscrete(space.nvec.ravel()), lambda actions: (actions.reshape(-1, *shape) + first).astype(kind)
        )
    if isinstance(space, Box) and len(space.shape) == 1 and space.shape[0] and np.issubdtype(space.dtype, np.floating):
        low, high, dtype = space.low, space.high, space.dtype
        exact = dtype == np.float32
        return Adapter(_rounded(space), _same if exact else lambda a: np.clip(_cast(a, dtype), low, high))
    name = f"Box of shape {space.shape} and type {space.dtype}" if isinstance(space, Box) else type(space).__name__
    raise EnvError(
        where,
        f"actions of type {name} are not supported, only Discrete, MultiDiscrete and one-dimensional float Box; "
        "wrap the env in gymnasium.wrappers.TransformAction and set env.id to a module:function that returns it",
    )


def _same(batch: Array) -> Array:
    return batch


def _cast(values: Array, dtype: Any) -> Array:
    """Cast to another type; values that are too large for it become infinite."""
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


def _rounded(space: Box, shape: tuple[int, ...] | None = None) -> Box:
    shape = space.shape if shape is None else shape
    low, high = (_cast(bound, np.float32).reshape(shape) for bound in (space.low, space.high))
    return Box(low, high, dtype=np.float32)


def _one_hot(space: Discrete, where: str) -> Adapter:
    n, start = int(space.n), int(space.start)
    if n > LARGEST_ONE_HOT:
        raise EnvError(
            where,
            f"observations of type {space} have too many states for one-hot vectors, more than "
            f"{LARGEST_ONE_HOT:,}; turn them into a Box, such as coordinates, with "
            "gymnasium.wrappers.TransformObservation, and set env.id to a module:function that returns the env",
        )
    one_hot = np.zeros((0, n), np.float32)

    def convert(states: Array) -> Array:
        nonlocal one_hot
        states = states - start
        outside = (states < 0) | (states >= n)
        if outside.any():
            index = int(outside.argmax())
            raise SubEnvError(index, f"the observation {states[index] + start} is not in the observation space {space}")
        if len(one_hot) != len(states):
            one_hot = np.zeros((len(states), n), np.float32)
        one_hot.fill(0.0)
        one_hot[np.arange(len(states)), states] = 1.0
        return one_hot

    return Adapter(Box(0.0, 1.0, (n,), np.float32), convert)


def _vector(space: Box) -> Adapter:
    shape = space.shape or (1,)

    def convert(batch: Array) -> Array:
        batch = _cast(batch, np.float32).reshape(-1, *shape)
        if not np.isfinite(batch).all():
            index, *place = (int(i) for i in np.argwhere(~np.isfinite(batch))[0])
            raise SubEnvError(index, f"the observation is not finite: {batch[index, *place]} at {place}")
        return batch

    exact = space.dtype == np.float32 and space.shape == shape
    return Adapter(space if exact else _rounded(space, shape), convert)


def image_height(shape: tuple[int, ...]) -> int | None:
    """Return the axis of an image's height, which the width follows; None if the shape is not that of an image."""
    if not 2 <= len(shape) <= 4:
        return None
    pairs = [(min(shape[i : i + 2]), sum(shape[i : i + 2]), i) for i in range(len(shape) - 1)]
    side, _, first = max(pairs)
    return first if len(shape) == 3 or side >= SMALLEST_PICTURE else None


def image_axes(space: Box) -> list[int]:
    """Order of an image's axes for agents: all others, as channels, before height and width."""
    first, axes = image_height(space.shape), range(len(space.shape))
    assert first is not None
    return [*(i for i in axes if i not in (first, first + 1)), first, first + 1]


def _picture(space: Box, first: int) -> Adapter:
    """Move all other axes to the front, as channels; `first` is the axis of the height."""
    shape, order = space.shape, image_axes(space)
    image_shape = (-1, *shape[first : first + 2])

    def convert(batch: Array) -> Array:
        transposed = batch.transpose(0, *(1 + i for i in order))
        return transposed if len(shape) == 3 else transposed.reshape(len(batch), *image_shape)

    low, high = (bound.transpose(order).reshape(image_shape) for bound in (space.low, space.high))
    box = Box(low, high, dtype=np.uint8)
    if len(shape) == 3:
        return Adapter(box, convert)
    original, merged = ("x".join(map(str, sides)) for sides in (shape, box.shape))
    return Adapter(box, convert, f"images of {original} as {merged}")
