"""Events of a run for experiment trackers: the journal and live metrics become points, exploits and results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pbtrl.core.copies import Copy
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.population import Population
from pbtrl.core.records import Decision, Record, ReportRecord
from pbtrl.core.scores import BestMember
from pbtrl.errors import RunError
from pbtrl.storage.journal import JournalTail
from pbtrl.storage.metrics_log import SliceMetrics, position, tags
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import read_header
from pbtrl.storage.run_points import fitness_tag, hyperparameter_points, population_points, report_points

POPULATION = "population"  # name of the tracked run for the whole population


@dataclass(frozen=True)
class Started:
    """First assignment of a member."""

    member: str
    role: str
    hyperparameters: Hyperparameters


@dataclass(frozen=True)
class MetricPoints:
    """Numbers by tag, of a member or of the population.

    Attributes:
        name: id of the member, or POPULATION.
        step: the member's clock, or the sum over the population (env steps; steps outside RL).
        time: Unix seconds.
    """

    name: str
    step: int
    time: float
    values: Mapping[str, float]


@dataclass(frozen=True)
class ExploitEvent:
    """Copy of another member.

    Attributes:
        step: the receiver's clock.
        number: number of copies in the run so far, this one included.
        fitness: of the receiver and of the donor, at the time of the decision.
        changes: (old, new) value of each hyperparameter that changed.
    """

    member: str
    donor: str
    step: int
    time: float
    number: int
    note: str
    fitness: tuple[float | None, float | None]
    changes: Mapping[str, tuple[Any, Any]]

    @property
    def text(self) -> str:
        """The event in one line."""
        changes = ", ".join(f"{name} {old:.4g} -> {new:.4g}" if isinstance(new, float) and isinstance(old, float)
                            else f"{name} {old} -> {new}" for name, (old, new) in self.changes.items())  # fmt: skip
        return f"{self.member} <- {self.donor}: {changes or 'no change'}" + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Ended:
    """A member that will not train again."""

    member: str


Event = Started | MetricPoints | ExploitEvent | Ended


@dataclass(frozen=True)
class RunOutcome:
    """Result of a finished run.

    Attributes:
        members: row of each member: id, state, steps, fitness and hyperparameters.
        exploits: all exploits.
        best: result of the final choice, or None.
        files: files to keep: report, config, videos.
    """

    members: Sequence[Mapping[str, Any]]
    exploits: Sequence[ExploitEvent]
    best: BestMember | None
    files: Sequence[Path]


@dataclass(frozen=True)
class TrackedRun:
    """Facts of a run that a tracker gets in advance.

    Attributes:
        group: name of the group of all tracked runs, unique.
        unit: unit of the steps: `env_steps` or `steps`.
        metric: tag of the fitness.
        config: settings by dotted name.
        continued: whether an earlier call may have tracked a part of the run.
    """

    group: str
    unit: str
    metric: str
    config: Mapping[str, Any]
    continued: bool = False

    def id_of(self, name: str) -> str:
        """Identifier of the tracked run of a member or of POPULATION, the same in every session."""
        return f"{self.group}-{name}"


class Tracker(Protocol):
    """Client of an experiment tracker: one tracked run per member, and one for the population.

    Methods raise TrackingError if the service refuses or cannot be reached.

    Attributes:
        where: description of the place for the user, in one line.
    """

    where: str

    def take(self, events: Sequence[Event]) -> None:
        """Track events; all of them are sent, or on their way, when this returns."""

    def finish(self, outcome: RunOutcome) -> None:
        """Track the result of the run; called again if the run was continued."""

    def close(self) -> None:
        """Send everything that is left."""


class RunEvents:
    """Reader of a run's journal and metrics as events.

    Attributes:
        header: header of the run.
        population: state after the lines that were read.
        exploits: all exploits that were read.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run, self._tail, self._recorded = run, JournalTail(run.journal_path), 0
        try:
            self._records = self._tail.read()
        except FileNotFoundError:
            self._records = []
        if not self._records:
            raise RunError(f"{run} has no journal: the run never started")
        self.header, _ = read_header(self._records[:1], run.journal_path)
        self.population: Population = self.header.population()
        self.exploits: list[ExploitEvent] = []
        self._metrics = SliceMetrics(run.members, self.population.members)
        self._shown: dict[str, dict[str, float]] = {}
        self._decided: dict[str, tuple[int, int, float]] = {}

    def read(self) -> list[Record]:
        """Return the new records of the journal; RunError if the run is gone."""
        try:
            records, self._records = self._records or self._tail.read(), []
        except FileNotFoundError:
            raise RunError(f"{self._run} was moved or deleted while it was tracked") from None
        return records

    def events(self, record: Record) -> list[Event]:
        """Apply a record and return its events; all records must be given, in order."""
        self._recorded += 1
        self._run.apply_records(self.population, [record], self._recorded)
        match record:
            case Decision():
                return list(self._decision(record))
            case ReportRecord():
                return list(self._report(record))
        return []

    def _decision(self, decision: Decision) -> Iterator[Event]:
        now = decision.time
        copies = {copy.receiver: copy for copy in self.population.latest_copies if copy.kind != "evaluation"}
        number = self.population.copies - len(copies)
        for a in decision.assignments:
            self._decided[a.id] = (a.start, a.stop, now)
            if not a.generation:
                yield Started(a.member, self.population.members[a.member].role, a.hyperparameters)
            if a.scalars:
                yield MetricPoints(a.member, a.start, now, a.scalars)
            if copy := copies.get(a.member):
                number += 1
                yield self._exploit(copy, number, now)
        for member in decision.retired:
            yield Ended(member)
        counts = {"population/exploits": self.population.copies} if self.population.copies else {}
        counts |= {f"population/members/{agent}": n for agent, n in self.population.agents.items()}
        if counts:
            yield MetricPoints(POPULATION, self.population.step, now, {tag: float(n) for tag, n in counts.items()})

    def _exploit(self, copy: Copy, number: int, now: float) -> ExploitEvent:
        a, before = copy.assignment, copy.hyperparameters_before
        changes = {k: (before[k], v) for k, v in a.hyperparameters.items() if k in before and before[k] != v}
        fitness = (copy.fitness_before, copy.fitness_after)
        exploit = ExploitEvent(a.member, copy.donor, a.start, now, number, a.note, fitness, changes)
        self.exploits.append(exploit)
        return exploit

    def _report(self, record: ReportRecord) -> Iterator[Event]:
        report, now = record.report, record.time
        member, step = report.member, report.step
        start, stop, decided = self._decided.pop(report.assignment)
        numbers = hyperparameter_points(report.hyperparameters)
        changed = {k: v for k, v in numbers.items() if self._shown.get(member, {}).get(k) != v}
        self._shown[member] = numbers
        if changed:  # both ends of the slice, so that a change is a step and not a slope
            yield MetricPoints(member, start, decided, changed)
        streamed: set[str] = set()
        for row in self._metrics.take(member, report.assignment, now):
            if values := tags(row):
                streamed |= values.keys()
                yield MetricPoints(member, *position(row, stop, now), values)
        values = {k: y for k, y in report_points(self.header, report).items() if k not in streamed} | numbers
        fitness = self.population.members[member].fitness
        yield MetricPoints(
            member, step, now, values if fitness is None else {**values, fitness_tag(self.header): fitness}
        )
        if summary := population_points(self.population):
            yield MetricPoints(POPULATION, self.population.step, now, summary)
