"""The search space: moves stay inside, change values, do not drift, and round-trip through JSON."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pbtrl.core.dimensions import PRIORS, Choice, IntLogUniform, IntUniform, LogUniform, OneMinusLogUniform, Uniform
from pbtrl.core.search_space import SearchSpace
from pbtrl.errors import DimensionError

EVERY_KIND = {
    "uniform": Uniform(low=-2.0, high=3.0),
    "uniform unbounded": Uniform(low=0.5, high=1.0, bounds="none"),
    "log": LogUniform(low=1e-5, high=5e-3),
    "log unbounded": LogUniform(low=1e-5, high=5e-3, bounds="none"),
    "log bounds": LogUniform(low=1e-5, high=5e-3, bounds=(1e-6, 1e-1)),
    "one-minus-log": OneMinusLogUniform(low=0.95, high=0.999),
    "one-minus-log unbounded": OneMinusLogUniform(low=0.95, high=0.999, bounds="none"),
    "int": IntUniform(low=5, high=50),
    "int unbounded": IntUniform(low=5, high=50, bounds="none"),
    "int log": IntLogUniform(low=1, high=1000),
    "neighbor": Choice(values=(1e-1, 1e-3, 1e-5), mutate="neighbor"),
    "resample": Choice(values=("a", None, True, 3), mutate="resample"),
}
SPACE = SearchSpace(EVERY_KIND)
KINDS = pytest.mark.parametrize("dimension", EVERY_KIND.values(), ids=EVERY_KIND.keys())


@KINDS
def test_moves_stay_within_the_limits(dimension):
    """Checked for ten thousand moves."""
    rng = np.random.default_rng(0)
    value = dimension.sample(rng)
    for step in range(10_000):
        if step % 2:
            value = dimension.perturb(value, (1.2, 0.8, 3.0, 0.1)[int(rng.integers(4))], rng)
        else:
            value = dimension.gaussian(value, 0.5, rng)
        assert dimension.contains(value)
        assert type(value) in (int, float, str, bool, type(None))


@pytest.mark.parametrize("kind", [Uniform, LogUniform])
def test_values_of_real_dimensions_are_floats(kind):
    """Also the ends that a config has written as integers."""
    dimension, rng = kind(low=1, high=2, bounds=(1, 4)), np.random.default_rng(0)
    values = [dimension.perturb(value, factor, rng) for value in (1, 4) for factor in (0.1, 10.0)]
    values += [dimension.from_unit(position) for position in (0.0, 0.5, 1.0)]
    values += [dimension.sample(rng), dimension.clip(3)]
    assert {type(value) for value in values} == {float}


def test_range_that_no_number_holds_is_refused():
    with pytest.raises(DimensionError, match="needs a range that a number can hold"):
        Uniform(low=-1e308, high=1e308)


@KINDS
def test_samples_lie_in_the_prior(dimension):
    rng = np.random.default_rng(1)
    for _ in range(500):
        value = dimension.sample(rng)
        if isinstance(dimension, Choice):
            assert value in dimension.values
        else:
            assert dimension.low <= value <= dimension.high


@given(
    low=st.integers(1, 200),
    width=st.integers(1, 200),
    at=st.floats(0, 1),
    factor=st.floats(0.01, 5).filter(lambda f: f != 1),
    log=st.booleans(),
)
def test_integer_moves_by_at_least_one_unless_at_a_bound(low, width, at, factor, log):
    dimension = (IntLogUniform if log else IntUniform)(low=low, high=low + width)
    start = low + round(at * width)
    moved = dimension.perturb(start, factor, np.random.default_rng(0))
    assert type(moved) is int
    assert moved > start or start == low + width if factor > 1 else moved < start or start == low


@pytest.mark.parametrize("kind", [IntUniform, IntLogUniform])
@pytest.mark.parametrize(
    ("start", "factor", "nearest"),
    [(10, 1.28, 13), (10, 1.23, 12), (10, 0.78, 8), (10, 0.73, 7), (30, 1.19, 36), (1, 1.6, 2), (1, 2.6, 3)],
)
def test_multiplied_integer_is_rounded_to_nearest(kind, start, factor, nearest):
    assert kind(low=1, high=100).perturb(start, factor, np.random.default_rng(0)) == nearest
    assert kind(low=1, high=100).clip(start * factor) == nearest


@given(st.integers(-50, 50), st.integers(0, 2**32))
def test_gaussian_step_moves_an_integer(start, seed):
    dimension = IntUniform(low=-50, high=50)
    moved = dimension.gaussian(start, 1e-9, np.random.default_rng(seed))
    assert abs(moved - start) == 1 or abs(start) == 50


@pytest.mark.parametrize("start", [-10, -1, 0, 1, 10])
def test_integer_moves_in_the_factors_direction(start):
    """Also below zero."""
    dimension, rng = IntUniform(low=-100, high=100), np.random.default_rng(0)
    away = -1 if start < 0 else 1
    assert (dimension.perturb(start, 1.05, rng) - start) * away == 1
    assert (dimension.perturb(start, 0.95, rng) - start) * away == -1
    assert dimension.perturb(start, 1.0, rng) == start


@pytest.mark.parametrize(
    ("factors", "drift"),
    [((1.2, 1 / 1.2), 0.0), ((1.2, 0.8), 0.5 * math.log(0.96))],
    ids=["none", "downwards"],
)
@pytest.mark.parametrize("bounds", ["none", (1e-300, 1e300)])
def test_mean_log_factor_is_the_drift(factors, drift, bounds):
    rng, dimension = np.random.default_rng(0), LogUniform(low=1e-5, high=1e-3, bounds=bounds)
    moves = [math.log(dimension.perturb(1e-4, f, rng) / 1e-4) for f in factors]
    assert np.mean(moves) == pytest.approx(drift, abs=1e-12)
    value = 1.0
    for step in range(2000):
        value = dimension.perturb(value, factors[step % 2], rng)
    assert math.log(value) / 2000 == pytest.approx(drift, abs=1e-9)


class AtAnEnd:
    """Generator that always draws the largest number."""

    def uniform(self, low, high):
        return high


@pytest.mark.parametrize("kind", [Uniform, LogUniform, OneMinusLogUniform])
def test_rounding_keeps_samples_in_the_prior(kind):
    for high in np.random.default_rng(0).uniform(0.1, 0.9, 200).tolist():
        assert 0.05 <= kind(low=0.05, high=high).sample(AtAnEnd()) <= high


def test_value_beyond_a_limit_moves_from_the_limit():
    rng = np.random.default_rng(0)
    assert Uniform(low=0.0, high=1.0).perturb(5.0, 0.5, rng) == 0.5
    assert LogUniform(low=0.1, high=1.0).perturb(0.01, 2.0, rng) == pytest.approx(0.2)
    assert IntUniform(low=1, high=10).perturb(50, 0.5, rng) == 5


def test_integer_limits_are_integers_within_bounds():
    assert IntUniform(low=2, high=9, bounds=(1.5, 9.5)).limits == (2, 9)


def test_unbounded_integers_reach_down_to_one_or_to_low():
    assert IntUniform(low=5, high=9, bounds="none").limits[0] == 1
    assert IntUniform(low=-3, high=5, bounds="none").limits[0] == -3


def test_resampling_draws_every_value():
    dimension, rng = Choice(values=("a", "b", "c")), np.random.default_rng(0)
    draws = [dimension.sample(rng) for _ in range(300)] + [dimension.perturb("a", 1.2, rng) for _ in range(300)]
    assert min(draws.count(value) for value in "abc") > 150


def test_factor_applies_on_each_scale():
    """`Uniform` and `LogUniform` multiply the value, `OneMinusLogUniform` multiplies 1 - value."""
    rng = np.random.default_rng(0)
    assert Uniform(low=0.0, high=9.0).perturb(2.0, 1.2, rng) == pytest.approx(2.4)
    assert LogUniform(low=1e-5, high=1.0).perturb(1e-3, 1.2, rng) == pytest.approx(1.2e-3)
    gamma = OneMinusLogUniform(low=0.9, high=0.9999)
    assert gamma.perturb(0.99, 1.2, rng) == pytest.approx(0.988)
    assert gamma.perturb(0.99, 0.5, rng) == pytest.approx(0.995)


@pytest.mark.parametrize(
    ("dimension", "scale", "start"),
    [
        (Uniform(low=0.0, high=10.0, bounds="none"), lambda x: x, 5.0),
        (LogUniform(low=1e-4, high=1.0, bounds="none"), math.log, 1e-2),
        (OneMinusLogUniform(low=0.9, high=0.9999, bounds="none"), lambda x: math.log(1 - x), 0.999),
    ],
)
def test_gaussian_step_is_a_fraction_of_the_priors_width(dimension, scale, start):
    """The width is measured on the prior's scale."""
    rng = np.random.default_rng(0)
    steps = [scale(dimension.gaussian(start, 0.01, rng)) - scale(start) for _ in range(4000)]
    width = abs(scale(dimension.high) - scale(dimension.low))
    assert np.mean(steps) / width == pytest.approx(0.0, abs=6e-4)
    assert np.std(steps) / width == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize(
    ("dimension", "scale"),
    [
        (Uniform(low=-1.0, high=3.0), lambda x: x),
        (LogUniform(low=1e-6, high=1e-2), math.log),
        (OneMinusLogUniform(low=0.9, high=0.9999), lambda x: math.log(1 - x)),
    ],
)
def test_prior_is_uniform_on_its_scale(dimension, scale):
    rng = np.random.default_rng(2)
    ends = scale(dimension.low), scale(dimension.high)
    places = [(scale(dimension.sample(rng)) - min(ends)) / abs(ends[1] - ends[0]) for _ in range(4000)]
    counts, _ = np.histogram(places, bins=8, range=(0, 1))
    assert abs(counts - 500).max() < 5 * math.sqrt(500 * 7 / 8)


