"""Rules that strategies are configured with: when a member is ready, how it exploits, how it explores."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pbtrl.core.dimensions import Real, Whole

Count = Annotated[Whole, Field(ge=1)]


Fraction = Annotated[Real, Field(gt=0, le=1)]


Probability = Annotated[Real, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class _Section:
    """A part of a strategy's settings; unknown keys are refused."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}


@dataclass(frozen=True, kw_only=True)
class Ready(_Section):
    """When a member may be decided about.

    Attributes:
        slice_steps: env steps of the member between decisions, a slice; by default a 25th of its budget.
        burn_in: env steps before the first exploit.
    """

    slice_steps: Count | None = None
    burn_in: Annotated[Whole, Field(ge=0)] = 0


@dataclass(frozen=True, kw_only=True)
class Exploit(_Section):
    """Who copies whom.

    Attributes:
        method: `truncation` (the bottom copies from the top), `t_test` (Welch's, against a random other
            member), `binary_tournament`, or `none`.
        bottom: fraction of the population that copies; at least one member.
        top: fraction that is copied from; at least one member.
        ties: a tournament between equals is decided at `random`, or always a reason to `copy`. Truncation ranks
            equals at random.
        min_gap: a donor must be ahead by more than this fitness (IMPALA: 5); 0 asks for nothing.
        alpha: level of the t-test.
        episodes: newest episodes that the t-test compares.
        across_agents: in a population of several agents, who copies takes over the donor's agent too, so that the
            agents compete. Otherwise a member is compared with its own kind alone, as if there were no others.
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
class Explore(_Section):
    """How hyperparameters move.

    Attributes:
        method: `perturb` (multiply by one of `factors`), `gaussian`, `resample` (from the prior) or `none`.
        factors: drawn with equal chance; a product of 1 means no drift.
        sd: of the gaussian step, as a fraction of the prior's width on the dimension's own scale.
        when: `after_copy`, or `always` at a decision.
        probability: that a hyperparameter moves at all.
        resample_probability: that it is drawn from the prior instead.
    """

    method: Literal["perturb", "resample", "gaussian", "none"] = "perturb"
    factors: Annotated[tuple[Annotated[Real, Field(gt=0)], ...], Field(min_length=1)] = (1.2, 1 / 1.2)
    sd: Annotated[Real, Field(gt=0)] = 0.1
    when: Literal["after_copy", "always"] = "after_copy"
    probability: Probability = 1.0
    resample_probability: Probability = 0.0
