"""What the actor-critic agents have in common: a policy and a value, learned from blocks of experience.

An agent of this family states its loss; this file does the rest over a whole cohort. A block is learned from in up
to `epochs` epochs, until the policy has moved away from the one that acted by a mean |log ratio| of `max_log_ratio`. An
epoch goes through the block in `minibatches` of whole envs, each followed by one step of the flat optimizer. An update
whose gradient is not finite is skipped and counted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import torch
from gymnasium import spaces
from torch import Tensor

from pbtrl.agents import normalize, optim
from pbtrl.agents.distributions import Distribution, distribution
from pbtrl.agents.layers import Layout
from pbtrl.agents.loss_inputs import LossInputs, LossOutput, with_prefix, without_prefix
from pbtrl.agents.networks import Net, make_network
from pbtrl.agents.returns import effective_unroll, unroll_cuts, unroll_starts
from pbtrl.agents.settings import ActorCriticSettings
from pbtrl.agents.types import ActOutput, Hyperparameters, Inputs, State, Tensors, Trajectory, UpdateResult, Views

REWARD_CLIP = 10.0  # of normalized rewards
OBSERVATION_CLIP = 10.0  # of normalized observations


@dataclass(frozen=True)
class ActorCritic(ABC):
    """The algorithm for one kind of env; see `agents.types.Agent` for the contract."""

    settings: ActorCriticSettings
    shape: tuple[int, ...]
    image: bool
    net: Net
    policy: Distribution

    @classmethod
    def make(
        cls, settings: ActorCriticSettings, observation_space: spaces.Space[object], action_space: spaces.Space[object]
    ) -> Self:
        """The agent for an env's spaces.

        Raises:
            ValueError: with one line, if it cannot read these observations or act in this space.
        """
        assert isinstance(observation_space, spaces.Box)
        shape = observation_space.shape
        image = observation_space.dtype == "uint8" and len(shape) == 3
        policy = distribution(action_space, settings)
        return cls(settings, shape, image, cls.network(settings, shape, policy, image), policy)

    @classmethod
    def network(cls, settings: ActorCriticSettings, shape: tuple[int, ...], policy: Distribution, image: bool) -> Net:
        """What the agent thinks with; raises as `make`."""
        return make_network(settings, shape, policy, image)

    @property
    @abstractmethod
    def needs_full_batch(self) -> bool:
        """Whether the loss needs all that an update learns from at once, instead of a sum over chunks of envs."""

    @abstractmethod
    def loss(self, seen: LossInputs, h: Hyperparameters) -> LossOutput:
        """The loss of what was seen."""

    def replace(self, state: State, new: dict[str, Tensor], active: Tensor) -> None:
        """After a step: put `LossOutput.new` into the state of the members that took it."""
        for name, value in new.items():
            state.tensors[name] = torch.where(_rows(active, value.ndim), value, state.tensors[name])

    @property
    def unused(self) -> frozenset[str]:
        """Live hyperparameters that change nothing in this env."""
        return frozenset()

    @property
    def layout(self) -> Layout:
        """The network's parameters, and what `extra_parameters` names."""
        return Layout(
            {**self.net.layout.shapes, **{name: (size,) for name, (size, _) in self.extra_parameters.items()}}
        )

    @property
    def extra_parameters(self) -> dict[str, tuple[int, float]]:
        """What is learned besides the network: how many numbers, and what they start from."""
        free = self.policy.free_size
        return {"free": (free, self.settings.log_std)} if free else {}

    @property
    def normalizes(self) -> bool:
        """Whether observations are normalized."""
        kind = self.settings.observations
        return not self.image if kind == "auto" else kind == "normalize"

    @property
    def acting_tensors(self) -> tuple[str, ...]:
        """Names of the state's tensors that `act` reads."""
        return ("params", "shift", "scale") if self.normalizes else ("params",)

    @property
    def rewards(self) -> str:
        """What the settings name, with `auto` resolved."""
        kind = self.settings.rewards
        return kind if kind != "auto" else "clip" if self.image else "normalize"

    def init(self, generators: Sequence[torch.Generator]) -> State:
        """Fresh state for one member per generator."""
        members, layout = len(generators), self.layout
        params = torch.zeros(members, layout.size)
        views = layout.views(params)
        for i, generator in enumerate(generators):
            for name, value in self.net.initial(generator).items():
                views[name][i] = value
        for name, (_, start) in self.extra_parameters.items():
            views[name].fill_(start)
        tensors = {"params": params, "skipped": torch.zeros(members, dtype=torch.int64)}
        if self.settings.optimizer == "adam":
            steps = torch.zeros(members, dtype=torch.int64)
            tensors |= {"adam.m": torch.zeros_like(params), "adam.v": torch.zeros_like(params), "adam.steps": steps}
        else:
            tensors["rmsprop.mean_square"] = torch.ones_like(params)
        if self.normalizes:
            size = (math.prod(self.shape),)
            tensors |= with_prefix("observation", normalize.init_moments(members, size))
            tensors |= {"shift": torch.zeros(members, *size), "scale": torch.ones(members, *size)}
        if self.rewards == "normalize":
            tensors |= with_prefix("return", normalize.init_moments(members))
        grads, groups = torch.zeros_like(params), self._groups(members)
        leaves = tuple(layout.leaves(params[g]) for g in groups)
        return State(tensors, leaves, leaves, grads, tuple(layout.views(grads[g]) for g in groups))

    def noise(self, generators: Sequence[torch.Generator], time: int, envs: int) -> Tensor:
        """The policy's noise of a block, then the agent's own, [T, P, B, ...]."""
        shape = (time, envs, *self.policy.noise_shape)
        drawn = [
            torch.cat([self.policy.draw_noise(g, shape), *self.extra_noise(g, time, envs)], -1) for g in generators
        ]
        return torch.stack(drawn, 1)

    def extra_noise(self, generator: torch.Generator, time: int, envs: int) -> list[Tensor]:
        """What is random in a block besides the actions, [T, B, ...] each."""
        return []

    def split_extra_noise(self, noise: Tensor) -> Tensor:
        """What `extra_noise` drew, from the end of [..., N]."""
        return noise[..., self.policy.noise_shape[0] :]

    def begin(self, members: int, envs: int) -> tuple[Tensor, Tensor]:
        """No last action, and nothing remembered."""
        return self.policy.initial_action(members, envs), torch.zeros(members, envs, self.net.rnn_state_size)

    def forget(self, state: State, slot: int) -> None:
        """What an agent replays of the old one is dead; the envs' returns so far count on."""
        if "replay.is_reset_step" in state.running:
            state.running["replay.is_reset_step"][slot] = True

    @torch.no_grad()
    def act(self, state: State, inputs: Inputs, rnn_state: Tensor, noise: Tensor | None) -> ActOutput:
        """Act at one step; without noise, by the policy's mode."""
        inputs, chance = self.preprocess(state, inputs), None if noise is None else self.split_extra_noise(noise)
        groups = self._groups(len(rnn_state))
        parts = [(inputs, rnn_state, chance)]
        if len(groups) > 1:
            parts = [(inputs[g], rnn_state[g], None if chance is None else chance[g]) for g in groups]
        found = [self.step(params, *part) for params, part in zip(state.acting, parts, strict=True)]
        heads, memories = zip(*found, strict=True)
        policy = _joined(
            [self.policy.join(head, params.get("free")) for head, params in zip(heads, state.acting, strict=True)]
        )
        if noise is None:
            return ActOutput(self.policy.mode(policy), policy, _joined(memories))
        drawn = noise[..., : self.policy.noise_shape[0]]
        return ActOutput(self.policy.sample(policy, drawn), policy, _joined(memories))

    def step(self, params: Views, inputs: Inputs, rnn_state: Tensor, chance: Tensor | None) -> tuple[Tensor, Tensor]:
        """The network at one step, as `Net.step`; `chance` [p, B, ...] is what `extra_noise` drew."""
        return self.net.step(params, inputs, rnn_state)

    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None, extra_loss_inputs: Tensors
    ) -> tuple[Tensor, Tensor, Tensors]:
        """The network over a block, as `Net.unroll`; and what it says beyond that, [p, T+1, B, ...] each."""
        return *self.net.unroll(params, inputs, rnn_state, starts), {}

    def extra_loss_inputs(self, state: State, block: Trajectory, h: Hyperparameters) -> Tensors:
        """What the loss needs besides the block, [P, any, B, ...] each; called once per block."""
        return {}

    def learn(self, state: State, block: Trajectory, hyperparameters: Hyperparameters) -> UpdateResult:
        """`epochs` times `minibatches` updates from one block, in place; then observations' statistics take it in.

        A member's metrics are those of its own last update that was not skipped.
        """
        h, tensors = hyperparameters, state.tensors
        batch = self._batch(state, block, h)
        metrics: dict[str, Tensor] = {}
        asked, furthest = self._epochs(h)
        epochs, going = torch.zeros_like(asked), torch.ones_like(asked, dtype=torch.bool)
        updates, skips = torch.zeros_like(asked), torch.zeros_like(asked)
        for i in range(int(asked.max())):
            wanted = going & (asked > i)
            if not wanted.any():
                break
            epochs += wanted
            for envs in _shares(block.rewards.shape[2], self.settings.minibatches):
                latest, new = self._gradients(state, batch, h, envs)
                norms = optim.clip_by_global_norm(state.grads, h["max_grad_norm"])
                finite = torch.isfinite(norms)
                taken = wanted & finite
                updates += wanted
                skips += wanted & ~finite
                latest |= {"loss/gradient_norm": norms, "loss/epochs": epochs.float()}
                metrics = {k: torch.where(taken, v, metrics.get(k, math.nan)) for k, v in latest.items()}
                self._step(state, h, taken)
                self.replace(state, new, taken)
                state.refresh()
                skipped = tensors["skipped"]
                tensors["skipped"] = torch.where(wanted, torch.where(finite, 0, skipped + 1), skipped)
                going &= latest["loss/log_ratio"] <= furthest
        if self.normalizes:
            seen = block.observations[:, :-1].flatten(3).flatten(1, 2)
            moments = normalize.update_moments(without_prefix("observation", tensors), seen, batch.fresh.flatten(1))
            mean, variance = normalize.mean_and_variance(moments)
            tensors |= {**with_prefix("observation", moments), "shift": mean, "scale": (variance + 1e-8).rsqrt()}
        consumed = {**h, "unroll_length": effective_unroll(batch.unroll_cuts)}
        return UpdateResult(metrics, consumed, updates, skips)

    def _epochs(self, h: Hyperparameters) -> tuple[Tensor, Tensor]:
        """How often a block is learned from at most, and the mean |log rho| that ends it, [P] each."""
        once = torch.ones_like(h["unroll_length"])
        return h.get("epochs", once), h.get("max_log_ratio", once * torch.inf)

    def _batch(self, state: State, block: Trajectory, h: Hyperparameters) -> _Batch:
        """What all passes share."""
        time, mask = block.rewards.shape[1], (~block.is_reset_step).to(block.rewards.dtype)
        if self.rewards == "normalize":
            self._count_returns(state, block, h["gamma"])
        cuts = unroll_cuts(h["unroll_length"], time)
        return _Batch(
            block=block,
            rewards=self.transform_rewards(state, block.rewards),
            discounts=_rows(h["gamma"], 3) * ~block.terminated,
            cuts=cuts[:, :, None] | block.done.movedim(1, 0),
            unroll_cuts=cuts,
            starts=unroll_starts(cuts),
            mask=mask,
            fresh=mask if block.from_replay is None else mask * ~block.from_replay,
            log_probs=self.policy.log_prob(block.policy, block.actions),
            extra_loss_inputs=self.extra_loss_inputs(state, block, h),
        )

    def transform_rewards(self, state: State, rewards: Tensor) -> Tensor:
        """Raw rewards [P, T, B] as the learner is given them."""
        if self.rewards == "clip":
            return rewards.clamp(-1.0, 1.0)
        if self.rewards == "none":
            return rewards
        if self.rewards == "asymmetric":
            return torch.where(rewards < 0, 0.3, 1.0) * 5.0 * torch.tanh(rewards / 5.0)
        if self.rewards == "asymmetric_figure":
            return torch.where(rewards < 0, 0.3, 5.0) * torch.tanh(rewards)
        scale = normalize.return_scale(without_prefix("return", state.tensors))
        return (rewards / _rows(scale, 3)).clamp(-REWARD_CLIP, REWARD_CLIP)

    def _count_returns(self, state: State, block: Trajectory, gamma: Tensor) -> None:
        nothing_yet = torch.zeros(block.rewards.shape[::2], dtype=torch.float64)
        known = {**without_prefix("return", state.tensors), "running": state.running.get("return", nothing_yet)}
        new = ~block.is_reset_step if block.from_replay is None else ~(block.is_reset_step | block.from_replay)
        known = normalize.update_return_scale(known, block.rewards, block.done, gamma, new)
        state.running["return"] = known.pop("running")
        state.tensors |= with_prefix("return", known)

    def _gradients(
        self, state: State, batch: _Batch, h: Hyperparameters, envs: slice
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Set `state.grads` to the gradients of some envs' loss; metrics of all members, and `LossOutput.new`."""
        state.grads.zero_()
        found = [self._group_gradients(state, batch, h, envs, n) for n in range(len(state.params))]
        metrics, new = ({k: _joined([f[i][k] for f in found]) for k in found[0][i]} for i in (0, 1))
        return metrics, new

    def _group_gradients(
        self, state: State, batch: _Batch, h: Hyperparameters, envs: slice, group: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        members = self._groups(len(state.grads))[group]
        params, grads = state.params[group], state.parts[group]
        h = {name: value[members] for name, value in h.items()}
        live, fresh = (m[members, :, envs].flatten(1).sum(-1).clamp_min(1) for m in (batch.mask, batch.fresh))
        sums: dict[str, Tensor] = {}
        new: dict[str, Tensor] = {}
        moved = torch.zeros_like(live)
        for chunk in self._chunks(batch.block, envs):
            seen = self._seen(state, params, batch, members, chunk, live)
            loss = self.loss(seen, h)
            moved = moved + (seen.log_rhos.abs() * batch.fresh[members, :, chunk]).flatten(1).sum(-1)
            found = torch.autograd.grad(loss.total.sum(), list(params.values()), materialize_grads=True)
            for into, grad in zip(grads.values(), found, strict=True):
                into.add_(grad)
            sums = {k: sums.get(k, 0.0) + v.detach() for k, v in loss.sums.items()}
            new = loss.new
        return {f"loss/{k}": v / live for k, v in sums.items()} | {"loss/log_ratio": moved / fresh}, new

    def _seen(
        self, state: State, params: Views, batch: _Batch, members: slice, envs: slice, live: Tensor
    ) -> LossInputs:
        """Some envs of some members, through the network as it is now."""
        block, mask = batch.block, batch.mask[members, :, envs]
        inputs = self.preprocess(state, block.inputs(members, envs), members)
        extra_loss_inputs = {name: value[members, :, envs] for name, value in batch.extra_loss_inputs.items()}
        rnn_state, starts = block.rnn_state[members, envs], batch.starts[members]
        head, values, said = self.unroll(params, inputs, rnn_state, starts, extra_loss_inputs)
        policy = self.policy.join(head[:, :-1], params.get("free"))
        log_probs = self.policy.log_prob(policy, block.actions[members, :, envs])
        return LossInputs(
            state=state,
            members=members,
            params=params,
            policy=policy,
            behavior=block.policy[members, :, envs],
            log_probs=log_probs,
            log_rhos=(log_probs - batch.log_probs[members, :, envs]).detach(),
            values=values,
            rewards=batch.rewards[members, :, envs],
            discounts=batch.discounts[members, :, envs],
            cuts=batch.cuts[:, members, envs],
            starts=starts,
            mask=mask,
            live=live,
            extra_loss_inputs=extra_loss_inputs | said,
        )

    def _step(self, state: State, h: Hyperparameters, active: Tensor) -> None:
        t = state.tensors
        if self.settings.optimizer == "adam":
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

    def preprocess(self, state: State, inputs: Inputs, members: slice = slice(None)) -> Inputs:
        """Inputs [P, ...] with observations as the network reads them: vectors flat and normalized."""
        if self.image:
            return inputs
        steps = inputs.first.ndim
        x = inputs.observations.flatten(steps)
        if self.normalizes:
            shift, scale = (state.tensors[k][members].view(len(x), *(1,) * (steps - 1), -1) for k in ("shift", "scale"))
            x = (x - shift).mul_(scale).clamp_(-OBSERVATION_CLIP, OBSERVATION_CLIP)
        return replace(inputs, observations=x)

    def _groups(self, members: int) -> list[slice]:
        """Members that pass through the network together: all, or one by one where the network works in chunks."""
        if self.net.frames is None:
            return [slice(0, members)]
        return [slice(i, i + 1) for i in range(members)]

    def _chunks(self, block: Trajectory, envs: slice) -> Iterator[slice]:
        """Envs whose whole unrolls pass through the network at once."""
        time, count = block.observations.shape[1], envs.stop - envs.start
        frames = None if self.needs_full_batch else self.net.frames
        width = count if frames is None else max(1, frames // time)
        return (slice(i, min(envs.stop, i + width)) for i in range(envs.start, envs.stop, width))


@dataclass(frozen=True)
class _Batch:
    """A block with what does not change from pass to pass, [P, T, B, ...].

    `cuts` is [T, P, B], `unroll_cuts` [T, P] and `starts` [P, T+1].

    `mask` is 0 for dead transitions, `fresh` for replayed ones too.
    """

    block: Trajectory
    rewards: Tensor
    discounts: Tensor
    cuts: Tensor
    unroll_cuts: Tensor
    starts: Tensor
    mask: Tensor
    fresh: Tensor
    log_probs: Tensor
    extra_loss_inputs: Tensors


def _shares(envs: int, count: int) -> list[slice]:
    """`count` runs of neighboring envs, as equal as can be; fewer where there are fewer envs."""
    edges = [envs * i // min(count, envs) for i in range(min(count, envs) + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


def _joined(groups: Sequence[Tensor]) -> Tensor:
    """All members' rows, from those of each group; acting does this at every env step, mostly with one group."""
    return groups[0] if len(groups) == 1 else torch.cat(list(groups))


def _rows(values: Tensor, ndim: int) -> Tensor:
    """[P] -> [P, 1, ...] with `ndim` axes."""
    return values.view(-1, *(1,) * (ndim - 1))
