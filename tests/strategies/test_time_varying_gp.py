"""The Gaussian process of PB2 against its formulas, scikit-learn's numbers, and a drifting bandit."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from pbtrl.strategies.time_varying_gp import (
    FORGETTING,
    JITTER,
    LENGTHS,
    NOISE,
    GaussianProcess,
    Kernel,
    UpperBound,
    beta,
    fit,
    profile_likelihood,
)

SKLEARN = json.loads((Path(__file__).parents[1] / "golden/sklearn_gp.json").read_text())["problems"]


def test_kernel_entries_by_hand() -> None:
    kernel = Kernel(variance=2.0, length=0.5, forgetting=0.19, noise=9.0)
    one, other = (
        np.array([[3.0, 0.5, 1.0]]),
        np.array([[3.0, 0.5, 1.0], [7.0, 0.5, 1.0], [3.0, 1.0, 0.5], [2.0, 0.0, 1.0]]),
    )
    expected = [2.0, 2.0 * 0.81**2, 2.0 * math.exp(-1.0), 2.0 * 0.9 * math.exp(-0.5)]
    assert kernel(one, other)[0] == pytest.approx(expected)
    assert kernel(other, one)[:, 0] == pytest.approx(expected)


@pytest.mark.parametrize(("rows", "squared", "kappa"), [(10, 1.586, 1.259), (100, 3.889, 1.972)])
def test_beta(rows: int, squared: float, kappa: float) -> None:
    assert beta(rows) == pytest.approx(squared, abs=5e-4)
    assert math.sqrt(beta(rows)) == pytest.approx(kappa, abs=5e-4)


def test_beta_of_few_rows() -> None:
    assert [beta(rows) for rows in (0, 1, 2)] == pytest.approx([0.2] * 3)


@pytest.mark.parametrize("problem", SKLEARN, ids=["2 inputs", "4 inputs"])
def test_posterior_equals_scikit_learns(problem: dict[str, Any]) -> None:
    points, targets = np.array(problem["points"]), np.array(problem["targets"])
    process = GaussianProcess(Kernel(**problem["kernel"]), points, targets)
    means, variances = process.predict(np.array(problem["queries"]))
    assert means == pytest.approx(problem["mean"], abs=1e-6)
    assert np.sqrt(variances) == pytest.approx(problem["sd"], abs=1e-6)


@pytest.mark.parametrize("problem", SKLEARN, ids=["2 inputs", "4 inputs"])
def test_profile_likelihood_is_the_highest_over_the_variance(problem: dict[str, Any]) -> None:
    points, targets, kernel = np.array(problem["points"]), np.array(problem["targets"]), Kernel(**problem["kernel"])
    ratio = kernel.noise / kernel.variance
    likelihood, variance = profile_likelihood(kernel(points, points) / kernel.variance, ratio, targets)

    def by_definition(v: float) -> float:
        covariances = v / kernel.variance * (kernel(points, points) + kernel.noise * np.eye(len(points)))
        return float(multivariate_normal(cov=covariances).logpdf(targets))

    assert by_definition(kernel.variance) == pytest.approx(problem["log_likelihood"], abs=1e-6)
    assert likelihood == pytest.approx(by_definition(variance))
    assert likelihood > max(by_definition(0.9 * variance), by_definition(1.1 * variance))


def test_fit_is_the_argmax_over_the_grid() -> None:
    rng = np.random.default_rng(3)
    points = np.column_stack([np.arange(12) // 3, rng.random((12, 2))])
    targets = np.sin(5 * points[:, 1]) + 0.1 * rng.standard_normal(12)

    def likelihood(kernel: Kernel) -> float:
        covariances = kernel(points, points) + kernel.noise * np.eye(12)
        return float(multivariate_normal(cov=covariances).logpdf(targets))

    result = fit(points, targets)
    for length in LENGTHS:
        for forgetting in FORGETTING:
            for noise in NOISE:
                v = result.variance
                assert likelihood(Kernel(v, length, forgetting, noise * v)) <= likelihood(result) + 1e-9


def test_fit_learns_noise_and_drift() -> None:
    rng = np.random.default_rng(0)
    points = np.column_stack([np.repeat(np.arange(20), 4), rng.random(80)])
    noisy = rng.standard_normal(80)
    result = fit(points, noisy)
    assert result.noise > result.variance
    steady = np.sin(6 * points[:, 1])
    assert fit(points, steady).noise < 0.05
    assert fit(points, steady).forgetting == 0.0
    turning = np.sin(6 * points[:, 1] + points[:, 0])
    assert fit(points, turning).forgetting >= 0.1


@pytest.mark.parametrize("targets", [[], [1.0], [1.0, 2.0], [0.5] * 6])
def test_targets_without_information_leave_the_default(targets: list[float]) -> None:
    points = np.random.default_rng(0).random((len(targets), 3))
    assert fit(points, np.array(targets)) == Kernel()


def bound(use: Any = "sd", tried: int = 3) -> UpperBound:
    rng = np.random.default_rng(1)
    points, kernel, open_now = rng.random((9, 4)), Kernel(1.3, 0.4, 0.3, 0.2), rng.random((tried, 4))
    return UpperBound(GaussianProcess(kernel, points, rng.standard_normal(9), open_now), 1.7, use)


@pytest.mark.parametrize("use", ["sd", "variance"])
def test_bound_adds_the_spread_after_the_points_being_tried(use: Any) -> None:
    """The mean is that of the data alone; of the points being tried, none has noise."""
    process, queries = bound(use).process, np.random.default_rng(4).random((5, 4))
    assert process.tried is not None
    alone = GaussianProcess(process.kernel, process.points, process.targets)
    places = np.concatenate([process.points, process.tried])
    noise = np.diag([0.2] * 9 + [JITTER * 1.3] * 3)
    covariances = process.kernel(places, queries)
    solved = np.linalg.solve(process.kernel(places, places) + noise, covariances)
    variances = 1.3 - (covariances * solved).sum(axis=0)
    assert np.all(variances < alone.predict(queries)[1])
    spread = np.sqrt(variances) if use == "sd" else variances
    assert bound(use)(queries) == pytest.approx(alone.predict(queries)[0] + 1.7 * spread)


@pytest.mark.parametrize("seed", range(5))
def test_argmax_is_the_best_of_a_fine_grid(seed: int) -> None:
    upper, fixed = bound(), np.array([0.4, 0.2])
    best = upper.argmax(fixed, 2, np.random.default_rng(seed))
    axis = np.linspace(0, 1, 41)
    grid = upper(np.array([[*fixed, x, y] for x in axis for y in axis]))
    assert upper(np.array([[*fixed, *best]]))[0] >= grid.max() - 1e-3 * np.ptp(grid)
    assert np.all((best >= 0) & (best <= 1))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("rounds", [10, 60])
@pytest.mark.parametrize("seed", range(4))
def test_finds_the_drifting_optimum(seed: int, rounds: int, normalized: bool) -> None:
    """60 rows in rounds; within 0.1 of the optimum at the time of the latest ones."""
    rng = np.random.default_rng(seed)
    times, arms = np.repeat(np.arange(float(rounds)), 60 // rounds), rng.random(60)
    gains = -((arms - (0.2 + 0.6 * times / rounds)) ** 2)
    targets = np.clip((gains - gains.mean()) / gains.std(), -2.0, 2.0)
    if normalized:
        times = times / times[-1]
    points = np.column_stack([times, arms])
    process = GaussianProcess(fit(points, targets), points, targets)
    best = UpperBound(process, 0.0).argmax(times[-1:], 1, rng)
    assert best[0] == pytest.approx(0.8 - 0.6 / rounds, abs=0.1)
