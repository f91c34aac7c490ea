"""What the cohorts of a run share, and how seeds are drawn for each purpose."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agents.types import Agent, State
from envs import Vector
from pbtrl.rl.rollout import ToEnv
from pbtrl.snapshots import SnapshotError, Tensors

MakeEnvs = Callable[[Sequence[int], int], Vector]
"""Envs for some seeds, with a number of threads."""


@dataclass(frozen=True)
class Setting:
    """What all RL cohorts of a run share.

    Attributes:
        agent: the algorithm.
        to_env: stored actions to the env's.
        make: envs for some seeds, with some threads.
        envs: per member.
        block: env steps per env and update (the upper limit where `exact`).
        exact: the member updates every `unroll_length` steps instead of every `block`.
        reset: every slice starts its envs anew.
        every: distance of the curve's points (env steps).
        live: live hyperparameters with their defaults.
        structural: the hyperparameters that all members of a cohort have in common, and their values.
        evaluate: (snapshot, seed, threads) -> raw returns, where fitness comes from evaluation episodes.
    """

    agent: Agent
    to_env: ToEnv
    make: MakeEnvs
    envs: int
    block: int
    exact: bool
    reset: bool
    every: int
    live: dict[str, Any]
    structural: dict[str, Any]
    evaluate: Callable[[Tensors, int, int], list[float]] | None = None


def fill(state: State, slot: int, row: Tensors) -> None:
    """Write a snapshot's tensors into one slot.

    Raises:
        SnapshotError: a tensor is unknown, or of another shape than the agent's.
    """
    for name, value in row.items():
        own = tuple(state.tensors[name].shape[1:]) if name in state.tensors else None
        if value.shape not in (own, own or (1,)):  # a scalar is saved as one of length 1
            raise SnapshotError(f"a snapshot does not fit this agent: {name} of shape {value.shape}")
        state.tensors[name][slot] = torch.from_numpy(np.asarray(value))


def seed_for(seed: int, purpose: str) -> int:
    """An independent seed, 63 bits, for one purpose."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1, np.uint64)[0] >> 1)


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose."""
    return torch.Generator().manual_seed(seed_for(seed, purpose))


def env_seeds(seed: int, envs: int) -> list[int]:
    """One seed per env, in [0, 2**31)."""
    return [int(s) for s in np.random.default_rng(seed).integers(0, 2**31, envs)]
