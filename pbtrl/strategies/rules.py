"""Settings of the rules of strategies: when a member is ready, how it exploits and how it explores."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pbtrl.core.values import MAX_COUNT, Real, Whole

Count = Annotated[Whole, Field(ge=1, le=MAX_COUNT)]
Fraction = Annotated[Real, Field(gt=0, le=1)]
Probability = Annotated[Real, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class SettingsSection:
    """Part of a strategy's settings; unknown keys are refused."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class Ready(SettingsSection):
    """Times at which the strategy decides about a member.

    Attributes:
        slice_steps: env steps of a member between two decisions, called a slice; by default a 25th of its budget.
        burn_in: env steps before the first exploit.
    """

    slice_steps: Count | None = None
    burn_in: Annotated[Whole, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True)
class GrowingReady(Ready):
    """Times at which PBT decides about a member.

    Attributes:
        grow: factor by which the interval between two exploits of a member grows whenever the best fitness stagnates; 1
            keeps it at one slice. Slices keep their length.
        patience: intervals without a record of the smoothed best fitness that count as stagnation.
    """

    grow: Count = 1
    patience: Count = 3


@dataclass(frozen=True, kw_only=True)
class Exploit(SettingsSection):
    """Rule for copies between members.

    Attributes:
        method: `truncation` (the bottom copies from the top), `t_test` (Welch's test against a random other member),
            `binary_tournament`, or `none`.
        bottom: fraction of the population that copies; at least one member.
        top: fraction of the population that is copied; at least one member.
        ties: result of a tournament between equal members: decided at `random`, or always a `copy`. Truncation ranks
            equal members at random.
        min_gap: fitness by which a donor must be ahead, exclusive (IMPALA: 5); 0 requires no gap.
        alpha: level of the t-test.
        episodes: number of newest episodes that the t-test compares.
        across_agents: in a mixed population, compare all members; a copy includes the donor's agent, so that the agents
            compete. Otherwise members are compared only with members of the same agent.
    """

    method: Literal["truncation", "t_test", "binary_tournament", "none"] = "truncation"
    bottom: Fraction = 0.2
    top: Fraction = 0.2
    ties: Literal["random", "copy"] = "random"
    min_gap: Annotated[Real, Field(ge=0)] = 0.0
    alpha: Annotated[Real, Field(gt=0, lt=1)] = 0.05
    episodes: Count = 10
    across_agents: bool = False


@dataclass(frozen=True, kw_only=True)
class Explore(SettingsSection):
    """Rule for changes of hyperparameters.

    Attributes:
        method: `perturb` (multiply by one of `factors`), `gaussian`, `resample` (from the prior) or `none`.
        factors: factors of `perturb`, drawn with equal probability; a product of 1 means no drift.
        sd: standard deviation of the gaussian step, as a fraction of the prior's width on the dimension's own scale.
        when: `after_copy`, or `always` at a decision.
        probability: probability that a hyperparameter changes.
        resample_probability: probability that a change is a draw from the prior.
    """

    method: Literal["perturb", "resample", "gaussian", "none"] = "perturb"
    factors: Annotated[tuple[Annotated[Real, Field(gt=0)], ...], Field(min_length=1)] = (1.2, 1 / 1.2)
    sd: Annotated[Real, Field(gt=0)] = 0.1
    when: Literal["after_copy", "always"] = "after_copy"
    probability: Probability = 1.0
    resample_probability: Probability = 0.0
