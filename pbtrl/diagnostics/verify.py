"""Verification of a run directory: every snapshot against its manifest and report, and the journal's consistency.

It runs no code that the directory names, and changes nothing except in `repair`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pbtrl.core.naming import INITIAL
from pbtrl.core.population import Population
from pbtrl.errors import ConfigError, DamagedError, DiskFullError, NewerError, RunError, SnapshotError
from pbtrl.storage import journal
from pbtrl.storage.best_member import best_snapshot, snapshot_digest
from pbtrl.storage.references import cli_reference
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.run_info import read_run_info
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.storage.stored_config import load_stored_config

Kind = Literal["damaged", "newer", "missing", "orphan", "leftover", "torn"]
ERRORS = ("damaged", "newer", "missing")


@dataclass(frozen=True)
class Finding:
    """Problem in a run directory.

    Attributes:
        kind: `damaged`, `newer` (only a newer pbtrl can read it) and `missing` are errors; `orphan` is a snapshot
            without a report, `leftover` a temporary file of a killed process, `torn` an incomplete last line of the
            journal.
        where: file or directory, relative to the run.
        text: description.
    """

    kind: Kind
    where: str
    text: str


def examine(run: RunDirectory) -> dict[str, Any]:
    """Verify a run directory; returns the result as JSON values.

    Keys: run, ok (no errors), digest (of the canonical journal; null if unreadable), lines, snapshots (number of hashed
    snapshots), findings (kind, where, text).

    While the run is in use, files may be half written. Then only errors that a second examination confirms are
    reported.
    """
    result = _examined(run)
    if result["findings"] and run.holder() is not None:
        again = [] if result["ok"] else _examined(run)["findings"]
        result["findings"] = [f for f in result["findings"] if f["kind"] in ERRORS and f in again]
        result["ok"] = not result["findings"]
    return result


def _examined(run: RunDirectory) -> dict[str, Any]:
    findings: list[Finding] = []
    lines: list[journal.Line] = []
    population: Population | None = None
    try:
        header, _, population = run.load()
        lines = journal.read_lines(run.journal_path)  # not records: snapshots and the digest have all keys of a line
        findings += _initial(run, header)
    except DamagedError as error:
        findings.append(_unreadable(run.journal_path.name, error))
    store = run.snapshots
    reports = {line["assignment"]: line for line in lines if line["kind"] == "report"}
    voided = [line["snapshot"] for line in lines if line["kind"] == "void"]  # a remade snapshot has another report
    reports |= {name: {"step": reports[name]["step"]} for name in voided if name in reports}
    names = [name for member in _folders(run.members) for name in store.names(member)]
    for name in names:
        findings += _snapshot(run, store, name, reports, population)
    if population:
        findings += _missing(run, store, population)
    findings += _small_files(run)
    findings += [Finding("leftover", run.relative(p), "left behind by a killed process") for p in run.leftovers()]
    if journal.is_torn(run.journal_path):
        findings.append(Finding("torn", run.journal_path.name, "the last line is incomplete and does not count"))
    return {
        "run": str(run),
        "ok": not any(f.kind in ERRORS for f in findings),
        "digest": journal.digest(lines) if lines else None,
        "lines": len(lines),
        "snapshots": len(names),
        "findings": [asdict(f) for f in findings],
    }


def repair(run: RunDirectory) -> list[str]:
    """Move damaged and orphaned snapshots to quarantine and delete leftovers; returns one line per action.

    `pbtrl resume` makes missing snapshots again if the run needs them.

    Raises:
        RunError: the run is in use, or contains a symbolic link.
    """
    done: list[str] = []
    run.check_links()
    with run.lock():
        store = run.snapshots
        for finding in _examined(run)["findings"]:
            path = run.path / finding["where"]
            match finding["kind"]:
                case "damaged" | "orphan" if path.parent.name == "snapshots":
                    store.quarantine(f"{path.parent.parent.name}/{path.name}")
                    done.append(f"{finding['where']}: moved to quarantine")
                case "torn":
                    journal.Journal(path).close()
                    done.append(f"{finding['where']}: incomplete last line removed")
        done += [f"{run.relative(path)}: deleted" for path in run.delete_leftovers()]
    return done


def text(result: dict[str, Any]) -> str:
    """Format the result of `examine`."""
    lines = [f"{f['kind']:<9} {f['where']}: {f['text']}" for f in result["findings"]]
    counts = f"{result['lines']} journal lines, {result['snapshots']} snapshots hashed"
    verdict = "clean" if not lines else "nothing is lost" if result["ok"] else "damaged"
    return "\n".join([*lines, f"{result['run']}: {verdict} ({counts})"])


def _snapshot(
    run: RunDirectory, store: SnapshotStore, name: str, reports: dict[str, journal.Line], population: Population | None
) -> Iterator[Finding]:
    where = run.relative(store.path(name))
    try:
        _, state = store.load(name)
    except (DamagedError, DiskFullError) as error:
        yield _unreadable(where, error)
        return
    if population is None:
        return
    if name == population.initial:
        return  # what it should be is in the header: see `_initial`
    if name in reports:
        journaled = {k: v for k, v in reports[name].items() if k not in ("kind", "timing")}
        stored = state.get("report")
        if not isinstance(stored, dict) or (
            journal.dumps({k: stored.get(k) for k in journaled}) != journal.dumps(journaled)
        ):
            yield Finding("damaged", where, "its report differs from the one in the journal")
    elif name not in {a.id for a in population.pending}:
        yield Finding("orphan", where, "the journal has no report of it")


def _initial(run: RunDirectory, header: RunHeader) -> Iterator[Finding]:
    """Compare the snapshot that all members began from with the header."""
    if not header.initial:
        return
    where = run.relative(run.snapshots.path(INITIAL))
    try:
        if snapshot_digest(run, INITIAL) != header.initial["sha256"]:
            yield Finding("damaged", where, "it is not the one that the journal's first line names")
    except SnapshotError:
        yield Finding("missing", where, f"members that have not begun cannot begin; it was a copy: {header.origin}")


def _missing(run: RunDirectory, store: SnapshotStore, population: Population) -> Iterator[Finding]:
    """Find missing snapshots among those that the run continues from: each member's newest, and open parents."""
    needed = {m.snapshot for m in population.members.values() if not m.retired} | {a.parent for a in population.pending}
    needed.discard(population.initial)
    for name in sorted(n for n in needed if n):
        if not store.path(name).exists():
            where = run.relative(store.path(name))
            yield Finding(
                "missing",
                where,
                f"the run continues from it; make it again with: pbtrl resume {cli_reference(run)}",
            )


def _small_files(run: RunDirectory) -> Iterator[Finding]:
    try:
        load_stored_config(run, makes_envs=False)
    except (ConfigError, DamagedError) as error:
        yield Finding("damaged", run.resolved_config.name, str(error).splitlines()[0])
    except RunError:  # it names modules, which `verify` does not import
        pass
    for file, reader in ((run.info_file, read_run_info), (run.best_file, best_snapshot)):
        try:
            reader(run)
        except DamagedError as error:
            yield _unreadable(file.name, error)


def _unreadable(where: str, error: DamagedError | DiskFullError) -> Finding:
    return Finding("newer" if isinstance(error, NewerError) else "damaged", where, str(error))


def _folders(members: Path) -> list[str]:
    return sorted(p.name for p in members.iterdir() if p.is_dir()) if members.is_dir() else []
