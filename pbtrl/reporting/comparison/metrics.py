"""Metrics by which runs are compared: one number per run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from pbtrl.config.wording import did_you_mean, shown
from pbtrl.errors import RunError
from pbtrl.reporting.comparison.runs import ComparedRun
from pbtrl.reporting.formatting import format_value
from pbtrl.reporting.tables import scored_on

METRICS = {
    "score": "{metric} of the chosen member {data}",
    "fitness": "best training fitness ({metric})",
    "median": "final median of the population's fitness ({metric})",
    "steps_to": "total {steps} until the re-evaluated {metric} of the best member reaches {target}",
}


@dataclass(frozen=True)
class Metric:
    """Metric of a comparison.

    Attributes:
        name: one of METRICS.
        target: score to reach, with `steps_to`.
        title: description in words.
        unit: unit of its values in words.
    """

    name: str
    target: float = math.nan
    title: str = ""
    unit: str = ""

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Parse `score`, `fitness`, `median` or `steps_to=VALUE`.

        Raises:
            RunError: there is no such metric.
        """
        name, equals, value = text.partition("=")
        if name not in METRICS or bool(equals) != (name == "steps_to"):
            known = ("score", "fitness", "median", "steps_to=VALUE")
            hint = did_you_mean(name, known[:3]) if name not in METRICS else ""
            hint = "Did you mean 'steps_to=VALUE'?" if not hint and did_you_mean(name, ["steps_to"]) else hint
            raise RunError(f"unknown metric {shown(text)}. {hint or 'Known: ' + ', '.join(known)}")
        try:
            target = float(value) if equals else math.nan
        except ValueError:
            target = math.inf
        if math.isinf(target) or (equals and math.isnan(target)):
            raise RunError(f"steps_to needs a number, as in steps_to=400, not {shown(value)}")
        return cls(name, target)

    @property
    def text(self) -> str:
        """As on the command line."""
        return f"steps_to={format_value(self.target)}" if self.name == "steps_to" else self.name

    @property
    def higher_is_better(self) -> bool:
        """Whether more is better."""
        return self.name != "steps_to"

    @property
    def bias(self) -> str:
        """Bias of the metric, in words; empty if it has none."""
        if self.name == "fitness":
            return "training fitness is the largest of many noisy numbers, so it is biased upwards: prefer score"
        return ""

    def titled(self, run: ComparedRun) -> Metric:
        """Return the metric with the title and unit that it has for this run and its like."""
        metric = "mean return" if run.metric == "return" else run.metric
        data = scored_on(run.header.unit, held_out=run.held_out)
        words: dict[str, Any] = {"metric": metric, "data": data}
        words |= {"steps": run.header.steps, "target": format_value(self.target)}
        unit = words["steps"] if self.name == "steps_to" else metric
        return replace(self, title=METRICS[self.name].format(**words), unit=unit)

    def value(self, run: ComparedRun) -> float | None:
        """Value of a finished run; None if it has none, infinity if a target was not reached."""
        if self.name == "steps_to":
            return run.curves.best.steps_to(self.target)
        if self.name == "median":
            return run.curves.final_median
        return run.score if self.name == "score" else run.fitness
