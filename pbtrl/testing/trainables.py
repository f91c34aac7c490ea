"""Conformance tests of trainables."""

from typing import Any, ClassVar

import numpy as np

from pbtrl.core.trainable import Trainable


class TrainableConformance:
    """Tests that every trainable must pass. Subclasses define `make`, and where needed `hyperparameters` and `steps`.

    Attributes:
        hyperparameters: passed to `train`.
        steps: steps of one call of `train`; keep it small.
    """

    hyperparameters: ClassVar[dict[str, Any]] = {}
    steps: ClassVar[int] = 5

    def make(self, rng: np.random.Generator) -> Trainable:
        raise NotImplementedError

    def trained(self, seed: int = 0) -> Trainable:
        trainable = self.make(np.random.default_rng(seed))
        trainable.train(self.steps, self.hyperparameters, np.random.default_rng(1))
        return trainable

    def test_a_loaded_state_continues_as_the_original(self) -> None:
        original, copy = self.trained(), self.make(np.random.default_rng(7))
        copy.load_state_dict(original.state_dict())
        for trainable in (original, copy):
            trainable.train(self.steps, self.hyperparameters, np.random.default_rng(2))
        assert_equal(original.state_dict(), copy.state_dict())
        assert original.evaluate(np.random.default_rng(3)) == copy.evaluate(np.random.default_rng(3))

    def test_a_state_does_not_change_when_training_continues(self) -> None:
        trainable = self.trained()
        state = trainable.state_dict()
        before = {k: v.copy() for k, v in state.items()}
        trainable.train(self.steps, self.hyperparameters, np.random.default_rng(2))
        assert_equal(state, before)
        assert any(not np.array_equal(v, before[k]) for k, v in trainable.state_dict().items())

    def test_a_loaded_state_is_not_shared(self) -> None:
        donor = self.trained()
        state = donor.state_dict()
        receiver = self.make(np.random.default_rng(7))
        receiver.load_state_dict(state)
        receiver.train(self.steps, self.hyperparameters, np.random.default_rng(2))
        assert_equal(donor.state_dict(), state)

    def test_evaluating_does_not_change_training(self) -> None:
        evaluated, plain = self.trained(), self.trained()
        fitness = evaluated.evaluate(np.random.default_rng(3))
        assert fitness == evaluated.evaluate(np.random.default_rng(3))
        for trainable in (evaluated, plain):
            trainable.train(self.steps, self.hyperparameters, np.random.default_rng(2))
        assert_equal(evaluated.state_dict(), plain.state_dict())

    def test_training_is_deterministic(self) -> None:
        assert_equal(self.trained().state_dict(), self.trained().state_dict())

    def test_returns_plain_numbers(self) -> None:
        trainable = self.make(np.random.default_rng(0))
        scalars = trainable.train(self.steps, self.hyperparameters, np.random.default_rng(1))
        assert all(type(v) is float for v in scalars.values())
        assert type(trainable.evaluate(np.random.default_rng(0))) is float


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    """Assert that two states are equal bit for bit."""
    assert list(one) == list(other)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
