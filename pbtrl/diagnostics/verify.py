"""Checks a run directory: every snapshot against its manifest and its report, the journal against itself.

Nothing here runs code that the directory names, and nothing is changed unless asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pbtrl.core.population import Population
from pbtrl.errors import ConfigError, DamagedError, NewerError, RunError
from pbtrl.storage import journal, run_directory
from pbtrl.storage.best_member import best_snapshot
from pbtrl.storage.references import cli_reference
from pbtrl.storage.run_info import read_run_info
from pbtrl.storage.run_lock import RunLock, holder
from pbtrl.storage.run_status import load_run
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.storage.stored_config import load_stored_config

Kind = Literal["damaged", "newer", "missing", "orphan", "leftover", "torn"]
ERRORS = ("damaged", "newer", "missing")


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        kind: `damaged`, `newer` (only a newer pbtrl can read it) or `missing`, which are errors; `orphan`, a snapshot
            that nobody reported; `leftover`, of a killed process; `torn`, a last line of the journal that was never
            finished.
        where: the file or folder, relative to the run.
        text: what is wrong with it.
    """

    kind: Kind
    where: str
    text: str


def examine(run: Path) -> dict[str, Any]:
    """What is found in a run directory, as JSON.

    Keys: run, ok (no errors), digest (of the canonical journal; null where it cannot be read), lines, snapshots (how
    many were hashed), findings (kind, where, text).

    While somebody is at the run, what is half done is nothing to find, and only what is found twice is wrong.
    """
    found = _examined(run)
    if found["findings"] and holder(run) is not None:
        again = [] if found["ok"] else _examined(run)["findings"]
        found["findings"] = [f for f in found["findings"] if f["kind"] in ERRORS and f in again]
        found["ok"] = not found["findings"]
    return found


def _examined(run: Path) -> dict[str, Any]:
    findings: list[Finding] = []
    lines: list[journal.Line] = []
    population: Population | None = None
    try:
        _, lines, population = load_run(run)
    except DamagedError as error:
        findings.append(_unreadable("journal.jsonl", error))
    store = SnapshotStore(run / "members")
    reports = {line["assignment"]: line for line in lines if line["kind"] == "report"}
    again = [line["snapshot"] for line in lines if line["kind"] == "void"]  # made again: with reports of their own
    reports |= {name: {"step": reports[name]["step"]} for name in again if name in reports}
    names = [name for member in _folders(run / "members") for name in store.names(member)]
    for name in names:
        findings += _snapshot(run, store, name, reports, population)
    if population:
        findings += _missing(run, store, population)
    findings += _small_files(run)
    findings += [
        Finding("leftover", str(p.relative_to(run)), "of a process that was killed")
        for p in run_directory.leftovers(run)
    ]
    if journal.is_torn(run / "journal.jsonl"):
        findings.append(Finding("torn", "journal.jsonl", "its last line was never finished, and does not count"))
    return {
        "run": str(run),
        "ok": not any(f.kind in ERRORS for f in findings),
        "digest": journal.digest(lines) if lines else None,
        "lines": len(lines),
        "snapshots": len(names),
        "findings": [asdict(f) for f in findings],
    }


def repair(run: Path) -> list[str]:
    """Put damaged and orphaned snapshots into quarantine and delete leftovers; what was done, in a line each.

    `pbtrl resume` makes again what the run still needs.

    Raises:
        RunError: somebody is at the run, or there is a link in it.
    """
    done: list[str] = []
    run_directory.check_links(run)
    with RunLock(run):
        store = SnapshotStore(run / "members")
        for finding in _examined(run)["findings"]:
            path = run / finding["where"]
            match finding["kind"]:
                case "damaged" | "orphan" if path.parent.name == "snapshots":
                    store.quarantine(f"{path.parent.parent.name}/{path.name}")
                    done.append(f"{finding['where']}: put into quarantine")
                case "torn":
                    journal.Journal(path).close()
                    done.append(f"{finding['where']}: unfinished last line dropped")
        done += [f"{path.relative_to(run)}: deleted" for path in run_directory.delete_leftovers(run)]
    return done


def text(found: dict[str, Any]) -> str:
    """The findings as lines."""
    told = [f"{f['kind']:<9} {f['where']}: {f['text']}" for f in found["findings"]]
    counted = f"{found['lines']} journal lines, {found['snapshots']} snapshots hashed"
    verdict = "clean" if not told else "nothing is lost" if found["ok"] else "damaged"
    return "\n".join([*told, f"{found['run']}: {verdict} ({counted})"])


def _snapshot(
    run: Path, store: SnapshotStore, name: str, reports: dict[str, journal.Line], population: Population | None
) -> Iterator[Finding]:
    where = str(store.path(name).relative_to(run))
    try:
        _, state = store.load(name)
    except DamagedError as error:
        yield _unreadable(where, error)
        return
    if population is None:
        return
    if name in reports:
        told = {k: v for k, v in reports[name].items() if k not in ("kind", "timing")}
        kept = state.get("report")
        if not isinstance(kept, dict) or journal.dumps({k: kept.get(k) for k in told}) != journal.dumps(told):
            yield Finding("damaged", where, "its report is not the one in the journal")
    elif name not in {a.id for a in population.pending}:
        yield Finding("orphan", where, "no line of the journal reports it")


def _missing(run: Path, store: SnapshotStore, population: Population) -> Iterator[Finding]:
    """Of what the run goes on from: every member's newest snapshot, and what open assignments load."""
    needed = {m.snapshot for m in population.members.values()} | {a.parent for a in population.pending}
    for name in sorted(n for n in needed if n):
        if not store.path(name).exists():
            where = str(store.path(name).relative_to(run))
            yield Finding(
                "missing",
                where,
                f"the run goes on from it; made again by: pbtrl resume {cli_reference(run)}",
            )


def _small_files(run: Path) -> Iterator[Finding]:
    try:
        load_stored_config(run)
    except (ConfigError, DamagedError) as error:
        yield Finding("damaged", "config.resolved.yaml", str(error).splitlines()[0])
    except RunError:  # it names modules, which are not imported to check it
        pass
    for name, reader in (("run.json", read_run_info), ("best.json", best_snapshot)):
        try:
            reader(run)
        except DamagedError as error:
            yield _unreadable(name, error)


def _unreadable(where: str, error: DamagedError) -> Finding:
    return Finding("newer" if isinstance(error, NewerError) else "damaged", where, str(error))


def _folders(members: Path) -> list[str]:
    return sorted(p.name for p in members.iterdir() if p.is_dir()) if members.is_dir() else []
