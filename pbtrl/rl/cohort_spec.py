"""Specification shared by all RL cohorts of a run, and helpers to fill and seed them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pbtrl.agents.types import Agent, State
from pbtrl.core.seeding import seed_for
from pbtrl.core.tensors import Tensors, check_fit
from pbtrl.envs import Vector
from pbtrl.rl.episode_metric import EpisodeMetric
from pbtrl.rl.rollout import ToEnv
from pbtrl.system.imports import import_object

MakeEnvs = Callable[[Sequence[int], int], Vector]
"""Factory of a vector env: (one seed per env, number of threads) -> Vector."""


@dataclass(frozen=True)
class CohortSpecRef:
    """Picklable reference from which another process rebuilds the CohortSpec.

    Attributes:
        make: `module:function`, called with `config` and `agent`.
        config: the resolved config as JSON.
        agent: name of the agent in a mixed population, or None.
    """

    make: str
    config: str
    agent: str | None

    def spec(self) -> CohortSpec:
        """Rebuild the CohortSpec."""
        spec: CohortSpec = import_object(self.make)(self.config, self.agent)
        return spec


@dataclass(frozen=True)
class CohortSpec:
    """Properties that all RL cohorts of a run share.

    Attributes:
        agent: the algorithm.
        to_env: conversion of stored actions to the env's actions.
        make: factory of the envs.
        envs: number of envs per member.
        block: steps per env and update (an upper limit if `exact`).
        exact: whether a member updates every `unroll_length` steps instead of every `block` steps.
        reset: whether every slice starts with new envs.
        curve_interval: distance between points of the curve (env steps).
        live: live hyperparameters with their defaults.
        structural: hyperparameters that all members of a cohort have in common, with their values.
        origin: reference from which other processes rebuild this object.
        processes: number of processes that act, or act and learn, for a cohort; unused if the cohort acts itself.
        replay: fraction of replayed unrolls in an update.
        replay_size: capacity of a member's replay (unrolls).
        metric: measure of an episode; None for its return.
        evaluate: (snapshot, seed, threads) -> scores, if the fitness comes from evaluation episodes.
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
    metric: EpisodeMetric | None = None
    evaluate: Callable[[Tensors, int, int], list[float]] | None = None


def fill(state: State, slot: int, row: Tensors) -> None:
    """Copy a snapshot's tensors into one slot.

    Raises:
        SnapshotError: they do not fit the agent.
    """
    check_fit({name: values[slot].numpy() for name, values in state.tensors.items()}, row)
    for name, value in row.items():
        state.tensors[name][slot] = torch.from_numpy(np.asarray(value))


def generator(seed: int, purpose: str) -> torch.Generator:
    """Create a torch generator for one purpose."""
    return torch.Generator().manual_seed(seed_for(seed, purpose))
