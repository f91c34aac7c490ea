"""Replay of a schedule: every member trains from fresh weights along the same given hyperparameters, with its own seed.

PBT discovers a schedule by selection, so its score also contains the luck of the selected weights. The same schedule
trained from scratch with several seeds shows what the schedule alone is worth.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from typing_extensions import override

from pbtrl.core.member import Member
from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.population import Population
from pbtrl.strategies import Strategy
from pbtrl.strategies.assigning import assign, next_stop


@dataclass(frozen=True, kw_only=True)
class ScheduleReplay(Strategy):
    """Strategy that trains along a schedule and never copies. A member that diverged or was given up is retired.

    Attributes:
        schedule: pairs of a member's step and the hyperparameters from there on; the steps begin at 0 and increase.
        slice_steps: env steps of a member between two decisions. A slice also ends where the schedule changes.
        horizon: budget of a member (env steps).
    """

    schedule: Sequence[tuple[int, Hyperparameters]]
    slice_steps: int
    horizon: int

    @override
    def decide(self, population: Population) -> list[Assignment]:
        """Return assignments for all members without one."""
        members = population.members.values()
        waiting = [m for m in members if m.healthy and not m.pending and m.step < self.horizon]
        return [self._next(population, m) for m in waiting]

    @override
    def retired(self, population: Population) -> list[str]:
        """Return the members that failed."""
        return [m.id for m in population.members.values() if not m.healthy]

    def _next(self, population: Population, member: Member) -> Assignment:
        changes = [step for step, _ in self.schedule if step > member.step]
        _, values = self.schedule[len(self.schedule) - len(changes) - 1]
        stop = min([next_stop(member.step, self.slice_steps, self.horizon), *changes])
        return assign(population, member, member.snapshot, values, stop)
