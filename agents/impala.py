"""IMPALA (Espeholt et al. 2018, arXiv 1802.01561): an actor-critic whose targets V-trace corrects for policy lag.

Section 4.1 has the targets, section 4.2 the loss; settings.Impala has every default.
"""

from dataclasses import dataclass

from torch import Tensor

from agents.actor_critic import ActorCritic
from agents.returns import vtrace
from agents.types import Hyperparameters


@dataclass(frozen=True)
class Impala(ActorCritic):
    """The agent for one kind of env; see `agents.types.Agent` for the contract."""

    def targets(
        self, log_rhos: Tensor, discounts: Tensor, rewards: Tensor, values: Tensor, bootstrap_value: Tensor,
        h: Hyperparameters, cuts: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Equation 1 of the paper."""
        clips = {name: h[name][:, None] for name in ("rho_bar", "c_bar", "pg_rho_bar", "lambda_")}
        return vtrace(log_rhos, discounts, rewards, values, bootstrap_value, **clips, cuts=cuts)


make = Impala.make
