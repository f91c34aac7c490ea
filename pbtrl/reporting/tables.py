"""Tables that `status`, `list`, `eval`, `lineage` and `replay` print.

With `--json` the commands print the inputs of these functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pbtrl.core.member import UNHEALTHY, table_order
from pbtrl.core.records import describe_change
from pbtrl.reporting.formatting import (
    format_bytes,
    format_changes,
    format_count,
    format_duration,
    format_evaluation,
    format_fitness,
    format_rank_fitness,
    format_share,
    format_value,
)
from pbtrl.reporting.labels import labeled
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.run_state import is_training

Json = Mapping[str, Any]
MOST_MEMBERS = 40  # rows of a status table
HELD_OUT = "on held-out data"
REUSED = "on the data that it was chosen with"  # the score of a trainable without `test`


def scored_on(unit: str, *, held_out: bool) -> str:
    """Return what a final score is of, in words."""
    return "on fresh seeds" if unit == "env_steps" else HELD_OUT if held_out else REUSED


REPLAY_ROWS = {
    "original": "original best member",
    "schedule": "replayed schedule",
    "final": "final values held constant",
    "constant": "best constants",
}
"""Rows of the table that `replay` prints."""


def status(result: Json, reference: str, reason: str = "") -> str:
    """Format a run and its members, best first.

    Args:
        result: result of `run_status.status`.
        reference: name of the run on the command line.
        reason: reason of the run's end, in words.
    """
    state = result["state"]
    head = f"{progress(result)}, {format_bytes(result['bytes'])} in {result['path']}"
    if is_training(state):
        head += f", last activity {format_duration(result['heartbeat_age'])} ago"
    table = members(result)
    lines = [head, *filter(None, [result.get("origin")]), aligned(table.titles, table.rows, table.left), *table.notes]
    lines += changes(result.get("changes", ()))
    if state in ("crashed", "stopped"):
        lines.append(f"{reason + '; ' if reason else ''}continue with: pbtrl resume {reference}")
    return "\n".join(lines)


def changes(made: Sequence[Json]) -> list[str]:
    """Format the changes by `pbtrl set`, one line each."""
    return [
        f"after {format_duration(change['elapsed'])} changed by pbtrl set: "
        + describe_change(change["settings"], change["retired"])
        for change in made
    ]


def progress(result: Json) -> str:
    """Format the state of a run and its share of the budget, on one line."""
    done, budget = format_count(result["env_steps"]), format_count(result["steps_budget"])
    unit = result["unit"].replace("_", " ")
    return f"{result['name']}: {result['state']}, {done} of {budget} {unit} ({_share(result)})"


@dataclass(frozen=True)
class Table:
    """Table of texts.

    Attributes:
        left: columns that are aligned to the left.
        marked: cells (row, column) to emphasize.
        notes: lines below it.
    """

    titles: list[str]
    rows: list[list[str]]
    left: Sequence[int] = (0,)
    marked: frozenset[tuple[int, int]] = frozenset()
    notes: Sequence[str] = ()


def members(result: Json) -> Table:
    """Members of a run, best first, broken ones last; values at a bound are marked.

    `result` is the result of `run_status.status`.
    """
    names = list(dict.fromkeys(name for m in result["members"] for name in m["hyperparameters"]))
    order = list(result["roles"])
    ordered = sorted(
        result["members"],
        key=lambda m: (
            order.index(m["role"]) if m["role"] in order else 0,
            *table_order(_rank_fitness(m), healthy=m["state"] not in UNHEALTHY),
        ),
    )
    extra = ordered[MOST_MEMBERS:]
    training = [m for m in extra if m["state"] == "train"] if result["retired"] else []  # a few of many trials
    hidden = len(extra) - len(training)
    ordered = [*ordered[:MOST_MEMBERS], *training]
    skipped = ["skipped"] if any(m["skipped_updates"] for m in ordered) else []
    roles = ["role"] if result["roles"] else []
    broken = any(m["state"] in UNHEALTHY for m in ordered)
    states = ["state"] if result["retired"] or result["roles"] or broken else []
    rows = [
        [m["id"], *[m["role"] for _ in roles], format_rank_fitness(_rank_fitness(m), before_copy=_before_copy(m))]
        + [str(max(0, m["generation"])), format_count(m["env_steps"])]
        + [format_count(m["skipped_updates"]) for _ in skipped]
        + [" ".join([format_value(m["hyperparameters"].get(n, "-")), *m["at_bound"].get(n, "").split()]) for n in names]
        + [_state(m) for _ in states]
        for m in ordered
    ]
    titles = ["member", *roles, result["metric"], "gen", "steps", *skipped, *names, *states]
    left = [0, *(titles.index(title) for title in ("role", "state") if title in titles)]
    first = len(titles) - len(states) - len(names)
    marked = {(i, first + names.index(name)) for i, m in enumerate(ordered) for name in m["at_bound"]}
    notes = [f"and {hidden} members below them; all are in the output of --json"] if hidden else []
    if retired := sum(m["state"] == "retired" for m in result["members"]):
        notes.append(f"retired: the strategy gives no further assignment, to {retired} members")
    if any(map(_before_copy, ordered)):
        before = f"{result['metric']} from before a copy"
        notes.append(f"in parentheses: {before}, which ranks the member until it has a new one")
    if skipped:
        notes.append("skipped: updates skipped because their gradient was not finite")
    if marked:
        notes.append("min, max: the value is at a bound of its hyperparameter")
    return Table(titles, rows, left, frozenset(marked), notes)


def listing(result: Sequence[Json]) -> str:
    """Format all runs and sweeps, newest last; `result` is the result of `run_status.listing`."""
    rows = []
    for run in result:
        if "error" in run:
            rows.append([run["name"], run["state"], "-", "-", "-", "-", "-", run["error"]])
            continue
        if "runs" in run:  # a sweep
            done, count = run["runs"].get("finished", 0), sum(run["runs"].values())
            age, size = format_duration(run["heartbeat_age"]), format_bytes(run["bytes"])
            name, steps = f"{run['name']}/", f"{done} of {count} runs"
            rows.append([name, run["state"], "-", "-", steps, f"{100 * done / count:.0f} %", age, size])
            continue
        best = run["best"] or {"member": "", "fitness": None}
        steps = f"{format_count(run['env_steps'])} of {format_count(run['steps_budget'])}"
        age = format_duration(run["heartbeat_age"])
        rows.append(
            [
                run["name"],
                run["state"],
                format_fitness(best["fitness"]),
                best["member"],
                steps,
                _share(run),
                age,
                format_bytes(run["bytes"]),
            ]
        )
    return aligned(["name", "state", "best", "member", "steps", "", "age", "size"], rows, left=(0, 1, 7))


def evaluations(result: Sequence[Json], run: RunDirectory) -> str:
    """Format evaluations, one line per member, as stored in the run's `eval/`, and the videos in it."""
    metric = result[0].get("metric", "return")
    if result[0]["agent"] is None:  # outside RL
        scores = [[e["member"], e["snapshot"], format_fitness(e["return_mean"])] for e in result]
        how = f"{HELD_OUT if result[0]['held_out'] else 'evaluated again'}, seed {result[0]['seed']}"
        return "\n".join([aligned(["member", "snapshot", metric], scores), how])
    rows = []
    for e in result:
        interval = " to ".join(map(format_fitness, e["ci95"])) if e["ci95"] else "-"
        numbers = [format_fitness(e[f"return_{name}"]) for name in ("mean", "std", "min", "max")]
        rows.append(
            [
                e["member"],
                e["snapshot"],
                str(e["episodes"]),
                *numbers[:2],
                interval,
                *numbers[2:],
                f"{e['length_mean']:.0f}",
            ]
        )
    titles = ["member", "snapshot", "episodes", metric, "std", "95 % interval", "min", "max", "length"]
    policy = "the policy's mode" if result[0]["deterministic"] else "sampled actions"
    protocol = f", {result[0]['protocol']}" if result[0]["protocol"] else ""
    raw = ", raw returns" if metric == "return" else ""
    played = f"fresh episodes, seed {result[0]['seed']}{raw}, {policy}{protocol}"
    remarks = [f"{e['member']}: {text}" for e in result if (text := episode_remarks(e))]
    videos = [_video(e["video"], run) for e in result if e.get("video")]
    return "\n".join([aligned(titles, rows), played, *remarks, *videos])


