"""Gradient boosting and its twenty tasks."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from pbtrl.errors import ConfigProblem
from pbtrl.testing.trainables import TrainableConformance
from pbtrl.trainables.boosting import Boosting
from pbtrl.trainables.boosting_tasks import TASKS, load_task


def iris(**keys: Any) -> Boosting:
    return Boosting(np.random.default_rng(0), load_task("iris"), **keys)


class TestBoosting(TrainableConformance):
    hyperparameters: ClassVar = {"learning_rate": 0.3, "max_leaf_nodes": 4, "max_features": 0.5}
    steps: ClassVar = 2

    def make(self, rng: np.random.Generator) -> Boosting:
        return Boosting(rng, load_task("iris"))


def test_fitness_is_the_mean_accuracy_of_models_that_never_saw_the_fold() -> None:
    """Literal: fit on the other folds, count right answers on the fold; then on the test rows."""
    model, task = iris(), load_task("iris")
    values = {"learning_rate": 0.3, "max_leaf_nodes": 5, "min_samples_leaf": 4, "max_bins": 16}
    model.train(3, values, np.random.default_rng(1))
    model.train(2, values, np.random.default_rng(2))
    seed = int(np.random.default_rng(2).integers(2**31))

    def accuracy(training: list[int], tested: list[int]) -> float:
        fresh = HistGradientBoostingClassifier(
            max_iter=5, early_stopping=False, random_state=seed, l2_regularization=0.0, max_features=1.0, **values
        )
        with threadpool_limits(1):
            fresh.fit(task.inputs[training], task.labels[training])
            answers = fresh.predict(task.inputs[tested])
        return sum(int(a == task.labels[row]) for a, row in zip(answers, tested, strict=True)) / len(tested)

    folds = [fold.tolist() for fold in task.folds]
    rest = [[row for other in folds if other != fold for row in other] for fold in folds]
    scores = [accuracy(*pair) for pair in zip(rest, folds, strict=True)]
    assert model.evaluate(np.random.default_rng(0)) == pytest.approx(sum(scores) / 3)
    everything = [row for fold in folds for row in fold]
    assert model.test(np.random.default_rng(0)) == pytest.approx(accuracy(everything, task.test.tolist()))


def test_a_loaded_model_has_the_same_scores_without_new_training() -> None:
    model, copy = iris(), iris()
    model.train(4, {"max_bins": 8, "learning_rate": 0.5}, np.random.default_rng(1))
    copy.load_state_dict(model.state_dict())
    assert copy.evaluate(np.random.default_rng(0)) == model.evaluate(np.random.default_rng(0))
    assert copy.test(np.random.default_rng(0)) == model.test(np.random.default_rng(0))


def test_hyperparameters_have_the_types_that_the_model_needs() -> None:
    """1 is a share of features here; as an integer it would be a number of them, which the model refuses."""
    model = iris()
    model.train(1, {"max_features": 1, "max_leaf_nodes": 4.0}, np.random.default_rng(0))
    assert model.evaluate(np.random.default_rng(0)) > 0.5


def test_without_trees_the_most_frequent_class_is_predicted() -> None:
    assert iris().evaluate(np.random.default_rng(0)) == pytest.approx(1 / 3, abs=0.03)


def test_rows_are_used_once() -> None:
    for name in ("iris", "wine", "diabetes", "generated-03"):
        task = load_task(name)
        rows = np.concatenate([*task.folds, task.test])
        assert sorted(rows.tolist()) == list(range(len(task.labels)))
        assert len(task.test) == pytest.approx(len(rows) / 4, abs=1)
        shares = [np.bincount(task.labels[part]) / len(part) for part in (*task.folds, task.test)]
        assert np.ptp(shares, axis=0).max() < 0.05


def test_there_are_twenty_tasks_and_generated_ones_differ() -> None:
    assert len(set(TASKS)) == 20
    shapes = [load_task(name).inputs.shape for name in TASKS if name.startswith("generated")]
    assert len(set(shapes)) == 15
    assert np.array_equal(load_task("generated-00").inputs, load_task("generated-00").inputs)


def test_unknown_task_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigProblem, match=r"unknown task 'irys'\. Did you mean 'iris'\?"):
        Boosting.prepare(0, task="irys")
