"""A cohort of trainables: members are trained and evaluated one after another, each by its assignment."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from pbtrl.core.messages import Assignment
from pbtrl.core.seeding import seed_for
from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Outcome
from pbtrl.errors import SnapshotError
from pbtrl.trainables import sequential
from pbtrl.trainables.sequential import SequentialCohort

TWO = ("m00", "m01")


class Noisy:
    """Its weight starts at a random draw and moves by lr times the steps; each evaluation adds another draw."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.weight = np.array([rng.random()])

    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        self.weight = self.weight + hyperparameters["lr"] * steps
        return {"draw": float(rng.random())}

    def evaluate(self, rng: np.random.Generator) -> float:
        return float(self.weight[0] + rng.random())

    def state_dict(self) -> Tensors:
        return {"weight": self.weight.copy()}

    def load_state_dict(self, state: Tensors) -> None:
        self.weight = state["weight"].copy()


def slices(start: int = 0, stop: int = 10, lr: float = 1.0) -> list[Assignment]:
    """Member i trains at lr * (i + 1) from seed 5 + i."""
    return [
        Assignment(f"{m}/000000", m, None, start, stop, {"lr": lr * (i + 1)}, seed=5 + i) for i, m in enumerate(TWO)
    ]


def begun(assignments: list[Assignment]) -> SequentialCohort:
    cohort = SequentialCohort(TWO, Noisy)
    for slot in range(2):
        cohort.init(slot, 100 + slot)
    cohort.begin(assignments)
    return cohort


def initial_weight(seed: int) -> float:
    return np.random.default_rng(seed_for(seed, "weights")).random()


def expected(slot: int, start: int, stop: int) -> Outcome:
    """Result of a fresh member."""
    rng = np.random.default_rng(5 + slot)
    draw = float(rng.random())
    weight = initial_weight(100 + slot) + (slot + 1.0) * (stop - start)
    fitness = float(weight + rng.random())
    steps = stop - start
    return Outcome(
        steps, {"lr": slot + 1.0}, [fitness], [steps], [fitness], curve=[(stop, fitness)], scalars={"draw": draw}
    )


def test_training_and_evaluation_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock reads 0, 1, 3, 6, ...: training takes 1 and 4 seconds, evaluations 2 and 5."""
    readings = itertools.accumulate(itertools.count())
    monkeypatch.setattr(sequential, "monotonic", lambda: float(next(readings)))
    cohort = begun(slices())
    while not cohort.advance():
        pass
    assert [cohort.outcome(slot).timing for slot in range(2)] == [{"train": 5.0, "evaluate": 7.0}] * 2


def test_each_turn_trains_one_slice_and_evaluates_it() -> None:
    cohort = begun(slices(20, 30))
    assert [cohort.outcome(slot) for slot in range(2)] == [Outcome(0, {})] * 2
    assert not cohort.advance()
    assert [cohort.outcome(slot) for slot in range(2)] == [expected(0, 20, 30), Outcome(0, {})]
    assert cohort.advance()
    assert [cohort.outcome(slot) for slot in range(2)] == [expected(slot, 20, 30) for slot in range(2)]
    assert cohort.metrics() == [{**expected(slot, 20, 30).scalars, "step": 30} for slot in range(2)]
    assert cohort.metrics() == [{}, {}]


def test_metrics_have_the_clock_of_their_member() -> None:
    cohort = SequentialCohort(TWO, Counting, curve_interval=4)
    cohort.begin(slices(20, 24))
    seen = []
    while True:
        over = cohort.advance()
        seen.append([line.get("step") for line in cohort.metrics()])
        if over:
            break
    assert seen == [[23, None], [24, None], [None, 23], [None, 24]]


class Odd(Noisy):
    """Returns what it is given."""

    def __init__(self, scalars: Any, fitness: Any) -> None:
        super().__init__(np.random.default_rng(0))
        self.scalars, self.fitness = scalars, fitness

    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        return self.scalars  # type: ignore[no-any-return]

    def evaluate(self, rng: np.random.Generator) -> float:
        return self.fitness  # type: ignore[no-any-return]


def trained_odd(scalars: Any, fitness: Any) -> Outcome:
    cohort = SequentialCohort(["m00"], lambda rng: Odd(scalars, fitness))
    cohort.begin(slices()[:1])
    cohort.advance()
    return cohort.outcome(0)


def test_numbers_of_numpy_become_floats() -> None:
    outcome = trained_odd({"loss": np.float32(0.5)}, np.float64(2.0))
    numbers = [outcome.scalars["loss"], *outcome.returns, outcome.curve[0][1]]
    assert [(type(number), number) for number in numbers] == [(float, 0.5), (float, 2.0), (float, 2.0)]


@pytest.mark.parametrize(
    ("scalars", "fitness", "text"),
    [
        ({"loss": None}, 1.0, "Odd.train, 'loss': expected a number, not None"),
        ({}, "high", "Odd.evaluate: expected a number, not 'high'"),
        ({"loss": "0.5"}, 1.0, "Odd.train, 'loss': expected a number, not '0.5'"),
        ({}, 10**400, "Odd.evaluate: expected a number, not 1000"),
        (None, 1.0, "Odd.train: expected a dictionary of numbers, not None"),
        ({"step": 3.0}, 1.0, "Odd.train returned the reserved name 'step': rename it"),
    ],
)
def test_results_that_cannot_be_stored_are_named(scalars: Any, fitness: Any, text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=re.escape(text)):
        trained_odd(scalars, fitness)


def test_initial_weights_and_training_do_not_share_random_numbers() -> None:
    """A fresh member's weights have the seed of its first slice."""
    cohort = SequentialCohort(["m00"], Noisy)
    cohort.init(0, 5)
    first = cohort.save(0)["weight"]
    cohort.begin(slices()[:1])
    cohort.advance()
    assert cohort.outcome(0).scalars["draw"] != first


