"""Status of runs and sweeps as JSON."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pbtrl.core.member import Member
from pbtrl.core.population import Population
from pbtrl.core.records import changes_made
from pbtrl.errors import DamagedError, RunError
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.run_lookup import SWEEP_FILE, run_directories, started_at, sweep_directories
from pbtrl.storage.run_state import heartbeat, modified_at, state
from pbtrl.storage.sweep_directory import sweep_status


def check_member(run: RunDirectory, population: Population, member: str) -> None:
    """Raise RunError unless the run has the member."""
    if not isinstance(member, str) or member not in population.members:
        raise RunError(f"no member {member!r} in {run}: there are {', '.join(population.members)}")


def status(run: RunDirectory) -> dict[str, Any]:
    """Status of a run and its members as JSON; steps are in `unit`, ages in seconds, sizes in bytes.

    Raises:
        DamagedError: the journal is missing or damaged.
    """
    header, records, population = run.load()
    return {**summarize(run, header, population), "changes": changes_made(records)}


def summarize(run: RunDirectory, header: RunHeader, population: Population) -> dict[str, Any]:
    """Compute `status` from a journal that is already loaded."""
    now = state(run)
    best = _best(run, population) if now == "finished" else population.best
    return {
        "name": run.name,
        "path": str(run),
        "state": now,
        "origin": header.origin,
        "unit": header.unit,
        "metric": header.metric,
        "env_steps": population.step,
        "frames": population.step * header.frames_per_step,
        "steps_budget": header.budget,
        "generation": max((m.generation for m in population.members.values()), default=-1),
        "best": best and {"member": best.id, "fitness": best.fitness},
        "heartbeat_age": heartbeat(run),
        "bytes": _bytes(run.path),
        "roles": population.roles,
        "retired": sum(m.retired for m in population.members.values()),
        "members": [_member(m, header) for m in population.members.values()],
    }


def _best(run: RunDirectory, population: Population) -> Member | None:
    """Member that the final choice named; the fittest one if best.json is missing or damaged."""
    try:
        chosen = run.best().get("member")
    except DamagedError:
        chosen = None
    return population.members.get(str(chosen), population.best)


def listing(root: Path) -> list[dict[str, Any]]:
    """Status of every run and of every sweep, newest last.

    An unreadable one has only name, path, state and `error`. A sweep has `runs`, the number of its runs by state.
    """
    rows = [(started_at(run), _listed_run(run)) for run in run_directories(root)]
    rows += [(_sweep_started_at(folder), _listed_sweep(folder)) for folder in sweep_directories(root)]
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def _listed_run(run: RunDirectory) -> dict[str, Any]:
    try:
        return status(run)
    except RunError as error:
        return {"name": run.name, "path": str(run), "state": state(run), "error": str(error)}


def _listed_sweep(folder: Path) -> dict[str, Any]:
    where = {"name": folder.name, "path": str(folder)}
    try:
        age = min(
            (heartbeat(run) for run in run_directories(folder)), default=time.time() - modified_at(folder / SWEEP_FILE)
        )
        return {**where, **sweep_status(folder), "heartbeat_age": age, "bytes": _bytes(folder)}
    except RunError as error:
        return {**where, "state": "damaged", "error": str(error)}


def _sweep_started_at(folder: Path) -> tuple[float, str]:
    begun = max((started_at(run)[0] for run in run_directories(folder)), default=modified_at(folder / SWEEP_FILE))
    return begun, folder.name


def _member(member: Member, header: RunHeader) -> dict[str, Any]:
    return {
        "id": member.id,
        "role": member.role,
        "state": member.state(header.horizon),
        "evaluates": member.evaluates and dict(zip(("member", "under"), member.evaluates, strict=True)),
        "env_steps": member.step,
        "frames": member.step * header.frames_per_step,
        "fitness": member.fitness,
        "fitness_before_copy": member.placeholder if member.before_copy else None,
        "generation": member.generation,
        "skipped_updates": member.skipped_updates,
        "parent": member.pending.parent if member.pending else member.parent,
        "hyperparameters": member.hyperparameters,
        "at_bound": header.at_bound(member.hyperparameters),
    }


def _bytes(top: Path) -> int:
    paths = (Path(folder, name) for folder, _, names in os.walk(top) for name in names)
    return sum(_length(path) for path in paths)


def _length(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # retention may have deleted it
        return 0
