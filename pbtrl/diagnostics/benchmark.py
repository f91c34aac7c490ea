"""How fast a config trains, against its simulator alone, measured in one run with all cores busy.

Measurements on the same processes and cores: env stepping alone (the bare library pool under random actions, none of
our wrappers), acting alone, learning alone, full training, and env stepping alone again under the actions that training
took, because some worlds take longer over what a policy does than over random actions.

    roofline   = 1 / (1 / replay + 1 / act + 1 / learn)     what no overlap and no overhead would give
    efficiency = full training / roofline

The roofline is of the same work as training. Its `replay` is env stepping under training's actions. An update learns
from its block in one or more passes, and may stop early (`max_log_ratio`): learning alone repeats the passes of
training's most recent updates, member by member, on a copy of what learns, so that the policy stays as it is.

Where other processes act, they overlap with the learner by design, so there is no such roofline. Measured then are env
stepping alone, learning alone while the actors rest, and full training, with the learner's time for learning and for
waiting, and the policy lag. What hogwild's processes do cannot be told apart from outside: env stepping and training.
In turns with both, the same config is measured with `acting: inline`: full training, and learning alone, with as many
threads as it has there and with one, which is what a learner with actors has.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pbtrl import envs
from pbtrl.build.placement import torch_threads, worker_shares
from pbtrl.config.schema import Config
from pbtrl.config.sections import Acting
from pbtrl.core.population import Population
from pbtrl.diagnostics.bench_worker import PARTS, PHASES, ROUNDS, run_bench_worker
from pbtrl.errors import ConfigError, WorkerError
from pbtrl.system.child_process import start_ignoring_signals

BESIDE = {"actors": ("train", "learn", "learn_by_one"), "hogwild": ("train",)}
"""What is measured inline, too, of a config that acts otherwise."""


def measure(config: Config, seconds: float) -> dict[str, Any]:
    """Rates in env steps per second of the whole population, `seconds` per measurement.

    Keys: env_steps_per_s, frames_per_s, env_only_steps_per_s, env_only_ratio, passes (mean of training's updates),
    workers, members, acting, backend. And inline: env_replay_steps_per_s (under training's actions), env_replay_ratio,
    act_only_steps_per_s, learn_only_steps_per_s, roofline_env_steps_per_s, efficiency, shares {env, act, learn, other}
    of the training time. With actors: learn_only_steps_per_s, lag (updates), shares {learn, wait, other} of the
    learner's; and under `inline` what the same config gives so, {env_steps_per_s, passes, workers,
    learn_only_steps_per_s, learn_by_one_only_steps_per_s (one thread), threads}. With hogwild only the first three of
    these. Of both, inline_ratio.

    Raises:
        ConfigError: this is not a config of an env.
    """
    if config.env is None or config.acting is None:
        raise ConfigError(["bench measures envs, and this config has a trainable"])
    mode, size = config.acting.mode, config.population.size
    sides = [_BenchVariant(config, PHASES[mode])]
    if mode != "inline":
        sides.append(_BenchVariant(config.model_copy(update={"acting": Acting()}), BESIDE[mode]))
    found, *beside = _measured(sides, seconds)
    count = len(found)
    totals = _totals(found, PHASES[mode])
    told: dict[str, Any] = {
        "env_steps_per_s": totals["train"],
        "frames_per_s": totals["train"] * config.frames_per_step,
        "env_only_steps_per_s": totals["env"],
        "env_only_ratio": totals["train"] / totals["env"],
        "epochs": _mean(found, "epochs"),
        "workers": count,
        "members": size,
        "acting": mode if mode == "inline" else f"{mode} of {config.acting.processes} processes",
        "backend": config.env.backend,
    }
    told |= _alone(totals)
    if mode == "inline":
        told["env_replay_steps_per_s"] = totals["replay"]
        told["env_replay_ratio"] = totals["train"] / totals["replay"]
        told["roofline_env_steps_per_s"] = 1.0 / sum(1.0 / totals[phase] for phase in ("replay", "act", "learn"))
        told["efficiency"] = totals["train"] / told["roofline_env_steps_per_s"]
    if mode == "actors":
        told["lag"] = _mean(found, "lag")
    if parts := PARTS[mode]:
        shares = {part: sum(f["shares"][part] for f in found) / count for part in parts}
        told["shares"] = {**shares, "other": 1.0 - sum(shares.values())}
    if beside:
        inline = _totals(beside[0], BESIDE[mode])
        told["inline_ratio"] = totals["train"] / inline["train"]
        told["inline"] = {
            "env_steps_per_s": inline["train"],
            "epochs": _mean(beside[0], "epochs"),
            "workers": len(beside[0]),
            **_alone(inline),
        }
        if "learn" in inline:
            told["inline"]["threads"] = torch_threads(sides[1].config)
    return told


@dataclass(frozen=True)
class _BenchVariant:
    """A config, and what is measured of it."""

    config: Config
    phases: tuple[str, ...]


def _totals(found: Sequence[dict[str, Any]], phases: Sequence[str]) -> dict[str, float]:
    """Of all workers."""
    return {phase: sum(f[phase] for f in found) for phase in phases}


def _mean(found: Sequence[dict[str, Any]], key: str) -> float:
    """Of all workers."""
    return float(np.mean([f[key] for f in found]))


def _alone(totals: Mapping[str, float]) -> dict[str, float]:
    """The learner's and the policies' rates, as they are called outside."""
    return {f"{p}_only_steps_per_s": totals[p] for p in ("act", "learn", "learn_by_one") if p in totals}


def _measured(sides: Sequence[_BenchVariant], seconds: float) -> list[list[dict[str, Any]]]:
    """What each worker of each side found; all but those of one side are at rest."""
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
                processes.append(context.Process(target=run_bench_worker, args=work))
                start_ignoring_signals(processes[-1])
                theirs.close()
                pipes[-1].append(ours)
        for pipe in itertools.chain(*pipes):
            _answer(pipe)
        for _ in range(ROUNDS):
            for side, own in zip(sides, pipes, strict=True):
                for phase in side.phases:
                    for pipe in own:  # all start together
                        pipe.send(phase)
                    for pipe in own:
                        _answer(pipe)
        for pipe in itertools.chain(*pipes):
            pipe.send(None)
        found = [[_answer(pipe) for pipe in own] for own in pipes]
    except EOFError:
        raise WorkerError("a worker of the bench failed; what it said is above") from None
    finally:
        for process in processes:
            process.kill()
            process.join()
    return found


def _answer(pipe: Connection) -> Any:
    """What a worker sent; WorkerError where its env failed."""
    answer = pipe.recv()
    if isinstance(answer, envs.EnvError):
        raise WorkerError(f"a worker of the bench failed: {answer}")
    return answer


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
    """What an env step costs the learner with actors, and inline."""
    inline = found["inline"]
    ours = 1e3 * found["workers"] / found["learn_only_steps_per_s"]
    same, own = (1e3 * inline["workers"] / inline[f"{p}_only_steps_per_s"] for p in ("learn_by_one", "learn"))
    text = f"learner    {ours:>10.3f} ms per env step with one thread; {same:.3f} where the learner acts"
    return text + (f", {own:.3f} with its {inline['threads']} threads" if inline["threads"] > 1 else "")
