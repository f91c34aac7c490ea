"""Benchmark of a config's training speed against its simulator alone, in one run with all cores busy.

It measures on the same processes and cores: env stepping alone (the library's bare pool under random actions, without
our wrappers), acting alone, learning alone, full training, and env stepping alone under the actions of training,
because some envs take longer over a policy's actions than over random ones (`replay`).

    roofline   = 1 / (1 / replay + 1 / act + 1 / learn)     speed without overlap and overhead
    efficiency = full training / roofline

The roofline is for the same work as training. An update makes one or more passes over its block and may stop early
(`max_log_ratio`). So learning alone repeats the passes of training's most recent updates, member by member, on a copy
of the learned state, which leaves the policy unchanged.

With `acting: actors`, acting overlaps with learning by design, so there is no such roofline. Measured are env stepping
alone, learning alone while the actors are idle, full training, the learner's time for learning and for waiting, and the
policy lag. With `hogwild`, only env stepping and training are measured, because its processes cannot be timed from
outside. Interleaved with both, the same config is measured with `acting: inline`: full training, and learning alone
with its own number of threads and with one thread, as a learner with actors has.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pbtrl import envs
from pbtrl.build import rl
from pbtrl.build.placement import WorkerShare, torch_threads, worker_shares
from pbtrl.config.load import config_from_json
from pbtrl.config.schema import Config
from pbtrl.config.sections import Acting
from pbtrl.core.messages import Assignment
from pbtrl.core.population import Population
from pbtrl.errors import ConfigError, WorkerError
from pbtrl.system.child_process import init_child, start_ignoring_signals

PHASES = {
    "inline": ("env", "act", "train", "learn", "replay"),
    "actors": ("env", "train", "learn"),
    "hogwild": ("env", "train"),
}
"""Measurements per acting mode. The order matters: `learn` and `replay` repeat what `train` did."""
BESIDE = {"actors": ("train", "learn", "learn_by_one"), "hogwild": ("train",)}
"""Additional inline measurements of a config with another acting mode."""
PARTS = {"inline": ("env", "act", "learn"), "actors": ("learn", "wait"), "hogwild": ()}
"""Parts of a worker's training time."""
METRICS = {"lag": "acting/lag", "epochs": "loss/epochs"}
REMEMBERED = 2_000  # training steps whose actions `replay` uses
ROUNDS = 4  # the phases alternate, so that a temporary slowdown of the machine affects all of them


def measure(config: Config, seconds: float) -> dict[str, Any]:
    """Measure a config; rates are env steps per second of the whole population, `seconds` per measurement.

    Keys: env_steps_per_s, frames_per_s, env_only_steps_per_s, env_only_ratio, epochs (mean passes per update), workers,
    members, acting, backend. Further keys by acting mode:

    - inline: env_replay_steps_per_s (under training's actions), env_replay_ratio, act_only_steps_per_s,
      learn_only_steps_per_s, roofline_env_steps_per_s, efficiency, shares {env, act, learn, other} of training time.
    - actors: learn_only_steps_per_s, lag (updates), shares {learn, wait, other} of the learner's time, inline_ratio,
      inline {env_steps_per_s, epochs, workers, learn_only_steps_per_s, learn_by_one_only_steps_per_s (one thread),
      threads}: results of the same config with inline acting.
    - hogwild: inline_ratio, inline {env_steps_per_s, epochs, workers}.

    Raises:
        ConfigError: the config has no env.
    """
    if config.env is None or config.acting is None:
        raise ConfigError(["bench measures envs, and this config has a trainable"])
    mode, size = config.acting.mode, config.population.size
    sides = [_BenchVariant(config, PHASES[mode])]
    if mode != "inline":
        sides.append(_BenchVariant(config.model_copy(update={"acting": Acting()}), BESIDE[mode]))
    workers, *beside = _measured(sides, seconds)
    count = len(workers)
    totals = _totals(workers, PHASES[mode])
    result: dict[str, Any] = {
        "env_steps_per_s": totals["train"],
        "frames_per_s": totals["train"] * config.frames_per_step,
        "env_only_steps_per_s": totals["env"],
        "env_only_ratio": totals["train"] / totals["env"],
        "epochs": _mean(workers, "epochs"),
        "workers": count,
        "members": size,
        "acting": mode if mode == "inline" else f"{mode} of {config.acting.processes} processes",
        "backend": config.env.backend,
    }
    result |= _alone(totals)
    if mode == "inline":
        result["env_replay_steps_per_s"] = totals["replay"]
        result["env_replay_ratio"] = totals["train"] / totals["replay"]
        result["roofline_env_steps_per_s"] = 1.0 / sum(1.0 / totals[phase] for phase in ("replay", "act", "learn"))
        result["efficiency"] = totals["train"] / result["roofline_env_steps_per_s"]
    if mode == "actors":
        result["lag"] = _mean(workers, "lag")
    if parts := PARTS[mode]:
        shares = {part: sum(w["shares"][part] for w in workers) / count for part in parts}
        result["shares"] = {**shares, "other": 1.0 - sum(shares.values())}
    if beside:
        inline = _totals(beside[0], BESIDE[mode])
        result["inline_ratio"] = totals["train"] / inline["train"]
        result["inline"] = {
            "env_steps_per_s": inline["train"],
            "epochs": _mean(beside[0], "epochs"),
            "workers": len(beside[0]),
            **_alone(inline),
        }
        if "learn" in inline:
            result["inline"]["threads"] = torch_threads(sides[1].config)
    return result


@dataclass(frozen=True)
class _BenchVariant:
    """Config with the phases to measure."""

    config: Config
    phases: tuple[str, ...]


