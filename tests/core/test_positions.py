"""Positions of values in the prior's range of each dimension."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pbtrl.core.dimensions import Choice, Dimension, IntLogUniform, IntUniform, LogUniform, OneMinusLogUniform, Uniform
from pbtrl.core.values import Value


def from_unit(dimension: Dimension, position: float) -> Value:
    return dimension.from_unit(position, of_prior=True)


DIMENSIONS: list[Dimension] = [
    Uniform(low=-1.2345678, high=3.0, bounds=(-9.0, 9.0)),
    LogUniform(low=1.23456789e-5, high=1e-2, bounds="none"),
    OneMinusLogUniform(low=0.9, high=0.9999),
    IntUniform(low=-2, high=5),
    IntLogUniform(low=1, high=300),
    Choice(values=("a", None, 3)),
]


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda d: d.prior)
def test_values_stay_in_the_prior_and_positions_return(dimension: Dimension) -> None:
    for position in (-5.0, *np.linspace(0, 1, 41), 5.0):
        value = from_unit(dimension, float(position))
        if isinstance(dimension, Choice):
            assert value in dimension.values
        else:
            assert isinstance(value, int | float)
            assert dimension.low <= value <= dimension.high
        assert dimension.contains(value)
        back = from_unit(dimension, dimension.to_unit(value, of_prior=True))
        assert back == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)


@pytest.mark.parametrize(
    ("dimension", "ends", "middle"),
    [
        (Uniform(low=0.0, high=10.0), (0.0, 10.0), 5.0),
        (LogUniform(low=1e-4, high=1e-2), (1e-4, 1e-2), 1e-3),
        (OneMinusLogUniform(low=0.9, high=0.999), (0.9, 0.999), 0.99),
        (IntUniform(low=0, high=4), (0, 4), 2),
        (IntLogUniform(low=1, high=100), (1, 100), 10),
        (Choice(values=("a", "b", "c")), ("a", "c"), "b"),
    ],
    ids=lambda x: getattr(x, "prior", ""),
)
def test_ends_and_middle(dimension: Dimension, ends: tuple[Value, Value], middle: Value) -> None:
    assert (from_unit(dimension, 0.0), from_unit(dimension, 1.0)) == ends
    result = from_unit(dimension, 0.5)
    assert result == (pytest.approx(middle, rel=1e-12) if isinstance(middle, float) else middle)
    assert dimension.to_unit(middle, of_prior=True) == pytest.approx(0.5, abs=1e-9)


def test_choices_have_equal_shares() -> None:
    drawn = [from_unit(Choice(values=("a", "b", "c")), x) for x in np.linspace(0, 1, 300)]
    assert [drawn.count(value) for value in "abc"] == [100] * 3


def test_floats_have_six_digits() -> None:
    assert from_unit(Uniform(low=0.0, high=1.0), 2 / 3) == 0.666667
    value = from_unit(OneMinusLogUniform(low=0.9, high=0.9999), 0.5615)
    assert isinstance(value, float)
    assert value == 1 - float(f"{1 - value:.6g}") != float(f"{value:.6g}")
    assert math.isclose(value, 1 - 10 ** -(1 + 3 * 0.5615), rel_tol=1e-6)
