"""Plots over time and descent: `lineage`, `timeline` and `speed`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from pbtrl.core.records import Decision, FailureRecord, RunResumed, SnapshotLost
from pbtrl.reporting.formatting import format_count
from pbtrl.reporting.lineage import TrainedSlice
from pbtrl.reporting.plots.run_data import RunData
from pbtrl.reporting.plots.style import COLORS, NAMED, WIDTH, Point, in_steps, in_time, short

BINS = 120  # bins of the speed


def lineage(data: RunData) -> Figure:
    """Draw the descent of the weights, and that of the best member in black."""
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
    panel.add_collection(LineCollection(best, colors="black", lw=3))
    panel.autoscale(axis="x")
    in_steps(panel, data.header.steps)
    panel.set_title("lineage")
    return figure


def _passages(data: RunData, s: TrainedSlice) -> list[list[Point]]:
    """Lines of a slice: from the end of its parent to its start, and from its start to its end."""
    row, parent = data.rows[s.member], data.slices.get(s.parent or "")
    copy: list[list[Point]] = [[(parent.stop, data.rows[parent.member]), (s.start, row)]] if parent else []
    return [*copy, [(s.start, row), (s.stop, row)]]


def timeline(data: RunData) -> Figure:
    """Draw a bar per slice, and marks for copies, failures and lost snapshots."""
    figure, panel = _rows(data)
    now = 0.0
    copied, failed, lost = [], [], []
    for record in data.records:
        now = record.elapsed or now
        match record:
            case RunResumed():
                panel.axvline(now, color="0.6", lw=0.8, ls=":")
            case Decision():
                copied += [(now, data.rows[a.member], data.color(a.donor)) for a in record.assignments if a.donor]
            case FailureRecord():
                failed.append((now, data.rows[record.failure.member]))
            case SnapshotLost():
                lost.append((now, data.rows[record.snapshot.split("/")[0]]))
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


def speed(data: RunData) -> Figure:
    """Draw the speed of the whole population over time."""
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