def _totals(workers: Sequence[dict[str, Any]], phases: Sequence[str]) -> dict[str, float]:
    """Sum the rates of all workers by phase."""
    return {phase: sum(w[phase] for w in workers) for phase in phases}


def _mean(workers: Sequence[dict[str, Any]], key: str) -> float:
    """Average a value over all workers."""
    return float(np.mean([w[key] for w in workers]))


def _alone(totals: Mapping[str, float]) -> dict[str, float]:
    """Rates of acting and learning alone, under their public keys."""
    return {f"{p}_only_steps_per_s": totals[p] for p in ("act", "learn", "learn_by_one") if p in totals}


def _measured(sides: Sequence[_BenchVariant], seconds: float) -> list[list[dict[str, Any]]]:
    """Measure all variants in turns; returns the results by variant and worker."""
    context = multiprocessing.get_context("spawn")
    pipes: list[list[Connection]] = []
    processes = []
    try:
        for side in sides:
            pipes.append([])
            members = list(Population(side.config.population.size, side.config.seed).members)
            for share in worker_shares(side.config, members):
                ours, theirs = context.Pipe()
                work = theirs, os.getpid(), side.config.to_json(), share, side.phases, seconds
                processes.append(context.Process(target=_work, args=work))
                start_ignoring_signals(processes[-1])
                theirs.close()
                pipes[-1].append(ours)
        for pipe in itertools.chain(*pipes):
            _answer(pipe)
        for _ in range(ROUNDS):
            for side, own in zip(sides, pipes, strict=True):
                for phase in side.phases:
                    for pipe in own:  # send to all before waiting, so that they start together
                        pipe.send(phase)
                    for pipe in own:
                        _answer(pipe)
        for pipe in itertools.chain(*pipes):
            pipe.send(None)
        results = [[_answer(pipe) for pipe in own] for own in pipes]
    except EOFError:
        raise WorkerError("a worker of the bench failed; its error is above") from None
    finally:
        for process in processes:
            process.kill()
            process.join()
    return results


def _answer(pipe: Connection) -> Any:
    """Receive a worker's message; raise WorkerError if its env failed."""
    answer = pipe.recv()
    if isinstance(answer, envs.EnvError):
        raise WorkerError(f"a worker of the bench failed: {answer}")
    return answer


def text(found: dict[str, Any]) -> str:
    """Format the measurements."""
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
    if inline := found.get("inline"):
        lines.append(
            f"inline     {inline['env_steps_per_s']:>10,.0f} env steps/s  the same config, the learner acting; "
            f"{found['acting']} reach {found['inline_ratio']:.2f} times that"
        )
        if "threads" in inline:
            lines.append(_learners(found))
    if "shares" in found:
        lines.append("time       " + "  ".join(f"{k} {100 * v:.1f} %" for k, v in found["shares"].items()))
    last = [f"passes {found['epochs']:.2f}", *(f"{word} {found[word]}" for word in ("members", "workers", "acting"))]
    return "\n".join([*lines, "  ".join(last)])


def _learners(found: Mapping[str, Any]) -> str:
    """Format the learner's cost per env step with actors and with inline acting."""
    inline = found["inline"]
    ours = 1e3 * found["workers"] / found["learn_only_steps_per_s"]
    same, own = (1e3 * inline["workers"] / inline[f"{p}_only_steps_per_s"] for p in ("learn_by_one", "learn"))
    text = f"learner    {ours:>10.3f} ms per env step with one thread; {same:.3f} where the learner acts"
    return text + (f", {own:.3f} with its {inline['threads']} threads" if inline["threads"] > 1 else "")


def _work(
    pipe: Connection, parent: int, config: str, worker: WorkerShare, phases: Sequence[str], seconds: float
) -> None:
    init_child(parent, pipe)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, worker.cores)
    try:
        _serve(pipe, BenchWorker(config, worker.groups, worker.threads), phases, seconds)
    except envs.EnvError as error:
        pipe.send(envs.EnvError(str(error)))


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
        spaces = envs.spaces(env.id, backend=env.backend, protocol=env.protocol, kwargs=env.kwargs)
        space = spaces.single_action_space
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
        pool = envs.bare(
            env.id, range(members * env.num_envs), threads=self._threads, backend=env.backend, protocol=env.protocol,
            kwargs=env.kwargs,
        )  # fmt: skip
        with envs.named(env.id):
            pool.reset()
        return pool

    def act(self, seconds: float) -> float:
        """Run the policies on the current observations."""
        return _rate(lambda: sum(c.act_once() for c in self._cohorts), seconds)

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

    def learn_by_one(self, seconds: float) -> float:
        """Measure `learn` with one thread."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        rate = self.learn(seconds)
        torch.set_num_threads(threads)
        return rate

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
        """Wrap a cohort's methods to time each part (about 1 us per call) and to record actions and epochs."""
        if self.mode == "hogwild":
            return
        learn = self._timed("learn", cohort.learn)

        def recording_learn(block: Any) -> Any:
            learned = learn(block)
            epochs.append(learned.metrics["loss/epochs"].long())
            return learned

        cohort.learn = recording_learn
        if self.mode == "actors":
            cohort.rollout.pool.answered = self._timed("wait", cohort.rollout.pool.answered)
            return
        step = self._timed("env", cohort.rollout.vector.step)

        def recording_step(actions: Any) -> Any:
            taken.append(actions.copy())
            return step(actions)

        cohort.rollout.vector.step = recording_step
        cohort.rollout.act = self._timed("act", cohort.rollout.act)

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = function(*args, **kwargs)
            self._clock[part] += time.perf_counter() - begun
            return result

        return timed

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
