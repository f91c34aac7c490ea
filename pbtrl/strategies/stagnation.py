"""Stagnation of the best fitness, at which the ready interval of PBT may grow.

Frequent exploits favor hyperparameters that pay at once. Incremental PBT (Chebykin et al. 2025, arXiv 2511.09190) gives
them more time whenever the best fitness stagnates; of that method this is the growing step size alone.
"""

import math
from collections.abc import Sequence

SMOOTHING = 3  # rounds in the moving average


def growth(best: Sequence[float], factor: int, patience: int) -> int:
    """Return the ready interval in rounds.

    It begins at 1. After `patience` intervals in which the moving average of the best fitness sets no record, it is
    multiplied by `factor`.

    Args:
        best: highest fitness of each round.
        factor: factor of the interval at a stagnation.
        patience: intervals without a record that count as stagnation.
    """
    interval, record, waited = 1, -math.inf, 0
    for r in range(SMOOTHING, len(best) + 1):
        smoothed = sum(best[r - SMOOTHING : r]) / SMOOTHING
        if smoothed > record:
            record, waited = smoothed, 0
            continue
        waited += 1
        if waited >= patience * interval:
            interval, waited = interval * factor, 0
    return interval
