"""Tables and lines that `sweep` prints: the plan, the progress over all runs, and the result.

The inputs are what `--json` prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pbtrl.reporting.formatting import format_duration, format_fitness
from pbtrl.reporting.tables import REUSED, aligned

Json = Mapping[str, Any]
EQUAL = 1.01  # largest ratio of steps that counts as equal compute; rounding to whole blocks stays below it


def plan_table(description: Json) -> str:
    """Format the arms with what they train and the planned steps of one run."""
    units = list(dict.fromkeys(arm["unit"].replace("_", " ") for arm in description["arms"]))
    rows = [[arm["name"], arm["trains"], f"{arm['steps']:,}"] for arm in description["arms"]]
    return aligned(["arm", "trains", f"{' or '.join(units)} per run"], rows, left=(0, 1))


def plan_text(description: Json, folder: str) -> str:
    """Format the plan: the arms, and the number of runs."""
    seeds = description["seeds"]
    count = len(seeds) * len(description["arms"])
    seeds_text = ", ".join(map(str, seeds))
    runs = f"{count} {'runs' if count > 1 else 'run'} in {folder}, {'seeds' if len(seeds) > 1 else 'seed'} {seeds_text}"
    return f"{plan_table(description)}\n{runs}"


def event_text(event: Json) -> str:
    """Format an event of `Sweep.train`."""
    if event["kind"] == "run":
        left = "" if event["left"] is None else f"; about {format_duration(event['left'])} left for all runs"
        return f"run {event['number']} of {event['of']}: {event['arm']}, seed {event['seed']}{left}"
    if event["state"] != "finished":
        return f"{event['run']}: {event['state']}"
    return f"{event['run']}: score {format_fitness(event['score'])} after {format_duration(event['seconds'])}"


def result_text(result: Json) -> str:
    """Format the result of a sweep: per arm its runs, steps and scores."""
    table = []
    steps = {}
    for arm in result["arms"]:
        runs = [run for run in result["runs"] if run["arm"] == arm["name"]]
        scores = [run["score"] for run in runs if run["score"] is not None]
        done = [run for run in runs if run["state"] == "finished"]
        steps[arm["name"]] = [run["steps"] for run in done]
        table.append([
            arm["name"],
            f"{len(done)} of {len(runs)}",
            format_fitness(sum(scores) / len(scores) if scores else None),
            _range(steps[arm["name"]]),
            "  ".join(format_fitness(run["score"]) for run in runs),
        ])  # fmt: skip
    seeds = ", ".join(map(str, result["seeds"]))
    used = any(run["held_out"] is False for run in result["runs"])
    data = REUSED if used else "on data that nothing was chosen with"
    score = f"score: of the chosen member, {data}; " if any(run["score"] is not None for run in result["runs"]) else ""
    lines = [
        aligned(["arm", "finished", "mean score", "steps per run", "score per seed"], table, left=(0, 4)),
        f"{score}seeds {seeds}",
    ]
    return "\n".join([*lines, *_unequal(steps), *_unfinished(result["runs"])])


def _range(numbers: Sequence[int]) -> str:
    if not numbers:
        return "-"
    return f"{min(numbers):,}" + (f" to {max(numbers):,}" if max(numbers) > min(numbers) else "")


def _unequal(steps: Mapping[str, Sequence[int]]) -> list[str]:
    """Return a remark on arms whose finished runs trained for different numbers of steps."""
    means = {arm: sum(numbers) / len(numbers) for arm, numbers in steps.items() if numbers}
    if not means or max(means.values()) <= EQUAL * min(means.values()):
        return []
    most, least = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    return [f"unequal: {most} trained {means[most] / max(1.0, means[least]):.2f} times as many steps as {least}"]


def _unfinished(runs: Sequence[Json]) -> list[str]:
    texts = [f"{run['run']} ({run['state']})" for run in runs if run["state"] != "finished"]
    return [f"not finished: {', '.join(texts)}"] if texts else []
