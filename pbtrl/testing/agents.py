"""Conformance tests of agents: shapes, independence of members, and use of hyperparameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Space

from pbtrl.agents.settings import ActorCriticSettings, live_hyperparameters
from pbtrl.agents.types import Agent, Inputs, State, Trajectory, UpdateResult

TIME, ENVS = 6, 4


class AgentConformance:
    """Tests that every agent must pass. Subclasses define `settings`; the rest has defaults.

    Attributes:
        settings: settings of the agent, preferably with a small network.
        observation_space: Box of float32, or of uint8 [C, H, W] for images.
        action_space: Discrete, or Box with one dimension.
    """

    settings: ClassVar[ActorCriticSettings]
    observation_space: ClassVar[Space[Any]] = Box(-1.0, 1.0, (3,), np.float32)
    action_space: ClassVar[Space[Any]] = Discrete(2)

    @pytest.fixture
    def agent(self) -> Agent:
        """Agent for the spaces."""
        agent: Agent = self.settings.build(self.observation_space, self.action_space)
        return agent

    def hyperparameters(self, members: int, **changes: float) -> dict[str, torch.Tensor]:
        """Return live hyperparameters [P member] with their defaults, except for `changes`."""
        values = {**live_hyperparameters(self.settings), "unroll_length": TIME, **changes}
        return {k: torch.full((members,), v, dtype=_dtype(v)) for k, v in values.items()}

    def block(self, agent: Agent, state: State, seeds: Sequence[int], reward: float = 1.0) -> Trajectory:
        """Make a block of experience with one member per seed, random observations and actions of the policy."""
        members = len(seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        shape = (TIME + 1, ENVS, *agent.shape)
        observations = torch.stack([torch.rand(shape, generator=g) for g in generators])
        if agent.image:
            observations = (observations * 255).to(torch.uint8)
        noise = agent.noise(generators, TIME, ENVS)
        actions, rnn_state = agent.begin(members, ENVS)
        quiet = torch.zeros(members, ENVS, dtype=torch.bool)
        inputs = before = Inputs(observations[:, 0], actions, torch.zeros(members, ENVS), ~quiet)
        start, outputs = rnn_state, []
        for t in range(TIME):
            outputs.append(agent.act(state, inputs, rnn_state, noise[t]))
            rnn_state = outputs[-1].rnn_state
            inputs = Inputs(observations[:, t + 1], outputs[-1].actions, torch.full((members, ENVS), reward), quiet)
        steps = torch.zeros(members, TIME, ENVS, dtype=torch.bool)
        return Trajectory(
            observations=observations,
            actions=torch.stack([o.actions for o in outputs], 1),
            rewards=torch.full((members, TIME, ENVS), reward),
            terminated=steps,
            done=steps,
            is_reset_step=steps,
            policy=torch.stack([o.policy for o in outputs], 1),
            initial_inputs=before,
            rnn_state=start,
            noise=noise.transpose(0, 1),
        )

    def learn(self, agent: Agent, seeds: Sequence[int], **changes: float) -> tuple[State, UpdateResult]:
        """Update one member per seed once. Returns the new state and the result of the update."""
        state = agent.init([torch.Generator().manual_seed(seed) for seed in seeds])
        block = self.block(agent, state, seeds)
        return state, agent.learn(state, block, self.hyperparameters(len(seeds), **changes))

    def test_an_update_changes_the_weights_and_stays_finite(self, agent: Agent) -> None:
        fresh = agent.init([torch.Generator().manual_seed(1)]).tensors["params"].clone()
        state, result = self.learn(agent, [1])
        assert not torch.equal(state.tensors["params"], fresh)
        assert all(torch.isfinite(v).all() for v in state.tensors.values() if v.is_floating_point())
        assert result.updates.shape == result.skipped.shape == (1,)
        assert not result.skipped.any()

    def test_a_member_is_the_same_in_every_slot_and_cohort(self, agent: Agent) -> None:
        alone, _ = self.learn(agent, [2])
        for seeds in ([2, 3], [3, 2], [4, 5, 2, 3]):
            state, _ = self.learn(agent, seeds)
            for name, value in alone.tensors.items():
                assert torch.equal(state.tensors[name][seeds.index(2)], value[0]), name

    def test_consumed_hyperparameters_are_the_given_ones(self, agent: Agent) -> None:
        _, result = self.learn(agent, [1, 2], learning_rate=1e-3)
        given = self.hyperparameters(2, learning_rate=1e-3)
        assert result.consumed.keys() == given.keys()
        for name, value in given.items():
            assert torch.equal(result.consumed[name].to(value.dtype), value), name

    def test_without_a_learning_rate_the_policy_stays(self, agent: Agent) -> None:
        state = agent.init([torch.Generator().manual_seed(1)])
        block = self.block(agent, state, [1])
        inputs, rnn_state = block.initial_inputs, block.rnn_state
        before = agent.act(state, inputs, rnn_state, None).policy
        agent.learn(state, block, self.hyperparameters(1, learning_rate=0.0))
        fresh = agent.init([torch.Generator().manual_seed(1)])
        for name in ("params", "target"):
            if name in state.tensors:  # statistics of observations may have changed, which also changes the policy
                fresh.tensors[name].copy_(state.tensors[name])
        assert torch.equal(agent.act(fresh, inputs, rnn_state, None).policy, before)

    def test_a_gradient_that_is_not_finite_skips_that_member_alone(self, agent: Agent) -> None:
        state = agent.init([torch.Generator().manual_seed(seed) for seed in (1, 2)])
        block, before = self.block(agent, state, [1, 2]), state.tensors["params"].clone()
        block.policy[0] = torch.nan
        block.observations[0] = torch.nan if not agent.image else block.observations[0]
        result = agent.learn(state, block, self.hyperparameters(2))
        assert result.skipped[0] == result.updates[0] > 0
        assert torch.equal(state.tensors["params"][0], before[0])
        assert result.skipped[1] == 0
        assert torch.isfinite(state.tensors["params"][1]).all()


def _dtype(value: float) -> torch.dtype:
    return torch.int64 if isinstance(value, int) and not isinstance(value, bool) else torch.float32
