"""How fast a config trains, against its simulator alone, measured in one run with all cores busy.

Measurements on the same processes and cores: env stepping alone (the bare library pool under random actions, none of
our wrappers), acting alone, learning alone, full training, and env stepping alone again under the actions that training
took, because some worlds take longer over what a policy does than over random actions.

    roofline   = 1 / (1 / env + 1 / act + 1 / learn)     what no overlap and no overhead would give
    efficiency = full training / roofline

Where other processes act, they overlap with the learner by design, so there is no such roofline. Measured then are env
stepping alone, learning alone while the actors rest, and full training, with the learner's time for learning and for
waiting, and the policy lag. What hogwild's processes do cannot be told apart from outside: env stepping and training.
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
from pbtrl.children import belong_to, start_shielded
from pbtrl.config import Config, ConfigError
from pbtrl.execution.processes import WorkerError
from pbtrl.population import Assignment, Population

PHASES = {
    "inline": ("env", "act", "learn", "train", "replay"),
    "actors": ("env", "learn", "train"),
    "hogwild": ("env", "train"),
}
PARTS = {"inline": ("env", "act", "learn"), "actors": ("learn", "wait"), "hogwild": ()}
"""Of a worker's time in training."""
REMEMBERED = 2_000  # steps whose actions are stepped again
ROUNDS = 4  # the phases take turns, so that a machine that slows down slows all of them


def measure(config: Config, seconds: float) -> dict[str, Any]:
    """Rates in env steps per second of the whole population, `seconds` per measurement.

    Keys: env_steps_per_s, frames_per_s, env_only_steps_per_s, env_only_ratio, workers, members, acting, backend. And
    inline: env_replay_steps_per_s (under training's actions), env_replay_ratio, act_only_steps_per_s,
    learn_only_steps_per_s, roofline_env_steps_per_s, efficiency, shares {env, act, learn, other} of the training time.
    With actors: learn_only_steps_per_s, lag (updates), shares {learn, wait, other} of the learner's.

    Raises:
        ConfigError: this is not a config of an env.
    """
    if config.env is None or config.acting is None:
        raise ConfigError(["bench measures envs, and this config has a trainable"])
    members = list(Population(config.population.size, config.seed).members)
    mode, count = config.acting.mode, build.workers(config)
    found = _measured(config, build.shares(config, members), seconds)
    totals = {phase: sum(f[phase] for f in found) for phase in PHASES[mode]}
    told: dict[str, Any] = {
        "env_steps_per_s": totals["train"],
        "frames_per_s": totals["train"] * config.frames_per_step,
        "env_only_steps_per_s": totals["env"],
        "env_only_ratio": totals["train"] / totals["env"],
        "workers": count,
        "members": len(members),
        "acting": mode if mode == "inline" else f"{mode} of {config.acting.processes} processes",
        "backend": config.env.backend,
    }
    told |= {f"{phase}_only_steps_per_s": totals[phase] for phase in ("act", "learn") if phase in totals}
    if mode == "inline":
        told["env_replay_steps_per_s"] = totals["replay"]
        told["env_replay_ratio"] = totals["train"] / totals["replay"]
        told["roofline_env_steps_per_s"] = 1.0 / sum(1.0 / totals[phase] for phase in ("env", "act", "learn"))
        told["efficiency"] = totals["train"] / told["roofline_env_steps_per_s"]
    if mode == "actors":
        told["lag"] = sum(f["lag"] for f in found) / count
    if parts := PARTS[mode]:
        shares = {part: sum(f["shares"][part] for f in found) / count for part in parts}
        told["shares"] = {**shares, "other": 1.0 - sum(shares.values())}
    return told


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
            work = theirs, os.getpid(), config.to_json(), groups, cores, seconds
            processes.append(context.Process(target=_work, args=work))
            start_shielded(processes[-1])
            theirs.close()
            pipes.append(ours)
        assert config.acting is not None
        for phase in PHASES[config.acting.mode] * ROUNDS:
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
    backend = found["backend"]
    lines = [
        f"training   {found['env_steps_per_s']:>10,.0f} env steps/s  ({found['frames_per_s']:,.0f} frames/s)",
        f"env only   {found['env_only_steps_per_s']:>10,.0f} env steps/s  bare {backend} pool, "
        f"random actions; training reaches {found['env_only_ratio']:.3f} of it",
    ]
    if "efficiency" in found:
        roofline, efficiency = found["roofline_env_steps_per_s"], found["efficiency"]
        lines += [
            f"env replay {found['env_replay_steps_per_s']:>10,.0f} env steps/s  bare {backend} pool, "
            f"training's actions; training reaches {found['env_replay_ratio']:.3f} of it",
            f"roofline   {roofline:>10,.0f} env steps/s  efficiency {efficiency:.3f}",
        ]
    if "lag" in found:
        lines += [
            f"learn only {found['learn_only_steps_per_s']:>10,.0f} env steps/s  while the actors rest",
            f"lag        {found['lag']:>10.1f} updates between acting and learning",
        ]
    if "shares" in found:
        lines.append("time       " + "  ".join(f"{k} {100 * v:.1f} %" for k, v in found["shares"].items()))
    return "\n".join([*lines, f"{found['members']} members on {found['workers']} workers, acting {found['acting']}"])


