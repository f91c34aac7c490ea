"""Time-varying Gaussian process and its upper confidence bound, the model of PB2.

Parker-Holder et al. 2020, arXiv 2002.02518. The process has a learned noise, as fitness is noisy. Its kernel is chosen
from a grid by the marginal likelihood, so that rounding errors of linear algebra do not change it.

Shapes: n points are an array [n, 1 + d] whose first column is the time.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LENGTHS = (0.03, 0.1, 0.3, 1.0)
FORGETTING = (0.0, 0.03, 0.1, 0.25, 0.5)
NOISE = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0)  # as a fraction of the variance
JITTER = 1e-6  # noise of an exact target, as a fraction of the variance; lets two of them be equal
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


class Prediction(NamedTuple):
    """Posterior mean and variance of a value, and their gradients by x, [d]."""

    mean: float
    variance: float
    mean_slope: Floats
    variance_slope: Floats


@dataclass(frozen=True)
class Process:
    """Gaussian process, conditioned on targets at points.

    Attributes:
        kernel: kernel, with the noise of the targets.
        points: [n, 1 + d].
        targets: [n].
        exact: number of the last targets that have no noise.
    """

    kernel: Kernel
    points: Floats
    targets: Floats
    exact: int = 0

    @cached_property
    def factor(self) -> Floats:
        """Lower Cholesky factor of the targets' covariance, [n, n]."""
        noise = np.full(len(self.points), self.kernel.noise)
        noise[len(noise) - self.exact :] = JITTER * self.kernel.variance
        return np.asarray(np.linalg.cholesky(self.kernel(self.points, self.points) + np.diag(noise)), np.float64)

    @cached_property
    def weights(self) -> Floats:
        """Inverse covariance times targets, [n]."""
        return self._solve(self.targets)

    def predict(self, point: Floats) -> Prediction:
        """Predict the value at one point, [1 + d]; without the noise."""
        covariances = self.kernel(self.points, point[None])[:, 0]
        slopes = covariances[:, None] * 2.0 * (self.points[:, 1:] - point[1:]) / self.kernel.length
        solved = self._solve(covariances)
        return Prediction(
            float(covariances @ self.weights),
            max(self.kernel.variance - float(covariances @ solved), 1e-12),
            slopes.T @ self.weights,
            -2.0 * slopes.T @ solved,
        )

    def _solve(self, values: Floats) -> Floats:
        from scipy.linalg import cho_solve

        solved: Floats = cho_solve((self.factor, True), values)
        return solved


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
        center, width = self.values.predict(point), self.spread.predict(point)
        if self.use == "variance":
            spread, slope = width.variance, width.variance_slope
        else:
            spread = math.sqrt(width.variance)
            slope = width.variance_slope / (2.0 * spread)
        return center.mean + self.kappa * spread, center.mean_slope + self.kappa * slope

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
