"""Tracking of a run by an experiment tracker (`pbtrl track`): journal lines become events, a tracker takes them.

    journal.jsonl, members/*/metrics.jsonl -> RunEvents -> [Started | Points | Exploit | Ended] -> Tracker

The reader stands beside the run, which may be finished or under way, and never slows it. The position in the journal is
kept in `track-<tracker>.json` of the run directory. It is written before the lines are sent, so that a killed tracker
may lose the points of up to CHUNK lines but never sends a point twice. A refusal by the service moves it back.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pbtrl.config.defaults import flatten
from pbtrl.config.load import read
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.population import Population
from pbtrl.errors import ConfigError, RunError
from pbtrl.storage.journal import JournalTail, Line
from pbtrl.storage.json_files import SCHEMA, read_json_if_exists
from pbtrl.storage.metrics_log import SliceMetrics, tags
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.run_points import fitness_tag, hyperparameter_points, population_points, report_points
from pbtrl.storage.run_state import state
from pbtrl.storage.run_status import corruption_as_error, summarize
from pbtrl.system.files import reason, write_atomically
from pbtrl.system.strict_json import to_json

CHUNK = 200  # journal lines per write of the position
POPULATION = "population"  # name of the tracked run for the whole population


@dataclass(frozen=True)
class Started:
    """First assignment of a member."""

    member: str
    role: str
    hyperparameters: Hyperparameters


@dataclass(frozen=True)
class Points:
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
class Exploit:
    """Copy of another member.

    Attributes:
        step: the receiver's clock.
        number: number of copies in the run so far, this one included.
        fitness: of the receiver and of the donor, at their last reports.
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


Event = Started | Points | Exploit | Ended


@dataclass(frozen=True)
class Outcome:
    """Result of a finished run.

    Attributes:
        members: row of each member: id, state, steps, fitness and hyperparameters.
        exploits: all exploits.
        best: content of best.json, or empty.
        files: files to keep: report, config, videos.
    """

    members: Sequence[Mapping[str, Any]]
    exploits: Sequence[Exploit]
    best: Mapping[str, Any]
    files: Sequence[Path]


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to know in advance.

    Attributes:
        group: name of the group of all tracked runs, unique.
        unit: unit of the steps: `env_steps` or `steps`.
        metric: tag of the fitness.
        config: settings by dotted name.
        continued: whether an earlier call has tracked a part of the run.
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

    def finish(self, outcome: Outcome) -> None:
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

    def __init__(self, run: Path) -> None:
        self._tail = JournalTail(run / "journal.jsonl")
        try:
            self._lines = self._tail.read()
        except FileNotFoundError:
            self._lines = []
        if not self._lines:
            raise RunError(f"{run} has no journal: the run never started")
        self.header = RunHeader.from_line(self._lines[0])
        self.population: Population = self.header.population()
        self.exploits: list[Exploit] = []
        self._metrics = SliceMetrics(run / "members", self.population.members)
        self._values: dict[str, Hyperparameters] = {}
        self._shown: dict[str, dict[str, float]] = {}
        self._decided: dict[str, tuple[int, int, float]] = {}

    def read(self) -> list[Line]:
        """Return the new journal lines."""
        lines, self._lines = self._lines or self._tail.read(), []
        return lines

    def events(self, line: Line) -> list[Event]:
        """Record a line and return its events; all lines must be given, in order."""
        self.population.record(line)
        match line["kind"]:
            case "decision":
                return list(self._decision(line))
            case "report":
                return list(self._report(line))
        return []

    def _decision(self, line: Line) -> Iterator[Event]:
        now = float(line["timing"]["time"])
        before = self.population.copies - sum(self._is_exploit(a) for a in line["assignments"])
        for a in line["assignments"]:
            member = a["member"]
            self._decided[a["id"]] = (a["start"], a["stop"], now)
            former = self._values.get(member)
            self._values[member] = a["hyperparameters"]
            if former is None:
                yield Started(member, self.population.members[member].role, a["hyperparameters"])
            if scalars := a.get("scalars"):
                yield Points(member, a["start"], now, dict(scalars))
            if self._is_exploit(a):
                before += 1
                yield self._exploit(a, former or {}, before, now)
        for member in line.get("retired", ()):
            yield Ended(member)
        counts = {"population/exploits": self.population.copies} if self.population.copies else {}
        counts |= {f"population/members/{agent}": n for agent, n in self.population.agents.items()}
        if counts:
            yield Points(POPULATION, self.population.step, now, {tag: float(n) for tag, n in counts.items()})

    def _is_exploit(self, a: Mapping[str, Any]) -> bool:
        return bool(a["donor"] or a.get("hparams_donor")) and not self.population.members[a["member"]].is_evaluator

    def _exploit(self, a: Mapping[str, Any], before: Hyperparameters, number: int, now: float) -> Exploit:
        known, donor = self.population.members, a["donor"] or a["hparams_donor"]
        changes = {k: (before[k], v) for k, v in a["hyperparameters"].items() if k in before and before[k] != v}
        fitness = (known[a["member"]].last_fitness, known[donor].last_fitness)
        exploit = Exploit(a["member"], donor, a["start"], now, number, a.get("note", ""), fitness, changes)
        self.exploits.append(exploit)
        return exploit

    def _report(self, line: Line) -> Iterator[Event]:
        member, step, now = line["member"], line["step"], float(line["timing"]["time"])
        start, stop, decided = self._decided.pop(line["assignment"])
        numbers = hyperparameter_points(line["hyperparameters"])
        changed = {k: v for k, v in numbers.items() if self._shown.get(member, {}).get(k) != v}
        self._shown[member] = numbers
        if changed:  # both ends of the slice, so that a change is a step and not a slope
            yield Points(member, start, decided, changed)
        streamed: set[str] = set()
        for row in self._metrics.take(member, line["assignment"], now):
            if values := tags(row):
                streamed |= values.keys()
                yield Points(member, int(row.get("step", stop)), float(row.get("time", now)), values)
        values = {k: y for k, y in report_points(self.header, line).items() if k not in streamed} | numbers
        fitness = self.population.members[member].fitness
        yield Points(member, step, now, values if fitness is None else {**values, fitness_tag(self.header): fitness})
        if summary := population_points(self.population):
            yield Points(POPULATION, self.population.step, now, summary)


