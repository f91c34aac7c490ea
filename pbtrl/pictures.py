"""Pictures of a run, drawn from its journal alone.

    training   the fitness of every member, and what it was assigned of each searched hyperparameter
    lineage    whose weights went on in whom; a colour for each set of fresh weights
    timeline   what every member did when
    speed      steps per second of the whole population

Black is the ancestry of the best member. A journal may be a stranger's: its names are drawn as they are, and no more
of them than can be read.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from pbtrl.figures import clock, count, printable, value
from pbtrl.header import Header
from pbtrl.journal import Line
from pbtrl.lineage import Stretch, ancestry, copies
from pbtrl.population import Population

Format = Literal["svg", "png"]

PANELS = 12  # hyperparameters that are drawn
NAMED = 40  # rows that are labelled
BINS = 120  # of the speed
WIDTH = 13.0  # inches
TICKS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)  # seconds
STYLE: Any = {
    "text.parse_math": False,
    "svg.hashsalt": "pbtrl",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": "medium",
}
COLOURS = [to_hex(colour) for colour in matplotlib.colormaps["tab20"].colors]  # type: ignore[attr-defined]
GREY = "0.85"


@dataclass(frozen=True)
class Story:
    """What is drawn.

    Attributes:
        header, lines, population: of the run, as `runs.folded` gives them.
        best: the member whose ancestry is shown in black, or None.
    """

    header: Header
    lines: Sequence[Line]
    population: Population
    best: str | None

    @cached_property
    def reports(self) -> list[Line]:
        """Every slice that ended, oldest first."""
        return [line for line in self.lines if line["kind"] == "report"]

    @cached_property
    def assignments(self) -> dict[str, dict[str, Any]]:
        """Every assignment by its id."""
        decisions = (line for line in self.lines if line["kind"] == "decision")
        return {a["id"]: a for line in decisions for a in line["assignments"]}

    @cached_property
    def ancestry(self) -> list[Stretch]:
        """The slices that made the best member."""
        return ancestry(self.lines, self.best) if self.best else []

    @cached_property
    def rows(self) -> dict[str, int]:
        """Where each member has its row."""
        return {member: row for row, member in enumerate(self.population.members)}

    def colour(self, member: str) -> str:
        """The same in every picture."""
        return COLOURS[self.rows[member] * 2 % len(COLOURS) + self.rows[member] // 10 % 2]


def draw(story: Story, picture: str, form: Format = "svg") -> bytes:
    """One of PICTURES, as the content of a file."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a name in letters that the font lacks
        figure = PICTURES[picture](story)
        file = io.BytesIO()
        figure.savefig(file, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def _training(story: Story) -> Figure:
    names = story.header.hyperparameters[:PANELS]
    across = min(4, 1 + len(names))
    down = -(-(1 + len(names)) // across)
    figure = Figure(figsize=(max(6.0, WIDTH * across / 4), 3.2 * down), layout="constrained")
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels[1 + len(names) :]:
        panel.remove()
    _fitness(panels[0], story)
    for panel, name in zip(panels[1:], names, strict=False):
        _schedule(panel, story, name)
    if 1 <= len(labels := panels[0].get_legend_handles_labels()[1]) <= NAMED:
        figure.legend(loc="outside lower center", ncols=min(len(labels), 12), fontsize="small", frameon=False)
    return figure


def _fitness(panel: Axes, story: Story) -> None:
    members = [m for m in story.population.members.values() if m.history]
    for member in members:
        steps = [step for step, fitness in member.history if fitness is not None]
        found = [fitness for _, fitness in member.history if fitness is not None]
        panel.plot(steps, found, color=story.colour(member.id), lw=1.2, label=member.id)
    known = {(m.id, step): fitness for m in members for step, fitness in m.history if fitness is not None}
    path = [s for s in story.ancestry if (s.member, s.stop) in known]
    if path:
        scores = [known[s.member, s.stop] for s in path]
        panel.plot([s.stop for s in path], scores, color="black", lw=1.8, label=f"to {story.best}")
    for copy in copies(story.lines):
        panel.axvline(copy["env_steps"], color=GREY, lw=0.5, zorder=0)
    _on_the_clock(panel, story, "fitness")


def _schedule(panel: Axes, story: Story, name: str) -> None:
    used: dict[str, list[tuple[int, int, Any]]] = {}
    for r in (r for r in story.reports if name in r["hyperparameters"]):
        start = story.assignments[r["assignment"]]["start"]
        used.setdefault(r["member"], []).append((start, r["step"], r["hyperparameters"][name]))
    best = [(s.start, s.stop, s.hyperparameters[name]) for s in story.ancestry if name in s.hyperparameters]
    values = [chosen for slices in (*used.values(), best) for *_, chosen in slices]
    numeric = all(isinstance(chosen, int | float) for chosen in values)
    for slices, colour, width in (*((s, story.colour(m), 1) for m, s in used.items()), (best, "black", 2)):
        steps = [step for start, stop, _ in slices for step in (start, stop)]
        panel.plot(steps, [c if numeric else _short(str(c)) for *_, c in slices for _ in "ab"], color=colour, lw=width)
    if numeric and values and min(values) > 0 and max(values) > 20 * min(values):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_minor_formatter(NullFormatter())
    elif all(isinstance(chosen, int) for chosen in values):
        panel.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    if numeric:
        panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: value(y)))
    _on_the_clock(panel, story, _short(name))


