"""Frame of the live view: progress of the run, a table of members, and the last events."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.text import Text

from pbtrl.core.dimensions import AGENT
from pbtrl.core.population import mean
from pbtrl.errors import printable
from pbtrl.reporting.formatting import (
    format_count,
    format_duration,
    format_fitness,
    format_mixture,
    format_rank_fitness,
    format_share,
    format_value,
)
from pbtrl.reporting.live_status import Event, LiveStatus, MemberRow
from pbtrl.storage.run_header import RunHeader

MANY = 20  # largest number of members that the table shows completely
EVENTS = 6  # number of events below the table
HINT = "Ctrl-C: save and stop"
STOPPING = "saving all members (Ctrl-C again: quit at once without saving)"
BARS = "▁▂▃▄▅▆▇█"


EVENT_STYLES = {
    "copy": "cyan",
    "promotion": "green",
    "evaluation": "dim",
    "retired": "dim",
    "diverged": "red",
    "given_up": "red",
    "lost": "red",
    "failure": "yellow",
    "skipped": "yellow",
}


STATES = {
    "train": "",
    "waiting": "dim",
    "done": "green",
    "diverged": "red",
    "given up": "red",
    "retired": "dim",
}  # else cyan


def live_table(
    status: LiveStatus, events: Sequence[Event], workers: str, console: Console, *,
    wide: bool = False, hint: str = HINT,
) -> Group:  # fmt: skip
    """Render one frame of the live view, fitted to the console's width and height."""
    rows = status.rows()
    searched = status.header.hyperparameters
    names = searched if wide else searched[:3]
    agents = status.population.agents
    indices = _selection(rows, min(MANY, max(6, console.height - EVENTS - 6)))
    for cut in range(len(names) + 3):  # leave out more until it fits the terminal
        kept = names[: len(names) - max(0, cut - 2)]
        columns = _columns(rows, indices, kept, status.header, narrow=cut >= 2)
        if agents:
            columns.insert(2, _agents(rows, indices))
        if status.population.roles:
            columns.insert(2, _roles(rows, indices))
        gap = 2 if cut == 0 else 1
        if sum(c.width + gap for c in columns) - gap <= console.width:
            break
    table = _lines(columns, gap)
    log = [
        Text(printable(f"{format_duration(e.elapsed):>9}  {e.text}"), no_wrap=True, overflow="ellipsis") for e in events
    ]
    for line, event in zip(log, events, strict=True):
        line.stylize(EVENT_STYLES.get(event.kind, ""))
    workers = f"{workers}: {format_mixture(agents)}" if agents else workers
    foot = Text(workers + " " * max(2, console.width - len(workers) - len(hint)) + hint, style="dim")
    foot.no_wrap, foot.overflow = True, "ellipsis"
    foot.rstrip()
    return Group(_head(status, console.width), *table, *log, foot)


