"""Style of all plots: colors, fonts, and axes of steps and time. The user's own style is not used."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from pbtrl.errors import printable
from pbtrl.reporting.formatting import format_count, format_duration, format_value

Point = tuple[float, float]

NAMED = 40  # largest number of members that are named
PANELS = 12  # largest number of hyperparameters that are drawn
WORDS = 20  # largest number of non-numeric values on an axis
WIDTH = 13.0  # inches
TICKS = (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)  # seconds
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


@contextlib.contextmanager
def style(**changes: Any) -> Iterator[None]:
    """Draw in pbtrl's style, whatever the user's own is, with `changes` of matplotlib's parameters."""
    with matplotlib.rc_context(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # about missing glyphs and about overflow
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE | changes)
        yield


def is_logarithmic(values: Sequence[float]) -> bool:
    """Return whether values are better shown on a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) > 20 * min(values)


def numeric_axis(panel: Axes, values: Sequence[float]) -> None:
    """Choose scale and ticks of a vertical axis for hyperparameters."""
    if is_logarithmic(values):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.yaxis.set_minor_formatter(NullFormatter())
    elif all(isinstance(chosen, int) for chosen in values):
        panel.yaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: format_value(y)))


def in_steps(panel: Axes, unit: str) -> None:
    """Label a horizontal axis of a member's steps."""
    panel.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_count(x)))
    panel.set_xlabel(short(f"{unit} of the member"))


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
