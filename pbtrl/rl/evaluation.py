"""Evaluation: fresh episodes, raw returns, every env with a fixed quota.

Playing until the first N episodes are done would favor short ones; so each of the envs plays a number of episodes that
is fixed beforehand, and the envs that are done wait for the others. An env need not end its episodes: those are cut
after a number of steps, and counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from pbtrl.agents.types import Agent, Inputs, State
from pbtrl.core.seeding import env_seeds
from pbtrl.core.tensors import Tensors
from pbtrl.envs import Vector
from pbtrl.rl.cohort_spec import MakeEnvs, fill
from pbtrl.rl.rollout import ToEnv

ENVS = 16  # per member, at most


@dataclass(frozen=True)
class Episodes:
    """What one member played.

    Attributes:
        returns: raw, of each episode.
        lengths: their env steps.
        seeds: of the envs.
        max_steps: env steps after which an episode was cut; None where there was no limit.
        truncated: how many episodes were cut, at `max_steps` or because the time was up; an env's own time limit does
            not count.
        timed_out: whether the time was up before all episodes were played to their end.
    """

    returns: list[float]
    lengths: list[int]
    seeds: list[int]
    max_steps: int | None = None
    truncated: int = 0
    timed_out: bool = False


class _Episode(NamedTuple):
    result: float
    length: int
    cut: bool


def evaluate(
    agent: Agent, to_env: ToEnv, make: MakeEnvs, rows: Sequence[Tensors], *, episodes: int, seed: int,
    deterministic: bool = False, threads: int = 1,
    max_steps: int | None = None, fallback: int | None = None, seconds: float | None = None,
) -> list[Episodes]:  # fmt: skip
    """Play `episodes` with each snapshot in `rows`, all on the same env seeds, which follow from `seed`.

    Args:
        agent: the algorithm.
        to_env: stored actions to the env's.
        make: envs for some seeds, with some threads.
        rows: snapshots.
        episodes: per snapshot.
        seed: root of the envs' seeds and of the action noise.
        deterministic: take the policy's mode instead of a sample.
        threads: of the simulator.
        max_steps: env steps after which an episode is cut; the env's own limit unless given.
        fallback: the same where the env has no limit of its own; None for no limit.
        seconds: after which the episodes under way are cut and no more begin; each env takes at least one step.
    """
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    envs = min(episodes, ENVS)
    seeds = env_seeds(seed, envs)
    state = agent.init([torch.Generator().manual_seed(0) for _ in rows])
    for slot, row in enumerate(rows):
        fill(state, slot, row)
    vector = make(seeds * len(rows), threads)
    try:
        limit = max_steps or vector.max_episode_steps or fallback
        quota = np.tile([episodes // envs + (j < episodes % envs) for j in range(envs)], len(rows))
        noise_seed = None if deterministic else seed
        finished = _play(agent, to_env, vector, state, len(rows), quota, noise_seed, limit or math.inf, deadline)
    finally:
        vector.close()
    played = ([e for j in range(i * envs, (i + 1) * envs) for e in finished[j]] for i in range(len(rows)))
    return [
        Episodes(
            returns=[e.result for e in mine],
            lengths=[e.length for e in mine],
            seeds=seeds,
            max_steps=limit,
            truncated=sum(e.cut for e in mine),
            timed_out=len(mine) < episodes or any(e.cut and e.length != limit for e in mine),
        )
        for mine in played
    ]


def _play(
    agent: Agent, to_env: ToEnv, vector: Vector, state: State, members: int, quota: np.ndarray, seed: int | None,
    limit: float, deadline: float,
) -> list[list[_Episode]]:  # fmt: skip
    """Every env's episodes, up to its quota.

    They are played in rounds: an env whose episode was cut at `limit` steps waits until no other plays, since only all
    envs can be reset together. Where nothing is cut there is one round.
    """
    generators = [torch.Generator().manual_seed(seed or 0) for _ in range(members)]
    envs = vector.num_envs // members
    finished: list[list[_Episode]] = [[] for _ in range(vector.num_envs)]
    due, late = quota.copy(), False
    while due.any() and not late:
        returns, lengths = np.zeros(vector.num_envs), np.zeros(vector.num_envs, np.int64)
        actions, rnn_state = agent.begin(members, envs)
        rewards, first = np.zeros(vector.num_envs, np.float32), np.ones(vector.num_envs, np.bool_)
        playing = due > 0
        obs = vector.reset()
        image = obs.dtype == np.uint8 and obs.ndim == 4
        while playing.any() and not late:
            seen = torch.from_numpy(obs).to(torch.uint8 if image else torch.float32).view(members, envs, *obs.shape[1:])
            noise = None if seed is None else agent.noise(generators, 1, envs)[0]
            told = (torch.from_numpy(x).view(members, envs) for x in (rewards, first))
            acted = agent.act(state, Inputs(seen, actions, *told), rnn_state, noise)
            actions, rnn_state = acted.actions, acted.rnn_state
            obs, rewards, _, _ = vector.step(to_env(actions).flatten(0, 1).numpy())
            first, done = vector.is_reset_step, vector.episode_over
            returns += rewards
            lengths += ~vector.is_reset_step
            late = time.monotonic() >= deadline
            cut = playing & ~done & (lengths > 0) & ((lengths >= limit) | late)
            ended = playing & done | cut
            for j in np.flatnonzero(ended):
                finished[j].append(_Episode(float(returns[j]), int(lengths[j]), bool(cut[j])))
            due -= ended
            playing &= (due > 0) & ~cut
            returns[done] = 0.0
            lengths[done] = 0
    return finished
