"""The toy chain as a trainable."""

import math
from typing import ClassVar

import numpy as np
import pytest

from pbtrl.testing.trainables import TrainableConformance
from pbtrl.trainables.chain import Chain, chain


class TestChain(TrainableConformance):
    hyperparameters: ClassVar = {"l0": 0.5, "l1": 0.1, "l2": 0.9}

    def make(self, rng: np.random.Generator) -> Chain:
        return Chain(rng)


def test_fitness_of_chains() -> None:
    assert chain([0.1, 0.8, 0.6, 0.2]) == pytest.approx(1.0)
    assert chain([1 / 3] * 6) == pytest.approx(1.0)
    assert chain([0.5, 0.12]) == pytest.approx(math.exp(-1))
    with pytest.raises(ValueError, match="a chain needs at least 2 hyperparameters, not 1"):
        chain([0.5])
    assert chain([0.5, 0.0, 0.88]) == pytest.approx((1 + math.exp(-1)) / 2)