def _video(video: Json, run: RunDirectory) -> str:
    """Format where a video is, and its episodes."""
    episodes = [f"{format_fitness(r)} in {n:,} steps" for r, n in zip(video["returns"], video["lengths"], strict=True)]
    hint = '; for MP4: pip install "pbtrl[video]"' if video["file"].endswith(".gif") else ""
    return f"{run.path / video['file']}: return {', '.join(episodes)}{hint}"


def episode_remarks(evaluation: Json) -> str:
    """Format how many of an evaluation's episodes were cut, and why, and how many do not count; empty if none."""
    episodes, remarks = evaluation["episodes"], []
    cut, late = evaluation.get("truncated"), evaluation.get("timed_out")
    if cut or late:
        limit = evaluation.get("max_steps")
        where = " or ".join([*([f"at {limit:,} steps"] if limit else []), *(["by the wall clock"] if late else [])])
        remarks.append(f"{cut} of {episodes} episodes cut {where}")
    if absent := evaluation.get("unmeasured"):
        number = evaluation.get("metric", "number of fitness.metric")
        remarks.append(f"{absent} of {episodes} episodes have no {number} and do not count")
    return "; ".join(remarks)


def copies(result: Sequence[Json], header: RunHeader) -> str:
    """Format all copies; `result` is the result of `lineage.copies`."""
    if not result:
        return "no copies yet"
    table = copies_table(result, header)
    return aligned(table.titles, table.rows, table.left)