def test_integer_priors_reach_both_ends():
    rng = np.random.default_rng(3)
    flat = [IntUniform(low=1, high=4).sample(rng) for _ in range(4000)]
    assert np.bincount(flat, minlength=5)[1:] == pytest.approx(1000, abs=150)
    logs = np.bincount([IntLogUniform(low=1, high=8).sample(rng) for _ in range(4000)], minlength=9)
    assert logs[1] > logs[2] > logs[4] > logs[8] > 0


def test_log_integer_frequencies():
    """An integer is drawn as often as the log scale rounds to it."""
    rng, share = np.random.default_rng(5), lambda n: math.log((n + 0.5) / (n - 0.5)) / math.log(8.5 / 0.5)
    counts = np.bincount([IntLogUniform(low=1, high=8).sample(rng) for _ in range(4000)], minlength=9)
    for n in range(1, 9):
        assert counts[n] == pytest.approx(4000 * share(n), abs=5 * math.sqrt(4000 * share(n)))


def test_gaussian_step_of_integers_is_on_their_scale():
    dimension, rng = IntLogUniform(low=1, high=10**8), np.random.default_rng(0)
    steps = [math.log(dimension.gaussian(10**4, 0.05, rng) / 10**4) for _ in range(4000)]
    assert np.std(steps) / math.log(10**8) == pytest.approx(0.05, rel=0.05)


