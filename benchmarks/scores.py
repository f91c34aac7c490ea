"""Print the table of scores of a sweep over configs, such as `make scores` trains; it may be unfinished.

    pbtrl sweep cartpole hopper vmpo --unequal --seeds 3 --name scores
    python benchmarks/scores.py runs/scores

A score is the mean return of the chosen member's fresh episodes, with a 95 % interval; `deterministic` is the same of
30 episodes in which it takes the most likely actions. Such an evaluation is made once, and kept in the run's `eval/`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import pbtrl
from pbtrl.reporting.formatting import format_count, format_fitness
from pbtrl.storage.json_files import read_json, read_json_list
from pbtrl.training.sweep import plan

HEADER = ("config", "seed", "score", "deterministic", "trained", "minutes", "machine", "commit", "config's hash")


def row(result: dict[str, Any]) -> list[str]:
    """Describe a run; only its state, unless it is finished."""
    config = result["arm"].removesuffix(".yaml")
    if result["state"] != "finished":
        return [config, str(result["seed"]), result["state"], *[""] * (len(HEADER) - 3)]
    run = pbtrl.load_run(result["path"])
    info, hashed = read_json(run.path / "run.json"), (run.path / "config.resolved.yaml").read_bytes()
    return [
        config,
        str(result["seed"]),
        score(run.best["evaluation"] if run.best else {}),
        score(deterministic(run)) if run.config.env else "",
        f"{run.config.population.size} x {format_count(result['steps'] / len(run.members))} steps",
        f"{result['seconds'] / 60:.1f}",
        info["versions"]["processor"],
        (info["git"] or "")[:7],
        hashlib.sha256(hashed).hexdigest()[:8],
    ]


def deterministic(run: pbtrl.Run) -> dict[str, Any]:
    """Return the evaluation of the best member's most likely actions."""
    for path in sorted((run.path / "eval").glob("*.json")):
        for found in read_json_list(path):
            if found["deterministic"] and run.best and found["snapshot"] == run.best["snapshot"]:
                return found
    result = run.evaluate(deterministic=True)
    assert isinstance(result, dict)
    return result


def score(evaluation: dict[str, Any]) -> str:
    """Format a mean with its interval, which a single evaluation does not have."""
    mean, interval = format_fitness(evaluation["return_mean"]), evaluation["ci95"]
    return f"{mean} [{', '.join(map(format_fitness, interval))}]" if interval else mean


def main() -> None:
    """Print a Markdown table."""
    folder = Path(sys.argv[1])
    rows = [row(result) for result in plan([], root=folder.parent, name=folder.name).result()["runs"]]
    for cells in (HEADER, ["---"] * len(HEADER), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
