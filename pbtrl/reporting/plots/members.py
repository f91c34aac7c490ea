"""Plots of the members as they are now: `episodes`, a distribution, and `population`, parallel coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pbtrl.core.dimensions import AGENT
from pbtrl.core.member import Member
from pbtrl.reporting.formatting import format_count, format_fitness, format_value
from pbtrl.reporting.plots.run_data import RunData
from pbtrl.reporting.plots.style import NAMED, PANELS, WIDTH, WORDS, can_be_drawn, is_logarithmic, short

DOTS = 200  # largest number of episodes of a member that are drawn
BOX = 5  # smallest number of episodes for a box
TICKS = 5  # per coordinate


def episodes(data: RunData) -> Figure:
    """Draw a dot per final episode of every member, best on top, and a box of quartiles where there are enough."""
    known = data.final_episodes
    drawn = {m: [y for y in known[m] if can_be_drawn(y)][-DOTS:] for m in data.ranked if m in known}
    rows = {m: values for m, values in drawn.items() if values}
    top = list(rows)[:NAMED]
    figure = Figure(figsize=(WIDTH, 1.4 + 0.28 * max(1, len(top))), layout="constrained")
    panel = figure.subplots()
    for row, member in enumerate(top):
        offsets = np.linspace(-0.3, 0.3, 7)[np.arange(len(rows[member])) * 3 % 7] if len(rows[member]) > 1 else [0.0]
        panel.scatter(rows[member], row + np.asarray(offsets), s=9, color=data.color(member), alpha=0.55, lw=0)
    boxed = [(row, rows[m]) for row, m in enumerate(top) if len(rows[m]) >= BOX]
    if boxed:
        places, values = zip(*boxed, strict=True)
        ink = {"color": "black", "lw": 1.0}
        panel.boxplot(
            values, positions=places, orientation="horizontal", widths=0.6, showfliers=False, manage_ticks=False,
            boxprops=ink, whiskerprops=ink, capprops=ink, medianprops={"color": "black", "lw": 2.0},
        )  # fmt: skip
    panel.set_yticks(range(len(top)), [short(data.label(m)) for m in top])
    panel.set_ylim(max(1, len(top)) - 0.4, -0.6)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x) if abs(x) >= 10_000 else f"{x:g}"))
    label = "return" if data.header.is_return else data.header.metric
    left_out = f" ({len(rows) - len(top)} more members are not drawn)" if len(rows) > len(top) else ""
    panel.set(title="final episodes" + left_out, xlabel=short(label))
    return figure


@dataclass(frozen=True)
class Coordinate:
    """One vertical axis: places in [0, 1] of the members that have a value, and its tick labels by place."""

    name: str
    places: dict[str, float]
    ticks: dict[float, str]


def population(data: RunData) -> Figure:
    """Draw a line per member through its hyperparameters and its fitness, in the color of the fitness."""
    axes = coordinates(data)
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    panel = figure.subplots()
    for x, axis in enumerate(axes):
        _axis(panel, x, axis)
    colors = matplotlib.colormaps["viridis"]
    chosen = data.ancestry[-1].member if data.ancestry else None
    for member in reversed(data.ranked):  # the best ones on top
        line = [(x, axis.places[member]) for x, axis in enumerate(axes) if member in axis.places]
        height = axes[-1].places.get(member)
        look: dict[str, Any] = (
            {"color": "0.6", "ls": ":"} if height is None else {"color": colors(0.05 + 0.85 * height)}
        )
        look |= {"color": "black", "lw": 2.2, "label": f"{member}, the best"} if member == chosen else {"lw": 1.4}
        panel.plot([x for x, _ in line], [y for _, y in line], alpha=0.85, marker=".", **look)
    _bounds(panel, data, axes)
    panel.set(xlim=(-0.35, len(axes) - 0.65), ylim=(-0.06, 1.06), yticks=[])
    panel.spines[["left", "bottom"]].set_visible(False)
    tilt: dict[str, Any] = {"rotation": 12, "ha": "left"} if len(axes) > 8 else {}
    panel.set_xticks(range(len(axes)), [short(axis.name) for axis in axes], **tilt)
    panel.tick_params(axis="x", length=0, top=False, labeltop=True, labelbottom=False)
    if panel.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return figure


def coordinates(data: RunData) -> list[Coordinate]:
    """Axes of the searched hyperparameters, and the fitness as the last one."""
    members = [m for m in data.population.members.values() if m.hyperparameters]
    mixed = [AGENT] if data.population.agents else []
    names = [*mixed, *data.header.hyperparameters][:PANELS]
    axes = [
        _coordinate(name, {m.id: m.hyperparameters[name] for m in members if name in m.hyperparameters})
        for name in names
    ]
    fitness = {m.id: m.rank_fitness for m in members if m.healthy and can_be_drawn(m.rank_fitness)}
    return [*axes, _coordinate(data.header.metric, fitness, fitness=True)]


def _coordinate(name: str, values: dict[str, Any], *, fitness: bool = False) -> Coordinate:
    if not all(can_be_drawn(v) and not isinstance(v, bool) for v in values.values()):
        words = {word: i for i, word in enumerate(dict.fromkeys(sorted(map(str, values.values()))))}
        last = max(1, len(words) - 1)
        ticks = {i / last: short(word) for word, i in words.items()} if len(words) <= WORDS else {}
        return Coordinate(name, {m: words[str(v)] / last for m, v in values.items()}, ticks)
    low, high = min(values.values(), default=0), max(values.values(), default=0)
    if low == high:
        return Coordinate(name, dict.fromkeys(values, 0.5), {0.5: _label(low, fitness)} if values else {})
    logarithmic = not fitness and is_logarithmic(list(values.values()))
    scale = np.log if logarithmic else float
    first, span = float(scale(low)), float(scale(high)) - float(scale(low))

    def place(number: float) -> float:
        return (float(scale(number)) - first) / span

    even = [first + span * i / (TICKS - 1) for i in range(TICKS)]
    numbers = [float(np.exp(x)) for x in even] if logarithmic else even
    if all(isinstance(v, int) for v in values.values()):
        numbers = list(dict.fromkeys(map(round, numbers)))
    texts = [_label(n, fitness) for n in numbers]
    if len(set(texts)) < len(set(numbers)):  # a narrow range
        texts = [f"{n:.7g}" for n in numbers]
    ticks = dict(zip(map(place, numbers), texts, strict=True))
    return Coordinate(name, {m: place(v) for m, v in values.items()}, ticks)


def _label(number: float, fitness: bool) -> str:
    return format_fitness(number) if fitness else format_value(number)


def _axis(panel: Axes, x: int, axis: Coordinate) -> None:
    panel.plot([x, x], [0.0, 1.0], color="0.6", lw=0.8, zorder=0)
    for height, text in axis.ticks.items():
        panel.plot([x - 0.015, x], [height] * 2, color="0.6", lw=0.8, zorder=0)
        panel.text(x - 0.03, height, text, ha="right", va="center", fontsize="small")


def _bounds(panel: Axes, data: RunData, axes: Sequence[Coordinate]) -> None:
    """Draw a ring around each value that is at a bound of its hyperparameter."""
    members: list[Member] = list(data.population.members.values())
    reached = [
        (x, axis.places[m.id])
        for m in members
        for x, axis in enumerate(axes[:-1])
        if m.id in axis.places and axis.name in data.header.at_bound(m.hyperparameters)
    ]
    if reached:
        xs, ys = zip(*reached, strict=True)
        panel.scatter(xs, ys, s=60, facecolors="none", edgecolors="tab:red", lw=1.2, zorder=3, label="at a bound")
