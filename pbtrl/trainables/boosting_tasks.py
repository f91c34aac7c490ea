"""Twenty classification tasks for boosting: five data sets of scikit-learn, and fifteen generated ones.

`diabetes` asks whether the disease progresses faster than in the median patient. The generated tasks differ in size,
noise, and number of features and classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pbtrl.config.wording import unknown
from pbtrl.errors import ConfigProblem, MissingPackageError

FOLDS = 3
GENERATED = {f"generated-{i:02d}": i for i in range(15)}
TASKS = ("breast_cancer", "digits", "wine", "iris", "diabetes", *GENERATED)


@dataclass(frozen=True)
class Task:
    """Inputs [N, features] and labels [N]; `folds` and `test` hold rows.

    Attributes:
        folds: rows of each fold of the cross-validation.
        test: rows that the cross-validation never sees.
    """

    inputs: np.ndarray
    labels: np.ndarray
    folds: tuple[np.ndarray, ...]
    test: np.ndarray


def load_task(name: str) -> Task:
    """Load a task; its split is the same in all runs, and stratified.

    Raises:
        MissingPackageError: scikit-learn is not installed.
        ConfigProblem: there is no such task.
    """
    if name not in TASKS:
        raise ConfigProblem(unknown(f"unknown task {name!r}", name, TASKS, {}), ("trainable", "task"))
    try:
        from sklearn import datasets
        from sklearn.model_selection import StratifiedKFold, train_test_split
    except ModuleNotFoundError as error:
        raise MissingPackageError("boosting", "scikit-learn", "trainables", ("trainable", "name")) from error
    if name in GENERATED:
        inputs, labels = datasets.make_classification(**_shape(GENERATED[name]))
    else:
        inputs, labels = getattr(datasets, f"load_{name}")(return_X_y=True)
        labels = (labels > np.median(labels)).astype(int) if name == "diabetes" else labels
    rows = np.arange(len(labels))
    training, test = train_test_split(rows, test_size=0.25, random_state=0, stratify=labels)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(training, labels[training])
    return Task(inputs, labels, tuple(training[held_out] for _, held_out in folds), test)


def _shape(number: int) -> dict[str, object]:
    """Return the arguments of `make_classification` for a generated task."""
    rng = np.random.default_rng([20, number])
    features, classes = int(rng.integers(6, 31)), int(rng.integers(2, 6))
    informative = int(rng.integers(4, max(5, features // 2) + 1))
    return {
        "n_samples": int(rng.integers(300, 1001)),
        "n_features": features,
        "n_informative": informative,
        "n_redundant": int(rng.integers(0, features - informative + 1)),
        "n_classes": classes,
        "n_clusters_per_class": 1 if classes > 3 else 2,
        "flip_y": float(rng.uniform(0.0, 0.2)),
        "class_sep": float(rng.uniform(0.5, 1.5)),
        "random_state": number,
    }
