"""A3C (Mnih et al. 2016, arXiv 1602.01783): an actor-critic on n-step returns or, with lambda below 1, on GAE.

Algorithm S3: a member updates every `unroll_length` steps (t_max) of all its envs, from the experience of the policy
that it has. Acting inline it is A2C; as published it is run by `acting.mode: hogwild`. settings.A3C has every default.
"""

from dataclasses import dataclass

from torch import Tensor

from pbtrl.agents.loss_inputs import LossInputs
from pbtrl.agents.policy_gradient import PolicyGradient
from pbtrl.agents.returns import gae
from pbtrl.agents.types import Hyperparameters


@dataclass(frozen=True)
class A3C(PolicyGradient):
    """The agent for one kind of env; see `agents.types.Agent` for the contract."""

    def targets(self, seen: LossInputs, h: Hyperparameters) -> list[Tensor]:
        """Advantages sum lambda-weighted temporal differences (Schulman et al. 2016, arXiv 1506.02438, equation 16)."""
        return seen.compute_targets(gae, seen.values, lambda_=h["lambda_"][:, None])


make = A3C.make