def copies_table(result: Sequence[Json], header: RunHeader) -> Table:
    """All copies, oldest first."""
    rows = []
    for c in result:
        fitness = f"{format_fitness(c['fitness_before'])} -> {format_fitness(c['fitness_after'])}"
        changes = "  ".join(format_changes(c["hyperparameters_before"], c["hyperparameters_after"]))
        rows.append([format_duration(c["time"]), format_count(c["env_steps"]), _copy(c), fitness, changes])
    return Table(["time", header.steps, "copy", header.metric, "hyperparameters"], rows, left=(2, 4))


def _copy(copy: Json) -> str:
    if copy["kind"] == "evaluation":
        return f"{copy['member']} {format_evaluation(copy['donor'], copy['hparams_donor'])}"
    others = f", hyperparameters of {copy['hparams_donor']}" if copy["hparams_donor"] else ""
    promotion = " (promotion)" if copy["kind"] == "promotion" else ""
    return f"{copy['member']} <- {copy['donor']}{others}{promotion}"


def replay(result: Json) -> str:
    """Format the comparison of a replayed schedule with constants; `result` is the content of replay.json."""
    rl = result["unit"] == "env_steps"
    rows, notes = [], []
    for row in result["rows"]:
        interval = " to ".join(map(format_fitness, row["ci95"])) if row["ci95"] else "-"
        label = REPLAY_ROWS[row["name"]]
        mean, low, high = (format_fitness(row[f"return_{name}"]) for name in ("mean", "min", "max"))
        rows.append([label, mean, interval, low, high, str(row["seeds"]), f"{row['steps']:,}"])
        if ended := ", ".join(f"{m} at {step:,}" for m, step in row["incomplete"].items()):
            notes.append(f"{label}: ended early and scored there: {ended}")
        if row["unscored"]:
            notes.append(f"{label}: no finite score of {', '.join(row['unscored'])}")
        notes += [f"{label}: {e['member']}: {text}" for e in row["members"] if (text := episode_remarks(e))]
    unit, one = result["unit"].replace("_", " "), result["rows"][0]["members"][0]
    measure, episodes = one.get("metric", "return" if rl else "fitness"), one["episodes"]
    measure = "mean return" if measure == "return" else measure
    titles = ["", measure, "95 % interval", "min", "max", "seeds", unit]
    played = f"the same {episodes} fresh episodes for every member, raw returns; " if rl else ""
    source = (
        f"those of {result['constants_of']}, the fittest member whose hyperparameters never changed"
        if result["constants_of"]
        else "the first values of the schedule, because the hyperparameters of every member changed"
    )
    about = {
        "schedule": f"of {result['snapshot']}: {len(result['schedule'])} settings one after another",
        "final": _settings(result["schedule"][-1]),
        "constants": f"{_settings(result['constants'])}\n{source}",
    }
    return "\n".join(
        [aligned(titles, rows), f"{played}mean, interval, min and max over the seeds", *notes, labeled(about)]
    )


def _settings(values: Json) -> str:
    return ", ".join(f"{name} {format_value(value)}" for name, value in values.items() if name != "at")


def aligned(titles: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Align columns of text under titles, to the right except the columns in `left`."""
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(len(titles))]
    lines = []
    for row in (titles, *rows):
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _state(member: Json) -> str:
    if member["state"] == "train" and (evaluates := member["evaluates"]):
        return format_evaluation(evaluates["member"], evaluates["under"])
    return str(member["state"])


def _before_copy(member: Json) -> bool:
    return member["fitness"] is None and member["fitness_before_copy"] is not None


def _rank_fitness(member: Json) -> float | None:
    number: float | None = member["fitness_before_copy"] if _before_copy(member) else member["fitness"]
    return number


def _share(result: Json) -> str:
    return format_share(result["env_steps"], result["steps_budget"])
