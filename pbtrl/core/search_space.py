"""The search space of one agent, and of a population of several agents."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from typing_extensions import override

from pbtrl.core.dimensions import AGENT, Dimension
from pbtrl.core.values import Value

if TYPE_CHECKING:  # only annotations need numpy; without its import config errors appear faster
    import numpy as np


class SearchSpace(Mapping[str, Dimension]):
    """An ordered, immutable mapping from a hyperparameter's name to its dimension.

    Attributes:
        agent: in a mixed population, the agent of this space; samples then contain it.
    """

    def __init__(self, dimensions: Mapping[str, Dimension], agent: str | None = None) -> None:
        self._dimensions = dict(dimensions)
        self.agent = agent

    @override
    def __getitem__(self, name: str) -> Dimension:
        return self._dimensions[name]

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._dimensions)

    @override
    def __len__(self) -> int:
        return len(self._dimensions)

    @override
    def __hash__(self) -> int:
        return hash(tuple(self._dimensions.items()))

    @override
    def __repr__(self) -> str:
        return f"SearchSpace({self._dimensions!r})"

    @property
    def names(self) -> tuple[str, ...]:
        """Hyperparameter names in the order of the config."""
        return tuple(self._dimensions)

    def sample(self, rng: "np.random.Generator") -> dict[str, Value]:
        """Draw every dimension from its prior, in order."""
        return self.labeled({name: dimension.sample(rng) for name, dimension in self.items()})

    def labeled(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Add the agent of a mixed population to its hyperparameters."""
        return dict(values) if self.agent is None else {AGENT: self.agent, **values}

    @property
    def parts(self) -> "list[SearchSpace]":
        """Search space of each agent: this one alone."""
        return [self]

    def initial_space(self, place: int) -> Self:
        """Initial space of the member at index `place`: this one for all members."""
        return self

    def of(self, values: Mapping[str, Value]) -> Self:
        """Space of a member's hyperparameters: this one."""
        return self

    def clip(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Clip every value to its dimension's limits."""
        return {name: dimension.clip(values[name]) for name, dimension in self.items()}

    def contains(self, values: Mapping[str, Value]) -> bool:
        """Return whether every dimension has a value inside its limits."""
        return all(name in values and dimension.contains(values[name]) for name, dimension in self.items())


@dataclass(frozen=True)
class MixedSearchSpace:
    """Search spaces of a mixed population.

    Attributes:
        spaces: search space of each agent, by the agent's name.
        counts: initial number of members of each agent; member indices are assigned in this order.
    """

    spaces: Mapping[str, SearchSpace]
    counts: Mapping[str, int]

    @override
    def __hash__(self) -> int:
        return hash((frozenset(self.spaces.items()), frozenset(self.counts.items())))

    @property
    def names(self) -> tuple[str, ...]:
        """Hyperparameter names of all agents, without duplicates, in the order of the config."""
        return tuple(dict.fromkeys(name for agent in self.counts for name in self.spaces[agent]))

    @property
    def parts(self) -> list[SearchSpace]:
        """Search space of each agent."""
        return list(self.spaces.values())

    def initial_space(self, place: int) -> SearchSpace:
        """Initial space of the member at index `place`."""
        agents = [agent for agent, count in self.counts.items() for _ in range(count)]
        return self.spaces[agents[place]]

    def of(self, values: Mapping[str, Value]) -> SearchSpace:
        """Space of a member's hyperparameters, chosen by their `agent`."""
        return self.spaces[str(values[AGENT])]
