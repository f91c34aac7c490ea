"""Constant hyperparameters, the same for every member: the variance between seeds, to judge a search by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pbtrl.core.member import Member
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.population import Population
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.core.values import Value
from pbtrl.strategies.trials import IndependentTrials, space_of


@dataclass(frozen=True)
class FixedValues:
    """The same values for every trial.

    Attributes:
        values: values by name; hyperparameters that are not named have the middle of their prior.
    """

    space: SearchSpace | MixedSearchSpace
    values: Mapping[str, Value] = field(default_factory=dict)

    def __call__(self, population: Population, member: Member, proposed: Sequence[Hyperparameters]) -> Hyperparameters:
        """Return the values."""
        space = space_of(self.space, population, member)
        values = {
            n: d.clip(self.values[n]) if n in self.values else d.from_unit(0.5, of_prior=True) for n, d in space.items()
        }
        return space.labeled(values)


def fixed(
    space: SearchSpace | MixedSearchSpace, values: Mapping[str, Value], *, trials: int | None = None, slice_steps: int,
    horizon: int, synchronous: bool = False,
) -> IndependentTrials:  # fmt: skip
    """Make a strategy that trains `trials` seeds of one setting, by default one per member."""
    return IndependentTrials(
        propose=FixedValues(space, values),
        count=trials,
        slice_steps=slice_steps,
        horizon=horizon,
        synchronous=synchronous,
    )
