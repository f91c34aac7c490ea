"""IMPALA (Espeholt et al. 2018, arXiv 1802.01561): an actor-critic whose targets V-trace corrects for policy lag.

Section 4.1 has the targets, section 4.2 the loss; settings.Impala has every default.
"""

from dataclasses import dataclass

from torch import Tensor

from pbtrl.agents.loss_inputs import LossInputs
from pbtrl.agents.policy_gradient import PolicyGradient
from pbtrl.agents.returns import vtrace
from pbtrl.agents.types import Hyperparameters


@dataclass(frozen=True)
class Impala(PolicyGradient):
    """The agent for one kind of env; see `agents.types.Agent` for the contract."""

    def targets(self, seen: LossInputs, h: Hyperparameters) -> list[Tensor]:
        """Equation 1 of the paper."""
        clips = {name: h[name][:, None] for name in ("rho_bar", "c_bar", "pg_rho_bar", "lambda_")}
        return seen.compute_targets(vtrace, seen.values, log_rhos=seen.log_rhos.movedim(1, 0), **clips)


make = Impala.make
