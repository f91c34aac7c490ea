"""Live state of a run for progress views: rows, rates, remaining time and events, without any drawing."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pbtrl.core.copies import Copy
from pbtrl.core.member import UNHEALTHY, Member, MemberState, table_order
from pbtrl.core.messages import UNMEASURED, Assignment, Hyperparameters
from pbtrl.core.population import Population
from pbtrl.core.records import Decision, FailureRecord, Record, ReportRecord, RunChanged, SnapshotLost
from pbtrl.reporting.formatting import (
    format_changes,
    format_count,
    format_duration,
    format_evaluation,
    format_fitness,
)
from pbtrl.storage.metrics_log import MetricsTail
from pbtrl.storage.run_header import RunHeader

ROUTINE = ("evaluation", "retired")  # kinds of events that only JSON output shows, because they occur all the time
REFRESH = 0.2  # seconds
RATE_WINDOW = 60.0  # seconds over which the population's steps per second are averaged, if slices are no longer


@dataclass(frozen=True)
class Event:
    """Event to print: a copy, a failure, a divergence.

    Attributes:
        kind: `copy`, `promotion`, `evaluation` (its start), `retired`, `failure`, `given_up`, `lost`, `diverged`,
            `skipped` (updates of a slice), `fresh` (new weights) or `slice` (duration of the first one).
        elapsed: seconds since the run's start.
        text: one line of text.
        facts: the same information as JSON values.
    """

    kind: str
    elapsed: float
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MemberRow:
    """Row of a member in the live table.

    Attributes:
        fitness: number that ranks the member; while `before_copy`, the one from before its copy. Of a broken member the
            last one since its copy.
        history: fitness after every report, including absent values.
        changed: previous value of each hyperparameter that changed in this generation.
        step: env steps, including the open slice.
        rate: env steps per second; None if the member is not training.
        activity: its state in words, with the members that it copied or evaluates.
        retired: whether the strategy gives it no further assignment, whatever its state.
    """

    member: str
    fitness: float | None
    before_copy: bool
    history: tuple[float | None, ...]
    hyperparameters: Hyperparameters
    changed: Hyperparameters
    step: int
    rate: float | None
    generation: int
    state: MemberState
    activity: str
    role: str = ""
    retired: bool = False


class LiveStatus:
    """Live state of a run for the terminal, computed from the journal's records and metrics.

    Args:
        header: header of the run.
        population: live population; it must apply a record before `event` gets it.
        members: directory of `<id>/metrics.jsonl`.
        wall_clock: budget of all sessions in seconds, or None.
        earlier: duration of the previous sessions in seconds.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        header: RunHeader,
        population: Population,
        members: Path,
        *,
        wall_clock: float | None = None,
        earlier: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.header, self.population = header, population
        self._tail = MetricsTail(members, population.members, from_end=True, every=1.0, clock=clock)
        self._clock, self._begun = clock, clock() - earlier
        self._wall_clock = wall_clock
        self._live: dict[str, Mapping[str, Any]] = {}
        self._pace: deque[tuple[float, int]] = deque([(clock(), population.step)])
        self._failures: dict[str, int] = {}
        self._refreshed = -math.inf
        self._slice_reported = self._unmeasured_reported = False

    def event(self, record: Record) -> list[Event]:
        """Apply a record; returns the events to print."""
        match record:
            case Decision():
                copies = {copy.receiver: copy for copy in self.population.latest_copies}
                events = [e for a in record.assignments if (e := self._assigned(a, copies, record.elapsed))]
                events += [self._retired(record, member) for member in record.retired]
            case ReportRecord():
                events = list(self._reported(record))
            case FailureRecord():
                events = [self._failed(record)]
            case SnapshotLost(snapshot=snapshot):
                error = _first_line(record.error)
                text = f"{snapshot} is lost and will be made again: {error}"
                events = [_event("lost", record, text, snapshot=snapshot, error=error)]
            case RunChanged():
                text = f"changed by pbtrl set: {record.text}"
                events = [_event("set", record, text, settings=record.settings, retired=record.retired)]
            case _:
                events = []
        return events

    def _reported(self, record: ReportRecord) -> Iterator[Event]:
        report = record.report
        member, step = report.member, report.step
        if counts := report.skips:
            skipped, updates = counts
            text = f"{member} skipped {skipped} of {updates} updates at {format_count(step)} {self.header.steps}"
            facts = {"skipped_updates": skipped, "updates": updates}
            yield _event("skipped", record, text, member=member, step=step, **facts)
        if (count := report.scalars.get(UNMEASURED)) and not self._unmeasured_reported:
            self._unmeasured_reported = True
            text = f"{member}: {count:,.0f} finished episodes have no {self.header.metric}: not part of the fitness"
            yield _event("unmeasured", record, text, member=member, step=step, episodes=int(count))
        if report.diverged:
            yield _event("diverged", record, f"{member} diverged at {format_count(step)}", member=member, step=step)
        elif not self._slice_reported:
            self._slice_reported, seconds = True, report.timing.get("seconds", 0.0)
            if seconds >= 1.0:
                text = f"the first slice took {format_duration(seconds)}; a crash loses the open slices"
                yield _event("slice", record, text, seconds=seconds)

    def refresh(self) -> None:
        """Read along in the metrics and take the pace; call it as often as you like."""
        now = self._clock()
        if now - self._refreshed < REFRESH:  # reports and idle workers call it hundreds of times a second
            return
        self._refreshed = now
        for member, line in self._tail.poll():
            self._live[member] = line
        if self.step != self._pace[-1][1]:
            self._pace.append((now, self.step))
        while len(self._pace) > self.population.size + 1 and self._pace[-1][0] - self._pace[1][0] >= RATE_WINDOW:
            self._pace.popleft()

    @property
    def elapsed(self) -> float:
        """Seconds of this and the previous sessions."""
        return self._clock() - self._begun

    @property
    def step(self) -> int:
        """Steps of the whole population, including open slices."""
        return sum(self._step(m) for m in self.population.members.values())

    @property
    def rate(self) -> float | None:
        """Steps per second of the whole population; None before the first steps, and in the first two seconds.

        It is taken between two increases of the steps, so that it is right also where they are only known at the end of
        a slice. The window is at least a minute, and at least as many increases as members train at a time. It begins
        with the start of the workers.
        """
        (t0, n0), (t1, n1) = self._pace[0], self._pace[-1]
        return (n1 - n0) / (t1 - t0) if t1 - t0 >= 2.0 and n1 >= n0 else None

    @property
    def left(self) -> float | None:
        """Seconds to the end of the budget at this rate, or of the wall clock; None if unknown or beyond the plan."""
        limits = []
        if self.rate and self.step <= self.header.budget:
            limits.append((self.header.budget - self.step) / self.rate)
        if self._wall_clock is not None:
            limits.append(max(0.0, self._wall_clock - self.elapsed))
        return min(limits, default=None)

    @property
    def generation(self) -> int:
        """Highest generation of all members."""
        return max((m.generation for m in self.population.members.values()), default=-1)

    def rows(self) -> list[MemberRow]:
        """Rows of all members by role, best first; those without a fitness and then those that broke last."""
        rows, order = [self._row(m) for m in self.population.members.values()], ["", *self.population.roles]

        def place(r: MemberRow) -> tuple[Any, ...]:
            return order.index(r.role), *table_order(r.fitness, healthy=r.state not in UNHEALTHY), r.member

        return sorted(rows, key=place)

    def _row(self, member: Member) -> MemberRow:
        before = member.previous_hparams
        current, state = self._current(member), member.state(self.header.horizon)
        return MemberRow(
            member=member.id,
            fitness=member.shown_fitness,
            before_copy=member.before_copy,
            history=tuple(fitness for _, fitness in member.history),
            hyperparameters=member.hyperparameters,
            changed={k: before[k] for k, v in member.hyperparameters.items() if k in before and before[k] != v},
            step=self._step(member),
            rate=current.get("perf/env_steps_per_s", current.get("perf/steps_per_s")),
            generation=member.generation,
            state=state,
            activity=_activity(member, state),
            role=member.role,
            retired=member.retired,
        )

    def _current(self, member: Member) -> Mapping[str, Any]:
        """Last metrics line of the member's open slice; empty if there is none."""
        line = self._live.get(member.id, {})
        return line if member.pending and line.get("assignment") == member.pending.id else {}

    def _step(self, member: Member) -> int:
        return max(member.step, int(self._current(member).get("step", 0)))

    def _assigned(self, a: Assignment, copies: Mapping[str, Copy], elapsed: float) -> Event | None:
        self._failures.pop(a.member, None)
        if copy := copies.get(a.member):
            return self._copied(copy, elapsed)
        if a.parent in (None, self.population.initial) and a.generation:
            return Event("fresh", elapsed, f"{a.member} {a.note}", {"member": a.member, "note": a.note})
        return None

    def _copied(self, copy: Copy, elapsed: float) -> Event:
        receiver, a = copy.receiver, copy.assignment
        facts = {key: value for key, value in copy.to_json().items() if key != "kind"}
        if copy.kind == "evaluation":
            text = f"{receiver} {format_evaluation(copy.donor, str(a.hparams_donor))}"
            return Event("evaluation", elapsed, text, facts)
        promotion = copy.kind == "promotion"
        parts = [
            f"{receiver} <- {copy.donor}" + (" (promotion)" if promotion else ""),
            f"{self.header.metric} {format_fitness(copy.fitness_before)} -> {format_fitness(copy.fitness_after)}",
        ]
        parts += format_changes(copy.hyperparameters_before, a.hyperparameters)
        return Event("promotion" if promotion else "copy", elapsed, "  ".join(parts), facts)

    def _retired(self, record: Decision, member: str) -> Event:
        m = self.population.members[member]
        text = f"{member} retired at {format_count(m.step)}, {self.header.metric} {format_fitness(m.last_fitness)}"
        return _event("retired", record, text, member=member, step=m.step, fitness=m.last_fitness)

    def _failed(self, record: FailureRecord) -> Event:
        member, why = record.failure.member, _first_line(record.failure.error)
        self._failures[member] = attempt = self._failures.get(member, 0) + 1
        at = format_count(self.population.members[member].step)
        if record.given_up:
            return _event("given_up", record, f"{member} given up at {at}: {why}", member=member, error=why)
        text = f"{member} failed at {at}, attempt {attempt}: {why}"
        return _event("failure", record, text, member=member, error=why, attempt=attempt)


def _activity(member: Member, state: MemberState) -> str:
    if state != "train":
        return state
    if member.evaluates:
        return format_evaluation(*member.evaluates)
    return f"copied {member.pending.donor}" if member.pending and member.pending.donor else state


def _event(kind: str, record: Record, text: str, **facts: object) -> Event:
    return Event(kind, record.elapsed, text, facts)


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
