"""Generative adversarial network of digits with an Inception score for its fitness (Jaderberg et al. 2017, 4.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn
from torch.nn.functional import softplus
from typing_extensions import override

from pbtrl.trainables.datasets import Split, load
from pbtrl.trainables.digit_scorer import PIXELS, inception_score, train_scorer
from pbtrl.trainables.torch_trainable import TorchTrainable, minimize, seeded, set_values

LATENT = 32
BATCH = 64
SAMPLES = 1000  # of which a score is computed


@dataclass(frozen=True)
class Shared:
    """Images [N, 64] in [-1, 1] that the discriminator takes for real, and the classifiers of the two scores."""

    images: Tensor
    scorer: nn.Module
    test_scorer: nn.Module


class GAN(TorchTrainable):
    """A step is an update of the generator, after `critic_steps` updates of the discriminator.

    The loss is the non-saturating one (Goodfellow et al. 2014, section 3). The fitness and the score that is reported
    come from two classifiers, because selection finds what fools the first.

    Args:
        rng: generator of the initial weights.
        shared: the data and the classifiers.
        critic_steps: updates of the discriminator per step; the paper has 5.
        generator_lr: learning rate of the generator's Adam.
        discriminator_lr: learning rate of the discriminator's Adam.
    """

    metric: ClassVar = "Inception score"
    tunable: ClassVar = ("generator_lr", "discriminator_lr")

    def __init__(
        self, rng: np.random.Generator, shared: Shared, *,
        critic_steps: Annotated[int, Ge(1)] = 1,
        generator_lr: Annotated[float, Gt(0)] = 1e-3,
        discriminator_lr: Annotated[float, Gt(0)] = 1e-3,
    ) -> None:  # fmt: skip
        self._shared, self._critic_steps = shared, critic_steps
        with seeded(rng):
            self._generator = nn.Sequential(
                nn.Linear(LATENT, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(),
                nn.Linear(128, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU(),
                nn.Linear(128, PIXELS), nn.Tanh(),
            )  # fmt: skip
            self._discriminator = nn.Sequential(
                nn.Linear(PIXELS, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1)
            )
        self._generator_adam, self._discriminator_adam = (
            torch.optim.Adam(network.parameters(), betas=(0.5, 0.999))
            for network in (self._generator, self._discriminator)
        )
        super().__init__(
            {"generator": self._generator, "discriminator": self._discriminator},
            {"generator_adam": self._generator_adam, "discriminator_adam": self._discriminator_adam},
            {"generator_lr": generator_lr, "discriminator_lr": discriminator_lr},
        )

    @classmethod
    def prepare(cls, seed: int) -> Shared:
        """Load the digits, and train two classifiers on them in different orders, from different weights.

        The digits for testing are left out, so that the classifiers can be judged by them.
        """
        data = load("digits")
        parts = (data.training, data.validation)
        images = torch.cat([part.inputs for part in parts]).flatten(1)
        split = Split(images, torch.cat([part.labels for part in parts]))
        scorer, test_scorer = (train_scorer(split, rng) for rng in np.random.default_rng(seed).spawn(2))
        return Shared(images, scorer, test_scorer)

    @override
    def step(self, hyperparameters: Mapping[str, Any]) -> dict[str, Tensor]:
        set_values(self._generator_adam, lr=hyperparameters["generator_lr"])
        set_values(self._discriminator_adam, lr=hyperparameters["discriminator_lr"])
        for _ in range(self._critic_steps):
            real = self._shared.images[torch.randint(len(self._shared.images), (BATCH,))]
            with torch.no_grad():
                fake = self.sample(BATCH)
            loss = softplus(-self._discriminator(real)).mean() + softplus(self._discriminator(fake)).mean()
            minimize(self._discriminator_adam, loss)
        generator_loss = softplus(-self._discriminator(self.sample(BATCH))).mean()
        minimize(self._generator_adam, generator_loss)
        return {"generator_loss": generator_loss.detach(), "discriminator_loss": loss.detach()}

    def sample(self, number: int) -> Tensor:
        """Images [number, 64] in [-1, 1], drawn with torch's global generator."""
        images: Tensor = self._generator(torch.randn(number, LATENT))
        return images

    @override
    def score(self, held_out: bool) -> float:
        scorer = self._shared.test_scorer if held_out else self._shared.scorer
        return inception_score(scorer(self.sample(SAMPLES)))
