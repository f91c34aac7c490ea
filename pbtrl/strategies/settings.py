"""Base of the settings of strategies: config keys, their checks, and the construction of the strategy.

Settings are frozen dataclasses that do not import the strategies, so that mistakes are reported at once. A strategy of
your own needs one more class like those in catalog.py; see docs/own-strategy.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.errors import ConfigProblem
from pbtrl.strategies.rules import Ready, SettingsSection

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
        curve_interval: env steps between two points of a fitness curve, in whole blocks.
        block: env steps of a member between two updates; every slice is whole blocks.
    """

    space: SearchSpace | MixedSearchSpace
    slice_steps: int
    horizon: int
    burn_in: int
    synchronous: bool
    references: int
    curve_interval: int
    block: int = 1

    def round_to_block(self, steps: int) -> int:
        """Round steps up to whole blocks."""
        return -(-steps // self.block) * self.block


@dataclass(frozen=True, kw_only=True)
class StrategySettings(SettingsSection):
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
    def retires_on_request(self) -> bool:
        """True if `pbtrl set RUN retire=MEMBER` may retire members: the strategy leaves out those that are retired."""
        return False

    @property
    def runs_trials(self) -> bool:
        """True if members are trials that come and go.

        Then `population.size` is the number of members that train at once, and `budget.total_steps` ends the run but is
        not shared among the members.
        """
        return False

    def count_trials(self, config: Any) -> int | None:
        """Return the number of trials of the whole run; None if it is unknown. `config` is the whole `Config`."""
        return None

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
        """Yield mistakes between settings that are valid one by one; `config` is the whole `Config`, with a budget."""
        yield from ()

    def warnings(self, config: Any) -> Iterator[str]:
        """Yield a line for each setting that can run but is probably a mistake; `config` is the whole `Config`."""
        yield from ()

    def build(self, context: StrategyContext) -> "Strategy":
        """Make the strategy."""
        raise NotImplementedError
