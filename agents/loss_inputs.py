"""Inputs and outputs of a loss function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pbtrl.agents.arrays import Array
from pbtrl.agents.returns import ReturnInputs
from pbtrl.agents.types import State, Tensors, Views


@dataclass(frozen=True, kw_only=True)
class NetworkOutputs:
    """Outputs of the current network for some transitions of p members.

    Attributes:
        join: returns `policy`.
        log_probs: [p, T, B] log-probabilities of the actions taken, under `policy`.
        log_rhos: [p, T, B] log importance ratios between `policy` and the behavior policy, without gradient.
        values: [p, T, B] outputs of the value head.
        mask: [p, T, B] 1 for live transitions, 0 for dead ones.
        live: [p] number of live transitions in the whole update, at least 1.
        extra_loss_inputs: additional tensors of the agent.
    """

    join: Callable[[], Tensor]
    log_probs: Tensor
    log_rhos: Tensor
    values: Tensor
    mask: Tensor
    live: Tensor
    extra_loss_inputs: Tensors

    @property
    def policy(self) -> Tensor:
        """Distribution parameters, [p, T, B, K]."""
        return self.join()


@dataclass(frozen=True, kw_only=True)
class LossInputs(NetworkOutputs):
    """Tensors that a loss is computed from, for p members of a cohort and some of their envs.

    Attributes:
        state: state of the whole cohort, for the agent's own tensors.
        members: slice of the cohort that the other tensors belong to.
        params: parameters of these members, as autograd leaves.
        behavior: [p, T, B, K] distribution parameters of the behavior policy.
        actions: [p, T, B, ...] actions taken, as stored by the distribution.
        values: [p, T+1, B], also for the block's last observation.
        returns: rewards, discounts and cuts, from which it computes targets and advantages.
        starts: [p, T+1] bool; true where an unroll begins.
        extra_loss_inputs: additional tensors from the agent's `extra_loss_inputs` and `unroll`.
    """

    state: State
    members: slice
    params: Views
    behavior: Tensor
    actions: Tensor
    returns: ReturnInputs
    starts: Tensor


@dataclass(frozen=True)
class LossOutput:
    """A loss and its metrics.

    Attributes:
        total: [p] loss to minimize, summed over an update's chunks.
        sums: [p] each, metrics summed over transitions.
    """

    total: Tensor
    sums: dict[str, Tensor]


@dataclass(frozen=True)
class Derivatives:
    """Derivatives of a loss's total, as numpy arrays.

    Attributes:
        sums: as `LossOutput.sums`.
        by_log_probs: [p, T, B] by `log_probs`.
        by_entropies: [p, T, B] by the policy's entropies.
        by_values: [p, T, B] by `values`; the value of a block's last observation has none.
    """

    sums: dict[str, Array]
    by_log_probs: Array
    by_entropies: Array
    by_values: Array


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a group of tensors to `prefix.name`, as in the state."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors named `prefix.name`, as `name`; the inverse of `with_prefix`."""
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}
