"""Run to draw, with what several plots need of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pbtrl.core.member import table_order
from pbtrl.core.messages import numbers
from pbtrl.core.population import Population
from pbtrl.core.records import Record, ReportRecord, duration
from pbtrl.reporting.lineage import TrainedSlice, ancestry, copies, trained_slices
from pbtrl.reporting.plots.style import COLORS
from pbtrl.storage.run_header import RunHeader


@dataclass(frozen=True)
class RunData:
    """Run to draw.

    Attributes:
        header, records, population: the run, as returned by `RunDirectory.load`.
        best: snapshot whose ancestry is drawn in black, or None.
    """

    header: RunHeader
    records: Sequence[Record]
    population: Population
    best: str | None

    @cached_property
    def slices(self) -> dict[str, TrainedSlice]:
        """Slices by id, in the order in which they ended."""
        return trained_slices(self.records)

    @cached_property
    def end(self) -> float:
        """Duration of the run so far (seconds)."""
        return duration(self.records)

    @cached_property
    def ancestry(self) -> list[TrainedSlice]:
        """Slices that led to the best member."""
        return ancestry(self.slices, self.best)

    @cached_property
    def copies(self) -> list[dict[str, Any]]:
        """All exploits, as `lineage.copies`."""
        return copies(self.records)

    @cached_property
    def final_episodes(self) -> dict[str, list[float]]:
        """Results that each member's fitness is the mean of; without a fitness its latest ones."""
        reports = [record.report for record in self.records if isinstance(record, ReportRecord)]
        evaluated = self.header.rule.source == "evaluation"
        last = {report.member: report.evaluation if evaluated else report.returns for report in reports}
        result = {m.id: m.window or numbers(last[m.id]) for m in self.population.members.values() if m.id in last}
        return {member: values for member, values in result.items() if values}

    @cached_property
    def ranked(self) -> list[str]:
        """Members, best first; those without a fitness and then those that broke last."""
        members = self.population.members.values()
        order = sorted(members, key=lambda m: (*table_order(m.shown_fitness, healthy=m.healthy), m.id))
        return [m.id for m in order]

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row index of each member."""
        return {member: row for row, member in enumerate(self.population.members)}

    def label(self, member: str) -> str:
        """Name of a member with its role."""
        return f"{member} {self.population.members[member].role}".strip()

    def width(self, member: str) -> float:
        """Relative width of a member's lines: those of evaluators are thin."""
        return 0.4 if self.population.members[member].is_evaluator else 1.0

    def color(self, member: str) -> str:
        """Color of a member, the same in all plots."""
        return COLORS[self.rows[member] % len(COLORS)]
