"""Labeled data that install with their package or are generated: nothing is downloaded.

    digits   1797 images of 8 x 8 pixels (scikit-learn): 1000 for training, 400 for validation, 397 for testing
    mnist1d  signals of 40 samples (Greydanus 2020, arXiv 2011.14439), generated: 4000, 2000 and 2000

Both have ten classes. The split is the same in all runs.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pbtrl.errors import MissingPackageError

DataName = Literal["digits", "mnist1d"]
CLASSES = 10
SETTINGS = (("trainable", "data"), ("trainable", "name"))  # at fault if a package is missing; a GAN has no `data`


@dataclass(frozen=True)
class Split:
    """Inputs [N, ...], float32, and labels [N], int64."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class LabeledData:
    """Data for training, for the fitness, and for the score that is reported."""

    training: Split
    validation: Split
    test: Split


@lru_cache
def load(name: DataName, label_noise: float = 0.0) -> LabeledData:
    """Load a data set, with inputs [N, 1, 8, 8] in [-1, 1] (digits) or [N, 1, 40] of unit variance (mnist1d).

    Args:
        name: name of the data set.
        label_noise: share of the training labels that are replaced by another class.

    Raises:
        MissingPackageError: the package is not installed.
    """
    inputs, labels, sizes = _digits() if name == "digits" else _mnist1d()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    x = torch.from_numpy(inputs[order].astype(np.float32)).unsqueeze(1)
    y = torch.from_numpy(labels[order].astype(np.int64))
    parts = zip(torch.split(x, sizes), torch.split(y, sizes), strict=True)
    training, validation, test = (Split(*part) for part in parts)
    wrong = torch.from_numpy(rng.permutation(len(training))[: round(label_noise * len(training))])
    training.labels[wrong] = (training.labels[wrong] + torch.from_numpy(rng.integers(1, CLASSES, len(wrong)))) % CLASSES
    return LabeledData(training, validation, test)


def _digits() -> tuple[np.ndarray, np.ndarray, list[int]]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise MissingPackageError("digits", "scikit-learn", "trainables", *SETTINGS) from error
    data = load_digits()
    return data.images / 8.0 - 1.0, data.target, [1000, 400, 397]


def _mnist1d() -> tuple[np.ndarray, np.ndarray, list[int]]:
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ModuleNotFoundError as error:
        raise MissingPackageError("mnist1d", "mnist1d", "trainables", *SETTINGS) from error
    arguments = get_dataset_args()
    arguments.num_samples = 8000
    states = np.random.get_state(), random.getstate()
    try:
        data = make_dataset(arguments)
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])
    return np.concatenate([data["x"], data["x_test"]]), np.concatenate([data["y"], data["y_test"]]), [4000, 2000, 2000]
