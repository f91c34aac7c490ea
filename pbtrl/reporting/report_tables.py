"""Tables of the HTML report that no command prints: time shares, failures, settings, and facts about the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pbtrl.config.differences import differences_from_defaults
from pbtrl.core.records import FailureRecord, Record, ReportRecord, SnapshotLost, changes_made
from pbtrl.errors import ConfigError, RunError
from pbtrl.reporting.formatting import format_duration
from pbtrl.reporting.plots.run_data import RunData
from pbtrl.reporting.tables import MOST_MEMBERS, Table, changes
from pbtrl.storage.json_files import read_plain_file
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_info import SESSIONS, read_run_info
from pbtrl.storage.stored_config import load_stored_config
from pbtrl.system.strict_json import to_json

MAX_CONFIG_BYTES = 100_000  # bytes of the config in a page
PARTS = ("env", "act", "wait", "learn", "train", "evaluate")  # of a slice, in this order


def time_shares(data: RunData) -> Table | None:
    """Shares of the time of all slices, for the population and for each member; None if nothing was measured."""
    spent: dict[str, dict[str, float]] = {}
    for report in (record.report for record in data.records if isinstance(record, ReportRecord)):
        known = {part: report.timing[part] for part in ("seconds", *PARTS) if part in report.timing}
        for who in ("all members", report.member) if "seconds" in known and len(known) > 1 else ():
            total = spent.setdefault(who, {})
            for part, seconds in known.items():
                total[part] = total.get(part, 0.0) + seconds
    if not spent:
        return None
    parts = [part for part in PARTS if spent["all members"].get(part)]
    members = [m for m in data.ranked if m in spent][:MOST_MEMBERS]
    rows = [[who, *_shares(spent[who], parts)] for who in ("all members", *members)]
    notes = [
        "env: the simulators step; act: the policy chooses actions; wait: for processes that act; learn: updates",
        "other: the rest of a slice, and the turns of other members in the same worker; without snapshots",
    ]
    if "train" in parts:
        notes[0] = "train and evaluate: calls of the trainable"
    return Table(["", *parts, "other", "time of slices"], rows, notes=notes)


def _shares(spent: Mapping[str, float], parts: list[str]) -> list[str]:
    seconds = max(spent["seconds"], sum(spent.get(part, 0.0) for part in parts), 1e-9)
    known = [spent.get(part, 0.0) / seconds for part in parts]
    texts = [f"{100 * share:.0f} %" for share in (*known, max(0.0, 1.0 - sum(known)))]
    return [*texts, format_duration(spent["seconds"])]


def failures(data: RunData) -> Table:
    """Failures, lost snapshots, divergences and skipped updates, oldest first."""
    rows = [row for record in data.records for row in _failures(record)]
    return Table(["time", "slice", "event"], rows, left=(0, 1, 2))


def _failures(record: Record) -> Iterator[list[str]]:
    events = []
    match record:
        case FailureRecord(failure=failure):
            error, end = failure.error.strip().partition("\n")[0], "; given up" if record.given_up else ""
            events.append((failure.assignment, f"{error}{end}"))
        case SnapshotLost():
            events.append((record.snapshot, f"snapshot lost: {record.error.partition(chr(10))[0]}"))
        case ReportRecord(report=report):
            if report.diverged:
                events.append((report.assignment, "diverged"))
            if counts := report.skips:
                text = f"skipped {counts[0]} of {counts[1]} updates, whose gradient was not finite"
                events.append((report.assignment, text))
    for where, text in events:
        yield [format_duration(record.elapsed), where, text]


def settings(run: RunDirectory) -> Table:
    """Settings of the run that differ from the defaults."""
    titles = ["setting", "value", "default"]
    try:
        differing = differences_from_defaults(load_stored_config(run, makes_envs=False))
    except (ConfigError, RunError) as error:
        return Table(titles, [], notes=[f"not compared with the defaults: {str(error).splitlines()[0]}"])
    rows = [[name, *("-" if v is None else _text(v) for v in values)] for name, *values in differing]
    return Table(titles, rows, left=(0, 1, 2))


def run_facts(run: RunDirectory, data: RunData) -> dict[str, str]:
    """Seed, command, versions and so on, by label."""
    known = read_run_info(run)
    versions, command = known.get("versions"), known.get("command")
    return {
        **({"start": data.header.origin} if data.header.origin else {}),
        **({"changes": "\n".join(made)} if (made := changes(changes_made(data.records))) else {}),
        "seed": f"{data.header.seed}; deterministic: {data.header.deterministic}",
        "sessions": str(known.get(SESSIONS, "?")),
        "commit": str(known.get("git") or "none"),
        "command": " ".join(map(str, command)) if isinstance(command, list) else "?",
        "versions": "\n".join(f"{k} {v}" for k, v in versions.items()) if isinstance(versions, dict) else "?",
    }


def config_text(run: RunDirectory) -> str:
    """Resolved config as it is stored; empty if there is none."""
    try:
        return read_plain_file(run.resolved_config, MAX_CONFIG_BYTES).decode(errors="replace")
    except (FileNotFoundError, RunError):
        return ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value)
