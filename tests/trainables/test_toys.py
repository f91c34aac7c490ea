"""Toys of the PBT family: their fixtures, and the conformance tests of trainables."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from pbtrl.build.trainables import trainable_builder
from pbtrl.config.load import parse
from pbtrl.errors import ConfigProblem
from pbtrl.testing import TrainableConformance
from pbtrl.testing.trainables import assert_equal
from pbtrl.trainables.chebykin import Chebykin
from pbtrl.trainables.drifting_bandit import DriftingBandit
from pbtrl.trainables.noisy_quadratic import NoisyQuadratic
from pbtrl.trainables.quadratic import Quadratic

RNG = np.random.default_rng(0)

TOYS: tuple[tuple[type[Any], dict[str, float]], ...] = (
    (Quadratic, {"h0": 0.5, "h1": 0.25}), (NoisyQuadratic, {"learning_rate": 0.2}), (Chebykin, {"h": 0.7}),
    (DriftingBandit, {"h": 0.3}),
)  # fmt: skip


@pytest.mark.parametrize(("kind", "values"), TOYS)
def test_hyperparameters_that_are_not_searched_are_keys(kind: type[Any], values: dict[str, float]) -> None:
    searched, fixed = kind(RNG), kind(RNG, **values)
    searched.train(9, values, RNG)
    fixed.train(9, {}, RNG)
    assert_equal(searched.state_dict(), fixed.state_dict())


@pytest.mark.parametrize("name", ["quadratic", "noisy_quadratic", "chebykin", "drifting_bandit"])
def test_hyperparameters_that_a_toy_does_not_use_are_refused(name: str) -> None:
    text = "budget: {env_steps_per_member: 9}\nhparams: {h2: {prior: uniform, low: 0, high: 1}}\n"
    with pytest.raises(ConfigProblem, match=rf"hparams.h2: {name} has no such hyperparameter\."):
        trainable_builder(parse(f"trainable: {{name: {name}}}\n{text}"))


class TestNoisyQuadraticConformance(TrainableConformance):
    hyperparameters: ClassVar[dict[str, Any]] = {"learning_rate": 0.1}

    def make(self, rng: np.random.Generator) -> NoisyQuadratic:
        return NoisyQuadratic(rng)


class TestChebykinConformance(TrainableConformance):
    hyperparameters: ClassVar[dict[str, Any]] = {"h": 0.9}

    def make(self, rng: np.random.Generator) -> Chebykin:
        return Chebykin(rng)


def quality(*schedule: tuple[float, int]) -> float:
    """Q of the noisy quadratic after (learning rate, steps), without evaluation noise."""
    toy = NoisyQuadratic(RNG, evaluation_noise=0.0)
    for h, steps in schedule:
        toy.train(steps, {"learning_rate": h}, RNG)
    return toy.evaluate(RNG)


def test_noisy_quadratic_has_the_published_moments() -> None:
    toy = NoisyQuadratic(RNG)
    toy.train(100, {"learning_rate": 0.1}, RNG)
    np.testing.assert_allclose(toy.state_dict()["mean"], (2.65614e-5, 9.0479214711), rtol=1e-6)
    np.testing.assert_allclose(toy.state_dict()["variance"], (0.0526315789, 9.07209e-5), rtol=1e-5)


def test_noisy_quadratic_prefers_a_small_rate_now_and_a_large_one_later() -> None:
    assert quality((0.1, 0)) == 0.0
    assert quality((0.1, 100)) == pytest.approx(0.360872, abs=1e-6)
    assert quality((0.01, 100)) == pytest.approx(0.252383, abs=1e-6)
    assert quality((1.0, 100)) == pytest.approx(0.246408, abs=1e-6)
    assert quality((0.5, 800), (0.002, 3200)) == pytest.approx(3.182680, abs=1e-6)


def test_noisy_quadratic_evaluates_with_noise_of_the_given_size() -> None:
    toy = NoisyQuadratic(RNG, evaluation_noise=0.02)
    values = [toy.evaluate(np.random.default_rng(seed)) for seed in range(1000)]
    assert np.mean(values) == pytest.approx(0.0, abs=0.003)
    assert np.std(values) == pytest.approx(0.02, rel=0.1)


def test_noisy_quadratic_diverges_beyond_the_cliff() -> None:
    toy = NoisyQuadratic(RNG, curvatures=(3.0, 0.01))
    toy.train(2000, {"learning_rate": 0.9}, RNG)
    assert math.isnan(toy.evaluate(RNG))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (lambda i: (1000 - 20 * i) / 1000, 1.1979),
        (lambda i: 1.0, 0.9546),
        (lambda i: 1e-4, 0.8270),
        (lambda i: max(1e-4, (1000 - 40 * i) / 1000), 1.1254),
    ],
    ids=["linear decay", "constant 1", "constant 1e-4", "decay twice as fast"],
)
def test_chebykin_has_the_published_values(schedule: Callable[[int], float], expected: float) -> None:
    toy = Chebykin(RNG)
    for i in range(50):
        toy.train(20, {"h": schedule(i)}, RNG)
    assert toy.evaluate(RNG) == pytest.approx(expected, abs=1e-4)
