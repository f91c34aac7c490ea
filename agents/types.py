"""Types shared by all agents, and the names of the axes in this package.

    P  member of a cohort; the leading axis of every tensor, so that no operation mixes members
    T  time (env steps), B  env of a member, A  action dimension, K  parameters of a policy's distribution, M  T x B

A member's results must not depend on the other members of its cohort. Reductions therefore run over trailing axes only,
matrix products are batched over P even for P = 1, and parameters are padded to 16 floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    """State of a cohort between calls.

    Attributes:
        tensors: learned state by name, with leading axis P: weights, optimizer moments and step counts, normalizer
            statistics. A member's snapshot is its row of every tensor.
        running: state tied to the running envs, by name, with leading axis P: returns so far, a replay of recent steps.
            `learn` creates missing entries. It is not part of snapshots, and is dropped when the envs restart.
        params: views into `tensors["params"]`, one set per group of members that share a forward pass.
        acting: views into the parameters used for acting: the same, or those of a target network.
        grads: scratch space [P, D].
        grad_views: views into `grads`, for all members.
        private: the copy [P, D] that `params` and `acting` view, if other processes also change `tensors["params"]`.
    """

    tensors: dict[str, Tensor]
    params: tuple[Views, ...]
    acting: tuple[Views, ...]
    grads: Tensor
    grad_views: Views
    running: dict[str, Tensor] = field(default_factory=dict)
    private: Tensor | None = None

    def refresh(self) -> None:
        """Copy the shared parameters into the private copy, if there is one."""
        if self.private is not None:
            self.private.copy_(self.tensors["params"])


Hyperparameters = Mapping[str, Tensor]
"""Live hyperparameters by name, as tensors [P] with one number per member, passed at each call and never cached."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of a policy at one step [P, B, ...] or in a block [P, T+1, B, ...].

    Attributes:
        observations: [..., *shape].
        actions: last action, as stored by the distribution.
        rewards: last reward, raw.
        first: bool; true where an episode begins, so the last action and reward and the recurrent state do not apply.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    first: Tensor

    def __getitem__(self, index: Any) -> Inputs:
        """Index all tensors alike."""
        return Inputs(self.observations[index], self.actions[index], self.rewards[index], self.first[index])

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Apply a function to all tensors."""
        return Inputs(*map(function, (self.observations, self.actions, self.rewards, self.first)))


@dataclass(frozen=True)
class ActOutput:
    """Output of a policy for one step.

    Attributes:
        actions: [P, B, ...] as stored by the distribution.
        policy: [P, B, K] parameters of the distribution that the actions were drawn from.
        rnn_state: [P, B, H] next recurrent state of the network; H is 0 if it has none.
    """

    actions: Tensor
    policy: Tensor
    rnn_state: Tensor


@dataclass(frozen=True)
class Trajectory:
    """One block of a cohort's experience.

    Attributes:
        observations: [P, T+1, B, ...]; the last one follows the block's last action.
        actions: [P, T, B, ...] as stored by the distribution (before clipping or squashing).
        rewards: [P, T, B] raw.
        terminated: [P, T, B] bool; the value of the next observation is zero.
        done: [P, T, B] bool; terminated or truncated, so the next observation is the episode's last.
        is_reset_step: [P, T, B] bool; a dead transition, in which the env was only reset.
        policy: [P, T, B, K] distribution parameters of the behavior policy.
        initial_inputs: [P, B, ...] inputs of the policy at the block's first step.
        rnn_state: [P, B, H] recurrent state of the network at the block's first step.
        noise: [P, T, B, ...] noise of the block from `Agent.noise`, used in acting and available for learning.
        from_replay: [B] bool, the envs whose unrolls come from a replay. They are used for learning, but not for
            running statistics or the mean |log rho|. None without a replay.
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
        """Inputs [p, T+1, B, ...] of some members' policies in some of their envs."""
        return Inputs(
            self.observations[members, :, envs],
            torch.cat([self.initial_inputs.actions[members, None, envs], self.actions[members, :, envs]], 1),
            torch.cat([self.initial_inputs.rewards[members, None, envs], self.rewards[members, :, envs]], 1),
            torch.cat([self.initial_inputs.first[members, None, envs], self.is_reset_step[members, :, envs]], 1),
        )


@dataclass(frozen=True)
class UpdateResult:
    """Result of learning from a block.

    Attributes:
        metrics: [P] each, by TensorBoard tag; NaN for a member whose updates were all skipped.
        consumed: [P] each, the live hyperparameters that loss and optimizer used; the unroll length is measured from
            the cuts.
        updates: [P] int64, number of updates, including skipped ones.
        skipped: [P] int64, number of updates skipped because of a non-finite gradient.
    """

    metrics: dict[str, Tensor]
    consumed: dict[str, Tensor]
    updates: Tensor
    skipped: Tensor


class Agent(Protocol):
    """Interface of an algorithm for a cohort of P members: frozen settings, and functions of explicit state.

    `learn` changes `state` in place, because its tensors are large and lie in one flat buffer.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one observation."""

    @property
    def image(self) -> bool:
        """True if observations are uint8 images, false if they are float32."""

    @property
    def unused(self) -> frozenset[str]:
        """Live hyperparameters that have no effect in this env."""

    @property
    def acting_tensors(self) -> tuple[str, ...]:
        """Names of the state tensors that `act` reads."""

    def init(self, generators: Sequence[torch.Generator]) -> State:
        """Create the initial state, with one member per generator."""

    def noise(self, generators: Sequence[torch.Generator], time: int, envs: int) -> Tensor:
        """Draw all random numbers of a block, [T, P, B, ...], each member's from its own generator."""

    def begin(self, members: int, envs: int) -> tuple[Tensor, Tensor]:
        """Initial last action [P, B, ...] and recurrent state [P, B, H]."""

    def forget(self, state: State, slot: int) -> None:
        """Exclude the slot's old experience in `state.running` from learning, because the slot has a new policy."""

    def act(self, state: State, inputs: Inputs, rnn_state: Tensor, noise: Tensor | None) -> ActOutput:
        """Act for one step: sample with `noise`, or take the policy's mode if there is none."""

    def learn(self, state: State, block: Trajectory, hyperparameters: Hyperparameters) -> UpdateResult:
        """Learn from a block, in place."""
