"""Settings of population based training."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from typing_extensions import override

from pbtrl.errors import ConfigProblem
from pbtrl.strategies.rules import Exploit, Explore, GrowingReady
from pbtrl.strategies.settings import StrategyContext, StrategySettings

if TYPE_CHECKING:
    from pbtrl.strategies import Strategy


def exploit_problems(exploit: Exploit, config: Any) -> Iterator[ConfigProblem]:
    """Yield mistakes between the exploit rule, the fitness and the population."""
    where = ("strategy", "exploit")
    if exploit.bottom + exploit.top > 1.0:
        text = f"bottom {exploit.bottom:g} and top {exploit.top:g} are more than the whole population"
        yield ConfigProblem(text, (*where, "bottom"), (*where, "top"))
    if exploit.method == "t_test":
        yield from _t_test_problems(exploit, config)
    if exploit.across_agents and config.population.mix is None:
        text = "needs several agents, which population.mix counts"
        yield ConfigProblem(text, (*where, "across_agents"), ("population", "mix"))


def _t_test_problems(exploit: Exploit, config: Any) -> Iterator[ConfigProblem]:
    """Yield what leaves a member without the two episodes that a variance needs."""
    where = ("strategy", "exploit", "method")
    if config.env is None:
        text = "t_test compares episodes, and a trainable has one fitness: use truncation or binary_tournament"
        yield ConfigProblem(text, where, ("trainable",))
        return
    if exploit.episodes < 2:
        yield ConfigProblem("t_test needs at least 2 episodes, not 1", ("strategy", "exploit", "episodes"), where)
    key = "episodes" if config.fitness.source == "evaluation" else "window_episodes"
    if getattr(config.fitness, key) < 2:
        yield ConfigProblem("t_test needs at least 2 episodes of each member, not 1", ("fitness", key), where)


def pbt_arguments(context: StrategyContext) -> dict[str, Any]:
    """Return what all kinds of PBT take from the context."""
    return {
        "space": context.space,
        "slice_steps": context.slice_steps,
        "horizon": context.horizon,
        "burn_in": context.burn_in,
        "synchronous": context.synchronous,
        "references": context.references,
    }


@dataclass(frozen=True, kw_only=True)
class PBTSettings(StrategySettings):
    """Settings of population based training. `copy` holds the parts of a donor that are copied."""

    name: Literal["pbt"] = "pbt"
    ready: GrowingReady = field(default_factory=GrowingReady)
    exploit: Exploit = field(default_factory=Exploit)
    explore: Explore = field(default_factory=Explore)
    copy: Annotated[tuple[Literal["weights", "hparams"], ...], Field(min_length=1)] = ("weights", "hparams")

    @property
    @override
    def explores(self) -> bool:
        """True unless the explore method is `none`."""
        return self.explore.method != "none"

    @property
    @override
    def retires_on_request(self) -> bool:
        """True: members that are retired get no assignment, and are not compared with."""
        return True

    @property
    @override
    def copies(self) -> bool:
        """True unless the exploit method is `none`."""
        return self.exploit.method != "none"

    @override
    def validate(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield mistakes between the rules, the fitness and the population."""
        yield from exploit_problems(self.exploit, config)
        if len(set(self.copy)) != len(self.copy):
            yield ConfigProblem("names the same thing twice", ("strategy", "copy"))
        if self.exploit.across_agents and {"weights", "hparams"} - set(self.copy):
            text = "needs copy: [weights, hparams], because another agent can use neither without the other"
            yield ConfigProblem(text, ("strategy", "exploit", "across_agents"), ("strategy", "copy"))

    @override
    def warnings(self, config: Any) -> Iterator[str]:
        """Yield the members of a mix that have no other one to copy."""
        if not self.copies or self.exploit.across_agents:
            return
        for name in (name for name, count in (config.population.mix or {}).items() if count == 1):
            yield (
                f"population.mix has one {name}, which has no other member to copy "
                "without strategy.exploit.across_agents"
            )

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        from pbtrl.strategies.pbt import PBT

        return PBT(
            **pbt_arguments(context),
            exploit=self.exploit,
            explore=self.explore,
            copy=frozenset(self.copy),
            grow=self.ready.grow,
            patience=self.ready.patience,
        )
