"""What the actor-critic agents have in common: a policy and a value, learned from blocks of experience.

An agent of this family says what the return targets are (`targets`); this file does the rest over a whole cohort. A
block is learned from up to `passes` times, until the policy has moved away from the one that acted by a mean |log rho|
of `max_log_rho`; a pass goes through the block in `minibatches` of whole envs. For each, the loss is the sum of policy
gradient, value and entropy terms, and one step of the flat optimiser follows. An update whose gradient is not finite
is skipped and counted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import torch
from gymnasium import spaces
from torch import Tensor

from agents import losses, normalise, optim
from agents.distributions import Distribution, distribution
from agents.networks import Layout, Net, network
from agents.returns import effective_unroll, unroll_cuts
from agents.settings import ActorCritic as Settings
from agents.types import Hyperparameters, Learned, State, Trajectory, Views

REWARD_CLIP = 10.0  # of normalised rewards
OBSERVATION_CLIP = 10.0  # of normalised observations


@dataclass(frozen=True)
class ActorCritic(ABC):
    """The algorithm for one kind of env; see `agents.types.Agent` for the contract."""

    settings: Settings
    shape: tuple[int, ...]
    image: bool
    net: Net
    policy: Distribution

    @classmethod
    def make(
        cls, settings: Settings, observation_space: spaces.Space[object], action_space: spaces.Space[object]
    ) -> Self:
        """The agent for an env's spaces.

        Raises:
            ValueError: with one line, if it cannot read these observations or act in this space.
        """
        assert isinstance(observation_space, spaces.Box)
        shape = observation_space.shape
        image = observation_space.dtype == "uint8" and len(shape) == 3
        policy = distribution(action_space, settings)
        return cls(settings, shape, image, network(settings, shape, policy.size, image), policy)

    @abstractmethod
    def targets(
        self, log_rhos: Tensor, discounts: Tensor, rewards: Tensor, values: Tensor, bootstrap_value: Tensor,
        h: Hyperparameters, cuts: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Value targets and advantages, both [T, p, B], as `agents.returns` has them."""

    @property
    def layout(self) -> Layout:
        """The network's parameters, and the policy's that depend on no observation."""
        free = {"free": (self.policy.free_size,)} if self.policy.free_size else {}
        return Layout({**self.net.layout.shapes, **free})

    @property
    def normalises(self) -> bool:
        """Whether observations are normalised."""
        kind = self.settings.observations
        return not self.image if kind == "auto" else kind == "normalise"

    @property
    def rewards(self) -> str:
        """`clip`, `normalise` or `none`."""
        kind = self.settings.rewards
        return kind if kind != "auto" else "clip" if self.image else "normalise"

    def init(self, generators: Sequence[torch.Generator]) -> State:
        """Fresh state for one member per generator."""
        members, layout = len(generators), self.layout
        params = torch.zeros(members, layout.size)
        views = layout.views(params)
        for i, generator in enumerate(generators):
            for name, value in self.net.initial(generator).items():
                views[name][i] = value
        if "free" in views:
            views["free"].fill_(self.settings.log_std)
        tensors = {"params": params, "skipped": torch.zeros(members, dtype=torch.int64)}
        if self.settings.optimiser == "adam":
            steps = torch.zeros(members, dtype=torch.int64)
            tensors |= {"adam.m": torch.zeros_like(params), "adam.v": torch.zeros_like(params), "adam.steps": steps}
        else:
            tensors["rmsprop.mean_square"] = torch.ones_like(params)
        if self.normalises:
            size = (math.prod(self.shape),)
            tensors |= _named("observation", normalise.init_moments(members, size))
            tensors |= {"shift": torch.zeros(members, *size), "scale": torch.ones(members, *size)}
        if self.rewards == "normalise":
            tensors |= _named("return", normalise.init_moments(members))
        grads, groups = torch.zeros_like(params), self._groups(members)
        leaves = tuple(layout.leaves(params[g]) for g in groups)
        return State(tensors, leaves, grads, tuple(layout.views(grads[g]) for g in groups))

    def noise(self, generators: Sequence[torch.Generator], time: int, envs: int) -> Tensor:
        """Action noise of a block, [T, P, B, ...]."""
        shape = (time, envs, *self.policy.noise_shape)
        return torch.stack([self.policy.draw_noise(g, shape) for g in generators], 1)

    @torch.no_grad()
    def act(self, state: State, observations: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Actions [P, B, ...] and policy parameters [P, B, K]; without noise, the mode."""
        x = self._inputs(state, observations)
        heads = [
            self.policy.join(self.net.policy(params, x[g]), params.get("free"))
            for params, g in zip(state.params, self._groups(len(x)), strict=True)
        ]
        policy = heads[0] if len(heads) == 1 else torch.cat(heads)
        return (self.policy.mode(policy) if noise is None else self.policy.sample(policy, noise)), policy

    def learn(self, state: State, block: Trajectory, hyperparameters: Hyperparameters) -> Learned:
        """`passes` V-trace updates from one block, in place; then the statistics of observations take it in.

        A member's metrics are those of its own last update.
        """
        h, tensors = hyperparameters, state.tensors
        batch = self._batch(state, block, h)
        metrics: dict[str, Tensor] = {}
        asked, furthest = self._passes(h)
        passes, going = torch.zeros_like(asked), torch.ones_like(asked, dtype=torch.bool)
        for i in range(int(asked.max())):
            wanted = going & (asked > i)
            if not wanted.any():
                break
            passes += wanted
            for envs in _shares(block.rewards.shape[2], self.settings.minibatches):
                latest = self._gradients(state, batch, h, envs)
                norms = optim.clip_by_global_norm(state.grads, h["max_grad_norm"])
                finite = torch.isfinite(norms)
                latest |= {"loss/gradient_norm": norms, "loss/passes": passes.float()}
                metrics = {k: torch.where(wanted, v, metrics.get(k, v)) for k, v in latest.items()}
                self._step(state, h, wanted & finite)
                skipped = tensors["skipped"]
                tensors["skipped"] = torch.where(wanted, torch.where(finite, 0, skipped + 1), skipped)
                going &= latest["loss/log_rho"] <= furthest
        if self.normalises:
            seen = block.observations[:, :-1].flatten(3).flatten(1, 2)
            moments = normalise.update_moments(_part("observation", tensors), seen, batch.mask.flatten(1))
            mean, variance = normalise.mean_and_variance(moments)
            tensors |= {**_named("observation", moments), "shift": mean, "scale": (variance + 1e-8).rsqrt()}
        consumed = {**h, "unroll_length": effective_unroll(batch.unroll_cuts)}
        return Learned(metrics, consumed)

    def _passes(self, h: Hyperparameters) -> tuple[Tensor, Tensor]:
        """How often a block is learned from at most, and the mean |log rho| that ends it, [P] each."""
        once = torch.ones_like(h["unroll_length"])
        return h.get("passes", once), h.get("max_log_rho", once * torch.inf)

    def _batch(self, state: State, block: Trajectory, h: Hyperparameters) -> _Batch:
        """What all passes share."""
        time, mask = block.rewards.shape[1], (~block.dead).to(block.rewards.dtype)
        rewards = block.rewards
        if self.rewards == "clip":
            rewards = rewards.clamp(-1.0, 1.0)
        elif self.rewards == "normalise":
            rewards = self._scaled(state, block, h["gamma"])
        cuts = unroll_cuts(h["unroll_length"], time)
        return _Batch(
            block=block,
            rewards=rewards,
            discounts=_rows(h["gamma"], 3) * ~block.terminated,
            cuts=cuts[:, :, None] | block.over.movedim(1, 0),
            unroll_cuts=cuts,
            mask=mask,
            log_probs=self.policy.log_prob(block.policy, block.actions),
        )

    def _scaled(self, state: State, block: Trajectory, gamma: Tensor) -> Tensor:
        nothing_yet = torch.zeros(block.rewards.shape[::2], dtype=torch.float64)
        scale = {"running": nothing_yet, **_part("return", state.tensors)}
        scale = normalise.update_return_scale(scale, block.rewards, block.over, gamma, ~block.dead)
        state.tensors |= _named("return", scale)
        return (block.rewards / _rows(normalise.return_scale(scale), 3)).clamp(-REWARD_CLIP, REWARD_CLIP)

    def _gradients(self, state: State, batch: _Batch, h: Hyperparameters, envs: slice) -> dict[str, Tensor]:
        """Set `state.grads` to the gradients of some envs' loss; metrics of all members."""
        state.grads.zero_()
        found = [self._group_gradients(state, batch, h, envs, n) for n in range(len(state.params))]
        return {k: torch.cat([f[k] for f in found]) for k in found[0]}

    def _group_gradients(
        self, state: State, batch: _Batch, h: Hyperparameters, envs: slice, group: int
    ) -> dict[str, Tensor]:
        members = self._groups(len(state.grads))[group]
        params, grads = state.params[group], state.parts[group]
        h = {name: value[members] for name, value in h.items()}
        live = batch.mask[members, :, envs].flatten(1).sum(-1).clamp_min(1)
        scale = 1.0 / live if self.settings.reduction == "mean" else 1.0
        sums: dict[str, Tensor] = {}
        for chunk in self._chunks(batch.block, envs):
            terms = self._terms(state, params, batch, members, chunk, h)
            loss = terms["policy"] + h["value_cost"] * terms["value"] - h["entropy_cost"] * terms["entropy"]
            found = torch.autograd.grad((loss * scale).sum(), list(params.values()))
            for into, grad in zip(grads.values(), found, strict=True):
                into.add_(grad)
            sums = {k: sums.get(k, 0.0) + v.detach() for k, v in terms.items()}
        return {f"loss/{k}": v / live for k, v in sums.items()}

    def _terms(
        self, state: State, params: Views, batch: _Batch, members: slice, envs: slice, h: Hyperparameters
    ) -> dict[str, Tensor]:  # fmt: skip
        """The loss terms of some envs of some members, summed over time and envs, [p] each."""
        block, mask = batch.block, batch.mask[members, :, envs]
        observations = block.observations[members, :, envs]
        p, time, b = mask.shape
        head, values = self.net.both(params, self._inputs(state, observations.flatten(1, 2), members))
        head, values = head.reshape(p, time + 1, b, -1), values.reshape(p, time + 1, b)
        policy = self.policy.join(head[:, :-1], params.get("free"))
        log_probs = self.policy.log_prob(policy, block.actions[members, :, envs])
        log_rhos = (log_probs - batch.log_probs[members, :, envs]).detach()
        targets, advantages = self.targets(
            log_rhos.movedim(1, 0),
            batch.discounts[members, :, envs].movedim(1, 0),
            batch.rewards[members, :, envs].movedim(1, 0),
            values[:, :-1].detach().movedim(1, 0),
            values[:, -1].detach(),
            h,
            batch.cuts[:, members, envs],
        )
        targets, advantages = targets.movedim(0, 1), advantages.movedim(0, 1)
        if self.settings.advantages == "normalise":
            flat = losses.normalise_advantages(advantages.flatten(1), mask.flatten(1))
            advantages = flat.view_as(mask)
        return {
            "policy": losses.policy_gradient_loss(log_probs, advantages, mask),
            "value": losses.value_loss(values[:, :-1], targets, mask),
            "entropy": losses.entropy_bonus(self.policy.entropy(policy), mask),
            "log_rho": (log_rhos.abs() * mask).flatten(1).sum(-1),
        }

    def _step(self, state: State, h: Hyperparameters, active: Tensor) -> None:
        t = state.tensors
        if self.settings.optimiser == "adam":
            moments = (t["adam.m"], t["adam.v"], t["adam.steps"])
            optim.adam(
                t["params"], state.grads, *moments,
                learning_rate=h["learning_rate"], epsilon=h["adam_epsilon"], active=active,
            )  # fmt: skip
        else:
            optim.rmsprop(
                t["params"], state.grads, t["rmsprop.mean_square"], learning_rate=h["learning_rate"],
                decay=h["rmsprop_decay"], epsilon=h["rmsprop_epsilon"], active=active,
            )  # fmt: skip

    def _inputs(self, state: State, observations: Tensor, members: slice = slice(None)) -> Tensor:
        """Observations [P, M, ...] as the network reads them."""
        if self.image:
            return observations
        x = observations.flatten(2)
        if not self.normalises:
            return x
        shift, scale = state.tensors["shift"][members, None], state.tensors["scale"][members, None]
        return (x - shift).mul_(scale).clamp_(-OBSERVATION_CLIP, OBSERVATION_CLIP)

    def _groups(self, members: int) -> list[slice]:
        """Members that pass through the network together: all, or one by one where the network works in chunks."""
        if self.net.frames is None:
            return [slice(0, members)]
        return [slice(i, i + 1) for i in range(members)]

    def _chunks(self, block: Trajectory, envs: slice) -> Iterator[slice]:
        """Envs whose whole unrolls pass through the network at once: all of them where advantages are normalised."""
        time, count = block.observations.shape[1], envs.stop - envs.start
        frames = None if self.settings.advantages == "normalise" else self.net.frames
        width = count if frames is None else max(1, frames // time)
        return (slice(i, min(envs.stop, i + width)) for i in range(envs.start, envs.stop, width))


@dataclass(frozen=True)
class _Batch:
    """A block with what does not change from pass to pass; `cuts` is [T, P, B], the rest [P, T, B]."""

    block: Trajectory
    rewards: Tensor
    discounts: Tensor
    cuts: Tensor
    unroll_cuts: Tensor
    mask: Tensor
    log_probs: Tensor


def _named(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _part(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(f"{prefix}."): v for k, v in tensors.items() if k.startswith(f"{prefix}.")}


def _shares(envs: int, count: int) -> list[slice]:
    """`count` runs of neighbouring envs, as equal as can be; fewer where there are fewer envs."""
    edges = [envs * i // min(count, envs) for i in range(min(count, envs) + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


def _rows(values: Tensor, ndim: int) -> Tensor:
    """[P] -> [P, 1, ...] with `ndim` axes."""
    return values.view(-1, *(1,) * (ndim - 1))
