"""Gradients of one optimizer update.

An update consists of groups of members that share a forward pass, and a group of parts: transitions that go through the
network together. A part stays valid when the parameters change, so it may serve in several passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pbtrl.agents.arrays import quiet
from pbtrl.agents.returns import ReturnInputs
from pbtrl.agents.types import Hyperparameters, Inputs, State, Tensors, Trajectory, Views

if TYPE_CHECKING:
    from pbtrl.agents.actor_critic import ActorCritic
    from pbtrl.agents.networks import MLP


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A block and the tensors derived from it that do not change between passes, [P, T, B, ...].

    `unroll_cuts` is [T, P], and `starts` [P, T+1]. `mask` is 0 for dead transitions; `fresh` is also 0 for
    replayed ones.
    """

    block: Trajectory
    returns: ReturnInputs
    unroll_cuts: Tensor
    starts: Tensor
    mask: Tensor
    fresh: Tensor
    log_probs: Tensor
    extra_loss_inputs: Tensors


@dataclass(frozen=True)
class Part:
    """Transitions of p members that go through the network together.

    Attributes:
        inputs: preprocessed inputs of the network; T steps or, if values are bootstrapped, T+1.
        rnn_state: [p, B, H] recurrent state at the first step.
        starts: [p, T+1] bool; true where an unroll begins.
        actions: [p, T, B, ...] actions taken, as stored by the distribution.
        log_probs: [p, T, B] their log-probabilities under the behavior policy.
        weights: [p, T, B] weights of |log rho| in its mean over the update.
        extra: additional inputs of the loss and of `ActorCritic.unroll`.
        loss_inputs: makes the inputs of the loss from what depends on the parameters, given by name.
    """

    inputs: Inputs
    rnn_state: Tensor
    starts: Tensor
    actions: Tensor
    log_probs: Tensor
    weights: Tensor
    extra: Tensors
    loss_inputs: Callable[..., Any]


@dataclass(frozen=True)
class Group:
    """Members that share a forward pass, and what they learn from.

    Attributes:
        members: slice or sorted indices [p] of members of the cohort.
        params: their parameters, as autograd leaves.
        h: their hyperparameters.
        parts: parts over which the loss is summed.
    """

    members: slice | Tensor
    params: Views
    h: Hyperparameters
    parts: Sequence[Part]


def gradients(agent: ActorCritic, state: State, groups: Iterable[Group]) -> Tensors:
    """Set `state.grads` to the gradients of an update, which are 0 for members that are in no group.

    Returns:
        Metrics [P]. The rows of members that are in no group have no meaning.
    """
    state.grads.zero_()
    metrics: Tensors = {}
    for group in groups:
        p, sums = len(group.h["learning_rate"]), Tensors()
        whole = p == len(state.grads)
        flat = state.grads if whole else torch.zeros(p, state.grads.shape[1])
        grads = state.grad_views if whole else agent.layout.views(flat)
        differentiate = _by_formula if agent.closed_form else _by_autograd
        network = agent.recorded if len(group.parts) == 1 else None  # it overwrites the gradients of other parts
        for part in group.parts:
            terms = differentiate(agent, network, group, part, grads)
            sums = {name: sums[name] + value for name, value in terms.items()} if sums else terms
        if not whole:
            state.grads[group.members] = flat
        _place(metrics, sums, group.members, len(state.grads))
    return metrics


