"""Pictures of a comparison as SVG elements for a page: scores of all runs, and curves with bands.

Text and axes take the color of the page, so that one picture fits light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pbtrl.reporting.comparison.group_curves import AXES, group_curve
from pbtrl.reporting.formatting import format_count
from pbtrl.reporting.plots import content
from pbtrl.reporting.plots.embedding import svg_element
from pbtrl.reporting.plots.style import COLORS, can_be_drawn, in_time, short, style

if TYPE_CHECKING:
    from pbtrl.reporting.comparison.comparison import Comparison
    from pbtrl.reporting.comparison.group_statistics import RunGroup

CURVES = {"best": "best member, re-evaluated", "median": "median of the population"}


def scores(c: Comparison) -> Figure:
    """Draw a point per run, and the IQM of each group with its interval."""
    figure = Figure(figsize=(9.0, 0.9 + 0.45 * len(c.groups)), layout="constrained")
    panel = figure.subplots()
    for row, group in enumerate(c.groups):
        finite = [v for v in group.values if can_be_drawn(v)]
        offsets = np.linspace(-0.22, 0.22, len(finite)) if len(finite) > 1 else np.zeros(len(finite))
        panel.scatter(finite, row + offsets, s=18, color=COLORS[row % len(COLORS)], alpha=0.7, lw=0, zorder=3)
        if group.interval and all(map(can_be_drawn, group.interval)):
            panel.plot(group.interval, [row, row], color="black", lw=1.4, solid_capstyle="butt")
        if can_be_drawn(group.iqm):
            panel.plot([group.iqm] * 2, [row - 0.32, row + 0.32], color="black", lw=2.2)
        if never := len(group.values) - len(finite):
            panel.annotate(
                f"{never} of {len(group.values)} never", (1, row), xycoords=("axes fraction", "data"), va="center",
                ha="right", fontsize="small",
            )  # fmt: skip
    panel.set_yticks(range(len(c.groups)), [short(group.label) for group in c.groups])
    panel.set_ylim(len(c.groups) - 0.4, -0.6)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x) if abs(x) >= 10_000 else f"{x:g}"))
    panel.set_xlabel(short(c.metric.unit))
    return figure


def curves(c: Comparison) -> Figure:
    """Draw both curves against total steps and against time: IQM over the runs, with a band."""
    figure = Figure(figsize=(11.0, 7.0), layout="constrained")
    panels = figure.subplots(len(CURVES), len(AXES), sharey="row")
    for (name, title), row in zip(CURVES.items(), panels, strict=True):
        for axis, panel in zip(AXES, row, strict=True):
            for place, group in enumerate(c.groups):
                _curve(panel, group, name, axis, COLORS[place % len(COLORS)])
            panel.set_title(title)
            _axis(panel, c, axis)
        row[0].set_ylabel(short(c.runs[0].metric))
    handles, texts = panels[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, texts, loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return figure


def _axis(panel: Axes, c: Comparison, axis: str) -> None:
    if axis == "seconds":
        in_time(
            panel, max(run.curves.median.seconds[-1] if run.curves.median.seconds else 0.0 for run in c.runs), ticks=5
        )
        return
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x)))
    panel.set_xlim(left=0.0)
    panel.set_xlabel(short(f"total {c.runs[0].header.steps}"))


def _curve(panel: Axes, group: RunGroup, name: str, axis: str, color: str) -> None:
    curve = group_curve(group, name, axis)
    if curve is None or not all(map(can_be_drawn, (curve.low.min(), curve.high.max(), curve.x.max()))):
        return
    panel.plot(curve.x, curve.iqm, color=color, lw=1.6, label=f"{short(group.label)} ({curve.band})")
    if len(group.runs) > 1:
        panel.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.18, lw=0)


def pictures(c: Comparison) -> dict[str, str]:
    """SVG elements by title; empty without results."""
    draw: Sequence[Any] = (scores, curves) if c.runs else ()
    with style():
        return {f.__name__: svg_element(content(f(c)), f.__name__) for f in draw}
