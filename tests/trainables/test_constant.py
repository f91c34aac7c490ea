"""The toy with constant qualities as a trainable."""

from __future__ import annotations

import statistics
from typing import Any, ClassVar

import numpy as np
import pytest

from pbtrl.testing.trainables import TrainableConformance
from pbtrl.trainables.constant import Constant, quality


class TestConstant(TrainableConformance):
    hyperparameters: ClassVar = {"x": 0.5, "y": 2}

    def make(self, rng: np.random.Generator) -> Constant:
        return Constant(rng, noise=0.1)


def fitness(values: dict[str, Any], *, seed: int = 0, noise: float = 0.0, steps: int = 1) -> float:
    toy = Constant(np.random.default_rng(5), seed=seed, noise=noise)
    toy.train(steps, values, np.random.default_rng(steps))
    return toy.evaluate(np.random.default_rng(steps))


def test_fitness_is_constant_in_time_with_and_without_noise() -> None:
    for noise in (0.0, 0.3):
        assert fitness({"x": 0.4}, noise=noise, steps=1) == fitness({"x": 0.4}, noise=noise, steps=1000)


def test_every_number_has_a_hidden_optimum_of_its_own() -> None:
    grid = np.linspace(0.0, 1.0, 101)
    optima = {name: max(grid, key=lambda x, n=name: quality({n: float(x)})) for name in ("x", "y", "z")}
    assert len(set(optima.values())) == 3
    for name, optimum in optima.items():
        assert quality({name: float(optimum)}) > 0.99
        assert quality({name: float(optimum) + 0.25}) == pytest.approx(0.75, abs=0.01)


def test_quality_is_the_mean_of_its_parts() -> None:
    parts = [quality({"x": 0.4}), quality({"kind": "a"}), quality({"flag": True})]
    assert quality({"x": 0.4, "kind": "a", "flag": True}) == pytest.approx(statistics.fmean(parts))
    assert quality({"kind": "a"}) != quality({"kind": "b"})
    assert quality({"flag": True}) != quality({"flag": 1})
    assert quality({}) == 0.0


def test_seed_changes_the_qualities() -> None:
    assert fitness({"x": 0.4}, seed=0) != fitness({"x": 0.4}, seed=1)


def test_noise_has_its_standard_deviation() -> None:
    errors = [fitness({"x": x / 500}, noise=0.2) - fitness({"x": x / 500}) for x in range(500)]
    assert statistics.stdev(errors) == pytest.approx(0.2, rel=0.15)
    assert statistics.fmean(errors) == pytest.approx(0.0, abs=0.05)
