"""The loss of the agents that follow a policy gradient: policy, value and entropy terms, summed as in the papers.

An agent of this kind says what the return targets are.
"""

from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from pbtrl.agents import losses
from pbtrl.agents.actor_critic import ActorCritic
from pbtrl.agents.loss_inputs import LossInputs, LossOutput
from pbtrl.agents.settings import PolicyGradientSettings
from pbtrl.agents.types import Hyperparameters


@dataclass(frozen=True)
class PolicyGradient(ActorCritic):
    """The algorithm for one kind of env; see `agents.types.Agent` for the contract."""

    settings: PolicyGradientSettings

    @abstractmethod
    def targets(self, seen: LossInputs, h: Hyperparameters) -> list[Tensor]:
        """Value targets and advantages, both [p, T, B]."""

    @property
    def needs_full_batch(self) -> bool:
        """Normalized advantages need all of them."""
        return self.settings.advantages == "normalize"

    def loss(self, seen: LossInputs, h: Hyperparameters) -> LossOutput:
        """-sum A log pi + value_cost / 2 sum (v - V)^2 - entropy_cost sum H."""
        mask = seen.mask
        targets, advantages = self.targets(seen, h)
        terms = {
            "policy": losses.policy_gradient_loss(seen.log_probs, self.maybe_normalize(advantages, mask), mask),
            "value": losses.value_loss(seen.values[:, :-1], targets, mask),
            "entropy": losses.entropy_bonus(self.policy.entropy(seen.policy), mask),
        }
        loss = terms["policy"] + h["value_cost"] * terms["value"] - h["entropy_cost"] * terms["entropy"]
        return LossOutput(self.reduce(loss, seen), terms)

    def maybe_normalize(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """Advantages [p, T, B] as they weigh in a loss: normalized, if the settings say so."""
        if self.settings.advantages == "raw":
            return advantages
        return losses.normalize_advantages(advantages.flatten(1), mask.flatten(1)).view_as(mask)

    def reduce(self, loss: Tensor, seen: LossInputs) -> Tensor:
        """The sum [p] of a loss over transitions, or what it comes to in the mean of the whole update."""
        return loss / seen.live if self.settings.reduction == "mean" else loss
