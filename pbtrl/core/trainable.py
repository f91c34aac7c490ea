"""What can be trained: `Trainable`, one thing with PBT's verbs, and `Cohort`, several members as one.

A worker's host (execution/host.py) speaks to cohorts only. `SequentialCohort` makes a cohort out of any Trainables, so
a classifier or a translation model never sees the word population.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.tensors import Tensors


class Trainable(Protocol):
    """One model. The unit of its clock is whatever `train` counts; JSON and tags call it steps."""

    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        """Train for `steps` under `hyperparameters`; returns scalars to plot."""

    def evaluate(self, rng: np.random.Generator) -> float:
        """The fitness, maximized."""

    def state_dict(self) -> Tensors:
        """Everything that learned, as arrays."""

    def load_state_dict(self, state: Tensors) -> None:
        """Take over everything that learned."""


@dataclass
class Outcome:
    """What one member's slice gave; the fields are those of `population.Report`."""

    steps: int
    hyperparameters: Hyperparameters
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    evaluation: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
    diverged: bool = False


class Cohort(Protocol):
    """k members with a leading member axis, trained together by one worker; slot i holds `members[i]`.

    The order of calls for a slice: `init` or `load` for every slot that does not already hold its parent,
    `begin` for all (which applies the hyperparameters *after* everything that learned is in place), `advance`
    until it says that the slice is over, then `outcome` and `save` for every slot.
    """

    members: tuple[str, ...]

    def init(self, slot: int, seed: int) -> None:
        """Fresh weights."""

    def load(self, slot: int, tensors: Tensors) -> None:
        """Everything that learned, from a snapshot."""

    def begin(self, assignments: Sequence[Assignment]) -> None:
        """Start a slice: one assignment per slot, all of the same length."""

    def advance(self) -> bool:
        """Train for a short while; True when the slice is over."""

    def metrics(self) -> list[dict[str, float]]:
        """Per slot, what has been measured since the last call: losses, returns, steps per second."""

    def outcome(self, slot: int) -> Outcome:
        """What the slice gave so far."""

    def save(self, slot: int) -> Tensors:
        """Everything that learned."""

    def close(self) -> None:
        """Give back processes, pools and memory."""


class Builder(Protocol):
    """Makes cohorts in a worker, from the resolved config alone."""

    def structure(self, assignment: Assignment) -> object:
        """What assignments must have in common to share a cohort; hashable, None where all do."""

    def cohort(self, members: Sequence[str], threads: int, structure: object = None) -> Cohort:
        """A cohort for these members of one structure, with `threads` threads for its simulator."""
