"""The search space of one agent, and of a population of several agents."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:  # the annotations alone need numpy, and config errors are quicker without it
    import numpy as np
from pbtrl.core.dimensions import AGENT, Dimension, Value


class SearchSpace(Mapping[str, Dimension]):
    """An ordered, immutable mapping from a hyperparameter's name to its dimension.

    Attributes:
        agent: whose members are searched for here, in a population of several agents; what is drawn then names it.
    """

    def __init__(self, dimensions: Mapping[str, Dimension], agent: str | None = None) -> None:
        self._dimensions = dict(dimensions)
        self.agent = agent

    def __getitem__(self, name: str) -> Dimension:
        return self._dimensions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._dimensions)

    def __len__(self) -> int:
        return len(self._dimensions)

    def __hash__(self) -> int:
        return hash(tuple(self._dimensions.items()))

    def __repr__(self) -> str:
        return f"SearchSpace({self._dimensions!r})"

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the order of the config."""
        return tuple(self._dimensions)

    def sample(self, rng: "np.random.Generator") -> dict[str, Value]:
        """Draw every dimension from its prior, in order."""
        drawn = {name: dimension.sample(rng) for name, dimension in self.items()}
        return drawn if self.agent is None else {AGENT: self.agent, **drawn}

    def initial_space(self, place: int) -> Self:
        """Where the member at a place in the population begins: here, as all of them."""
        return self

    def of(self, values: Mapping[str, Value]) -> Self:
        """The space that a member's hyperparameters are from: this one."""
        return self

    def clip(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Every named value moved inside its dimension's limits."""
        return {name: dimension.clip(values[name]) for name, dimension in self.items()}

    def contains(self, values: Mapping[str, Value]) -> bool:
        """Whether every dimension has a value, inside its limits."""
        return all(name in values and dimension.contains(values[name]) for name, dimension in self.items())


@dataclass(frozen=True)
class MixedSearchSpace:
    """The search spaces of a population of several agents.

    Attributes:
        spaces: one for each agent, by its name.
        counts: how many members begin with each; they are dealt to the agents in this order.
    """

    spaces: Mapping[str, SearchSpace]
    counts: Mapping[str, int]

    @property
    def names(self) -> tuple[str, ...]:
        """Whatever is searched for any of the agents, in the order of the config."""
        return tuple(dict.fromkeys(name for agent in self.counts for name in self.spaces[agent]))

    def initial_space(self, place: int) -> SearchSpace:
        """Where the member at a place in the population begins."""
        agents = [agent for agent, count in self.counts.items() for _ in range(count)]
        return self.spaces[agents[place]]

    def of(self, values: Mapping[str, Value]) -> SearchSpace:
        """The space that a member's hyperparameters are from."""
        return self.spaces[str(values[AGENT])]
