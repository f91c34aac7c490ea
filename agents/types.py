"""The vocabulary of the agents, and the legend of every axis in this package.

    P  member of a cohort; the leading axis of everything, so that no operation mixes members
    T  time (env steps), B  env of a member, A  action dimension, K  parameters of a policy's distribution, M  T x B

A member's numbers must not depend on who shares its cohort. So reductions run over trailing axes only, matrix
products are batched over P even for P = 1, and parameters are padded to 16 floats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Views = dict[str, Tensor]
"""Named parameters as views into a flat buffer."""


@dataclass
class State:
    """A cohort's state between calls.

    Attributes:
        tensors: everything that learns, by name, with the leading axis P: weights, optimiser moments and step counts,
            normaliser statistics. One member's snapshot is its row of every tensor.
        params: views into `tensors["params"]`, one set per group of members that pass through the network together.
        acting: views into the parameters that act, which are the same or, for instance, a target network's.
        grads: scratch, [P, D].
        parts: views into `grads`, as `params` is into the weights.
    """

    tensors: dict[str, Tensor]
    params: tuple[Views, ...]
    acting: tuple[Views, ...]
    grads: Tensor
    parts: tuple[Views, ...]


Hyperparameters = Mapping[str, Tensor]
"""Live hyperparameters by name, one number per member: tensors of shape [P], given at call time, never cached."""


@dataclass(frozen=True)
class Trajectory:
    """One block of experience of a cohort.

    Attributes:
        observations: [P, T+1, B, ...]; the last one is where the block ends.
        actions: [P, T, B, ...] as the distribution stores them (before clipping or squashing).
        rewards: [P, T, B] raw.
        terminated: [P, T, B] bool; the value of the next observation is zero.
        over: [P, T, B] bool; terminated or truncated: the next observation is the episode's last.
        dead: [P, T, B] bool; the env was only being reset here: not a transition.
        policy: [P, T, B, K] parameters of the behaviour policy's distribution.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    over: Tensor
    dead: Tensor
    policy: Tensor


@dataclass(frozen=True)
class Learned:
    """What an update did.

    Attributes:
        metrics: [P] each, by TensorBoard tag.
        consumed: the live hyperparameters that the loss and the optimiser used, [P] each; the unroll length is
            measured from the cuts.
    """

    metrics: dict[str, Tensor]
    consumed: dict[str, Tensor]


class Agent(Protocol):
    """An algorithm over a cohort of P members: frozen settings, and functions of explicit state.

    `learn` changes `state` in place, because its tensors are large and live in one flat buffer; nothing else does.
    """

    def init(self, generators: Sequence[torch.Generator]) -> State:
        """Fresh state for one member per generator."""

    def noise(self, generators: Sequence[torch.Generator], time: int, envs: int) -> Tensor:
        """Action noise of a whole block, [T, P, B, ...], each member's from its own generator."""

    def act(self, state: State, observations: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Actions [P, B, ...] and policy parameters [P, B, K] for observations [P, B, ...]; no noise: the mode."""

    def learn(self, state: State, block: Trajectory, hyperparameters: Hyperparameters) -> Learned:
        """Learn from a block, in place."""
