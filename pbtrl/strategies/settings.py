"""Settings of strategies: config keys, their checks, and the construction of the strategy.

Settings are frozen dataclasses that do not import the strategies, so that mistakes are reported at once. A strategy of
your own needs one more class like these; see docs/own-strategy.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.errors import ConfigProblem
from pbtrl.strategies.rules import Exploit, Explore, Ready, _Section

if TYPE_CHECKING:
    from pbtrl.strategies import Strategy


@dataclass(frozen=True)
class StrategyContext:
    """Inputs of a strategy besides its own settings.

    Attributes:
        space: search space, of one agent or of each agent of a mix.
        slice_steps: env steps between two decisions about a member, in whole blocks.
        horizon: budget of a member (env steps).
        burn_in: env steps before the first exploit, in whole blocks.
        synchronous: decide for a whole generation at once.
        references: number of members, the first ones, that never receive a copy.
    """

    space: SearchSpace | MixedSearchSpace
    slice_steps: int
    horizon: int
    burn_in: int
    synchronous: bool
    references: int


@dataclass(frozen=True, kw_only=True)
class StrategySettings(_Section):
    """Base of every strategy's settings.

    Attributes:
        name: name of the strategy in a config.
        ready: times at which the strategy decides about a member.
    """

    name: str
    ready: Ready = field(default_factory=Ready)

    @property
    def explores(self) -> bool:
        """True if hyperparameters of a member may change, and so reach a bound."""
        return True

    @property
    def copies(self) -> bool:
        """True if members may copy each other."""
        return True

    @property
    def trials(self) -> bool:
        """True if members are trials that come and go.

        Then `population.size` is the number of members that train at once, and `budget.total_steps` ends the run but is
        not shared among the members.
        """
        return False

    def slice_steps(self, steps_per_member: int) -> int:
        """Return the env steps of a slice, before rounding to whole blocks; by default a 25th of the budget."""
        return self.ready.slice_steps or math.ceil(steps_per_member / 25)

    def curve_interval(self, slice_steps: int) -> int:
        """Return the default of `fitness.curve_interval`, before rounding to whole blocks: one point per slice."""
        return slice_steps

    def roles(self, size: int) -> dict[str, str]:
        """Return the role of each member by its id, for a strategy that has roles."""
        return {}

    @property
    def candidate_roles(self) -> tuple[str, ...]:
        """Roles whose members are candidates for the best; empty for all members."""
        return ()

    def total_steps(self, config: Any) -> int | None:
        """Return the env steps of the whole run, if they are not the population's size times a member's budget.

        `config` is the whole `Config`.
        """
        return None

    def validate(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield mistakes between settings that are valid one by one; `config` is the whole `Config`."""
        yield from ()

    def build(self, context: StrategyContext) -> "Strategy":
        """Make the strategy."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PBTSettings(StrategySettings):
    """Settings of population based training. `copy` holds the parts of a donor that are copied."""

    name: Literal["pbt"] = "pbt"
    exploit: Exploit = field(default_factory=Exploit)
    explore: Explore = field(default_factory=Explore)
    copy: Annotated[tuple[Literal["weights", "hparams"], ...], Field(min_length=1)] = ("weights", "hparams")

    @property
    def explores(self) -> bool:
        """True unless the explore method is `none`."""
        return self.explore.method != "none"

    @property
    def copies(self) -> bool:
        """True unless the exploit method is `none`."""
        return self.exploit.method != "none"

    def validate(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield mistakes between the rules, the fitness and the population."""
        exploit, fitness = self.exploit, config.fitness
        where = ("strategy", "exploit")
        if exploit.bottom + exploit.top > 1.0:
            text = f"bottom {exploit.bottom:g} and top {exploit.top:g} are more than the whole population"
            yield ConfigProblem(text, (*where, "bottom"), (*where, "top"))
        if exploit.method == "t_test" and exploit.episodes < 2:
            yield ConfigProblem("t_test needs at least 2 episodes, not 1", (*where, "episodes"), (*where, "method"))
        if exploit.method == "t_test" and fitness.source == "evaluation" and fitness.episodes < 2:
            text = "t_test needs at least 2 episodes of each member, not 1"
            yield ConfigProblem(text, ("fitness", "episodes"), (*where, "method"))
        if len(set(self.copy)) != len(self.copy):
            yield ConfigProblem("names the same thing twice", ("strategy", "copy"))
        across = (*where, "across_agents")
        if exploit.across_agents and config.population.mix is None:
            yield ConfigProblem("needs several agents, which population.mix counts", across, ("population", "mix"))
        if exploit.across_agents and {"weights", "hparams"} - set(self.copy):
            text = "needs copy: [weights, hparams], because another agent can use neither without the other"
            yield ConfigProblem(text, across, ("strategy", "copy"))

    def build(self, context: StrategyContext) -> "Strategy":
        """Make PBT with these rules."""
        from pbtrl.strategies.pbt import PBT

        return PBT(
            space=context.space,
            slice_steps=context.slice_steps,
            horizon=context.horizon,
            burn_in=context.burn_in,
            exploit=self.exploit,
            explore=self.explore,
            copy=frozenset(self.copy),
            synchronous=context.synchronous,
            references=context.references,
        )


@dataclass(frozen=True, kw_only=True)
class RandomSearchSettings(StrategySettings):
    """Settings of random search, the baseline: members keep their initial hyperparameters."""

    name: Literal["random_search"] = "random_search"

    @property
    def explores(self) -> bool:
        """False: hyperparameters never change."""
        return False

    @property
    def copies(self) -> bool:
        """False: members never copy."""
        return False

    def build(self, context: StrategyContext) -> "Strategy":
        """Make random search."""
        from pbtrl.strategies.random_search import random_search

        return random_search(context.space, slice_steps=context.slice_steps, horizon=context.horizon)


STRATEGIES: dict[str, type[StrategySettings]] = {"pbt": PBTSettings, "random_search": RandomSearchSettings}
