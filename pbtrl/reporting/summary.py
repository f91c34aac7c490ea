"""Text printed before a run starts and after it ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pbtrl.core.population import Population
from pbtrl.core.records import Record, duration
from pbtrl.core.scores import BestMember
from pbtrl.reporting.formatting import (
    format_count,
    format_duration,
    format_fitness,
    format_value,
)
from pbtrl.reporting.labels import labeled
from pbtrl.reporting.lineage import ancestry, schedule, trained_slices
from pbtrl.reporting.tables import episode_remarks, scored_on
from pbtrl.storage.journal import read_journal
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader, read_header


def opening_text(
    run: RunDirectory,
    header: RunHeader,
    *,
    trains: str,
    agent: str | None,
    workers: str,
    cluster: Sequence[str] = (),
    slices: str | None = None,
    wall_clock: float | None = None,
    resumed: Population | None = None,
    starts: Sequence[str] = (),
    name: str | None = None,
) -> str:
    """Format the lines before a run starts.

    Args:
        run: run directory.
        header: header of the run.
        trains: env and spaces: "ALE/Pong-v5, 4x84x84 -> 6 actions, sticky".
        agent: "impala shallow, 0.6M parameters"; one line per agent in a mixed population; None outside RL.
        workers: "8 members on 2 workers, 16 envs each".
        slices: "48,000 env steps each".
        wall_clock: limit in seconds, or None.
        resumed: population at the end of the previous session, or None.
        starts: snapshot from which each member continues, one line each.
        name: name of the run on the command line; default: the directory's name.
    """
    name = name or run.name
    of_all = "in all" if header.total is None else "planned"  # a search may train for fewer steps, or for more
    budget = f"{format_count(header.horizon)} {header.steps} per member, {format_count(header.budget)} {of_all}"
    if header.frames_per_step > 1:
        budget += f" ({format_count(header.budget * header.frames_per_step)} frames)"
    if wall_clock is not None:
        budget += f", at most {format_duration(wall_clock)}"
    lines = {
        "run": str(run),
        "trains": trains,
        "agent": agent,
        "population": workers,
        "cluster": "\n".join(cluster),
        "budget": budget,
        "slices": slices,
        "start": header.origin,
        "resumed": "\n".join([_left_off(resumed, header), *starts]) if resumed else None,
        "seed": f"{header.seed}; deterministic: {header.deterministic}",
        "watch": f"pbtrl status {name} | pbtrl tb {name}; Ctrl-C saves and stops",
    }
    return labeled({key: text for key, text in lines.items() if text})


def _left_off(population: Population, header: RunHeader) -> str:
    done = f"{format_count(population.step)} of {format_count(header.budget)} {header.steps} are done"
    again = len(population.pending)
    return f"{done}; {again} open slice{'s start' if again > 1 else ' starts'} again" if again else done


def closing_text(best: BestMember, run: RunDirectory, name: str = "last", reference: str = "last") -> str:
    """Format the lines after a run: its result and commands to continue with.

    Args:
        best: result of the final choice.
        run: run directory.
        name: name of the run on the command line.
        reference: name of the run with the options that are needed, for commands that run the run's env.
    """
    header, records = read_header(read_journal(run.journal_path), run.journal_path)
    commands = f"pbtrl tb {name} | pbtrl eval {reference} | pbtrl report {name}"
    return (
        f"{labeled({'run': str(run)})}\n{labeled(outcome_rows(best, header, records))}\n{labeled({'next': commands})}"
    )


def outcome_rows(best: BestMember, header: RunHeader, records: Sequence[Record]) -> dict[str, str]:
    """Texts by label: the best member, its score and schedule, and the run's duration.

    Further rows of one label have a blank one.
    """
    rows = {"best": _best(best, header)}
    points = schedule(ancestry(trained_slices(records), best.snapshot))
    for i, (tuned, values) in enumerate(_changes(points).items()):
        rows["schedule" if i == 0 else " " * i] = f"{tuned} {values}"
    if points and (ends := header.at_bound(points[-1][1])):
        rows["bounds"] = "\n".join(_at_bound(name, points[-1][1][name], end) for name, end in ends.items())
    rows["wall time"] = format_duration(duration(records))
    return rows


def _best(best: BestMember, header: RunHeader) -> str:
    """Format `m03 (m03/000014): mean return 18.4, 95 % interval 17.9 to 19.0, 30 fresh episodes`."""
    score, measure = best.evaluation, "mean return" if header.is_return else header.metric
    text = f"{best.member} ({best.snapshot}): {measure} {format_fitness(score.return_mean)}"
    if score.ci95:
        text += ", 95 % interval {} to {}".format(*map(format_fitness, score.ci95))
    rl = header.unit == "env_steps"
    text += f", {score.episodes} fresh episodes" if rl else f", {scored_on(header.unit, held_out=score.held_out)}"
    if remarks := episode_remarks(vars(score)):
        text += f"; {remarks}"
    return text


def _at_bound(name: str, number: object, end: str) -> str:
    """Format a warning that the best lineage ended at a bound."""
    return f"{name} ends at {format_value(number)}, the {end}imum that its bounds allow; they may be too narrow"


def _changes(points: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[str, str]:
    """Format the values of each hyperparameter over the steps trained; of many values the middle ones are left out."""
    changes = {}
    for name in points[0][1] if points else ():
        moves = [(step, values[name]) for step, values in points if name in values]
        moves = [m for i, m in enumerate(moves) if i == 0 or moves[i - 1][1] != m[1]]
        texts = [format_value(x) if step == 0 else f"{format_value(x)} from {format_count(step)}" for step, x in moves]
        if len(texts) > 4:
            texts = [*texts[:2], f"({len(texts) - 3} more)", texts[-1]]
        changes[name] = " -> ".join(texts)
    return changes
