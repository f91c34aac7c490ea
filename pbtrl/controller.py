"""The one loop: decide, submit, collect, record, until nothing is left to do.

    strategy.decide(population) -> journal -> executor.submit
    executor.collect            -> journal -> population.record -> listeners

Wall-clock limits, stops and retries live here and never enter a decision.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pbtrl.execution import Executor
from pbtrl.journal import Journal, Line
from pbtrl.population import Failure, Population, Report
from pbtrl.strategies import Strategy


class Listener(Protocol):
    """Reads along: TensorBoard, the progress view, retention of snapshots."""

    def event(self, line: Line) -> None:
        """A line was written to the journal and recorded."""

    def tick(self) -> None:
        """Called a few times a second."""


@dataclass(frozen=True)
class Limits:
    """What ends a run besides the strategy. None means no limit.

    Attributes:
        wall_clock: seconds of this and earlier sittings.
        total_steps: env steps of the whole population.
        until_fitness: a member's fitness that is enough.
        restarts: how often a failed assignment is tried again before the member is given up and the strategy
            decides.
    """

    wall_clock: float | None = None
    total_steps: int | None = None
    until_fitness: float | None = None
    restarts: int = 3

    def reached(self, population: Population, seconds: float) -> str | None:
        """Why the run should end now, or None."""
        best = population.best
        if self.wall_clock is not None and seconds >= self.wall_clock:
            return "wall clock"
        if self.total_steps is not None and population.step >= self.total_steps:
            return "total steps"
        if self.until_fitness is not None and best and best.fitness is not None and best.fitness >= self.until_fitness:
            return "fitness reached"
        return None


@dataclass
class Controller:
    """Carries a population to the end of its budget.

    Attributes:
        earlier: seconds that earlier sittings of the same run took.
        interrupted: asked in every round; True stops the run so that it can be resumed.
    """

    population: Population
    strategy: Strategy
    executor: Executor
    journal: Journal
    limits: Limits = Limits()
    listeners: Sequence[Listener] = ()
    earlier: float = 0.0
    interrupted: Callable[[], bool] = lambda: False
    _started: float = field(default_factory=time.monotonic)
    _attempts: Counter[str] = field(default_factory=Counter)

    def run(self) -> str:
        """Why it ended: `interrupted`, or the limit that was reached, or `budget`."""
        reason = ""
        if self.population.open:
            self.executor.submit(self.population.open)
        while True:
            if not reason:
                reason = self._stop_reason()
                if reason:
                    self.executor.stop()
            if not reason and (assignments := self.strategy.decide(self.population)):
                self._write("decision", assignments=[a.to_json() for a in assignments])
                self.executor.submit(assignments)
            if not self.executor.busy():
                return reason or "budget"
            for message in self.executor.collect(timeout=0.1):
                self._take(message, retry=not reason)
            for listener in self.listeners:
                listener.tick()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this and earlier sittings."""
        return self.earlier + time.monotonic() - self._started

    def _stop_reason(self) -> str:
        return "interrupted" if self.interrupted() else self.limits.reached(self.population, self.seconds) or ""

    def _take(self, message: Report | Failure, *, retry: bool) -> None:
        if isinstance(message, Report):
            body = message.to_json()
            timing = body.pop("timing")
            self._write("report", **body, timing=timing)
            return
        self._attempts[message.assignment] += message.alone
        given_up = retry and (message.fatal or self._attempts[message.assignment] > self.limits.restarts)
        self._write("failure", **message.to_json(), attempt=self._attempts[message.assignment], given_up=given_up)
        if retry and not given_up:
            self.executor.submit([a for a in self.population.open if a.id == message.assignment])

    def _write(self, kind: str, *, timing: dict[str, Any] | None = None, **body: Any) -> None:
        clock = {"time": time.time(), "elapsed": self.seconds}
        line = self.journal.append({"kind": kind, **body, "timing": {**(timing or {}), **clock}})
        self.population.record(line)
        for listener in self.listeners:
            listener.event(line)
