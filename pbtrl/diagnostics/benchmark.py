"""Benchmark of a config's training speed against its simulator alone, in one run with all cores busy.

It measures on the same processes and cores: env stepping alone (the library's bare pool under random actions, without
our wrappers), acting alone, learning alone, full training, and env stepping alone under the actions of training,
because some envs take longer over a policy's actions than over random ones (`replay`). Acting alone fills whole blocks,
as training does, from envs that stand still.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pbtrl import envs
from pbtrl.build.placement import torch_threads, worker_shares
from pbtrl.config.schema import Config
from pbtrl.config.sections import Acting
from pbtrl.core.naming import member_ids
from pbtrl.diagnostics.bench_worker import PARTS, PHASES, ROUNDS, run_bench_worker
from pbtrl.errors import ConfigError, WorkerError
from pbtrl.system.child_process import start_child

BESIDE = {"actors": ("train", "learn", "learn_one_thread"), "hogwild": ("train",)}
"""Additional inline measurements of a config with another acting mode."""


def measure(config: Config, seconds: float) -> dict[str, Any]:
    """Measure a config; rates are env steps per second of the whole population, `seconds` per measurement.

    Keys: env_steps_per_s, frames_per_s, env_only_steps_per_s, env_only_ratio, epochs (mean passes per update), workers,
    members, acting, backend. Further keys by acting mode:

    - inline: env_replay_steps_per_s (under training's actions), env_replay_ratio, act_only_steps_per_s,
      learn_only_steps_per_s, roofline_env_steps_per_s, efficiency, shares {env, act, learn, other} of training time.
    - actors: learn_only_steps_per_s, lag (updates), shares {learn, wait, other} of the learner's time, inline_ratio,
      inline {env_steps_per_s, epochs, workers, learn_only_steps_per_s, learn_one_thread_only_steps_per_s (one thread),
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
    return {f"{p}_only_steps_per_s": totals[p] for p in ("act", "learn", "learn_one_thread") if p in totals}


def _measured(sides: Sequence[_BenchVariant], seconds: float) -> list[list[dict[str, Any]]]:
    """Measure all variants in turns; returns the results by variant and worker."""
    pipes: list[list[Connection]] = []
    processes = []
    try:
        for side in sides:
            pipes.append([])
            members = member_ids(side.config.population.size)
            for share in worker_shares(side.config, members):
                process, pipe = start_child(run_bench_worker, side.config.to_json(), share, side.phases, seconds)
                processes.append(process)
                pipes[-1].append(pipe)
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


def text(result: dict[str, Any]) -> str:
    """Format the measurements."""
    backend = result["backend"]
    lines = [
        f"training   {result['env_steps_per_s']:>10,.0f} env steps/s  ({result['frames_per_s']:,.0f} frames/s)",
        f"env only   {result['env_only_steps_per_s']:>10,.0f} env steps/s  bare {backend} pool, "
        f"random actions; training reaches {result['env_only_ratio']:.3f} of it",
    ]
    if "efficiency" in result:
        roofline, efficiency = result["roofline_env_steps_per_s"], result["efficiency"]
        lines += [
            f"env replay {result['env_replay_steps_per_s']:>10,.0f} env steps/s  bare {backend} pool, "
            f"training's actions; training reaches {result['env_replay_ratio']:.3f} of it",
            f"roofline   {roofline:>10,.0f} env steps/s  efficiency {efficiency:.3f}",
        ]
    if "lag" in result:
        lines += [
            f"learn only {result['learn_only_steps_per_s']:>10,.0f} env steps/s  while the actors rest",
            f"lag        {result['lag']:>10.1f} updates between acting and learning",
        ]
    if inline := result.get("inline"):
        lines.append(
            f"inline     {inline['env_steps_per_s']:>10,.0f} env steps/s  the same config, the learner acting; "
            f"{result['acting']} reach {result['inline_ratio']:.2f} times that"
        )
        if "threads" in inline:
            lines.append(_learners(result))
    if "shares" in result:
        lines.append("time       " + "  ".join(f"{k} {100 * v:.1f} %" for k, v in result["shares"].items()))
    last = [f"passes {result['epochs']:.2f}", *(f"{word} {result[word]}" for word in ("members", "workers", "acting"))]
    return "\n".join([*lines, "  ".join(last)])


def _learners(result: Mapping[str, Any]) -> str:
    """Format the learner's cost per env step with actors and with inline acting."""
    inline = result["inline"]
    ours = 1e3 * result["workers"] / result["learn_only_steps_per_s"]
    same, own = (1e3 * inline["workers"] / inline[f"{p}_only_steps_per_s"] for p in ("learn_one_thread", "learn"))
    text = f"learner    {ours:>10.3f} ms per env step with one thread; {same:.3f} where the learner acts"
    return text + (f", {own:.3f} with its {inline['threads']} threads" if inline["threads"] > 1 else "")
