"""CleanRL's PPO: `ppo_continuous_action.py` of its release on PyPI, unchanged, stopped when the budget is spent.

The file is a script. It is executed here, and its logger, which it calls after every update, ends it. Each of its envs
normalizes with statistics of its own; the policy is scored with those of all envs pooled.
"""

from __future__ import annotations

import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import job, report
from torch.utils.tensorboard import SummaryWriter


class BudgetSpent(Exception):  # noqa: N818
    """Ends the script."""


def main() -> None:
    """Train, score and print the result."""
    settings = job()
    sys.argv[1:] = [
        f"--env-id={settings['env']}",
        f"--seed={settings['seed']}",
        f"--num-envs={settings['num_envs']}",
        f"--num-steps={settings['block_length']}",
        f"--update-epochs={settings['epochs']}",
        f"--num-minibatches={settings['minibatches']}",
        "--total-timesteps=1000000000",
        "--anneal-lr=False",  # its schedule needs the number of steps in advance
        "--cuda=False",
    ]
    began = time.perf_counter()

    def log(self: SummaryWriter, tag: str, _: float, step: int) -> None:
        spent = time.perf_counter() - began > settings["seconds"] or step >= settings["steps"]
        if tag == "charts/SPS" and spent:
            raise BudgetSpent

    SummaryWriter.add_scalar = log
    spec = find_spec("cleanrl.ppo_continuous_action")
    assert spec is not None
    assert spec.origin is not None
    script: dict[str, Any] = {"__name__": "__main__", "__file__": spec.origin}
    try:
        exec(compile(Path(spec.origin).read_text(), spec.origin, "exec"), script)
    except BudgetSpent:
        seconds = time.perf_counter() - began
    agent = script["agent"]
    statistics = [env.get_wrapper_attr("obs_rms") for env in script["envs"].envs]
    means, variances = (np.array([getattr(one, name) for one in statistics]) for name in ("mean", "var"))
    mean, std = means.mean(0), np.sqrt(variances.mean(0) + means.var(0) + 1e-8)

    def normalize(observations: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(((observations - mean) / std).clip(-10, 10), dtype=torch.float32)

    @torch.no_grad()
    def sampled(observations: np.ndarray) -> np.ndarray:
        return agent.get_action_and_value(normalize(observations))[0].numpy()

    @torch.no_grad()
    def most_likely(observations: np.ndarray) -> np.ndarray:
        return agent.actor_mean(normalize(observations)).numpy()

    report(version("cleanrl"), settings["env"], script["global_step"], seconds, sampled, most_likely)


if __name__ == "__main__":
    main()
