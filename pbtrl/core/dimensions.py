"""Dimensions of a search space: prior, bounds and perturbation of one hyperparameter.

A dimension is a frozen dataclass. It owns its scale, its prior (for initial values and resampling), its bounds (for
exploration) and its perturbations. Every value is a plain Python number, string, bool or None, so it passes through
JSON unchanged. The entries of `hparams:` in a config parse into these classes.
"""

import math
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

from typing_extensions import override

from pbtrl.core.values import LARGEST_EXACT_INTEGER, Bounds, Real, Value, Values, Whole
from pbtrl.errors import DimensionError

if TYPE_CHECKING:  # only annotations need numpy; without its import config errors appear faster
    import numpy as np


AGENT = "agent"
"""Reserved hyperparameter name for a member's agent in a mixed population; exploring never changes it."""


@dataclass(frozen=True, kw_only=True)
class _Interval:
    """Base of all dimensions with a `low` and a `high`; subclasses define the scale.

    Attributes:
        low: the prior's smallest value.
        high: the prior's largest value.
        bounds: range of exploration; values beyond it are clipped.
    """

    prior: str
    low: float
    high: float
    bounds: Bounds = None

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}
    natural: ClassVar[tuple[float, float]] = (-sys.float_info.max, sys.float_info.max)
    """Range that the scale itself allows, for example positive values on a log scale."""

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            self._check_natural(name, getattr(self, name))
        if not self.low < self.high:
            raise DimensionError(f"needs low < high, not {self.low!r} and {self.high!r}", "low", "high")
        if not math.isfinite(float(self._to_scale(self.high)) - float(self._to_scale(self.low))):
            raise DimensionError("needs a range that a number can hold", "low", "high")
        if isinstance(self.bounds, list | tuple):
            object.__setattr__(self, "bounds", tuple(self.bounds))
            for bound in self.bounds:
                self._check_natural("bounds", bound)
            if not (self.bounds[0] <= self.low and self.high <= self.bounds[1]):
                text = f"bounds {list(self.bounds)} must contain the prior's range, {[self.low, self.high]}"
                raise DimensionError(text, "bounds", "low", "high")
        elif self.bounds not in (None, "none"):
            raise DimensionError("must be none or [low, high]", "bounds")

    def _check_natural(self, name: str, value: float) -> None:
        if not self.natural[0] <= value <= self.natural[1]:
            raise DimensionError(f"{self.prior} needs a finite {name}", name)

    @property
    def limits(self) -> tuple[float, float]:
        """Closed interval that exploring never leaves."""
        if self.bounds is None:
            return self.low, self.high
        if self.bounds == "none":
            return self.natural
        return cast("tuple[float, float]", self.bounds)

    @property
    def domain(self) -> str:
        """Values that it can have, in words."""
        least, most = self.limits
        return f"in [{least:g}, {most:g}]"

    def within(self, low: float | None, high: float | None) -> Self:
        """Return this dimension with `bounds: none` narrowed to the interval that the agent accepts."""
        if self.bounds != "none":
            return self
        least, most = self.limits
        bounds = (least if low is None else max(least, low), most if high is None else min(most, high))
        return replace(self, bounds=bounds)

    def clip(self, value: Value) -> float:
        """Clip to the limits."""
        least, most = self.limits
        return float(min(max(cast("float", value), least), most))

    def contains(self, value: Value) -> bool:
        """Return whether `value` lies inside the limits."""
        least, most = self.limits
        return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

    def sample(self, rng: "np.random.Generator") -> float:
        """Draw from the prior."""
        drawn = self._from_scale(float(rng.uniform(self._to_scale(self.low), self._to_scale(self.high))))
        return float(min(max(drawn, self.low), self.high))

    def perturb(self, value: Value, factor: float, rng: "np.random.Generator") -> float:
        """Multiply by `factor` (one-minus-log: multiply 1 - value by it), then clip."""
        return self.clip(self._times(self.clip(value), factor))

    def gaussian(self, value: Value, sd: float, rng: "np.random.Generator") -> float:
        """Take a normal step on the dimension's scale, then clip; `sd` is a fraction of the prior's width there."""
        return self.clip(self._step(self.clip(value), sd * float(rng.standard_normal())))

    def to_unit(self, value: Value, *, of_prior: bool = False) -> float:
        """Return the position of a value on the dimension's scale, in [0, 1] between the limits or the prior's ends."""
        low, high = (self.low, self.high) if of_prior else self.limits
        least, most = self._to_scale(low), self._to_scale(high)
        return (self._to_scale(self.clip(value)) - least) / (most - least)

    def from_unit(self, position: float, *, of_prior: bool = False) -> float:
        """Return the value at a position, as `to_unit`, with 6 significant digits, so that all machines agree."""
        low, high = (self.low, self.high) if of_prior else self.limits
        if position <= 0.0 or position >= 1.0:
            return self.clip(low if position <= 0.0 else high)
        least, most = self._to_scale(low), self._to_scale(high)
        value = self.rounded(self._from_scale(least + position * (most - least)))
        return self.clip(min(max(value, low), high))

    def rounded(self, value: float) -> float:
        """Round to 6 significant digits (one-minus-log: of 1 - value); the last digits differ between processors."""
        return float(f"{value:.6g}")

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
    @override
    def _to_scale(self, value: float) -> float:
        return math.log(value)

    @override
    def _from_scale(self, position: float) -> float:
        return math.exp(min(position, 709.0))


