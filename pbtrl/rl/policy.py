"""Trained policy for use outside pbtrl: maps an env's observations to its actions, single or in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Space
from numpy.typing import NDArray
from torch import Tensor

from pbtrl.agents.actor_critic import ActorCritic
from pbtrl.agents.types import ActOutput, Inputs
from pbtrl.core.tensors import Tensors
from pbtrl.envs.adapters import adapt_actions, adapt_observations
from pbtrl.envs.errors import SubEnvError
from pbtrl.rl.cohort_spec import fill
from pbtrl.rl.rollout import ToEnv


@dataclass(frozen=True)
class PolicyState:
    """State that a policy carries from one prediction to the next.

    Attributes:
        actions: last actions [1, B, ...], as the distribution stores them.
        rnn_state: RNN state [1, B, H]; H is 0 without a recurrent core.
    """

    actions: Tensor
    rnn_state: Tensor


class Policy:
    """Policy of one member, with the normalizer statistics of its training.

    Attributes:
        observation_space: observation space of the env.
        action_space: action space of the env.
        agent: the algorithm.
        to_env: conversion of stored actions to the env's actions, before the action space's own type and bounds.
        state: state of the agent, with one member.
    """

    def __init__(
        self, agent: ActorCritic, to_env: ToEnv, snapshot: Tensors, observation_space: Space[Any],
        action_space: Space[Any], seed: int = 0,
    ) -> None:  # fmt: skip
        self.observation_space, self.action_space = observation_space, action_space
        self.agent, self.to_env = agent, to_env
        self.state = agent.init([torch.Generator().manual_seed(0)])
        fill(self.state, 0, snapshot)
        self._observations = adapt_observations(observation_space, "policy")
        self._actions = adapt_actions(action_space, "policy")
        self._generator = torch.Generator().manual_seed(seed)

    def predict(
        self, observation: Any, state: PolicyState | None = None, deterministic: bool = True, *, reward: Any = 0.0,
    ) -> tuple[NDArray[Any], PolicyState]:  # fmt: skip
        """Choose actions.

        Args:
            observation: one observation of the env, or a batch [B, ...].
            state: state returned by the previous call; None at the start of an episode.
            deterministic: whether to use the distribution's mode instead of a sample.
            reward: last raw reward, a number or [B]; only policies trained with `use_last_action_reward` use it.

        Returns:
            The action in the env's own form ([B, ...] for a batch), and the state for the next call.

        Raises:
            ValueError: the observation is not in the observation space.
        """
        acted, single = self._act(observation, state, deterministic, reward)
        actions = self._actions.convert(self.to_env(acted.actions)[0].numpy())
        return actions[0] if single else actions, PolicyState(acted.actions, acted.rnn_state)

    def distribution(self, observation: Any, state: PolicyState | None = None, *, reward: Any = 0.0) -> NDArray[Any]:
        """Return the parameters of the next action's distribution, [K] or [B, K]; arguments are those of `predict`.

        They are logits of the actions, or means and logarithms of standard deviations before clipping or squashing.
        """
        acted, single = self._act(observation, state, True, reward)
        parameters: NDArray[Any] = acted.policy[0].numpy()
        return parameters[0] if single else parameters

    def _act(
        self, observation: Any, state: PolicyState | None, deterministic: bool, reward: Any
    ) -> tuple[ActOutput, bool]:
        """Run the agent for one step; also returns whether it was a single observation."""
        batch, single = self._batch(observation)
        count = len(batch)
        first = state is None
        if state is None:
            state = PolicyState(*self.agent.begin(1, count))
        elif state.rnn_state.shape[1] != count:
            raise ValueError(f"the state is of {state.rnn_state.shape[1]} observations, not {count}")
        rewards = torch.as_tensor(np.broadcast_to(np.asarray(reward, np.float32), (count,)).copy())[None]
        inputs = Inputs(batch[None], state.actions, rewards, torch.full((1, count), first))
        noise = None if deterministic else self.agent.noise([self._generator], 1, count)[0]
        with torch.no_grad():
            return self.agent.act(self.state, inputs, state.rnn_state, noise), single

    def _batch(self, observation: Any) -> tuple[Tensor, bool]:
        """Convert to the agent's observations [B, ...]; also returns whether it was a single observation."""
        own = self.observation_space.shape or ()
        array = np.asarray(observation)
        if array.shape[array.ndim - len(own) :] != own or array.ndim - len(own) not in (0, 1):
            raise ValueError(f"an observation has shape {own}, or [B, *{own}] in a batch, not {array.shape}")
        single = array.ndim == len(own)
        try:
            converted = self._observations.convert(array[None] if single else array)
        except SubEnvError as error:
            raise ValueError(str(error)) from None
        dtype = torch.uint8 if self.agent.image else torch.float32
        return torch.as_tensor(np.array(converted)).to(dtype), single
