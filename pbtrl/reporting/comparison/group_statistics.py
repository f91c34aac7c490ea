"""Statistics of a group of replications, and of two groups against each other, with what too few runs can show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pbtrl.reporting.comparison import statistics
from pbtrl.reporting.comparison.metrics import Metric
from pbtrl.reporting.comparison.runs import ComparedRun


@dataclass(frozen=True)
class RunGroup:
    """Replications of one config.

    Attributes:
        label: short unique name.
        runs: runs that have a value, in the order of their seeds.
        values: the metric of each run.
    """

    label: str
    runs: tuple[ComparedRun, ...]
    values: tuple[float, ...]

    @cached_property
    def iqm(self) -> float | None:
        """Interquartile mean."""
        return float(statistics.iqm(self.values)) if self.values else None

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the interquartile mean; None with fewer than two runs."""
        bounds = statistics.interval(statistics.iqm, self.values) if self.values else None
        return bounds and (float(bounds[0]), float(bounds[1]))

    @property
    def mean(self) -> float | None:
        """Mean."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def by_seed(self) -> dict[int, float] | None:
        """Values by seed; None if a seed occurs twice."""
        result = {run.header.seed: value for run, value in zip(self.runs, self.values, strict=True)}
        return result if len(result) == len(self.runs) else None

    def average(self, name: str) -> float | None:
        """Mean over the runs of `steps` or `seconds`."""
        return float(np.mean([getattr(run, name) for run in self.runs])) if self.runs else None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "label": self.label,
            "num_runs": len(self.runs),
            "mean": self.mean,
            "iqm": self.iqm,
            "iqm_ci95": self.interval,
            "min": min(self.values, default=None),
            "max": max(self.values, default=None),
            "steps_mean": self.average("steps"),
            "seconds_mean": self.average("seconds"),
            "runs": [_run_json(run, value) for run, value in zip(self.runs, self.values, strict=True)],
        }


def _run_json(run: ComparedRun, value: float) -> dict[str, Any]:
    curves = {name: vars(getattr(run.curves, name)) for name in ("best", "median")}
    return {
        "name": run.path.name,
        "path": str(run.path),
        "seed": run.header.seed,
        "value": value,
        "score": run.score,
        "score_ci95": run.score_interval,
        "member": run.member,
        "training_fitness": run.fitness,
        "steps": run.steps,
        "seconds": run.seconds,
        "curves": curves,
    }


@dataclass(frozen=True)
class Pair:
    """Comparison of two groups, of which `a` has the better interquartile mean."""

    a: RunGroup
    b: RunGroup
    metric: Metric

    @cached_property
    def probability(self) -> float:
        """Probability that a run of `a` is better than one of `b`; a tie counts half."""
        return float(statistics.probability_of_improvement(*self._oriented))

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the probability; None if a group has fewer than two runs."""
        bounds = statistics.interval(statistics.probability_of_improvement, *self._oriented)
        return bounds and (float(bounds[0]), float(bounds[1]))

    @property
    def _oriented(self) -> tuple[list[float], list[float]]:
        sign = 1.0 if self.metric.higher_is_better else -1.0
        return [sign * v for v in self.a.values], [sign * v for v in self.b.values]

    @cached_property
    def paired(self) -> tuple[float, ...]:
        """Difference a - b for each seed that both groups have; empty if they share none, or one has a seed twice."""
        a, b = self.a.by_seed, self.b.by_seed
        if a is None or b is None:
            return ()
        return tuple(a[seed] - b[seed] for seed in sorted(a) if seed in b)

    @cached_property
    def difference(self) -> float | None:
        """Mean paired difference; None without pairs or with an infinite value."""
        return float(np.mean(self.paired)) if self.paired and all(map(math.isfinite, self.paired)) else None

    @cached_property
    def difference_interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of the mean paired difference; None with fewer than two pairs."""
        bounds = statistics.interval(statistics.mean, self.paired) if self.difference is not None else None
        return bounds and (float(bounds[0]), float(bounds[1]))

    @cached_property
    def signed_rank_p(self) -> float | None:
        """Two-sided p of Wilcoxon's signed-rank test over the pairs; None if there are too few."""
        return statistics.signed_rank_p(self.paired) if self.difference is not None else None

    @cached_property
    def rank_p(self) -> float:
        """Two-sided p of Mann and Whitney's rank test, for which the seeds do not matter."""
        return statistics.rank_p(self.a.values, self.b.values)

    @property
    def is_too_small(self) -> bool:
        """Whether even a complete separation of the groups would not be significant."""
        return statistics.smallest_rank_p(len(self.a.runs), len(self.b.runs)) > statistics.LEVEL

    @property
    def verdict(self) -> str:
        """Conclusion in words: one group is better, no difference is shown, or there are too few runs.

        The interval of few runs is too narrow, so a better group needs a rank test as well. Both compare all runs with
        all. Runs of equal seeds that score alike make this cautious.
        """
        if self.is_too_small or self.interval is None:
            return "too few runs to conclude"
        if self.rank_p <= statistics.LEVEL and (self.interval[0] > 0.5 or self.interval[1] < 0.5):
            return f"{(self.a if self.interval[0] > 0.5 else self.b).label} is better"
        return "no difference shown"

    @property
    def arithmetic(self) -> str:
        """Smallest p that so few runs can reach, in words; empty if there are enough runs."""
        n, m, pairs = len(self.a.runs), len(self.b.runs), len(self.paired)
        p = statistics.smallest_rank_p(n, m)
        ranks = f"with {n} and {m} runs a rank test cannot go below p = {p:.2g}"
        if pairs < 2:
            return ranks if self.is_too_small else ""
        sign = f"with n = {pairs} pairs a sign test cannot go below p = {statistics.smallest_sign_p(pairs):.3g}"
        if statistics.smallest_sign_p(pairs) <= statistics.LEVEL:
            return ranks if self.is_too_small else ""
        return f"{ranks}; {sign}" if self.is_too_small else sign

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "a": self.a.label,
            "b": self.b.label,
            "probability_of_improvement": self.probability,
            "probability_ci95": self.interval,
            "rank_p": self.rank_p,
            "pairs": len(self.paired),
            "paired_difference": self.difference,
            "paired_difference_ci95": self.difference_interval,
            "signed_rank_p": self.signed_rank_p,
            "smallest_rank_p": statistics.smallest_rank_p(len(self.a.runs), len(self.b.runs)),
            "verdict": self.verdict,
        }