@quiet
def _by_formula(agent: ActorCritic, network: MLP | None, group: Group, part: Part, grads: Views) -> Tensors:
    """Add the gradients of a part, whose loss has a closed form, to `grads`; return the metrics."""
    params, steps = group.params, part.actions.shape[1]
    if network:
        with torch.no_grad():
            head, values, write_gradients = network.record(params, part.inputs, steps)
    else:
        head, values, _ = agent.unroll(params, part.inputs, part.rnn_state, part.starts, part.extra)
        head = head[:, :steps]
    ends = [head, values[:, :steps]]
    with torch.no_grad():
        free = params["free"].detach() if "free" in params else None
        policy = agent.policy.terms(head.detach().numpy(), None if free is None else free.numpy(), part.actions.numpy())
        log_rhos = policy.log_prob - part.log_probs.numpy()
        inputs = part.loss_inputs(
            join=lambda: agent.policy.join(head.detach(), free),
            log_probs=torch.from_numpy(policy.log_prob),
            log_rhos=torch.from_numpy(log_rhos),
            values=values.detach(),
            extra_loss_inputs=part.extra,
        )
        result, live = agent.derivatives(inputs, policy.entropy, group.h), inputs.live.numpy()
        by_head, by_free = policy.gradient(result.by_log_probs, result.by_entropies)
        slopes = torch.from_numpy(by_head), torch.from_numpy(result.by_values)
        if network:
            write_gradients(*slopes, grads)
        else:
            _add(grads, params, torch.autograd.grad(ends, list(params.values()), slopes, allow_unused=True))
        if by_free is not None:
            grads["free"].add_(torch.from_numpy(by_free))
    metrics = {f"loss/{name}": torch.from_numpy(value / live) for name, value in result.sums.items()}
    return {**metrics, "loss/log_ratio": torch.from_numpy((abs(log_rhos) * part.weights.numpy()).sum((1, 2)))}


def _by_autograd(agent: ActorCritic, network: MLP | None, group: Group, part: Part, grads: Views) -> Tensors:
    """Add the gradients of a part to `grads`; return the metrics."""
    params, ends, extra_outputs, steps = group.params, list[Tensor](), Tensors(), part.actions.shape[1]
    if network:
        with torch.no_grad():
            head, values, write_gradients = network.record(params, part.inputs, steps)
        ends = [head.requires_grad_(), values.requires_grad_()]
    else:
        head, values, extra_outputs = agent.unroll(params, part.inputs, part.rnn_state, part.starts, part.extra)
    policy = agent.policy.join(head[:, :steps], params.get("free"))
    log_probs = agent.policy.log_prob(policy, part.actions)
    inputs = part.loss_inputs(
        join=lambda: policy,
        log_probs=log_probs,
        log_rhos=log_probs.detach() - part.log_probs,
        values=values,
        extra_loss_inputs=part.extra | extra_outputs,
    )
    loss = agent.loss(inputs, group.h)
    result = torch.autograd.grad(loss.total, [*ends, *params.values()], torch.ones_like(loss.total), allow_unused=True)
    if ends:  # the gradients by the parameters are those of a loss that reads them itself
        with torch.no_grad():
            by_head, by_values = (
                torch.zeros_like(x) if grad is None else grad for x, grad in zip(ends, result, strict=False)
            )
            write_gradients(by_head, by_values, grads)
    _add(grads, params, result[len(ends) :])
    metrics = {f"loss/{name}": value.detach() / inputs.live for name, value in loss.sums.items()}
    return {**metrics, "loss/log_ratio": (inputs.log_rhos.abs() * part.weights).flatten(1).sum(-1)}


def _add(grads: Views, names: Iterable[str], found: Iterable[Tensor | None]) -> None:
    """Add the gradients by some parameters; those that are missing are 0."""
    for name, grad in zip(names, found, strict=True):
        if grad is not None:
            grads[name].add_(grad)


def _place(tensors: Tensors, rows: Tensors, members: slice | Tensor, size: int) -> None:
    """Put the rows of some members into `tensors` [P, ...], which are created as needed."""
    for name, value in rows.items():
        if len(value) == size:
            tensors[name] = value
        else:
            tensors.setdefault(name, value.new_zeros(size, *value.shape[1:]))[members] = value


def shares(count: int, parts: int) -> list[slice]:
    """Split `count` things into contiguous slices of nearly equal size: `parts`, or as many as there are things."""
    edges = [count * i // min(parts, count) for i in range(min(parts, count) + 1)]
    return [slice(*edge) for edge in pairwise(edges)]
