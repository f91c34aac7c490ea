"""Types of numbers and values in configs, which pydantic checks, and limits on them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

MAX_MEMBERS = 100_000
"""Largest population size."""

MAX_COUNT = 10**15
"""Largest number of steps, episodes and the like in a config."""

LATEST = 1e10
"""Largest time and duration in files (seconds, or Unix seconds), three centuries."""

LARGEST_SEED = 2**128
"""Largest integer in a config."""

LARGEST_EXACT_INTEGER = 2**53
"""Largest integer that a double, and so every JSON reader, holds exactly."""

Value = bool | int | float | str | None
"""A hyperparameter's value: any JSON scalar."""


def integral(value: Value) -> Value:
    """Return a float without a fraction as an integer, any other value unchanged."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _real(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("float_type", "must be a number")
    return value


def _whole(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise PydanticCustomError("int_type", "must be an integer")
    if abs(value) > LARGEST_SEED:
        raise PydanticCustomError("integer", "must be between -2^128 and 2^128")
    return int(value)


def _bounds(value: object) -> object:
    if value is None or value == "none":
        return value
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(x) in (int, float) for x in value):
        return value
    raise PydanticCustomError("bounds", "must be none or [low, high]")


def _values(value: object) -> object:
    if isinstance(value, list | tuple) and all(x is None or isinstance(x, bool | int | float | str) for x in value):
        return value
    raise PydanticCustomError("values", "must be a list of numbers, strings or true/false")


Real = Annotated[float, BeforeValidator(_real)]
"""A float; `true` and "0.1" are not numbers."""


Whole = Annotated[int, BeforeValidator(_whole)]
"""An int, `3e6` included; `true` and "3" are not integers."""


Bounds = Annotated[tuple[int | float, int | float] | Literal["none"] | None, BeforeValidator(_bounds)]
"""None for the prior's range, "none" for everything that the scale and the agent allow, or [low, high]."""


Values = Annotated[tuple[Value, ...], BeforeValidator(_values)]
"""Values that a hyperparameter is chosen from."""
