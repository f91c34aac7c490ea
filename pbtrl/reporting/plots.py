"""Plots of a run, drawn from its journal.

    training   fitness and searched hyperparameters of every member
    lineage    descent of the weights, with a color for each set of fresh weights
    timeline   slices, copies and failures of every member over time
    speed      steps per second of the whole population

The ancestry of the best member is black. The journal may come from an untrusted source: names are drawn literally, in
limited number and length, and impossible numbers are refused.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np

with contextlib.chdir(Path(__file__).parent):  # else matplotlib reads a matplotlibrc in the working directory
    import matplotlib
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from pbtrl.core.population import Population
from pbtrl.errors import printable
from pbtrl.reporting.formatting import format_count, format_duration, format_value
from pbtrl.reporting.lineage import TrainedSlice, ancestry, copies, trained_slices
from pbtrl.storage.journal import Line
from pbtrl.storage.run_header import RunHeader

Format = Literal["svg", "png"]
Point = tuple[float, float]

PANELS = 12  # largest number of hyperparameters that are drawn
NAMED = 40  # largest number of members that are named
WORDS = 20  # largest number of non-numeric values on an axis
BINS = 120  # bins of the speed
WIDTH = 13.0  # inches
TICKS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)  # seconds
LATEST = 1e10  # seconds, three centuries
LARGEST = 2**53  # steps
STYLE: Any = {
    "text.parse_math": False,
    "svg.hashsalt": "pbtrl",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
}
PALETTE = [to_hex(color) for color in matplotlib.colormaps["tab20"].colors]  # type: ignore[attr-defined]
COLORS = PALETTE[::2] + PALETTE[1::2]  # light colors last
GRAY = "0.85"


@dataclass(frozen=True)
class RunData:
    """Run to draw.

    Attributes:
        header, lines, population: the run, as returned by `run_status.load_run`.
        best: snapshot whose ancestry is drawn in black, or None.
    """

    header: RunHeader
    lines: Sequence[Line]
    population: Population
    best: str | None

    @cached_property
    def slices(self) -> dict[str, TrainedSlice]:
        """Slices by id, in the order in which they ended.

        Raises:
            ValueError: a time or step is impossible.
        """
        slices = trained_slices(self.lines)
        for s in slices.values():
            for number, most in ((s.start, LARGEST), (s.stop, LARGEST), (s.ended, LATEST), (s.seconds, LATEST)):
                _checked(number, most)
        return slices

    @cached_property
    def end(self) -> float:
        """Duration of the run so far (seconds)."""
        return max((elapsed(line) for line in self.lines if "elapsed" in line.get("timing", {})), default=0.0)

    @cached_property
    def ancestry(self) -> list[TrainedSlice]:
        """Slices that led to the best member."""
        return ancestry(self.slices, self.best)

    @cached_property
    def copies(self) -> list[dict[str, Any]]:
        """All exploits, as `lineage.copies`."""
        return copies(self.lines)

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


def elapsed(line: Line) -> float:
    """Time of a journal line (seconds since the run's start)."""
    return _checked(line["timing"]["elapsed"], LATEST)


def make_figure(data: RunData, plot: str) -> Figure:
    """Draw one of PLOTS as a figure, for example for a notebook.

    Raises:
        ValueError: a number in the journal is impossible.
    """
    with style():
        return PLOTS[plot](data)


def draw(data: RunData, plot: str, form: Format = "svg") -> bytes:
    """Draw one of PLOTS; returns the content of the file.

    Raises:
        ValueError: a number in the journal is impossible.
    """
    with style():
        figure = PLOTS[plot](data)
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


@contextlib.contextmanager
def style(**changes: Any) -> Iterator[None]:
    """Draw in pbtrl's style, whatever the user's own is, with `changes` of matplotlib's parameters."""
    with matplotlib.rc_context(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # about missing glyphs and about overflow
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | changes)
        yield


def _training(data: RunData) -> Figure:
    names = data.header.hyperparameters[:PANELS]
    across = min(4, 1 + len(names))
    down = -(-(1 + len(names)) // across)
    width = max(6.0, WIDTH * across / 4)
    figure = Figure(figsize=(width, 3.2 * down), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels[1 + len(names) :]:
        panel.remove()
    _fitness(panels[0], data)
    for panel, name in zip(panels[1:], names, strict=False):
        _schedule(panel, data, name)
    if more := len(data.header.hyperparameters) - len(names):
        figure.suptitle(f"{more} more hyperparameters are not drawn", fontsize="small")
    if 1 <= (entries := len(panels[0].get_legend_handles_labels()[1])) <= NAMED + 1:
        columns = int(width / (1.6 if data.header.roles else 1.1))
        figure.set_figheight(3.2 * down + 0.2 * -(-entries // columns))
        figure.legend(loc="outside lower center", ncols=columns, fontsize="small", frameon=False)
    return figure


def _fitness(panel: Axes, data: RunData) -> None:
    known = {(m.id, s): f for m in data.population.members.values() for s, f in m.history if can_be_drawn(f)}
    points: dict[str, list[Point]] = {}
    for (member, step), fitness in known.items():
        points.setdefault(member, []).append((step, fitness))
    path = [(s.stop, known[s.member, s.stop]) for s in data.ancestry if (s.member, s.stop) in known]
    for member, own in points.items():
        look = {"color": data.color(member), "lw": 1.2 * data.width(member)}
        _line(panel, own, label=short(data.label(member)), **look)
    if path:
        _line(panel, path, color="black", lw=1.8, label=f"to {data.ancestry[-1].member}")
    for copy in data.copies:
        panel.axvline(copy["env_steps"], color=GRAY, lw=0.5, zorder=0)
    _on_the_clock(panel, data, data.header.metric)


def _line(panel: Axes, points: Sequence[Point], **look: Any) -> None:
    x, y = zip(*points, strict=True)
    panel.plot(x, y, marker="." if len(points) == 1 else None, **look)


def _schedule(panel: Axes, data: RunData, name: str) -> None:
    used: dict[str, list[tuple[int, int, Any]]] = {}
    for s in data.slices.values():
        if name in s.hyperparameters:
            used.setdefault(s.member, []).append((s.start, s.stop, s.hyperparameters[name]))
    best = [(s.start, s.stop, s.hyperparameters[name]) for s in data.ancestry if name in s.hyperparameters]
    values = [chosen for slices in (*used.values(), best) for *_, chosen in slices]
    numeric = all(can_be_drawn(chosen) for chosen in values)
    words = {} if numeric else {word: i for i, word in enumerate(dict.fromkeys(map(str, values)))}
    for slices, color, width in (*((s, data.color(m), data.width(m)) for m, s in used.items()), (best, "black", 2)):
        ends: list[Any] = [(step, words.get(str(v), v)) for start, stop, v in slices for step in (start, stop)]
        panel.plot([step for step, _ in ends], [height for _, height in ends], color=color, lw=width)
    if numeric:
        _heights(panel, values)
        _bounds(panel, data, name)
    else:
        _words(panel, list(words))
    _on_the_clock(panel, data, short(name))


def _heights(panel: Axes, values: Sequence[float]) -> None:
    if values and min(values) > 0 and max(values) > 20 * min(values):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_minor_formatter(NullFormatter())
    elif all(isinstance(chosen, int) for chosen in values):
        panel.yaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: format_value(y)))


def _bounds(panel: Axes, data: RunData, name: str) -> None:
    """Draw a dotted line at each bound that a member's value reached."""
    for s in data.slices.values():
        end = data.header.at_bound(s.hyperparameters).get(name)
        if end and not any(line.get_gid() == end for line in panel.lines):
            panel.axhline(s.hyperparameters[name], color="0.4", lw=0.8, ls=":", gid=end)


def _words(panel: Axes, words: Sequence[str]) -> None:
    if len(words) <= WORDS:
        panel.set_yticks(range(len(words)), [short(word) for word in words])
    else:
        panel.set_yticks([])
        panel.set_ylabel(f"{len(words)} values")


def _lineage(data: RunData) -> Figure:
    figure, panel = _rows(data)
    root: dict[str | None, int] = {}
    families, colors, passages = itertools.count(), [], []
    for s in data.slices.values():
        root[s.assignment] = root[s.parent] if s.parent in root else next(families)
        for passage in _passages(data, s):
            passages.append(passage)
            colors.append(COLORS[root[s.assignment] % len(COLORS)])
    best = [p for s in data.ancestry for p in _passages(data, s)]
    panel.add_collection(LineCollection(passages, colors=colors, lw=2))
    panel.add_collection(LineCollection(best, colors="black", lw=1.2))
    panel.autoscale(axis="x")
    _on_the_clock(panel, data, "lineage")
    return figure


def _passages(data: RunData, s: TrainedSlice) -> list[list[Point]]:
    """Lines of a slice: from the end of its parent to its start, and from its start to its end."""
    row, parent = data.rows[s.member], data.slices.get(s.parent or "")
    copy: list[list[Point]] = [[(parent.stop, data.rows[parent.member]), (s.start, row)]] if parent else []
    return [*copy, [(s.start, row), (s.stop, row)]]


def _timeline(data: RunData) -> Figure:
    figure, panel = _rows(data)
    now = 0.0
    copied, failed, lost = [], [], []
    for line in data.lines:
        if line["kind"] == "resume":
            panel.axvline(now, color="0.6", lw=0.8, ls=":")
        now = elapsed(line) if "elapsed" in line.get("timing", {}) else now
        match line["kind"]:
            case "decision":
                exploits = [a for a in line["assignments"] if a["donor"]]
                copied += [(now, data.rows[a["member"]], data.color(a["donor"])) for a in exploits]
            case "failure":
                failed.append((now, data.rows[line["member"]]))
            case "void":
                lost.append((now, data.rows[line["snapshot"].split("/")[0]]))
    bars, colors, nth = [], [], dict.fromkeys(data.rows, 0)
    for s in data.slices.values():
        low, high = data.rows[s.member] - 0.35, data.rows[s.member] + 0.35
        bars.append([(s.begun, low), (s.begun, high), (s.ended, high), (s.ended, low)])
        colors.append(to_rgba(data.color(s.member), 1.0 if nth[s.member] % 2 == 0 else 0.7))
        nth[s.member] += 1
    panel.add_collection(PolyCollection(bars, facecolors=colors))
    _marks(panel, [c[:2] for c in copied], "copy, in the donor's color", marker="o", c=[c[2] for c in copied], ec="k")
    _marks(panel, failed, "failure", marker="x", c="red")
    _marks(panel, lost, "snapshot lost", marker="s", c="black")
    in_time(panel, data.end)
    panel.set(title="timeline")
    return figure


def _marks(panel: Axes, places: Sequence[Point], label: str, **look: Any) -> None:
    if places:
        times, rows = zip(*places, strict=True)
        panel.scatter(times, rows, label=label, s=24, lw=0.8, zorder=3, **look)
        panel.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)


def _speed(data: RunData) -> Figure:
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    panel = figure.subplots()
    edges = np.linspace(0.0, max(data.end, 1e-3), BINS + 1)
    done = np.zeros(BINS)
    for s in data.slices.values():
        begun = min(s.begun, s.ended - 1e-6)
        part = np.clip(np.minimum(edges[1:], s.ended) - np.maximum(edges[:-1], begun), 0.0, None)
        done += part / (s.ended - begun) * (s.stop - s.start)
    panel.stairs(done / np.diff(edges), edges, color="tab:blue", fill=True, alpha=0.6)
    in_time(panel, data.end)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: format_count(y)))
    panel.set(title=short(f"{data.header.steps} per second"), ylim=(0, None))
    return figure


