"""Check that an exported policy gives what pbtrl's own policy gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from pbtrl.agents.distributions import Gaussian, MultiCategorical
from pbtrl.errors import RunError
from pbtrl.rl.policy import Policy

OBSERVATIONS = 64
TOLERANCE = 1e-5
STEPS, ENVS = 8, 7

Act = Callable[[NDArray[Any], Any, Any], tuple[NDArray[Any], NDArray[Any], Any]]
"""Exported policy: observations [B, ...], state (None at the start) and last rewards [B] -> distribution, actions,
next state."""


def largest_difference(policy: Policy, act: Act) -> float:
    """Return the largest difference between two policies on 64 observations.

    It is relative to the largest of an observation's values, if that is more than 1, because so is their rounding.

    Compared are the distribution's parameters and the deterministic actions, in a sequence of 8 steps of 7 envs, and
    alone at the start of 8 episodes. A discrete action that is not the most likely one counts with the difference of
    the logits.

    Raises:
        RunError: it is larger than 1e-5, or not a number.
    """
    observations, rng = _observations(policy), np.random.default_rng(0)
    worst = 0.0
    for batch in (
        *_batches(observations[: STEPS * ENVS], ENVS),
        *([x] for x in _singles(observations[STEPS * ENVS :])),
    ):
        state = other = None
        reward: Any = 0.0
        for x in batch:
            parameters = policy.distribution(x, state, reward=reward)
            actions, state = policy.predict(x, state, reward=reward)
            others, chosen, other = act(x, other, reward)
            worst = max(worst, _difference(parameters, others), _action_difference(policy, parameters, actions, chosen))
            reward = rng.normal(size=len(x)).astype(np.float32)
    if not worst <= TOLERANCE:
        raise RunError(
            f"the exported policy differs from pbtrl's by {worst:.1e} on {OBSERVATIONS} observations, more than "
            f"{TOLERANCE:.0e}; nothing was exported"
        )
    return worst


def _observations(policy: Policy) -> NDArray[Any]:
    """Draw observations around the normalizer's mean, also beyond its clip, or else from the observation space."""
    space, rng = policy.observation_space, np.random.default_rng(0)
    tensors = policy.state.tensors
    if not (isinstance(space, Box) and policy.agent.normalizes):
        space.seed(0)
        return np.stack([space.sample() for _ in range(OBSERVATIONS)])
    mean, scale = (tensors[name][0].double().numpy() for name in ("shift", "scale"))
    drawn = mean + rng.standard_cauchy((OBSERVATIONS, mean.size)) / scale
    clipped: NDArray[Any] = np.clip(drawn.reshape(OBSERVATIONS, *space.shape), space.low, space.high)
    return clipped.astype(str(space.dtype))


def _batches(observations: NDArray[Any], size: int) -> Iterator[list[NDArray[Any]]]:
    yield [observations[i : i + size] for i in range(0, len(observations), size)]


def _singles(observations: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (observations[i : i + 1] for i in range(len(observations)))


def _difference(one: NDArray[Any], other: NDArray[Any]) -> float:
    if one.shape != other.shape:
        return np.inf
    size = np.maximum(1.0, np.abs(one.reshape(len(one), -1)).max(-1))
    largest = float((np.abs(other.astype(np.float64) - one).reshape(len(one), -1).max(-1) / size).max())
    return np.inf if np.isnan(largest) else largest  # max() would ignore it


def _action_difference(policy: Policy, parameters: NDArray[Any], one: NDArray[Any], other: NDArray[Any]) -> float:
    kind = policy.agent.policy
    if isinstance(kind, Gaussian):
        return _difference(one, other)
    sizes = kind.sizes if isinstance(kind, MultiCategorical) else (kind.size,)
    indices = (other - getattr(policy.action_space, "start", 0)).reshape(len(other), -1)
    if one.shape != other.shape or (indices < 0).any() or (indices >= sizes).any():
        return np.inf
    slots = np.split(parameters, np.cumsum(sizes)[:-1], -1)
    likeliest = np.stack([slot.max(-1) for slot in slots], -1)
    chosen = [np.take_along_axis(slot, indices[:, [i]], 1)[:, 0] for i, slot in enumerate(slots)]
    return _difference(likeliest, np.stack(chosen, -1))
