"""The toy quadratic as a trainable."""

from typing import ClassVar

import numpy as np
import pytest

from pbtrl.testing.trainables import TrainableConformance
from pbtrl.trainables.quadratic import Quadratic


class TestQuadratic(TrainableConformance):
    hyperparameters: ClassVar = {"h0": 0.5, "h1": 1.0}

    def make(self, rng: np.random.Generator) -> Quadratic:
        return Quadratic(rng)


def test_starts_at_the_figures_weights() -> None:
    assert Quadratic(np.random.default_rng(0)).evaluate(np.random.default_rng(0)) == pytest.approx(-0.42)


def test_gradient_steps_shrink_weights_by_their_own_factor() -> None:
    toy = Quadratic(np.random.default_rng(0))
    toy.train(200, {"h0": 1.0, "h1": 0.25}, np.random.default_rng(0))
    expected = [0.9 * 0.98**200, 0.9 * 0.995**200]
    np.testing.assert_allclose(toy.state_dict()["theta"], expected, rtol=1e-12)


def test_negative_hyperparameter_diverges_unless_clamped() -> None:
    free, clamped = (Quadratic(np.random.default_rng(0), clamp=c) for c in (False, True))
    for toy in (free, clamped):
        toy.train(100, {"h0": -1.0, "h1": 0.0}, np.random.default_rng(0))
    assert free.evaluate(np.random.default_rng(0)) < -30
    assert clamped.evaluate(np.random.default_rng(0)) == pytest.approx(-0.42)
