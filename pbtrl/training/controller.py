"""The one loop: decide, submit, collect, record, until nothing is left to do.

    strategy.decide(population) -> journal -> executor.submit
    executor.collect            -> journal -> population.record -> listeners

Wall-clock limits, stops and retries live here and never enter a decision.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import Population
from pbtrl.core.stopping import StopCriteria
from pbtrl.execution import Executor
from pbtrl.storage.journal import Journal, Line
from pbtrl.strategies import Strategy

SAVING = 7.0  # seconds that members have after a signal, of the ten within which a run should end


class Listener(Protocol):
    """Reads along: TensorBoard, the progress view, retention of snapshots."""

    def event(self, line: Line) -> None:
        """A line was written to the journal and recorded."""

    def tick(self) -> None:
        """Called a few times a second."""


@dataclass(frozen=True)
class _Remake:
    """A lost snapshot that is being made again: by this assignment, and what cannot begin before that is done."""

    assignment: Assignment
    waiting: list[Assignment]


@dataclass
class Controller:
    """Carries a population to the end of its budget.

    Attributes:
        earlier: seconds that earlier sittings of the same run took.
        interrupted: asked in every round; True stops the run so that it can be resumed.
        lost: newest snapshots of members that are missing or damaged; they are made again first of all.
    """

    population: Population
    strategy: Strategy
    executor: Executor
    journal: Journal
    limits: StopCriteria = field(default_factory=StopCriteria)
    listeners: Sequence[Listener] = ()
    earlier: float = 0.0
    interrupted: Callable[[], bool] = lambda: False
    lost: Sequence[str] = ()
    _started: float = field(default_factory=time.monotonic)
    _attempts: Counter[str] = field(default_factory=Counter)
    _remakes: dict[str, _Remake] = field(default_factory=dict)
    _reason: str = ""

    def run(self) -> str:
        """Why it ended: `interrupted`, or the limit that was reached, or `budget`."""
        self.begin()
        while not (reason := self.step()):
            pass
        return reason

    def begin(self) -> None:
        """Take up what earlier sittings left open."""
        for name in self.lost:
            waiting = [a for a in self.population.pending if a.parent == name]
            self._remake(self.population.snapshot_origin[name], waiting, "missing or damaged")
        self._submit([a for a in self.population.pending if a.parent not in self.lost])

    def step(self) -> str:
        """One round of the loop; why the run ended, or an empty text while it goes on."""
        limit = self.limits.reached(self.population, self.seconds)
        if self._reason != "interrupted" and self.interrupted():
            self._reason = "interrupted"
            self.executor.stop(SAVING)
        elif limit and not self._reason and not self._remakes:  # what is being made again may be the best
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
        """Wall-clock seconds of this and earlier sittings."""
        return self.earlier + time.monotonic() - self._started

    def _submit(self, assignments: Sequence[Assignment]) -> None:
        """Hand on what can begin; what needs a snapshot that is being made again, or its maker, waits for it."""
        ready: list[Assignment] = []
        for a in assignments:
            held = [r for r in self._remakes.values() if a.parent == r.assignment.id or a.member == r.assignment.member]
            waiting = held[0].waiting if held else ready
            waiting.append(a)
        if ready:
            self.executor.submit(ready)

    def _take(self, message: Report | Failure, *, retry: bool) -> None:
        if message.assignment in self._remakes:
            self._take_remade(message, retry=retry)
        elif isinstance(message, Report):
            body = message.to_json()
            timing = body.pop("timing")
            self._write("report", **body, timing=timing)
        else:
            self._take_failure(message, retry=retry)

    def _take_failure(self, failure: Failure, *, retry: bool) -> None:
        mine = [a for a in self.population.pending if a.id == failure.assignment]
        made = self.population.snapshot_origin.get(failure.snapshot or "")
        if retry and made and (made.id in self._remakes or self._attempts[made.id] < self.limits.max_attempts):
            self._remake(made, mine, failure.error)
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

    def _remake(self, made: Assignment, waiting: list[Assignment], why: str) -> None:
        """Run the assignment that made a lost snapshot again, by whoever waits for it: its seed is part of it."""
        if made.id in self._remakes:
            self._remakes[made.id].waiting.extend(waiting)
            return
        self._write("void", snapshot=made.id, error=why)
        self._attempts[made.id] += 1
        again = replace(made, member=waiting[0].member) if waiting else made
        self._remakes[made.id] = _Remake(again, waiting)
        self.executor.submit([again])

    def _take_remade(self, message: Report | Failure, *, retry: bool) -> None:
        """What waited for the snapshot goes on, or is given up where it cannot be made, say for want of its parent."""
        remake = self._remakes[message.assignment]
        if isinstance(message, Failure) and retry and not message.fatal and message.snapshot is None:
            self._attempts[message.assignment] += message.alone
            if not message.alone or self._attempts[message.assignment] < self.limits.max_attempts:
                self.executor.submit([remake.assignment])
                return
        del self._remakes[message.assignment]
        if isinstance(message, Report):
            if message.step == remake.assignment.stop:  # a part of it is not what was lost
                self._write("remade", snapshot=message.assignment, member=message.member, step=message.step)
            if retry:
                self._submit(remake.waiting)
            return
        for a in remake.waiting:
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
