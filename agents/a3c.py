"""A3C (Mnih et al. 2016, arXiv 1602.01783): an actor-critic with n-step returns or, if lambda < 1, with GAE.

This is algorithm S3: a member updates on-policy every `unroll_length` (the paper's t_max) steps of all its envs. With
inline acting it is A2C; `acting.mode: hogwild` runs it asynchronously, as published. V-trace corrects for the updates
between the minibatches of a block, if there are several. The defaults are in `settings.A3CSettings`.
"""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from pbtrl.agents.loss_inputs import LossInputs
from pbtrl.agents.policy_gradient import PolicyGradient
from pbtrl.agents.returns import ReturnInputs
from pbtrl.agents.types import Hyperparameters


@dataclass(frozen=True)
class A3C(PolicyGradient):
    """The A3C agent; see `agents.types.Agent` for the interface."""

    @override
    def targets(self, batch: LossInputs, h: Hyperparameters) -> list[Tensor]:
        """Compute value targets and advantages."""
        return self.estimate(batch, batch.returns, batch.values)

    def estimate(self, batch: LossInputs, returns: ReturnInputs, values: Tensor) -> list[Tensor]:
        """Compute targets and advantages from values [p, T+1, B]: GAE (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

        With several minibatches it is V-trace (IMPALA), because the policy has changed before all but the first.
        """
        if self.settings.minibatches == 1:
            return returns.gae(values)
        return returns.vtrace(values, batch.log_rhos)


make = A3C.make
