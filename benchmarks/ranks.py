"""Rank the arms of several sweeps, one sweep per task: mean rank and wins, with bootstrap intervals over the tasks.

    python benchmarks/ranks.py evidence/boosting-*

The score of an arm in a task is the mean over its seeds of the chosen member's score on held-out data. Equal scores
share the mean of their ranks. The replication unit is a task.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap, rankdata

from pbtrl.reporting.tables import aligned
from pbtrl.training.sweep import plan


def scores(folder: Path) -> dict[str, float]:
    """Return the mean score of each arm of a finished sweep; empty if a run has no score."""
    rows = plan([], root=folder.parent, name=folder.name).result()["runs"]
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(row["arm"], []).append(np.nan if row["score"] is None else row["score"])
    means = {arm: float(np.mean(values)) for arm, values in found.items()}
    return {} if np.isnan(list(means.values())).any() else means


def interval(values: np.ndarray) -> str:
    """Format the mean over tasks with its 95 % interval."""
    mean = f"{values.mean():.2f}"
    if len(values) < 2 or np.ptp(values) == 0:
        return mean
    found = bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0)).confidence_interval
    return f"{mean} [{found.low:.2f}, {found.high:.2f}]"


def main() -> None:
    """Print a Markdown-like table of the arms, the best mean rank first."""
    tasks = {folder: found for folder in map(Path, sys.argv[1:]) if (found := scores(folder))}
    if not tasks:
        sys.exit("no finished sweep among the arguments")
    left_out = len(sys.argv) - 1 - len(tasks)
    arms = list(next(iter(tasks.values())))
    table = np.array([[found[arm] for arm in arms] for found in tasks.values()])  # [task, arm]
    ranks = rankdata(-table, axis=1)
    wins = (table == table.max(axis=1, keepdims=True)).astype(float)
    order = np.argsort(ranks.mean(axis=0))
    rows = [
        [arms[i], interval(ranks[:, i]), f"{wins[:, i].sum():.0f} of {len(tasks)}", f"{table[:, i].mean():.4f}"]
        for i in order
    ]
    print(aligned(["arm", "mean rank", "best (ties count)", "mean score"], rows))
    if left_out:
        print(f"{left_out} sweeps are not finished and were left out")


if __name__ == "__main__":
    main()
