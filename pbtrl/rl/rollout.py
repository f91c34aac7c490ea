"""Rollouts: a cohort's envs, and the blocks of experience that they fill.

One pool holds all envs of a cohort, member by member: rows i*B .. (i+1)*B - 1 belong to slot i. Buffers are time-major
[T+1, P, B, ...] and reused; the agent gets them as [P, T, B, ...] views without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.agents.types import Agent, Inputs, State, Trajectory
from pbtrl.core.messages import numbers
from pbtrl.envs import Vector
from pbtrl.rl.episode_metric import EpisodeMetric

ToEnv = Callable[[Tensor], Tensor]
Instrument = Callable[[str, Callable[..., Any]], Callable[..., Any]]
"""Wrapper that takes a part's name and its function, and returns a function that also measures it."""


def stopwatch(seconds: dict[str, float]) -> Instrument:
    """Return an instrument that adds up the time of each part in `seconds`."""

    def wrap(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            begun = monotonic()
            result = function(*args)
            seconds[part] = seconds.get(part, 0.0) + monotonic() - begun
            return result

        return timed

    return wrap


@dataclass
class Episodes:
    """Episodes that one slot finished, oldest first.

    Attributes:
        returns: raw return of each.
        lengths: length of each (env steps).
        scores: what `fitness.metric` measured, by default the return; only of the episodes that have such a number.
        unmeasured: number of episodes that have none.
    """

    returns: list[float] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    unmeasured: int = 0

    def add(self, episode_return: float, length: int, score: float | None) -> None:
        """Append an episode."""
        self.returns.append(episode_return)
        self.lengths.append(length)
        if score is None:
            self.unmeasured += 1
        else:
            self.scores.append(score)

    def packed(self) -> tuple[list[float], list[int], list[float], int]:
        """Return all fields as plain types, for `extend` in another process."""
        return self.returns, self.lengths, self.scores, self.unmeasured

    def extend(
        self, returns: Sequence[float | None], lengths: Sequence[int], scores: Sequence[float | None], unmeasured: int
    ) -> None:
        """Append episodes, in which None (from JSON) stands for a number that is not finite."""
        self.returns += numbers(returns)
        self.lengths += lengths
        self.scores += numbers(scores)
        self.unmeasured += unmeasured


class Source(Protocol):
    """Source of a cohort's experience: a `Rollout`, or processes that have one each.

    Attributes:
        episodes: per slot, the episodes finished since `clear`.
    """

    episodes: list[Episodes]

    def clear(self) -> None:
        """Reset episodes and counters."""

    def forget(self, slot: int) -> None:
        """Handle a new policy in a slot; its open episodes will not count."""

    def tally(self) -> dict[str, float]:
        """Losses since `clear`, by tag."""

    def instrument(self, wrap: Instrument) -> None:
        """Replace the functions that take time by what `wrap(part, function)` makes of them, to measure them."""

    def close(self) -> None:
        """Close the envs."""


class Rollout(Source):
    """Stepper of P x B envs with a cohort's policies.

    Attributes:
        members: P.
        envs: B, envs per member.
        episodes: per slot, the episodes finished since `clear`, except those that began before the slot's last
            `forget`, because two policies played them.
    """

    def __init__(
        self, vector: Vector, members: int, agent: Agent, to_env: ToEnv, metric: EpisodeMetric | None = None
    ) -> None:
        self._metric = metric
        self.vector, self.members, self.envs = vector, members, vector.num_envs // members
        self.act, self._noise, self._to_env = agent.act, agent.noise, to_env
        self._step = vector.step
        self._actions, self._memory = agent.begin(self.members, self.envs)
        self._rewards = torch.zeros(self.members, self.envs)
        self._first = torch.ones(self.members, self.envs, dtype=torch.bool)
        self._last = torch.as_tensor(vector.reset()).clone()
        self._shape = self._last.shape[1:]
        self._buffers = _Buffers(0, members, self.envs, self._shape, self._last.dtype)
        self._returns = np.zeros(vector.num_envs)
        self._lengths = np.zeros(vector.num_envs, np.int64)
        self._stale = np.zeros(vector.num_envs, np.bool_)
        self.episodes = [Episodes() for _ in range(members)]

    @override
    def clear(self) -> None:
        self.episodes = [Episodes() for _ in range(self.members)]

    @override
    def forget(self, slot: int) -> None:
        """Handle a new policy in a slot: its RNN state is zeroed, and its open episodes will not count."""
        self._memory[slot] = 0.0
        rows = slice(slot * self.envs, (slot + 1) * self.envs)
        self._stale[rows] = ~self.vector.episode_over[rows]

    @override
    def instrument(self, wrap: Instrument) -> None:
        self.act, self._step = wrap("act", self.act), wrap("env", self._step)

    def collect(self, state: State, generators: Sequence[torch.Generator], time: int) -> Trajectory:
        """Step every env `time` times; the trajectory is valid until the next call."""
        p, b = self.members, self.envs
        if time > self._buffers.room:
            self._buffers = _Buffers(time, p, b, self._shape, self._last.dtype)
        buffers = self._buffers
        noise = self._noise(generators, time, b)
        buffers.observations[0].copy_(self.inputs.observations)
        self._rewards, self._first = self._rewards.clone(), self._first.clone()  # they are views of reused buffers
        before = Inputs(buffers.observations[0], self._actions, self._rewards, self._first)
        rnn_state, acted = self._memory, []
        for t in range(time):
            inputs = Inputs(buffers.seen[t], self._actions, self._rewards, self._first)
            acted.append(self.act(state, inputs, self._memory, noise[t]))
            self._actions, self._memory = acted[t].actions, acted[t].rnn_state
            outside = self._to_env(self._actions).flatten(0, 1).numpy()
            obs, rewards, terminated, truncated = self._step(outside)
            buffers.rows[t + 1] = obs
            buffers.rewards[t] = rewards
            buffers.terminated[t] = terminated
            np.logical_or(terminated, truncated, out=buffers.done[t])
            buffers.is_reset_step[t] = self.vector.is_reset_step
            self._rewards, self._first = buffers.last_rewards[t], buffers.first[t]
            self._count(rewards)
        self._last = buffers.observations[time]
        return Trajectory(
            observations=buffers.observations[: time + 1].transpose(0, 1),
            actions=torch.stack([a.actions for a in acted], 1),
            rewards=buffers.member_major(buffers.rewards[:time]),
            terminated=buffers.member_major(buffers.terminated[:time]),
            done=buffers.member_major(buffers.done[:time]),
            is_reset_step=buffers.member_major(buffers.is_reset_step[:time]),
            policy=torch.stack([a.policy for a in acted], 1),
            initial_inputs=before,
            rnn_state=rnn_state,
            noise=noise.transpose(0, 1),
        )

    @property
    def inputs(self) -> Inputs:
        """Next inputs of the policies, [P, B, ...]."""
        observations = self._last.view(self.members, self.envs, *self._shape)
        return Inputs(observations, self._actions, self._rewards, self._first)

    @override
    def tally(self) -> dict[str, float]:
        """Return no losses."""
        return {}

    @override
    def close(self) -> None:
        self.vector.close()

    def _count(self, rewards: np.ndarray) -> None:
        self._returns += rewards
        self._lengths += ~self.vector.is_reset_step
        if not self.vector.episode_over.any():
            return
        for row in np.flatnonzero(self.vector.episode_over):
            if not self._stale[row]:
                episode_return, length = float(self._returns[row]), int(self._lengths[row])
                measure = self._metric
                score = episode_return if measure is None else measure(self.vector, int(row), episode_return, length)
                self.episodes[row // self.envs].add(episode_return, length, score)
        self._returns[self.vector.episode_over] = 0.0
        self._lengths[self.vector.episode_over] = 0
        self._stale[self.vector.episode_over] = False


class _Buffers:
    """Buffers for a block of up to `room` steps, and views of them, because those take longer to make than to fill.

    Attributes:
        rows: all observations, one row per env.
        seen: observations [P, B, ...] of each step.
        last_rewards: rewards [P, B] of each step.
        first: `is_reset_step` [P, B] of each step.
    """

    def __init__(self, time: int, members: int, envs: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.room, self._split = time, (-1, members, envs)
        self.observations = torch.empty(time + 1, members, envs, *shape, dtype=dtype)
        self.rewards = np.empty((time, members * envs), np.float32)
        self.terminated = np.empty((time, members * envs), np.bool_)
        self.done = np.empty_like(self.terminated)
        self.is_reset_step = np.empty_like(self.terminated)
        self.rows, self.seen = self.observations.flatten(1, 2).numpy(), self.observations.unbind()
        self.last_rewards, self.first = (
            torch.from_numpy(x).view(time, members, envs).unbind() for x in (self.rewards, self.is_reset_step)
        )

    def member_major(self, rows: np.ndarray) -> Tensor:
        """Convert [T, P * B] to a contiguous [P, T, B]."""
        return torch.from_numpy(rows).view(self._split).transpose(0, 1).contiguous()
