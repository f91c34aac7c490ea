"""Scores: fresh episodes of members' snapshots, and the honest choice of the best member.

The highest training fitness is a maximum over noisy windows and so too high. The best candidates are therefore played
again on selection seeds, and the chosen one once more on *other* seeds; only that last score is reported.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pbtrl import build
from pbtrl.config import Config
from pbtrl.population import Member, Population
from pbtrl.snapshots import Store, write_atomically


def evaluate(
    config: Config, run: Path, members: Sequence[Member], *, episodes: int, seed: int, deterministic: bool = False
) -> list[dict[str, Any]]:  # fmt: skip
    """Play fresh episodes with the newest snapshot of each member; one JSON object per member.

    Keys: member, snapshot, env_steps, episodes, return_mean, return_std, ci95 (pair), return_min, return_max,
    length_mean, deterministic, protocol, seeds. Returns are raw; env_steps is the member's clock.

    Raises:
        SnapshotError: a snapshot is missing or damaged.
    """
    store = Store(run / "members")
    rows = [store.load(m.snapshot or "")[0] for m in members]
    played = build.evaluator(config)(rows, episodes=episodes, seed=seed, deterministic=deterministic)
    return [
        {
            "member": member.id,
            "snapshot": member.snapshot,
            "env_steps": member.step,
            "episodes": len(one.returns),
            **_statistics(one.returns),
            "length_mean": float(np.mean(one.lengths)),
            "deterministic": deterministic,
            "protocol": config.env.protocol if config.env and config.env.id.startswith("ALE/") else None,
            "seed": seed,
            "seeds": one.seeds,
        }
        for member, one in zip(members, played, strict=True)
    ]


def choose(config: Config, run: Path, population: Population) -> dict[str, Any]:
    """Name the best member: candidates by training fitness, the choice on selection seeds, the score on others.

    Returns the content of best.json, or an empty object where there is no snapshot to choose from.
    """
    known = [m for m in population.ranking() if m.snapshot]
    candidates = known[: config.final.candidates] or [m for m in population.members.values() if m.snapshot]
    if not candidates:
        return {}
    selection = evaluate(
        config, run, candidates, episodes=config.final.selection_episodes, seed=_seed(config, "selection")
    )
    scores = [s["return_mean"] for s in selection]
    chosen = candidates[max(range(len(scores)), key=lambda i: (scores[i], -i))]
    (score,) = evaluate(config, run, [chosen], episodes=config.final.episodes, seed=_seed(config, "final"))
    manifest = Store(run / "members").path(chosen.snapshot or "") / "MANIFEST.json"
    best = {
        "member": chosen.id,
        "snapshot": chosen.snapshot,
        "sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "hyperparameters": chosen.hyperparameters,
        "training_fitness": chosen.fitness,
        "evaluation": score,
        "selection": [{k: s[k] for k in ("member", "return_mean", "ci95", "episodes")} for s in selection],
    }
    write_atomically(run / "best.json", json.dumps(best, indent=2))
    return best


def write(run: Path, results: Sequence[dict[str, Any]]) -> Path:
    """Keep results of an evaluation in the run's `eval/`; returns the file."""
    folder = run / "eval"
    folder.mkdir(exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{len(list(folder.iterdir()))}.json"
    write_atomically(path, json.dumps(list(results), indent=2))
    return path


def _statistics(returns: Sequence[float]) -> dict[str, Any]:
    """Mean, spread and Student's 95 % interval of the mean."""
    from scipy.stats import t

    mean, n = float(np.mean(returns)), len(returns)
    std = float(np.std(returns, ddof=1)) if n > 1 else 0.0
    half = float(t.ppf(0.975, n - 1)) * std / math.sqrt(n) if n > 1 else math.inf
    return {
        "return_mean": mean,
        "return_std": std,
        "ci95": [mean - half, mean + half] if n > 1 else None,
        "return_min": min(returns),
        "return_max": max(returns),
    }


def _seed(config: Config, purpose: str) -> int:
    digest = hashlib.sha256(f"{config.seed}/{purpose}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
