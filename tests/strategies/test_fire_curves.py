"""Comparison of fitness curves in FIRE, against analytic values and slow literal transcriptions."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from pbtrl.core.curve import MAX_POINTS, Curve
from pbtrl.strategies.fire_curves import LENGTHS, NOISES, Points, compare, compare_points, overlap, regular, smooth

TIMES = np.arange(40)
FAST = 1 - np.exp(-TIMES / 10)
SLOW = 1 - np.exp(-TIMES / 20)


def points(values: Iterable[float]) -> Points:
    values = list(values)
    return Points(tuple(map(float, values)), (True,) * len(values))


def curve(values: np.ndarray | list[float | None], interval: int = 10, start: int = 0) -> Curve:
    made = Curve(start)
    made.extend((start + (i + 1) * interval, None if v is None else float(v)) for i, v in enumerate(values))
    return made


def test_curves_with_equal_starts_are_compared_from_their_starts() -> None:
    assert overlap(tuple(FAST), tuple(SLOW)) == (0, 0, 40)
    assert max(FAST) - max(SLOW) == pytest.approx(0.122032, abs=1e-6)
    result = compare_points(points(FAST), points(SLOW))
    assert result.overlap
    assert result.diff == pytest.approx(0.122032, abs=0.01)  # smoothing may move the alignment by one point
    assert result.wins >= result.points - 2 >= 37
    assert result.p < 1e-8


def test_binomial_probability_equals_the_published_value() -> None:
    wins = Points((0.0,) + (1.0,) * 39, (True,) * 40)
    assert compare_points(wins, points([0.0] * 40)).p == pytest.approx(3.7e-11, rel=0.02)


def test_comparison_is_antisymmetric_where_curves_overlap() -> None:
    result = compare_points(points(SLOW), points(FAST))
    assert result.diff == -compare_points(points(FAST), points(SLOW)).diff
    assert result.wins <= 1
    assert result.p > 0.99


def test_the_lower_curve_is_advanced_to_the_start_of_the_other() -> None:
    late = -0.5 + 1.5 * FAST
    assert overlap(tuple(late), tuple(SLOW)) == (5, 0, 35)  # the analytic crossing is at 4.05
    assert overlap(tuple(SLOW), tuple(late)) == (0, 5, 35)
    window = max(late[5:40]) - max(SLOW[:35])
    assert window == pytest.approx(0.152321, abs=1e-6)
    assert compare_points(points(late), points(SLOW)).diff == pytest.approx(window, abs=0.05)


def test_curves_of_different_length_share_their_windows() -> None:
    assert overlap(tuple(FAST[:7]), tuple(SLOW)) == (0, 0, 7)
    assert compare_points(points(FAST[:7] - 0.01), points(SLOW)).points < 7


def test_curve_below_the_other_neither_overlaps_nor_wins() -> None:
    result = compare_points(points(SLOW[:10] - 5), points(SLOW))
    assert (result.overlap, result.diff, result.p) == (False, 0.0, 2.0)


def test_curve_above_the_other_leads_by_its_gain_from_equal_heights() -> None:
    result = compare_points(points(FAST + 5), points(SLOW))
    assert (result.overlap, result.p) == (False, 0.0)
    low, high = min(FAST + 5) - max(SLOW), min(FAST + 5) - min(SLOW)
    best = 0.0
    for shift in np.linspace(low, high, 10):  # literally: move it down, smooth it again, align, compare
        moved = FAST + 5 - shift
        if window := overlap(smooth(tuple(moved)), smooth(tuple(SLOW))):
            i, j, length = window
            best = max(best, max(moved[i : i + length]) - max(SLOW[j : j + length]))
    assert result.diff == pytest.approx(best, abs=1e-9)
    assert result.diff > 0.1


@pytest.mark.parametrize(("wins", "n"), [(7, 7), (8, 8), (10, 10), (11, 12), (13, 15), (16, 20), (22, 30), (26, 36)])
def test_fewest_wins_that_are_significant(wins: int, n: int) -> None:
    def p(count: int) -> float:
        a = [0.0] + [1.0] * count + [-1.0] * (n - count)
        b = [0.0] * (n + 1)
        return compare_points(Points(tuple(a), (False,) + (True,) * n), points(b)).p

    assert p(wins) < 0.01 <= p(wins - 1)
    assert p(wins) == pytest.approx(binomtest(wins, n, 0.5, alternative="greater").pvalue)


def test_ties_are_losses() -> None:
    same = compare_points(points(SLOW), points(SLOW))
    assert (same.wins, same.points, same.p, same.diff) == (0, 40, 1.0, 0.0)


def test_nothing_is_known_without_points() -> None:
    empty = compare(curve([]), curve(SLOW), 10)
    assert (empty.diff, empty.p, empty.overlap) == (0.0, 1.0, False)
    assert compare(curve([None, None]), curve(SLOW), 10) == empty


# --- grid ---


def test_holes_repeat_the_value_before_them_and_do_not_count() -> None:
    grid = regular(curve([1.0, None, 3.0, None]), 10)
    assert grid == Points((1.0, 1.0, 3.0), (True, False, True))
    assert regular(curve([None, 2.0]), 10) == Points((2.0, 2.0), (False, True))
    known = (True,) * 20 + (False,) + (True,) * 19
    full, holed = points(FAST), Points((*FAST[:20], FAST[19], *FAST[21:]), known)
    assert regular(curve([*FAST[:20], None, *FAST[21:]]), 10) == holed
    assert compare_points(holed, points(SLOW)).points == compare_points(full, points(SLOW)).points - 1


def test_points_off_the_grid_fall_into_their_cell() -> None:
    torn = Curve(100)
    torn.extend([(104, 1.0), (110, 2.0), (125, 3.0)])
    assert regular(torn, 10) == Points((2.0, 2.0, 3.0), (True, False, True))


def test_curves_count_from_their_own_starts() -> None:
    assert compare(curve(FAST, start=1000), curve(SLOW), 10) == compare(curve(FAST), curve(SLOW), 10)


def test_long_curve_is_compared_at_every_second_point() -> None:
    long = curve(np.arange(300.0))
    assert long.stride == 2
    assert len(long.points) <= MAX_POINTS
    assert long.points[0] == (20, 1.0)
    assert long.points[-1] == (3000, 299.0)
    assert regular(long, 20).values == tuple(range(1, 300, 2))
    assert compare(curve(np.arange(40.0)), long, 10) == compare_points(points(range(1, 40, 2)), regular(long, 20))


def test_moved_curve_is_a_copy_on_another_clock() -> None:
    first = curve(FAST)
    second = first.moved(500)
    second.extend([(910, 2.0)])
    assert (first.start, second.start) == (0, 500)
    assert second.points == [*first.points, (410, 2.0)]


# --- smoothing ---


def literal_smooth(y: np.ndarray) -> np.ndarray:
    """The Gaussian process with dense algebra: the most likely pair of the grid, its amplitude in closed form."""
    n, scale, mean = len(y), np.std(y), np.mean(y)
    x, z = np.arange(n) / n, (y - mean) / scale
    best, result = -math.inf, z
    for length in LENGTHS:
        kernel = np.array([[math.exp(-((s - t) ** 2) / (2 * length**2)) for t in x] for s in x])
        for noise in NOISES:
            covariance = kernel + noise * np.eye(n)
            amplitude = z @ np.linalg.solve(covariance, z) / n
            total = amplitude * covariance
            likelihood = -0.5 * z @ np.linalg.solve(total, z) - 0.5 * np.linalg.slogdet(total)[1]
            if likelihood > best + 1e-9:
                best, result = likelihood, kernel @ np.linalg.solve(covariance, z)
    return result * scale + mean


@pytest.mark.parametrize("n", [3, 10, 40])
@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
def test_smoothing_equals_dense_algebra(n: int, noise: float) -> None:
    y = 3.0 * (1 - np.exp(-np.arange(n) / 10)) + np.random.default_rng(n).normal(0, noise, n)
    np.testing.assert_allclose(smooth(tuple(y)), literal_smooth(y), atol=1e-5)


def test_smoothing_removes_noise() -> None:
    truth = 1 - np.exp(-np.arange(100) / 30)
    noisy = truth + np.random.default_rng(0).normal(0, 0.1, 100)
    error = float(np.sqrt(np.mean((np.array(smooth(tuple(noisy))) - truth) ** 2)))
    assert error < 0.04 < float(np.sqrt(np.mean((noisy - truth) ** 2)))


@pytest.mark.parametrize(
    "values",
    [(1.0,), (1.0, 2.0), (5.0,) * 50, (1e160, 2e160, 3e160), (-1e308, 1e308, 1e308)],
    ids=["one", "two", "constant", "huge", "largest"],
)
def test_curves_without_shape_are_left_as_they_are(values: tuple[float, ...]) -> None:
    assert smooth(values) == values


def test_smoothing_copes_with_the_longest_curve() -> None:
    assert np.isfinite(smooth(tuple(np.random.default_rng(0).normal(size=MAX_POINTS)))).all()


floats = st.floats(-1e3, 1e3).map(lambda x: round(x, 3))


@given(st.lists(floats, min_size=1, max_size=20), st.lists(floats, min_size=1, max_size=20))
def test_leads_are_antisymmetric_with_overlap_and_never_negative_without(a: list[float], b: list[float]) -> None:
    one, other = compare_points(points(a), points(b)), compare_points(points(b), points(a))
    if one.overlap or other.overlap:
        assert one.overlap == other.overlap
        assert one.diff == pytest.approx(-other.diff)
    else:
        assert min(one.diff, other.diff) == 0.0
        assert max(one.diff, other.diff) >= 0.0
