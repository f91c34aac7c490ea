"""Fakes for tests: an executor that answers from a script, and its messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from typing_extensions import override

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import FitnessRule
from pbtrl.execution import Executor

LAST = FitnessRule(window=1, min_episodes=1)
"""Rule by which the last episode is the fitness."""


def trained(a: Assignment, *returns: float, step: int | None = None, diverged: bool = False) -> Report:
    """Make the report of a slice that was completed, was stopped at `step`, or diverged.

    Its curve has one point, the last return.
    """
    reached = a.stop if step is None else step
    return Report(
        a.id,
        a.member,
        reached,
        a.hyperparameters,
        returns=returns,
        lengths=(1,) * len(returns),
        curve=tuple((reached, value) for value in returns[-1:]),
        diverged=diverged,
        timing={"seconds": 1.0},
    )


def died(a: Assignment, *, fatal: bool = False, alone: bool = True) -> Failure:
    """Make the failure of a slice."""
    return Failure(a.id, a.member, "RuntimeError: scripted", fatal, alone)


Script = Callable[[Assignment, int], Report | Failure]
"""Result of an assignment at its n-th attempt, counted from 1."""


@dataclass
class FakeExecutor(Executor):
    """Executor that answers from a script: one assignment per `collect`, the oldest, or a random one with `order`.

    On `stop`, open assignments are reported at the fraction `partial` of their slices, or dropped if it is 0.
    """

    script: Script
    order: np.random.Generator | None = None
    partial: float = 0.0
    submitted: list[Assignment] = field(default_factory=list)
    closed: bool = False
    _open: list[Assignment] = field(default_factory=list)
    _stopped: list[Report | Failure] = field(default_factory=list)

    @override
    def submit(self, assignments: Sequence[Assignment]) -> None:
        self.submitted += assignments
        self._open += assignments

    @override
    def collect(self, timeout: float) -> list[Report | Failure]:
        if self._stopped:
            return [self._stopped.pop()]
        if not self._open:
            return []
        a = self._open.pop(0 if self.order is None else int(self.order.integers(len(self._open))))
        return [self.script(a, Counter(s.id for s in self.submitted)[a.id])]

    @override
    def busy(self) -> bool:
        return bool(self._open or self._stopped)

    @override
    def stop(self, within: float | None = None) -> None:
        if self.partial:
            self._stopped = [trained(a, 0.0, step=between(a, self.partial)) for a in self._open]
        self._open = []

    @override
    def close(self) -> None:
        self.closed = True


def between(a: Assignment, part: float) -> int:
    """Return the step at a fraction of a slice."""
    return a.start + round(part * (a.stop - a.start))