def sparkline(history: Sequence[float | None], low: float, high: float, width: int = 10) -> str:
    """Draw a history as up to `width` bars on the scale from `low` to `high`; absent values are blank."""
    cells = []
    for i in range(min(width, len(history))):
        a, b = (len(history) * j // min(width, len(history)) for j in (i, i + 1))
        known = [x for x in history[a:b] if x is not None]
        height = mean(known) if known else math.nan
        cells.append(_bar(height, low, high) if math.isfinite(height) else " ")
    return "".join(cells)


def _bar(x: float, low: float, high: float) -> str:
    place = (x - low) / (high - low) if high > low else 0.0
    return BARS[round(min(1.0, max(0.0, place)) * (len(BARS) - 1))]


def _head(status: LiveStatus, width: int) -> Text:
    """Render the progress line, in its short form if the full one does not fit."""
    header = status.header
    done, budget = format_count(status.step), format_count(header.budget)
    share = f"({format_share(status.step, header.budget)})"
    rate = f"{format_count(status.rate)} steps/s" if status.rate is not None else "- steps/s"
    elapsed, left = (
        format_duration(status.elapsed),
        format_duration(status.left) if status.left is not None else "-",
    )
    steps = f"{done} / {budget} {header.steps} {share}"
    full = [header.name, f"gen {max(0, status.generation)}", steps, rate, f"{elapsed} elapsed", f"{left} left"]
    short = [f"{done} / {budget} {share}", rate, elapsed, f"{left} left"]
    text = " · ".join(full)
    if len(text) > width:
        rest = " · ".join(short)
        text = f"{header.name[: max(1, width - len(rest) - 3)]} · {rest}"
    return Text(printable(text), style="bold", no_wrap=True, overflow="ellipsis")


def _selection(rows: Sequence[MemberRow], room: int) -> list[int | None]:
    """Indices of the rows to show; None stands for the rows left out.

    Where members come and go, the bottom ones have retired; those that train are shown instead.
    """
    if len(rows) <= room:
        return list(range(len(rows)))
    if any(row.retired for row in rows):
        training = [i for i, row in enumerate(rows) if row.state == "train"][: room - 3]
        best = [i for i in range(len(rows)) if i not in training][: room - 1 - len(training)]
        return [*sorted([*training, *best]), None]
    top = min(8, max(2, 2 * (room - 1) // 3))
    bottom = min(4, max(1, room - 1 - top))
    return [*range(top), None, *range(len(rows) - bottom, len(rows))]


def _scale(rows: Sequence[MemberRow]) -> tuple[float, float]:
    known = [x for row in rows for x in row.history if x is not None]
    return min(known, default=0.0), max(known, default=0.0)


@dataclass(frozen=True)
class _Column:
    """Column: a title of one or two lines, and (text, style) per row. Rich's own tables are six times slower."""

    title: str
    cells: list[tuple[str, str]]
    left: bool = False

    @property
    def width(self) -> int:
        return max(map(len, [*self.title.split("\n"), *(text for text, _ in self.cells)]))

    def fitted(self, text: str, gap: int) -> str:
        text = printable(text)
        return (text.ljust(self.width) if self.left else text.rjust(self.width)) + " " * gap


def _lines(columns: Sequence[_Column], gap: int) -> list[Text]:
    lines = []
    for i in (0, 1):
        titles = [f"\n{c.title}".split("\n")[-2:][i] for c in columns]
        lines.append(Text("".join(c.fitted(t, gap) for c, t in zip(columns, titles, strict=True)), style="dim"))
    for i in range(len(columns[0].cells)):
        lines.append(Text.assemble(*((c.fitted(c.cells[i][0], gap), c.cells[i][1]) for c in columns)))
    for line in lines:
        line.rstrip()
        line.no_wrap, line.overflow = True, "ellipsis"
    return lines if any("\n" in c.title for c in columns) else lines[1:]


def _columns(
    rows: Sequence[MemberRow], indices: Sequence[int | None], names: Sequence[str], header: RunHeader, *, narrow: bool
) -> list[_Column]:
    scale, hidden = _scale(rows), [row for i, row in enumerate(rows) if i not in indices]
    medians = [(text, "dim") for text in _medians(hidden, names, narrow=narrow)] if hidden else []
    table = [
        medians if place is None else _cells(place, rows[place], names, scale, 6 if narrow else 10) for place in indices
    ]
    window = f"({header.rule.window})" if header.unit == "env_steps" else ""
    titles = ["#", "member", header.metric + window, "", *(name.replace("_", "\n", 1) for name in names)]
    titles += ["steps", "steps/s", "gen", "state"]
    left = {"member", "state", ""}
    return [_Column(t, [line[i] for line in table], left=t in left) for i, t in enumerate(titles)]


def _roles(rows: Sequence[MemberRow], indices: Sequence[int | None]) -> _Column:
    """Column of the members' roles: sub-populations and evaluators."""
    return _Column("role", [("" if place is None else rows[place].role, "") for place in indices], left=True)


def _agents(rows: Sequence[MemberRow], indices: Sequence[int | None]) -> _Column:
    """Column of the members' agents in a mixed population."""
    cells = []
    for place in indices:
        row = None if place is None else rows[place]
        text = "" if row is None else str(row.hyperparameters.get(AGENT, "-"))
        cells.append((text, "yellow" if row and AGENT in row.changed else ""))
    return _Column(AGENT, cells, left=True)


def _cells(
    place: int, row: MemberRow, names: Sequence[str], scale: tuple[float, float], width: int
) -> list[tuple[str, str]]:
    return [
        (str(place + 1), ""),
        (row.member, "bold"),
        (format_rank_fitness(row.fitness, before_copy=row.before_copy), "dim" if row.before_copy else ""),
        (sparkline(row.history, *scale, width=width), "green"),
        *(_hyperparameter(row, name) for name in names),
        (format_count(row.step), ""),
        ("-" if row.rate is None else format_count(row.rate), ""),
        (str(max(0, row.generation)), ""),
        (row.activity, STATES.get(row.activity, "cyan")),
    ]


def _hyperparameter(row: MemberRow, name: str) -> tuple[str, str]:
    """Format a value with an arrow if it changed, or with blanks in its place so that the digits are aligned."""
    if name not in row.hyperparameters:
        return "-  ", "dim"
    new, old = row.hyperparameters[name], row.changed.get(name)
    if name not in row.changed:
        return f"{format_value(new)}  ", ""
    ordered = isinstance(new, int | float) and isinstance(old, int | float)
    arrow = ("↑" if new > old else "↓") if ordered else "*"
    return f"{format_value(new)} {arrow}", "yellow"


def _medians(rows: Sequence[MemberRow], names: Sequence[str], *, narrow: bool) -> list[str]:
    """Row for the members left out: medians of all columns, and the quartiles of their fitness."""
    known = sorted(row.fitness for row in rows if row.fitness is not None)
    first, _, third = statistics.quantiles(known, n=4) if len(known) > 1 else [*known, 0.0][:1] * 3
    return [
        "…",
        f"+{len(rows)}",
        format_fitness(statistics.median(known) if known else None),
        "" if narrow or not known else f"{format_fitness(first)} … {format_fitness(third)}",
        *(_median([row.hyperparameters.get(name) for row in rows]) for name in names),
        format_count(statistics.median(row.step for row in rows)),
        "",
        f"{statistics.median(row.generation for row in rows):.0f}",
        "medians",
    ]


def _median(values: Sequence[object]) -> str:
    numbers = [x for x in values if isinstance(x, int | float) and not isinstance(x, bool)]
    return f"{format_value(float(statistics.median(numbers)))}  " if numbers else "-  "
