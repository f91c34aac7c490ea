"""Actors ahead of a learner: their blocks, their lead, and cleanup when something ends."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pbtrl import errors
from pbtrl.core.messages import Failure, Report
from pbtrl.core.seeding import env_seeds, seed_for
from pbtrl.rl import process_pool
from pbtrl.rl.actors import SLOTS, ActorsCohort
from pbtrl.rl.cohort import RLCohort
from pbtrl.rl.pool_messages import Act, LearnBlock, ResetEnvs, ToWorker
from pbtrl.rl.rollout import Rollout
from pbtrl.rl.shared_memory import to_dict
from tests.execution.test_executors import ended
from tests.rl.conftest import MemoryWire
from tests.rl.test_cohort import CARTPOLE, LONG, Workplace, builder, slice_of

pytestmark = pytest.mark.usefixtures("quick_disk", "warm_workers")

TWO = ("m00", "m01")


def acting(processes: int = 2, **more: Any) -> dict[str, Any]:
    return {"mode": "actors", "processes": processes, **more}


def pids(cohort: ActorsCohort) -> list[int]:
    return [p._running[0].pid for p in cohort._actors.pool._links]  # type: ignore[index, misc]


def train(cohort: RLCohort) -> None:
    while not cohort.advance():
        pass


@pytest.mark.parametrize(
    ("env", "agent", "wire"),
    [
        (CARTPOLE, {"core": "lstm", "core_units": 8, "use_last_action_reward": True}, None),
        ({"id": "probe/BrightSide-v0"}, {}, None),
        (CARTPOLE, {"core": "lstm", "core_units": 8, "use_last_action_reward": True}, MemoryWire),
        ({"id": "probe/BrightSide-v0"}, {}, MemoryWire),
        ({"id": "ALE/Pong-v5", "kwargs": {"max_num_frames_per_episode": 32}}, {}, MemoryWire),
    ],
    ids=["lstm", "images", "lstm behind a wire", "images behind a wire", "stacked frames behind a wire"],
)
def test_block_equals_a_rollout(env: dict[str, Any], agent: dict[str, Any], wire: Any) -> None:
    """Of the same envs, weights and noise in every part, also where it is shorter than a slot."""
    build = builder(env, 3, agent, acting=acting(1))
    build._wire = wire
    cohort = build.cohort(TWO, 1)
    assert isinstance(cohort, ActorsCohort)
    assignments = [slice_of(m, 39) for m in TWO]
    for slot in range(2):
        cohort.init(slot, 10 + slot)
    cohort.begin(assignments)
    noise: list[Sequence[int]] = []
    ask = cohort._actors.pool.ask

    def noted(i: int, message: Act) -> None:
        noise.append(message.noise)
        ask(i, message)

    cohort._actors.pool.ask = noted  # type: ignore[method-assign]
    roots = [seed_for(seed_for(a.seed, "envs"), "actor 0, life 0") for a in assignments]
    vector = build.spec.make([s for root in roots for s in env_seeds(root, 3)], 1)
    rollout = Rollout(vector, 2, build.agent, build.to_env)
    for steps in (10, 3):  # nothing is learned in between, so the weights stay what they are
        block = cohort.collect()
        generators = [torch.Generator().manual_seed(seed) for seed in noise.pop(0)]
        expected = to_dict(rollout.collect(cohort._state, generators, steps))
        for name, value in to_dict(block).items():
            assert torch.equal(value, expected[name]), name
            assert value.dtype == expected[name].dtype
        cohort._done += 3 * steps
    assert cohort._actors.episodes == rollout.episodes
    cohort.close()


def test_scores_of_the_metric_come_from_the_processes() -> None:
    fitness = {"metric": "tests.rl.test_actors:negated_length", "min_episodes": 1}
    env = {"id": "probe/Truncated-v0", "kwargs": {"length": 7}}
    cohort = builder(env, 2, acting=acting(1), fitness=fitness).cohort(TWO, 1)
    for slot in range(2):
        cohort.init(slot, slot)
    cohort.begin([slice_of(m, 40) for m in TWO])
    while not cohort.advance():
        pass
    outcome = cohort.outcome(1)
    cohort.close()
    assert set(outcome.returns) == {-7.0}
    assert outcome.curve[-1][1] == -7.0


def negated_length(episode_return: float, length: int, info: dict[str, Any]) -> float:
    return -float(length)


def test_two_actors_train_over_slices_with_a_copy() -> None:
    env = {"id": "probe/Truncated-v0", "kwargs": {"length": 30}}
    build = builder(env, 4, {"rewards": "normalize"}, acting=acting(replay=0.5))
    cohort = build.cohort(TWO, 2)
    assert isinstance(cohort, ActorsCohort)
    for slot in range(2):
        cohort.init(slot, slot)
    cohort.begin([slice_of(m, 40 * 20) for m in TWO])
    before = cohort.save(0)
    train(cohort)
    outcome = cohort.outcome(0)
    assert outcome.steps == cohort._done == 800
    assert outcome.scalars == {}
    assert outcome.hyperparameters["unroll_length"] == 4
    assert not cohort._actors.pool.pending
    assert not np.array_equal(before["params"], cohort.save(0)["params"])
    assert all(row["acting/lag"] > 0 for row in cohort.metrics())
    assert set(outcome.lengths) == {30}
    assert [len(free) for free in cohort._actors._free] == [SLOTS, SLOTS]
    # m01 goes on from m00: what is under way in its envs will not count, and its past is not replayed
    cohort.load(1, cohort.save(0))
    cohort.begin([slice_of(m, 40 * 12, 1) for m in TWO])
    past = cohort._actors._replay._blocks
    assert past
    assert all(b["is_reset_step"][1].all() and not b["is_reset_step"][0].all() for b in past)
    train(cohort)
    went_on, copied = (cohort.outcome(slot) for slot in range(2))
    assert set(went_on.lengths) == {30}
    assert 0 < len(went_on.lengths) - len(copied.lengths) <= 2 * 4
    assert [len(free) for free in cohort._actors._free] == [SLOTS, SLOTS]
    cohort.close()


def used(*processes: int) -> int:
    """Processor time of a process in 1/100 s."""
    return sum(int(n) for pid in processes for n in Path(f"/proc/{pid}/stat").read_text().split()[13:15])


def test_member_learns_although_actors_wait_die_and_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = {"optimizer": "adam", "rewards": "none", "reduction": "mean", "learning_rate": 0.02, "max_grad_norm": 1.0}
    cohort = builder({"id": "tests.faulty_envs:Detour"}, 8, agent, acting=acting()).cohort(("m00",), 2)
    assert isinstance(cohort, ActorsCohort)
    cohort.init(0, 1)
    cohort.begin([slice_of("m00", 80 * 150, hyperparameters={})])
    while not cohort._done:
        cohort.advance()
    first, second = pids(cohort)
    team = cohort._actors.pool
    cohort._ready()
    team.settle()  # nobody learns, and they come to rest
    assert team.pending == 10 * 2 * SLOTS
    assert cohort._actors._free == [[], []]
    before = used(first, second)
    time.sleep(0.5)
    assert used(first, second) - before <= 1

    cohort.advance()
    os.kill(first, signal.SIGKILL)
    os.kill(second, signal.SIGSTOP)  # it is alive, and silent
    over = False
    while not over:
        cohort._actors.ask(cohort.left, cohort.block, cohort._generators)
        one, other = team._links
        only_the_silent = other.restarts == 0 and other.asked and not one.asked and not team._answers
        monkeypatch.setattr(process_pool, "PATIENCE", 0.0 if only_the_silent else 1800.0)
        over = cohort.advance()
    outcome = cohort.outcome(0)
    assert outcome.steps == 80 * 150
    assert outcome.scalars["acting/deaths"] == 2
    assert 80 <= outcome.scalars["acting/dropped_steps"] <= 2 * 80 * SLOTS
    assert np.mean(outcome.returns[-100:]) > 0.9
    left = pids(cohort)
    assert not {first, second} & {*left}
    cohort.close()
    assert all(ended(pid) for pid in (first, second, *left))


def test_error_in_an_actor_fails_the_slice_with_its_reason(tmp_path: Path) -> None:
    build = builder({"id": "probe/Raising-v0", "kwargs": {"after": 25}}, 2, acting=acting(1))
    place = Workplace(tmp_path, build)
    (failure,) = place.run(slice_of("m00", 20 * 50)).values()
    assert isinstance(failure, Failure)
    why = "EnvError: env.id=probe/Raising-v0: step() raised RuntimeError: probe/Raising-v0 raised, as it was asked to ("
    assert failure.error.startswith(f"WorkerPoolError: process 0 raised {why}")
    assert 'raise RuntimeError("probe/Raising-v0 raised' in (tmp_path / "m00" / "log.txt").read_text()
    assert not place.host._cohorts


def test_stop_reports_learned_steps_and_logs_dropped_ones(tmp_path: Path) -> None:
    place = Workplace(tmp_path, builder(LONG, 4, acting=acting(1)))
    place.host.submit([slice_of("m00", 40 * 500)])
    while not any(cohort._done for cohort in place.host._cohorts.values()):
        place.host.advance()
    (cohort,) = place.host._cohorts.values()
    left = pids(cohort)
    (report,) = place.host.stop()
    assert isinstance(report, Report)
    assert 40 <= report.step < 40 * 500
    assert report.step + report.scalars["acting/dropped_steps"] <= report.step + 40 * SLOTS
    assert all(ended(pid) for pid in left)
    assert place.store.names("m00") == ["m00/000000"]


class Mortal:
    """Worker that dies at its first request."""

    def answer(self, message: ToWorker) -> None:
        if isinstance(message, LearnBlock):
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        pass


def test_process_that_keeps_dying_is_given_up() -> None:
    others: list[Any] = []
    processes = [process_pool.Process(Mortal)]
    mortals = process_pool.WorkerPool(
        processes,
        functools.partial(process_pool.wait_for_processes, processes),
        lambda i, life: ResetEnvs([]),
        lambda i, lost: others.extend(lost),
        deaths=2,
    )
    mortals.ask(0, LearnBlock(1))
    mortals.settle()
    mortals.ask(0, LearnBlock(1))
    with pytest.raises(errors.WorkerPoolError, match=r"died 2 times without finishing a block: killed by signal 9"):
        mortals.settle()
    assert others == [LearnBlock(1)]
    assert mortals.tally(4) == {"acting/deaths": 2.0, "acting/dropped_steps": 8.0}
    mortals.close()


SCRIPT = """
import os, signal
from tests.rl.test_actors import acting, builder, pids, slice_of

if __name__ == "__main__":
    cohort = builder("CartPole-v1", 4, acting=acting(2)).cohort(("m00",), 2)
    cohort.init(0, 1)
    cohort.begin([slice_of("m00", 40 * 1000)])
    while not cohort._done:
        cohort.advance()
    print(*pids(cohort), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_no_actor_outlives_a_killed_learner(tmp_path: Path) -> None:
    script, root = tmp_path / "run.py", Path(__file__).parents[2]
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=root, env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    result = [int(pid) for pid in done.stdout.split()]
    assert len(result) == 2
    assert all(ended(pid) for pid in result)
