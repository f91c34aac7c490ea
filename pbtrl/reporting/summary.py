"""Text before a run starts and after it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pbtrl.core.population import Population
from pbtrl.reporting.formatting import (
    format_count,
    format_duration,
    format_fitness,
    format_value,
)
from pbtrl.reporting.labels import labeled
from pbtrl.reporting.lineage import ancestry, schedule, trained_slices
from pbtrl.reporting.tables import truncation
from pbtrl.storage.journal import Line, read_journal
from pbtrl.storage.run_header import RunHeader, read_header


def opening_text(
    run: Path,
    header: RunHeader,
    *,
    trains: str,
    agent: str | None,
    workers: str,
    slices: str | None = None,
    wall_clock: float | None = None,
    resumed: Population | None = None,
    found: Sequence[str] = (),
    name: str | None = None,
) -> str:
    """The lines before a run starts.

    Args:
        run: its directory.
        header: of the run.
        trains: environment and spaces: "ALE/Pong-v5, 4x84x84 -> 6 actions, sticky".
        agent: "impala shallow, 0.6M parameters", in a mix a line for each; None outside RL.
        workers: "8 members on 2 workers, 16 envs each".
        slices: "48,000 env steps each".
        wall_clock: seconds, or None.
        resumed: where an earlier sitting left off.
        found: what there is of each member to go on from, a line each.
        name: what the run is called on the command line; that of its directory unless given.
    """
    name = name or run.name
    budget = f"{format_count(header.horizon)} {header.steps} per member, {format_count(header.budget)} in all"
    if header.frames_per_step > 1:
        budget += f" ({format_count(header.budget * header.frames_per_step)} frames)"
    if wall_clock is not None:
        budget += f", at most {format_duration(wall_clock)}"
    lines = {
        "run": str(run),
        "trains": trains,
        "agent": agent,
        "population": workers,
        "budget": budget,
        "slices": slices,
        "resumed": "\n".join([_left_off(resumed, header), *found]) if resumed else None,
        "seed": f"{header.seed}; deterministic: {header.deterministic}",
        "watch": f"pbtrl status {name} | pbtrl tb {name}; Ctrl-C saves and stops",
    }
    return labeled({key: text for key, text in lines.items() if text})


def _left_off(population: Population, header: RunHeader) -> str:
    done = f"{format_count(population.step)} of {format_count(header.budget)} {header.steps} are done"
    again = len(population.pending)
    return (
        f"{done}; {again} slice{'s' if again > 1 else ''} under way begin{'' if again > 1 else 's'} again"
        if again
        else done
    )


def closing_text(best: Mapping[str, Any], run: Path, name: str = "last", trusting: str = "last") -> str:
    """The lines after a run: what was found and what to do next.

    Args:
        best: the content of best.json: `member`, `snapshot` and `evaluation` with `return_mean`, `ci95` (low,
            high) and `episodes`.
        run: the run directory.
        name: what the run is called on the command line.
        trusting: the same for commands that run its env.
    """
    header, lines = read_header(read_journal(run / "journal.jsonl"))
    commands = f"pbtrl tb {name} | pbtrl eval {trusting} | pbtrl report {name}"
    return f"{labeled({'run': str(run)})}\n{outcome_text(best, header, lines)}\n{labeled({'next': commands})}"


def outcome_text(best: Mapping[str, Any], header: RunHeader, lines: Sequence[Line]) -> str:
    """The best member, its score, the schedule that made it, and how long the run took; `best` as in `summary`."""
    elapsed = max((line["timing"]["elapsed"] for line in lines if "elapsed" in line.get("timing", {})), default=0.0)
    told = {"best": _best(best, "mean return" if header.unit == "env_steps" else "fitness")}
    points = schedule(ancestry(trained_slices(lines), best.get("snapshot")))
    for i, (tuned, values) in enumerate(_changes(points).items()):
        told["schedule" if i == 0 else " " * i] = f"{tuned} {values}"
    if points and (ends := header.at_bound(points[-1][1])):
        told["bounds"] = "\n".join(_at_bound(name, points[-1][1][name], end) for name, end in ends.items())
    told["wall time"] = format_duration(elapsed)
    return labeled(told)


def _best(best: Mapping[str, Any], measure: str) -> str:
    """`m03 (m03/000014): mean return 18.4, 95 % interval 17.9 to 19.0, 30 fresh episodes`."""
    evaluation = best.get("evaluation") or {}
    text = f"{best['member']} ({best.get('snapshot', '?')})"
    if "return_mean" in evaluation:
        text += f": {measure} {format_fitness(evaluation['return_mean'])}"
    if evaluation.get("ci95"):
        low, high = evaluation["ci95"]
        text += f", 95 % interval {format_fitness(low)} to {format_fitness(high)}"
    if "episodes" in evaluation:
        text += f", {evaluation['episodes']} fresh episodes"
    if cut := truncation(evaluation):
        text += f"; {cut}"
    return text


def _at_bound(name: str, number: object, end: str) -> str:
    """A warning that the best lineage might have gone further."""
    return f"{name} ends at {format_value(number)}, the {end}imum that its bounds allow: they may be too narrow"


def _changes(points: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, str]:
    """Per hyperparameter its values over the steps trained, middle ones left out where there are many."""
    found = {}
    for name in points[0][1] if points else ():
        moves = [(step, values[name]) for step, values in points if name in values]
        moves = [m for i, m in enumerate(moves) if i == 0 or moves[i - 1][1] != m[1]]
        texts = [format_value(x) if step == 0 else f"{format_value(x)} from {format_count(step)}" for step, x in moves]
        if len(texts) > 4:
            texts = [*texts[:2], f"({len(texts) - 3} more)", texts[-1]]
        found[name] = " -> ".join(texts)
    return found