class _Integer(_Interval):
    """Base of integer dimensions: rounds, and moves by at least one in the given direction except at a limit."""

    @property
    @override
    def domain(self) -> str:
        return f"an integer {super().domain}"

    @property
    @override
    def limits(self) -> tuple[int, int]:
        least, most = super().limits
        if self.bounds == "none":
            least = min(1, self.low)
        return math.ceil(least), math.floor(most)

    @override
    def clip(self, value: Value) -> int:
        """Round, then clip to the limits."""
        least, most = self.limits
        return min(max(round(cast("float", value)), least), most)

    @override
    def contains(self, value: Value) -> bool:
        """Return whether `value` is an integer inside the limits."""
        return isinstance(value, int) and super().contains(value)

    @override
    def perturb(self, value: Value, factor: float, rng: "np.random.Generator") -> int:
        """Multiply by `factor`, round, move by at least one, clip. Zero moves up for a factor above 1."""
        start = self.clip(value)
        return self._moved(start, self._times(start, factor), upwards=(factor - 1.0) * (start or 1))

    @override
    def gaussian(self, value: Value, sd: float, rng: "np.random.Generator") -> int:
        """Take a normal step on the dimension's scale, round, move by at least one, clip."""
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
    """Uniform in x. Perturbing multiplies x, so only `gaussian` and `resample` can change an exact 0."""

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

    @override
    def _check_natural(self, name: str, value: float) -> None:
        if value <= 0.0:
            raise DimensionError(f"log_uniform needs {name} > 0", name)
        super()._check_natural(name, value)


@dataclass(frozen=True, kw_only=True)
class OneMinusLogUniform(_Interval):
    """Uniform in log(1 - x), for discounts. Perturbing multiplies 1 - x, so a factor above 1 lowers x."""

    prior: Literal["one_minus_log_uniform"] = "one_minus_log_uniform"
    low: Real
    high: Real

    natural: ClassVar[tuple[float, float]] = (0.0, math.nextafter(1.0, 0.0))

    @override
    def _check_natural(self, name: str, value: float) -> None:
        if name == "bounds" and not 0.0 <= value < 1.0:
            raise DimensionError("one_minus_log_uniform needs bounds in [0, 1)", name)
        if name != "bounds" and not 0.0 < value < 1.0:
            raise DimensionError(f"one_minus_log_uniform needs 0 < {name} < 1", name)

    @override
    def _times(self, value: float, factor: float) -> float:
        return 1.0 - (1.0 - value) * factor

    @override
    def rounded(self, value: float) -> float:
        return 1.0 - super().rounded(1.0 - value)

    @override
    def _to_scale(self, value: float) -> float:
        return -math.log1p(-value)

    @override
    def _from_scale(self, position: float) -> float:
        return -math.expm1(min(-position, 709.0))


