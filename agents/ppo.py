"""PPO (Schulman et al. 2017, arXiv 1707.06347): several passes over a block, with a clipped importance ratio.

Advantages (GAE) and value targets are computed once per block, with the values of the policy that acted. Every pass
takes the block's transitions in a new random order and splits them into minibatches; with an LSTM, it does so with
envs, whose unrolls stay complete. docs/concepts.md lists the implementation details that matter (Huang et al. 2022)
and where pbtrl has each. The defaults are in `settings.PPOSettings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.agents import losses
from pbtrl.agents.actor_critic import ActorCritic, Batch, shares
from pbtrl.agents.loss_inputs import Evaluated, LossOutput
from pbtrl.agents.returns import gae
from pbtrl.agents.settings import PPOSettings
from pbtrl.agents.types import Hyperparameters, Inputs, State, Tensors, Trajectory

Part = list[tuple[Tensor, Tensor]]
"""A minibatch: members [p] and, for each, the indices [p, m] of its units. Members with equal m are together."""

SEEDS = 2**24  # all float32 in [0, 1) that torch draws are multiples of 1 / SEEDS
SCALARS = ("log_probs", "advantages", "targets", "values", "mask")


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
            "log_ratio": moved.abs().flatten(1).sum(-1),
            "clipped": ((ratios - 1.0).abs() > clip[:, None, None]).flatten(1).sum(-1),
        }
        total = sums["policy"] + h["value_cost"] * sums["value"] - h["entropy_cost"] * sums["entropy"]
        return LossOutput(total / batch.live, sums)

    @override
    def minibatches(
        self, batch: Batch, h: Hyperparameters, epoch: int, active: Tensor
    ) -> Iterator[tuple[Tensor, Part]]:
        """Yield the members that take each update of a pass, and their minibatches."""
        seeds = batch.extra_loss_inputs["seeds"]
        units = len(batch.extra_loss_inputs["first"]) // len(seeds)
        generators = [torch.Generator().manual_seed(seed + SEEDS * epoch) for seed in seeds.tolist()]
        orders = torch.stack([torch.randperm(units, generator=g) for g in generators])
        counts = h["minibatches"].clamp_max(units)
        groups = [
            (members, orders[members], shares(units, count))
            for count in sorted(set(counts[active].tolist()))
            for members in self._together(active & (counts == count))
        ]
        for i in range(int(counts[active].max())):
            part = [(members, order[:, parts[i]]) for members, order, parts in groups if i < len(parts)]
            yield active & (counts > i), part

    @override
    def continues(self, continuing: Tensor, metrics: Tensors, h: Hyperparameters) -> Tensor:
        """Whether the members' last minibatches have a KL divergence of at most `target_kl`."""
        return metrics["loss/kl"] <= h["target_kl"]

    @override
    def _batch(self, state: State, block: Trajectory, h: Hyperparameters) -> Batch:
        """Add what minibatches are gathered from: units of all members, [P x units, T, ...] each."""
        batch = super()._batch(state, block, h)
        values = self._values(state, batch).movedim(1, 0)
        discounts, rewards = (x.movedim(1, 0) for x in (batch.discounts, batch.rewards))
        targets, advantages = gae(
            discounts, rewards, values[:-1], values[-1], lambda_=h["lambda_"][:, None], cuts=batch.cuts
        )
        targets, advantages, values = (x.movedim(0, 1) for x in (targets, advantages, values[:-1]))
        everything = slice(None), slice(None)
        inputs = self.preprocess(state, block.inputs(*everything)[:, :-1])
        units = {
            "observations": inputs.observations,
            "last_actions": inputs.actions,
            "last_rewards": inputs.rewards,
            "first": inputs.first,
            "actions": block.actions,
            "scalars": torch.stack([batch.log_probs, advantages, targets, values, batch.mask], -1),
        }
        rows = {name: self._units(x) for name, x in units.items()}
        rnn_state = block.rnn_state.flatten(0, 1) if self._recurrent else torch.zeros(len(rows["first"]), 0)
        seeds = (self.split_extra_noise(block.noise[:, 0, 0])[:, 0] * SEEDS).long()
        return replace(batch, extra_loss_inputs={**rows, "rnn_state": rnn_state, "seeds": seeds})

    @property
    def _recurrent(self) -> bool:
        return self.net.rnn_state_size > 0

    def _units(self, x: Tensor) -> Tensor:
        """[P, T, B, ...] -> units [P x T x B, 1, ...] or, with an LSTM, [P x B, T, ...]."""
        return x.transpose(1, 2).flatten(0, 1) if self._recurrent else x.flatten(0, 2)[:, None]

    @torch.no_grad()
    def _values(self, state: State, batch: Batch) -> Tensor:
        """Values [P, T+1, B] of the policy that acted, whose weights the members still have."""
        block, found = batch.block, torch.empty(batch.block.done.shape[0], batch.starts.shape[1], batch.mask.shape[2])
        for params, members in zip(state.params, self._groups(len(found)), strict=True):
            for envs in self._chunks(block, slice(0, found.shape[2])):
                inputs = self.preprocess(state, block.inputs(members, envs), members)
                _, values = self.net.unroll(params, inputs, block.rnn_state[members, envs], batch.starts[members])
                found[members, :, envs] = values
        return found

    def _together(self, chosen: Tensor) -> list[Tensor]:
        """Indices of the members that are chosen [P], in the groups that share a forward pass."""
        (members,) = chosen.nonzero(as_tuple=True)
        return [members] if self.net.frames is None else [member[None] for member in members]

    @override
    def _gradients(self, state: State, batch: Batch, h: Hyperparameters, part: Any) -> tuple[Tensors, Tensors]:
        """As in the base; metrics of members without a minibatch are NaN."""
        state.grads.zero_()
        metrics: Tensors = {}
        for members, units in part:
            for name, value in self._minibatch_gradients(state, batch, h, members, units).items():
                metrics.setdefault(name, torch.full(h["clip"].shape, torch.nan))[members] = value
        return metrics, {}

    def _minibatch_gradients(
        self, state: State, batch: Batch, h: Hyperparameters, members: Tensor, units: Tensor
    ) -> Tensors:
        """Add the members' gradients to `state.grads`; return their metrics [p]."""
        rows, h = batch.extra_loss_inputs, {name: value[members] for name, value in h.items()}
        whole = len(members) == len(state.grads)
        params = state.params[0] if whole else self.layout.leaves(state.tensors["params"][members])
        grads = self.layout.views(state.grads)
        units = units + members[:, None] * (len(rows["first"]) // len(state.grads))
        scalars = dict(zip(SCALARS, _take(rows["scalars"], units).unbind(-1), strict=True))
        mask = scalars["mask"]
        if self.settings.advantages == "normalize":
            normalized = losses.normalize_advantages(scalars["advantages"].flatten(1), mask.flatten(1))
            scalars["advantages"] = normalized.view_as(mask)
        live, sums = mask.flatten(1).sum(-1).clamp_min(1), dict[str, Tensor]()
        for chunk in self._chunk_units(mask):
            chosen = {name: x[:, :, chunk] for name, x in scalars.items()}
            loss = self.loss(self._evaluate(params, batch, members, units[:, chunk], chosen, live), h)
            found = torch.autograd.grad(loss.total.sum(), list(params.values()), materialize_grads=True)
            for total, grad in zip(grads.values(), found, strict=True):
                total.index_add_(0, members, grad)
            sums = {k: sums.get(k, 0.0) + v.detach() for k, v in loss.sums.items()}
        return {f"loss/{k}": v / live for k, v in sums.items()}

    def _chunk_units(self, mask: Tensor) -> list[slice]:
        """Slices of a minibatch's units [p, T, m] that go through the network together."""
        time, count = mask.shape[1:]
        width = count if self.net.frames is None else max(1, self.net.frames // time)
        return [slice(i, i + width) for i in range(0, count, width)]

    def _evaluate(
        self, params: dict[str, Tensor], batch: Batch, members: Tensor, units: Tensor, scalars: Tensors, live: Tensor
    ) -> Evaluated:
        """Run the current network on units [p, m] of some members."""
        rows = batch.extra_loss_inputs
        names = ("observations", "last_actions", "last_rewards", "first", "actions")
        *inputs, actions = (_take(rows[name], units) for name in names)
        rnn_state = rows["rnn_state"][units]
        head, values = self.net.unroll(params, Inputs(*inputs), rnn_state, batch.starts[members])
        policy = self.policy.join(head, params.get("free"))
        return Evaluated(
            policy=policy,
            log_probs=self.policy.log_prob(policy, actions),
            values=values,
            mask=scalars["mask"],
            live=live,
            extra_loss_inputs=scalars,
        )


def _take(rows: Tensor, units: Tensor) -> Tensor:
    """Gather rows [P x units, T, ...] at units [p, m]: [p, T, m, ...]."""
    return rows.index_select(0, units.flatten()).view(*units.shape, *rows.shape[1:]).transpose(1, 2)


make = PPO.make