def test_gaussian_step_of_neighbors():
    """The step is a share of the list's length and at least one."""
    dimension, rng = Choice(values=tuple(range(201)), mutate="neighbor"), np.random.default_rng(0)
    steps = [dimension.gaussian(100, 0.1, rng) - 100 for _ in range(4000)]
    assert np.std(steps) == pytest.approx(20, rel=0.05)
    assert {dimension.gaussian(100, 1e-9, rng) for _ in range(50)} == {99, 101}


def test_neighbor_walk_is_uniform():
    """The walk stays where it is at an end, and visits every value equally often."""
    dimension, rng = Choice(values=(1, 2, 3, 4), mutate="neighbor"), np.random.default_rng(4)
    assert dimension.perturb(4, 1.2, rng) == 4
    assert dimension.perturb(1, 0.8, rng) == 1
    assert dimension.perturb(2, 1.2, rng) == 3
    assert dimension.perturb(2, 1.0, rng) == 2
    value, visits = 1, [0] * 5
    for _ in range(20_000):
        value = dimension.perturb(value, (1.2, 0.8)[int(rng.integers(2))], rng)
        visits[value] += 1
    assert visits[1:] == pytest.approx([5000] * 4, rel=0.1)


def test_choice_clips_to_the_nearest_number():
    assert Choice(values=(0.1, 0.001)).clip(0.09) == 0.1
    with pytest.raises(ValueError, match="'c' is not one of"):
        Choice(values=("a", "b")).clip("c")


@settings(max_examples=200)
@given(st.integers(0, 2**32))
def test_values_pass_through_json_unchanged(seed):
    rng = np.random.default_rng(seed)
    values = SPACE.sample(rng)
    back = json.loads(json.dumps(values))
    assert back == values
    assert [type(v) for v in back.values()] == [type(v) for v in values.values()]
    assert SPACE.contains(back)
    assert SPACE.clip(back) == values


def test_same_generator_gives_the_same_draws():
    assert SPACE.sample(np.random.default_rng(7)) == SPACE.sample(np.random.default_rng(7))


def test_unbounded_keeps_the_scales_natural_limits():
    rng = np.random.default_rng(0)
    tiny, huge = LogUniform(low=1.0, high=2.0, bounds="none"), IntUniform(low=1, high=2, bounds="none")
    assert tiny.perturb(1e-307, 1e-10, rng) > 0.0
    assert math.isfinite(tiny.perturb(1e308, 1e10, rng))
    assert math.isfinite(tiny.gaussian(1e308, 1e4, rng))
    assert huge.perturb(1, 1e-9, rng) == 1
    assert huge.perturb(2, 1e300, rng) == 2**53
    gamma = OneMinusLogUniform(low=0.9, high=0.99, bounds="none")
    assert gamma.perturb(0.99, 1e-30, rng) < 1.0
    assert gamma.perturb(0.9, 100.0, rng) == 0.0


