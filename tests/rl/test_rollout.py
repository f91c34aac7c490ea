"""Blocks of a rollout against the envs' own record: order, flags, episodes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pbtrl import envs
from pbtrl.agents import impala
from pbtrl.agents.settings import ImpalaSettings
from pbtrl.rl import rollout as rollout_module
from pbtrl.rl.rollout import Rollout
from tests.rl.scripted_envs import CountingAgent, Lives, scripted_envs


def Episodes(returns=(), lengths=()):
    """Episodes whose score is the return."""
    return rollout_module.Episodes(list(returns), list(lengths), list(returns))


def rolling(vector, members, agent=None):
    return Rollout(vector, members, agent or CountingAgent(), lambda action: action)


def collect(rollout, time):
    return rollout.collect(None, [None] * rollout.members, time)


def test_block_equals_what_the_envs_did():
    vector = scripted_envs([3, 4, 100, 5, 2, 7], truncated=[1])
    block = collect(rolling(vector, 2), 6)
    assert block.observations.shape == (2, 7, 3, 2)
    assert block.observations[:, :, :, 0].unique(dim=1).squeeze(1).tolist() == [[0, 1, 2], [3, 4, 5]]
    steps = block.observations[..., 1]
    assert steps[0, :, 0].tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert steps[1, :, 1].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert steps[0, :, 2].tolist() == [0, 1, 2, 3, 4, 5, 6]
    received = np.stack(vector._pool.actions).reshape(6, 2, 3)
    assert torch.equal(block.actions, torch.from_numpy(received).transpose(0, 1))
    assert torch.equal(block.actions, block.noise)  # every step's own
    assert len(block.noise.unique()) == 6 * 6
    assert torch.equal(block.policy, block.observations[:, :-1])
    assert block.rewards[0, :, 0].tolist() == [10, 10, 10, 0, 10, 10]
    assert block.rewards[1, :, 2].tolist() == [60] * 6
    assert {f.dtype for f in (block.terminated, block.done, block.is_reset_step)} == {torch.bool}
    assert block.terminated[0].T.tolist() == [
        [False, False, True, False, False, False],
        [False] * 6,
        [False] * 6,
    ]
    assert block.done[0].T.tolist()[1] == [False, False, False, True, False, False]
    assert torch.equal(block.is_reset_step[:, 1:], block.done[:, :-1])
    assert not block.is_reset_step[:, 0].any()


def test_policy_inputs_and_memory_per_step():
    rollout = rolling(scripted_envs([3, 4, 100, 5, 2, 7]), 2)
    first = collect(rollout, 5)
    assert (first.initial_inputs.actions == -1).all()  # nothing has been done yet
    assert not first.initial_inputs.rewards.any()
    assert first.initial_inputs.first.all()
    first = replace(first, observations=first.observations.clone())  # its place is the next one's
    second = collect(rollout, 4)
    assert torch.equal(second.initial_inputs.actions, first.actions[:, -1])
    assert torch.equal(second.initial_inputs.rewards, first.rewards[:, -1])
    assert torch.equal(second.initial_inputs.first, first.is_reset_step[:, -1])
    age = first.observations[:, 4, :, 1] + 1  # steps that the policy has seen of the episode
    assert torch.equal(second.rnn_state[..., 0], age)
    inputs = second.inputs(slice(1, 2), slice(0, 2))
    assert torch.equal(inputs.observations, second.observations[1:, :, :2])
    assert torch.equal(inputs.actions[:, 1:], second.actions[1:, :, :2])
    assert torch.equal(inputs.rewards[:, 1:], second.rewards[1:, :, :2])
    assert torch.equal(inputs.first[:, 1:], second.is_reset_step[1:, :, :2])
    assert torch.equal(inputs.actions[:, 0], second.initial_inputs.actions[1:, :2])
    rollout.forget(1)
    third = collect(rollout, 1)
    assert third.rnn_state[0].all()
    assert not third.rnn_state[1].any()


@pytest.mark.parametrize("times", [(4, 4, 4), (5, 2, 5), (1, 1, 10)])
def test_blocks_continue_across_episode_ends(times):
    lengths = [3, 4, 100, 5]
    whole = collect(rolling(scripted_envs(lengths), 2), 12)
    rollout, at = rolling(scripted_envs(lengths), 2), 0
    for time in times:
        part = collect(rollout, time)
        assert torch.equal(part.observations, whole.observations[:, at : at + time + 1])
        for name in ("rewards", "terminated", "done", "is_reset_step"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[:, at : at + time])
        assert torch.equal(rollout.inputs.observations, part.observations[:, -1])
        if at:
            assert torch.equal(part.initial_inputs.rewards, whole.rewards[:, at - 1])
            assert torch.equal(part.initial_inputs.first, whole.is_reset_step[:, at - 1])
        at += time


def test_reward_belongs_to_the_preceding_action():
    """PreviousAction pays at t + 1 for the action at t, and shows it there."""
    vector = envs.make("probe/PreviousAction-v0", range(6))
    agent = impala.make(ImpalaSettings(), vector.single_observation_space, vector.single_action_space)
    state = agent.init([torch.Generator().manual_seed(i) for i in range(2)])
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    block = Rollout(vector, 2, agent, agent.policy.to_env).collect(state, generators, 23)
    follows = ~block.done[:, :-1] & ~block.is_reset_step[:, :-1]
    actions, rewards, seen = block.actions.float(), block.rewards, block.observations[:, :-1]
    assert actions[block.is_reset_step].sum() > 0  # so that a reset's action would show
    assert torch.equal(rewards[:, 1:][follows], actions[:, :-1][follows])
    assert torch.equal(seen[:, 1:, :, 1][follows], actions[:, :-1][follows])
    assert torch.equal(seen[:, 1:, :, 0][follows], seen[:, :-1, :, 0][follows] + 1)
    first = torch.cat([torch.ones_like(block.is_reset_step[:, :1]), block.is_reset_step[:, :-1]], 1)
    assert not seen[first].any()
    assert not rewards[first].any()
    assert torch.equal(block.done, seen[..., 0] == 4)


def test_members_act_with_their_own_weights_and_noise():
    vectors = [envs.make("CartPole-v1", seeds, backend="gymnasium") for seeds in (range(3), range(3, 6), range(6))]
    agent = impala.make(ImpalaSettings(), vectors[0].single_observation_space, vectors[0].single_action_space)
    blocks = []
    for vector, seeds in zip(vectors, ([1], [2], [1, 2]), strict=True):
        state = agent.init([torch.Generator().manual_seed(s) for s in seeds])
        generators = [torch.Generator().manual_seed(10 + s) for s in seeds]
        blocks.append(Rollout(vector, len(seeds), agent, agent.policy.to_env).collect(state, generators, 20))
    one, two, both = blocks
    for name in ("observations", "actions", "policy", "rewards", "done"):
        assert torch.equal(getattr(both, name), torch.cat([getattr(one, name), getattr(two, name)]))


def test_images_stay_uint8():
    vector, other = (envs.make("probe/BrightSide-v0", range(4)) for _ in range(2))
    block = collect(rolling(vector, 2, CountingAgent(2)), 5)
    assert block.observations.dtype == torch.uint8
    assert block.observations.shape == (2, 6, 2, 3, 36, 36)
    seen = [other.reset().copy()]
    for t in range(5):
        seen.append(other.step(block.actions[:, t].flatten().numpy())[0].copy())
    assert len(block.observations.unique()) == 2
    np.testing.assert_array_equal(block.observations.transpose(0, 1).flatten(1, 2).numpy(), np.stack(seen))


# Episodes


def test_episodes_have_raw_returns_without_reset_steps():
    rollout = rolling(scripted_envs([3, 4, 6, 50], truncated=[2]), 2)
    collect(rollout, 5)
    collect(rollout, 7)
    assert rollout.episodes == [
        Episodes([30.0, 80.0, 30.0, 80.0, 30.0], [3, 4, 3, 4, 3]),
        Episodes([180.0], [6]),
    ]
    rollout.clear()
    assert rollout.episodes == [Episodes(), Episodes()]
    collect(rollout, 2)
    assert rollout.episodes == [Episodes([80.0], [4]), Episodes([180.0], [6])]


def test_lost_life_ends_no_episode():
    rollout = rolling(scripted_envs([5, 9], kind=Lives), 1)
    block = collect(rollout, 10)
    assert block.terminated[0, :, 1].nonzero().flatten().tolist() == [1, 8]
    assert torch.equal(block.done, block.terminated)
    assert not block.is_reset_step[0, :9, 1].any()
    assert rollout.episodes == [Episodes([50.0, 180.0], [5, 9])]


def test_forget_excludes_only_that_slots_open_episodes():
    rollout = rolling(scripted_envs([3, 4, 3, 4]), 2)
    collect(rollout, 2)
    rollout.forget(1)
    collect(rollout, 4)
    assert rollout.episodes == [Episodes([30.0, 80.0], [3, 4]), Episodes()]
    collect(rollout, 3)
    assert rollout.episodes == [Episodes([30.0, 80.0, 30.0, 80.0], [3, 4, 3, 4]), Episodes([90.0, 160.0], [3, 4])]


def test_episode_started_after_forget_counts():
    rollout = rolling(scripted_envs([3, 4]), 1)
    collect(rollout, 3)
    rollout.forget(0)  # the first env's episode just ended, the second's goes on
    rollout.clear()
    collect(rollout, 6)
    assert rollout.episodes == [Episodes([30.0, 80.0], [3, 4])]


def test_one_buffer_fits_blocks_of_all_lengths():
    rollout = rolling(scripted_envs([3, 4]), 1)
    lengths = [2, 5, 3, 5, 1]
    rooms = [(len(collect(rollout, n).rewards[0]), rollout._buffers.room) for n in lengths]
    assert rooms == [(2, 2), (5, 5), (3, 5), (5, 5), (1, 5)]
