"""Main loop of a run: decide, submit, collect and record until nothing is left to do.

    strategy.decide(population) -> journal -> executor.submit
    executor.collect            -> journal -> population.record -> listeners

Wall-clock limits, stops and retries are handled here and do not influence decisions.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import Population
from pbtrl.core.records import Record, RunChanged
from pbtrl.core.stopping import StopCriteria
from pbtrl.execution import Executor
from pbtrl.storage.journal import Journal
from pbtrl.strategies import Strategy
from pbtrl.strategies.assigning import decide
from pbtrl.training.recovery import RecoveryQueue

SAVING = 7.0  # seconds that members have to save after a signal; the whole run should end within ten


class Listener(Protocol):
    """Observer of a run: TensorBoard, the progress view, retention of snapshots."""

    def event(self, record: Record) -> None:
        """Called after a record was written to the journal and applied to the population."""

    def tick(self) -> None:
        """Called a few times a second."""


@dataclass
class Controller:
    """Loop that trains a population to the end of its budget.

    Attributes:
        previous_seconds: duration of all previous sessions of the run.
        interrupted: called in every round; True stops the run so that it can be resumed.
        requests: called in every round; yields the changes that users asked for, which are then written, and the
            strategy from then on.
        lost: newest snapshots of members that are missing or damaged; they are made again first.
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
    requests: Callable[[], Iterable[tuple[RunChanged, Strategy]]] = tuple
    _started: float = field(default_factory=time.monotonic)
    _attempts: Counter[str] = field(default_factory=Counter)
    _recovery: RecoveryQueue = field(default_factory=RecoveryQueue)
    _reason: str = ""
    _settled: bool = False  # the strategy has nothing to decide until the next line of the journal

    def run(self) -> str:
        """Run the loop. Returns the reason for its end: `interrupted`, the limit that was reached, or `budget`."""
        self.begin()
        while not (reason := self.step()):
            pass
        return reason

    def begin(self) -> None:
        """Submit the slices that previous sessions left open."""
        for name in self.lost:
            waiting = [a for a in self.population.pending if a.parent == name]
            self._recover(self.population.snapshot_origin[name], waiting, "missing or damaged")
        self._submit([a for a in self.population.pending if a.parent not in self.lost])

    def step(self) -> str:
        """Run one round of the loop. Returns the reason for the end of the run, empty while it continues."""
        for change, strategy in self.requests():
            self._write("set", **change.to_json())
            self.strategy = strategy
        limit = self.limits.reached(self.population, self.seconds)
        if self._reason != "interrupted" and self.interrupted():
            self._reason = "interrupted"
            self.executor.stop(SAVING)
        elif limit and not self._reason and not self._has_to_finish(limit):
            self._reason = limit
            self.executor.stop()
        if not (self._reason or limit or self._settled):
            self._decide()
        if not self.executor.busy():
            return self._reason or "budget"
        for message in self.executor.collect(timeout=0.1):
            self._take(message, retry=not self._reason)
        for listener in self.listeners:
            listener.tick()
        return ""

    def _has_to_finish(self, limit: str) -> bool:
        """Return whether work under way goes on after a limit: in a recovery because it may make the best snapshot."""
        return bool(self._recovery or (self.population.pending and self.limits.finishes_slices(limit)))

    def _decide(self) -> None:
        """Write and submit the decision of the strategy, if it makes one."""
        population = self.population
        population.free = max(0, population.size - len(population.pending))
        assignments = decide(self.strategy, population)
        retired = [m for m in self.strategy.retired(population) if not population.members[m].retired]
        if assignments or retired:
            bodies = [a.to_json() for a in assignments]
            self._write("decision", assignments=bodies, free=population.free, retired=retired)
            self._submit(assignments)
        else:
            self._settled = True

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
        failed = [a for a in self.population.pending if a.id == failure.assignment]
        origin = self.population.snapshot_origin.get(failure.snapshot or "")
        if retry and origin and (origin.id in self._recovery or self._attempts[origin.id] < self.limits.max_attempts):
            self._recover(origin, failed, failure.error)
            return
        given_up = self._record_failure(failure, retry=retry, fatal=failure.fatal or failure.snapshot is not None)
        if retry and not given_up:
            self._submit(failed)

    def _record_failure(self, failure: Failure, *, retry: bool, fatal: bool) -> bool:
        """Count and record a failed attempt. Returns whether the assignment is given up."""
        self._attempts[failure.assignment] += failure.alone
        attempts = self._attempts[failure.assignment]
        given_up = retry and (fatal or (failure.alone and attempts >= self.limits.max_attempts))
        self._write("failure", **failure.to_json(), attempt=attempts, given_up=given_up)
        return given_up

    def _recover(self, origin: Assignment, waiting: list[Assignment], why: str) -> None:
        """Make a lost snapshot again, by a member that waits for it if there is one."""
        again = self._recovery.start(origin, waiting)
        if again is not None:
            self._write("void", snapshot=origin.id, error=why)
            self._attempts[origin.id] += 1
            self.executor.submit([again])

    def _take_recovered(self, message: Report | Failure, *, retry: bool) -> None:
        """Submit the assignments that wait for a snapshot, or give them up if the snapshot cannot be made again."""
        assignment = self._recovery[message.assignment].assignment
        if isinstance(message, Failure) and retry and not message.fatal and message.snapshot is None:
            self._attempts[message.assignment] += message.alone
            if not message.alone or self._attempts[message.assignment] < self.limits.max_attempts:
                self.executor.submit([assignment])
                return
        waiting = self._recovery.finish(message.assignment)
        if isinstance(message, Report):
            if message.step == assignment.stop:  # a slice that was cut short does not replace the lost snapshot
                self._write("remade", snapshot=message.assignment, member=message.member, step=message.step)
            if retry:
                self._submit(waiting)
            return
        for a in waiting:
            if a.parent == message.assignment:
                self._record_failure(Failure(a.id, a.member, message.error), retry=retry, fatal=True)
            elif retry:
                self._submit([a])

    def _write(self, kind: str, *, timing: dict[str, Any] | None = None, **body: Any) -> None:
        clock = {"time": time.time(), "elapsed": self.seconds}
        line = {"kind": kind, **body, "timing": {**(timing or {}), **clock}}
        record = self.journal.append(line, accept=self.population.record)
        self._settled = False
        for listener in self.listeners:
            listener.event(record)
