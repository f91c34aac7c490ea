"""Layout of a run directory: the only place that knows where a run's files are.

    runs/pong/  run.json config.yaml config.resolved.yaml journal.jsonl LOCK best.json log.txt
                members/<id>/{metrics.jsonl,log.txt,snapshots/}  tb/  eval/
                requests/  ray.log  report.html plots/  export/  track-<tracker>.json

The controller holds LOCK while it trains the run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from pbtrl.errors import DamagedError, JournalError, RunError
from pbtrl.storage.json_files import open_plain_file, read_json_if_exists
from pbtrl.storage.member_files import LOG, METRICS
from pbtrl.storage.run_lock import LOCK, RunLock, holder

if TYPE_CHECKING:  # imported when used: finding a run needs no numpy
    from pbtrl.core.population import Population
    from pbtrl.core.records import Record
    from pbtrl.storage.run_header import RunHeader
    from pbtrl.storage.snapshot_store import SnapshotStore


class _Entry:
    """Path of a file or directory in a run directory, by its name there."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: RunDirectory, owner: type[RunDirectory]) -> Path:
        return run.path / self._name


@dataclass(frozen=True, order=True)
class RunDirectory:
    """Directory of one run, which need not exist yet. As text it is its path.

    Attributes:
        info_file: metadata for people; see `read_run_info`.
        config_file: the config as the user wrote it.
        resolved_config: the config with all defaults; see `load_stored_config`.
        journal_path: the journal.
        lock_file: file of the lock.
        best_file: the chosen member, its snapshot and its score; see `best`.
        members: directory of the members' own directories.
        tensorboard: directory of the event files, which TensorBoard reads.
        evaluations: directory of later evaluations and of videos.
        requests: directory of what `pbtrl set` asks of the process that trains the run.
        ray_log: log of a Ray cluster.
        report_file: page of `pbtrl report`.
        plots: directory of the figures in the report.
        exports: directory of exported policies.
    """

    path: Path

    info_file = _Entry("run.json")
    config_file = _Entry("config.yaml")
    resolved_config = _Entry("config.resolved.yaml")
    journal_path = _Entry("journal.jsonl")
    lock_file = _Entry(LOCK)
    best_file = _Entry("best.json")
    members = _Entry("members")
    tensorboard = _Entry("tb")
    evaluations = _Entry("eval")
    requests = _Entry("requests")
    ray_log = _Entry("ray.log")
    report_file = _Entry("report.html")
    plots = _Entry("plots")
    exports = _Entry("export")

    @override
    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Name of the directory."""
        return self.path.name

    def log(self, member: str | None = None) -> Path:
        """Log of a member, or that of the final choice."""
        return (self.members / member if member else self.path) / LOG

    def metrics(self, member: str) -> Path:
        """Live metrics of a member."""
        return self.members / member / METRICS

    def tracking_file(self, tracker: str) -> Path:
        """File that notes what a tracker has received."""
        return self.path / f"track-{tracker}.json"

    def relative(self, path: Path) -> str:
        """Path of a file of the run from the directory on, for messages."""
        return str(path.relative_to(self.path))

    @property
    def entries(self) -> list[Path]:
        """Files and directories that training makes at the top."""
        return [
            self.info_file, self.config_file, self.resolved_config, self.journal_path, self.lock_file, self.best_file,
            self.log(), self.members, self.tensorboard, self.evaluations,
        ]  # fmt: skip

    @property
    def snapshots(self) -> SnapshotStore:
        """Snapshots of all members."""
        from pbtrl.storage.snapshot_store import SnapshotStore

        return SnapshotStore(self.members)

    def lock(self, name: str = LOCK) -> RunLock:
        """Lock to take before training or repairing the run; another `name` is for something else."""
        return RunLock(self.path, name)

    def holder(self) -> dict[str, Any] | None:
        """Holder of the lock, as far as known: `pid`, `host`, `start`; None if the lock is free."""
        return holder(self.path)

    def has_begun(self) -> bool:
        """Return whether the journal has a complete first line."""
        try:
            with open_plain_file(self.journal_path) as file:
                return file.readline().endswith(b"\n")
        except (OSError, DamagedError):
            return False

    def load(self) -> tuple[RunHeader, list[Record], Population]:
        """Load the header, all records of the journal, and the population computed from them.

        Raises:
            DamagedError: the journal is missing, damaged or inconsistent.
        """
        from pbtrl.storage.journal import read_journal
        from pbtrl.storage.run_header import read_header

        try:
            header, records = read_header(read_journal(self.journal_path), self.journal_path)
        except FileNotFoundError:
            raise DamagedError(f"{self} has no journal: the run never started") from None
        population = header.population()
        self.apply_records(population, records)
        return header, records, population

    def apply_records(self, population: Population, records: Iterable[Record], first: int = 1) -> None:
        """Apply records of the journal to a population, from line `first` on.

        Raises:
            JournalError: a record contradicts the earlier ones.
        """
        for number, record in enumerate(records, first):
            try:
                population.record(record)
            except ValueError as error:
                raise JournalError(f"{self.journal_path}:{number} is damaged: {error}") from error

    def best(self) -> dict[str, Any]:
        """Read best.json; empty before the final choice."""
        return read_json_if_exists(self.best_file)

    def leftovers(self) -> list[Path]:
        """Temporary files and directories that killed processes left behind; none of them is needed."""
        return [*sorted(self.path.glob(".tmp-*")), *self.snapshots.leftovers()]

    def delete_leftovers(self) -> list[Path]:
        """Delete the leftovers and return their paths; the caller must hold the lock."""
        paths = self.leftovers()
        for path in paths:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return paths

    def check_links(self) -> None:
        """Check that the directory holds only regular files and directories, so that no access leads out of it.

        Raises:
            RunError: it contains a symbolic link, a pipe or a device, which pbtrl never creates.
        """
        check_links(self.path)


def check_links(top: Path) -> None:
    """Check a directory of one run or of several as `RunDirectory.check_links`."""
    for folder, folders, files in os.walk(top):
        for path in (Path(folder, name) for name in (*folders, *files)):
            with contextlib.suppress(FileNotFoundError):  # the run may be in training
                kind = path.lstat().st_mode
                if stat.S_ISLNK(kind):
                    raise RunError(f"{path} is a symbolic link, which pbtrl refuses; replace it with the real file")
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                    raise RunError(f"{path} is neither a file nor a directory, which pbtrl refuses; remove it")
