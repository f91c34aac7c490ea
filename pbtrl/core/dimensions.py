"""Dimensions of a search space: the values a hyperparameter may take, where it starts, and how exploring moves it.

A dimension is a frozen value that owns its scale, its prior (where members start, what resampling draws), its
bounds (what exploring may reach) and its way of moving. Every value is a plain Python number, string, bool or
None, so it passes through JSON unchanged. The entries of `hparams:` in a config parse into these classes."""

import math
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from pbtrl.errors import DimensionError

if TYPE_CHECKING:  # the annotations alone need numpy, and config errors are quicker without it
    import numpy as np


Value = bool | int | float | str | None
"""A hyperparameter's value: whatever JSON has for a scalar."""


AGENT = "agent"
"""What a member's hyperparameters call the agent that it is, in a population of several; exploring never moves it."""


LARGEST_INTEGER = 2**53
"""Integers above this are not exact as a double, so not in every JSON reader."""


def _real(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("float_type", "must be a number")
    return value


MEMBERS = 100_000  # of a population, at most


LARGEST = 2**128  # of integers: seeds may have 128 bits


def _whole(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
        raise PydanticCustomError("int_type", "must be an integer")
    if abs(value) > LARGEST:
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
"""None for the prior's range, "none" for as far as the scale and the agent allow, or [low, high]."""


@dataclass(frozen=True, kw_only=True)
class _Interval:
    """Everything with a `low` and a `high`. Subclasses state their scale.

    Attributes:
        low: the prior's smallest value.
        high: the prior's largest value.
        bounds: what exploring may reach; a clipped value stays at the bound.
    """

    prior: str
    low: float
    high: float
    bounds: Bounds = None

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}
    natural: ClassVar[tuple[float, float]] = (-sys.float_info.max, sys.float_info.max)
    """What the scale itself allows: a logarithm stays positive."""

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            self._check_natural(name, getattr(self, name))
        if not self.low < self.high:
            raise DimensionError(f"needs low < high, not {self.low!r} and {self.high!r}", "low", "high")
        if isinstance(self.bounds, list | tuple):
            object.__setattr__(self, "bounds", tuple(self.bounds))
            for bound in self.bounds:
                self._check_natural("bounds", bound)
            if not (self.bounds[0] <= self.low and self.high <= self.bounds[1]):
                held, prior = list(self.bounds), [self.low, self.high]
                text = f"bounds {held} must contain the prior's range, {prior}"
                raise DimensionError(text, "bounds", "low", "high")
        elif self.bounds not in (None, "none"):
            raise DimensionError("must be none or [low, high]", "bounds")

    def _check_natural(self, name: str, value: float) -> None:
        if not self.natural[0] <= value <= self.natural[1]:
            raise DimensionError(f"{self.prior} needs a finite {name}", name)

    @property
    def limits(self) -> tuple[float, float]:
        """The closed interval that exploring never leaves."""
        if self.bounds is None:
            return self.low, self.high
        if self.bounds == "none":
            return self.natural
        return cast("tuple[float, float]", self.bounds)

    def within(self, low: float | None, high: float | None) -> Self:
        """The same dimension, with `bounds: none` narrowed to the interval that the agent accepts."""
        if self.bounds != "none":
            return self
        least, most = self.limits
        return replace(
            self,
            bounds=(least if low is None else max(least, low), most if high is None else min(most, high)),
        )

    def clip(self, value: Value) -> float:
        """The nearest value inside the limits."""
        least, most = self.limits
        return min(max(float(cast("float", value)), least), most)

    def contains(self, value: Value) -> bool:
        """Whether exploring may arrive at `value`."""
        least, most = self.limits
        return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

    def sample(self, rng: "np.random.Generator") -> float:
        """Draw from the prior."""
        drawn = self._from_scale(float(rng.uniform(self._to_scale(self.low), self._to_scale(self.high))))
        return min(max(drawn, self.low), self.high)

    def perturb(self, value: Value, factor: float, rng: "np.random.Generator") -> float:
        """Multiply by `factor` (one-minus-log: multiply 1 - value), then clip."""
        return self.clip(self._times(self.clip(value), factor))

    def gaussian(self, value: Value, sd: float, rng: "np.random.Generator") -> float:
        """A normal step on the dimension's own scale; `sd` is a fraction of the prior's width there."""
        return self.clip(self._step(self.clip(value), sd * float(rng.standard_normal())))

    def _step(self, value: float, widths: float) -> float:
        width = abs(self._to_scale(self.high) - self._to_scale(self.low))
        return self._from_scale(self._to_scale(value) + widths * width)

    def _times(self, value: float, factor: float) -> float:
        return value * factor

    def _to_scale(self, value: float) -> float:
        return value

    def _from_scale(self, position: float) -> float:
        return position


class _Log(_Interval):
    def _to_scale(self, value: float) -> float:
        return math.log(value)

    def _from_scale(self, position: float) -> float:
        return math.exp(min(position, 709.0))


class _Integer(_Interval):
    """Rounds, and moves by at least one in the direction asked for unless it stands at a limit."""

    @property
    def limits(self) -> tuple[int, int]:
        """The closed interval of integers that exploring never leaves."""
        least, most = super().limits
        if self.bounds == "none":
            least = min(1, self.low)
        return math.ceil(least), math.floor(most)

    def clip(self, value: Value) -> int:
        """The nearest integer inside the limits."""
        least, most = self.limits
        return min(max(round(cast("float", value)), least), most)

    def contains(self, value: Value) -> bool:
        """Whether `value` is an integer that exploring may arrive at."""
        return isinstance(value, int) and super().contains(value)

    def perturb(self, value: Value, factor: float, rng: "np.random.Generator") -> int:
        """Multiply by `factor`, round, move by at least one, clip. Zero moves up for a factor above 1."""
        start = self.clip(value)
        upwards = (factor - 1.0) * (start if start != 0 else 1)
        return self._moved(start, self._times(start, factor), upwards)

    def gaussian(self, value: Value, sd: float, rng: "np.random.Generator") -> int:
        """A normal step on the dimension's own scale, rounded, at least one, clipped."""
        start = self.clip(value)
        widths = sd * float(rng.standard_normal())
        return self._moved(start, self._step(start, widths), widths)

    def _moved(self, start: int, target: float, upwards: float) -> int:
        if upwards == 0.0:
            return start
        least, most = self.limits
        rounded = round(min(max(target, least), most))
        return self.clip(max(rounded, start + 1) if upwards > 0.0 else min(rounded, start - 1))


@dataclass(frozen=True, kw_only=True)
class Uniform(_Interval):
    """Uniform in x; perturbing multiplies x, so an exact 0 moves by `gaussian` or `resample` only."""

    prior: Literal["uniform"] = "uniform"
    low: Real
    high: Real


@dataclass(frozen=True, kw_only=True)
class LogUniform(_Log):
    """Uniform in log x, x > 0."""

    prior: Literal["log_uniform"] = "log_uniform"
    low: Real
    high: Real

    natural: ClassVar[tuple[float, float]] = (sys.float_info.min, sys.float_info.max)

    def _check_natural(self, name: str, value: float) -> None:
        if value <= 0.0:
            raise DimensionError(f"log_uniform needs {name} > 0", name)
        super()._check_natural(name, value)


@dataclass(frozen=True, kw_only=True)
class OneMinusLogUniform(_Interval):
    """Uniform in log(1 - x), for discounts; perturbing multiplies 1 - x, so a factor above 1 lowers x."""

    prior: Literal["one_minus_log_uniform"] = "one_minus_log_uniform"
    low: Real
    high: Real

    natural: ClassVar[tuple[float, float]] = (0.0, math.nextafter(1.0, 0.0))

    def _check_natural(self, name: str, value: float) -> None:
        if name == "bounds" and not 0.0 <= value < 1.0:
            raise DimensionError("one_minus_log_uniform needs bounds in [0, 1)", name)
        if name != "bounds" and not 0.0 < value < 1.0:
            raise DimensionError(f"one_minus_log_uniform needs 0 < {name} < 1", name)

    def _times(self, value: float, factor: float) -> float:
        return 1.0 - (1.0 - value) * factor

    def _to_scale(self, value: float) -> float:
        return -math.log1p(-value)

    def _from_scale(self, position: float) -> float:
        return -math.expm1(min(-position, 709.0))


@dataclass(frozen=True, kw_only=True)
class IntUniform(_Integer):
    """Uniform over the integers from low to high, both included."""

    prior: Literal["int_uniform"] = "int_uniform"
    low: Whole
    high: Whole

    natural: ClassVar[tuple[float, float]] = (-LARGEST_INTEGER, LARGEST_INTEGER)

    def sample(self, rng: "np.random.Generator") -> int:
        """Draw from the prior."""
        return int(rng.integers(self.low, self.high, endpoint=True))


@dataclass(frozen=True, kw_only=True)
class IntLogUniform(_Integer, _Log):
    """Integers from low to high, n with probability proportional to about 1/n."""

    prior: Literal["int_log_uniform"] = "int_log_uniform"
    low: Whole
    high: Whole

    natural: ClassVar[tuple[float, float]] = (1, LARGEST_INTEGER)

    def _check_natural(self, name: str, value: float) -> None:
        if value < 1:
            raise DimensionError(f"int_log_uniform needs {name} >= 1", name)
        super()._check_natural(name, value)

    def sample(self, rng: "np.random.Generator") -> int:
        """Draw from the prior; the half steps outside give the first and last integer their share."""
        position = float(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
        return min(max(round(math.exp(position)), self.low), self.high)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of a list of values.

    Attributes:
        values: at least two different ones; under `neighbor` their order is the scale.
        mutate: `neighbor` moves one place, `resample` draws any value.

    A neighbor step past an end stays where it is. That walk visits every value equally often in the long
    run; turning back inwards would visit the ends half as often as the rest.
    """

    prior: Literal["choice"] = "choice"
    values: Annotated[tuple[Value, ...], BeforeValidator(_values)]
    mutate: Literal["neighbor", "resample"] = "resample"

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if len(self.values) < 2:
            raise DimensionError("choice needs at least 2 values", "values")
        if any(value in self.values[:place] for place, value in enumerate(self.values)):
            raise DimensionError("choice needs values that differ", "values")
        if any(isinstance(value, float) and not math.isfinite(value) for value in self.values):
            raise DimensionError("choice needs finite values", "values")

    def within(self, low: float | None, high: float | None) -> Self:
        """The same dimension: a list of values is its own bound."""
        return self

    def clip(self, value: Value) -> Value:
        """The value itself, or for a number that is not in the list the nearest one."""
        if value in self.values:
            return self.values[self.values.index(value)]
        numbers = [x for x in self.values if isinstance(x, int | float)]
        if not numbers or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is not one of {list(self.values)}")
        return min(numbers, key=lambda x: abs(x - value))

    def contains(self, value: Value) -> bool:
        """Whether `value` is one of the values."""
        return value in self.values

    def sample(self, rng: "np.random.Generator") -> Value:
        """Draw any value."""
        return self.values[int(rng.integers(len(self.values)))]

    def perturb(self, value: Value, factor: float, rng: "np.random.Generator") -> Value:
        """One place up for a factor above 1, one down for a factor below; or draw any value."""
        if self.mutate == "resample":
            return self.sample(rng)
        return self._moved(value, (factor > 1.0) - (factor < 1.0))

    def gaussian(self, value: Value, sd: float, rng: "np.random.Generator") -> Value:
        """A normal step in places, `sd` a fraction of the list's length, at least one; or draw any value."""
        if self.mutate == "resample":
            return self.sample(rng)
        step = sd * (len(self.values) - 1) * float(rng.standard_normal())
        return self._moved(value, round(step) or int(math.copysign(1, step)))

    def _moved(self, value: Value, places: int) -> Value:
        place = self.values.index(self.clip(value)) + places
        return self.values[min(max(place, 0), len(self.values) - 1)]


Dimension = Uniform | LogUniform | OneMinusLogUniform | IntUniform | IntLogUniform | Choice


PRIORS: dict[str, type[Dimension]] = {
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "one_minus_log_uniform": OneMinusLogUniform,
    "int_uniform": IntUniform,
    "int_log_uniform": IntLogUniform,
    "choice": Choice,
}
