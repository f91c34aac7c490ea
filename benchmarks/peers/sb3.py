"""Stable-Baselines3's PPO and A2C, with its defaults for learning rate, discount, trace, clip and entropy.

Observations and rewards are normalized by its `VecNormalize`, as in the settings that its zoo ships for MuJoCo.
"""

from __future__ import annotations

import time
from importlib.metadata import version

import numpy as np
from common import job, report
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize


class Deadline(BaseCallback):
    """Stops training when the time is over."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self.end = end

    def _on_step(self) -> bool:
        return time.perf_counter() < self.end


def main() -> None:
    """Train, score and print the result."""
    settings = job()
    began = time.perf_counter()
    envs = VecNormalize(make_vec_env(settings["env"], n_envs=settings["num_envs"], seed=settings["seed"]))
    common = {"n_steps": settings["block_length"], "seed": settings["seed"], "device": "cpu"}
    if settings["agent"] == "ppo":
        batch_size = settings["num_envs"] * settings["block_length"] // settings["minibatches"]
        model = PPO("MlpPolicy", envs, batch_size=batch_size, n_epochs=settings["epochs"], **common)
    else:
        model = A2C("MlpPolicy", envs, **common)
    model.learn(settings["steps"], callback=Deadline(began + settings["seconds"]))
    seconds = time.perf_counter() - began

    def act(observations: np.ndarray, deterministic: bool) -> np.ndarray:
        return model.predict(envs.normalize_obs(observations), deterministic=deterministic)[0]

    report(
        version("stable-baselines3"),
        settings["env"],
        model.num_timesteps,
        seconds,
        lambda o: act(o, False),
        lambda o: act(o, True),
    )


if __name__ == "__main__":
    main()
