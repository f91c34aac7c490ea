"""A3C (Mnih et al. 2016, arXiv 1602.01783): an actor-critic with n-step returns or, if lambda < 1, with GAE.

This is algorithm S3: a member updates on-policy every `unroll_length` (the paper's t_max) steps of all its envs. With
inline acting it is A2C; `acting.mode: hogwild` runs it asynchronously, as published. The defaults are in
`settings.A3CSettings`.
"""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from pbtrl.agents.loss_inputs import LossInputs
from pbtrl.agents.policy_gradient import PolicyGradient
from pbtrl.agents.returns import gae
from pbtrl.agents.types import Hyperparameters


@dataclass(frozen=True)
class A3C(PolicyGradient):
    """The A3C agent; see `agents.types.Agent` for the interface."""

    @override
    def targets(self, batch: LossInputs, h: Hyperparameters) -> list[Tensor]:
        """Compute GAE targets and advantages (Schulman et al. 2016, arXiv 1506.02438, equation 16)."""
        return batch.compute_targets(gae, batch.values, lambda_=h["lambda_"][:, None])


make = A3C.make