@dataclass
class Position:
    """Part of a run that was tracked, kept in a file of the run directory.

    Attributes:
        id: distinguishes this tracking of the run from others of the same name.
        lines: journal lines that were sent.
        finished: journal lines at the last `Tracker.finish`.
    """

    path: Path
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:6])
    lines: int = 0
    finished: int = 0

    @classmethod
    def load(cls, run: Path, tracker: str) -> Position:
        """Read the position of a tracker; a new one if the run was never tracked.

        Raises:
            RunError: the file is damaged.
        """
        path = run / f"track-{tracker}.json"
        content = read_json_if_exists(path)
        if not content:
            return cls(path)
        try:
            position = cls(path, str(content["id"]), int(content["lines"]), int(content["finished"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"{path} cannot be read: delete it to track the run as a new one") from error
        if not position.id.isalnum() or min(position.lines, position.finished) < 0:
            raise RunError(f"{path} cannot be read: delete it to track the run as a new one")
        return position

    def save(self) -> None:
        """Write the file."""
        content = {"schema": SCHEMA, "id": self.id, "lines": self.lines, "finished": self.finished}
        try:
            write_atomically(self.path, to_json(content))
        except OSError as error:
            raise RunError(f"cannot write {self.path}: {reason(error)}") from error


class Tracking:
    """Transfer of a run to a tracker.

    Args:
        run: run directory.
        name: name of the tracker.
        connect: makes the tracker.
        files: makes the files to keep with a finished run.

    Attributes:
        points: number of points that were sent.
        lines: number of journal lines that were sent.
        where: description of the tracker's place for the user; empty before there was something to send.
    """

    def __init__(
        self, run: Path, name: str, connect: Callable[[TrackedRun], Tracker], files: Callable[[], Sequence[Path]]
    ) -> None:
        self._run, self._connect, self._files = run, connect, files
        self._position = Position.load(run, name)
        with corruption_as_error(run):
            self._reader = RunEvents(run)
        self._seen = 0
        self.points = self.lines = 0
        self.where = ""

    @cached_property
    def _tracker(self) -> Tracker:
        """The tracker, which is connected when there is something to send."""
        header, position = self._reader.header, self._position
        group = f"{header.name}-{position.id}"
        settings = stored_settings(self._run)
        tracker = self._connect(TrackedRun(group, header.unit, fitness_tag(header), settings, position.lines > 0))
        self.where = tracker.where
        return tracker

    def advance(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Send what is new, and the result if the run has finished.

        Raises:
            TrackingError: the service refused or cannot be reached; the next session sends the same lines again.
            DamagedError: the journal is damaged.
        """
        lines = self._reader.read()
        for first in range(0, len(lines), CHUNK):
            if interrupted():
                return
            self._send(lines[first : first + CHUNK])
        if lines and lines[-1]["kind"] == "finish" and self._position.finished != self._seen:
            self._tracker.finish(self._outcome())
            self._position.finished = self._seen
            self._position.save()

    def close(self) -> None:
        """Disconnect the tracker."""
        if "_tracker" in vars(self):
            self._tracker.close()

    def _send(self, lines: Sequence[Line]) -> None:
        before, new = self._position.lines, []
        with corruption_as_error(self._run):
            for line in lines:
                events = self._reader.events(line)
                self._seen += 1
                if self._seen > before:
                    new += events
        if self._seen <= before:
            return
        tracker = self._tracker
        self._position.lines = self._seen
        self._position.save()
        try:
            tracker.take(new)
        except Exception:
            self._position.lines = before
            self._position.save()
            raise
        self.lines += self._seen - before
        self.points += sum(len(event.values) for event in new if isinstance(event, Points))

    def _outcome(self) -> Outcome:
        with corruption_as_error(self._run):
            status = summarize(self._run, self._reader.header, self._reader.population)
            rows = [
                {"member": m["id"], "role": m["role"], "state": m["state"], self._reader.header.unit: m["env_steps"],
                 self._reader.header.metric: m["fitness"], **m["hyperparameters"]}
                for m in status["members"]
            ]  # fmt: skip
        best = read_json_if_exists(self._run / "best.json")
        return Outcome(rows, self._reader.exploits, best, self._files())


def stored_settings(run: Path) -> dict[str, Any]:
    """Settings of config.resolved.yaml by dotted name, without importing anything; empty if it cannot be read."""
    path = run / "config.resolved.yaml"
    try:
        return dict(flatten(read(path).data)) if path.is_file() else {}
    except ConfigError:
        return {}


def is_training(run: Path) -> bool:
    """Return whether somebody trains the run."""
    return state(run) in ("running", "stale")
