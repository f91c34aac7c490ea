"""Cohort of Trainables that train one after another, so that a Trainable need not know about populations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from typing_extensions import override

from pbtrl.core.messages import Assignment
from pbtrl.core.tensors import Tensors, check_fit
from pbtrl.core.trainable import Cohort, Outcome, Trainable


class SequentialCohort(Cohort):
    """Cohort of Trainables; each call of `advance` trains one member for its whole slice."""

    def __init__(self, members: Sequence[str], make: Callable[[np.random.Generator], Trainable]) -> None:
        self.members = tuple(members)
        self._make = make
        self._trainables = [make(np.random.default_rng(0)) for _ in members]

    @override
    def init(self, slot: int, seed: int) -> None:
        self._trainables[slot] = self._make(np.random.default_rng(seed))

    @override
    def load(self, slot: int, tensors: Tensors) -> None:
        check_fit(self._trainables[slot].state_dict(), tensors)
        self._trainables[slot].load_state_dict(tensors)

    @override
    def begin(self, assignments: Sequence[Assignment]) -> None:
        self._assignments = assignments
        self._outcomes: list[Outcome] = []

    @override
    def advance(self) -> bool:
        """Train the next member for its whole slice, then evaluate it once."""
        slot = len(self._outcomes)
        assignment, trainable = self._assignments[slot], self._trainables[slot]
        rng = np.random.default_rng(assignment.seed)
        steps, used = assignment.stop - assignment.start, dict(assignment.hyperparameters)
        scalars = trainable.train(steps, used, rng)
        fitness = trainable.evaluate(rng)
        self._outcomes.append(
            Outcome(
                steps,
                used,
                returns=[fitness],
                lengths=[steps],
                evaluation=[fitness],
                curve=[(assignment.stop, fitness)],
                scalars=scalars,
                diverged=not math.isfinite(fitness),
            )
        )
        return len(self._outcomes) == len(self.members)

    @override
    def metrics(self) -> list[dict[str, float]]:
        """Return per slot the scalars of the slice."""
        return [self.outcome(slot).scalars for slot in range(len(self.members))]

    @override
    def outcome(self, slot: int) -> Outcome:
        """Return the result of the slice; empty for a member that has not trained yet."""
        return self._outcomes[slot] if slot < len(self._outcomes) else Outcome(0, {})

    @override
    def save(self, slot: int) -> Tensors:
        return self._trainables[slot].state_dict()

    @override
    def close(self) -> None:
        pass


@dataclass(frozen=True)
class TrainableBuilder:
    """Makes trainables of one class, and cohorts of them.

    Attributes:
        kind: the class; it is called with a generator, and with `kwargs`.
        kwargs: keys of the config's `trainable` section besides its name.
    """

    kind: Any
    kwargs: Mapping[str, Any]

    def make(self, rng: np.random.Generator) -> Trainable:
        """A fresh trainable."""
        trainable: Trainable = self.kind(rng, **self.kwargs)
        return trainable

    def structure(self, assignment: Assignment) -> object:
        """All assignments can share a cohort."""
        return None

    def cohort(self, members: Sequence[str], threads: int, structure: object = None) -> SequentialCohort:
        """A cohort for these members."""
        return SequentialCohort(members, self.make)