def test_within_narrows_only_unbounded_dimensions():
    free = Uniform(low=0.5, high=0.9, bounds="none").within(0.0, 1.0)
    assert free.limits == (0.0, 1.0)
    assert LogUniform(low=1.0, high=2.0, bounds="none").within(0.0, None).limits[0] > 0.0
    assert Uniform(low=0.5, high=0.9).within(0.0, 1.0).limits == (0.5, 0.9)
    assert Choice(values=(1, 2)).within(0.0, 1.0) == Choice(values=(1, 2))


@pytest.mark.parametrize(
    ("prior", "arguments", "message", "field"),
    [
        ("uniform", {"low": 1.0, "high": 1.0}, "needs low < high, not 1.0 and 1.0", "low"),
        ("uniform", {"low": 0.0, "high": math.inf}, "uniform needs a finite high", "high"),
        ("log_uniform", {"low": 0.0, "high": 1.0}, "log_uniform needs low > 0", "low"),
        (
            "log_uniform",
            {"low": 1.0, "high": 2.0, "bounds": (0.0, 2.0)},
            "log_uniform needs bounds > 0",
            "bounds",
        ),
        (
            "one_minus_log_uniform",
            {"low": 0.9, "high": 1.0},
            "one_minus_log_uniform needs 0 < high < 1",
            "high",
        ),
        ("int_log_uniform", {"low": 0, "high": 5}, "int_log_uniform needs low >= 1", "low"),
        (
            "int_uniform",
            {"low": 1, "high": 5, "bounds": (2, 9)},
            "bounds [2, 9] must contain the prior's range, [1, 5]",
            "bounds",
        ),
        ("int_uniform", {"low": 1, "high": 5, "bounds": "wide"}, "must be none or [low, high]", "bounds"),
        ("choice", {"values": (1,)}, "choice needs at least 2 values", "values"),
        ("choice", {"values": (1, 1.0)}, "choice needs values that differ", "values"),
        ("choice", {"values": (1, math.nan)}, "choice needs finite values", "values"),
    ],
)
def test_contradictory_dimension_is_refused(prior, arguments, message, field):
    with pytest.raises(DimensionError) as error:
        PRIORS[prior](**arguments)
    assert str(error.value) == message
    assert error.value.fields[0] == field


def test_space_is_an_ordered_immutable_mapping():
    given_to_it = {"b": IntUniform(low=1, high=2), "a": Uniform(low=0.0, high=1.0)}
    space = SearchSpace(given_to_it)
    given_to_it.clear()
    assert space.names == tuple(space) == ("b", "a")
    assert space == SearchSpace(dict(space))
    assert hash(space) == hash(SearchSpace(dict(space)))
    assert not space.contains({"b": 1})
    with pytest.raises(TypeError):
        space["c"] = Uniform(low=0.0, high=1.0)  # type: ignore[index]


# Positions between the limits


@pytest.mark.parametrize(
    ("dimension", "values"),
    [
        (Uniform(low=0.0, high=1.0, bounds=(-1.0, 3.0)), {0.0: -1.0, 0.5: 1.0, 1.0: 3.0}),
        (LogUniform(low=1e-4, high=1e-2), {0.0: 1e-4, 0.5: 1e-3, 1.0: 1e-2}),
        (OneMinusLogUniform(low=0.9, high=0.999), {0.0: 0.9, 0.5: 0.99, 1.0: 0.999}),
        (IntUniform(low=1, high=9), {0.0: 1, 0.5: 5, 1.0: 9}),
        (IntLogUniform(low=1, high=100), {0.0: 1, 0.5: 10, 1.0: 100}),
    ],
)
def test_position_is_on_the_dimensions_own_scale(dimension, values):
    for position, value in values.items():
        assert dimension.from_unit(position) == pytest.approx(value, rel=1e-12)
        assert type(dimension.from_unit(position)) is type(value)
        assert dimension.to_unit(value) == pytest.approx(position)
        assert dimension.contains(dimension.from_unit(position))


@pytest.mark.parametrize(
    ("dimension", "written"),
    [
        (LogUniform(low=1e-4, high=1e-2), ("0.000432873", lambda x: x)),
        (OneMinusLogUniform(low=0.9, high=0.9999999), ("0.00123288", lambda x: 1.0 - x)),
    ],
)
def test_value_at_a_position_has_six_digits(dimension, written):
    """10^-3.36364 and 10^-2.90908; of 1 - x where that is the scale, so that values near 1 keep their meaning."""
    digits, part = written
    assert f"{part(dimension.from_unit(0.31818)):.12f}".rstrip("0") == digits


def test_value_beyond_the_limits_is_at_an_end():
    assert Uniform(low=0.0, high=1.0).to_unit(7.0) == 1.0
