"""Positions of values in [-1, 1]: the low and the high end of the prior, on the dimension's own scale."""

from __future__ import annotations

import math
from collections.abc import Callable

from pbtrl.core.dimensions import Choice, Dimension, IntLogUniform, IntUniform, LogUniform, OneMinusLogUniform, Value


def from_unit(dimension: Dimension, position: float) -> Value:
    """Return the value at a position, which is clipped to [-1, 1].

    Integers are rounded, and all choices have equal shares. Floats are rounded to 6 significant digits (one-minus-log:
    of 1 - value), so that suggestions do not depend on the machine.
    """
    fraction = (min(max(position, -1.0), 1.0) + 1.0) / 2.0
    if isinstance(dimension, Choice):
        return dimension.values[min(int(fraction * len(dimension.values)), len(dimension.values) - 1)]
    to_scale, from_scale = _scale(dimension)
    low, high = to_scale(dimension.low), to_scale(dimension.high)
    value = from_scale(low + fraction * (high - low))
    if isinstance(dimension, IntUniform | IntLogUniform):
        return min(max(round(value), dimension.low), dimension.high)
    value = 1.0 - _rounded(1.0 - value) if isinstance(dimension, OneMinusLogUniform) else _rounded(value)
    return min(max(value, dimension.low), dimension.high)


def to_unit(dimension: Dimension, value: Value) -> float:
    """Return the position of a value; of a choice, the middle of its share."""
    if isinstance(dimension, Choice):
        return 2.0 * (dimension.values.index(value) + 0.5) / len(dimension.values) - 1.0
    to_scale, _ = _scale(dimension)
    low, high = to_scale(dimension.low), to_scale(dimension.high)
    return 2.0 * (to_scale(float(value)) - low) / (high - low) - 1.0  # type: ignore[arg-type]


def _scale(dimension: Dimension) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """Return the functions to and from the scale on which the prior is uniform."""
    if isinstance(dimension, LogUniform | IntLogUniform):
        return math.log, math.exp
    if isinstance(dimension, OneMinusLogUniform):
        return lambda x: -math.log1p(-x), lambda y: -math.expm1(-y)
    return float, float


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
