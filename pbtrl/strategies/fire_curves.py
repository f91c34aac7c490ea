"""Comparison of two fitness curves for FIRE PBT (Dalibard and Jaderberg 2021, arXiv 2109.13800).

Two curves are aligned where their smoothed values first meet: the one that starts lower is advanced until it reaches
the start of the other. In the windows after that, of equal length, the maxima and the numbers of wins are compared.

The smoothing is a Gaussian process whose parameters are the most likely ones of a fixed grid. So it is deterministic,
and a decision that rests on it is the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pbtrl.core.curve import Curve

LENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)  # length scales, as fractions of the curve
NOISES = (1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)  # variance of the noise, relative to that of the curve
SHIFTS = 10  # trial shifts of a curve that lies above the other one

Floats = NDArray[np.float64]
Values = tuple[float, ...]
Marks = tuple[bool, ...]


@dataclass(frozen=True)
class Points:
    """Curve on a regular grid.

    Attributes:
        values: one per cell of the grid; a cell without a point repeats the value before it, or the first one.
        known: whether the cell has a point of its own. Only such points count in the test.
    """

    values: Values
    known: Marks

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class CurveComparison:
    """Result of comparing curve a with curve b.

    Attributes:
        diff: best value of a minus best value of b.
        p: probability of at least as many wins of a if both were equally good; 0 if all of a lies above b, 2 if below.
        wins: points at which a is above b.
        points: points that were compared.
        overlap: whether the curves have values in common.
    """

    diff: float
    p: float
    wins: int
    points: int
    overlap: bool


def regular(curve: Curve, spacing: int) -> Points:
    """Put a curve on a grid of `spacing` steps from its start. The last point of a cell counts."""
    result: dict[int, float] = {}
    for steps, value in curve.points:
        if value is not None and math.isfinite(value):
            result[max(0, steps - 1) // spacing] = value
    if not result:
        return Points((), ())
    values, last = [], result[min(result)]
    cells = range(max(result) + 1)
    for cell in cells:
        last = result.get(cell, last)
        values.append(last)
    return Points(tuple(values), tuple(cell in result for cell in cells))


def compare(a: Curve, b: Curve, interval: int) -> CurveComparison:
    """Compare two curves that have a point every `interval` steps, except for holes and dropped points."""
    spacing = interval * max(a.stride, b.stride)
    return compare_points(regular(a, spacing), regular(b, spacing))


@lru_cache(maxsize=4096)
def compare_points(a: Points, b: Points) -> CurveComparison:
    """Compare two curves on the same grid; without any point of a or b nothing is known: `p` is 1."""
    if not len(a) or not len(b):
        return CurveComparison(0.0, 1.0, 0, 0, overlap=False)
    window = overlap(smooth(a.values), smooth(b.values))
    above, below = min(a.values) > max(b.values), max(a.values) < min(b.values)
    wins, points = _wins(a, b, window or (0, 0, min(len(a), len(b))))
    if window is not None:
        return CurveComparison(_lead(a.values, b.values, window), _tail(wins, points), wins, points, overlap=True)
    p = 0.0 if above else 2.0 if below else _tail(wins, points)
    return CurveComparison(_lead_from_above(a, b) if above else 0.0, p, wins, points, overlap=False)


def overlap(a: Values, b: Values) -> tuple[int, int, int] | None:
    """Align two smoothed curves; returns the start in a, the start in b and the length of both windows.

    The curve that starts lower begins where it first reaches the start of the other one. None if it never does.
    """
    (first, other), swapped = ((a, b), False) if a[0] <= b[0] else ((b, a), True)
    start = next((i for i, value in enumerate(first) if value >= other[0]), None)
    if start is None:
        return None
    length = min(len(first) - start, len(other))
    return (0, start, length) if swapped else (start, 0, length)


@lru_cache(maxsize=4096)
def smooth(values: Values) -> Values:
    """Smooth a curve by the posterior mean of a Gaussian process over its index / n, with the kernel RBF + noise.

    The amplitude is profiled out; length scale and noise are those of the grid with the highest marginal likelihood.
    Constant curves, and those whose variance overflows, stay as they are.
    """
    y: Floats = np.array(values)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = float(np.std(y))
    if len(y) < 3 or scale == 0.0 or not math.isfinite(scale):
        return values
    centered = (y - np.mean(y)) / scale
    best, smoothed = -math.inf, centered
    for eigenvalues, vectors in _kernels(len(y)):
        rotated = vectors.T @ centered
        for noise in NOISES:
            variance = eigenvalues + noise
            amplitude = float(np.mean(rotated**2 / variance))
            likelihood = -0.5 * len(y) * math.log(amplitude) - 0.5 * float(np.sum(np.log(variance)))
            if likelihood > best + 1e-9:  # a tie goes to the first one on every machine
                best, smoothed = likelihood, vectors @ (eigenvalues / variance * rotated)
    return tuple(float(value) for value in smoothed * scale + np.mean(y))


@lru_cache(maxsize=32)
def _kernels(n: int) -> list[tuple[Floats, Floats]]:
    """Eigenvalues and eigenvectors of the RBF kernel on n points, for every length scale."""
    place = np.arange(n) / n
    squared = (place[:, None] - place[None, :]) ** 2
    pairs = [np.linalg.eigh(np.exp(-0.5 * squared / length**2)) for length in LENGTHS]
    return [(np.maximum(pair.eigenvalues, 0.0), pair.eigenvectors) for pair in pairs]


def _lead(a: Values, b: Values, window: tuple[int, int, int]) -> float:
    i, j, length = window
    return max(a[i : i + length]) - max(b[j : j + length])


def _lead_from_above(a: Points, b: Points) -> float:
    """Lead of a curve that lies above the other one, if it had started at its height: the largest of several shifts."""
    low, high = min(a.values) - max(b.values), min(a.values) - min(b.values)
    smooth_a, smooth_b = smooth(a.values), smooth(b.values)
    leads = [0.0]
    for shift in np.linspace(low, high, SHIFTS):
        window = overlap(tuple(value - shift for value in smooth_a), smooth_b)
        if window is not None:
            leads.append(_lead(a.values, b.values, window) - float(shift))
    return max(leads)


def _wins(a: Points, b: Points, window: tuple[int, int, int]) -> tuple[int, int]:
    """Count the points of the windows at which a is above b, and those that both curves have; ties are losses."""
    i, j, length = window
    both = [k for k in range(length) if a.known[i + k] and b.known[j + k]]
    return sum(a.values[i + k] > b.values[j + k] for k in both), len(both)


def _tail(wins: int, points: int) -> float:
    """Return P(X >= wins) for X ~ Binomial(points, 1/2); 1 without points."""
    return float(sum(math.comb(points, k) for k in range(wins, points + 1)) / 2**points)
