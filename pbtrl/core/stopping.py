"""Criteria that end a run."""

from __future__ import annotations

from dataclasses import dataclass

from pbtrl.core.population import Population

WALL_CLOCK = "wall clock"


@dataclass(frozen=True)
class StopCriteria:
    """Limits that end a run before the strategy does. None means no limit.

    Attributes:
        wall_clock: seconds, over all sessions of the run.
        total_steps: env steps of the whole population.
        until_fitness: a fitness; the run ends when a member reaches it.
        synchronous: once total_steps or until_fitness is reached, finish all slices under way, so that where a run ends
            does not depend on which member reports first.
        max_attempts: failures of an assignment, alone in its worker, after which it is given up and the strategy
            decides how to continue.
    """

    wall_clock: float | None = None
    total_steps: int | None = None
    until_fitness: float | None = None
    synchronous: bool = False
    max_attempts: int = 3

    def reached(self, population: Population, seconds: float) -> str | None:
        """Return the limit that is reached, in words, or None."""
        if self.wall_clock is not None and seconds >= self.wall_clock:
            return WALL_CLOCK
        if self.total_steps is not None and population.step >= self.total_steps:
            return "total steps"
        if self.until_fitness is not None:
            best = population.best
            if best and best.fitness is not None and best.fitness >= self.until_fitness:
                return "fitness reached"
        return None

    def finishes_slices(self, limit: str) -> bool:
        """Return whether the slices under way are trained to their end after a limit was reached."""
        return self.synchronous and limit != WALL_CLOCK
