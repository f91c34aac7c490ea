"""A cohort of trainables that train one after another, so that a trainable never sees the word population."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from pbtrl.core.messages import Assignment
from pbtrl.core.tensors import Tensors, check_fit
from pbtrl.core.trainable import Outcome, Trainable


class SequentialCohort:
    """A cohort of Trainables that are trained one after another; each turn is one member's whole slice."""

    def __init__(self, members: Sequence[str], make: Callable[[np.random.Generator], Trainable]) -> None:
        self.members = tuple(members)
        self._make = make
        self._trainables = [make(np.random.default_rng(0)) for _ in members]

    def init(self, slot: int, seed: int) -> None:
        """Fresh weights."""
        self._trainables[slot] = self._make(np.random.default_rng(seed))

    def load(self, slot: int, tensors: Tensors) -> None:
        """Everything that learned, from a snapshot."""
        check_fit(self._trainables[slot].state_dict(), tensors)
        self._trainables[slot].load_state_dict(tensors)

    def begin(self, assignments: Sequence[Assignment]) -> None:
        """Start a slice."""
        self._assignments = assignments
        self._outcomes: list[Outcome] = []

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

    def metrics(self) -> list[dict[str, float]]:
        """Scalars of the slice."""
        return [self.outcome(slot).scalars for slot in range(len(self.members))]

    def outcome(self, slot: int) -> Outcome:
        """What the slice gave; nothing for a member whose turn has not come."""
        return self._outcomes[slot] if slot < len(self._outcomes) else Outcome(0, {})

    def save(self, slot: int) -> Tensors:
        """Everything that learned."""
        return self._trainables[slot].state_dict()

    def close(self) -> None:
        """Nothing to give back."""
