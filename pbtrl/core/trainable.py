"""Interfaces of models: `Trainable`, a single model, and `Cohort`, several members trained together.

A worker's host (execution/host.py) only knows cohorts. `SequentialCohort` makes a cohort out of any Trainables, so a
classifier or a translation model need not know about populations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.tensors import Tensors


class Trainable(Protocol):
    """A single model. `train` defines what a step is.

    A slice may be trained by several calls of `train`, with evaluations in between. A class may define more:

    max_steps_per_call
        Most steps of one call of `train`, so that a stop need not wait for the end of a long one.
    metric
        Name of the fitness in tables and plots, such as `accuracy`.
    tunable, structural
        Names of the hyperparameters that can be searched. The structural ones determine the shape of the model, so they
        are passed to the constructor, and weights are never copied between different ones.
    prepare(seed, ...)
        Class method that is called once per process, with the run's seed and those keys of the config that it names. It
        makes what all members share, such as data. The result is the second argument of the constructor.
    test(rng)
        Score on data that neither training nor selection uses: the result of `pbtrl eval`.
    """

    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        """Train for `steps` with `hyperparameters`; returns scalars to plot."""

    def evaluate(self, rng: np.random.Generator) -> float:
        """Return the fitness; higher is better."""

    def state_dict(self) -> Tensors:
        """Return all learned state as arrays."""

    def load_state_dict(self, state: Tensors) -> None:
        """Replace all learned state."""


@dataclass
class Outcome:
    """Result of one member's slice; the fields are those of `messages.Report`.

    Attributes:
        timing: seconds that the whole cohort spent in each part of the slice, such as `env`, `act` and `learn`.
    """

    steps: int
    hyperparameters: Hyperparameters
    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    evaluation: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    scalars: dict[str, float] = field(default_factory=dict)
    diverged: bool = False
    timing: dict[str, float] = field(default_factory=dict, compare=False)


class Cohort(Protocol):
    """k members with a leading member axis, trained together by one worker; slot i holds `members[i]`.

    Order of calls for a slice:

    1. `init` or `load` for every slot that does not already hold its parent.
    2. `begin` for all, which applies the hyperparameters *after* all learned state is in place.
    3. `advance` until it returns True.
    4. `outcome` and `save` for every slot.
    """

    members: tuple[str, ...]

    @property
    def steps_done(self) -> float:
        """Steps of the slice so far, as a mean over the slots."""

    def init(self, slot: int, seed: int) -> None:
        """Initialize fresh weights."""

    def load(self, slot: int, tensors: Tensors) -> None:
        """Load all learned state from a snapshot's tensors."""

    def begin(self, assignments: Sequence[Assignment]) -> None:
        """Start a slice: one assignment per slot, all of the same length."""

    def advance(self) -> bool:
        """Train for a short while; returns True when the slice is over."""

    def metrics(self) -> list[dict[str, float]]:
        """Return per slot the metrics since the last call: losses, returns, steps per second."""

    def outcome(self, slot: int) -> Outcome:
        """Return the result of the slice so far."""

    def save(self, slot: int) -> Tensors:
        """Return all learned state."""

    def close(self) -> None:
        """Release processes, env pools and memory."""


class Builder(Protocol):
    """Factory of cohorts in a worker, made from the resolved config alone."""

    def structure(self, assignment: Assignment) -> object:
        """Return a hashable key; only assignments with equal keys can share a cohort."""

    def cohort(self, members: Sequence[str], threads: int, structure: object = None) -> Cohort:
        """Build a cohort for members of one structure, with `threads` threads for its simulator."""
