"""How fast a config trains, against its simulator alone, measured in one run with all cores busy.

Measurements on the same processes and cores: env stepping alone (the bare library pool under random actions, none of
our wrappers), acting alone, learning alone, full training, and env stepping alone again under the actions that training
took, because some worlds take longer over what a policy does than over random actions.

    roofline   = 1 / (1 / env + 1 / act + 1 / learn)     what no overlap and no overhead would give
    efficiency = full training / roofline
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

import envs
from pbtrl import build
from pbtrl.config import Config, ConfigError
from pbtrl.execution.processes import WorkerError, start_shielded
from pbtrl.population import Assignment, Population

PHASES = ("env", "act", "learn", "train", "replay")
REMEMBERED = 2_000  # steps whose actions are stepped again
ROUNDS = 4  # the phases take turns, so that a machine that slows down slows all of them


def measure(config: Config, seconds: float) -> dict[str, Any]:
    """Rates in env steps per second of the whole population, `seconds` per measurement.

    Keys: env_steps_per_s, frames_per_s, env_only_steps_per_s, env_replay_steps_per_s (under training's actions),
    act_only_steps_per_s, learn_only_steps_per_s, roofline_env_steps_per_s, efficiency, env_only_ratio,
    env_replay_ratio, shares {env, act, learn, other} of the training time, workers, members, backend.

    Raises:
        ConfigError: this is not a config of an env.
    """
    if config.env is None:
        raise ConfigError(["bench measures envs, and this config has a trainable"])
    members = list(Population(config.population.size, config.seed).members)
    count = build.workers(config)
    found = _measured(config, build.shares(config, members), seconds)
    totals = {phase: sum(f[phase] for f in found) for phase in PHASES}
    roofline = 1.0 / sum(1.0 / totals[phase] for phase in ("env", "act", "learn"))
    shares = {part: sum(f["shares"][part] for f in found) / count for part in ("env", "act", "learn")}
    return {
        "env_steps_per_s": totals["train"],
        "frames_per_s": totals["train"] * config.frames_per_step,
        "env_only_steps_per_s": totals["env"],
        "env_replay_steps_per_s": totals["replay"],
        "act_only_steps_per_s": totals["act"],
        "learn_only_steps_per_s": totals["learn"],
        "roofline_env_steps_per_s": roofline,
        "efficiency": totals["train"] / roofline,
        "env_only_ratio": totals["train"] / totals["env"],
        "env_replay_ratio": totals["train"] / totals["replay"],
        "shares": {**shares, "other": 1.0 - sum(shares.values())},
        "workers": count,
        "members": len(members),
        "backend": config.env.backend,
    }


def _measured(
    config: Config, shares: Sequence[tuple[tuple[int, ...], list[list[str]]]], seconds: float
) -> list[dict[str, Any]]:
    """What each worker found; they take their turns together."""
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes = []
    try:
        for cores, groups in shares:
            ours, theirs = context.Pipe()
            work = theirs, config.to_json(), groups, cores, seconds
            processes.append(context.Process(target=_work, args=work, daemon=True))
            start_shielded(processes[-1])
            theirs.close()
            pipes.append(ours)
        for phase in PHASES * ROUNDS:
            for pipe in pipes:
                pipe.recv()
            for pipe in pipes:  # all start together
                pipe.send(phase)
        found = [pipe.recv() for pipe in pipes]
    except EOFError:
        raise WorkerError("a worker of the bench failed; what it said is above") from None
    finally:
        for process in processes:
            process.kill()
            process.join()
    return found


def text(found: dict[str, Any]) -> str:
    """The measurements as a few lines."""
    shares = "  ".join(f"{k} {100 * v:.1f} %" for k, v in found["shares"].items())
    return "\n".join(
        [
            f"training   {found['env_steps_per_s']:>10,.0f} env steps/s  ({found['frames_per_s']:,.0f} frames/s)",
            f"env only   {found['env_only_steps_per_s']:>10,.0f} env steps/s  bare {found['backend']} pool, "
            f"random actions; training reaches {found['env_only_ratio']:.3f} of it",
            f"env replay {found['env_replay_steps_per_s']:>10,.0f} env steps/s  bare {found['backend']} pool, "
            f"training's actions; training reaches {found['env_replay_ratio']:.3f} of it",
            f"roofline   {found['roofline_env_steps_per_s']:>10,.0f} env steps/s  efficiency {found['efficiency']:.3f}",
            f"time       {shares}",
            f"{found['members']} members on {found['workers']} workers",
        ]
    )


def _work(pipe: Connection, config: str, groups: list[list[str]], cores: tuple[int, ...], seconds: float) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    share = _Share(config, groups, len(cores))
    rates: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for phase in PHASES * ROUNDS:
        pipe.send("ready")
        pipe.recv()
        rates[phase].append(getattr(share, phase)(seconds / ROUNDS))
    found = {phase: sum(rate) / ROUNDS for phase, rate in rates.items()}
    pipe.send({**found, "shares": {part: spent / share.trained for part, spent in share.spent.items()}})
    share.close()


class _Share:
    """One worker's cohorts, and each measurement on them: env steps per second."""

    def __init__(self, text: str, groups: list[list[str]], threads: int) -> None:
        from pbtrl.rl.cohort import RLCohort

        config = Config.from_json(text)
        assert config.env is not None
        self._config, self._builder = config, build.rl_builder(config)
        self._threads, self.spent = threads, dict.fromkeys(("env", "act", "learn"), 0.0)
        self._cohorts: list[Any] = []
        self._watched = False
        self._clock, self.trained = dict(self.spent), 0.0
        for structure, assignments in self._together(groups):
            cohort = self._builder.cohort([a.member for a in assignments], threads, structure)
            assert isinstance(cohort, RLCohort)
            for slot, a in enumerate(assignments):
                cohort.init(slot, a.seed)
            cohort.begin(assignments)
            cohort.turn()
            self._cohorts.append(cohort)
        self._random = [_random_actions(c.rollout.vector) for c in self._cohorts]
        self._taken: list[deque[Any]] = [deque(maxlen=REMEMBERED) for _ in self._cohorts]
        self._pools: list[Any] = []

    def _together(self, groups: list[list[str]]) -> Iterator[tuple[object, list[Assignment]]]:
        """Every cohort's structure, and what its members begin with."""
        population = Population(self._config.population.size, self._config.seed)
        spaces = {m: self._config.space.dealt(place) for place, m in enumerate(population.members)}
        for group in groups:
            together: dict[object, list[Assignment]] = {}
            for m in group:
                drawn = spaces[m].sample(population.rng(m, 0, "prior"))
                a = Assignment(f"{m}/000000", m, None, 0, 2**62, drawn, population.slice_seed(m, 0))
                together.setdefault(self._builder.structure(a), []).append(a)
            yield from together.items()

    def env(self, seconds: float) -> float:
        """The bare pools under random actions."""
        return self._stepped(self._random, seconds)

    def replay(self, seconds: float) -> float:
        """The bare pools under the actions that training took."""
        return self._stepped(self._taken, seconds)

    def _stepped(self, actions: Sequence[Iterable[Any]], seconds: float) -> float:
        if not self._pools:
            self._pools = [self._bare(len(c.members)) for c in self._cohorts]
        turns = [itertools.cycle(batches) for batches in actions]

        def step() -> int:
            return sum(len(pool.step(next(turn))[1]) for pool, turn in zip(self._pools, turns, strict=True))

        return _rate(step, seconds)

    def _bare(self, members: int) -> Any:
        env = self._config.env
        assert env is not None
        pool = envs.bare(
            env.id, range(members * env.num_envs), threads=self._threads, backend=env.backend, protocol=env.protocol,
            kwargs=env.kwargs,
        )  # fmt: skip
        pool.reset()
        return pool

    def act(self, seconds: float) -> float:
        """Policies on the observations at hand."""
        return _rate(lambda: sum(c.act_once() for c in self._cohorts), seconds)

    def learn(self, seconds: float) -> float:
        """Updates from one block."""
        blocks = [c.collect() for c in self._cohorts]

        def update() -> int:
            for cohort, block in zip(self._cohorts, blocks, strict=True):
                cohort.learn(block)
            return sum(b.rewards.numel() for b in blocks)

        return _rate(update, seconds)

    def train(self, seconds: float) -> float:
        """What a worker does; a stopwatch around each part."""
        assert self._config.env is not None
        num_envs = self._config.env.num_envs
        if not self._watched:
            self._watched = True
            for cohort, taken in zip(self._cohorts, self._taken, strict=True):
                self._watch(cohort, taken)

        def turn() -> int:
            for cohort in self._cohorts:
                cohort.turn()
            return sum(len(c.members) * num_envs * c.block for c in self._cohorts)

        self._clock = dict.fromkeys(self.spent, 0.0)
        begun = time.perf_counter()
        rate = _rate(turn, seconds)
        self.trained += time.perf_counter() - begun
        self.spent = {part: spent + self._clock[part] for part, spent in self.spent.items()}
        return rate

    def _watch(self, cohort: Any, taken: deque[Any]) -> None:
        """Sum the time in the cohort's env steps, acting and learning; about a microsecond per call."""
        step = self._timed("env", cohort.rollout.vector.step)

        def remembered(actions: Any) -> Any:
            taken.append(actions.copy())
            return step(actions)

        cohort.rollout.vector.step = remembered
        cohort.rollout.act = self._timed("act", cohort.rollout.act)
        cohort.learn = self._timed("learn", cohort.learn)

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = function(*args, **kwargs)
            self._clock[part] += time.perf_counter() - begun
            return result

        return timed

    def close(self) -> None:
        """Free the envs."""
        for closable in [*self._cohorts, *self._pools]:
            closable.close()


def _rate(step: Callable[[], int], seconds: float) -> float:
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        done += step()
    return done / (time.perf_counter() - begun)


def _random_actions(vector: Any) -> list[Any]:
    """A few batches of random actions, drawn beforehand."""
    space = vector.single_action_space
    space.seed(0)
    return [np.stack([space.sample() for _ in range(vector.num_envs)]) for _ in range(64)]
