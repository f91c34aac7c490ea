"""Builder of trainables of one class: what they share, and what makes their models differ in shape."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from pbtrl.core.messages import Assignment
from pbtrl.core.trainable import Trainable
from pbtrl.system.strict_json import to_json
from pbtrl.trainables.sequential import SequentialCohort

Structure = tuple[tuple[str, Any], ...]
"""Names and values of the hyperparameters that determine a model's shape."""


@dataclass(frozen=True)
class TrainableBuilder:
    """Makes trainables of one class, and cohorts of them.

    Attributes:
        kind: the class; it is called with a generator, with the result of its `prepare` if it has one, and with
            `kwargs`.
        kwargs: keys of the config's `trainable` section besides its name.
        curve_interval: steps between two evaluations; None for one per slice.
        seed: seed of the run.
    """

    kind: Any
    kwargs: Mapping[str, Any]
    curve_interval: int | None = None
    seed: int = 0

    @property
    def metric(self) -> str:
        """Name of the fitness."""
        return str(getattr(self.kind, "metric", "fitness"))

    def make(self, rng: np.random.Generator, structure: Structure = ()) -> Trainable:
        """A fresh trainable, with the shape that these hyperparameters determine."""
        keys = {**self.kwargs, **dict(structure)}
        if (prepare := getattr(self.kind, "prepare", None)) is None:
            alone: Trainable = self.kind(rng, **keys)
            return alone
        shared_keys = parameters(prepare, 1)
        shared = _prepared(self.kind, self.seed, to_json({k: v for k, v in keys.items() if k in shared_keys}))
        trainable: Trainable = self.kind(rng, shared, **{k: v for k, v in keys.items() if k not in shared_keys})
        return trainable

    def structure_of(self, hyperparameters: Mapping[str, Any]) -> Structure:
        """Select the hyperparameters that determine a model's shape."""
        names = getattr(self.kind, "structural", ())
        return tuple((name, hyperparameters[name]) for name in names if name in hyperparameters)

    def structure(self, assignment: Assignment) -> object:
        """Only models of equal shape can share a cohort."""
        return self.structure_of(assignment.hyperparameters)

    def cohort(self, members: Sequence[str], threads: int, structure: object = ()) -> SequentialCohort:
        """A cohort for these members."""
        assert isinstance(structure, tuple)
        return SequentialCohort(members, partial(self.make, structure=structure), self.curve_interval)


def parameters(function: Any, skip: int) -> dict[str, inspect.Parameter]:
    """Map the names of a function's parameters to them, without the first `skip`."""
    return dict(list(inspect.signature(function).parameters.items())[skip:])


@lru_cache(maxsize=2)
def _prepared(kind: Any, seed: int, kwargs: str) -> Any:
    """Prepare what all trainables of a process share, only once."""
    return kind.prepare(seed, **json.loads(kwargs))
