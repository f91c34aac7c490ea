"""Injected policy lag costs V-trace less than an actor-critic without correction."""

from collections import deque
from dataclasses import dataclass, replace

import pytest
import torch

from pbtrl import envs
from pbtrl.agents.impala import Impala
from pbtrl.agents.settings import ImpalaSettings, live_hyperparameters
from pbtrl.rl.rollout import Rollout

MEMBERS, ENVS, UPDATES = 4, 8, 120


@dataclass(frozen=True)
class Uncorrected(Impala):
    """Treats every block as on-policy."""

    def targets(self, seen, h):
        return super().targets(replace(seen, log_rhos=torch.zeros_like(seen.log_rhos)), h)


def mean_return(kind, lag):
    """Mean return over all of training, where every block is acted by the weights of `lag` updates before."""
    vector = envs.make("tests.faulty_envs:Detour", range(MEMBERS * ENVS))
    settings = ImpalaSettings(
        optimizer="adam", reduction="mean", rewards="none", observations="raw", hidden=(16,), learning_rate=0.05,
        unroll_length=10, max_grad_norm=1.0,
    )  # fmt: skip
    agent = kind.make(settings, vector.single_observation_space, vector.single_action_space)
    state, acting = (agent.init([torch.Generator().manual_seed(1 + i) for i in range(MEMBERS)]) for _ in range(2))
    h = {name: torch.tensor([value] * MEMBERS) for name, value in live_hyperparameters(settings).items()}
    rollout = Rollout(vector, MEMBERS, agent, agent.policy.to_env)
    generators = [torch.Generator().manual_seed(100 + i) for i in range(MEMBERS)]
    past = deque([state.tensors["params"].clone()], maxlen=lag + 1)
    for _ in range(UPDATES):
        acting.tensors["params"].copy_(past[0])
        agent.learn(state, rollout.collect(acting, generators, 10), h)
        past.append(state.tensors["params"].clone())
    returns = [r for episodes in rollout.episodes for r in episodes.returns]
    rollout.close()
    return sum(returns) / len(returns)


def test_lag_costs_v_trace_less_than_no_correction():
    corrected, uncorrected = ({lag: mean_return(k, lag) for lag in (0, 16, 32)} for k in (Impala, Uncorrected))
    assert corrected[0] == uncorrected[0] == pytest.approx(1.0, abs=0.1)
    for lag, factor in ((16, 1.2), (32, 1.5)):
        assert uncorrected[0] - uncorrected[lag] > factor * (corrected[0] - corrected[lag]) > 0.0
