"""Best member of a run: best.json, the snapshot that it names, and stored evaluations."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbtrl.core.scores import BestMember
from pbtrl.errors import DamagedError, NewerError, RunError, SnapshotError
from pbtrl.storage.json_files import read_json, read_json_list
from pbtrl.storage.parsing import parse_best
from pbtrl.storage.references import cli_reference
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_status import check_member
from pbtrl.storage.snapshot_store import MANIFEST
from pbtrl.system.files import write_atomically
from pbtrl.system.strict_json import to_json

if TYPE_CHECKING:
    from pbtrl.config.schema import Config


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


def without_best(run: RunDirectory, config: Config | None = None) -> str:
    """Say what to do about a finished run that has lost best.json."""
    return f"{run.best_file} is missing: `pbtrl resume {cli_reference(run, config)}` chooses again"


def read_best(run: RunDirectory) -> BestMember | None:
    """Read best.json; None before the final choice.

    Raises:
        DamagedError: best.json cannot be read.
    """
    try:
        content = read_json(run.best_file)
    except FileNotFoundError:
        return None
    try:
        return parse_best(content)
    except ValueError as error:
        raise DamagedError(f"{run.best_file} cannot be read: {error}") from error


def best_snapshot(run: RunDirectory) -> str | None:
    """Name of the snapshot in best.json; None before there is one.

    Raises:
        DamagedError: best.json cannot be read, or the snapshot has changed since.
    """
    if (best := read_best(run)) is None:
        return None
    if snapshot_digest(run, best.snapshot) != best.sha256:
        raise SnapshotError(f"snapshot {best.snapshot} is not the one that {run.best_file} names")
    return best.snapshot


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
