"""PPO (Schulman et al. 2017, arXiv 1707.06347): several passes over a block, with a clipped importance ratio.

Advantages (GAE) and value targets are computed once per block, with the values of the policy that acted. Every pass
takes the block's transitions in a new random order and splits them into minibatches; with an LSTM, it does so with
envs, whose unrolls stay complete. docs/concepts.md lists the implementation details that matter (Huang et al. 2022)
and where pbtrl has each. The defaults are in `settings.PPOSettings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.agents import losses
from pbtrl.agents.actor_critic import ActorCritic
from pbtrl.agents.loss_inputs import Derivatives, Evaluated, LossOutput
from pbtrl.agents.settings import PPOSettings
from pbtrl.agents.types import Hyperparameters, Inputs, State, Tensors
from pbtrl.agents.updates import Batch, Group, Part, shares

Minibatch = list[tuple[Tensor, Tensor]]
"""Members [p] and, for each, the indices [p, m] of its units. Members with equal m are together."""

SEEDS = 2**24  # all float32 in [0, 1) that torch draws are multiples of 1 / SEEDS


@dataclass(frozen=True)
class Units:
    """Units of a block, from which minibatches are gathered: [P x units, T, ...] each, member after member.

    `scalars` holds, along its last axis, log-probabilities, advantages, value targets, values and the mask.
    """

    inputs: Inputs
    rnn_state: Tensor
    actions: Tensor
    scalars: Tensor


@dataclass(frozen=True)
class PPO(ActorCritic):
    """The PPO agent; see `agents.types.Agent` for the interface.

    A *unit* is what minibatches are made of: a transition or, with an LSTM, the block of one env.
    """

    settings: PPOSettings

    @property
    @override
    def needs_full_batch(self) -> bool:
        """False: advantages are normalized before a minibatch is split into chunks."""
        return False

    @override
    def extra_noise(self, generator: torch.Generator, time: int, envs: int) -> list[Tensor]:
        """Numbers in [0, 1), the first of which is the seed of the block's random orders."""
        return [torch.rand(time, envs, 1, generator=generator)]

    @override
    def loss(self, batch: Evaluated, h: Hyperparameters) -> LossOutput:
        """Compute equation 9, negated, all means: the clipped surrogate, value loss and entropy (equation 7 and 9)."""
        old, mask, clip = batch.extra_loss_inputs, batch.mask, h["clip"]
        log_ratios = (batch.log_probs - old["log_probs"]).masked_fill(mask == 0, 0.0)
        moved, values, targets = log_ratios.detach(), batch.values, old["targets"]
        ratios = moved.exp()
        sums = {
            "policy": losses.clipped_policy_loss(log_ratios, old["advantages"], mask, clip),
            "value": losses.clipped_value_loss(values, old["values"], targets, mask, clip)
            if self.settings.value_clip
            else losses.value_loss(values, targets, mask),
            "entropy": losses.entropy_bonus(self.policy.entropy(batch.policy), mask),
            "kl": (ratios - 1.0 - moved).flatten(1).sum(-1),  # Schulman 2020, k3: unbiased, never negative
            "clipped": ((ratios - 1.0).abs() > clip[:, None, None]).flatten(1).sum(-1),
        }
        total = sums["policy"] + h["value_cost"] * sums["value"] - h["entropy_cost"] * sums["entropy"]
        return LossOutput(total / batch.live, sums)

    @override
    def derivatives(self, batch: Evaluated, h: Hyperparameters) -> Derivatives:
        """Compute the derivatives of `loss`, for which autograd would need twice as many operations."""
        old = {name: x.numpy() for name, x in batch.extra_loss_inputs.items()}
        mask, values, evaluated = batch.mask.numpy(), batch.values.numpy(), batch.evaluated
        clip, value_cost, entropy_cost, live = (
            x.numpy()[:, None, None] for x in (h["clip"], h["value_cost"], h["entropy_cost"], batch.live)
        )
        moved = np.where(mask, evaluated.log_prob - old["log_probs"], 0.0)
        ratios = np.exp(moved)
        free, bound = ratios * old["advantages"], ratios.clip(1.0 - clip, 1.0 + clip) * old["advantages"]
        errors = values - old["targets"]
        squares, by_values = errors * errors, errors * mask
        if self.settings.value_clip:
            change = values - old["values"]
            clipped = (old["values"] + change.clip(-clip, clip) - old["targets"]) ** 2
            by_values = np.where((abs(change) > clip) & (clipped > squares), 0.0, by_values)
            squares = np.maximum(squares, clipped)
        each = {
            "policy": -np.minimum(free, bound) * mask,
            "value": 0.5 * squares * mask,
            "entropy": evaluated.entropy * mask,
            "kl": ratios - 1.0 - moved,
            "clipped": abs(ratios - 1.0) > clip,
        }
        return Derivatives(
            sums={name: x.sum((1, 2), dtype=mask.dtype) for name, x in each.items()},
            by_log_probs=-free * (free <= bound) * mask / live,
            by_entropies=-entropy_cost * mask / live,
            by_values=by_values * value_cost / live,
        )

    @override
    def minibatches(
        self, state: State, batch: Batch, h: Hyperparameters
    ) -> Callable[[int, Tensor], Iterable[tuple[Tensor, Iterable[Group]]]]:
        """Compute what all passes share; a pass gathers its minibatches one by one."""
        units, seeds = self._units(state, batch, h), self.split_extra_noise(batch.block.noise[:, 0, 0])[:, 0]

        def updates(epoch: int, active: Tensor) -> Iterator[tuple[Tensor, Iterable[Group]]]:
            count = len(units.actions) // len(active)
            for learning, minibatch in self._shuffled((seeds * SEEDS).long(), count, h["minibatches"], epoch, active):
                yield learning, (self._gather(state, batch, units, h, *members) for members in minibatch)

        return updates

    def _shuffled(
        self, seeds: Tensor, units: int, counts: Tensor, epoch: int, active: Tensor
    ) -> Iterator[tuple[Tensor, Minibatch]]:
        """Yield the members [P] that take each update of a pass, and their minibatches."""
        generators = [torch.Generator().manual_seed(seed + SEEDS * epoch) for seed in seeds.tolist()]
        orders = torch.stack([torch.randperm(units, generator=g) for g in generators])
        counts = counts.clamp_max(units)
        groups = [
            (members, orders[members], shares(units, count))
            for count in sorted(set(counts[active].tolist()))
            for members in self._together(active & (counts == count))
        ]
        for i in range(int(counts[active].max())):
            minibatch = [(members, order[:, parts[i]]) for members, order, parts in groups if i < len(parts)]
            yield active & (counts > i), minibatch

    @override
    def continues(self, continuing: Tensor, metrics: Tensors, h: Hyperparameters) -> Tensor:
        """Whether the members' last minibatches have a KL divergence of at most `target_kl`."""
        return metrics["loss/kl"] <= h["target_kl"]

    def _units(self, state: State, batch: Batch, h: Hyperparameters) -> Units:
        """Compute advantages and value targets, and split the block into its units."""
        block, values = batch.block, self.values(state, batch)
        targets, advantages = batch.gae(values, h["lambda_"])
        inputs = self.preprocess(state, block.inputs(slice(None), slice(None))[:, :-1])
        actions = self._split(block.actions)
        return Units(
            inputs=inputs.map(self._split),
            rnn_state=block.rnn_state.flatten(0, 1) if self._recurrent else torch.zeros(len(actions), 0),
            actions=actions,
            scalars=self._split(torch.stack([batch.log_probs, advantages, targets, values[:, :-1], batch.mask], -1)),
        )

    @property
    def _recurrent(self) -> bool:
        return self.net.rnn_state_size > 0

    def _split(self, x: Tensor) -> Tensor:
        """[P, T, B, ...] -> units [P x T x B, 1, ...] or, with an LSTM, [P x B, T, ...]."""
        return x.transpose(1, 2).flatten(0, 1) if self._recurrent else x.flatten(0, 2)[:, None]

    def _together(self, chosen: Tensor) -> list[Tensor]:
        """Indices of the members that are chosen [P], in the groups that share a forward pass."""
        (members,) = chosen.nonzero(as_tuple=True)
        return [members] if self.net.frames is None else [member[None] for member in members]

    def _gather(
        self, state: State, batch: Batch, units: Units, h: Hyperparameters, members: Tensor, chosen: Tensor
    ) -> Group:
        """Prepare the update of some members from the units [p, m] chosen for them."""
        whole = len(members) == len(state.grads)
        own = {name: value if whole else value[members] for name, value in h.items()}
        if whole or self.net.frames is not None:
            params = state.params[0 if whole else int(members)]
        else:
            params = {name: x.detach()[members].requires_grad_() for name, x in state.params[0].items()}
        rows = chosen + members[:, None] * (len(units.actions) // len(state.grads))
        log_probs, advantages, targets, values, mask = _take(units.scalars, rows).unbind(-1)
        if self.settings.advantages == "normalize":
            advantages = losses.normalize_advantages(advantages.flatten(1), mask.flatten(1)).view_as(mask)
        live, parts = mask.flatten(1).sum(-1).clamp_min(1), []
        known = {"log_probs": log_probs, "advantages": advantages, "targets": targets, "values": values}
        for chunk in self._chunks(mask.shape[1], slice(0, mask.shape[2])):
            at, take = (slice(None), slice(None), chunk), partial(_take, rows=rows[:, chunk])
            part = Part(
                inputs=units.inputs.map(take),
                rnn_state=units.rnn_state[rows[:, chunk]],
                starts=batch.starts[members],
                actions=take(units.actions),
                log_probs=log_probs[at],
                weights=mask[at] / live[:, None, None],
                extra={name: x[at] for name, x in known.items()},
                loss_inputs=partial(Evaluated, mask=mask[at], live=live),
            )
            parts.append(part)
        return Group(slice(0, len(members)) if whole else members, params, own, parts)


def _take(units: Tensor, rows: Tensor) -> Tensor:
    """Gather rows [p, m] of units [P x units, T, ...]: [p, T, m, ...]."""
    return units.index_select(0, rows.flatten()).view(*rows.shape, *units.shape[1:]).transpose(1, 2)


make = PPO.make
