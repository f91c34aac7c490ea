"""Tracking of a run by an experiment tracker (`pbtrl track`): events are sent to a tracker.

    journal.jsonl, members/*/metrics.jsonl -> RunEvents -> [Started | MetricPoints | ExploitEvent | Ended] -> Tracker

The reader stands beside the run, which may be finished or under way, and never slows it. The position in the journal is
kept in `track-<tracker>.json` of the run directory. It is written before the lines are sent, so that a killed tracker
may lose the points of up to CHUNK lines but sends none twice. A refusal by the service moves it back: the next session
sends these lines again, and a service that keeps every point then has those twice that it took before the refusal.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pbtrl.config.differences import flatten
from pbtrl.config.load import read
from pbtrl.core.records import Record, RunFinished
from pbtrl.errors import ConfigError, DiskFullError, RunError
from pbtrl.integrations.tracking_events import MetricPoints, RunEvents, RunOutcome, TrackedRun, Tracker
from pbtrl.storage.best_member import read_best
from pbtrl.storage.json_files import SCHEMA, read_json_if_exists
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_points import fitness_tag
from pbtrl.storage.run_status import summarize
from pbtrl.system.files import reason, write_atomically
from pbtrl.system.strict_json import to_json

CHUNK = 200  # journal lines per write of the position


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
    def load(cls, run: RunDirectory, tracker: str) -> Position:
        """Read the position of a tracker; a new one if the run was never tracked.

        Raises:
            RunError: the file is damaged.
        """
        path = run.tracking_file(tracker)
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
        except DiskFullError:
            raise
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
        self, run: RunDirectory, name: str, connect: Callable[[TrackedRun], Tracker],
        files: Callable[[], Sequence[Path]],
    ) -> None:  # fmt: skip
        self._run, self._connect, self._files = run, connect, files
        self._continued = run.tracking_file(name).exists()
        self._position = Position.load(run, name)
        self._reader = RunEvents(run)
        self._seen = 0
        self.points = self.lines = 0
        self.where = ""

    @cached_property
    def _tracker(self) -> Tracker:
        """The tracker, which is connected when there is something to send."""
        header, position = self._reader.header, self._position
        position.save()  # also a session that fails from here on has tracked a part of the run
        group = f"{header.name}-{position.id}"
        settings = stored_settings(self._run)
        tracker = self._connect(TrackedRun(group, header.unit, fitness_tag(header), settings, self._continued))
        self.where = tracker.where
        return tracker

    def advance(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Send what is new, and the result if the run has finished.

        Raises:
            TrackingError: the service refused or cannot be reached; the next session sends the same lines again.
            DamagedError: the journal is damaged.
        """
        records = self._reader.read()
        for first in range(0, len(records), CHUNK):
            if interrupted():
                return
            self._send(records[first : first + CHUNK])
        if records and isinstance(records[-1], RunFinished) and self._position.finished != self._seen:
            self._tracker.finish(self._outcome())
            self._position.finished = self._seen
            self._position.save()

    def close(self) -> None:
        """Disconnect the tracker."""
        if "_tracker" in vars(self):
            self._tracker.close()

    def _send(self, records: Sequence[Record]) -> None:
        before, new = self._position.lines, []
        for record in records:
            events = self._reader.events(record)
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
        self.points += sum(len(event.values) for event in new if isinstance(event, MetricPoints))

    def _outcome(self) -> RunOutcome:
        status = summarize(self._run, self._reader.header, self._reader.population)
        rows = [
            {"member": m["id"], "role": m["role"], "state": m["state"], self._reader.header.unit: m["env_steps"],
             self._reader.header.metric: m["fitness"], **m["hyperparameters"]}
            for m in status["members"]
        ]  # fmt: skip
        return RunOutcome(rows, self._reader.exploits, read_best(self._run), self._files())


def stored_settings(run: RunDirectory) -> dict[str, Any]:
    """Set values of config.resolved.yaml by dotted name, without importing anything; empty if it cannot be read."""
    path = run.resolved_config
    try:
        tree = read(path).data if path.is_file() else {}
    except ConfigError:
        return {}
    return {name: value for name, value in flatten(tree) if value is not None}