class Counting(Noisy):
    """Also records its calls: steps of `train`, and "evaluate"."""

    max_steps_per_call = 3

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.calls: list[int | str] = []

    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        self.calls.append(steps)
        return super().train(steps, hyperparameters, rng)

    def evaluate(self, rng: np.random.Generator) -> float:
        self.calls.append("evaluate")
        return super().evaluate(rng)


def test_slice_is_trained_in_pieces_and_evaluated_after_each() -> None:
    trainable = Counting(np.random.default_rng(0))
    cohort = SequentialCohort(["m00"], lambda rng: trainable, curve_interval=4)
    cohort.begin(slices(20, 30)[:1])
    turns = 1
    while not cohort.advance():
        turns += 1
    assert trainable.calls == [3, 1, "evaluate", 3, 1, "evaluate", 2, "evaluate"]
    assert turns == 5
    outcome = cohort.outcome(0)
    assert [step for step, _ in outcome.curve] == [24, 28, 30]
    assert outcome.returns == outcome.evaluation == [outcome.curve[-1][1]]
    assert (outcome.steps, outcome.lengths) == (10, [10])


def test_stopped_slice_reports_the_steps_and_evaluations_so_far() -> None:
    cohort = SequentialCohort(["m00"], Counting, curve_interval=4)
    cohort.begin(slices(20, 30)[:1])
    cohort.advance()
    stopped = cohort.outcome(0)
    assert (stopped.steps, stopped.curve, stopped.returns, stopped.diverged) == (3, [], [], False)
    cohort.advance()
    cohort.advance()
    stopped = cohort.outcome(0)
    assert stopped.steps == 7
    assert [step for step, _ in stopped.curve] == [24]
    assert stopped.returns == [], "the last evaluation is older than the weights"


def test_slice_continues_from_trained_or_loaded_weights() -> None:
    cohort = begun(slices())
    while not cohort.advance():
        pass
    learned = [cohort.save(slot) for slot in range(2)]
    assert learned[0]["weight"] != learned[1]["weight"]
    cohort.load(1, learned[0])
    cohort.begin(slices(10, 20, lr=0.0))
    assert not cohort.advance()
    assert cohort.advance()
    assert [cohort.save(slot) for slot in range(2)] == [learned[0]] * 2
    cohort.init(0, 100)
    assert cohort.save(0) == {"weight": initial_weight(100)}
    assert cohort.save(1) == learned[0]


@pytest.mark.parametrize("lr", [np.inf, -np.inf, np.nan])
def test_non_finite_fitness_is_a_divergence(lr: float) -> None:
    assignments = slices()
    assignments[1].hyperparameters["lr"] = lr
    cohort = begun(assignments)
    while not cohort.advance():
        pass
    assert [cohort.outcome(slot).diverged for slot in range(2)] == [False, True]


def test_weights_of_wrong_shape_are_refused() -> None:
    cohort = begun(slices())
    before = cohort.save(1)
    with pytest.raises(SnapshotError, match="weight is float64"):
        cohort.load(1, {"weight": np.zeros(2)})
    assert cohort.save(1) == before
