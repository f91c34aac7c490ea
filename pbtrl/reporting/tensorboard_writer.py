"""Writer of `tb/`: one TensorBoard run per member, plus `population`.

x is the member's clock (env steps; steps outside RL), for `population/*` the sum over the population.
`population/fitness_*` cover members that have a fitness; `population/before_copy` counts those that are ranked by the
fitness from before their last copy. Copies are text, in a table of the population and in the receiver's run. The end of
the run adds the HParams tab (`tensorboard_hparams.py`). Live metrics come from `members/<id>/metrics.jsonl`, everything
else from the journal.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from pbtrl.core.messages import Report
from pbtrl.core.population import Population
from pbtrl.core.records import Decision, FailureRecord, Record, ReportRecord
from pbtrl.core.scores import BestMember
from pbtrl.reporting.event_file import EventFile
from pbtrl.reporting.formatting import format_changes, format_count, format_fitness
from pbtrl.reporting.tensorboard_hparams import layout, write_hparams
from pbtrl.storage.journal import read_journal
from pbtrl.storage.metrics_log import Metrics, MetricsTail, position, tags
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.run_points import fitness_tag, hyperparameter_points, population_points, report_points
from pbtrl.system.files import is_disk_error


class TensorBoardWriter:
    """Controller listener that writes TensorBoard curves.

    Args:
        run: run directory.
        header: header of the run.
        population: live population; on a resume, after replaying the journal.
        resume: whether to hide points of earlier sessions beyond each member's last reported step.
    """

    def __init__(self, run: RunDirectory, header: RunHeader, population: Population, *, resume: bool = False) -> None:
        self._run, self._header, self._population = run, header, population
        self._tail = MetricsTail(run.members, population.members, from_end=resume)
        self._writers: dict[str, EventFile] = {}
        for m in population.members.values():
            if not m.retired:
                self._writers[m.id] = self._new_writer(m.id, m.step + 1 if resume else None)
        self._all = _writer(run.tensorboard / "population", population.step + 1 if resume else None)
        if not resume:
            self._all.add_layout(layout(header))
        self._shown = {
            m.id: hyperparameter_points(m.snapshot_hparams) if resume else {} for m in population.members.values()
        }
        self._streamed: defaultdict[str, set[str]] = defaultdict(set)
        self._decided: dict[str, tuple[int, int, float]] = {}
        for a in population.pending:
            self._decided[a.id] = (a.start, a.stop, 0.0)
        self._best: BestMember | None = None
        self._before_copy = 0
        self._hook, threading.excepthook = threading.excepthook, self._ended

    def event(self, record: Record) -> None:
        """Write the points of a record."""
        match record:
            case Decision():
                self._decision(record)
            case ReportRecord():
                self._report(record.report, record.time)
            case FailureRecord():
                self._failure(record.failure.member)

    def tick(self) -> None:
        """Write new live metrics of the members."""
        for member, line in self._tail.poll():
            self._stream(member, line)

    def describe(self, best: BestMember) -> None:
        """Write the HParams tab when the writer is closed, since the run has ended.

        TensorBoard leaves a file when a newer one is there, so nothing may follow.
        """
        self._best = best

    def close(self) -> None:
        """Write remaining metrics and end the writers' threads."""
        try:
            for member in list(self._writers):
                for line in self._tail.read(member):
                    self._stream(member, line)
            for writer in [*self._writers.values(), self._all]:
                writer.close()
            if self._best is not None:
                folders = {m: self._folder_of(m) for m in self._population.members}
                records = read_journal(self._run.journal_path)
                shared = self._run.tensorboard / "population"
                write_hparams(folders, shared, self._header, self._population, records, self._best)
        finally:
            threading.excepthook = self._hook

    def _ended(self, thread: threading.ExceptHookArgs) -> None:
        """Suppress the traceback of a writer's thread that a full disk ended; the next write raises its error."""
        if thread.exc_value is None or not is_disk_error(thread.exc_value):
            self._hook(thread)

    def _decision(self, decision: Decision) -> None:
        now = decision.time
        for a in decision.assignments:
            self._decided[a.id] = (a.start, a.stop, now)
            self._write(a.member, a.scalars, a.start, now)
        for member in decision.retired:
            self._close_if_retired(member)
        counts = {f"population/members/{agent}": n for agent, n in self._population.agents.items()}
        self._all.add_scalars(counts, self._population.step, now)
        self._copies(now)
        if retired := sum(m.retired for m in self._population.members.values()):
            self._all.add_scalars({"population/retired": retired}, self._population.step, now)
        self._count_before_copy(now)

    def _copies(self, now: float) -> None:
        """Write the copies of a decision as text: a table for the population, and a sentence for each receiver."""
        step, rows = self._population.step, []
        for copy in (c for c in self._population.latest_copies if c.kind != "evaluation"):
            a = copy.assignment
            fitness = " -> ".join(map(format_fitness, (copy.fitness_before, copy.fitness_after)))
            change = ", ".join(format_changes(copy.hyperparameters_before, a.hyperparameters))
            rows.append([a.member, copy.donor, format_count(a.start), fitness, change, a.note])
            text = f"{a.member} <- {copy.donor}: {self._header.metric} {fitness}; {change or 'no change'} ({a.note})"
            self._writer_of(a.member).add_text("exploit", text, a.start, now)
        if rows:
            titles = ["member", "donor", self._header.steps, self._header.metric, "hyperparameters", "reason"]
            table = [titles, ["---"] * len(titles), *rows]
            text = "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table)
            self._all.add_scalars({"population/exploits": self._population.copies}, step, now)
            self._all.add_text("population/exploits", text, step, now)

    def _report(self, report: Report, now: float) -> None:
        member, step = report.member, report.step
        for streamed in self._tail.read(member):
            self._stream(member, streamed)
        already = self._streamed[member]
        points = {k: y for k, y in report_points(self._header, report).items() if k not in already}
        if (fitness := self._population.members[member].fitness) is not None:
            points[fitness_tag(self._header)] = fitness
        self._write(member, points, step, now)
        already.clear()
        self._hyperparameters(report, now)
        self._all.add_scalars(population_points(self._population), self._population.step, now)
        self._count_before_copy(now)

    def _count_before_copy(self, now: float) -> None:
        """Write the number of members that are ranked by a fitness from before a copy, if it has changed."""
        number = self._population.before_copy
        if number != self._before_copy:
            self._before_copy = number
            self._all.add_scalars({"population/before_copy": number}, self._population.step, now)

    def _hyperparameters(self, report: Report, now: float) -> None:
        """Write effective hyperparameters at both ends of the slice, so that a change is a step and not a slope."""
        member, step = report.member, report.step
        start, _, decided = self._decided.pop(report.assignment, (step, step, now))
        numbers = hyperparameter_points(report.hyperparameters)
        changed = {k: v for k, v in numbers.items() if self._shown.setdefault(member, {}).get(k) != v}
        self._write(member, changed, start, decided or now)
        self._write(member, numbers, step, now)
        self._shown[member] = numbers

    def _failure(self, member: str) -> None:
        """Hide the live metrics of a failed slice, as on a resume."""
        for streamed in self._tail.read(member):
            self._stream(member, streamed)
        self._streamed[member].clear()
        self._writer_of(member).hide_after(self._population.members[member].step + 1)

    def _stream(self, member: str, line: Metrics) -> None:
        slice_ = self._decided.get(line.get("assignment", ""))
        if slice_ is None:  # already reported: the slice only remakes a lost snapshot
            return
        points = tags(line)
        self._write(member, points, *position(line, slice_[1], time.time()))
        self._streamed[member] |= points.keys()

    def _write(self, member: str, points: Mapping[str, float], step: int, time: float | None) -> None:
        if points:
            self._writer_of(member).add_scalars(points, step, time)

    def _writer_of(self, member: str) -> EventFile:
        if member not in self._writers:
            self._writers[member] = self._new_writer(member)
        return self._writers[member]

    def _new_writer(self, member: str, purge_step: int | None = None) -> EventFile:
        return _writer(self._folder_of(member), purge_step)

    def _folder_of(self, member: str) -> Path:
        """Folder of a member; a role is part of its name, as in `m16-evaluator`."""
        role = self._population.members[member].role.replace(" ", "-")
        return self._run.tensorboard / (f"{member}-{role}" if role else member)

    def _close_if_retired(self, member: str) -> None:
        """Close the writer of a member that will not train again; each open one has a thread and a file."""
        if self._population.members[member].retired and member in self._writers:
            for line in self._tail.read(member):
                self._stream(member, line)
            self._writers.pop(member).close()


def _writer(folder: Path, purge_step: int | None) -> EventFile:
    """Start a file, and hide what earlier ones say from `purge_step` on."""
    file = EventFile(folder)
    if purge_step is not None:
        file.hide_after(purge_step)
    return file
