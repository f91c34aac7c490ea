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

LENGTHS = (0.03, 0.1, 0.3, 1.0)
FORGETTING = (0.0, 0.03, 0.1, 0.25, 0.5)
NOISE = (1e-3, 1e-2, 0.1, 0.3, 1.0, 3.0)  # as a fraction of the variance
JITTER = 1e-6  # noise of an exact target, as a fraction of the variance; lets two of them be equal
CANDIDATES, NEARBY = 256, 32
RADII = (0.3, 0.15, 0.08, 0.03, 0.01)


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
        gaps, squares = _distances(one, other)
        return self.variance * _nearness(squares, self.length) * _memory(gaps, self.forgetting)


def _cholesky(covariances: Floats) -> Floats:
    """Return the lower factor, in the column order of LAPACK, in the memory of the symmetric `covariances`."""
    from scipy.linalg import cholesky

    factor: Floats = cholesky(covariances.T, lower=True, overwrite_a=True, check_finite=False)
    return factor


def _distances(one: Floats, other: Floats) -> tuple[Floats, Floats]:
    """Return the gaps in time and the squared distances in x between two sets of points, each [n, m]."""
    from scipy.spatial.distance import cdist

    return np.abs(one[:, None, 0] - other[None, :, 0]), np.asarray(cdist(one[:, 1:], other[:, 1:], "sqeuclidean"))


def _nearness(squares: Floats, length: float) -> Floats:
    return np.asarray(np.exp(squares / -length))


def _memory(gaps: Floats, forgetting: float) -> Floats:
    return np.asarray(np.exp(gaps * (0.5 * math.log1p(-forgetting))))


@dataclass(frozen=True)
class GaussianProcess:
    """Gaussian process, conditioned on targets at points.

    Attributes:
        kernel: kernel, with the noise of the targets.
        points: [n, 1 + d].
        targets: [n].
        tried: further points, [m, 1 + d]. The variance is that after their values will be known without noise, whatever
            they are; the mean does not know them.
    """

    kernel: Kernel
    points: Floats
    targets: Floats
    tried: Floats | None = None

    @cached_property
    def places(self) -> Floats:
        """Points, then those that are being tried, [n + m, 1 + d]."""
        return self.points if self.tried is None else np.concatenate([self.points, self.tried])

    @cached_property
    def factor(self) -> Floats:
        """Lower Cholesky factor of the covariance at `places`, [n + m, n + m]."""
        noise = np.full(len(self.places), JITTER * self.kernel.variance)
        noise[: len(self.points)] = self.kernel.noise
        covariances = self.kernel(self.places, self.places)
        np.fill_diagonal(covariances, self.kernel.variance + noise)
        return _cholesky(covariances)

    @cached_property
    def weights(self) -> Floats:
        """Inverse covariance of the points times targets, [n]; the factor of the points is a corner of `factor`."""
        from scipy.linalg import cho_solve

        n = len(self.points)
        weights: Floats = cho_solve((self.factor[:n, :n], True), self.targets, check_finite=False)
        return weights

    def predict(self, queries: Floats) -> tuple[Floats, Floats]:
        """Predict the means and variances of the values at k points, [k, 1 + d]; without the noise."""
        from scipy.linalg import solve_triangular

        covariances = self.kernel(self.places, queries)
        whitened = solve_triangular(self.factor, covariances, lower=True, check_finite=False)
        variances = self.kernel.variance - np.square(whitened).sum(axis=0)
        return covariances[: len(self.points)].T @ self.weights, np.maximum(variances, 1e-12)


def fit(points: Floats, targets: Floats) -> Kernel:
    """Choose the kernel with the highest marginal likelihood from a grid.

    The variance is not in the grid: its best value is known, given the others. Fewer than three targets, or equal ones,
    say nothing about the kernel, which then is the default.
    """
    if len(targets) < 3 or np.ptp(targets) == 0.0:
        return Kernel()
    gaps, squares = _distances(points, points)
    near = {length: _nearness(squares, length) for length in LENGTHS}
    remembered = {forgetting: _memory(gaps, forgetting) for forgetting in FORGETTING}
    best, kernel = -math.inf, Kernel()
    for length, forgetting in product(LENGTHS, FORGETTING):
        correlations = near[length] * remembered[forgetting]
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

    covariances = correlations.copy()
    np.fill_diagonal(covariances, 1.0 + noise)
    factor = _cholesky(covariances)
    whitened = solve_triangular(factor, targets, lower=True, check_finite=False)
    variance = float(whitened @ whitened) / len(targets)
    volume = float(np.log(np.diag(factor)).sum())
    return -volume - 0.5 * len(targets) * (math.log(2.0 * math.pi * variance) + 1.0), variance


def beta(rows: int) -> float:
    """Return the squared weight of the spread in the upper confidence bound, 0.2 + max(0, ln(0.4 n))."""
    return 0.2 + math.log(max(1.0, 0.4 * rows))


@dataclass(frozen=True)
class UpperBound:
    """Upper confidence bound mean + kappa * spread.

    Attributes:
        process: process of the values.
        kappa: weight of the spread.
        use: the spread is the standard deviation (`sd`), or the `variance`.
    """

    process: GaussianProcess
    kappa: float
    use: Literal["sd", "variance"] = "sd"

    def __call__(self, queries: Floats) -> Floats:
        """Return the bound at k points, [k, 1 + d]."""
        means, variances = self.process.predict(queries)
        return means + self.kappa * (variances if self.use == "variance" else np.sqrt(variances))

    def argmax(self, fixed: Floats, free: int, rng: np.random.Generator) -> Floats:
        """Maximize over the last `free` coordinates in [0, 1]; the first ones are `fixed`.

        Random candidates, then some around the best so far, ever closer. Unlike an optimizer that follows gradients,
        the search does not amplify rounding errors.
        """
        best, bound = self._best(fixed, rng.random((CANDIDATES, free)))
        for radius in RADII:
            nearby = np.clip(best + radius * rng.standard_normal((NEARBY, free)), 0.0, 1.0)
            better, higher = self._best(fixed, nearby)
            if higher > bound:
                best, bound = better, higher
        return best

    def _best(self, fixed: Floats, candidates: Floats) -> tuple[Floats, float]:
        """Return the candidate with the highest bound, [free], and its bound."""
        bounds = self(np.concatenate([np.tile(fixed, (len(candidates), 1)), candidates], axis=1))
        place = int(np.argmax(bounds))
        return candidates[place], float(bounds[place])
