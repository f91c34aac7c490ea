"""Statistics of independent runs against slow literal transcriptions, scipy, and the formulas of rliable."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from pbtrl.reporting.comparison import statistics
from pbtrl.reporting.comparison.statistics import interval, iqm, probability_of_improvement, signed_rank_p


def literal_iqm(scores: Sequence[float]) -> float:
    """The definition: cut a quarter of the n scores at each end, by halves, quarters and so on of a score."""
    fine = [score for score in sorted(scores) for _ in range(4)]  # four copies, so that n/4 scores are n whole copies
    n = len(scores)
    return sum(fine[n:-n]) / (2 * n)


def literal_probability(x: Sequence[float], y: Sequence[float]) -> float:
    """Equation of Agarwal et al. 2021, section 4.3: the mean of S(x, y) with S = 1, 1/2 or 0."""
    total = 0.0
    for a in x:
        for b in y:
            total += 1.0 if a > b else 0.5 if a == b else 0.0
    return total / (len(x) * len(y))


@pytest.mark.parametrize("n", range(1, 14))
def test_iqm_is_the_mean_of_the_middle_half(n: int) -> None:
    scores = np.random.default_rng(n).normal(size=n)
    assert iqm(scores) == pytest.approx(literal_iqm(list(scores)), abs=1e-12)


@pytest.mark.parametrize("n", [4, 8, 20])
def test_iqm_is_the_trimmed_mean_where_whole_scores_are_cut(n: int) -> None:
    """As rliable computes it."""
    scores = np.random.default_rng(n).normal(size=(3, n))
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=-1))
    assert iqm(scores.T, axis=0) == pytest.approx(stats.trim_mean(scores, 0.25, axis=-1))


def test_iqm_known_values() -> None:
    assert iqm([7.0]) == 7.0
    assert iqm([1.0, 3.0]) == 2.0
    assert iqm([0.0, 1.0, 5.0]) == pytest.approx((0.25 * 0 + 1 + 0.25 * 5) / 1.5)
    assert iqm([1.0, 2.0, 3.0, 4.0, 100.0]) == pytest.approx((0.75 * 2 + 3 + 0.75 * 4) / 2.5)


def test_iqm_with_infinite_scores() -> None:
    assert iqm([1.0, 2.0, 3.0, math.inf]) == 2.5
    assert iqm([1.0, 2.0, math.inf]) == math.inf


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 5), (6, 2)])
def test_probability_of_improvement_is_a_double_loop(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    x, y = rng.integers(0, 4, n).astype(float), rng.integers(0, 4, m).astype(float)
    assert probability_of_improvement(x, y) == pytest.approx(literal_probability(list(x), list(y)))
    assert probability_of_improvement(x, y) == pytest.approx(stats.mannwhitneyu(x, y).statistic / (n * m))


def test_infinite_scores_tie() -> None:
    assert probability_of_improvement([-math.inf, -5.0], [-math.inf, -9.0]) == (0.5 + 0 + 1 + 1) / 4


def test_interval_is_scipys_percentile_interval() -> None:
    scores = np.random.default_rng(0).normal(size=12)
    low, high = interval(iqm, scores) or (0, 0)
    theirs = stats.bootstrap(
        (scores,), lambda s, axis: stats.trim_mean(s, 0.25, axis=axis), method="percentile", n_resamples=20_000,
        rng=np.random.default_rng(7),
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx(theirs, abs=0.03)


def test_interval_of_few_runs_is_exact() -> None:
    """With three runs all 27 resamples can be listed."""
    scores = [0.0, 1.0, 5.0]
    every = sorted(literal_iqm(s) for s in itertools.product(scores, repeat=3))
    low, high = interval(iqm, scores) or (0, 0)
    assert low == pytest.approx(every[0])  # each end has a probability of 1 / 27, more than 2.5 %
    assert high == pytest.approx(every[-1])


def test_interval_resamples_both_groups() -> None:
    x, y = [1.0, 4.0, 5.0, 8.0], [2.0, 3.0, 6.0]
    rng = np.random.default_rng(3)
    drawn = [literal_probability(rng.choice(x, 4), rng.choice(y, 3)) for _ in range(3000)]  # type: ignore[arg-type]
    bounds = interval(probability_of_improvement, x, y)
    assert bounds == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.06)


def test_interval_is_the_same_each_time_and_needs_two_runs() -> None:
    scores = np.random.default_rng(1).normal(size=6)
    assert interval(iqm, scores) == interval(iqm, scores)
    assert interval(iqm, [1.0]) is None
    assert interval(probability_of_improvement, [1.0, 2.0], [1.0]) is None
    assert interval(iqm, [2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert interval(iqm, [1.0, 2.0, math.inf]) == (1.0, math.inf)


def test_interval_of_columns_resamples_whole_rows() -> None:
    values = np.array([[0.0, 10.0], [1.0, 11.0], [4.0, 14.0], [5.0, 15.0], [9.0, 19.0]])
    low, high = interval(iqm, values, axis=0, resamples=500) or (0, 0)
    assert low + 10 == pytest.approx(np.array([low[1], low[1] + 10]))
    assert high[1] - high[0] == pytest.approx(10)


def test_signed_rank_test_needs_six_pairs() -> None:
    assert signed_rank_p([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert signed_rank_p([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(2 / 2**6)
    assert signed_rank_p([1.0, 2.0, 3.0, 4.0, 5.0, 0.0]) is None
    assert signed_rank_p([0.0] * 6) == 1.0


def test_signed_rank_p_by_listing_all_signs() -> None:
    differences = [3.0, -1.0, 2.0, 5.0, -4.0, 7.0, 6.0]
    ranks = stats.rankdata(np.abs(differences))
    total = sum(ranks)

    def plus(signs: Sequence[int]) -> float:
        return float(sum(r for r, s in zip(ranks, signs, strict=True) if s > 0))

    seen = abs(plus([int(np.sign(d)) for d in differences]) - total / 2)
    all_signs = list(itertools.product((-1, 1), repeat=len(ranks)))
    extreme = sum(abs(plus(s) - total / 2) >= seen for s in all_signs)
    assert signed_rank_p(differences) == pytest.approx(extreme / len(all_signs))


@pytest.mark.parametrize(("x", "y"), [
    ([1.0, 5.0, 6.0, 9.0], [2.0, 3.0, 4.0, 7.0, 8.0]),
    ([5.0, 5.0, 5.0, 5.0], [1.0, 2.0, 3.0, 5.0]),
    ([math.inf, math.inf, 2.0], [math.inf, 1.0, 1.0, 3.0]),
    ([2.0] * 4, [2.0] * 4),
])  # fmt: skip
def test_rank_p_by_listing_all_arrangements(x: list[float], y: list[float]) -> None:
    pooled, seen = [*x, *y], literal_probability(x, y)
    each = []
    for chosen in itertools.combinations(range(len(pooled)), len(x)):
        rest = [v for i, v in enumerate(pooled) if i not in chosen]
        each.append(literal_probability([pooled[i] for i in chosen], rest))
    tails = (sum(p <= seen + 1e-9 for p in each), sum(p >= seen - 1e-9 for p in each))
    assert statistics.rank_p(x, y) == pytest.approx(min(1.0, 2 * min(tails) / len(each)))


@pytest.mark.parametrize(("x", "y"), [([1.0], [1.0]), ([1.0], [1.0, 2.0]), ([math.inf] * 2, [math.inf] * 3)])
def test_rank_p_of_ties_that_show_nothing(x: list[float], y: list[float]) -> None:
    """A single run, and runs that never reached the value of `steps_to`."""
    assert statistics.rank_p(x, y) == pytest.approx(1.0)
    assert 0.0 < statistics.rank_p([1.0], [2.0, 2.0]) <= 1.0


def test_rank_p_of_many_tied_runs_is_sampled() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 6, 20).astype(float), rng.integers(1, 7, 20).astype(float)
    theirs = stats.mannwhitneyu(x, y, method="asymptotic").pvalue
    assert statistics.rank_p(list(x), list(y)) == pytest.approx(theirs, abs=0.01)


@pytest.mark.parametrize("n", [1, 3, 5, 6])
def test_smallest_sign_p_is_that_of_scipys_test(n: int) -> None:
    assert statistics.smallest_sign_p(n) == pytest.approx(stats.binomtest(n, n).pvalue)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 3), (4, 4), (2, 7)])
def test_smallest_rank_p_is_that_of_scipys_test(n: int, m: int) -> None:
    p = stats.mannwhitneyu(range(n), range(100, 100 + m), method="exact").pvalue
    assert statistics.smallest_rank_p(n, m) == pytest.approx(p)
