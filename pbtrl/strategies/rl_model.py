"""Predictive model: an ensemble of small MLPs that predicts a trial's reward from its hyperparameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pbtrl.strategies.results import standard_deviation

if TYPE_CHECKING:
    import torch

NETWORKS, WIDTH, STEPS, LEARNING_RATE, BATCH = 3, 64, 300, 0.01, 128


@dataclass(frozen=True)
class RewardModel:
    """Ensemble with two hidden layers per network; all networks are stacked in three matrices.

    Attributes:
        layers: weights [networks, inputs + 1, outputs] of each layer; the last row is the bias.
        mean, sd: scale of the rewards.
    """

    layers: list[torch.Tensor]
    mean: float
    sd: float

    def predict(self, actions: np.ndarray) -> np.ndarray:
        """Return the mean prediction of the networks for actions [B, n], clipped to [-1, 1]."""
        import torch

        with torch.no_grad():
            x = torch.tensor(np.clip(actions, -1, 1), dtype=torch.float32)
            out = _forward(self.layers, x.expand(NETWORKS, *x.shape)).mean(0)
        return self.mean + self.sd * out.numpy().astype(np.float64)


def fit_model(actions: np.ndarray, rewards: np.ndarray, rng: np.random.Generator) -> RewardModel:
    """Fit a new ensemble to all pairs of actions [N, n] and rewards [N], by least squares on minibatches."""
    import torch

    n = actions.shape[1]
    mean, sd = float(rewards.mean()), standard_deviation(rewards) or 1.0
    x = torch.tensor(np.clip(actions, -1, 1), dtype=torch.float32)
    y = torch.tensor((rewards - mean) / sd, dtype=torch.float32)
    layers = [_uniform(rng, inputs, outputs) for inputs, outputs in ((n, WIDTH), (WIDTH, WIDTH), (WIDTH, 1))]
    adam = torch.optim.AdamW(layers, lr=LEARNING_RATE, weight_decay=1e-3)
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = LEARNING_RATE * (1 - step / STEPS)
        rows = torch.from_numpy(rng.integers(len(x), size=(NETWORKS, min(BATCH, len(x)))))
        loss = ((_forward(layers, x[rows]) - y[rows]) ** 2).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return RewardModel(layers, mean, sd)


def _uniform(rng: np.random.Generator, inputs: int, outputs: int) -> torch.Tensor:
    import torch

    bound = 1 / math.sqrt(inputs)
    drawn = torch.from_numpy(rng.uniform(-bound, bound, (NETWORKS, inputs + 1, outputs)).astype(np.float32))
    return drawn.requires_grad_()


def _forward(layers: list[torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply the networks to their inputs [networks, B, n]; returns [networks, B]."""
    import torch

    for weights in layers[:-1]:
        x = torch.baddbmm(weights[:, -1:], x, weights[:, :-1]).tanh()
    last = layers[-1]
    return torch.baddbmm(last[:, -1:], x, last[:, :-1])[..., 0]
