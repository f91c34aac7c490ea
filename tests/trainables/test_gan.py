"""The GAN, its losses, and the two classifiers that score it."""

from __future__ import annotations

import copy
import math
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, dropout

from pbtrl.build.trainables import trainable_builder
from pbtrl.config.load import parse
from pbtrl.config.schema import Config
from pbtrl.errors import ConfigProblem
from pbtrl.testing.trainables import TrainableConformance
from pbtrl.trainables import builder, digit_scorer
from pbtrl.trainables.datasets import Split, load
from pbtrl.trainables.digit_scorer import inception_score, train_scorer
from pbtrl.trainables.gan import GAN, Shared


@lru_cache
def shared() -> Shared:
    return GAN.prepare(0)


def seed(number: int) -> np.random.Generator:
    return np.random.default_rng(number)


def gan(**keys: Any) -> GAN:
    return GAN(seed(0), shared(), **keys)


class TestGAN(TrainableConformance):
    hyperparameters: ClassVar = {"generator_lr": 1e-3, "discriminator_lr": 3e-3}
    steps: ClassVar = 3

    def make(self, rng: np.random.Generator) -> GAN:
        return GAN(rng, shared(), critic_steps=2)


def slow_inception_score(logits: Tensor) -> float:
    """exp(E_x KL(p(y|x) || p(y))), class by class and in double precision."""
    rows = [[math.exp(float(z)) / sum(math.exp(float(o)) for o in row) for z in row] for row in logits]
    marginal = [sum(row[y] for row in rows) / len(rows) for y in range(len(rows[0]))]
    kl = [sum(p * math.log(p / q) for p, q in zip(row, marginal, strict=True)) for row in rows]
    return math.exp(sum(kl) / len(kl))


@pytest.mark.parametrize("scale", [0.1, 3.0, 20.0])
def test_inception_score_is_the_published_one(scale: float) -> None:
    torch.manual_seed(0)
    logits = scale * torch.randn(40, 10) + torch.linspace(-2.0, 2.0, 10)
    assert inception_score(logits) == pytest.approx(slow_inception_score(logits), rel=1e-5)


def test_inception_score_of_certain_answers_is_their_class_count() -> None:
    certain = 1000.0 * torch.eye(10)
    assert inception_score(certain) == pytest.approx(10.0, rel=1e-5)
    assert inception_score(certain[:3].repeat(5, 1)) == pytest.approx(3.0, rel=1e-5)
    assert inception_score(certain[:1].repeat(5, 1)) == pytest.approx(1.0, rel=1e-5)
    assert math.isnan(inception_score(torch.full((5, 10), torch.nan)))


@pytest.fixture(params=["scorer", "test_scorer"])
def scorer(request: pytest.FixtureRequest) -> nn.Module:
    module: nn.Module = getattr(shared(), request.param)
    return module


def test_scores_are_calibrated(scorer: nn.Module) -> None:
    test = load("digits").test
    real = test.inputs.flatten(1)
    noise = 2.0 * torch.rand(1000, 64, generator=torch.Generator().manual_seed(0)) - 1.0
    assert float((scorer(real).argmax(-1) == test.labels).float().mean()) > 0.97
    assert inception_score(scorer(real)) > 9.3
    assert inception_score(scorer(noise)) < 4.5
    for constant in (real[:1].expand(1000, -1), torch.zeros(1000, 64)):
        assert inception_score(scorer(constant)) == pytest.approx(1.0, abs=1e-3)


def test_scorers_know_no_digits_for_testing() -> None:
    seen = {row.numpy().tobytes() for row in shared().images}
    data = load("digits")
    assert not seen & {row.numpy().tobytes() for row in data.test.inputs.flatten(1)}
    assert seen == {row.numpy().tobytes() for part in (data.training, data.validation) for row in part.inputs}


