"""The vocabulary of the agents, and the legend of every axis in this package.

    P  member of a cohort; the leading axis of everything, so that no operation mixes members
    T  time (env steps), B  env of a member, A  action dimension, K  parameters of a policy's distribution, M  T x B

A member's numbers must not depend on who shares its cohort. So reductions run over trailing axes only, matrix
products are batched over P even for P = 1, and parameters are padded to 16 floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
"""Tensors by name."""

Views = dict[str, Tensor]
"""Named parameters as views into a flat buffer."""


@dataclass
class State:
    """A cohort's state between calls.

    Attributes:
        tensors: everything that learns, by name, with the leading axis P: weights, optimizer moments and step counts,
            normalizer statistics. One member's snapshot is its row of every tensor.
        running: what belongs to the envs under way instead, by name, with the leading axis P: returns so far, a replay
            of the last steps. `learn` makes what is missing; it is in no snapshot, and gone where the envs start anew.
        params: views into `tensors["params"]`, one set per group of members that pass through the network together.
        acting: views into the parameters that act, which are the same or, for instance, a target network's.
        grads: scratch, [P, D].
        parts: views into `grads`, as `params` is into the weights.
        private: where other processes change `tensors["params"]` too, the copy [P, D] that `params` and `acting` view.
    """

    tensors: dict[str, Tensor]
    params: tuple[Views, ...]
    acting: tuple[Views, ...]
    grads: Tensor
    parts: tuple[Views, ...]
    running: dict[str, Tensor] = field(default_factory=dict)
    private: Tensor | None = None

    def refresh(self) -> None:
        """Bring a private copy up to date, with one's own updates and those of others."""
        if self.private is not None:
            self.private.copy_(self.tensors["params"])


Hyperparameters = Mapping[str, Tensor]
"""Live hyperparameters by name, one number per member: tensors of shape [P], given at call time, never cached."""


@dataclass(frozen=True)
class Inputs:
    """What a policy is shown: at one step [P, B, ...], or in a block [P, T+1, B, ...].

    Attributes:
        observations: [..., *shape].
        actions: the last one, as the distribution stores it.
        rewards: the last one, raw.
        first: bool; an episode begins here, so there was no last action or reward, and nothing to remember.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    first: Tensor

    def __getitem__(self, where: Any) -> Inputs:
        """The same part of everything."""
        return Inputs(self.observations[where], self.actions[where], self.rewards[where], self.first[where])


@dataclass(frozen=True)
class ActOutput:
    """What a policy answered at one step.

    Attributes:
        actions: [P, B, ...] as the distribution stores them.
        policy: [P, B, K] parameters of the distribution that they were drawn from.
        rnn_state: [P, B, H] what the network remembers from here on; H is 0 for one that does not.
    """

    actions: Tensor
    policy: Tensor
    rnn_state: Tensor


@dataclass(frozen=True)
class Trajectory:
    """One block of experience of a cohort.

    Attributes:
        observations: [P, T+1, B, ...]; the last one is where the block ends.
        actions: [P, T, B, ...] as the distribution stores them (before clipping or squashing).
        rewards: [P, T, B] raw.
        terminated: [P, T, B] bool; the value of the next observation is zero.
        done: [P, T, B] bool; terminated or truncated: the next observation is the episode's last.
        is_reset_step: [P, T, B] bool; the env was only being reset here: not a transition.
        policy: [P, T, B, K] parameters of the behavior policy's distribution.
        initial_inputs: [P, B, ...] what the policy was shown at the block's first step.
        rnn_state: [P, B, H] what the network remembered there.
        noise: [P, T, B, ...] what `Agent.noise` drew for the block: acting used it, and learning may.
        from_replay: [B] bool, envs whose unrolls come from a replay. They are learned from, but counted neither in
            running statistics nor in how far the policy has moved. None without a replay.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    done: Tensor
    is_reset_step: Tensor
    policy: Tensor
    initial_inputs: Inputs
    rnn_state: Tensor
    noise: Tensor
    from_replay: Tensor | None = None

    def inputs(self, members: slice, envs: slice) -> Inputs:
        """What some members' policies are shown in some of their envs, [p, T+1, B, ...]."""
        return Inputs(
            self.observations[members, :, envs],
            torch.cat([self.initial_inputs.actions[members, None, envs], self.actions[members, :, envs]], 1),
            torch.cat([self.initial_inputs.rewards[members, None, envs], self.rewards[members, :, envs]], 1),
            torch.cat([self.initial_inputs.first[members, None, envs], self.is_reset_step[members, :, envs]], 1),
        )


@dataclass(frozen=True)
class UpdateResult:
    """What was learned from a block.

    Attributes:
        metrics: [P] each, by TensorBoard tag; NaN for a member all of whose updates were skipped.
        consumed: the live hyperparameters that the loss and the optimizer used, [P] each; the unroll length is
            measured from the cuts.
        updates: [P] int64, how many updates a member was to make.
        skipped: [P] int64, how many of them were skipped because their gradient was not finite.
    """

    metrics: dict[str, Tensor]
    consumed: dict[str, Tensor]
    updates: Tensor
    skipped: Tensor


class Agent(Protocol):
    """An algorithm over a cohort of P members: frozen settings, and functions of explicit state.

    `learn` changes `state` in place, because its tensors are large and live in one flat buffer; nothing else does.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one observation."""

    @property
    def image(self) -> bool:
        """Whether observations are uint8, and else float32."""

    @property
    def unused(self) -> frozenset[str]:
        """Live hyperparameters that change nothing in this env."""

    @property
    def acting_tensors(self) -> tuple[str, ...]:
        """Names of the state's tensors that `act` reads."""

    def init(self, generators: Sequence[torch.Generator]) -> State:
        """Fresh state for one member per generator."""

    def noise(self, generators: Sequence[torch.Generator], time: int, envs: int) -> Tensor:
        """All that is random in a block, [T, P, B, ...], each member's from its own generator."""

    def begin(self, members: int, envs: int) -> tuple[Tensor, Tensor]:
        """No last action [P, B, ...], and nothing remembered [P, B, H]."""

    def forget(self, state: State, slot: int) -> None:
        """The slot has a new policy: the old one's experience in `state.running` is not to be learned from."""

    def act(self, state: State, inputs: Inputs, rnn_state: Tensor, noise: Tensor | None) -> ActOutput:
        """Act at one step; without noise, by the policy's mode."""

    def learn(self, state: State, block: Trajectory, hyperparameters: Hyperparameters) -> UpdateResult:
        """Learn from a block, in place."""
