"""Time-varying Gaussian process and its upper confidence bound, the model of PB2.

Parker-Holder et al. 2020, arXiv 2002.02518. The process has a learned noise, as fitness is noisy. Its kernel is chosen
from a grid by the marginal likelihood, so that rounding errors of linear algebra do not change it.

Shapes: n points are an array [n, 1 + d] whose first column is the time.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0)
FORGETTING = (0.0, 0.01, 0.03, 0.1, 0.25, 0.5)
NOISE = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0)  # as a fraction of the variance
STARTS = 10


@dataclass(frozen=True)
class Kernel:
    """k((t, x), (t', x')) = variance exp(-|x - x'|^2 / length) (1 - forgetting)^(|t - t'| / 2).

    Attributes:
        variance: prior variance.
        length: squared distance in x at which the correlation is 1/e.
        forgetting: loss of correlation with time, epsilon in the paper; at most 0.5.
        noise: variance of the noise in the targets.
    """

    variance: float = 1.0
    length: float = 0.1
    forgetting: float = 0.1
    noise: float = 0.1

    def __call__(self, one: Floats, other: Floats) -> Floats:
        """Covariances of the values at two sets of points, [n, m]; without the noise."""
        gaps = np.abs(one[:, None, 0] - other[None, :, 0])
        squares = np.square(one[:, None, 1:] - other[None, :, 1:]).sum(axis=-1)
        covariances: Floats = self.variance * np.exp(-squares / self.length) * (1.0 - self.forgetting) ** (gaps / 2.0)
        return covariances


@dataclass(frozen=True)
class Process:
    """Gaussian process, conditioned on noisy targets at points."""

    kernel: Kernel
    points: Floats
    targets: Floats

    @cached_property
    def factor(self) -> Floats:
        """Lower Cholesky factor of the targets' covariance, [n, n]."""
        noise = self.kernel.noise * np.eye(len(self.points))
        return np.asarray(np.linalg.cholesky(self.kernel(self.points, self.points) + noise), np.float64)

    @cached_property
    def weights(self) -> Floats:
        """Inverse covariance times targets, [n]."""
        return self.solve(self.targets)

    def solve(self, values: Floats) -> Floats:
        """Multiply values, [n] or [n, m], by the inverse covariance."""
        from scipy.linalg import cho_solve

        solved: Floats = cho_solve((self.factor, True), values)
        return solved

    def mean(self, points: Floats) -> Floats:
        """Posterior mean of the values at points, [m]."""
        means: Floats = self.kernel(points, self.points) @ self.weights
        return means

    def variance(self, points: Floats) -> Floats:
        """Posterior variance of the values at points, [m]; without the noise."""
        covariances = self.kernel(self.points, points)
        explained = (covariances * self.solve(covariances)).sum(axis=0)
        variances: Floats = np.maximum(self.kernel.variance - explained, 0.0)
        return variances


def fit(points: Floats, targets: Floats) -> Kernel:
    """Choose the kernel with the highest marginal likelihood from a grid.

    The variance is not in the grid: its best value is known, given the others. Fewer than three targets, or equal ones,
    say nothing about the kernel, which then is the default.
    """
    if len(targets) < 3 or np.ptp(targets) == 0.0:
        return Kernel()
    best, kernel = -math.inf, Kernel()
    for length, forgetting in product(LENGTHS, FORGETTING):
        correlations = Kernel(1.0, length, forgetting)(points, points)
        for noise in NOISE:
            likelihood, variance = profile_likelihood(correlations, noise, targets)
            if likelihood > best:
                best, kernel = likelihood, Kernel(variance, length, forgetting, noise * variance)
    return kernel


def profile_likelihood(correlations: Floats, noise: float, targets: Floats) -> tuple[float, float]:
    """Return the log marginal likelihood of targets (nats) at the best variance, and that variance.

    Args:
        correlations: kernel matrix of variance 1, [n, n].
        noise: variance of the noise as a fraction of the kernel's variance.
        targets: [n].
    """
    from scipy.linalg import solve_triangular

    factor = np.linalg.cholesky(correlations + noise * np.eye(len(targets)))
    whitened = solve_triangular(factor, targets, lower=True)
    variance = float(whitened @ whitened) / len(targets)
    volume = float(np.log(np.diag(factor)).sum())
    return -volume - 0.5 * len(targets) * (math.log(2.0 * math.pi * variance) + 1.0), variance


def beta(rows: int) -> float:
    """Return the squared weight of the spread in the upper confidence bound, 0.2 + max(0, ln(0.4 n))."""
    return 0.2 + math.log(max(1.0, 0.4 * rows))


@dataclass(frozen=True)
class UpperBound:
    """Upper confidence bound mean + kappa * spread, with its gradient.

    Attributes:
        values: process of the mean, conditioned on the data.
        spread: process of the spread, conditioned also on points that are being tried.
        kappa: weight of the spread.
        use: the spread is the standard deviation (`sd`), or the `variance`.
    """

    values: Process
    spread: Process
    kappa: float
    use: Literal["sd", "variance"] = "sd"

    def __call__(self, point: Floats) -> tuple[float, Floats]:
        """Return the bound at one point, [1 + d], and its gradient by x, [d]."""
        towards, slopes = self._covariances(self.values, point)
        mean, mean_slope = float(towards @ self.values.weights), slopes.T @ self.values.weights
        towards, slopes = self._covariances(self.spread, point)
        solved = self.spread.solve(towards)
        variance = max(self.spread.kernel.variance - float(towards @ solved), 1e-12)
        variance_slope = -2.0 * slopes.T @ solved
        if self.use == "variance":
            return mean + self.kappa * variance, mean_slope + self.kappa * variance_slope
        sd = math.sqrt(variance)
        return mean + self.kappa * sd, mean_slope + self.kappa * variance_slope / (2.0 * sd)

    @staticmethod
    def _covariances(process: Process, point: Floats) -> tuple[Floats, Floats]:
        """Return the covariances of a point with those of a process, [n], and their gradients, [n, d]."""
        towards = process.kernel(process.points, point[None])[:, 0]
        slopes = towards[:, None] * 2.0 * (process.points[:, 1:] - point[1:]) / process.kernel.length
        return towards, slopes

    def argmax(self, fixed: Floats, free: int, rng: np.random.Generator) -> Floats:
        """Maximize over the last `free` coordinates in [0, 1]; the first ones are `fixed`. Runs from random starts."""
        from scipy.optimize import minimize

        def negative(x: Floats) -> tuple[float, Floats]:
            bound, slope = self(np.concatenate([fixed, x]))
            return -bound, -slope[-free:]

        starts = rng.random((STARTS, free))
        results = [minimize(negative, x, jac=True, method="L-BFGS-B", bounds=[(0.0, 1.0)] * free) for x in starts]
        best: Floats = min(results, key=lambda result: float(result.fun)).x
        return best
