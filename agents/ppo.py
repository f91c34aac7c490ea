"""PPO (Schulman et al. 2017, arXiv 1707.06347): several passes over a block, with a clipped importance ratio.

Advantages (GAE) and value targets are computed once per block, with the values of the policy that acted. Every pass
takes the block's transitions in a new random order and splits them into minibatches; with an LSTM, it does so with
envs, whose unrolls stay complete. docs/concepts.md lists the implementation details that matter (Huang et al. 2022)
and where pbtrl has each. The defaults are in `settings.PPOSettings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.agents import losses
from pbtrl.agents.actor_critic import ActorCritic
from pbtrl.agents.arrays import Array
from pbtrl.agents.loss_inputs import Derivatives, LossOutput, NetworkOutputs
from pbtrl.agents.settings import PPOSettings
from pbtrl.agents.types import Hyperparameters, Inputs, State, Tensors
from pbtrl.agents.updates import Batch, Group, Part, shares

SEEDS = 2**24  # all float32 in [0, 1) that torch draws are multiples of 1 / SEEDS


@dataclass(frozen=True)
class Units:
    """Units of a block [P x units, T, ...], member after member, or some of p members in a new order [p, T, m, ...].

    `scalars` holds log-probabilities, advantages, value targets, values and the mask along its last axis, and along its
    first in a new order.
    """

    inputs: Inputs
    rnn_state: Tensor
    actions: Tensor
    scalars: Tensor

    def take(self, rows: Tensor) -> Units:
        """Gather the units in rows [p, m] of a block's."""

        def gather(x: Tensor) -> Tensor:
            return x.index_select(0, rows.flatten()).view(*rows.shape, *x.shape[1:])

        inputs, actions, scalars = self.inputs.map(gather), gather(self.actions), gather(self.scalars)
        return Units(
            inputs.map(lambda x: x.transpose(1, 2)),
            gather(self.rnn_state),
            actions.transpose(1, 2),
            scalars.movedim(-1, 0).contiguous().transpose(2, 3),
        )


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
    def loss(self, batch: NetworkOutputs, h: Hyperparameters) -> LossOutput:
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

    @property
    @override
    def closed_form(self) -> bool:
        """True, except for a subclass with a loss of its own."""
        return type(self).loss is PPO.loss

    @override
    def derivatives(self, batch: NetworkOutputs, entropies: Array, h: Hyperparameters) -> Derivatives:
        """Compute the derivatives of `loss`, with half of autograd's operations; this trains, `loss` does not."""
        old = {name: x.numpy() for name, x in batch.extra_loss_inputs.items()}
        mask, values, log_probs = batch.mask.numpy(), batch.values.numpy(), batch.log_probs.numpy()
        clip, value_cost, entropy_cost, live = (
            x.numpy()[:, None, None] for x in (h["clip"], h["value_cost"], h["entropy_cost"], batch.live)
        )
        moved = np.where(mask, log_probs - old["log_probs"], 0.0)
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
            "entropy": entropies * mask,
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
        """Compute what all passes share; a pass puts the units in a new order, of which minibatches are parts."""
        units, seeds = self._units(state, batch, h), self.split_extra_noise(batch.block.noise[:, 0, 0])[:, 0]
        seeds, count = (seeds * SEEDS).long(), len(units.actions) // len(seeds)
        counts = h["minibatches"].clamp_max(count)

        def updates(epoch: int, active: Tensor) -> Iterator[tuple[Tensor, Iterable[Group]]]:
            rows = self._order(seeds, count, epoch)
            passes = [
                (number, members, self._shuffled(units, rows[members], batch.starts[members], number))
                for number in sorted(set(counts[active].tolist()))
                for members in self._together(active & (counts == number))
            ]
            for i in range(int(counts[active].max())):
                groups = (self._group(state, h, members, next(parts)) for n, members, parts in passes if i < n)
                yield active & (counts > i), groups

        return updates

    def _order(self, seeds: Tensor, count: int, epoch: int) -> Tensor:
        """Rows [P, units] of the members' units in the random order of a pass."""
        generators = [torch.Generator().manual_seed(seed + SEEDS * epoch) for seed in seeds.tolist()]
        starts = torch.arange(0, count * len(seeds), count)[:, None]
        return torch.stack([torch.randperm(count, generator=g) for g in generators]) + starts

    def _shuffled(self, units: Units, rows: Tensor, starts: Tensor, number: int) -> Iterator[list[Part]]:
        """Yield the parts of each of a pass's minibatches, which are prepared together if they have one size.

        Images are gathered when they are needed, to save memory.
        """
        together = self.net.frames is None and rows.shape[1] % number == 0
        for some in shares(rows.shape[1], 1 if together else number):
            yield from self._split_units(units.take(rows[:, some]), starts, number if together else 1)

    def _split_units(self, units: Units, starts: Tensor, number: int) -> Iterator[list[Part]]:
        """Split units in a new order into `number` minibatches of one size, each in parts."""
        log_probs, advantages, targets, values, mask = units.scalars
        p, time, count = mask.shape

        def rows(x: Tensor) -> Tensor:
            """[p, T, m] -> a row per minibatch, [p, number, T x m / number]."""
            return x.view(p, time, number, -1).transpose(1, 2).flatten(2)

        live = rows(mask).sum(-1).clamp_min(1)
        if self.settings.advantages == "normalize":
            normalized = losses.normalize_advantages(rows(advantages), rows(mask))
            advantages = normalized.view(p, number, time, -1).transpose(1, 2).flatten(2)
        weights = mask / live.repeat_interleave(count // number, 1)[:, None]
        sizes = [x.stop - x.start for minibatch in shares(count, number) for x in self._chunks(time, minibatch)]
        inputs = (getattr(units.inputs, f.name) for f in fields(Inputs))
        tensors = (*inputs, units.actions, log_probs, weights, mask, advantages, targets, values)
        states = units.rnn_state.split_with_sizes(sizes, 1)
        pieces = zip(states, *(x.split_with_sizes(sizes, 2) for x in tensors), strict=True)
        chunks = len(sizes) // number
        for own_live in live.unbind(1):
            parts = []
            for rnn_state, *seen, actions, old, weight, alive, advantage, target, value in islice(pieces, chunks):
                part = Part(
                    inputs=Inputs(*seen),
                    rnn_state=rnn_state,
                    starts=starts,
                    actions=actions,
                    log_probs=old,
                    weights=weight,
                    extra={"log_probs": old, "advantages": advantage, "targets": target, "values": value},
                    loss_inputs=partial(NetworkOutputs, mask=alive, live=own_live),
                )
                parts.append(part)
            yield parts

    @override
    def continues(self, continuing: Tensor, metrics: Tensors, h: Hyperparameters) -> Tensor:
        """Whether the members' last minibatches have a KL divergence of at most `target_kl`."""
        return metrics["loss/kl"] <= h["target_kl"]

    def _units(self, state: State, batch: Batch, h: Hyperparameters) -> Units:
        """Compute advantages and value targets, and split the block into its units."""
        block, values = batch.block, self.values(state, batch)
        targets, advantages = batch.returns.gae(values)
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

    def _group(self, state: State, h: Hyperparameters, members: Tensor, parts: list[Part]) -> Group:
        """Prepare the update of some members from a minibatch."""
        if len(members) == len(state.grads):
            return Group(members, state.params[0], h, parts)
        own = {name: value[members] for name, value in h.items()}
        if self.net.frames is not None:
            return Group(members, state.params[int(members)], own, parts)
        params = {name: x.detach()[members].requires_grad_() for name, x in state.params[0].items()}
        return Group(members, params, own, parts)


make = PPO.make
