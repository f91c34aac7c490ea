"""IMPALA (Espeholt et al. 2018, arXiv 1802.01561): an actor-critic with V-trace targets, which correct for policy lag.

Section 4.1 of the paper defines the targets, section 4.2 the loss. The defaults are in `settings.ImpalaSettings`.
"""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from pbtrl.agents.loss_inputs import LossInputs
from pbtrl.agents.policy_gradient import PolicyGradient
from pbtrl.agents.types import Hyperparameters


@dataclass(frozen=True)
class Impala(PolicyGradient):
    """The IMPALA agent; see `agents.types.Agent` for the interface."""

    @override
    def targets(self, batch: LossInputs, h: Hyperparameters) -> list[Tensor]:
        """Compute V-trace targets and advantages (equation 1 of the paper)."""
        clips = {name: h[name] for name in ("rho_bar", "c_bar", "pg_rho_bar")}
        return batch.returns.vtrace(batch.values, batch.log_rhos, **clips)


make = Impala.make