def _lineage(story: Story) -> Figure:
    figure, panel = _rows(story)
    stop = {r["assignment"]: r["step"] for r in story.reports}
    root: dict[str, str] = {}
    families: dict[str, list[str]] = {}
    for a in story.assignments.values():
        root[a["id"]] = root.get(a["parent"], a["id"])
        families.setdefault(root[a["id"]], []).append(a["id"])
    for i, family in enumerate(families.values()):
        trained = [name for name in family if name in stop]
        lines = _passages(story, trained, stop)
        panel.add_collection(LineCollection(lines, colors=COLOURS[i * 2 % len(COLOURS)], lw=2))
    best = _passages(story, [s.assignment for s in story.ancestry], stop)
    panel.add_collection(LineCollection(best, colors="black", lw=1.2))
    panel.autoscale()
    _on_the_clock(panel, story, "lineage")
    return figure


def _passages(story: Story, slices: Sequence[str], stop: dict[str, int]) -> list[Any]:
    """From where each slice's parent ended to where it began itself, and on to its own end."""
    found = []
    for a in (story.assignments[name] for name in slices):
        row = story.rows[a["member"]]
        found.append([(a["start"], row), (stop[a["id"]], row)])
        if a["parent"] in stop:
            donor = story.rows[story.assignments[a["parent"]]["member"]]
            found.append([(stop[a["parent"]], donor), (a["start"], row)])
    return found


def _timeline(story: Story) -> Figure:
    figure, panel = _rows(story)
    elapsed = 0.0
    copied, failed, lost = [], [], []
    for line in story.lines:
        if line["kind"] == "resume":
            panel.axvline(elapsed, color="0.6", lw=0.8, ls=":")
        elapsed = line.get("timing", {}).get("elapsed", elapsed)
        match line["kind"]:
            case "report":
                seconds = line["timing"].get("seconds", 0.0)
                bar = (max(0.0, elapsed - seconds), seconds)
                row = story.rows[line["member"]] - 0.35
                panel.broken_barh([bar], (row, 0.7), color=story.colour(line["member"]), ec="white", lw=0.4)
            case "decision":
                copied += [
                    (elapsed, story.rows[a["member"]], story.colour(a["donor"]))
                    for a in line["assignments"]
                    if a["donor"]
                ]
            case "failure":
                failed.append((elapsed, story.rows[line["member"]]))
            case "void":
                lost.append((elapsed, story.rows[line["snapshot"].split("/")[0]]))
    _marks(panel, [c[:2] for c in copied], "copy, in the donor's colour", marker="o", c=[c[2] for c in copied], ec="k")
    _marks(panel, failed, "failure", marker="x", c="red")
    _marks(panel, lost, "snapshot lost", marker="s", c="black")
    _in_time(panel, elapsed)
    panel.set(title="timeline")
    return figure


def _marks(panel: Axes, places: Sequence[tuple[float, ...]], label: str, **look: Any) -> None:
    if places:
        times, rows = zip(*places, strict=True)
        panel.scatter(times, rows, label=label, s=24, lw=0.8, zorder=3, **look)
        panel.legend(fontsize=7, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)


def _speed(story: Story) -> Figure:
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    panel = figure.subplots()
    ends = [r["timing"]["elapsed"] for r in story.reports]
    edges = np.linspace(0.0, max(ends, default=1.0) or 1.0, BINS + 1)
    done = np.zeros(BINS)
    for report, end in zip(story.reports, ends, strict=True):
        begin = end - max(report["timing"].get("seconds", 0.0), 1e-3)
        part = np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], begin), 0.0, None) / (end - begin)
        done += part * (report["step"] - story.assignments[report["assignment"]]["start"])
    panel.stairs(done / np.diff(edges), edges, color="tab:blue", fill=True, alpha=0.6)
    _in_time(panel, edges[-1])
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: count(y)))
    panel.set(title=_short(f"{story.header.steps} per second"), ylim=(0, None))
    return figure


def _rows(story: Story) -> tuple[Figure, Axes]:
    """A figure with a row for every member, the first on top."""
    figure = Figure(figsize=(WIDTH, min(12.0, 1.4 + 0.25 * len(story.rows))), layout="constrained")
    panel = figure.subplots()
    if len(story.rows) <= NAMED:
        panel.set_yticks(list(story.rows.values()), list(story.rows))
    panel.set_ylim(len(story.rows) - 0.4, -0.6)
    return figure, panel


def _on_the_clock(panel: Axes, story: Story, title: str) -> None:
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x)))
    panel.set(title=title, xlabel=_short(f"{story.header.steps} of the member"))


def _in_time(panel: Axes, seconds: float) -> None:
    """Ticks at whole seconds, minutes, hours or days, about ten of them."""
    step = next((s for s in TICKS if seconds <= 10 * s), 86400 * (1 + seconds // 864000))
    panel.xaxis.set_major_locator(MultipleLocator(step))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: clock(x)))
    panel.set_xlabel("the run's clock")


def _short(name: str) -> str:
    shown = printable(name).replace("\n", " ")
    return shown if len(shown) <= 40 else f"{shown[:39]}…"


PICTURES: dict[str, Callable[[Story], Figure]] = {
    "training": _training,
    "lineage": _lineage,
    "timeline": _timeline,
    "speed": _speed,
}
