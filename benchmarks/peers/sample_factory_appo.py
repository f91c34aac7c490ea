"""sample-factory's APPO with the settings that it ships for MuJoCo, as one policy or as a population under its PBT.

Under PBT its learning rate is constant, because it tunes no other, and sampling is asynchronous, because it does not
support another kind with several policies. Its PBT decides every 48,000 env steps of a policy, from 96,000 on, like
pbtrl; its defaults (5 and 20 million) suit longer runs. Of the population, the policy is scored whose recent training
episodes are best.
"""

from __future__ import annotations

import os
import time
from importlib.metadata import version

import gymnasium as gym
import numpy as np
import torch
from common import job, report
from sample_factory.algo.learning.learner import Learner
from sample_factory.algo.runners.runner import AlgoObserver, Runner
from sample_factory.algo.utils.action_distributions import argmax_actions
from sample_factory.algo.utils.rl_utils import prepare_and_normalize_obs
from sample_factory.model.actor_critic import create_actor_critic
from sample_factory.train import make_runner
from sf_examples.mujoco.mujoco_utils import MUJOCO_ENVS
from sf_examples.mujoco.train_mujoco import parse_mujoco_cfg, register_mujoco_components

WORKERS = 2
ROLLOUT = 64


class Clock(AlgoObserver):
    """Counts seconds and env steps from the moment when all policies learn, and tells the runner.

    The runner compares the seconds with `train_for_seconds`, but does not count them itself (2.1.1).
    """

    began: float | None = None
    steps = 0

    def on_training_step(self, runner: Runner, training_iteration_since_resume: int) -> None:
        """Count up to now."""
        if self.began is not None:
            runner.total_train_seconds = time.perf_counter() - self.began
        elif all(runner.env_steps.get(policy) for policy in runner.learners):
            self.began, self.steps = time.perf_counter(), sum(runner.env_steps.values())


def main() -> None:
    """Train, score and print the result."""
    # torch 2.6 and later else refuse the numpy numbers in its checkpoints, also when its PBT copies one.
    os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    settings = job()
    size = settings["population"]
    arguments = {
        "env": next(spec.name for spec in MUJOCO_ENVS if spec.env_id == settings["env"]),
        "seed": settings["seed"],
        "device": "cpu",
        "train_for_seconds": int(settings["seconds"]),
        "train_for_env_steps": size * settings["steps"],
        "num_workers": WORKERS,
        "num_envs_per_worker": size * settings["num_envs"] // WORKERS,
        "rollout": ROLLOUT,
        "batch_size": settings["num_envs"] * settings["block_length"] // settings["minibatches"],
        "num_batches_per_epoch": settings["minibatches"],
        "num_epochs": settings["epochs"],
        "num_policies": size,
    }
    if size > 1:
        arguments |= {
            "with_pbt": True,
            "async_rl": True,
            "lr_schedule": "constant",
            "pbt_period_env_steps": settings["slice_steps"],
            "pbt_start_mutation": 2 * settings["slice_steps"],
        }
    register_mujoco_components()
    cfg, runner = make_runner(parse_mujoco_cfg([f"--{name}={value}" for name, value in arguments.items()]))
    clock = Clock()
    runner.register_observer(clock)
    runner.init()
    runner.run()
    rewards = runner.policy_avg_stats.get("reward", [[0.0]] * size)
    best = max(range(size), key=lambda policy: np.mean(rewards[policy]) if len(rewards[policy]) else -np.inf)

    env = gym.make(settings["env"])
    policy = create_actor_critic(cfg, gym.spaces.Dict({"obs": env.observation_space}), env.action_space)
    policy.eval()
    checkpoints = Learner.get_checkpoints(Learner.checkpoint_dir(cfg, best), "checkpoint_*")
    policy.load_state_dict(Learner.load_checkpoint(checkpoints, torch.device("cpu"))["model"])

    @torch.no_grad()
    def act(observations: np.ndarray, deterministic: bool) -> np.ndarray:
        normalized = prepare_and_normalize_obs(policy, {"obs": torch.from_numpy(observations)})
        outputs = policy(normalized, torch.zeros(len(observations), 1))
        return (argmax_actions(policy.action_distribution()) if deterministic else outputs["actions"]).numpy()

    report(
        version("sample-factory"),
        settings["env"],
        sum(runner.env_steps.values()) - clock.steps,
        runner.total_train_seconds,
        lambda o: act(o, False),
        lambda o: act(o, True),
    )


if __name__ == "__main__":
    main()
