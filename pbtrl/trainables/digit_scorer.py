"""Inception score of generated digits, by a small classifier in the place of the Inception network.

Digits are not ImageNet: the scores compare with nothing but each other. They lie between 1 and 10, the number of
classes. A classifier gives about 9.5 to real digits, 3.6 (not 1, because it is overconfident) to uniform noise and 1 to
a constant image.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pbtrl.system.torch_settings import configure_torch
from pbtrl.trainables.datasets import CLASSES, Split
from pbtrl.trainables.torch_trainable import minimize, seeded

PIXELS = 64
STEPS, BATCH, LEARNING_RATE = 300, 256, 3e-3
NOISE = 0.1  # standard deviation of the noise on training inputs, and probability of dropout


def inception_score(logits: Tensor) -> float:
    """Return exp(E_x KL(p(y|x) || p(y))) of logits [N, classes], where p(y) = E_x p(y|x).

    Salimans et al. 2016 (arXiv 1606.03498), section 4.
    """
    log_p = logits.log_softmax(-1)
    log_marginal = log_p.logsumexp(0) - math.log(len(log_p))
    return float((log_p.exp() * (log_p - log_marginal)).sum(-1).mean().exp())


def train_scorer(data: Split, rng: np.random.Generator) -> nn.Module:
    """Train a classifier of images [N, 64] in [-1, 1], which returns logits [N, 10]."""
    configure_torch(threads=1)  # the same scorer in all processes: sums in several threads round differently
    with seeded(rng):
        scorer = nn.Sequential(
            nn.Linear(PIXELS, 128), nn.ReLU(), nn.Dropout(NOISE),
            nn.Linear(128, 128), nn.ReLU(), nn.Dropout(NOISE),
            nn.Linear(128, CLASSES),
        )  # fmt: skip
        optimizer = torch.optim.Adam(scorer.parameters(), lr=LEARNING_RATE)
        for _ in range(STEPS):
            rows = torch.randint(len(data), (BATCH,))
            inputs = data.inputs[rows]
            logits = scorer(inputs + NOISE * torch.randn_like(inputs))
            minimize(optimizer, cross_entropy(logits, data.labels[rows]))
    return scorer.eval().requires_grad_(False)
