"""Cohort of Trainables that train one after another, so that a Trainable need not know about populations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
from typing_extensions import override

from pbtrl.core.messages import METRIC_FIELDS, Assignment
from pbtrl.core.seeding import seed_for
from pbtrl.core.tensors import Tensors, check_fit
from pbtrl.core.trainable import Cohort, Outcome, Trainable


@dataclass
class _Progress:
    """Progress of one member in its slice; the fields are those of `Outcome`.

    Attributes:
        shown: whether `metrics` has returned the scalars.
    """

    rng: np.random.Generator
    used: dict[str, Any]
    shown: bool = True
    steps: int = 0
    scalars: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)


class SequentialCohort(Cohort):
    """Cohort of Trainables that train one after another, in pieces of `curve_interval` steps.

    Each call of `advance` makes one call of `train`. At the end of a piece the member is evaluated, which gives a point
    of its curve; the last point of a slice is its fitness.

    Args:
        members: ids of the members.
        make: makes a fresh trainable.
        curve_interval: steps between two evaluations, counted from the start of the slice; None for one per slice.
    """

    def __init__(
        self, members: Sequence[str], make: Callable[[np.random.Generator], Trainable],
        curve_interval: int | None = None,
    ) -> None:  # fmt: skip
        self.members = tuple(members)
        self._make, self._interval = make, curve_interval
        self._trainables = [make(np.random.default_rng(0)) for _ in members]

    @override
    def init(self, slot: int, seed: int) -> None:
        self._trainables[slot] = self._make(np.random.default_rng(seed_for(seed, "weights")))

    @override
    def load(self, slot: int, tensors: Tensors) -> None:
        check_fit(self._trainables[slot].state_dict(), tensors)
        self._trainables[slot].load_state_dict(tensors)

    @override
    def begin(self, assignments: Sequence[Assignment]) -> None:
        self._assignments = assignments
        self._progress = [_Progress(np.random.default_rng(a.seed), dict(a.hyperparameters)) for a in assignments]
        self._current = 0
        self._seconds = {"train": 0.0, "evaluate": 0.0}

    @property
    @override
    def steps_done(self) -> float:
        """Steps of the slice so far, as a mean over the members."""
        return sum(now.steps for now in self._progress) / len(self.members)

    @override
    def advance(self) -> bool:
        """Train the current member until its next evaluation, or for the most steps of one call if that is shorter."""
        a, now = self._assignments[self._current], self._progress[self._current]
        trainable = self._trainables[self._current]
        length = a.stop - a.start
        interval = self._interval or length
        evaluation = min(length, (now.steps // interval + 1) * interval)
        steps = min(evaluation - now.steps, getattr(trainable, "max_steps_per_call", None) or length)
        begun = monotonic()
        now.scalars = _scalars(trainable, trainable.train(steps, now.used, now.rng))
        now.steps += steps
        now.shown = False
        trained = monotonic()
        self._seconds["train"] += trained - begun
        if now.steps == evaluation:
            now.curve.append((a.start + now.steps, _number(trainable, "evaluate", trainable.evaluate(now.rng))))
            self._seconds["evaluate"] += monotonic() - trained
        self._current += now.steps == length
        return self._current == len(self.members)

    @override
    def metrics(self) -> list[dict[str, float]]:
        """Return per slot the scalars of the last call of `train`, once, with `step`, the member's clock."""
        lines: list[dict[str, float]] = []
        for a, now in zip(self._assignments, self._progress, strict=True):
            lines.append({} if now.shown else {**now.scalars, "step": a.start + now.steps})
            now.shown = True
        return lines

    @override
    def outcome(self, slot: int) -> Outcome:
        """Return the result of the slice so far; after an early stop its last evaluation may be missing."""
        now, start = self._progress[slot], self._assignments[slot].start
        last = [value for step, value in now.curve if step == start + now.steps]
        return Outcome(
            now.steps,
            now.used if now.steps else {},
            returns=last,
            lengths=[now.steps for _ in last],
            evaluation=last,
            curve=list(now.curve),
            scalars=now.scalars,
            diverged=not all(math.isfinite(value) for _, value in now.curve),
            timing=dict(self._seconds),
        )

    @override
    def save(self, slot: int) -> Tensors:
        return self._trainables[slot].state_dict()

    @override
    def close(self) -> None:
        pass


def _scalars(trainable: Trainable, given: Mapping[str, Any]) -> dict[str, float]:
    """Check the result of `train`, and convert its numbers."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{type(trainable).__name__}.train: expected a dictionary of numbers, not {given!r:.80}")
    if reserved := METRIC_FIELDS & given.keys():
        raise ValueError(f"{type(trainable).__name__}.train returned the reserved name {min(reserved)!r}: rename it")
    return {name: _number(trainable, f"train, {name!r}", value) for name, value in given.items()}


def _number(trainable: Trainable, source: str, value: Any) -> float:
    """Convert a number of Python, NumPy or torch."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError("text")
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{type(trainable).__name__}.{source}: expected a number, not {value!r:.80}") from error
