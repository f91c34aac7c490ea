"""Statistics of results that the models of strategies learn from."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np


def standard_deviation(values: np.ndarray) -> float:
    """Return the standard deviation of values [n]; exactly 0 if all are equal, where rounding leaves about 1e-17."""
    with np.errstate(over="ignore"):
        return float(np.std(values)) if np.ptp(values) > 0 else 0.0


def failure_result(results: Collection[float]) -> float:
    """Return the number that stands for a failed trial: a standard deviation below the worst result; 0 without any.

    A failure is never equal to a success, also if there is a single one.
    """
    if not results:
        return 0.0
    worst = min(results)
    failure = worst - (standard_deviation(np.array(results)) or abs(worst) or 1.0)
    return failure if math.isfinite(failure) else worst
