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

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import Population
from pbtrl.core.stopping import StopCriteria
from pbtrl.execution import Executor
from pbtrl.storage.journal import Journal, Line
from pbtrl.strategies import Strategy
from pbtrl.training.recovery import RecoveryQueue

SAVING = 7.0  # seconds that members have after a signal, of the ten within which a run should end


class Listener(Protocol):
    """Reads along: TensorBoard, the progress view, retention of snapshots."""

    def event(self, line: Line) -> None:
        """A line was written to the journal and recorded."""

    def tick(self) -> None:
        """Called a few times a second."""


@dataclass
class Controller:
    """Carries a population to the end of its budget.

    Attributes:
        previous_seconds: seconds that previous sessions of the run took.
        interrupted: asked in every round; True stops the run so that it can be resumed.
        lost: newest snapshots of members that are missing or damaged; they are made again first of all.
    """

    population: Population
    strategy: Strategy
    executor: Executor
    journal: Journal
    limits: StopCriteria = field(default_factory=StopCriteria)
    listeners: Sequence[Listener] = ()
    previous_seconds: float = 0.0
    interrupted: Callable[[], bool] = lambda: False
    lost: Sequence[str] = ()
    _started: float = field(default_factory=time.monotonic)
    _attempts: Counter[str] = field(default_factory=Counter)
    _recovery: RecoveryQueue = field(default_factory=RecoveryQueue)
    _reason: str = ""

    def run(self) -> str:
        """Why it ended: `interrupted`, or the limit that was reached, or `budget`."""
        self.begin()
        while not (reason := self.step()):
            pass
        return reason

    def begin(self) -> None:
        """Submit what previous sessions left open."""
        for name in self.lost:
            waiting = [a for a in self.population.pending if a.parent == name]
            self._recover(self.population.snapshot_origin[name], waiting, "missing or damaged")
        self._submit([a for a in self.population.pending if a.parent not in self.lost])

    def step(self) -> str:
        """One round of the loop; why the run ended, or an empty text while it goes on."""
        limit = self.limits.reached(self.population, self.seconds)
        if self._reason != "interrupted" and self.interrupted():
            self._reason = "interrupted"
            self.executor.stop(SAVING)
        elif limit and not self._reason and not self._recovery:  # what is being made again may be the best
            self._reason = limit
            self.executor.stop()
        if not (self._reason or limit) and (assignments := self.strategy.decide(self.population)):
            self._write("decision", assignments=[a.to_json() for a in assignments])
            self._submit(assignments)
        if not self.executor.busy():
            return self._reason or "budget"
        for message in self.executor.collect(timeout=0.1):
            self._take(message, retry=not self._reason)
        for listener in self.listeners:
            listener.tick()
        return ""

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this and previous sessions."""
        return self.previous_seconds + time.monotonic() - self._started

    def _submit(self, assignments: Sequence[Assignment]) -> None:
        """Hand over the assignments that can start; the others wait for a snapshot that is being recovered."""
        if ready := self._recovery.hold(assignments):
            self.executor.submit(ready)

    def _take(self, message: Report | Failure, *, retry: bool) -> None:
        if message.assignment in self._recovery:
            self._take_recovered(message, retry=retry)
        elif isinstance(message, Report):
            body = message.to_json()
            timing = body.pop("timing")
            self._write("report", **body, timing=timing)
        else:
            self._take_failure(message, retry=retry)

    def _take_failure(self, failure: Failure, *, retry: bool) -> None:
        mine = [a for a in self.population.pending if a.id == failure.assignment]
        made = self.population.snapshot_origin.get(failure.snapshot or "")
        if retry and made and (made.id in self._recovery or self._attempts[made.id] < self.limits.max_attempts):
            self._recover(made, mine, failure.error)
            return
        given_up = self._counted(failure, retry=retry, fatal=failure.fatal or failure.snapshot is not None)
        if retry and not given_up:
            self._submit(mine)

    def _counted(self, failure: Failure, *, retry: bool, fatal: bool) -> bool:
        """Note an attempt that failed; whether it was the last."""
        self._attempts[failure.assignment] += failure.alone
        attempts = self._attempts[failure.assignment]
        given_up = retry and (fatal or (failure.alone and attempts >= self.limits.max_attempts))
        self._write("failure", **failure.to_json(), attempt=attempts, given_up=given_up)
        return given_up

    def _recover(self, origin: Assignment, waiting: list[Assignment], why: str) -> None:
        """Make a lost snapshot again, by a member that waits for it."""
        again = self._recovery.start(origin, waiting)
        if again is not None:
            self._write("void", snapshot=origin.id, error=why)
            self._attempts[origin.id] += 1
            self.executor.submit([again])

    def _take_recovered(self, message: Report | Failure, *, retry: bool) -> None:
        """Submit what waited for the snapshot, or give it up where the snapshot cannot be made again."""
        assignment = self._recovery[message.assignment].assignment
        if isinstance(message, Failure) and retry and not message.fatal and message.snapshot is None:
            self._attempts[message.assignment] += message.alone
            if not message.alone or self._attempts[message.assignment] < self.limits.max_attempts:
                self.executor.submit([assignment])
                return
        waiting = self._recovery.finish(message.assignment)
        if isinstance(message, Report):
            if message.step == assignment.stop:  # a part of it is not what was lost
                self._write("remade", snapshot=message.assignment, member=message.member, step=message.step)
            if retry:
                self._submit(waiting)
            return
        for a in waiting:
            if a.parent == message.assignment:
                self._counted(Failure(a.id, a.member, message.error), retry=retry, fatal=True)
            elif retry:
                self._submit([a])

    def _write(self, kind: str, *, timing: dict[str, Any] | None = None, **body: Any) -> None:
        clock = {"time": time.time(), "elapsed": self.seconds}
        line = self.journal.append({"kind": kind, **body, "timing": {**(timing or {}), **clock}})
        self.population.record(line)
        for listener in self.listeners:
            listener.event(line)
