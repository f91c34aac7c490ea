"""The drifting bandit as a trainable."""

from typing import ClassVar

import numpy as np
import pytest

from pbtrl.testing.trainables import TrainableConformance
from pbtrl.trainables.drifting_bandit import DriftingBandit


class TestDriftingBandit(TrainableConformance):
    hyperparameters: ClassVar = {"h": 0.5}

    def make(self, rng: np.random.Generator) -> DriftingBandit:
        return DriftingBandit(rng)


RNG = np.random.default_rng(0)


def test_optimum_drifts_and_stays() -> None:
    toy, result = DriftingBandit(RNG, duration=40), []
    for steps in (20, 10, 10, 30):
        result.append(toy.train(steps, {"h": 0.5}, RNG)["optimum"])
    assert result == pytest.approx([0.5, 0.65, 0.8, 0.8])


def test_best_arm_scores_one_and_a_constant_less() -> None:
    best, constant = DriftingBandit(RNG, duration=100), DriftingBandit(RNG, duration=100)
    for step in range(100):
        best.train(1, {"h": 0.2 + 0.006 * step}, RNG)
    constant.train(100, {"h": 0.5}, RNG)
    assert best.evaluate(RNG) == pytest.approx(1.0)
    mean_square = sum((0.3 - 0.006 * step) ** 2 for step in range(100)) / 100
    assert constant.evaluate(RNG) == pytest.approx(1.0 - mean_square / 0.09)


def test_noise_is_that_of_evaluations() -> None:
    toy = DriftingBandit(RNG, noise=0.5)
    toy.train(10, {"h": 0.2}, RNG)
    result = [toy.evaluate(np.random.default_rng(seed)) for seed in range(400)]
    assert np.std(result) == pytest.approx(0.5, rel=0.15)
    assert np.mean(result) == pytest.approx(0.05, abs=0.1)
