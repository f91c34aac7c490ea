"""Evaluation: fresh episodes, raw returns, every env with a fixed quota.

Playing until the first N episodes are done would favour short ones; so each of the envs plays a number of episodes that
is fixed beforehand, and the envs that are done wait for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from agents.types import Agent, Inputs, State
from envs import Vector
from pbtrl.rl.rollout import ToEnv
from pbtrl.rl.setting import MakeEnvs, env_seeds, fill
from pbtrl.snapshots import Tensors

ENVS = 16  # per member, at most


@dataclass(frozen=True)
class Episodes:
    """What one member played: raw returns, lengths (env steps), and the seeds of the envs."""

    returns: list[float]
    lengths: list[int]
    seeds: list[int]


def evaluate(
    agent: Agent, to_env: ToEnv, make: MakeEnvs, rows: Sequence[Tensors], *, episodes: int, seed: int,
    deterministic: bool = False, threads: int = 1,
) -> list[Episodes]:  # fmt: skip
    """Play `episodes` with each snapshot in `rows`, all on the same env seeds, which follow from `seed`.

    `deterministic` takes the policy's mode instead of a sample.
    """
    envs = min(episodes, ENVS)
    seeds = env_seeds(seed, envs)
    state = agent.init([torch.Generator().manual_seed(0) for _ in rows])
    for slot, row in enumerate(rows):
        fill(state, slot, row)
    vector = make(seeds * len(rows), threads)
    try:
        quota = np.tile([episodes // envs + (j < episodes % envs) for j in range(envs)], len(rows))
        finished = _play(agent, to_env, vector, state, len(rows), quota, None if deterministic else seed)
    finally:
        vector.close()
    return [
        Episodes([r for j in mine for r, _ in finished[j]], [n for j in mine for _, n in finished[j]], seeds)
        for mine in (range(i * envs, (i + 1) * envs) for i in range(len(rows)))
    ]


def _play(
    agent: Agent, to_env: ToEnv, vector: Vector, state: State, members: int, quota: np.ndarray, seed: int | None
) -> list[list[tuple[float, int]]]:  # fmt: skip
    """(return, length) of every env's episodes, up to its quota."""
    generators = [torch.Generator().manual_seed(seed or 0) for _ in range(members)]
    envs = vector.num_envs // members
    finished: list[list[tuple[float, int]]] = [[] for _ in range(vector.num_envs)]
    returns, lengths = np.zeros(vector.num_envs), np.zeros(vector.num_envs, np.int64)
    actions, memory = agent.begin(members, envs)
    rewards, first = np.zeros(vector.num_envs, np.float32), np.ones(vector.num_envs, np.bool_)
    obs = vector.reset()
    image = obs.dtype == np.uint8 and obs.ndim == 4
    while any(len(done) < q for done, q in zip(finished, quota, strict=True)):
        seen = torch.from_numpy(obs).to(torch.uint8 if image else torch.float32).view(members, envs, *obs.shape[1:])
        noise = None if seed is None else agent.noise(generators, 1, envs)[0]
        told = (torch.from_numpy(x).view(members, envs) for x in (rewards, first))
        acted = agent.act(state, Inputs(seen, actions, *told), memory, noise)
        actions, memory = acted.actions, acted.memory
        obs, rewards, _, _ = vector.step(to_env(actions).flatten(0, 1).numpy())
        first = vector.dead
        returns += rewards
        lengths += ~vector.dead
        for j in np.flatnonzero(vector.episode_over):
            if len(finished[j]) < quota[j]:
                finished[j].append((float(returns[j]), int(lengths[j])))
        returns[vector.episode_over] = 0.0
        lengths[vector.episode_over] = 0
    return finished
