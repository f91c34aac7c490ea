"""Fitness curve of a member since its last copy, with a bounded number of points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

MAX_POINTS = 256  # points of a curve


@dataclass
class Curve:
    """Points of a fitness curve; beyond MAX_POINTS every second one is dropped.

    Attributes:
        start: the member's clock at the start of the curve (env steps).
        points: (steps since the start, value); the value is None if it is not finite.
        stride: only every `stride`-th point is kept.
        seen: number of points that were added.
    """

    start: int = 0
    points: list[tuple[int, float | None]] = field(default_factory=list)
    stride: int = 1
    seen: int = 0

    def extend(self, points: Iterable[tuple[int, float | None]]) -> None:
        """Add points, whose steps are on the member's clock."""
        for step, value in points:
            self.seen += 1
            if self.seen % self.stride == 0:
                self.points.append((step - self.start, value))
            if len(self.points) >= MAX_POINTS:
                self.points, self.stride = self.points[1::2], 2 * self.stride

    def moved(self, steps: int) -> Curve:
        """Return a copy on a clock that is `steps` ahead."""
        return replace(self, start=self.start + steps, points=list(self.points))
