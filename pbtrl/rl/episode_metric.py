"""Number of an episode that members are trained for, if it is not the return: `fitness.metric`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pbtrl.envs import Vector
from pbtrl.system.imports import import_own_object

INFO = "episode/info/"


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
    def _function(self) -> Callable[[float, int, Mapping[str, Any]], Any]:
        function: Callable[[float, int, Mapping[str, Any]], Any] = import_own_object(self.text)
        return function
