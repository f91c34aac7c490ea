"""Agents, hyperparameters and blocks of random experience, for tests of networks and learners."""

import importlib
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete

from pbtrl.agents import feudal, unreal
from pbtrl.agents.actor_critic import ActorCritic
from pbtrl.agents.distributions import Categorical
from pbtrl.agents.networks import SharedTorsoNet
from pbtrl.agents.settings import AGENTS, live_hyperparameters
from pbtrl.agents.torsos import Convolutional
from pbtrl.agents.types import Inputs, State, Trajectory

SHOWN = Box(-1.0, 1.0, (3,), np.float32)
TAKEN = {
    "categorical": Discrete(3),
    "several": MultiDiscrete([3, 2]),
    "clip": Box(-1.0, 1.0, (2,), np.float32),
    "squash": Box(-1.0, 1.0, (2,), np.float32),
}
IMAGE = (2, 14, 13)  # a margin around the cells of pixel control


SMALL = {
    "unreal": {"core_units": 12, "cell_size": 2},
    "feudal": {"goal_units": 16, "embedding": 8, "horizon": 3, "random_goals": 0.2},
}


def agent(kind: str = "categorical", name: str = "impala", **settings: Any) -> ActorCritic:
    """Small agent: an MLP with a policy of TAKEN, or `image`: convolutions in chunks."""
    make = importlib.import_module(f"pbtrl.agents.{name}").make.__self__
    known, settings = AGENTS[name], {**SMALL.get(name, {}), **settings}
    if kind == "image":
        torso = Convolutional(IMAGE, ((4, 4, 2), (8, 3, 1)), 16, torch.float32, frames=17)
        own = known(**settings)
        core, action_reward_size = own.core_units if own.core == "lstm" else 0, 3 if own.use_last_action_reward else 0
        net = SharedTorsoNet(torso, 3, core, action_reward_size)
        if name == "unreal":
            net = unreal.with_tasks(net, unreal.cells(IMAGE, own.cell_size))
        if name == "feudal":
            net = feudal.with_goals(net, own)
        return make(own, IMAGE, True, net, Categorical(3))
    settings = {"hidden": (16, 10), **settings}
    actions = "squash" if kind == "squash" else "clip"
    return make.make(known(actions=actions, **settings), SHOWN, TAKEN[kind])


def fresh(agent: ActorCritic, members: list[int]) -> State:
    """Fresh members, each from its own generator."""
    return agent.init([torch.Generator().manual_seed(100 + m) for m in members])


def live(agent: ActorCritic, members: int, **values: Any) -> dict[str, torch.Tensor]:
    """Every live hyperparameter as [P member]: its default, one value for all, or a list."""
    result = {}
    for name, default in live_hyperparameters(agent.settings).items():
        kind = torch.int64 if isinstance(default, int) else torch.float32
        value = values.pop(name, default)
        result[name] = torch.tensor(value if isinstance(value, list) else [value] * members, dtype=kind)
    assert not values
    return result


def block(agent: ActorCritic, members: list[int], time: int = 8, envs: int = 5, seed: int = 0) -> Trajectory:
    """Random experience under a random behavior policy; that of member m depends on m only.

    Env 0 terminates at t=2 and is reset at t=3; env 1 is reset at t=0, truncated at t=3 and reset at t=4; env 2 loses a
    life at t=1 (terminated, and the next transition is live) and is truncated at the block's last step.
    """
    return _stacked([_row(agent, time, envs, 1000 * seed + m) for m in members])


def pick(block: Trajectory, members: list[int]) -> Trajectory:
    """Copy of some members of a block."""
    rows = {f.name: getattr(block, f.name)[members] for f in fields(block) if f.name != "from_replay"}
    return Trajectory(**rows, from_replay=block.from_replay)


def changed(block: Trajectory, **values: Any) -> Trajectory:
    """Copy of a block with some fields replaced."""
    return replace(pick(block, list(range(len(block.rewards)))), **values)


def first_inputs(agent: ActorCritic, observations: torch.Tensor) -> tuple[Inputs, torch.Tensor]:
    """Inputs at the start of an episode with observations [P member, B env, ...], and the initial memory."""
    actions, memory = agent.begin(*observations.shape[:2])
    first = torch.ones(observations.shape[:2], dtype=torch.bool)
    return Inputs(observations, actions, torch.zeros(first.shape), first), memory


def differences(one: State, slot: int, other: State, other_slot: int) -> list[str]:
    """Names of the tensors that are not equal bit for bit in two members."""
    own, theirs = {**one.tensors, **one.running}, {**other.tensors, **other.running}
    assert set(own) == set(theirs)
    return [k for k, v in own.items() if not torch.equal(v[slot], theirs[k][other_slot])]


def _row(agent: ActorCritic, time: int, envs: int, seed: int) -> Trajectory:
    g = torch.Generator().manual_seed(seed)
    if agent.image:
        shape = (1, time + 1, envs, *agent.shape)
        observations = torch.randint(0, 256, shape, generator=g, dtype=torch.uint8)
    else:
        observations = torch.randn(1, time + 1, envs, *agent.shape, generator=g) * 2 + 0.5
    size = agent.policy.size + agent.policy.free_size
    policy = 0.7 * torch.randn(1, time, envs, size, generator=g)
    actions = agent.policy.sample(policy, agent.policy.draw_noise(g, (1, time, envs, *agent.policy.noise_shape)))
    rewards = 2 * torch.randn(1, time, envs, generator=g)
    terminated, over, dead = (torch.zeros(1, time, envs, dtype=torch.bool) for _ in range(3))
    over[:, -1, 2] = True
    for flag, t, env in (
        (terminated, 2, 0), (over, 2, 0), (dead, 3, 0),
        (dead, 0, 1), (over, 3, 1), (dead, 4, 1),
        (terminated, 1, 2), (over, 1, 2),
    ):  # fmt: skip
        if t < time:
            flag[:, t, env] = True
    rewards[dead] = 0.0
    first = torch.zeros(1, envs, dtype=torch.bool)
    first[:, 1:2] = True
    last = torch.randn(1, envs, generator=g)
    before = Inputs(observations[:, 0], actions[:, -1], last, first)
    memory = torch.tanh(torch.randn(1, envs, agent.net.rnn_state_size, generator=g))
    if agent.settings.name == "feudal":  # goals have length 1, and it is some core's turn
        lasting = memory[..., : 4 * agent.net.horizon * agent.net.units].view(envs, 4, -1, agent.net.units)
        lasting[:, 2] /= lasting[:, 2].norm(dim=-1, keepdim=True)
        memory[..., -1] = torch.randint(0, agent.net.horizon, (1, envs), generator=g)
    noise = agent.noise([g], time, envs).transpose(0, 1)
    return Trajectory(observations, actions, rewards, terminated, over, dead, policy, before, memory, noise)


def _stacked(rows: list[Any]) -> Any:
    """Concatenate blocks along the member axis."""
    if rows[0] is None or isinstance(rows[0], torch.Tensor):
        return rows[0] if rows[0] is None else torch.cat(rows)
    return type(rows[0])(**{f.name: _stacked([getattr(r, f.name) for r in rows]) for f in fields(rows[0])})
