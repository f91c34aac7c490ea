"""Trainables in torch: state of modules and optimizers, and randomness of one member only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from pbtrl.trainables.torch_trainable import TorchTrainable, minimize, seeded, set_values

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
}


class Model(TorchTrainable):
    def __init__(self, rng: np.random.Generator, make: Callable[[Any], torch.optim.Optimizer]) -> None:
        with seeded(rng):
            self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
        self.optimizer = make(self.net.parameters())
        super().__init__({"net": self.net}, {"optimizer": self.optimizer}, {"learning_rate": 0.1, "scale": 1.0})

    def step(self, hyperparameters: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        set_values(self.optimizer, lr=hyperparameters["learning_rate"])
        loss = (hyperparameters["scale"] * self.net(torch.randn(16, 4)) - 1.0).square().mean()
        minimize(self.optimizer, loss)
        return {"loss": loss.detach(), "one": torch.tensor(1.0)}

    def score(self, held_out: bool) -> float:
        assert not self.net.training
        assert torch.is_inference_mode_enabled()
        return float(self.net(torch.ones(3, 4)).sum()) + 100.0 * held_out


def seed(number: int) -> np.random.Generator:
    return np.random.default_rng(number)


@pytest.fixture(params=OPTIMIZERS)
def make(request: pytest.FixtureRequest) -> Callable[[Any], torch.optim.Optimizer]:
    return OPTIMIZERS[request.param]


def test_moments_exist_before_the_first_step_and_change_nothing(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = Model(seed(0), make)
    before = model.state_dict()
    plain = copy.deepcopy(model.net)
    optimizer = make(plain.parameters())
    torch.manual_seed(int(seed(1).integers(2**63)))
    for _ in range(3):
        minimize(optimizer, (plain(torch.randn(16, 4)) - 1.0).square().mean())
    model.train(3, {}, seed(1))
    for own, other in zip(model.net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(own, other)
    after = model.state_dict()
    assert [(k, v.shape, v.dtype) for k, v in before.items()] == [(k, v.shape, v.dtype) for k, v in after.items()]
    assert all(not v.any() for k, v in before.items() if k.startswith("optimizer"))
    assert all(v.any() for k, v in after.items() if k.startswith("optimizer"))


def test_buffers_and_moments_are_state(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = Model(seed(0), make)
    model.train(3, {}, seed(1))
    names = model.state_dict().keys()
    assert {"net.0.weight", "net.0.bias", "net.1.running_mean", "net.1.num_batches_tracked"} < names
    assert {name.split(".")[1] for name in names if name.startswith("optimizer")} == {"0", "1", "2", "3"}


def test_members_of_one_process_do_not_depend_on_each_other() -> None:
    """Dropout draws from torch's global generator."""
    alone = Model(seed(0), OPTIMIZERS["adam"])
    alone.train(4, {}, seed(1))
    first, second = Model(seed(0), OPTIMIZERS["adam"]), Model(seed(5), OPTIMIZERS["adam"])
    torch.manual_seed(3)
    second.train(7, {}, seed(6))
    state = torch.get_rng_state()
    first.train(4, {}, seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in alone.state_dict().items():
        np.testing.assert_array_equal(value, first.state_dict()[name])
    first.train(4, {}, seed(2))
    alone.train(4, {}, seed(3))
    assert not np.array_equal(alone.state_dict()["net.0.weight"], first.state_dict()["net.0.weight"])


def test_initial_weights_follow_the_generator() -> None:
    first, same, other = (Model(seed(n), OPTIMIZERS["sgd"]).state_dict()["net.0.weight"] for n in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_searched_values_replace_the_fixed_ones() -> None:
    searched, fixed = Model(seed(0), OPTIMIZERS["sgd"]), Model(seed(0), OPTIMIZERS["sgd"])
    losses = searched.train(2, {"scale": 0.0, "learning_rate": 0.5}, seed(1))
    assert losses == {"loss": 1.0, "one": 1.0}
    assert searched.optimizer.param_groups[0]["lr"] == 0.5
    assert fixed.train(2, {}, seed(1))["loss"] != 1.0
    assert fixed.optimizer.param_groups[0]["lr"] == 0.1


def test_modules_train_again_after_an_evaluation() -> None:
    model = Model(seed(0), OPTIMIZERS["sgd"])
    model.evaluate(seed(0))
    model.train(1, {}, seed(1))
    assert model.net.training


def test_score_on_held_out_data_is_another_one() -> None:
    model = Model(seed(0), OPTIMIZERS["sgd"])
    assert model.test(seed(0)) == pytest.approx(model.evaluate(seed(0)) + 100.0)
