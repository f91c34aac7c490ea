"""Statistics of independent runs: interquartile mean, bootstrap intervals, probability of improvement and paired tests.

The estimators are those that Agarwal et al. 2021 recommend, "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (arXiv 2108.13264). Their bootstrap is stratified by task; here there is one task, so each group of runs is a
stratum.
The random generator of the bootstrap is fixed: the same scores always give the same interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Scores = NDArray[np.float64]

RESAMPLES = 10_000
LEVEL = 0.05  # of tests; intervals have 95 %
EXACT = 2500  # pairs of runs up to which the rank test counts all arrangements
FEWEST_PAIRS = 6  # below, the smallest p of a signed-rank test is above LEVEL


def iqm(scores: ArrayLike, axis: int = -1) -> Any:
    """Interquartile mean: the mean of the middle half, in which scores at its ends count by the part that lies inside.

    The score of rank i (from 0) of n covers [i, i + 1] and counts by its overlap with [n / 4, 3 n / 4]. If 4 divides n,
    this is the 25 % trimmed mean, which rliable computes for every n. Infinite scores are allowed.
    """
    ordered = np.sort(np.moveaxis(np.asarray(scores, float), axis, -1), axis=-1)
    n = ordered.shape[-1]
    rank = np.arange(n)
    overlap = np.clip(np.minimum(rank + 1, 0.75 * n) - np.maximum(rank, 0.25 * n), 0.0, None)
    inside = overlap > 0
    return ordered[..., inside] @ overlap[inside] / (0.5 * n)


def probability_of_improvement(x: ArrayLike, y: ArrayLike, axis: int = -1) -> Any:
    """P(X > Y) + P(X = Y) / 2 for one run of each group: the mean over all pairs (Mann-Whitney U over n m).

    Args:
        x: scores of the one group, n along `axis` (the last one).
        y: scores of the other group, m along `axis`.
        axis: ignored but for scipy, which passes -1.
    """
    a, b = np.asarray(x, float)[..., :, None], np.asarray(y, float)[..., None, :]
    return ((a > b) + 0.5 * (a == b)).mean((-1, -2))


def mean(scores: ArrayLike, axis: int = -1) -> Any:
    """Mean along an axis."""
    return np.mean(np.asarray(scores, float), axis=axis)


def interval(
    statistic: Callable[..., Any], *samples: ArrayLike, axis: int = -1, resamples: int = RESAMPLES
) -> tuple[Any, Any] | None:
    """Bootstrap a 95 % interval of a statistic by the percentile method; None if a sample has fewer than two runs.

    Each sample is resampled by itself, along `axis`. Bounds are values of the bootstrap distribution, never
    interpolated, so that they exist also with infinite scores.
    """
    arrays = tuple(np.asarray(s, float) for s in samples)
    if any(a.shape[axis] < 2 for a in arrays):
        return None
    from scipy.stats import bootstrap  # scipy.stats takes a second to import

    with np.errstate(all="ignore"):
        drawn = bootstrap(
            arrays, statistic, n_resamples=resamples, batch=500, vectorized=True, axis=axis, method="percentile",
            rng=np.random.default_rng(0),
        ).bootstrap_distribution  # fmt: skip
    low, high = np.quantile(drawn, (LEVEL / 2, 1 - LEVEL / 2), axis=-1, method="closest_observation")
    return low, high


def signed_rank_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test; None with too few pairs to reach 0.05."""
    moved = [d for d in differences if d]
    if not moved and len(differences) >= FEWEST_PAIRS:
        return 1.0
    if len(moved) < FEWEST_PAIRS:
        return None
    from scipy.stats import wilcoxon

    return float(wilcoxon(moved).pvalue)


def rank_p(x: Sequence[float], y: Sequence[float]) -> float:
    """Two-sided p of the rank test of Mann and Whitney, by counting arrangements of the scores.

    With ties the arrangements of the tied scores are counted, or RESAMPLES random ones if there are more. These also
    serve for many runs, of which the exact count is slow.
    """
    from scipy.stats import PermutationMethod, mannwhitneyu

    if min(len(x), len(y)) == 1 and {*x} & {*y}:
        return 1.0  # scipy permutes no single run; its ties with the others show nothing
    distinct = len({*x, *y}) == len(x) + len(y)
    method: Any = (
        "exact"
        if (distinct and len(x) * len(y) <= EXACT) or min(len(x), len(y)) == 1
        else PermutationMethod(n_resamples=RESAMPLES, rng=np.random.default_rng(0))
    )
    return float(mannwhitneyu(x, y, method=method).pvalue)


def smallest_sign_p(pairs: int) -> float:
    """Smallest two-sided p of a sign test: all of the pairs have the same sign."""
    return min(1.0, 2.0 * 0.5**pairs)


def smallest_rank_p(n: int, m: int) -> float:
    """Smallest two-sided p of a rank test (Mann-Whitney): every score of one group is above all of the other."""
    return min(1.0, 2.0 / math.comb(n + m, n))
