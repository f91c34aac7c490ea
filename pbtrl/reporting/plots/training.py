"""Plot `training`: fitness and searched hyperparameters of every member."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pbtrl.reporting.plots.run_data import RunData
from pbtrl.reporting.plots.style import (
    GRAY,
    NAMED,
    PANELS,
    WIDTH,
    WORDS,
    Point,
    can_be_drawn,
    in_steps,
    numeric_axis,
    short,
)


def training(data: RunData) -> Figure:
    """Draw a panel for the fitness and one for each hyperparameter."""
    names = data.header.hyperparameters[:PANELS]
    down = -(-(1 + len(names)) // 4)
    across = -(-(1 + len(names)) // down)
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
    in_steps(panel, data.header.steps)
    panel.set_title(short(data.header.metric))


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
        numeric_axis(panel, values)
        _bounds(panel, data, name)
    else:
        _words(panel, list(words))
    in_steps(panel, data.header.steps)
    panel.set_title(short(name))


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
