"""Worker of the benchmark: its cohorts, and every measurement on them."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pbtrl import envs
from pbtrl.build import rl
from pbtrl.build.placement import WorkerShare
from pbtrl.config.load import config_from_json
from pbtrl.core.messages import Assignment
from pbtrl.core.population import Population
from pbtrl.diagnostics.still_vector import StillVector
from pbtrl.system.child_process import init_child
from pbtrl.system.torch_settings import single_thread

PHASES = {
    "inline": ("env", "act", "train", "learn", "replay"),
    "actors": ("env", "train", "learn"),
    "hogwild": ("env", "train"),
}
"""Measurements per acting mode. The order matters: `learn` and `replay` repeat what `train` did."""
PARTS = {"inline": ("env", "act", "learn"), "actors": ("learn", "wait"), "hogwild": ()}
"""Parts of a worker's training time."""
METRICS = {"lag": "acting/lag", "epochs": "loss/epochs"}
ROUNDS = 4  # the phases alternate, so that a temporary slowdown of the machine affects all of them
REMEMBERED = 2_000  # training steps whose actions `replay` uses


def run_bench_worker(
    pipe: Connection, parent: int, config: str, worker: WorkerShare, phases: Sequence[str], seconds: float
) -> None:
    """Main function of a benchmark process."""
    init_child(parent, pipe)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, worker.cores)
    try:
        _serve(pipe, BenchWorker(config, worker.groups, worker.threads), phases, seconds)
    except envs.EnvError as error:
        pipe.send(error.with_traceback(None))


def _serve(pipe: Connection, share: BenchWorker, phases: Sequence[str], seconds: float) -> None:
    rates: dict[str, list[float]] = {phase: [] for phase in phases}
    share.rest()
    pipe.send("ready")
    while phase := pipe.recv():
        rates[phase].append(getattr(share, phase)(seconds / ROUNDS))
        share.rest()
        pipe.send("done")
    means = {phase: sum(rate) / ROUNDS for phase, rate in rates.items()}
    means |= {name: float(np.mean(values)) for name, values in share.metrics.items() if values}
    shares = {part: spent / share.trained for part, spent in share.spent.items()}
    pipe.send({**means, "shares": shares})
    share.close()


