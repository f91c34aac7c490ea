"""Plots of a run, drawn from its journal.

    training   fitness and searched hyperparameters of every member
    episodes   distribution of every member's final episodes
    population hyperparameters and fitness of all members, as parallel coordinates
    lineage    descent of the weights, with a color for each set of fresh weights
    timeline   slices, copies and failures of every member over time
    speed      steps per second of the whole population

The ancestry of the best member is black. The journal may come from an untrusted source: names are drawn literally, in
limited number and length, and impossible numbers are refused.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal

with contextlib.chdir(Path(__file__).parent):  # else matplotlib reads a matplotlibrc in the working directory
    import matplotlib  # noqa: F401, the modules of this folder find it loaded
from matplotlib.figure import Figure

from pbtrl.reporting.plot_names import Plot
from pbtrl.reporting.plots.members import episodes, population
from pbtrl.reporting.plots.run_data import RunData
from pbtrl.reporting.plots.style import style
from pbtrl.reporting.plots.timeline import lineage, speed, timeline
from pbtrl.reporting.plots.training import training

__all__ = ["PLOTS", "Format", "RunData", "content", "draw", "make_figure", "style"]

Format = Literal["svg", "png"]

PLOTS: dict[Plot, Callable[[RunData], Figure]] = {
    "training": training,
    "episodes": episodes,
    "population": population,
    "lineage": lineage,
    "timeline": timeline,
    "speed": speed,
}


def make_figure(data: RunData, plot: Plot) -> Figure:
    """Draw one of PLOTS as a figure, which a notebook shows also without `%matplotlib inline`.

    Raises:
        ValueError: a number in the journal is impossible.
    """

    def png() -> bytes:
        with style():
            return content(figure, "png")

    with style():
        figure = PLOTS[plot](data)
    vars(figure)["_repr_png_"] = png
    return figure


def draw(data: RunData, plot: Plot, form: Format = "svg") -> bytes:
    """Draw one of PLOTS; returns the content of the file.

    Raises:
        ValueError: a number in the journal is impossible.
    """
    with style():
        return content(PLOTS[plot](data), form)


def content(figure: Figure, form: Format = "svg") -> bytes:
    """Content of a figure's file."""
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()