def test_scorers_follow_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digit_scorer, "STEPS", 20)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    digits = Split(shared().images, torch.arange(1400) % 10)
    torch.set_num_threads(2)
    first, same, other = (train_scorer(digits, seed(n)).state_dict() for n in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == 1
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_scorer_learns_noisy_digits_with_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digit_scorer, "STEPS", 3)
    digits = Split(shared().images, torch.arange(1400) % 10)
    trained = train_scorer(digits, seed(1))
    torch.manual_seed(int(seed(1).integers(2**63)))
    first, second, last = nn.Linear(64, 128), nn.Linear(128, 128), nn.Linear(128, 10)
    adam = torch.optim.Adam([*first.parameters(), *second.parameters(), *last.parameters()], lr=3e-3)
    for _ in range(3):
        rows = torch.randint(1400, (256,))
        noisy = digits.inputs[rows] + 0.1 * torch.randn(256, 64)
        log_p = last(dropout(second(dropout(first(noisy).relu(), 0.1)).relu(), 0.1)).log_softmax(-1)
        adam.zero_grad()
        (-log_p[torch.arange(256), digits.labels[rows]].mean()).backward()
        adam.step()
    weights = [parameter for layer in (first, second, last) for parameter in layer.parameters()]
    for own, other in zip(trained.parameters(), weights, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_the_two_scorers_differ_in_weights_and_answers() -> None:
    one, two = shared().scorer, shared().test_scorer
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize(("score", "name"), [("evaluate", "scorer"), ("test", "test_scorer")])
def test_score_is_that_of_a_thousand_samples(score: str, name: str) -> None:
    model = gan()
    model.train(20, {}, seed(1))
    generator = copy.deepcopy(model._generator).eval()  # normalizes with the statistics of training
    torch.manual_seed(int(seed(2).integers(2**63)))
    with torch.no_grad():
        logits = getattr(shared(), name)(generator(torch.randn(1000, 32)))
    assert getattr(model, score)(seed(2)) == pytest.approx(slow_inception_score(logits), rel=1e-5)


@pytest.mark.parametrize("critic_steps", [1, 3])
def test_step_is_the_non_saturating_game(critic_steps: int) -> None:
    """Compare with cross entropies: D tells real from fake, and G wants its fakes to pass for real."""
    model = gan(critic_steps=critic_steps)
    g, d = copy.deepcopy(model._generator), copy.deepcopy(model._discriminator)
    adam_g = torch.optim.Adam(g.parameters(), lr=2e-3, betas=(0.5, 0.999))
    adam_d = torch.optim.Adam(d.parameters(), lr=5e-4, betas=(0.5, 0.999))
    ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
    torch.manual_seed(int(seed(1).integers(2**63)))
    losses = []
    for _ in range(3):
        for _ in range(critic_steps):
            real = shared().images[torch.randint(1400, (64,))]
            fake = g(torch.randn(64, 32)).detach()
            adam_d.zero_grad()
            loss_d = binary_cross_entropy_with_logits(d(real), ones) + binary_cross_entropy_with_logits(d(fake), zeros)
            loss_d.backward()
            adam_d.step()
        adam_g.zero_grad()
        loss_g = binary_cross_entropy_with_logits(d(g(torch.randn(64, 32))), ones)
        loss_g.backward()
        adam_g.step()
        losses.append((loss_g.item(), loss_d.item()))
    scalars = model.train(3, {"generator_lr": 2e-3, "discriminator_lr": 5e-4}, seed(1))
    means = np.mean(losses, axis=0)
    assert [scalars["generator_loss"], scalars["discriminator_loss"]] == pytest.approx(means, rel=1e-4)
    for own, other in ((model._generator, g), (model._discriminator, d)):
        for name, value in other.state_dict().items():
            torch.testing.assert_close(own.state_dict()[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "network"), [("generator_lr", "generator"), ("discriminator_lr", "discriminator")])
def test_learning_rates_have_their_effect_in_flight(name: str, network: str) -> None:
    changed, same = gan(), gan()
    for model, searched in ((changed, {name: 1e-2}), (same, {})):
        model.train(1, searched, seed(1))
    other = {"generator": "discriminator", "discriminator": "generator"}[network]
    one, two = changed.state_dict(), same.state_dict()
    assert not np.array_equal(one[f"{network}.0.weight"], two[f"{network}.0.weight"])
    if network == "generator":  # which moves after the discriminator
        np.testing.assert_array_equal(one[f"{other}.0.weight"], two[f"{other}.0.weight"])
    fixed, searched_only = gan(**{name: 1e-2}), gan()
    fixed.train(2, {}, seed(1))
    searched_only.train(2, {name: 1e-2}, seed(1))
    for key, value in fixed.state_dict().items():
        np.testing.assert_array_equal(value, searched_only.state_dict()[key])
    searched_only.train(1, {}, seed(2))  # back to the fixed value
    fixed.train(1, {name: 1e-3}, seed(2))
    for key, value in fixed.state_dict().items():
        np.testing.assert_array_equal(value, searched_only.state_dict()[key])


def test_state_has_the_statistics_and_the_moments_but_no_scorer() -> None:
    model = gan()
    before = [p.clone() for p in shared().scorer.parameters()]
    model.train(2, {}, seed(1))
    model.evaluate(seed(2))
    names = model.state_dict().keys()
    assert {name.split(".")[0] for name in names} == {
        "generator", "discriminator", "generator_adam", "discriminator_adam",
    }  # fmt: skip
    assert {"generator.1.running_mean", "generator.4.running_var", "generator.4.num_batches_tracked"} < names
    assert all(torch.equal(a, b) for a, b in zip(before, shared().scorer.parameters(), strict=True))
    assert not any(p.requires_grad for p in shared().scorer.parameters())


def test_all_tunable_names_are_keys() -> None:
    assert set(GAN.tunable) == set(gan()._values)


def distance_of_means(model: GAN) -> float:
    with torch.inference_mode():
        images = model.sample(500)
    assert images.abs().max() <= 1.0
    return float((images.mean(0) - shared().images.mean(0)).square().mean())


def test_learns_digits() -> None:
    model = gan()
    before, distance = model.evaluate(seed(0)), distance_of_means(model)
    model.train(150, {}, seed(1))
    assert before < 3.0
    assert model.evaluate(seed(0)) > before + 1.0
    assert model.test(seed(0)) > before + 1.0
    assert distance_of_means(model) < distance / 2


@pytest.mark.parametrize("rates", [{"generator_lr": 1e3}, {"discriminator_lr": 1e38}, {"generator_lr": 1e38}])
def test_diverged_generator_has_no_score_or_a_low_one(rates: dict[str, float]) -> None:
    model = gan()
    model.train(10, rates, seed(1))
    for score in (model.evaluate(seed(2)), model.test(seed(2))):
        assert not score > 3.0
    finite = all(np.isfinite(value).all() for value in model.state_dict().values())
    assert not finite or rates == {"generator_lr": 1e3}


def shipped() -> Config:
    return parse((Path(__file__).parents[2] / "configs" / "gan.yaml").read_text())


def test_shipped_config_makes_what_the_paper_searches() -> None:
    builder = trainable_builder(shipped())
    assert builder.metric == "Inception score"
    state = builder.make(seed(0)).state_dict()
    weights = [n for n in state if n.endswith("weight") and state[n].ndim == 2]
    assert {n: state[n].shape[::-1] for n in weights} == {
        "generator.0.weight": (32, 128), "generator.3.weight": (128, 128), "generator.6.weight": (128, 64),
        "discriminator.0.weight": (64, 128), "discriminator.2.weight": (128, 128), "discriminator.4.weight": (128, 1),
    }  # fmt: skip


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    load.cache_clear()
    builder._prepared.cache_clear()
    with pytest.raises(
        ConfigProblem, match=r'trainable\.data: digits needs scikit-learn.*"pbtrl\[trainables\]"'
    ) as caught:
        trainable_builder(shipped())
    assert ("trainable", "name") in caught.value.paths
