"""Copies between members, as a decision makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pbtrl.core.messages import Assignment, Hyperparameters

CopyKind = Literal["exploit", "promotion", "evaluation"]


@dataclass(frozen=True)
class Copy:
    """Copy of a donor by a receiver, with what both had at the time of the decision.

    Attributes:
        assignment: the receiver's.
        donor: member that was copied.
        kind: `exploit`, `promotion` of an evaluator, or `evaluation`, the start of one.
        weights: False if only the hyperparameters were copied.
        fitness_before: the receiver's.
        fitness_after: the donor's.
        hyperparameters_before: the receiver's.
    """

    assignment: Assignment
    donor: str
    kind: CopyKind
    weights: bool
    fitness_before: float | None
    fitness_after: float | None
    hyperparameters_before: Hyperparameters

    @property
    def receiver(self) -> str:
        """Id of the member that gets the copy."""
        return self.assignment.member

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; `env_steps` is the receiver's clock."""
        a = self.assignment
        return {
            "kind": self.kind,
            "env_steps": a.start,
            "member": a.member,
            "donor": self.donor,
            "hparams_donor": a.hparams_donor,
            "weights": self.weights,
            "hyperparameters_before": self.hyperparameters_before,
            "hyperparameters_after": a.hyperparameters,
            "fitness_before": self.fitness_before,
            "fitness_after": self.fitness_after,
        }