def _rows(data: RunData) -> tuple[Figure, Axes]:
    """Create a figure with a row for every member, the first on top."""
    figure = Figure(figsize=(WIDTH, min(12.0, 1.4 + 0.25 * len(data.rows))), layout="constrained")
    panel = figure.subplots()
    if len(data.rows) <= NAMED:
        panel.set_yticks(list(data.rows.values()), [short(data.label(member)) for member in data.rows])
    panel.set_ylim(len(data.rows) - 0.4, -0.6)
    return figure, panel


def _on_the_clock(panel: Axes, data: RunData, title: str) -> None:
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x)))
    panel.set(title=title, xlabel=short(f"{data.header.steps} of the member"))


def in_time(panel: Axes, seconds: float, ticks: int = 10) -> None:
    """Set up to `ticks` ticks of a time axis at whole seconds, minutes, hours or days."""
    step = next((s for s in TICKS if seconds <= ticks * s), 86400 * (1 + seconds // (ticks * 86400)))
    panel.set_xlim(0.0, max(seconds, 1e-3))
    panel.xaxis.set_major_locator(MultipleLocator(step))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_duration(x)))
    panel.set_xlabel("time since the run's start")


def short(name: str) -> str:
    """Cut a name to the length that plots allow, in one line of printable characters."""
    label = printable(name).replace("\n", " ")
    return label if len(label) <= 40 else f"{label[:39]}…"


def can_be_drawn(number: Any) -> TypeGuard[float]:
    """Return whether a value is a number small enough for an axis; matplotlib finds no ticks for the largest floats."""
    return isinstance(number, int | float) and abs(number) < 1e100


def _checked(number: Any, most: float) -> float:
    if not 0 <= number <= most:
        raise ValueError(f"{number!r} is not in [0, {most:.0e}]")
    return float(number)


PLOTS: dict[str, Callable[[RunData], Figure]] = {
    "training": _training,
    "lineage": _lineage,
    "timeline": _timeline,
    "speed": _speed,
}
