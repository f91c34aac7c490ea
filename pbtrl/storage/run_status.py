"""A run's journal folded into a population, and its status as JSON."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pbtrl.core.population import Member, Population
from pbtrl.errors import DamagedError, RunError
from pbtrl.storage.journal import Line, read_journal
from pbtrl.storage.run_header import RunHeader, read_header
from pbtrl.storage.run_lookup import _begun, run_directories
from pbtrl.storage.run_state import heartbeat, state


def load_run(run: Path) -> tuple[RunHeader, list[Line], Population]:
    """A run's journal, and the population that follows from it.

    Raises:
        DamagedError: the journal is missing, or does not fold.
    """
    try:
        with corruption_as_error(run):
            header, lines = read_header(read_journal(run / "journal.jsonl"))
            return header, lines, header.population().replay(lines)
    except FileNotFoundError:
        raise DamagedError(f"{run} has no journal: the run never began") from None


@contextlib.contextmanager
def corruption_as_error(run: Path) -> Iterator[None]:
    """Whoever makes something of a run's journal finds in it what pbtrl wrote; else DamagedError."""
    try:
        yield
    except RunError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise DamagedError(f"{run / 'journal.jsonl'} does not fold: {type(error).__name__}: {error}") from error


def status(run: Path) -> dict[str, Any]:
    """Where a run and its members stand, as JSON; steps are in `unit`, ages in seconds, sizes in bytes.

    Raises:
        DamagedError: the journal is missing or damaged.
    """
    header, _, population = load_run(run)
    return summarize(run, header, population)


def summarize(run: Path, header: RunHeader, population: Population) -> dict[str, Any]:
    """`status`, for who has folded the journal."""
    best = population.best
    return {
        "name": run.name,
        "path": str(run),
        "state": state(run),
        "unit": header.unit,
        "env_steps": population.step,
        "frames": population.step * header.frames_per_step,
        "steps_budget": header.budget,
        "generation": max((m.generation for m in population.members.values()), default=-1),
        "best": best and {"member": best.id, "fitness": best.fitness},
        "heartbeat_age": heartbeat(run),
        "bytes": _bytes(run),
        "members": [_member(m, header) for m in population.members.values()],
    }


def listing(root: Path) -> list[dict[str, Any]]:
    """The status of every run, newest last; one that cannot be read has an `error` and little else."""
    found = []
    for run in sorted(run_directories(root), key=_begun):
        try:
            with corruption_as_error(run):
                found.append(status(run))
        except RunError as error:
            found.append({"name": run.name, "path": str(run), "state": state(run), "error": str(error)})
    return found


def _member(member: Member, header: RunHeader) -> dict[str, Any]:
    return {
        "id": member.id,
        "env_steps": member.step,
        "frames": member.step * header.frames_per_step,
        "fitness": member.fitness,
        "fitness_before_copy": member.placeholder,
        "generation": member.generation,
        "skipped_updates": member.skipped_updates,
        "parent": member.pending.parent if member.pending else member.parent,
        "hyperparameters": member.hyperparameters,
        "at_bound": header.at_bound(member.hyperparameters),
    }


def _bytes(run: Path) -> int:
    found = (Path(folder, name) for folder, _, names in os.walk(run) for name in names)
    return sum(_length(path) for path in found)


def _length(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:  # retention was faster
        return 0
