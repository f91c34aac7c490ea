"""CPU time of learning from a block and of acting for a step, in one or more checkouts of this repository.

    python benchmarks/learner.py . ../other --rounds 5

Each round measures every checkout in a process of its own, one after another, so that a change in the machine's load
meets all of them. The table has the median of the rounds, in microseconds of the thread's CPU time, and the number of
times by which each checkout is faster than the first one; nan where a checkout lacks the agent.
"""

import argparse
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "impala, 8 members x 8 envs x 20 steps, 7 passes": ("impala", 8, 8, 20, {"epochs": 7}),
    "impala, 4 x 16 x 20, 1 pass": ("impala", 4, 16, 20, {"epochs": 1}),
    "a3c, 4 x 16 x 20": ("a3c", 4, 16, 20, {}),
    "vmpo, 4 x 16 x 20": ("vmpo", 4, 16, 20, {}),
    "ppo, 1 x 16 x 128, minibatches of 64, 1 pass": ("ppo", 1, 16, 128, {"epochs": 1}),
    "ppo, 4 x 16 x 128, minibatches of 64, 1 pass": ("ppo", 4, 16, 128, {"epochs": 1}),
    "ppo on images, 1 x 16 x 64, minibatches of 256, 1 pass": ("ppo", 1, 16, 64, {"epochs": 1, "minibatches": 4}),
    "acting, 1 x 64": ("impala", 1, 64, 0, {}),
    "acting, 8 x 8": ("impala", 8, 8, 0, {}),
}
"""Agent, members, envs of a member, steps of a block (0 to act) and live hyperparameters."""


def measure(name: str, members: int, envs: int, steps: int, values: dict[str, int], *, images: bool = False) -> float:
    """Microseconds of one call: the first quartile over half a second."""
    import numpy as np
    import torch
    from gymnasium.spaces import Box, Discrete

    from pbtrl.system.malloc import retain_freed_memory
    from tests.agent_fixtures import agent, block, first_inputs, fresh, live

    torch.set_num_threads(1)  # as in every worker
    retain_freed_memory()
    learner = agent("clip", name, hidden=(64, 64))
    if images:
        learner = type(learner).make(learner.settings, Box(0, 255, (4, 84, 84), np.uint8), Discrete(4))
    state, slots = fresh(learner, list(range(members))), list(range(members))
    if steps:
        known = {"max_log_ratio": 1e9} if name == "impala" else {}
        h = live(learner, members, learning_rate=1e-7, **known, **values)
        data = block(learner, slots, steps, envs)
        call = lambda: learner.learn(state, data, h)  # noqa: E731
    else:
        inputs, rnn_state = first_inputs(learner, torch.randn(members, envs, *learner.shape))
        noise = learner.noise([torch.Generator().manual_seed(slot) for slot in slots], 1, envs)[0]
        call = lambda: learner.act(state, inputs, rnn_state, noise)  # noqa: E731
    call()
    found, end = [], time.thread_time() + 0.5
    while time.thread_time() < end or len(found) < 4:
        start = time.thread_time()
        call()
        found.append(time.thread_time() - start)
    return sorted(found)[len(found) // 4] * 1e6


def measure_all() -> dict[str, float]:
    """Microseconds by case, for the code that is imported."""
    found = {}
    for case, arguments in CASES.items():
        try:
            importlib.import_module(f"pbtrl.agents.{arguments[0]}")
        except ModuleNotFoundError:
            continue
        found[case] = measure(*arguments, images="images" in case)
    return found


def in_checkout(checkout: Path) -> dict[str, float]:
    """Microseconds by case, measured in a process that imports another checkout."""
    command = [sys.executable, __file__, "--here"]
    env = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    return json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure_all()))
        return
    rounds = [[in_checkout(checkout) for checkout in given.checkouts] for _ in range(given.rounds)]
    for case in CASES:
        first, *rest = [
            statistics.median(found[n].get(case, math.nan) for found in rounds) for n in range(len(given.checkouts))
        ]
        print(f"{case:58}{first:10.0f}" + "".join(f"{other:10.0f} ({first / other:.2f}x)" for other in rest))


if __name__ == "__main__":
    main()
