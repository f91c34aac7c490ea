"""Settings of the variants of population based training: PB2 and MF-PBT."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from typing_extensions import override

from pbtrl.core.dimensions import Choice
from pbtrl.core.naming import member_ids
from pbtrl.core.values import Real, Whole
from pbtrl.errors import ConfigProblem
from pbtrl.strategies.pbt_settings import exploit_problems, pbt_arguments
from pbtrl.strategies.rules import Count, Exploit, Explore, Fraction
from pbtrl.strategies.settings import StrategyContext, StrategySettings

if TYPE_CHECKING:
    from pbtrl.strategies import Strategy


@dataclass(frozen=True, kw_only=True)
class PB2Exploit(Exploit):
    """Exploit rule of PB2: truncation of a quarter, unless configured otherwise. Without copies there is no PB2."""

    method: Literal["truncation", "t_test", "binary_tournament"] = "truncation"
    bottom: Fraction = 0.25
    top: Fraction = 0.25


@dataclass(frozen=True, kw_only=True)
class PB2Settings(StrategySettings):
    """Settings of PB2.

    Attributes:
        exploit: rule for copies; those that copy get their hyperparameters from the model.
        time: the model counts time in slices (`rounds`), or scales it to [0, 1] (`normalized`) as the authors' code.
        spread: the upper confidence bound adds the standard deviation (`sd`), or the `variance` as the authors' code.
        window: number of latest slices that the model is fitted to.
    """

    name: Literal["pb2"] = "pb2"
    exploit: PB2Exploit = field(default_factory=PB2Exploit)
    time: Literal["rounds", "normalized"] = "rounds"
    spread: Literal["sd", "variance"] = "sd"
    window: Annotated[Whole, Field(ge=1, le=1000)] = 200

    @override
    def validate(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield mistakes between the rules, the fitness, the population and the search space."""
        yield from exploit_problems(self.exploit, config)
        searched: dict[tuple[str, ...], Any] = {("hparams",): config.hparams}
        searched |= {("agents", name, "hparams"): entry.hparams for name, entry in (config.agents or {}).items()}
        for path, hparams in searched.items():
            for name, dimension in hparams.items():
                if not isinstance(dimension, Choice) and dimension.bounds == "none":
                    text = "pb2 scales hyperparameters by their bounds: give [low, high], or remove bounds: none"
                    yield ConfigProblem(text, (*path, name, "bounds"), ("strategy", "name"))
        for name, agent_config in (config.per_agent_configs or {None: config}).items():
            if all(isinstance(dimension, Choice) for dimension in agent_config.hparams.values()):
                of = "" if name is None else f" of {name}"
                text = f"pb2 needs a searched hyperparameter{of} that is a number, not a choice"
                yield ConfigProblem(text, ("strategy", "name"), ("hparams",))

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        from pbtrl.strategies.pb2 import PB2

        return PB2(
            **pbt_arguments(context),
            exploit=self.exploit,
            time=self.time,
            spread=self.spread,
            window=self.window,
        )


@dataclass(frozen=True, kw_only=True)
class MFPBTExplore(Explore):
    """Explore rule of MF-PBT. With `none` the initial hyperparameters compete: the paper's variance exploitation."""

    factors: Annotated[tuple[Annotated[Real, Field(gt=0)], ...], Field(min_length=1)] = (0.8, 1.25)
    when: Literal["after_copy"] = "after_copy"


@dataclass(frozen=True, kw_only=True)
class MFPBTSettings(StrategySettings):
    """Settings of MF-PBT.

    Attributes:
        explore: rule for changes of hyperparameters after a copy inside a sub-population.
        frequencies: for each sub-population, the rounds from one evolution to the next; a round is a slice. The paper
            has 1, 10, 25 and 50, with 1,000 rounds.
    """

    name: Literal["mf_pbt"] = "mf_pbt"
    explore: MFPBTExplore = field(default_factory=MFPBTExplore)
    frequencies: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 5)

    @property
    @override
    def explores(self) -> bool:
        """True unless the explore method is `none`."""
        return self.explore.method != "none"

    @override
    def roles(self, size: int) -> dict[str, str]:
        """Return the sub-population of each member: `p1` for the first ones, and so on."""
        each = size // len(self.frequencies)
        return {name: f"p{1 + place // each}" for place, name in enumerate(member_ids(size))}

    @override
    def validate(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield mistakes between the frequencies, the population and the budget."""
        population, key = config.population, ("strategy", "frequencies")
        size, count = population.size, len(self.frequencies)
        if population.mode != "sync":
            text = "mf_pbt ranks all members of a round together: set population.mode: sync"
            yield ConfigProblem(text, ("population", "mode"), ("strategy", "name"))
        if population.mix is not None:
            text = "mf_pbt compares all members, so it cannot train a mix"
            yield ConfigProblem(text, ("population", "mix"), ("strategy", "name"))
        if population.reference_members:
            text = "mf_pbt has no reference members"
            yield ConfigProblem(text, ("population", "reference_members"), ("strategy", "name"))
        if size % count:
            text = f"size {size} cannot be divided into {count} sub-populations, one for each of strategy.frequencies"
            yield ConfigProblem(text, ("population", "size"), key)
        elif size // count % 4:
            text = f"sub-populations of {size} / {count} = {size // count} members cannot be divided into quarters"
            yield ConfigProblem(f"{text}: size must be a multiple of {4 * count}", ("population", "size"), key)
        steps, slice_steps = config.steps_per_member, config.slice_steps
        rounds = math.ceil(steps / slice_steps)
        for place, frequency in enumerate(self.frequencies):
            if 4 * frequency > rounds:
                text = f"frequency {frequency} is more than a quarter of the rounds, {rounds} / 4 = {rounds / 4:g}"
                text += f" ({steps:,} steps in slices of {slice_steps:,}): most members would hardly evolve"
                yield ConfigProblem(text, (*key, place), ("strategy", "ready", "slice_steps"))

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        from pbtrl.strategies.mf_pbt import MFPBT

        return MFPBT(
            **pbt_arguments(context),
            explore=self.explore,
            frequencies={f"p{1 + place}": frequency for place, frequency in enumerate(self.frequencies)},
        )
