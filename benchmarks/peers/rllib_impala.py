"""RLlib's IMPALA on two env runners and a learner in the main process; its other settings have their defaults.

Observations are normalized by RLlib's `MeanStdFilter`, whose statistics it merges over the env runners. It does not
normalize rewards. The clock starts with the first samples. Weights are pushed to the env runners, as in earlier
versions: with 2.60's new state server, no sample came within half a minute on a busy machine.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import ray
import torch
from common import job, report
from ray.rllib.algorithms import Algorithm
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.env.env_runner import EnvRunner

RUNNERS = 2


def statistics(runner: EnvRunner) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation of the observations, as this env runner has them now."""
    (connector,) = (c for c in runner._env_to_module if isinstance(c, MeanStdFilter))
    (filtered,) = connector._filters.values()
    return filtered.running_stats.mean, filtered.running_stats.std


def sampled(algorithm: Algorithm) -> int:
    """Train for about a second and return the env steps so far, or 0 if the env runners reported nothing meanwhile."""
    return int(algorithm.train()["env_runners"].get("num_env_steps_sampled_lifetime", 0))


def main() -> None:
    """Train, score and print the result."""
    settings = job()
    ray.init(num_cpus=RUNNERS, include_dashboard=False, _temp_dir=str(Path("ray").absolute()))
    algorithm = (
        IMPALAConfig()
        .environment(settings["env"])
        .env_runners(
            num_env_runners=RUNNERS,
            use_env_runner_state_server=False,
            num_envs_per_env_runner=settings["num_envs"] // RUNNERS,
            rollout_fragment_length=settings["block_length"],
            env_to_module_connector=lambda *_, **__: MeanStdFilter(),
        )
        .learners(num_learners=0)
        .training(train_batch_size_per_learner=settings["num_envs"] * settings["block_length"])
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], vf_share_layers=False))
        .reporting(min_time_s_per_iteration=1)
        .debugging(seed=settings["seed"])
        .build_algo()
    )
    steps = 0
    while not steps:
        steps = sampled(algorithm)
    began, first = time.perf_counter(), steps
    while time.perf_counter() - began < settings["seconds"] and steps - first < settings["steps"]:
        steps = max(steps, sampled(algorithm))
    seconds = time.perf_counter() - began
    mean, std = algorithm.env_runner_group.foreach_env_runner(statistics, local_env_runner=False)[0]
    module, space = algorithm.get_module(), gym.make(settings["env"]).action_space
    assert isinstance(space, gym.spaces.Box)

    @torch.no_grad()
    def act(observations: np.ndarray, deterministic: bool) -> np.ndarray:
        normalized = ((observations - mean) / (std + 1e-8)).clip(-10, 10).astype(np.float32)
        outputs = module.forward_exploration({"obs": torch.from_numpy(normalized)})["action_dist_inputs"]
        distribution = module.get_exploration_action_dist_cls().from_logits(outputs)
        chosen = distribution.to_deterministic() if deterministic else distribution
        unit = (chosen.sample().numpy().clip(-1, 1) + 1) / 2
        return space.low + unit * (space.high - space.low)  # as its `normalize_actions`

    report(
        version("ray"),
        settings["env"],
        steps - first,
        seconds,
        lambda o: act(o, False),
        lambda o: act(o, True),
    )
    algorithm.stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
