"""Curve of a group of runs: the interquartile mean at common positions, with a band."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pbtrl.reporting.comparison import statistics
from pbtrl.reporting.comparison.group_statistics import RunGroup

AXES = ("steps", "seconds")
"""Horizontal axes of the curves."""
POSITIONS = 200
BANDED = 5  # runs from which on the band is a bootstrap interval
RESAMPLES = 2000


@dataclass(frozen=True)
class GroupCurve:
    """Curve of a group.

    Attributes:
        x: positions [X], steps or seconds.
        iqm: interquartile mean over the runs [X].
        low, high: bounds of the band [X].
        band: number of runs and meaning of the band, in words.
    """

    x: NDArray[np.float64]
    iqm: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    band: str

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {key: value if isinstance(value, str) else value.tolist() for key, value in vars(self).items()}


def group_curve(group: RunGroup, name: str, axis: str) -> GroupCurve | None:
    """Compute the curve `best` or `median` of a group against `steps` or `seconds`.

    It begins where all runs have a value and ends with the longest; a run that has ended keeps its last value.

    Returns:
        The curve, or None if a run has no value at all.
    """
    run_curves = [getattr(run.curves, name) for run in group.runs]
    if not run_curves or not all(curve.values for curve in run_curves):
        return None
    ends = [getattr(curve, axis) for curve in run_curves]
    x = np.linspace(max(end[0] for end in ends), max(end[-1] for end in ends), POSITIONS)
    values = np.array([[curve.at(position, axis) for position in x] for curve in run_curves])  # [N runs, X]
    n = len(values)
    bounds = statistics.interval(statistics.iqm, values, axis=0, resamples=RESAMPLES) if n >= BANDED else None
    low, high = bounds or (values.min(0), values.max(0))
    words = "1 run" if n == 1 else f"{n} runs, band: {'95 % bootstrap interval' if bounds else 'min to max'}"
    return GroupCurve(x, statistics.iqm(values, axis=0), low, high, words)
