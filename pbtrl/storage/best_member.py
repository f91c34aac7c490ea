"""Best member of a run: best.json, the snapshot that it names, and stored evaluations."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbtrl.errors import DamagedError, NewerError, RunError, SnapshotError
from pbtrl.storage.json_files import read_json, read_json_list
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_status import check_member
from pbtrl.storage.snapshot_store import MANIFEST
from pbtrl.system.files import write_atomically
from pbtrl.system.strict_json import to_json


def snapshots_to_evaluate(run: RunDirectory, member: str) -> list[str]:
    """List the snapshots to evaluate for a member's id, for `all` members, or for the `best` one in best.json.

    Raises:
        RunError: there is no such member, or no snapshot of it.
    """
    _, _, population = run.load()
    store = run.snapshots
    newest = {
        m.id: m.snapshot
        for m in population.members.values()
        if m.snapshot and (not m.retired or store.path(m.snapshot).exists())
    }
    if member not in ("best", "all"):
        check_member(run, population, member)
    if not newest:
        raise RunError(f"{run} has no snapshot yet: no member has finished a slice")
    if member == "best":
        if (best := best_snapshot(run)) is None:
            raise RunError(f"{run} has no best member yet: try --member all, or one of {', '.join(newest)}")
        return [best]
    if not (chosen := [name for m, name in newest.items() if member in ("all", m)]):
        why = (
            "is retired, and its snapshot was deleted" if population.members[member].retired else "has no snapshot yet"
        )
        raise RunError(f"{run}: {member} {why}; there are snapshots of {', '.join(newest)}")
    return chosen


def best_snapshot(run: RunDirectory) -> str | None:
    """Name of the snapshot in best.json; None before there is one.

    Raises:
        DamagedError: best.json cannot be read, or the snapshot has changed since.
    """
    try:
        best = read_json(run.best_file)
        name, sha256 = str(best["snapshot"]), str(best["sha256"])
    except FileNotFoundError:
        return None
    except KeyError as error:
        raise DamagedError(f"{run.best_file} cannot be read: {error}") from None
    if snapshot_digest(run, name) != sha256:
        raise SnapshotError(f"snapshot {name} is not the one that {run.best_file} names")
    return name


def referenced_snapshots(run: RunDirectory) -> list[str]:
    """Snapshots that retention must keep: the best one of an earlier session."""
    try:
        best = best_snapshot(run)
    except NewerError:
        raise
    except DamagedError:
        return []
    return [best] if best else []


def snapshot_digest(run: RunDirectory, snapshot: str) -> str:
    """SHA-256 of a snapshot's manifest, which contains the hashes of its files.

    Raises:
        SnapshotError: there is no such snapshot.
    """
    try:
        return hashlib.sha256((run.snapshots.path(snapshot) / MANIFEST).read_bytes()).hexdigest()
    except (OSError, ValueError):
        raise SnapshotError(f"snapshot {snapshot} is missing or incomplete ({run})") from None


@dataclass(frozen=True)
class FinalScores:
    """Scores of the final choice; None where a score is not finite.

    Attributes:
        member: the chosen member.
        score: its mean on fresh seeds.
        interval: 95 % interval of the score over episodes; None without a score or an interval.
        means: mean of each candidate on selection seeds, and of the chosen one on fresh seeds.
    """

    member: str
    score: float | None
    interval: tuple[float, float] | None
    means: Mapping[str, float | None]


def read_final_scores(run: RunDirectory) -> FinalScores | None:
    """Read the scores in best.json; None before the final choice.

    Raises:
        DamagedError: best.json cannot be read.
    """
    if not (best := run.best()):
        return None
    try:
        evaluation = best["evaluation"]
        rows = (*best.get("selection", ()), evaluation)
        means = {str(row["member"]): _finite_or_none(row["return_mean"]) for row in rows}
        score, interval = _finite_or_none(evaluation["return_mean"]), None
        if score is not None and (ends := evaluation.get("ci95")):
            low, high = map(_finite_or_none, ends)
            interval = None if low is None or high is None else (low, high)
        return FinalScores(str(best["member"]), score, interval, means)
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise DamagedError(f"{run.best_file} cannot be read: {type(error).__name__}: {error}") from error


def _finite_or_none(value: float | None) -> float | None:
    """Replace a number that is not finite by None; raise TypeError for what is no number."""
    return None if value is None or not math.isfinite(value) else float(value)


def stored_evaluation(run: RunDirectory, snapshot: str) -> dict[str, Any] | None:
    """Return the score of a snapshot in best.json, or else its newest one in `eval/`; None if there is none."""
    best = run.best()
    if best.get("snapshot") == snapshot and isinstance(best.get("evaluation"), dict):
        return dict(best["evaluation"])
    for path in sorted(run.evaluations.glob("*.json"), reverse=True):
        with contextlib.suppress(OSError, DamagedError):
            for result in read_json_list(path):
                if result.get("snapshot") == snapshot:
                    return result
    return None


def save_evaluation(run: RunDirectory, results: Sequence[dict[str, Any]]) -> Path:
    """Write results of an evaluation to the run's `eval/`; returns the file."""
    folder = run.evaluations
    folder.mkdir(exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{len(list(folder.iterdir()))}.json"
    write_atomically(path, to_json(list(results), indent=2))
    return path
