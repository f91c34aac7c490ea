"""Evaluation: fresh episodes with raw returns and a fixed quota per env.

Playing until the first N episodes are done would favor short ones. So each env plays a fixed number of episodes, and
envs that are done wait for the others. Episodes that do not end are cut after a number of steps and counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from pbtrl.agents.types import Agent, Inputs, State
from pbtrl.core.scores import EvaluationEpisodes
from pbtrl.core.seeding import env_seeds
from pbtrl.core.tensors import Tensors
from pbtrl.envs import Vector
from pbtrl.rl.cohort_spec import MakeEnvs, fill
from pbtrl.rl.episode_metric import EpisodeMetric
from pbtrl.rl.rollout import ToEnv
from pbtrl.rl.video import Camera

ENVS = 16  # largest number of envs per member


class _Episode(NamedTuple):
    result: float
    length: int
    cut: bool


def evaluate(
    agent: Agent, to_env: ToEnv, make: MakeEnvs, rows: Sequence[Tensors], *, episodes: int, seed: int,
    deterministic: bool = False, threads: int = 1,
    max_steps: int | None = None, fallback: int | None = None, seconds: float | None = None,
    camera: Camera | None = None,
    metric: EpisodeMetric | None = None,
) -> list[EvaluationEpisodes]:  # fmt: skip
    """Play `episodes` with each snapshot in `rows`, all on the same env seeds, which are derived from `seed`.

    Args:
        agent: the algorithm.
        to_env: conversion of stored actions to the env's actions.
        make: factory of the envs.
        rows: tensors of the snapshots.
        episodes: number of episodes per snapshot.
        seed: root of the env seeds and of the action noise.
        deterministic: whether to use the policy's mode instead of a sample.
        threads: number of threads of the simulator.
        max_steps: env steps after which an episode is cut; default: the env's own limit.
        fallback: value of `max_steps` if the env has no limit; None for no limit.
        camera: recorder of the first episode of some envs.
        metric: measure of an episode, in place of its return; episodes without one count as NaN.
        seconds: deadline, at which open episodes are cut and no new ones start; each env takes at least one step.
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
        finished = _play(
            agent, to_env, vector, state, len(rows), quota, noise_seed, limit or math.inf, deadline, metric, camera
        )
    finally:
        vector.close()
    played = ([e for j in range(i * envs, (i + 1) * envs) for e in finished[j]] for i in range(len(rows)))
    return [
        EvaluationEpisodes(
            returns=[e.result for e in member],
            lengths=[e.length for e in member],
            seeds=seeds,
            max_steps=limit,
            truncated=sum(e.cut for e in member),
            timed_out=len(member) < episodes or any(e.cut and e.length != limit for e in member),
        )
        for member in played
    ]


def _play(
    agent: Agent, to_env: ToEnv, vector: Vector, state: State, members: int, quota: np.ndarray, seed: int | None,
    limit: float, deadline: float, metric: EpisodeMetric | None, camera: Camera | None = None,
) -> list[list[_Episode]]:  # fmt: skip
    """Play every env's quota of episodes; returns the episodes by env.

    They are played in rounds, because only all envs can be reset together: an env whose episode was cut at `limit`
    steps waits for the end of the round. If no episode is cut, there is a single round.
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
        if camera:
            camera.shoot(vector)
        image = obs.dtype == np.uint8 and obs.ndim == 4
        while playing.any() and not late:
            frames = torch.from_numpy(obs).to(torch.uint8 if image else torch.float32)
            frames = frames.view(members, envs, *obs.shape[1:])
            noise = None if seed is None else agent.noise(generators, 1, envs)[0]
            reward_and_first = (torch.from_numpy(x).view(members, envs) for x in (rewards, first))
            acted = agent.act(state, Inputs(frames, actions, *reward_and_first), rnn_state, noise)
            actions, rnn_state = acted.actions, acted.rnn_state
            obs, rewards, _, _ = vector.step(to_env(actions).flatten(0, 1).numpy())
            if camera:
                camera.shoot(vector)
            first, done = vector.is_reset_step, vector.episode_over
            returns += rewards
            lengths += ~vector.is_reset_step
            late = time.monotonic() >= deadline
            cut = playing & ~done & (lengths > 0) & ((lengths >= limit) | late)
            ended = playing & done | cut
            for j in map(int, np.flatnonzero(ended)):
                result, length = float(returns[j]), int(lengths[j])
                if metric is not None:
                    score = metric(vector, j, result, length)
                    result = math.nan if score is None else score
                finished[j].append(_Episode(result, length, bool(cut[j])))
                if camera:
                    camera.end(j, result, length)
            due -= ended
            playing &= (due > 0) & ~cut
            returns[done] = 0.0
            lengths[done] = 0
    return finished
