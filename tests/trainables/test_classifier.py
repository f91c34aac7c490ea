"""Classifier, its network and its data."""

from __future__ import annotations

import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from pbtrl.testing.trainables import TrainableConformance
from pbtrl.trainables.classifier import Classifier, ResNet, shifted
from pbtrl.trainables.datasets import load


def digits(seed: int = 0, **keys: Any) -> Classifier:
    return Classifier(np.random.default_rng(seed), Classifier.prepare(0, data="digits"), **keys)


class TestClassifier(TrainableConformance):
    hyperparameters: ClassVar = {"learning_rate": 0.05, "momentum": 0.8, "dropout": 0.2, "shift": 1}
    steps: ClassVar = 2

    def make(self, rng: np.random.Generator) -> Classifier:
        return Classifier(rng, load("digits"), channels=4)


def test_learns_digits() -> None:
    model = digits()
    before = model.evaluate(np.random.default_rng(0))
    loss = model.train(100, {"learning_rate": 0.1}, np.random.default_rng(1))["loss"]
    assert before < 0.3
    assert loss < 2.2  # that of equal probabilities is 2.3
    assert model.evaluate(np.random.default_rng(0)) > 0.75
    assert model.test(np.random.default_rng(0)) > 0.7


def test_accuracy_is_the_share_of_right_labels_of_the_split() -> None:
    model, data = digits(), load("digits")
    model.train(10, {}, np.random.default_rng(1))
    with torch.no_grad():
        for split, score in ((data.validation, model.evaluate), (data.test, model.test)):
            right = sum(
                int(logits.argmax()) == int(label)
                for logits, label in zip(model._network(split.inputs), split.labels, strict=True)
            )
            assert score(np.random.default_rng(0)) == right / len(split)


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 0.2}, {"momentum": 0.5}, {"weight_decay": 0.1}, {"label_smoothing": 0.2}, {"dropout": 0.5},
        {"shift": 2}, {"batch_size": 16},
    ],
    ids=lambda values: next(iter(values)),
)  # fmt: skip
def test_every_hyperparameter_has_an_effect_in_flight(values: dict[str, Any]) -> None:
    changed, same = digits(channels=4), digits(channels=4)
    for model, searched in ((changed, values), (same, {})):
        model.train(2, searched, np.random.default_rng(1))
        model.train(1, {}, np.random.default_rng(2))  # back to the fixed values
    assert not np.array_equal(changed.state_dict()["network.head.weight"], same.state_dict()["network.head.weight"])
    fixed = digits(channels=4, **values)
    fixed.train(2, {}, np.random.default_rng(1))
    searched_only = digits(channels=4)
    searched_only.train(2, values, np.random.default_rng(1))
    np.testing.assert_array_equal(
        fixed.state_dict()["network.head.weight"], searched_only.state_dict()["network.head.weight"]
    )


def test_all_tunable_names_are_keys() -> None:
    assert set(Classifier.tunable) == set(digits()._values)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("axes", "shape"), [(1, (40,)), (2, (8, 8))])
def test_network_reads_signals_and_images(axes: int, shape: tuple[int, ...], kernel: int) -> None:
    assert ResNet(axes, 4, kernel)(torch.randn(3, 1, *shape)).shape == (3, 10)


def test_shift_moves_every_input_by_itself_and_repeats_the_edge() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(8.0).expand(200, 1, 8)
    moved = {tuple(row[0].tolist()) for row in shifted(ramp, 2)}
    assert moved == {tuple(float(min(max(i + by, 0), 7)) for i in range(8)) for by in (-2, -1, 0, 1, 2)}
    assert torch.equal(shifted(ramp, 0), ramp)
    image = torch.arange(64.0).view(1, 1, 8, 8).expand(400, 1, 8, 8)
    inner = {(int(one[0, 3, 3]) // 8 - 3, int(one[0, 3, 3]) % 8 - 3) for one in shifted(image, 1)}
    assert inner == {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}


@pytest.mark.parametrize(("name", "sizes", "shape"), [("digits", (1000, 400, 397), (1, 8, 8))])
def test_data_are_split_without_overlap(name: Any, sizes: tuple[int, ...], shape: tuple[int, ...]) -> None:
    data = load(name)
    splits = (data.training, data.validation, data.test)
    assert tuple(map(len, splits)) == sizes
    assert all(split.inputs[0].shape == shape for split in splits)
    seen = [{row.numpy().tobytes() for row in split.inputs} for split in splits]
    assert not seen[0] & seen[1] | seen[0] & seen[2] | seen[1] & seen[2]
    assert all(set(split.labels.tolist()) == set(range(10)) for split in splits)
    assert data.training.inputs.min() == -1.0
    assert data.training.inputs.max() == 1.0


def test_label_noise_changes_its_share_of_the_training_labels_only() -> None:
    clean, noisy = load("digits"), load("digits", 0.3)
    assert int((clean.training.labels != noisy.training.labels).sum()) == 300
    assert set(noisy.training.labels.tolist()) == set(range(10))
    assert torch.equal(clean.validation.labels, noisy.validation.labels)
    assert torch.equal(clean.test.labels, noisy.test.labels)
    assert torch.equal(clean.training.inputs, noisy.training.inputs)


@pytest.mark.slow
def test_mnist1d_is_generated_without_touching_the_global_generators() -> None:
    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist()
    load.cache_clear()
    data = load("mnist1d")
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states
    assert [len(split) for split in (data.training, data.validation, data.test)] == [4000, 2000, 2000]
    assert data.training.inputs[0].shape == (1, 40)
    assert float(data.training.inputs.std()) == pytest.approx(1.0, abs=0.02)
