"""Settings of the agent and the predictive model of the search by model-based reinforcement learning."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pbtrl.core.values import Real
from pbtrl.strategies.rules import Count, Probability, SettingsSection

Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class AgentRules(SettingsSection):
    """Settings of the agent's training by PPO.

    Attributes:
        learning_rate: learning rate of Adam.
        epochs: updates per batch of trials.
        clip: limit of the change of a step's probability ratio.
        target_kl: change of the policy in one batch after which no further epoch begins, KL in nats per
            hyperparameter.
        max_grad_norm: limit of the gradient's norm.
        min_sd: least standard deviation of a hyperparameter, on a scale of -1 to 1.
        entropy_cost: weight of the entropy bonus in the first batch.
        entropy_decay: factor of this weight from one batch of trials to the next.
    """

    learning_rate: Positive = 0.007
    epochs: Count = 4
    clip: Annotated[Real, Field(gt=0, lt=1)] = 0.2
    target_kl: Positive = 0.03
    max_grad_norm: Positive = 0.5
    min_sd: Positive = 0.02
    entropy_cost: NotNegative = 0.01
    entropy_decay: Probability = 0.97


@dataclass(frozen=True, kw_only=True)
class ModelRules(SettingsSection):
    """Settings of the predictive model, which scores proposals between two batches of trials.

    Attributes:
        method: `mlp` (an ensemble of small networks), or `none`.
        warmup: batches of trials before its first use.
        horizon: `dynamic` ends a model phase once the policy has moved by `delta`, `fixed` after `max_batches`.
        delta: distance of the policy from that at the start of the phase, KL in nats per hyperparameter.
        max_batches: most batches of predicted trials in a phase.
    """

    method: Literal["mlp", "none"] = "mlp"
    warmup: Count = 3
    horizon: Literal["dynamic", "fixed"] = "dynamic"
    delta: NotNegative = 0.05
    max_batches: Count = 10
