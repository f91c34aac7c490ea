"""Start and resume of runs: all checks before the first step, then one session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pbtrl.build.factory import (
    collect_warnings,
    make_header,
    prepare,
    snapshot_bytes,
)
from pbtrl.build.placement import torch_threads
from pbtrl.build.warm_start import WarmStart, find_warm_start
from pbtrl.config.adjust import adjusted
from pbtrl.config.load import check, read, to_yaml, with_setting
from pbtrl.config.resume import changes as config_changes
from pbtrl.config.resume import merge_resume_config
from pbtrl.config.schema import Config
from pbtrl.config.yaml_source import ConfigSource, dump_yaml
from pbtrl.core.records import RunFinished, duration
from pbtrl.core.stopping import WALL_CLOCK
from pbtrl.errors import BusyError, ConfigProblem, RunError
from pbtrl.storage import run_creation
from pbtrl.storage.journal import Journal
from pbtrl.storage.json_files import SCHEMA
from pbtrl.storage.references import cli_reference
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_info import record_start
from pbtrl.storage.stored_config import load_stored_config
from pbtrl.system import streams
from pbtrl.system.child_process import is_importing_main
from pbtrl.system.files import check_free_space, write_atomically
from pbtrl.system.signals import Signals
from pbtrl.training.session import Session, SessionHooks, SessionResult

OWN_BUDGET = "budget.env_steps_per_member"


def start(
    config: Config, source: ConfigSource, hooks: SessionHooks, *, root: Path, name: str | None = None,
    if_exists: run_creation.IfExists = "error", command: Sequence[str] = (),
) -> SessionResult:  # fmt: skip
    """Train a new run, or resume an old one with `if_exists="resume"`.

    Args:
        config: config of the run.
        source: text that the config was read from; it is stored, and gives the places of errors.
        hooks: connections of the session to its caller.
        root: directory of all runs.
        name: name of the run; by default the config's, or else an unused one.
        if_exists: what to do if a run of that name exists.
        command: command line, which is stored.

    Raises:
        ConfigError: the env cannot be made, an agent cannot act in it, or `init_from` does not fit.
        RunError: the run exists, is in use or cannot be written; it has no name, but shall be resumed or overwritten;
            or multiprocessing is importing the main module.
    """
    _refuse_while_importing_main()
    streams.reopen()
    name = config.name if name is None else name
    prepared, warm = check_start(config, source, root=root, name=name, if_exists=if_exists)
    if name is None:
        name, if_exists = run_creation.default_name(config.label), "suffix"
    run = run_creation.create(root, name, if_exists)
    if run.has_begun():
        return resume(run, hooks, command=command, asked=config)
    for warning in start_warnings(prepared, source):
        hooks.presenter.warn(warning)
    with Signals() as signals, run.lock():
        if run.has_begun():  # another process was faster
            raise BusyError(f"{run} has just been trained by another process: try again")
        record_start(run, command, torch_threads(prepared))
        write_atomically(run.config_file, source.text)
        write_atomically(run.resolved_config, to_yaml(prepared))
        header = make_header(prepared, run.name, warm.copy_to(run) if warm else None)
        journal = Journal(run.journal_path)
        journal.append(header.to_line())
        return Session(prepared, run, header, header.population(), journal, signals, hooks, written=config).run()


def check_start(
    config: Config, source: ConfigSource, *, root: Path, name: str | None, if_exists: run_creation.IfExists
) -> tuple[Config, WarmStart | None]:  # fmt: skip
    """Make the checks of `start` that create nothing; returns the prepared config, and the snapshot to begin from."""
    if name is None and if_exists in ("resume", "overwrite"):
        raise RunError(f"to {if_exists} a run, name it: give --name, or name: in the config")
    prepared = prepare(config, source)
    if resumes(root, name, if_exists):
        return prepared, None
    warm = check_warm_start(prepared, source, root)
    _check_space(RunDirectory(root / (name or config.label)), prepared, 2)
    return prepared, warm


def resumes(root: Path, name: str | None, if_exists: run_creation.IfExists) -> bool:
    """Return whether `start` would resume a run that has begun."""
    return name is not None and if_exists == "resume" and RunDirectory(root / name).has_begun()


def start_warnings(prepared: Config, source: ConfigSource) -> list[str]:
    """Return the warnings of a new run, one line each."""
    return [*source.notes, *collect_warnings(prepared)]


def check_warm_start(config: Config, source: ConfigSource, root: Path) -> WarmStart | None:
    """Load what `init_from` names, if a prepared config has it; ConfigError if there is none, or if it does not fit."""
    try:
        return find_warm_start(config, root)
    except ConfigProblem as problem:
        raise source.error([problem]) from problem


def start_part(
    tree: Mapping[str, Any], hooks: SessionHooks, *, folder: Path, name: str, command: Sequence[str] = ()
) -> SessionResult | None:
    """Train one of several runs in a folder of their own, or resume it; `tree` is its config.

    Returns:
        The result; None if another process trains the run or has just finished it.
    """
    source = ConfigSource(dump_yaml(tree))
    try:
        return start(check(source), source, hooks, root=folder, name=name, if_exists="resume", command=command)
    except BusyError:
        return None


def resume(
    run: RunDirectory, hooks: SessionHooks, *, command: Sequence[str] = (), overrides: Sequence[str] = (),
    asked: Config | None = None, trusted: bool = False,
) -> SessionResult:  # fmt: skip
    """Resume a run from its newest snapshots. A finished one without best.json only chooses its best member again.

    Args:
        run: run directory.
        hooks: connections of the session to its caller.
        command: command line, which is stored.
        overrides: a longer budget, or other changes to the free sections (see `config.resume.FREE`).
        asked: config that should equal the stored one; its free sections replace the stored ones.
        trusted: import modules that the run directory names and `asked` does not.

    Raises:
        ConfigError: the config is invalid.
        RunError: the run is in use, damaged or has another config; or multiprocessing is importing the main module.
    """
    _refuse_while_importing_main()
    streams.reopen()
    run.check_links()
    if not run.has_begun():
        return _start_unbegun(run, hooks, command=command, overrides=overrides, trusted=trusted)
    with Signals() as signals, run.lock():
        run.delete_leftovers()
        stored_header, records, _ = run.load()
        stored = load_stored_config(run, trusted=trusted, known=asked.imports if asked else ())
        wanted = asked or _overridden(run, stored, overrides)
        config = prepare(merge_resume_config(stored, wanted), ConfigSource(file=str(run.resolved_config)))
        if isinstance(last := records[-1], RunFinished) and config == stored and run.best_file.exists():
            hooks.presenter.say(_nothing_to_do(run, config, last.reason, duration(records)))
            return SessionResult(run.path, "finished")
        changed, changes = adjusted(config, records), config_changes(stored, config)
        header = make_header(changed, stored_header.name, stored_header.initial)
        plans, before = config.strategy.runs_trials and config.budget.total_steps is None, stored_header.budget
        if plans and not changes and header.budget != before:  # its rungs are others
            raise RunError(
                f"{run} was planned with {before:,} {header.steps} by another version of pbtrl, and would have "
                f"{header.budget:,} by this one: finish it with that version (see run.json)"
            )
        _check_space(run, config, 1)
        for warning in record_start(run, command, torch_threads(config)):
            hooks.presenter.warn(warning)
        journal = Journal(run.journal_path)
        resumed = {
            "kind": "resume",
            "schema": SCHEMA,
            "horizon": header.horizon,
            "total": header.total,
            "changes": changes,
        }
        population = header.population().replay([*records, journal.append(resumed)])
        write_atomically(run.resolved_config, to_yaml(config))  # after the journal says that the run goes on
        seconds = duration(records)
        return Session(changed, run, header, population, journal, signals, hooks, records, seconds).run()


def _refuse_while_importing_main() -> None:
    """Raise if multiprocessing is importing the main module, because each of its processes would train."""
    if is_importing_main():
        raise RunError(
            "training was called while multiprocessing imports the main module for another process, which would train "
            'as well: put the call under `if __name__ == "__main__":`'
        )


def _start_unbegun(
    run: RunDirectory, hooks: SessionHooks, *, command: Sequence[str], overrides: Sequence[str], trusted: bool
) -> SessionResult:
    """Start a run that was killed before the first line of its journal, and so has nothing to resume."""
    if not run.resolved_config.is_file():
        raise RunError(f"{run} never began: train its config again, with --if-exists resume")
    config = load_stored_config(run, overrides, trusted=trusted)
    source = read(run.resolved_config, overrides)
    return start(config, source, hooks, root=run.path.parent, name=run.name, if_exists="resume", command=command)


def _check_space(run: RunDirectory, config: Config, each: int) -> None:
    """Raise if the disk has no space for `each` snapshots of every member: two for a new run, one on resume."""
    what = f"{each} {'snapshots' if each > 1 else 'snapshot'} of each of {config.population.size} members"
    check_free_space(run.members, each * config.population.size * snapshot_bytes(config), what)


def _overridden(run: RunDirectory, stored: Config, overrides: Sequence[str]) -> Config:
    """Apply overrides to the stored config; if total_steps determined the members' budgets, it still does."""
    if _shares_total(stored) and not any(o.startswith(f"{OWN_BUDGET}=") for o in overrides):
        overrides = [f"{OWN_BUDGET}=null", *overrides]
    wanted = load_stored_config(run, overrides, trusted=True)  # the stored config is trusted by now
    if wanted.steps_per_member < stored.steps_per_member:
        old, new = (f"{c.steps_per_member:,} {c.unit}" for c in (stored, wanted))
        raise RunError(f"a budget can only grow: this run's is {old} per member, more than {new}")
    return wanted


def _shares_total(config: Config) -> bool:
    """Return whether total_steps determines the members' budgets."""
    if config.budget.total_steps is None or config.strategy.runs_trials:
        return False
    return with_setting(config, OWN_BUDGET, None).steps_per_member == config.steps_per_member


def _nothing_to_do(run: RunDirectory, config: Config, reason: str, seconds: float) -> str:
    done = f"{run} is finished ({reason}): nothing to do"
    if reason == "budget" and config.strategy.runs_trials:
        return done
    total = f"budget.total_steps={2 * (config.budget.total_steps or 0)}"
    more = {
        WALL_CLOCK: f"budget.wall_clock={2 * seconds:.0f}s",
        "fitness reached": "budget.until_fitness=null",
        "total steps": total,
    }.get(reason, total if _shares_total(config) else f"{OWN_BUDGET}={2 * config.steps_per_member}")
    return f"{done}. To continue: pbtrl resume {cli_reference(run, config)} {more}"
