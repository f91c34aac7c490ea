"""Classifier of small images or signals: a residual network with group normalization, trained by SGD with momentum.

It stands for the image classifiers of the papers: the schedules of FIRE PBT (Dalibard 2021), and with the
hyperparameters of its shape the CNN of Wu et al. (2020). Group normalization has no running statistics, unlike batch
normalization.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from typing_extensions import override

from pbtrl.trainables.datasets import CLASSES, DataName, LabeledData, load
from pbtrl.trainables.torch_trainable import TorchTrainable, minimize, seeded, set_values

GROUPS = 4  # of group normalization


class Classifier(TorchTrainable):
    """A step is a minibatch. The fitness is the accuracy on validation data, the score that on test data.

    Args:
        rng: generator of the initial weights.
        shared: the data.
        channels: channels of the first residual block; the second has twice as many.
        kernel: width of the convolutions.
        batch_size: examples of a minibatch.
        learning_rate: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        label_smoothing: share of the target probability that is spread over all classes.
        dropout: share of the features that are dropped before the last layer.
        shift: largest random translation of a training input, in pixels or samples.
    """

    metric: ClassVar = "accuracy"
    tunable: ClassVar = (
        "learning_rate", "momentum", "weight_decay", "label_smoothing", "dropout", "shift", "batch_size",
    )  # fmt: skip
    structural: ClassVar = ("channels", "kernel")

    def __init__(
        self, rng: np.random.Generator, shared: LabeledData, *,
        channels: Annotated[int, Gt(0), MultipleOf(GROUPS)] = 16,
        kernel: Annotated[int, Ge(1), Le(7)] = 3,
        batch_size: Annotated[int, Ge(1)] = 64,
        learning_rate: Annotated[float, Gt(0)] = 0.1,
        momentum: Annotated[float, Ge(0), Lt(1)] = 0.9,
        weight_decay: Annotated[float, Ge(0)] = 5e-4,
        label_smoothing: Annotated[float, Ge(0), Le(1)] = 0.0,
        dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
        shift: Annotated[int, Ge(0)] = 0,
    ) -> None:  # fmt: skip
        self._data = shared
        with seeded(rng):
            self._network = ResNet(shared.training.inputs[0].ndim - 1, channels, kernel)
        self._optimizer = torch.optim.SGD(self._network.parameters(), lr=learning_rate, momentum=momentum)
        fixed = {
            "learning_rate": learning_rate, "momentum": momentum, "weight_decay": weight_decay,
            "label_smoothing": label_smoothing, "dropout": dropout, "shift": shift, "batch_size": batch_size,
        }  # fmt: skip
        super().__init__({"network": self._network}, {"sgd": self._optimizer}, fixed)

    @classmethod
    def prepare(
        cls, seed: int, *, data: DataName = "mnist1d", label_noise: Annotated[float, Ge(0), Le(1)] = 0.0
    ) -> LabeledData:
        """Load the data, which is the same for all seeds; `label_noise` is the share of wrong training labels."""
        return load(data, label_noise)

    @override
    def step(self, hyperparameters: Mapping[str, Any]) -> dict[str, Tensor]:
        h = hyperparameters
        set_values(self._optimizer, lr=h["learning_rate"], momentum=h["momentum"], weight_decay=h["weight_decay"])
        self._network.dropout.p = h["dropout"]
        rows = torch.randint(len(self._data.training), (int(h["batch_size"]),))
        inputs = shifted(self._data.training.inputs[rows], int(h["shift"]))
        labels = self._data.training.labels[rows]
        loss = cross_entropy(self._network(inputs), labels, label_smoothing=h["label_smoothing"])
        minimize(self._optimizer, loss)
        return {"loss": loss.detach()}

    @override
    def score(self, held_out: bool) -> float:
        split = self._data.test if held_out else self._data.validation
        return int((self._network(split.inputs).argmax(-1) == split.labels).sum()) / len(split)


class ResNet(nn.Module):
    """Two residual blocks, the second at half the resolution.

    Args:
        axes: 1 for signals, 2 for images.
        channels: channels of the first block.
        kernel: width of the convolutions.
    """

    def __init__(self, axes: int, channels: int, kernel: int) -> None:
        super().__init__()
        convolution, pool = ((nn.Conv1d, nn.MaxPool1d), (nn.Conv2d, nn.MaxPool2d))[axes - 1]
        self.blocks = nn.Sequential(
            convolution(1, channels, kernel, padding="same"),
            _Residual(convolution, channels, channels, kernel),
            pool(2),
            _Residual(convolution, channels, 2 * channels, kernel),
            nn.ReLU(),
        )
        self.dropout = nn.Dropout(0.0)
        self.head = nn.Linear(2 * channels, CLASSES)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [N, 10] of inputs [N, 1, ...]."""
        features: Tensor = self.blocks(inputs)
        logits: Tensor = self.head(self.dropout(features.flatten(2).mean(-1)))
        return logits


class _Residual(nn.Module):
    """Residual block with normalization and activation before each convolution (He et al. 2016, arXiv 1603.05027)."""

    def __init__(self, convolution: Any, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(GROUPS, inputs), nn.ReLU(), convolution(inputs, outputs, kernel, padding="same"),
            nn.GroupNorm(GROUPS, outputs), nn.ReLU(), convolution(outputs, outputs, kernel, padding="same"),
        )  # fmt: skip
        self.skip = nn.Identity() if inputs == outputs else convolution(inputs, outputs, 1)

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.skip(inputs) + self.body(inputs)
        return out


def shifted(inputs: Tensor, most: int) -> Tensor:
    """Translate each input [N, C, ...] by up to `most` places along every axis, and fill with the edge's values."""
    for axis in range(2, inputs.ndim) if most else ():
        size = inputs.shape[axis]
        offsets = torch.randint(-most, most + 1, (len(inputs), *[1] * (inputs.ndim - 1)))
        places = torch.arange(size).view([-1 if a == axis else 1 for a in range(inputs.ndim)]) + offsets
        inputs = torch.take_along_dim(inputs, places.clamp(0, size - 1), axis)
    return inputs
