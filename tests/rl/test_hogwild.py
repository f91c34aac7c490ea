"""A3C's Hogwild processes: one equals the serial run bit for bit, several learn together."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

import numpy as np
import pytest
import torch

from pbtrl.agents.optim import rmsprop
from pbtrl.errors import WorkerPoolError
from pbtrl.rl.hogwild import HogwildCohort
from pbtrl.rl.pool_messages import Learned, decode, encode
from pbtrl.rl.shared_memory import SharedTensors
from pbtrl.testing.trainables import assert_equal
from tests.rl.test_cohort import CARTPOLE, builder, run, slice_of

pytestmark = pytest.mark.usefixtures("warm_workers")

TWO = ("m00", "m01")


def hogwild(processes: int) -> dict[str, Any]:
    return {"mode": "hogwild", "processes": processes}


def outcomes(cohort: Any) -> list[Any]:
    return [cohort.outcome(slot) for slot in range(len(cohort.members))]


@pytest.mark.parametrize(
    ("env", "agent"),
    [
        (CARTPOLE, {"name": "a3c", "unroll_mode": "budget", "core": "lstm", "core_units": 8, "minibatches": 2}),
        ({**CARTPOLE, "between_slices": "reset"}, {"name": "impala", "optimizer": "adam", "epochs": 2}),
        (CARTPOLE, {"name": "unreal", "unroll_mode": "budget", "core_units": 8, "replay": 100}),
        (CARTPOLE, {"name": "feudal", "unroll_mode": "budget", "goal_units": 8, "horizon": 3}),
    ],
    ids=["a3c", "impala", "unreal", "feudal"],
)
def test_one_process_equals_the_serial_run(env: dict[str, Any], agent: dict[str, Any]) -> None:
    """Bit for bit, also where a slice ends with a short block or a member continues from copied weights."""
    serial = builder(env, 4, agent).cohort(TWO, 1)
    shared = builder(env, 4, agent, acting=hogwild(1)).cohort(TWO, 1)
    expected, result = ([run(cohort, [slice_of(m, 340) for m in TWO])] for cohort in (serial, shared))
    expected_outcomes, found_outcomes = outcomes(serial), outcomes(shared)
    later = [slice_of(m, 340, 1) for m in TWO]
    for cohort, tensors in ((serial, expected), (shared, result)):
        cohort.load(1, tensors[0][0])
        tensors.append(run(cohort, later))
    for one, two in zip(expected, result, strict=True):
        for own, theirs in zip(one, two, strict=True):
            assert_equal(theirs, own)
    assert found_outcomes == expected_outcomes
    assert outcomes(shared) == outcomes(serial)
    assert outcomes(shared)[0].returns
    rows = [
        [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in c.metrics()] for c in (serial, shared)
    ]
    assert rows[0] == rows[1]
    # and where it dies, the slice is to be run again, not to be gone on with
    shared.begin([slice_of(m, 340, 2) for m in TWO])
    os.kill(shared._peers.pool._links[0]._running[0].pid, signal.SIGKILL)
    with pytest.raises(WorkerPoolError, match="process 0 died: killed by signal 9"):
        shared.advance()
    shared.close()


def test_skipped_updates_of_a_process_are_counted() -> None:
    """Its message passes through JSON, where metrics of skipped updates are null."""
    nan = float("nan")
    cohort = builder(CARTPOLE, 4, {"name": "a3c", "unroll_mode": "budget"}, acting=hogwild(1)).cohort(TWO, 1)
    cohort.begin([slice_of(m, 80) for m in TWO])
    consumed = {"unroll_length": [5, 5], "learning_rate": [0.1, 0.1], "entropy_cost": [0.0, 0.0]}
    episodes = [([nan], [3], [nan], 0), ([2.0], [3], [2.0], 0)]
    cohort._note(decode(encode(Learned(10, [2, 2], [2, 1], {"loss/policy": [nan, 0.5]}, consumed, episodes))))
    one, two = cohort.metrics()
    assert ("loss/policy" in one, two["loss/policy"]) == (False, 0.5)
    assert (one["learning/skipped_updates"], two["learning/skipped_updates"]) == (2.0, 1.0)
    assert np.isnan(one["episode/return_mean"])
    assert two["episode/return_mean"] == 2.0
    cohort.close()


UPDATES = 4000
TARGET = 3.0


def descend(slope: SharedTensors, parabola: SharedTensors, gate: Any) -> None:
    """Algorithm S3 without an env: down a slope of 1, then down half the squared distance to TARGET."""
    torch.set_num_threads(1)
    rate, on = torch.full((1,), 1e-3), torch.ones(1, dtype=torch.bool)
    for tensors, gradient in ((slope.tensors, torch.ones_like), (parabola.tensors, lambda x: x - TARGET)):
        gate.wait()
        for _ in range(UPDATES):
            own = gradient(tensors["params"].clone())
            rmsprop(tensors["params"], own, tensors["rms"], learning_rate=rate, decay=0.99, epsilon=0.1, active=on)


def test_lock_free_processes_lose_few_updates() -> None:
    """Recht et al. 2011: one process overwrites a small part of another's updates; nothing is applied twice."""
    context = multiprocessing.get_context("spawn")
    slope, parabola = (SharedTensors({"params": torch.zeros(1, 4096), "rms": torch.zeros(1, 4096)}) for _ in range(2))
    slope.tensors["rms"].fill_(1.0)
    gate = context.Barrier(2)
    processes = [context.Process(target=descend, args=(slope, parabola, gate)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    applied = -slope.tensors["params"] / (len(processes) * UPDATES * 1e-3 / 1.1**0.5)
    assert applied.min() > 0.8
    assert applied.max() < 1.01
    assert (parabola.tensors["params"] - TARGET).abs().max() < 0.05


def test_processes_learn_and_a_killed_one_is_replaced() -> None:
    agent = {"name": "a3c", "learning_rate": 0.03, "rewards": "none", "unroll_length": 5, "block_length": 5}
    cohort = builder("probe/Bandit-v0", 4, agent, acting=hogwild(2)).cohort(("m00",), 2)
    assert isinstance(cohort, HogwildCohort)
    steps = 4 * 5 * 400
    cohort.init(0, 1)
    cohort.begin([slice_of("m00", steps, hyperparameters={})])
    while not cohort._done:
        cohort.advance()
    pool = cohort._peers.pool
    take, heard = pool.take, set()

    def counted() -> Any:
        heard.add((result := take())[0])
        return result

    pool.take = counted  # type: ignore[method-assign]
    os.kill(pool._links[1]._running[0].pid, signal.SIGKILL)
    while not cohort.advance():
        pass
    assert heard == {0, 1}
    outcome = cohort.outcome(0)
    assert outcome.steps == steps == cohort._done
    assert outcome.scalars["acting/deaths"] == 1
    assert outcome.scalars["acting/dropped_steps"] in (20, 40)
    assert np.mean(outcome.returns[-200:]) > 0.9
    assert pool._links[1].restarts == 1
    # a slice that is stopped in the middle counts what was applied
    cohort.begin([slice_of("m00", steps, 1, hyperparameters={})])
    while not cohort._done:
        cohort.advance()
    stopped = cohort.outcome(0)
    assert 20 <= stopped.steps < steps
    assert stopped.steps % 20 == 0
    assert not pool.pending
    cohort.close()
