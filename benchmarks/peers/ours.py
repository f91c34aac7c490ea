"""pbtrl's side: the agent that matches a system's, with its learning rate, discount and clips, in pbtrl's environment.

The clock includes the start of the workers. What a system does not have as such stays at pbtrl's default. A population
of one has no search. A larger one also searches what sample-factory's PBT tunes, except the value loss, from wider
priors.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from common import job, report

import pbtrl
from pbtrl.core.records import ReportRecord

AGENTS: dict[str, dict[str, Any]] = {
    "ppo": {},  # the defaults of CleanRL and Stable-Baselines3
    "a2c": {
        "name": "a3c",
        "std": "free",
        "log_std": 0.0,
        "reduction": "mean",
        "learning_rate": 7e-4,
        "entropy_cost": 0.0,
        "value_cost": 1.0,  # Stable-Baselines3 has 0.5, of the squared error rather than of its half
        "rmsprop_epsilon": 1e-10,  # 1e-5 outside the root
        "max_grad_norm": 0.5,
    },
    "impala": {
        "optimizer": "adam",
        "reduction": "mean",
        "log_std": 0.0,
        "learning_rate": 5e-4,
    },
    "appo": {
        "name": "ppo",
        "learning_rate": 2.95e-3,
        "value_cost": 1.3,
        "max_grad_norm": 3.5,
    },
}
SEARCH: dict[str, Any] = {
    "learning_rate": {"prior": "log_uniform", "low": 3e-4, "high": 3e-3},
    "clip": {"prior": "log_uniform", "low": 0.1, "high": 0.4},
    "max_grad_norm": {"prior": "log_uniform", "low": 0.5, "high": 5.0},
}


def main() -> None:
    """Train, score and print the result."""
    settings = job()
    kind, size = settings["agent"], settings["population"]
    length = settings["block_length"]
    batch = {key: settings[key] for key in ("epochs", "minibatches") if key in settings}
    hparams = SEARCH if size > 1 else {}
    agent = {key: value for key, value in AGENTS[kind].items() if key not in hparams}
    run = pbtrl.train(
        {
            "seed": settings["seed"],
            "env": {"id": settings["env"], "num_envs": settings["num_envs"]},
            "agent": {"name": kind, "unroll_length": length, "block_length": length, **batch, **agent},
            "population": {"size": size},
            "budget": {"env_steps_per_member": settings["steps"], "wall_clock": settings["seconds"]},
            "hparams": hparams,
            "fitness": {"window_episodes": settings["num_envs"], "min_episodes": settings["num_envs"]},
            "strategy": {
                "name": "pbt",
                "ready": {"slice_steps": settings["slice_steps"], "burn_in": 2 * settings["slice_steps"]},
            },
        },
        progress="plain",
    )
    seconds = max(record.elapsed for record in run.journal if isinstance(record, ReportRecord))
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--tags", "--always", "--dirty"]
    policy = run.load_policy()

    def act(observations: np.ndarray, deterministic: bool) -> np.ndarray:
        return policy.predict(observations, deterministic=deterministic)[0]

    report(
        subprocess.check_output(git, text=True).strip(),
        settings["env"],
        run.status()["env_steps"],
        seconds,
        lambda o: act(o, False),
        lambda o: act(o, True),
    )


if __name__ == "__main__":
    main()
