"""Scores: fresh episodes of members' snapshots, and the honest choice of the best member.

The highest training fitness is a maximum over noisy windows and so too high. The best candidates are therefore played
again on selection seeds, and the chosen one once more on *other* seeds; only that last score is reported.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pbtrl import build, runs, schema
from pbtrl.config.schema import Config
from pbtrl.core.dimensions import AGENT
from pbtrl.core.population import Population
from pbtrl.errors import DamagedError, NewerError, RunError, SnapshotError
from pbtrl.snapshots import Store
from pbtrl.system.files import write_atomically
from pbtrl.system.strict_json import to_json


def evaluate(
    config: Config, run: Path, snapshots: Sequence[str], *, episodes: int, seed: int, deterministic: bool = False,
    seconds: float | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Play fresh episodes with each snapshot; one JSON object per snapshot.

    Keys: member, agent (its name, or the entry of a mix), snapshot, env_steps, episodes, return_mean, return_std, ci95
    (pair; null for one episode), return_min, return_max, length_mean, truncated (episodes that were cut at max_steps or
    because the time was up; not those that the env itself truncates), max_steps (env steps; null for no limit),
    timed_out, deterministic, protocol, seed, seeds. Returns are raw, and statistics of them null where they are not
    finite; env_steps is the member's clock.

    After `seconds` the episodes under way are cut, and no more begin.

    Raises:
        SnapshotError: a snapshot is missing, damaged, or not of this config's agent.
    """
    store = Store(run / "members")
    loaded = [store.load(name) for name in snapshots]
    rows = [row for row, _ in loaded]
    try:
        steps = [int(state["report"]["step"]) for _, state in loaded]
        agents = [state["report"]["hyperparameters"].get(AGENT) for _, state in loaded]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise SnapshotError(f"{run}: a snapshot's state.json holds no report") from None
    play = build.evaluator(config)
    played = play(rows, agents, episodes=episodes, seed=seed, deterministic=deterministic, seconds=seconds)
    return [
        {
            "member": name.split("/")[0],
            "agent": agent or (config.agent.name if config.agent else None),
            "snapshot": name,
            "env_steps": step,
            "episodes": len(one.returns),
            **_statistics(one.returns),
            "length_mean": float(np.mean(one.lengths)),
            "truncated": one.truncated,
            "max_steps": one.max_steps,
            "timed_out": one.timed_out,
            "deterministic": deterministic,
            "protocol": config.env.protocol if config.env and config.env.id.startswith("ALE/") else None,
            "seed": seed,
            "seeds": one.seeds,
        }
        for name, agent, step, one in zip(snapshots, agents, steps, played, strict=True)
    ]


def choose(config: Config, run: Path, population: Population, seconds: float | None = None) -> dict[str, Any]:
    """Name the best member: candidates by training fitness, the choice on selection seeds, the score on others.

    It takes no longer than `seconds` or so: the choice at most half of them, and the score what is left.

    Returns the content of best.json, which is not written where the score is not finite, or an empty object where there
    is no snapshot to choose from.
    """
    chosen_from, begun = candidates(config, run, population), time.monotonic()
    if not chosen_from:
        return {}
    final = config.final
    half = None if seconds is None else seconds / 2
    selection = evaluate(
        config, run, chosen_from, episodes=final.selection_episodes, seed=_seed(config, "selection"), seconds=half
    )
    scores = [s["return_mean"] if is_scored(s) else -math.inf for s in selection]
    name = chosen_from[max(range(len(scores)), key=lambda i: (scores[i], -i))]
    left = None if seconds is None else seconds - (time.monotonic() - begun)
    (score,) = evaluate(config, run, [name], episodes=final.episodes, seed=_seed(config, "final"), seconds=left)
    chosen = population.members[score["member"]]
    best = {
        "schema": schema.SCHEMA,
        "member": chosen.id,
        "snapshot": name,
        "sha256": digest(run, name),
        "hyperparameters": chosen.trained_under,
        "training_fitness": chosen.fitness,
        "evaluation": score,
        "selection": [{k: s[k] for k in ("member", "return_mean", "ci95", "episodes", "truncated")} for s in selection],
    }
    if is_scored(score):
        write_atomically(run / "best.json", to_json(best, indent=2))
    return best


def choose_of(run: str, seconds: float | None) -> dict[str, Any]:
    """`choose` for the run in a directory."""
    _, _, population = runs.folded(Path(run))
    return choose(runs.config(Path(run)), Path(run), population, seconds)


def is_scored(result: Mapping[str, Any]) -> bool:
    """Whether the mean return of an evaluation is a finite number."""
    return result["return_mean"] is not None and math.isfinite(result["return_mean"])