class BenchWorker:
    """Cohorts of one worker, with a method per measurement that returns env steps per second.

    Attributes:
        spent: seconds of training by part.
        trained: seconds of training.
        metrics: metrics of training by key of METRICS, one value per member and measurement.
        epochs: per cohort, the epochs [P] of each update in the latest `train`.
    """

    def __init__(self, text: str, groups: list[list[str]], threads: int) -> None:
        from pbtrl.rl.cohort import RLCohort

        config = config_from_json(text)
        assert config.env is not None
        assert config.acting is not None
        self._config, self._builder, self.mode = config, rl.rl_builder(config), config.acting.mode
        self._threads, self.spent = threads, dict.fromkeys(PARTS[self.mode], 0.0)
        self.metrics: dict[str, list[float]] = {key: [] for key in METRICS}
        self._cohorts: list[Any] = []
        self._watched = False
        self._clock, self.trained = dict(self.spent), 0.0
        for structure, assignments in self._together(groups):
            cohort = self._builder.cohort([a.member for a in assignments], threads, structure)
            assert isinstance(cohort, RLCohort)
            for slot, a in enumerate(assignments):
                cohort.init(slot, a.seed)
            cohort.begin(assignments)
            self._cohorts.append(cohort)
            self._learned(cohort)
        env = config.env
        space = envs.spaces(env.id, **env.options).single_action_space
        self._random = [_random_actions(space, len(c.members) * env.num_envs) for c in self._cohorts]
        self._taken: list[deque[Any]] = [deque(maxlen=REMEMBERED) for _ in self._cohorts]
        self.epochs: list[list[Any]] = [[] for _ in self._cohorts]
        self._pools: list[Any] = []

    def _together(self, groups: list[list[str]]) -> Iterator[tuple[object, list[Assignment]]]:
        """Yield every cohort's structure and its members' initial assignments."""
        population = Population(self._config.population.size, self._config.seed)
        spaces = {m: self._config.space.initial_space(place) for place, m in enumerate(population.members)}
        for group in groups:
            together: dict[object, list[Assignment]] = {}
            for m in group:
                drawn = spaces[m].sample(population.rng(m, 0, "prior"))
                a = Assignment(f"{m}/000000", m, None, 0, 2**62, drawn, population.slice_seed(m, 0))
                together.setdefault(self._builder.structure(a), []).append(a)
            yield from together.items()

    def rest(self) -> None:
        """Wait until all acting processes are idle."""
        if self.mode != "inline":
            for cohort in self._cohorts:
                cohort.rollout.pool.settle()

    def _learned(self, cohort: Any) -> int:
        """Train on at least one block; returns the env steps of all members."""
        before = cohort.left
        while cohort.left == before:
            cohort.advance()
        return self._steps(cohort, before - cohort.left)

    def _steps(self, cohort: Any, time: int) -> int:
        """Env steps of all members of a cohort in `time` steps of each env."""
        assert self._config.env is not None
        return len(cohort.members) * self._config.env.num_envs * time

    def env(self, seconds: float) -> float:
        """Step the bare pools with random actions."""
        return self._stepped(self._random, seconds)

    def replay(self, seconds: float) -> float:
        """Step the bare pools with the actions of training."""
        return self._stepped(self._taken, seconds)

    def _stepped(self, actions: Sequence[Iterable[Any]], seconds: float) -> float:
        assert self._config.env is not None
        if not self._pools:
            self._pools = [self._bare(len(c.members)) for c in self._cohorts]
        turns = [itertools.cycle(batches) for batches in actions]

        def step() -> int:
            return sum(len(pool.step(next(turn))[1]) for pool, turn in zip(self._pools, turns, strict=True))

        with envs.named(self._config.env.id):
            return _rate(step, seconds)

    def _bare(self, members: int) -> Any:
        env = self._config.env
        assert env is not None
        pool = envs.make_unwrapped(env.id, range(members * env.num_envs), threads=self._threads, **env.options)
        with envs.named(env.id):
            pool.reset()
        return pool

    def act(self, seconds: float) -> float:
        """Collect blocks from envs that stand still at the current observations."""
        rollouts = [c.prepare_rollout(StillVector) for c in self._cohorts]
        return _rate(lambda: sum(collect() for collect in rollouts), seconds)

    def learn(self, seconds: float) -> float:
        """Update from one block, with the numbers of passes of training's latest updates in turn."""
        turns = [itertools.cycle(epochs.copy()) for epochs in self.epochs]
        blocks = [c.collect() for c in self._cohorts]
        self.rest()
        spent, done = 0.0, 0
        while spent < seconds:
            for cohort, block, turn in zip(self._cohorts, blocks, turns, strict=True):
                update = cohort.prepare_repeat(block, next(turn))
                begun = time.perf_counter()
                update()
                spent += time.perf_counter() - begun
                done += self._steps(cohort, block.rewards.shape[1])
        if self.mode == "actors":  # learning frees the blocks' slots
            for cohort, block in zip(self._cohorts, blocks, strict=True):
                type(cohort).learn(cohort, block)  # the class's method, which is not timed
        return done / spent

    def learn_one_thread(self, seconds: float) -> float:
        """Measure `learn` with one thread."""
        with single_thread():
            return self.learn(seconds)

    def train(self, seconds: float) -> float:
        """Train as a worker does, with a timer around each part."""
        if not self._watched:
            self._watched = True
            for cohort, taken, epochs in zip(self._cohorts, self._taken, self.epochs, strict=True):
                self._watch(cohort, taken, epochs)

        def advance() -> int:
            return sum(self._learned(cohort) for cohort in self._cohorts)

        if self.mode != "inline":  # warm up: blocks from before the measurement do not count
            _rate(advance, seconds / 5)
        self._clock = dict.fromkeys(self.spent, 0.0)
        for cohort, epochs in zip(self._cohorts, self.epochs, strict=True):
            cohort.metrics()
            epochs.clear()
        begun = time.perf_counter()
        rate = _rate(advance, seconds)
        self.trained += time.perf_counter() - begun
        self.spent = {part: spent + self._clock[part] for part, spent in self.spent.items()}
        rows = [row for cohort in self._cohorts for row in cohort.metrics()]
        for key, values in self.metrics.items():
            values += [row[METRICS[key]] for row in rows if METRICS[key] in row]
        return rate

    def _watch(self, cohort: Any, taken: deque[Any], epochs: list[Any]) -> None:
        """Have a cohort time its parts (about 1 us per call), and record actions and epochs."""
        if self.mode == "hogwild":
            return

        def wrap(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                begun = time.perf_counter()
                result = function(*args, **kwargs)
                self._clock[part] += time.perf_counter() - begun
                if part == "learn":
                    epochs.append(result.metrics["loss/epochs"].long())
                elif part == "env":
                    taken.append(args[0].copy())
                return result

            return timed

        cohort.instrument(wrap)

    def close(self) -> None:
        """Close the cohorts and env pools."""
        for closable in [*self._cohorts, *self._pools]:
            closable.close()


def _rate(step: Callable[[], int], seconds: float) -> float:
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        done += step()
    return done / (time.perf_counter() - begun)


def _random_actions(space: Any, count: int) -> list[Any]:
    """Draw 64 batches of random actions."""
    space.seed(0)
    return [np.stack([space.sample() for _ in range(count)]) for _ in range(64)]
