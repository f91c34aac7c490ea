"""Gradient boosting of decision trees, for searches over trials (Wu et al. 2020 use XGBoost; this is scikit-learn's).

A step is a tree. Each evaluation fits all trees from scratch with the current hyperparameters, so the state
is the number of trees, the hyperparameters and a seed; no estimator is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Le
from typing_extensions import override

from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Trainable
from pbtrl.trainables.boosting_tasks import Task, load_task


class Boosting(Trainable):
    """Histogram gradient boosting. The fitness is the accuracy of a cross-validation, the score that on test data.

    Args:
        rng: unused; a model without trees has no weights.
        shared: the task.
        learning_rate: factor of every tree's output.
        max_leaf_nodes: leaves of a tree.
        min_samples_leaf: samples of a leaf.
        l2_regularization: penalty of the leaves' values.
        max_features: share of the features that a split chooses from.
        max_bins: bins of a feature.
    """

    metric: ClassVar = "accuracy"
    tunable: ClassVar = (
        "learning_rate", "max_leaf_nodes", "min_samples_leaf", "l2_regularization", "max_features", "max_bins",
    )  # fmt: skip

    def __init__(
        self, rng: np.random.Generator, shared: Task, *,
        learning_rate: Annotated[float, Gt(0)] = 0.1,
        max_leaf_nodes: Annotated[int, Ge(2)] = 31,
        min_samples_leaf: Annotated[int, Ge(1)] = 20,
        l2_regularization: Annotated[float, Ge(0)] = 0.0,
        max_features: Annotated[float, Gt(0), Le(1)] = 1.0,
        max_bins: Annotated[int, Ge(2), Le(255)] = 255,
    ) -> None:  # fmt: skip
        self._task = shared
        fixed = (learning_rate, max_leaf_nodes, min_samples_leaf, l2_regularization, max_features, max_bins)
        self._fixed: dict[str, Any] = dict(zip(self.tunable, fixed, strict=True))
        self._values = dict(self._fixed)
        self._trees, self._seed = 0, 0
        self._fitness: float | None = None

    @classmethod
    def prepare(cls, seed: int, *, task: str = "breast_cancer") -> Task:
        """Load the task, which is the same for all seeds."""
        return load_task(task)

    @override
    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        """Count `steps` more trees, all of them with these hyperparameters."""
        self._values = {name: type(value)(hyperparameters.get(name, value)) for name, value in self._fixed.items()}
        self._trees += steps
        self._seed = int(rng.integers(2**31))
        self._fitness = None
        return {"trees": float(self._trees)}

    @override
    def evaluate(self, rng: np.random.Generator) -> float:
        """Return the mean accuracy on the folds of the cross-validation, each with the trees of the others."""
        if self._fitness is None:
            folds = self._task.folds
            rest = [np.concatenate([other for other in folds if other is not fold]) for fold in folds]
            self._fitness = float(np.mean([self._accuracy(*pair) for pair in zip(rest, folds, strict=True)]))
        return self._fitness

    def test(self, rng: np.random.Generator) -> float:
        """Return the accuracy on the test data of a model of all other data."""
        return self._accuracy(np.concatenate(self._task.folds), self._task.test)

    def _accuracy(self, training: np.ndarray, tested: np.ndarray) -> float:
        from sklearn.ensemble import HistGradientBoostingClassifier  # takes a second to import
        from threadpoolctl import threadpool_limits

        inputs, labels = self._task.inputs, self._task.labels
        if not self._trees:
            return float(np.mean(labels[tested] == np.bincount(labels[training]).argmax()))
        model = HistGradientBoostingClassifier(
            max_iter=self._trees, early_stopping=False, random_state=self._seed, **self._values
        )
        with threadpool_limits(1):  # a member has one core
            model.fit(inputs[training], labels[training])
            return float(np.mean(model.predict(inputs[tested]) == labels[tested]))

    @override
    def state_dict(self) -> Tensors:
        values = {name: np.array([self._values[name]], np.float64) for name in self.tunable}
        return {"trees": np.array([self._trees]), "seed": np.array([self._seed]), **values}

    @override
    def load_state_dict(self, state: Tensors) -> None:
        self._trees, self._seed = int(state["trees"][0]), int(state["seed"][0])
        self._values = {name: type(self._fixed[name])(state[name][0]) for name in self.tunable}
        self._fitness = None
