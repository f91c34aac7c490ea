"""Small policies of every agent and network, whose weights and statistics are as if they were trained."""

from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space

from pbtrl.agents.settings import AGENTS
from pbtrl.envs.vector import Spaces, convert_spaces
from pbtrl.rl.policy import Policy

OBSERVATIONS: dict[str, Space[Any]] = {
    "vector": Box(-np.inf, np.inf, (3,), np.float64),
    "matrix": Box(np.full((2, 2), -1, np.float32), np.full((2, 2), 1, np.float32)),
    "states": Discrete(5, start=2),
    "image": Box(0, 255, (40, 36, 3), np.uint8),
    "stack": Box(0, 255, (4, 36, 40), np.uint8),
    "images": Box(0, 255, (2, 36, 36, 3), np.uint8),
}
ACTIONS: dict[str, Space[Any]] = {
    "discrete": Discrete(3, start=1),
    "box": Box(np.array([-0.1, 0.0]), np.array([1.0, 30.0]), dtype=np.float64),
    "several": MultiDiscrete([3, 2, 4], start=[0, -1, 5]),
    "grid": MultiDiscrete([[2, 3], [4, 2]], dtype=np.int32),
    "open": Box(-np.inf, np.inf, (2,), np.float32),
}
FEUDAL = {"goal_units": 16, "embedding": 8, "horizon": 3}

CASES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "impala": ("impala", "vector", "discrete", {"hidden": (16, 10)}),
    "relu": ("impala", "vector", "box", {"hidden": (10, 8), "activation": "relu"}),
    "elu": ("ppo", "vector", "box", {"hidden": (10,), "use_last_action_reward": True, "activation": "elu"}),
    "ppo": ("ppo", "matrix", "box", {"hidden": (10,)}),
    "linear": ("a3c", "states", "open", {"hidden": (), "observations": "raw", "std": "softplus"}),
    "one torso": ("impala", "vector", "box", {"hidden": (10,), "use_last_action_reward": True, "actions": "squash"}),
    "lstm": ("ppo", "states", "box", {"core": "lstm", "core_units": 10, "hidden": (16, 10)}),
    "vmpo": ("vmpo", "vector", "box", {"core": "lstm", "core_units": 8, "use_last_action_reward": True}),
    "shallow": ("a3c", "image", "discrete", {"core": "lstm", "core_units": 16, "use_last_action_reward": True}),
    "nature": ("impala", "stack", "discrete", {"network": "nature"}),
    "deep": ("vmpo", "images", "box", {"network": "deep", "actions": "squash"}),
    "several": ("vmpo", "vector", "several", {"hidden": (10,), "use_last_action_reward": True}),
    "several slots": ("ppo", "states", "grid", {"hidden": (10,)}),
    "unreal": ("unreal", "vector", "discrete", {"core_units": 10}),
    "unreal image": ("unreal", "image", "discrete", {"core_units": 10}),
    "feudal": ("feudal", "vector", "discrete", {**FEUDAL, "use_last_action_reward": True}),
    "feudal image": ("feudal", "image", "box", FEUDAL),
}


def make(case: str, seed: int = 0) -> Policy:
    name, observation, action, settings = CASES[case]
    own = Spaces(OBSERVATIONS[observation], ACTIONS[action])
    spaces = convert_spaces(own, "policy")
    agent = AGENTS[name](**settings).build(spaces.single_observation_space, spaces.single_action_space)
    state = agent.init([torch.Generator().manual_seed(seed)])
    generator, rng = torch.Generator().manual_seed(seed + 1), np.random.default_rng(seed)
    row = {key: value[0].numpy().copy() for key, value in state.tensors.items()}
    for key in [key for key in ("params", "target") if key in row]:
        for view in agent.layout.views(torch.from_numpy(row[key])[None]).values():
            view.add_(0.03 * torch.randn(view.shape, generator=generator) * (view != 0))
    for key, values in (("shift", rng.normal(size=30)), ("scale", np.exp(rng.normal(size=30)))):
        if key in row:
            row[key] = values[: row[key].size].astype(np.float32)
    box = spaces.single_action_space
    if not isinstance(box, Box):
        return Policy(agent, agent.policy.to_env, row, *own[:2])
    low, high = torch.as_tensor(box.low), torch.as_tensor(box.high)
    return Policy(agent, lambda stored: agent.policy.to_env(stored, low, high), row, *own[:2])
