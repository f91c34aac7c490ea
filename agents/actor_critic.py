"""Base class of the actor-critic agents: a policy and a value function learned from blocks of experience.

A subclass defines the loss; this module does the rest for a whole cohort. A member makes up to `epochs` passes over
each block, and stops earlier once the mean |log rho| between its policy and the behavior policy exceeds
`max_log_ratio`. Each pass splits the envs into `minibatches`, with one step of the flat optimizer per minibatch. An
update with a non-finite gradient is skipped and counted.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from pbtrl.agents import normalize, optim
from pbtrl.agents.arrays import Array
from pbtrl.agents.distributions import Distribution, distribution
from pbtrl.agents.layers import Layout
from pbtrl.agents.loss_inputs import Derivatives, LossInputs, LossOutput, with_prefix, without_prefix
from pbtrl.agents.networks import MLP, Net, make_network
from pbtrl.agents.returns import ReturnInputs, effective_unroll, unroll_cuts, unroll_starts
from pbtrl.agents.settings import ActorCriticSettings
from pbtrl.agents.types import ActOutput, Hyperparameters, Inputs, State, Tensors, Trajectory, UpdateResult, Views
from pbtrl.agents.updates import Batch, Group, Part, gradients, shares
from pbtrl.errors import ConfigProblem

REWARD_CLIP = 10.0  # bound on |normalized reward|
OBSERVATION_CLIP = 10.0  # bound on |normalized observation|


@dataclass(frozen=True)
class ActorCritic(ABC):
    """Base class of the actor-critic agents; see `agents.types.Agent` for the interface."""

    settings: ActorCriticSettings
    shape: tuple[int, ...]
    image: bool
    net: Net
    policy: Distribution

    @classmethod
    def make(
        cls, settings: ActorCriticSettings, observation_space: spaces.Space[object], action_space: spaces.Space[object]
    ) -> Self:
        """Create the agent for an env's spaces.

        Raises:
            ConfigProblem: the agent does not support these observations or actions; the message is one line.
        """
        assert isinstance(observation_space, spaces.Box)
        shape = observation_space.shape
        image = observation_space.dtype == "uint8" and len(shape) == 3
        if image and settings.observations == "normalize":
            text = "normalize is for vectors; images are divided by 255: use auto or raw"
            raise ConfigProblem(text, ("agent", "observations"))
        policy = distribution(action_space, settings)
        return cls(settings, shape, image, cls.network(settings, shape, policy, image), policy)

    @classmethod
    def network(cls, settings: ActorCriticSettings, shape: tuple[int, ...], policy: Distribution, image: bool) -> Net:
        """Create the network. Raises like `make`."""
        return make_network(settings, shape, policy, image)

    @property
    @abstractmethod
    def needs_full_batch(self) -> bool:
        """True if the loss needs the whole minibatch at once, rather than being summed over chunks of envs."""

    @abstractmethod
    def loss(self, batch: LossInputs, h: Hyperparameters) -> LossOutput:
        """Compute the loss of some members on some of their envs.

        Autograd differentiates it, unless `closed_form` is true: then `derivatives` trains, and `loss` defines what the
        tests compare it with.
        """

    @property
    def recorded(self) -> MLP | None:
        """The network, if autograd need not run through it."""
        if type(self).unroll is not ActorCritic.unroll or not isinstance(self.net, MLP):
            return None
        return self.net if type(self.net).unroll is MLP.unroll and self.net.inputs > 1 else None

    @property
    def closed_form(self) -> bool:
        """True if `derivatives` belongs to this class's `loss`, and trains in its place."""
        return False

    def derivatives(self, batch: Any, entropies: Array, h: Hyperparameters) -> Derivatives:
        """Compute the derivatives of `loss`, given the policy's entropies [p, T, B]; only if `closed_form` is true."""
        raise NotImplementedError

    @property
    def unused(self) -> frozenset[str]:
        """Live hyperparameters that have no effect in this env."""
        return frozenset()

    @functools.cached_property
    def layout(self) -> Layout:
        """Layout of the network's parameters, followed by `extra_parameters`."""
        return Layout(
            {**self.net.layout.shapes, **{name: (size,) for name, (size, _) in self.extra_parameters.items()}}
        )

    @property
    def extra_parameters(self) -> dict[str, tuple[int, float]]:
        """Learned parameters outside the network, as name -> (size, initial value)."""
        free = self.policy.free_size
        return {"free": (free, self.settings.log_std)} if free else {}

    @property
    def normalizes(self) -> bool:
        """True if observations are normalized."""
        kind = self.settings.observations
        return not self.image if kind == "auto" else kind == "normalize"

    @property
    def acting_tensors(self) -> tuple[str, ...]:
        """Names of the state tensors that `act` reads."""
        return ("params", "shift", "scale") if self.normalizes else ("params",)

    @property
    def rewards(self) -> str:
        """Reward transformation from the settings, with `auto` resolved."""
        kind = self.settings.rewards
        return kind if kind != "auto" else "clip" if self.image else "normalize"

    def init(self, generators: Sequence[torch.Generator]) -> State:
        """Create the initial state, with one member per generator."""
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
        return State(tensors, leaves, leaves, grads, layout.views(grads))

    def noise(self, generators: Sequence[torch.Generator], time: int, envs: int) -> Tensor:
        """Draw a block's noise [T, P, B, ...]: the policy's, then `extra_noise`."""
        shape = (time, envs, *self.policy.noise_shape)
        per_member = [
            torch.cat([self.policy.draw_noise(g, shape), *self.extra_noise(g, time, envs)], -1) for g in generators
        ]
        return torch.stack(per_member, 1)

    def extra_noise(self, generator: torch.Generator, time: int, envs: int) -> list[Tensor]:
        """Draw the random numbers that a block needs besides action noise, [T, B, ...] each."""
        return []

    def split_extra_noise(self, noise: Tensor) -> Tensor:
        """Return the part of noise [..., N] that `extra_noise` drew, which comes last."""
        return noise[..., self.policy.noise_shape[0] :]

    def begin(self, members: int, envs: int) -> tuple[Tensor, Tensor]:
        """Initial last action [P, B, ...] and recurrent state [P, B, H]."""
        return self.policy.initial_action(members, envs), torch.zeros(members, envs, self.net.rnn_state_size)

    def forget(self, state: State, slot: int) -> None:
        """Mark the slot's replayed steps as dead; the running returns of its envs are kept."""
        if "replay.is_reset_step" in state.running:
            state.running["replay.is_reset_step"][slot] = True

    @torch.no_grad()
    def act(self, state: State, inputs: Inputs, rnn_state: Tensor, noise: Tensor | None) -> ActOutput:
        """Act for one step: sample with `noise`, or take the policy's mode if there is none."""
        inputs, extra_noise = self.preprocess(state, inputs), None
        if noise is not None and noise.shape[-1] > self.policy.noise_shape[0]:
            noise, extra_noise = noise[..., : self.policy.noise_shape[0]], self.split_extra_noise(noise)
        if len(state.acting) == 1:
            policy, rnn_state = self._act(state.acting[0], inputs, rnn_state, extra_noise)
        else:
            groups = self._groups(len(rnn_state))
            parts = [(inputs[g], rnn_state[g], None if extra_noise is None else extra_noise[g]) for g in groups]
            outputs = [self._act(params, *part) for params, part in zip(state.acting, parts, strict=True)]
            policy, rnn_state = (torch.cat(each) for each in zip(*outputs, strict=True))
        if noise is None:
            return ActOutput(self.policy.mode(policy), policy, rnn_state)
        return ActOutput(self.policy.sample(policy, noise), policy, rnn_state)

    def _act(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, extra_noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Distribution parameters and next recurrent state of a group of members."""
        head, rnn_state = self.step(params, inputs, rnn_state, extra_noise)
        return self.policy.join(head, params.get("free")), rnn_state

    def step(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, extra_noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run the network for one step, like `Net.step`, given the output of `extra_noise` [p, B, ...]."""
        return self.net.step(params, inputs, rnn_state)

    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None, extra_loss_inputs: Tensors
    ) -> tuple[Tensor, Tensor, Tensors]:
        """Run the network over a block, like `Net.unroll`; also return extra outputs, [p, T+1, B, ...] each."""
        return *self.net.unroll(params, inputs, rnn_state, starts), {}

    def extra_loss_inputs(self, state: State, block: Trajectory, h: Hyperparameters) -> Tensors:
        """Compute additional inputs of the loss, [P, any, B, ...] each; called once per block."""
        return {}

    def learn(self, state: State, block: Trajectory, hyperparameters: Hyperparameters) -> UpdateResult:
        """Learn from one block in place, in `epochs` times `minibatches` updates; then update observation statistics.

        A member's metrics are those of its last update that was not skipped.
        """
        h, tensors = hyperparameters, state.tensors
        batch = self._batch(state, block, h)
        minibatches = self.minibatches(state, batch, h)
        metrics: Tensors = {}
        max_epochs = h["epochs"].numpy() if "epochs" in h else np.ones(len(state.grads), np.int64)
        epochs, updates, skips = (np.zeros_like(max_epochs) for _ in range(3))
        continuing, skipped = max_epochs > 0, tensors["skipped"].numpy()
        for i in range(max_epochs.max()):
            active = continuing & (max_epochs > i)
            if not active.any():
                break
            epochs += active
            for learners, groups in minibatches(i, torch.from_numpy(active)):
                latest = gradients(self, state, groups)
                norms, learning = self.clip(state.grads, h), learners.numpy()
                finite = norms.numpy() < np.inf
                stepping = torch.from_numpy(learning & finite)
                updates += learning
                skips += learning & ~finite
                skipped = np.where(learning, np.where(finite, 0, skipped + 1), skipped)
                latest |= {"loss/gradient_norm": norms, "loss/epochs": torch.from_numpy(epochs.astype(np.float32))}
                if stepping.all():
                    metrics = latest
                else:
                    metrics = {k: torch.where(stepping, v, metrics.get(k, math.nan)) for k, v in latest.items()}
                self.step_optimizer(state, h, stepping)
                state.refresh()
                continues = self.continues(torch.from_numpy(continuing), latest, h).numpy()
                continuing = np.where(learning, continues, continuing)
        tensors["skipped"] = torch.from_numpy(skipped)
        if self.normalizes:
            samples = block.observations[:, :-1].flatten(3).flatten(1, 2)
            moments = normalize.update_moments(without_prefix("observation", tensors), samples, batch.fresh.flatten(1))
            mean, variance = normalize.mean_and_variance(moments)
            tensors |= {**with_prefix("observation", moments), "shift": mean, "scale": (variance + 1e-8).rsqrt()}
        consumed = {**h, "unroll_length": effective_unroll(batch.unroll_cuts)}
        return UpdateResult(metrics, consumed, torch.from_numpy(updates), torch.from_numpy(skips))

    def minibatches(
        self, state: State, batch: Batch, h: Hyperparameters
    ) -> Callable[[int, Tensor], Iterable[tuple[Tensor, Iterable[Group]]]]:
        """Prepare the updates from a block.

        Returns:
            A function that takes the number of a pass and the members [P] that make it. It yields, for each update, the
            members [P] that take it, and what they learn from.
        """
        updates = [
            self._prepare(state, batch, h, envs) for envs in shares(batch.mask.shape[2], self.settings.minibatches)
        ]
        return lambda epoch, active: ((active, groups) for groups in updates)

    def continues(self, continuing: Tensor, metrics: Tensors, h: Hyperparameters) -> Tensor:
        """Whether the members [P] may make another pass after an update, given whether they could before it."""
        return continuing & (metrics["loss/log_ratio"] <= h.get("max_log_ratio", torch.inf))

    def clip(self, grads: Tensor, h: Hyperparameters) -> Tensor:
        """Clip gradients [P, D] in place; returns their norms [P], not finite where the update must be skipped."""
        return optim.clip_by_global_norm(grads, h["max_grad_norm"])

    def step_optimizer(self, state: State, h: Hyperparameters, active: Tensor) -> None:
        """Make an optimizer step along `state.grads` for the active members [P]."""
        self.optimize(state, h, active, h["learning_rate"])

    @torch.no_grad()
    def values(self, state: State, batch: Batch) -> Tensor:
        """Outputs of the value head over a block, [P, T+1, B]."""
        block, result = batch.block, torch.empty(batch.block.done.shape[0], batch.starts.shape[1], batch.mask.shape[2])
        for params, members in zip(state.params, self._groups(len(result)), strict=True):
            for envs in self._chunks(result.shape[1], slice(0, result.shape[2])):
                inputs = self.preprocess(state, block.inputs(members, envs), members)
                _, values = self.net.unroll(params, inputs, block.rnn_state[members, envs], batch.starts[members])
                result[members, :, envs] = values
        return result

    def _batch(self, state: State, block: Trajectory, h: Hyperparameters) -> Batch:
        """Compute the tensors that all passes share."""
        time, mask = block.rewards.shape[1], (~block.is_reset_step).to(block.rewards.dtype)
        if self.rewards == "normalize":
            self._count_returns(state, block, h["gamma"])
        cuts = unroll_cuts(h["unroll_length"], time)
        returns = ReturnInputs(
            rewards=self.transform_rewards(state, block.rewards),
            discounts=h["gamma"][:, None, None] * ~block.terminated,
            lambda_=h["lambda_"],
            cuts=cuts.T[..., None] | block.done,
        )
        return Batch(
            block=block,
            returns=returns,
            unroll_cuts=cuts,
            starts=unroll_starts(cuts),
            mask=mask,
            fresh=mask if block.from_replay is None else mask * ~block.from_replay,
            log_probs=self.policy.log_prob(block.policy, block.actions),
            extra_loss_inputs=self.extra_loss_inputs(state, block, h),
        )

    def transform_rewards(self, state: State, rewards: Tensor) -> Tensor:
        """Transform raw rewards [P, T, B] into those used for learning."""
        if self.rewards == "clip":
            return rewards.clamp(-1.0, 1.0)
        if self.rewards == "none":
            return rewards
        if self.rewards == "asymmetric":
            return torch.where(rewards < 0, 0.3, 1.0) * 5.0 * torch.tanh(rewards / 5.0)
        if self.rewards == "asymmetric_figure":
            return torch.where(rewards < 0, 0.3, 5.0) * torch.tanh(rewards)
        scale = normalize.return_scale(without_prefix("return", state.tensors))
        return (rewards / scale[:, None, None]).clamp(-REWARD_CLIP, REWARD_CLIP)

    def _count_returns(self, state: State, block: Trajectory, gamma: Tensor) -> None:
        zeros = torch.zeros(block.rewards.shape[::2], dtype=torch.float64)
        moments = {**without_prefix("return", state.tensors), "running": state.running.get("return", zeros)}
        new = ~block.is_reset_step if block.from_replay is None else ~(block.is_reset_step | block.from_replay)
        moments = normalize.update_return_scale(moments, block.rewards, block.done, gamma, new)
        state.running["return"] = moments.pop("running")
        state.tensors |= with_prefix("return", moments)

    def _prepare(self, state: State, batch: Batch, h: Hyperparameters, envs: slice) -> list[Group]:
        """Prepare an update from some envs of all members."""
        groups, block = [], batch.block
        for members, params in zip(self._groups(len(state.grads)), state.params, strict=True):
            live, fresh = (m[members, :, envs].flatten(1).sum(-1).clamp_min(1) for m in (batch.mask, batch.fresh))
            parts = []
            for chunk in self._chunks(block.observations.shape[1], envs):
                at = members, slice(None), chunk
                starts, actions = batch.starts[members], block.actions[at]
                loss_inputs = functools.partial(
                    LossInputs,
                    state=state,
                    members=members,
                    params=params,
                    behavior=block.policy[at],
                    actions=actions,
                    returns=batch.returns.part(members, chunk),
                    starts=starts,
                    mask=batch.mask[at],
                    live=live,
                )
                part = Part(
                    inputs=self.preprocess(state, block.inputs(members, chunk), members),
                    rnn_state=block.rnn_state[members, chunk],
                    starts=starts,
                    actions=actions,
                    log_probs=batch.log_probs[at],
                    weights=batch.fresh[at] / fresh[:, None, None],
                    extra={name: value[at] for name, value in batch.extra_loss_inputs.items()},
                    loss_inputs=loss_inputs,
                )
                parts.append(part)
            own = {name: value[members] for name, value in h.items()}
            groups.append(Group(members, params, own, parts))
        return groups

    def optimize(
        self, state: State, h: Hyperparameters, active: Tensor, learning_rate: Tensor, columns: slice = slice(None)
    ) -> None:
        """Step the parameters in some columns of the flat buffer. Those from column 0 on come first and are counted."""
        t = state.tensors
        params, grads = t["params"][:, columns], state.grads[:, columns]
        if self.settings.optimizer == "adam":
            steps = t["adam.steps"] if not columns.start else t["adam.steps"] - active.long()
            optim.adam(
                params, grads, t["adam.m"][:, columns], t["adam.v"][:, columns], steps,
                learning_rate=learning_rate, epsilon=h["adam_epsilon"], active=active,
            )  # fmt: skip
        else:
            optim.rmsprop(
                params, grads, t["rmsprop.mean_square"][:, columns], learning_rate=learning_rate,
                decay=h["rmsprop_decay"], epsilon=h["rmsprop_epsilon"], active=active,
            )  # fmt: skip

    def preprocess(self, state: State, inputs: Inputs, members: slice = slice(None)) -> Inputs:
        """Prepare inputs [P, ...] for the network: vector observations are flattened, and normalized if configured."""
        if self.image:
            return inputs
        steps = inputs.first.ndim
        x = inputs.observations.flatten(steps)
        if self.normalizes:
            index = (members, *(None,) * (steps - 1))
            x = (x - state.tensors["shift"][index]).mul_(state.tensors["scale"][index])
            x = x.clamp_(-OBSERVATION_CLIP, OBSERVATION_CLIP)
        return Inputs(x.contiguous(), inputs.actions, inputs.rewards, inputs.first)

    def _groups(self, members: int) -> list[slice]:
        """Members that share a forward pass: all of them, or one at a time if the network limits `frames`."""
        if self.net.frames is None:
            return [slice(0, members)]
        return [slice(i, i + 1) for i in range(members)]

    def _chunks(self, steps: int, envs: slice) -> Iterator[slice]:
        """Slices of envs of which all `steps` go through the network together."""
        frames = None if self.needs_full_batch else self.net.frames
        width = envs.stop - envs.start if frames is None else max(1, frames // steps)
        return (slice(i, min(envs.stop, i + width)) for i in range(envs.start, envs.stop, width))
