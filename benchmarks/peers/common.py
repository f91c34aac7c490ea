"""What the scripts of all systems share: the job, the episodes that score a policy, and the line with the result.

Each script runs in the environment of its system, which has gymnasium and numpy but not pbtrl. `run.py` starts it as
`SCRIPT JOB`, with the job in JSON; its last line of output is the result, in JSON too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

EPISODES = 30
FIRST_SEED = 1_000_000  # far from the seeds that training uses

Act = Callable[[np.ndarray], np.ndarray]
"""From raw observations [B env, ...] to actions [B, ...], which the env gets clipped to its bounds."""


def job() -> dict[str, Any]:
    """Return the job of this process: env, seed, when to stop, and the settings of the comparison.

    Training stops after `seconds` or `steps`, whichever comes first; one of them is out of reach.
    """
    return dict(json.loads(sys.argv[1]))


def report(version: str, env: str, steps: int, seconds: float, sampled: Act, most_likely: Act) -> None:
    """Score the policy, with sampled and with most likely actions, and print the result."""
    result = {
        "version": version,
        "steps": int(steps),
        "seconds": round(seconds, 2),
        "returns": play(sampled, env),
        "returns_deterministic": play(most_likely, env),
    }
    print("\n" + json.dumps(result), flush=True)


def play(act: Act, env: str) -> list[float]:
    """Play fresh episodes, and return their raw returns. All systems get the same seeds."""
    envs = [gym.make(env) for _ in range(EPISODES)]
    observations = np.stack([one.reset(seed=FIRST_SEED + i)[0] for i, one in enumerate(envs)]).astype(np.float32)
    space = envs[0].action_space
    assert isinstance(space, gym.spaces.Box)
    returns, running = np.zeros(EPISODES), np.ones(EPISODES, bool)
    while running.any():
        actions = act(observations).clip(space.low, space.high)
        for i in np.flatnonzero(running):
            observations[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
            returns[i] += float(reward)
            running[i] = not (terminated or truncated)
    return [round(value, 2) for value in returns.tolist()]
