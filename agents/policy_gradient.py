"""Base class of the policy-gradient agents: a loss of policy, value and entropy terms, summed as in the papers.

A subclass defines the return targets.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from typing_extensions import override

from pbtrl.agents import losses
from pbtrl.agents.actor_critic import ActorCritic
from pbtrl.agents.arrays import Array
from pbtrl.agents.loss_inputs import Derivatives, LossInputs, LossOutput
from pbtrl.agents.settings import PolicyGradientSettings
from pbtrl.agents.types import Hyperparameters


@dataclass(frozen=True)
class PolicyGradient(ActorCritic):
    """Base class of the policy-gradient agents; see `agents.types.Agent` for the interface."""

    settings: PolicyGradientSettings

    @abstractmethod
    def targets(self, batch: LossInputs, h: Hyperparameters) -> list[Tensor]:
        """Compute value targets and advantages, both [p, T, B]."""

    @property
    @override
    def needs_full_batch(self) -> bool:
        """True if advantages are normalized, which takes all of a minibatch."""
        return self.settings.advantages == "normalize"

    @override
    def loss(self, batch: LossInputs, h: Hyperparameters) -> LossOutput:
        """Compute -sum A log pi + value_cost / 2 sum (v - V)^2 - entropy_cost sum H."""
        mask = batch.mask
        targets, advantages = self.targets(batch, h)
        terms = {
            "policy": losses.policy_gradient_loss(batch.log_probs, self.maybe_normalize(advantages, mask), mask),
            "value": losses.value_loss(batch.values[:, :-1], targets, mask),
            "entropy": losses.entropy_bonus(self.policy.entropy(batch.policy), mask),
        }
        loss = terms["policy"] + h["value_cost"] * terms["value"] - h["entropy_cost"] * terms["entropy"]
        return LossOutput(self.reduce(loss, batch), terms)

    @property
    @override
    def closed_form(self) -> bool:
        """True, except for a subclass that overrides a part of the loss."""
        parts = ("loss", "maybe_normalize", "reduce")
        return all(getattr(type(self), name) is getattr(PolicyGradient, name) for name in parts)

    @override
    def derivatives(self, batch: LossInputs, entropies: Array, h: Hyperparameters) -> Derivatives:
        """Compute the derivatives of `loss`, with half of autograd's operations; this trains, `loss` does not."""
        mask, values = batch.mask.numpy(), batch.values[:, :-1].numpy()
        targets, weights = (x.numpy() for x in self.targets(batch, h))
        if self.settings.advantages == "normalize":
            rows = (len(mask), -1)
            weights = losses.normalized(weights.reshape(rows), mask.reshape(rows)).reshape(mask.shape)
        weights, errors = weights * mask, (values - targets) * mask
        sums = {
            "policy": -(batch.log_probs.numpy() * weights).sum((1, 2)),
            "value": 0.5 * (errors * errors).sum((1, 2)),
            "entropy": (entropies * mask).sum((1, 2)),
        }
        scale = 1.0 / batch.live.numpy() if self.settings.reduction == "mean" else np.ones(len(mask), mask.dtype)
        value_cost, entropy_cost = (scale * h[name].numpy() for name in ("value_cost", "entropy_cost"))
        weights *= -scale[:, None, None]
        return Derivatives(sums, weights, mask * -entropy_cost[:, None, None], errors * value_cost[:, None, None])

    def maybe_normalize(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """Normalize advantages [p, T, B] if configured."""
        if self.settings.advantages == "raw":
            return advantages
        return losses.normalize_advantages(advantages.flatten(1), mask.flatten(1)).view_as(mask)

    def reduce(self, loss: Tensor, batch: LossInputs) -> Tensor:
        """Keep a loss [p] summed over transitions, or divide it by their number in the update if `reduction=mean`."""
        return loss / batch.live if self.settings.reduction == "mean" else loss
