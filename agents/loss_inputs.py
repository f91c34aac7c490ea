"""The tensors that a loss is computed from, and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pbtrl.agents.types import State, Tensors, Views


@dataclass(frozen=True)
class LossInputs:
    """What a loss is made from: p members of a cohort and some of their envs.

    Attributes:
        state: of the whole cohort, for an agent's own tensors.
        members: which of it these are.
        params: their parameters, as leaves.
        policy: [p, T, B, K] as the parameters have it now.
        behavior: [p, T, B, K] as it was when it acted.
        log_probs: [p, T, B] of the actions taken, under `policy`.
        log_rhos: [p, T, B] log importance ratios, without gradient.
        values: [p, T+1, B] as the network gives them.
        rewards: [p, T, B] as the learner is given them.
        discounts: [p, T, B].
        cuts: [T, p, B].
        starts: [p, T+1], where unrolls begin.
        mask: [p, T, B], 0 for dead transitions.
        live: [p], how many transitions the whole update learns from.
        extra_loss_inputs: the agent's own, from `extra_loss_inputs` and `unroll`.
    """

    state: State
    members: slice
    params: Views
    policy: Tensor
    behavior: Tensor
    log_probs: Tensor
    log_rhos: Tensor
    values: Tensor
    rewards: Tensor
    discounts: Tensor
    cuts: Tensor
    starts: Tensor
    mask: Tensor
    live: Tensor
    extra_loss_inputs: Tensors

    def compute_targets(
        self, returns: Callable[..., tuple[Tensor, Tensor]], values: Tensor, **given: Any
    ) -> list[Tensor]:
        """What a function of `agents.returns` makes of these transitions and values: targets, advantages [p, T, B]."""
        discounts, rewards, values = (x.movedim(1, 0) for x in (self.discounts, self.rewards, values.detach()))
        found = returns(discounts=discounts, rewards=rewards, values=values[:-1], bootstrap_value=values[-1],
                        cuts=self.cuts, **given)  # fmt: skip
        return [x.movedim(0, 1) for x in found]


@dataclass(frozen=True)
class LossOutput:
    """What an agent makes of what was seen.

    Attributes:
        total: [p], what is minimized: over an update's chunks these add up.
        sums: [p] each, metrics summed over transitions.
        new: [p, ...] tensors of the state that are replaced after the step; only where the agent sees the `whole`.
    """

    total: Tensor
    sums: dict[str, Tensor]
    new: dict[str, Tensor] = field(default_factory=dict)


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A group of tensors as `prefix.name` in the state."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The group back from the state."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
