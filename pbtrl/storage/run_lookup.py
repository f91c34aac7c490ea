"""Lookup of runs by name, unique prefix, path, or `last`, also below the directory of a sweep or a replay."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from pbtrl.errors import RunError
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_info import read_run_info
from pbtrl.storage.run_state import modified_at
from pbtrl.storage.shell_words import root_option, shell_word
from pbtrl.system.files import reason

REPLAY_FILE = "replay.json"
SWEEP_FILE = "sweep.json"


def find(text: str, root: Path) -> RunDirectory:
    """Find a run by `last` (the one started or resumed last), name, unique prefix of a name, or path.

    Runs of a sweep or a replay are found by `directory/name`, also by `directory/last` and `directory/prefix`.

    Raises:
        RunError: no run or several runs match; the message lists the candidates.
    """
    runs = {run.name: run for run in run_directories(root)}
    if text == "last" and "last" not in runs:
        if not runs:
            groups = _present(root, ())
            raise RunError(f"no run lies directly in {root}{groups}" if groups else f"there are no runs in {root}")
        return max(runs.values(), key=started_at)
    if text in runs:
        return runs[text]
    if "\0" not in text and is_run(path := Path(os.path.expanduser(text))):  # `.`, `..` and links have other names
        return RunDirectory(path.resolve() if path.name in ("", "..") or path.is_symlink() else path)
    group, slash, name = text.rpartition("/")
    if slash and is_run_group(root / group):
        return find(name, root / group)
    matches = sorted(name for name in runs if name.startswith(text) and text)
    if len(matches) == 1:
        return runs[matches[0]]
    if matches:
        raise RunError(f"{text[:80]!r} is ambiguous: it may mean {_several(matches)}")
    for folder in (root / text, Path(text)):
        if text and is_run_group(folder):
            inside = _several(sorted(run.name for run in run_directories(folder))) or "no run yet"
            option = root_option(root) if folder == root / text else ""
            command = f"pbtrl sweep {shell_word(Path(text))}{option}"
            more = f"; `{command}` continues it" if os.path.isfile(folder / SWEEP_FILE) else ""
            raise RunError(f"{folder} holds several runs, to be named as in {text}/NAME: {inside}{more}")
    raise RunError(f"no run {text[:80]!r} in {root}{_present(root, runs)}")


def is_run(path: Path) -> bool:
    """Return whether this is a run directory."""
    run = RunDirectory(path)
    return any(map(os.path.isfile, (run.journal_path, run.info_file)))  # unlike Path's, never raises


def is_run_group(path: Path) -> bool:
    """Return whether this is the directory of the runs of a sweep or a replay."""
    return any(os.path.isfile(path / name) for name in (SWEEP_FILE, REPLAY_FILE)) and not is_run(path)


def run_directories(root: Path) -> Iterator[RunDirectory]:
    """Yield the run directories directly below `root`, except links that lead out of it and runs being deleted."""
    yield from (
        RunDirectory(path) for path in _entries(root) if is_run(path) and path.resolve().is_relative_to(root.resolve())
    )


def sweep_directories(root: Path) -> Iterator[Path]:
    """Yield the directories of sweeps directly below `root`, with the exceptions of `run_directories`."""
    sweeps = (path for path in _entries(root) if is_run_group(path) and os.path.isfile(path / SWEEP_FILE))
    yield from (path for path in sweeps if path.resolve().is_relative_to(root.resolve()))


def _entries(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if not path.name.startswith(".")] if os.path.isdir(root) else []
    except OSError as error:
        raise RunError(f"cannot read {root}: {reason(error)}") from error


def started_at(run: RunDirectory) -> tuple[float, str]:
    """Sort key of a run: start of its latest session (Unix seconds), then its name."""
    try:
        return float(read_run_info(run)["started"]), run.name
    except (RunError, KeyError, TypeError, ValueError, OverflowError):
        return modified_at(run.journal_path), run.name


def _present(root: Path, runs: Collection[str]) -> str:
    """List the runs below `root`, and the sweeps and replays with runs of their own."""
    groups = sorted(f"{path.name}/NAME" for path in _entries(root) if is_run_group(path))
    return f": there are {_several([*sorted(runs), *groups])}" if runs or groups else ""


def _several(names: Sequence[str]) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
