"""Number of an episode that members are trained for, if it is not the return: `fitness.metric`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pbtrl.envs import Vector
from pbtrl.errors import ConfigProblem
from pbtrl.system.imports import import_own_object

INFO = "episode/info/"
MetricFunction = Callable[[float, int, Mapping[str, Any]], Any]


@dataclass(frozen=True)
class EpisodeMetric:
    """Measure of an episode.

    Attributes:
        text: `episode/info/KEY`, a number of the episode's last info; or `module:function`, called with the raw return,
            the length (env steps) and the last info.
        name: its name in tables and plots.
    """

    text: str
    name: str

    def __call__(self, vector: Vector, row: int, episode_return: float, length: int) -> float | None:
        """Measure the episode of env `row` that the last step ended; None if it has no such number."""
        info = vector.last_info(row)
        if self.text.startswith(INFO):
            value = info.get(self.text.removeprefix(INFO))
        else:
            value = self._function(episode_return, length, info)
        try:
            return None if value is None else float(value)  # also booleans, and scalars of NumPy and torch
        except (TypeError, ValueError):
            return None

    @property
    def tag(self) -> str:
        """Name among a member's metrics."""
        return f"episode/{self.name}"

    @cached_property
    def _function(self) -> MetricFunction:
        return import_metric(self.text)


def import_metric(text: str) -> MetricFunction:
    """Import the function of a metric `module:function`.

    Raises:
        ConfigProblem: it cannot be imported, or is no function.
    """
    try:
        function: MetricFunction = import_own_object(text)
    except ImportError as error:
        raise ConfigProblem(str(error), ("fitness", "metric")) from error
    if not callable(function):
        raise ConfigProblem(f"{text} is not a function", ("fitness", "metric"))
    return function
