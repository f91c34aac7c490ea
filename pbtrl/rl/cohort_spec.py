"""What the cohorts of a run share, and how seeds are drawn for each purpose."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pbtrl.agents.types import Agent, State
from pbtrl.core.seeding import seed_for
from pbtrl.core.tensors import Tensors, check_fit
from pbtrl.envs import Vector
from pbtrl.rl.rollout import ToEnv

MakeEnvs = Callable[[Sequence[int], int], Vector]
"""Envs for some seeds, with a number of threads."""


@dataclass(frozen=True)
class CohortSpecRef:
    """How another process comes to the same setting: `make` is `module:function`, called with the rest."""

    make: str
    config: str
    agent: str | None

    def spec(self) -> CohortSpec:
        """The same setting."""
        module, function = self.make.split(":")
        found: CohortSpec = getattr(importlib.import_module(module), function)(self.config, self.agent)
        return found


@dataclass(frozen=True)
class CohortSpec:
    """What all RL cohorts of a run share.

    Attributes:
        agent: the algorithm.
        to_env: stored actions to the env's.
        make: envs for some seeds, with some threads.
        envs: per member.
        block: env steps per env and update (the upper limit where `exact`).
        exact: the member updates every `unroll_length` steps instead of every `block`.
        reset: every slice starts its envs anew.
        curve_interval: distance of the curve's points (env steps).
        live: live hyperparameters with their defaults.
        structural: the hyperparameters that all members of a cohort have in common, and their values.
        origin: where other processes get this from.
        processes: that act, or act and learn, for a cohort; of no meaning where it acts itself.
        replay: share of an update's unrolls that are past ones.
        replay_size: how many past unrolls a member has to draw from.
        evaluate: (snapshot, seed, threads) -> raw returns, where fitness comes from evaluation episodes.
    """

    agent: Agent
    to_env: ToEnv
    make: MakeEnvs
    envs: int
    block: int
    exact: bool
    reset: bool
    curve_interval: int
    live: dict[str, Any]
    structural: dict[str, Any]
    origin: CohortSpecRef
    processes: int
    replay: float
    replay_size: int
    evaluate: Callable[[Tensors, int, int], list[float]] | None = None


def fill(state: State, slot: int, row: Tensors) -> None:
    """Write a snapshot's tensors into one slot.

    Raises:
        SnapshotError: they are not the agent's.
    """
    check_fit({name: values[slot].numpy() for name, values in state.tensors.items()}, row)
    for name, value in row.items():
        state.tensors[name][slot] = torch.from_numpy(np.asarray(value))


def generator(seed: int, purpose: str) -> torch.Generator:
    """A generator for one purpose."""
    return torch.Generator().manual_seed(seed_for(seed, purpose))
