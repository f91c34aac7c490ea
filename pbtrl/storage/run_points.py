"""Numbers of a run to plot, by tag: the same in TensorBoard and in other trackers.

Tags with a slash belong to a group: `episode/*`, `evaluation/*`, `hparams/*`, `population/*`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

from pbtrl.core.messages import Report
from pbtrl.core.population import Population, mean
from pbtrl.storage.run_header import RunHeader


def fitness_tag(header: RunHeader) -> str:
    """Tag of a member's fitness: `fitness`, or outside RL for example `fitness/accuracy`."""
    return "fitness" if header.metric == "fitness" else f"fitness/{header.metric}"


def score_tag(header: RunHeader) -> str:
    """Tag of the mean result of a slice's episodes, or of its evaluations outside RL."""
    if header.is_return:
        return "episode/return_mean"
    return f"{'episode' if header.unit == 'env_steps' else 'evaluation'}/{header.metric}"


def report_points(header: RunHeader, report: Report) -> dict[str, float]:
    """Numbers of a report, except hyperparameters and fitness; those that are not finite are left out."""
    points: dict[str, float | None] = dict(report.scalars)
    if report.returns:
        points[score_tag(header)] = mean(report.returns)
    if report.lengths and header.unit == "env_steps":
        points["episode/length_mean"] = mean(report.lengths)
    if header.rule.source == "evaluation" and report.evaluation:
        points[score_tag(header).replace("episode/", "evaluation/")] = mean(report.evaluation)
    return {tag: y for tag, y in points.items() if y is not None and math.isfinite(y)}


def hyperparameter_points(values: Mapping[str, Any]) -> dict[str, float]:
    """Numeric hyperparameters."""
    numeric = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {f"hparams/{k}": float(v) for k, v in numeric.items()}


def population_points(population: Population) -> dict[str, float]:
    """Largest, median and smallest fitness of the members that have one; empty if there is none."""
    ranked = [m.fitness for m in population.ranking() if m.fitness is not None]
    if not ranked:
        return {}
    summary = {"max": max(ranked), "median": statistics.median(ranked), "min": min(ranked)}
    return {f"population/fitness_{name}": y for name, y in summary.items()}
