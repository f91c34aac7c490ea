"""Construction of assignments, the same for all strategies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pbtrl.core.member import Member
from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.population import Population
from pbtrl.strategies import Strategy


def decide(strategy: Strategy, population: Population) -> list[Assignment]:
    """Ask a strategy for its decision; members without a parent load the run's initial snapshot, if it has one."""
    decided = strategy.decide(population)
    return [replace(a, parent=population.initial) if a.parent is None else a for a in decided]


def assign(
    population: Population, member: Member, parent: str | None, values: Hyperparameters, stop: int, *,
    donor: str | None = None, note: str = "", hparams_donor: str | None = None, inherit: bool = False,
    scalars: Mapping[str, float] | None = None,
) -> Assignment:  # fmt: skip
    """Make the next assignment of a member, from where its clock stands to `stop`; see `Assignment`."""
    generation = member.generation + 1
    return Assignment(
        id=f"{member.id}/{generation:06d}",
        member=member.id,
        parent=parent,
        start=member.step,
        stop=stop,
        hyperparameters=dict(values),
        seed=population.slice_seed(member.id, generation),
        donor=donor,
        note=note,
        hparams_donor=hparams_donor,
        inherit=inherit,
        scalars=dict(scalars or {}),
    )


def next_stop(step: int, slice_steps: int, horizon: int) -> int:
    """Return the next multiple of the slice length after `step`, or the horizon if that comes first."""
    return min(horizon, (step // slice_steps + 1) * slice_steps)