def _work(
    pipe: Connection, parent: int, config: str, groups: list[list[str]], cores: tuple[int, ...], seconds: float
) -> None:
    belong_to(parent, pipe)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    share = Share(config, groups, len(cores))
    phases = PHASES[share.mode]
    rates: dict[str, list[float]] = {phase: [] for phase in phases}
    for phase in phases * ROUNDS:
        share.rest()
        pipe.send("ready")
        pipe.recv()
        rates[phase].append(getattr(share, phase)(seconds / ROUNDS))
    found = {phase: sum(rate) / ROUNDS for phase, rate in rates.items()}
    shares = {part: spent / share.trained for part, spent in share.spent.items()}
    pipe.send({**found, "shares": shares, "lag": sum(share.lags) / max(1, len(share.lags))})
    share.close()


class Share:
    """One worker's cohorts, and each measurement on them: env steps per second."""

    def __init__(self, text: str, groups: list[list[str]], threads: int) -> None:
        from pbtrl.rl.cohort import RLCohort

        config = Config.from_json(text)
        assert config.env is not None
        assert config.acting is not None
        self._config, self._builder, self.mode = config, build.rl_builder(config), config.acting.mode
        self._threads, self.spent = threads, dict.fromkeys(PARTS[self.mode], 0.0)
        self.lags: list[float] = []
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
        shown = envs.spaces(env.id, backend=env.backend, protocol=env.protocol, kwargs=env.kwargs)
        space = shown.single_action_space
        self._random = [_random_actions(space, len(c.members) * env.num_envs) for c in self._cohorts]
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

    def rest(self) -> None:
        """Let nobody do anything until the next measurement begins."""
        if self.mode != "inline":
            for cohort in self._cohorts:
                cohort.rollout.crew.settle()

    def _learned(self, cohort: Any) -> int:
        """One block at least; env steps of all its members."""
        before = cohort.left
        while cohort.left == before:
            cohort.turn()
        return self._steps(cohort, before - cohort.left)

    def _steps(self, cohort: Any, time: int) -> int:
        """Env steps of all its members in so many of each env."""
        assert self._config.env is not None
        return len(cohort.members) * self._config.env.num_envs * time

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
        from pbtrl.rl.cohort import RLCohort

        blocks = [c.collect() for c in self._cohorts]
        self.rest()

        def update() -> int:
            for cohort, block in zip(self._cohorts, blocks, strict=True):
                RLCohort.learn(cohort, block)
            return sum(self._steps(c, b.rewards.shape[1]) for c, b in zip(self._cohorts, blocks, strict=True))

        rate = _rate(update, seconds)
        if self.mode == "actors":  # their blocks have to be given back
            for cohort, block in zip(self._cohorts, blocks, strict=True):
                cohort.learn(block)
        return rate

    def train(self, seconds: float) -> float:
        """What a worker does; a stopwatch around each part."""
        if not self._watched:
            self._watched = True
            for cohort, taken in zip(self._cohorts, self._taken, strict=True):
                self._watch(cohort, taken)

        def turn() -> int:
            return sum(self._learned(cohort) for cohort in self._cohorts)

        if self.mode != "inline":  # what lay ready before the measurement began does not count
            _rate(turn, seconds / 5)
        self._clock = dict.fromkeys(self.spent, 0.0)
        for cohort in self._cohorts:
            cohort.metrics()
        begun = time.perf_counter()
        rate = _rate(turn, seconds)
        self.trained += time.perf_counter() - begun
        self.spent = {part: spent + self._clock[part] for part, spent in self.spent.items()}
        self.lags += [row["acting/lag"] for c in self._cohorts for row in c.metrics() if "acting/lag" in row]
        return rate

    def _watch(self, cohort: Any, taken: deque[Any]) -> None:
        """Sum the time in each part of the cohort's turns; about a microsecond per call."""
        if self.mode == "hogwild":
            return
        cohort.learn = self._timed("learn", cohort.learn)
        if self.mode == "actors":
            cohort.rollout.crew.answered = self._timed("wait", cohort.rollout.crew.answered)
            return
        step = self._timed("env", cohort.rollout.vector.step)

        def remembered(actions: Any) -> Any:
            taken.append(actions.copy())
            return step(actions)

        cohort.rollout.vector.step = remembered
        cohort.rollout.act = self._timed("act", cohort.rollout.act)

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


def _random_actions(space: Any, count: int) -> list[Any]:
    """A few batches of random actions, drawn beforehand."""
    space.seed(0)
    return [np.stack([space.sample() for _ in range(count)]) for _ in range(64)]
