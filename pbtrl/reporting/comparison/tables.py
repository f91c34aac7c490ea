"""Tables of a comparison: for the terminal, for Markdown, and as rows for the page."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import pbtrl
from pbtrl.reporting.formatting import format_commit, format_count, format_duration, format_fitness
from pbtrl.reporting.tables import aligned

if TYPE_CHECKING:
    from pbtrl.reporting.comparison.comparison import Comparison

MOST_PAIRS = 15  # in the terminal and in Markdown

Table = tuple[list[str], list[list[str]]]
"""Titles, and rows of cells."""


def groups_table(c: Comparison) -> Table:
    """Statistics of each group, best first."""
    show = _count if c.metric.name == "steps_to" else format_fitness
    steps = c.runs[0].header.steps if c.runs else "steps"
    titles = ["", "runs", "IQM", "95 % interval", "mean", "min", "max", f"total {steps}", "time"]
    rows = []
    for group in c.groups:
        low, high = min(group.values, default=None), max(group.values, default=None)
        seconds = group.average("seconds")
        rows.append([
            group.label, str(len(group.runs)), show(group.iqm), _interval(group.interval, show), show(group.mean),
            show(low), show(high), _count(group.average("steps")), "-" if seconds is None else format_duration(seconds),
        ])  # fmt: skip
    return titles, rows


def pairs_table(c: Comparison) -> Table:
    """Comparison of each two groups."""
    paired = any(pair.difference is not None for pair in c.pairs)
    titles = ["", "against", "P(improvement)", "95 % interval", "rank p"]
    titles += ["paired difference", "95 % interval", "pairs", "signed-rank p"] if paired else []
    rows = []
    for pair in c.pairs:
        row = [pair.a.label, pair.b.label, f"{pair.probability:.2f}", _interval(pair.interval, lambda v: f"{v:.2f}")]
        row.append(f"{pair.rank_p:.2g}")
        if paired:
            row += [format_fitness(pair.difference), _interval(pair.difference_interval, format_fitness)]
            row += [str(len(pair.paired)), "-" if pair.signed_rank_p is None else f"{pair.signed_rank_p:.2g}"]
        rows.append([*row, pair.verdict])
    return [*titles, ""], rows


def text(c: Comparison) -> str:
    """Format a comparison for the terminal."""
    parts = [f"{c.metric.title}", aligned(*groups_table(c))]
    if c.pairs:
        titles, rows = pairs_table(c)
        parts.append(aligned(titles, rows[:MOST_PAIRS], left=(0, 1, len(titles) - 1)) + _more(rows))
    parts.append("\n".join(remarks(c)))
    return "\n\n".join(part for part in parts if part)


def markdown(c: Comparison, command: Sequence[str] = ()) -> str:
    """Format a comparison as Markdown: tables, remarks, and a line of machine, version, command and date."""
    parts = [f"**{_escaped(c.metric.title)}**", _markdown(groups_table(c), left=(0,))]
    if c.pairs:
        titles, rows = pairs_table(c)
        parts.append(_markdown((titles, rows[:MOST_PAIRS]), left=(0, 1, len(titles) - 1)) + _more(rows))
    parts.append("\n".join(f"- {_escaped(line)}" for line in remarks(c)))
    return "\n\n".join([*parts, _escaped(provenance(c, command), code=True)])


def remarks(c: Comparison) -> list[str]:
    """Notes, warnings and the runs that were left out, a line each."""
    left_out = [f"left out: {run.path.name}: {run.reason}" for run in c.left_out]
    return [*c.notes, *(f"warning: {line}" for line in c.warnings), *left_out]


def provenance(c: Comparison, command: Sequence[str] = ()) -> str:
    """Machine, version and commit of the runs, the command of the comparison, and today's date, in one line."""
    facts = [run.info for run in c.runs]
    versions = [f.get("versions", {}) for f in facts]
    machine = _distinct(f"{v.get('processor')}" for v in versions)
    version = _distinct(f"pbtrl {v.get('pbtrl', pbtrl.__version__)}, torch {v.get('torch')}" for v in versions)
    commits = _distinct(format_commit(str(f["git"]), 10) for f in facts if f.get("git"))
    parts = [machine, version + (f", commit {commits}" if commits else ""), f"`{shlex.join(command)}`"]
    return "; ".join([*(p for p in parts if p.strip("`'")), time.strftime("%Y-%m-%d")])


def _distinct(texts: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(texts))


def _more(rows: Sequence[object]) -> str:
    left = len(rows) - MOST_PAIRS
    return f"\n{left} more comparisons are in the page and in --json" if left > 0 else ""


def _interval(bounds: tuple[float, float] | None, show: Callable[[float], str]) -> str:
    return "-" if bounds is None else " to ".join(map(show, bounds))


def _count(number: float | None) -> str:
    if number is None:
        return "-"
    return format_count(number) if math.isfinite(number) else "never"


def _markdown(table: Table, left: Sequence[int]) -> str:
    titles, rows = table
    rule = ["---" if i in left else "---:" for i in range(len(titles))]
    cells = [[_escaped(cell) for cell in row] for row in (titles, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:]))


def _escaped(text: str, *, code: bool = False) -> str:
    special = "\\|<>[]*_" if code else "\\`|<>[]*_"
    return "".join(f"\\{c}" if c in special else c for c in text.replace("\n", " "))
