"""Criteria that end a run."""

from __future__ import annotations

from dataclasses import dataclass

from pbtrl.core.population import Population


@dataclass(frozen=True)
class StopCriteria:
    """What ends a run besides the strategy. None means no limit.

    Attributes:
        wall_clock: seconds of this and earlier sittings.
        total_steps: env steps of the whole population.
        until_fitness: a member's fitness that is enough.
        max_attempts: failures of an assignment that is alone in its worker, after which the member is given up and the
            strategy decides.
    """

    wall_clock: float | None = None
    total_steps: int | None = None
    until_fitness: float | None = None
    max_attempts: int = 3

    def reached(self, population: Population, seconds: float) -> str | None:
        """Why the run should end now, or None."""
        best = population.best
        if self.wall_clock is not None and seconds >= self.wall_clock:
            return "wall clock"
        if self.total_steps is not None and population.step >= self.total_steps:
            return "total steps"
        if self.until_fitness is not None and best and best.fitness is not None and best.fitness >= self.until_fitness:
            return "fitness reached"
        return None
