"""Between an env's own spaces and what agents see and do.

| the env's observations                                        | agents see                                        |
|---------------------------------------------------------------|---------------------------------------------------|
| Discrete(n), n <= LARGEST_ONE_HOT                             | one-hot float32 [n]                               |
| Box, uint8, three dimensions                                  | picture uint8 [C, H, W]                           |
| Box, uint8, two dimensions, both >= SMALLEST_PICTURE          | picture uint8 [1, H, W]                           |
| Box, uint8, four dimensions, two of them >= SMALLEST_PICTURE  | picture uint8 [C, H, W], the other two merged     |
| Box of any other kind                                         | float32 of its shape; [1] for a single number     |

The height and the width of a picture are its longest pair of neighboring dimensions.

| the env's actions    | agents give                                            | the env is given                  |
|----------------------|--------------------------------------------------------|-----------------------------------|
| Discrete(n, start)   | int64 from 0                                           | int64 from `start`                |
| Box, float [A]       | float32 [A] within the bounds, rounded to float32      | its own type, within its bounds   |

All else is refused.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from numpy.typing import NDArray

from pbtrl.envs.errors import SubEnvError
from pbtrl.errors import EnvError

LARGEST_ONE_HOT = 10_000
"""States of a Discrete observation; each costs a row of weights, and a number in every stored observation."""
SMALLEST_PICTURE = 20
"""Pixels along a side that the smallest of the convolutional networks reads; below, an array is a vector."""

Array = NDArray[Any]
Convert = Callable[[Array], Array]


class Adapter(NamedTuple):
    """A space as agents see it, and the conversion of a batch [N, ...] to it, or of actions from it.

    Attributes:
        remark: what was changed, where users should know it.
    """

    space: Space[Any]
    convert: Convert
    remark: str = ""


def adapt_observations(space: Space[Any], where: str) -> Adapter:
    """From an env's observations to those that agents see; conversion raises SubEnvError for what no agent can take.

    Raises:
        EnvError: for a space that no agent can take.
    """
    if isinstance(space, Discrete):
        return _one_hot(space, where)
    if not isinstance(space, Box):
        wrapper = "FlattenObservation" if space.is_np_flattenable else "TransformObservation"
        raise EnvError(
            f"{where}: observations of type {type(space).__name__} are not supported, only Box and Discrete; wrap the "
            f"env in gymnasium.wrappers.{wrapper} and give it as module:function"
        )
    if 0 in space.shape:
        raise EnvError(f"{where}: observations are empty: the observation space is a Box of shape {space.shape}")
    if space.dtype == np.uint8 and (first := _height(space.shape)) is not None:
        return _picture(space, first)
    return _vector(space)


def adapt_actions(space: Space[Any], where: str) -> Adapter:
    """From the actions that agents give to an env's own.

    Raises:
        EnvError: for a space that no agent can act in.
    """
    if isinstance(space, Discrete):
        start = int(space.start)
        return Adapter(Discrete(int(space.n)), (lambda actions: actions + start) if start else _same)
    if isinstance(space, Box) and len(space.shape) == 1 and space.shape[0] and np.issubdtype(space.dtype, np.floating):
        low, high, dtype = space.low, space.high, space.dtype
        exact = dtype == np.float32
        return Adapter(_rounded(space), _same if exact else lambda a: np.clip(_cast(a, dtype), low, high))
    kind = f"Box of shape {space.shape} and type {space.dtype}" if isinstance(space, Box) else type(space).__name__
    raise EnvError(
        f"{where}: actions of type {kind} are not supported, only Discrete and one-dimensional float Box; "
        "wrap the env in gymnasium.wrappers.TransformAction and give it as module:function"
    )


def _same(batch: Array) -> Array:
    return batch


def _cast(values: Array, dtype: Any) -> Array:
    """The values in another type; those too large for it become infinite."""
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
            f"{where}: observations of type {space} have more states than one-hot vectors are useful for "
            f"({LARGEST_ONE_HOT:,}); show the state as a Box, such as its coordinates, with "
            "gymnasium.wrappers.TransformObservation, and give the env as module:function"
        )
    shown = np.zeros((0, n), np.float32)

    def convert(states: Array) -> Array:
        nonlocal shown
        states = states - start
        outside = (states < 0) | (states >= n)
        if outside.any():
            index = int(outside.argmax())
            raise SubEnvError(index, f"the observation {states[index] + start} is not in the observation space {space}")
        if len(shown) != len(states):
            shown = np.zeros((len(states), n), np.float32)
        shown.fill(0.0)
        shown[np.arange(len(states)), states] = 1.0
        return shown

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


def _height(shape: tuple[int, ...]) -> int | None:
    """The axis of a picture's height, before that of its width; None for what is no picture."""
    if not 2 <= len(shape) <= 4:
        return None
    pairs = [(min(shape[i : i + 2]), sum(shape[i : i + 2]), i) for i in range(len(shape) - 1)]
    side, _, first = max(pairs)
    return first if len(shape) == 3 or side >= SMALLEST_PICTURE else None


def _picture(space: Box, first: int) -> Adapter:
    """Channels first, whatever they are; `first` is the axis of the height."""
    shape = space.shape
    order = [*(i for i in range(len(shape)) if i not in (first, first + 1)), first, first + 1]
    shown = (-1, *shape[first : first + 2])

    def convert(batch: Array) -> Array:
        turned = batch.transpose(0, *(1 + i for i in order))
        return turned if len(shape) == 3 else turned.reshape(len(batch), *shown)

    low, high = (bound.transpose(order).reshape(shown) for bound in (space.low, space.high))
    box = Box(low, high, dtype=np.uint8)
    if len(shape) == 3:
        return Adapter(box, convert)
    written, merged = ("x".join(map(str, sides)) for sides in (shape, box.shape))
    return Adapter(box, convert, f"pictures of {written} as {merged}")
