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
from pbtrl.envs.vector import Array, Bools, Floats
from pbtrl.rl.cohort_spec import MakeEnvs, fill
from pbtrl.rl.episode_metric import EpisodeMetric
from pbtrl.rl.rollout import ToEnv
from pbtrl.rl.video import Camera

ENVS = 16  # largest number of envs per member


class _Episode(NamedTuple):
    result: float | None
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
        metric: measure of an episode, in place of its return; episodes without one are only counted.
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
        generators = None if deterministic else [torch.Generator().manual_seed(seed) for _ in rows]
        policies = _Policies(agent, to_env, state, (len(rows), envs), generators)
        scores = _ScoreSheet(vector, quota, limit or math.inf, deadline, metric, camera)
        _play(vector, policies, scores)
    finally:
        vector.close()
    played = ([e for env in scores.finished[i * envs : (i + 1) * envs] for e in env] for i in range(len(rows)))
    return [
        EvaluationEpisodes(
            returns=[e.result for e in member if e.result is not None],
            lengths=[e.length for e in member],
            seeds=seeds,
            max_steps=limit,
            truncated=sum(e.cut for e in member),
            timed_out=len(member) < episodes or any(e.cut and e.length != limit for e in member),
            unmeasured=sum(e.result is None for e in member),
        )
        for member in played
    ]


def _play(vector: Vector, policies: _Policies, scores: _ScoreSheet) -> None:
    """Play every env's quota of episodes.

    They are played in rounds, because only all envs can be reset together: an env whose episode was cut waits for the
    end of the round. If no episode is cut, there is a single round.
    """
    while scores.due.any() and not scores.late:
        rewards, first = np.zeros(vector.num_envs, np.float32), np.ones(vector.num_envs, np.bool_)
        observations = vector.reset()
        policies.begin()
        scores.begin_round()
        while scores.playing.any() and not scores.late:
            observations, rewards, _, _ = vector.step(policies.act(observations, rewards, first))
            first = vector.is_reset_step
            scores.count(rewards)


class _Policies:
    """Policies of some members, each in as many envs; `shape` is (P, B). They take the mode without `generators`."""

    def __init__(
        self, agent: Agent, to_env: ToEnv, state: State, shape: tuple[int, int],
        generators: Sequence[torch.Generator] | None,
    ) -> None:  # fmt: skip
        self._agent, self._to_env, self._state = agent, to_env, state
        self._shape, self._generators = shape, generators

    def begin(self) -> None:
        """Start a new episode in every env: reset last actions and recurrent states."""
        self._actions, self._rnn_state = self._agent.begin(*self._shape)

    def act(self, observations: Array, rewards: Floats, first: Bools) -> Array:
        """Choose the envs' actions [N, ...] from their last observations, rewards and `is_reset_step` [N, ...]."""
        noise = None if self._generators is None else self._agent.noise(self._generators, 1, self._shape[1])[0]

        def by_member(x: Array) -> torch.Tensor:
            return torch.from_numpy(x).view(*self._shape, *x.shape[1:])

        inputs = Inputs(by_member(observations), self._actions, by_member(rewards), by_member(first))
        acted = self._agent.act(self._state, inputs, self._rnn_state, noise)
        self._actions, self._rnn_state = acted.actions, acted.rnn_state
        actions: Array = self._to_env(self._actions).flatten(0, 1).numpy()
        return actions


class _ScoreSheet:
    """Scores of the envs' episodes.

    Attributes:
        finished: finished episodes by env.
        due: [N] episodes that each env still has to finish.
        playing: [N] bool, true where an episode counts in this round.
        late: whether the deadline is over.
    """

    def __init__(
        self, vector: Vector, quota: np.ndarray, limit: float, deadline: float, metric: EpisodeMetric | None,
        camera: Camera | None,
    ) -> None:  # fmt: skip
        self._vector, self._limit, self._deadline = vector, limit, deadline
        self._metric, self._camera = metric, camera
        self.finished: list[list[_Episode]] = [[] for _ in quota]
        self.due, self.late = quota.copy(), False

    def begin_round(self) -> None:
        """Start a new episode in every env, after a reset."""
        self.playing = self.due > 0
        self._returns, self._lengths = np.zeros(len(self.due)), np.zeros(len(self.due), np.int64)
        self._shoot()

    def count(self, rewards: Floats) -> None:
        """Count the last step of the envs, and cut episodes at the limit or the deadline."""
        self._shoot()
        done, lengths = self._vector.episode_over, self._lengths
        self._returns += rewards
        lengths += ~self._vector.is_reset_step
        self.late = time.monotonic() >= self._deadline
        cut = self.playing & ~done & (lengths > 0) & ((lengths >= self._limit) | self.late)
        ended = self.playing & done | cut
        for index in map(int, np.flatnonzero(ended)):
            self._finish(index, bool(cut[index]))
        self.due -= ended
        self.playing &= (self.due > 0) & ~cut
        self._returns[done] = 0.0
        lengths[done] = 0

    def _finish(self, index: int, cut: bool) -> None:
        episode_return, length = float(self._returns[index]), int(self._lengths[index])
        metric = self._metric
        result = episode_return if metric is None else metric(self._vector, index, episode_return, length)
        self.finished[index].append(_Episode(result, length, cut))
        if self._camera:
            self._camera.end(index, episode_return, length)

    def _shoot(self) -> None:
        if self._camera:
            self._camera.shoot(self._vector)