def unscored(config: Config, results: Sequence[Mapping[str, Any]]) -> str | None:
    """The results without a finite score in one line that names snapshots and env; None where all have one."""
    named = ", ".join(r["snapshot"] for r in results if not is_scored(r))
    return f"no score: the mean return of {named} in {_task(config)} is not finite" if named else None


def candidates(config: Config, run: Path, population: Population) -> list[str]:
    """Snapshots of the members that may be the best: the fittest, or all where nobody has a fitness.

    One that was lost and could not be made again is none of them.

    Raises:
        SnapshotError: all are lost.
    """
    store, ranked = Store(run / "members"), population.ranking()
    names = [m.snapshot for m in ranked or population.members.values() if m.snapshot]
    whole = (name for name in names if store.is_at(name, population.made[name].stop))
    found = list(islice(whole, config.final.candidates if ranked else None))
    if names and not found:
        raise SnapshotError(f"{run}: of the snapshots to choose the best from none is whole: {', '.join(names)}")
    return found


def newest(run: Path, member: str) -> list[str]:
    """The snapshots to evaluate for a member's name, `all`, or `best`, which is what best.json names.

    Raises:
        RunError: there is no such member, or no snapshot of it.
    """
    _, _, population = runs.folded(run)
    found = {m.id: m.snapshot for m in population.members.values() if m.snapshot}
    if member not in ("best", "all", *population.members):
        raise RunError(f"no member {member!r} in {run}: there are {', '.join(population.members)}")
    if not found:
        raise RunError(f"{run} has no snapshot yet: no member has come to the end of a slice")
    if member == "best":
        if (best := best_snapshot(run)) is None:
            raise RunError(f"{run} has no best member yet: try --member all, or one of {', '.join(found)}")
        return [best]
    if not (chosen := [name for m, name in found.items() if member in ("all", m)]):
        raise RunError(f"{run}: no snapshot yet of {member}, but of {', '.join(found)}")
    return chosen


def best_snapshot(run: Path) -> str | None:
    """The snapshot that best.json names; None where there is none yet.

    Raises:
        DamagedError: best.json cannot be read, or the snapshot is not what it was.
    """
    try:
        best = schema.read(run / "best.json")
        name, sha256 = str(best["snapshot"]), str(best["sha256"])
    except FileNotFoundError:
        return None
    except KeyError as error:
        raise DamagedError(f"{run / 'best.json'} cannot be read: {error}") from None
    if digest(run, name) != sha256:
        raise SnapshotError(f"snapshot {name} is not the one that {run / 'best.json'} names")
    return name


def referred_to(run: Path) -> list[str]:
    """Snapshots that must outlive what training leaves behind: the best one of an earlier sitting."""
    try:
        best = best_snapshot(run)
    except NewerError:
        raise
    except DamagedError:
        return []
    return [best] if best else []


def digest(run: Path, snapshot: str) -> str:
    """SHA-256 of a snapshot's manifest, which holds those of its files.

    Raises:
        SnapshotError: it is not there.
    """
    try:
        return hashlib.sha256((Store(run / "members").path(snapshot) / "MANIFEST.json").read_bytes()).hexdigest()
    except (OSError, ValueError):
        raise SnapshotError(f"snapshot {snapshot} is missing or not whole ({run})") from None


def write(run: Path, results: Sequence[dict[str, Any]]) -> Path:
    """Keep results of an evaluation in the run's `eval/`; returns the file."""
    folder = run / "eval"
    folder.mkdir(exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{len(list(folder.iterdir()))}.json"
    write_atomically(path, to_json(list(results), indent=2))
    return path


def _statistics(returns: Sequence[float]) -> dict[str, Any]:
    """Mean, spread and Student's 95 % interval of the mean; None for what is not finite."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    n = len(returns)
    with np.errstate(all="ignore"):
        mean, std = float(np.mean(returns)), float(np.std(returns, ddof=1)) if n > 1 else 0.0
    half = float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n) if n > 1 else math.inf
    return {
        "return_mean": _finite(mean),
        "return_std": _finite(std),
        "ci95": [mean - half, mean + half] if math.isfinite(mean) and math.isfinite(half) else None,
        "return_min": _finite(float(np.min(returns))),
        "return_max": _finite(float(np.max(returns))),
    }


def _task(config: Config) -> str:
    return f"env.id={config.env.id}" if config.env else f"trainable.name={config.trainable and config.trainable.name}"


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _seed(config: Config, purpose: str) -> int:
    digest = hashlib.sha256(f"{config.seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