@dataclass(frozen=True, kw_only=True)
class IntUniform(_Integer):
    """Uniform over the integers from low to high, inclusive."""

    prior: Literal["int_uniform"] = "int_uniform"
    low: Whole
    high: Whole

    natural: ClassVar[tuple[float, float]] = (-LARGEST_EXACT_INTEGER, LARGEST_EXACT_INTEGER)

    @override
    def sample(self, rng: "np.random.Generator") -> int:
        return int(rng.integers(self.low, self.high, endpoint=True))


@dataclass(frozen=True, kw_only=True)
class IntLogUniform(_Integer, _Log):
    """Integers from low to high, inclusive; the probability of n is about proportional to 1/n."""

    prior: Literal["int_log_uniform"] = "int_log_uniform"
    low: Whole
    high: Whole

    natural: ClassVar[tuple[float, float]] = (1, LARGEST_EXACT_INTEGER)

    @override
    def _check_natural(self, name: str, value: float) -> None:
        if value < 1:
            raise DimensionError(f"int_log_uniform needs {name} >= 1", name)
        super()._check_natural(name, value)

    @override
    def sample(self, rng: "np.random.Generator") -> int:
        # Half a step beyond each end, so that rounding gives the first and last integer their full share.
        position = float(rng.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
        return min(max(round(math.exp(position)), self.low), self.high)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Categorical dimension: one of a list of values.

    A `neighbor` step past an end leaves the value unchanged. This random walk visits every value equally often in the
    long run; reflecting at the ends would visit them half as often as the rest.

    Attributes:
        values: at least two distinct values; under `neighbor` their order is the scale.
        mutate: `neighbor` moves one place, `resample` draws any value.
    """

    prior: Literal["choice"] = "choice"
    values: Values
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

    @property
    def domain(self) -> str:
        """Values that it can have, in words."""
        return f"one of {', '.join(map(str, self.values))}"

    def within(self, low: float | None, high: float | None) -> Self:
        """Return the dimension unchanged: a list of values is its own bound."""
        return self

    def clip(self, value: Value) -> Value:
        """Return the value itself, or the nearest number in the list.

        Raises:
            ValueError: the value is not in the list and not a number.
        """
        if value in self.values:
            return self.values[self.values.index(value)]
        numbers = [x for x in self.values if isinstance(x, int | float)]
        if not numbers or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is not one of {list(self.values)}")
        return min(numbers, key=lambda x: abs(x - value))

    def contains(self, value: Value) -> bool:
        """Return whether `value` is in the list."""
        return value in self.values

    def to_unit(self, value: Value, *, of_prior: bool = False) -> float:
        """Return the middle of a value's share of [0, 1]; all values have equal shares."""
        return (self.values.index(value) + 0.5) / len(self.values)

    def from_unit(self, position: float, *, of_prior: bool = False) -> Value:
        """Return the value whose share of [0, 1] contains a position."""
        return self.values[min(max(int(position * len(self.values)), 0), len(self.values) - 1)]

    def sample(self, rng: "np.random.Generator") -> Value:
        """Draw any value, all equally likely."""
        return self.values[int(rng.integers(len(self.values)))]

    def perturb(self, value: Value, factor: float, rng: "np.random.Generator") -> Value:
        """Move one place, up for a factor above 1 and down below 1; or, under `resample`, draw any value."""
        if self.mutate == "resample":
            return self.sample(rng)
        return self._moved(value, (factor > 1.0) - (factor < 1.0))

    def gaussian(self, value: Value, sd: float, rng: "np.random.Generator") -> Value:
        """Move by a normal number of places, at least one; or, under `resample`, draw any value.

        `sd` is a fraction of the list's length.
        """
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
