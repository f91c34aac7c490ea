"""Grid search: the Cartesian product of points on each dimension, in a random order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from pbtrl.core.dimensions import Choice, Dimension
from pbtrl.core.member import Member
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.population import Population
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.core.values import Value
from pbtrl.strategies.trials import IndependentTrials


def points(dimension: Dimension, count: int) -> list[Value]:
    """Return `count` points of a dimension at equal distances on its own scale, with both ends; a single one is its
    middle. Choices have all their values, and integers no point twice.
    """
    if isinstance(dimension, Choice):
        return list(dimension.values)
    fractions = [0.5] if count == 1 else [i / (count - 1) for i in range(count)]
    return list(dict.fromkeys(dimension.from_unit(fraction, of_prior=True) for fraction in fractions))


def grid_size(space: SearchSpace | MixedSearchSpace, count: int) -> tuple[int, str]:
    """Return the number of points of the grid, and the product in words: `5 x 5 x 3`."""
    axes = [[len(points(dimension, count)) for dimension in one.values()] for one in space.parts]
    return sum(map(math.prod, axes)), " + ".join(" x ".join(map(str, lengths)) or "1" for lengths in axes)


@dataclass(frozen=True)
class Grid:
    """Points of a grid, in an order drawn from the run's seed, so that any prefix of it covers the space.

    Attributes:
        space: the searched hyperparameters; in a mixed population every agent has a grid of its own.
        points: number of points per dimension.
    """

    space: SearchSpace | MixedSearchSpace
    points: int

    @cached_property
    def cells(self) -> list[Hyperparameters]:
        """Every point of the grid; the first dimension changes slowest."""
        return [
            one.labeled(dict(zip(one, values, strict=True)))
            for one in self.space.parts
            for values in itertools.product(*(points(dimension, self.points) for dimension in one.values()))
        ]

    def __call__(self, population: Population, member: Member, proposed: Sequence[Hyperparameters]) -> Hyperparameters:
        """Return the point of a trial."""
        order = population.rng("m00", 0, "grid").permutation(len(self.cells))
        return dict(self.cells[order[member.place]])


def grid(
    space: SearchSpace | MixedSearchSpace, *, points: int, slice_steps: int, horizon: int, synchronous: bool = False
) -> IndependentTrials:
    """Make a grid search whose trials all train to the horizon."""
    cells = Grid(space, points)
    return IndependentTrials(
        propose=cells, count=len(cells.cells), slice_steps=slice_steps, horizon=horizon, synchronous=synchronous
    )
