"""One sitting at a run: from a config, or from a run directory, to the best member.

    start or resume -> population, strategy, executor, listeners -> controller.run -> final choice -> best.json

The journal's last line says how it ended: `finish` once the best member is named, `stop` after a signal, also one
that came during the final choice; neither where nobody survived.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pbtrl.build.describe import describe_agent, describe_env, describe_slices
from pbtrl.build.factory import (
    collect_warnings,
    make_executor,
    make_header,
    make_strategy,
    prepare,
    snapshot_bytes,
    stop_criteria,
)
from pbtrl.build.placement import describe_placement, torch_threads
from pbtrl.config.load import check, read, to_yaml, with_setting
from pbtrl.config.resume import changes as config_changes
from pbtrl.config.resume import merge_resume_config
from pbtrl.config.schema import Config
from pbtrl.config.yaml_source import ConfigSource
from pbtrl.core.population import Population
from pbtrl.errors import DamagedError, DiskFullError, RunError
from pbtrl.execution import Executor
from pbtrl.reporting import terminal
from pbtrl.reporting.live_status import LiveStatus
from pbtrl.reporting.summary import closing_text, opening_text
from pbtrl.reporting.tensorboard_writer import TensorBoardWriter
from pbtrl.storage import run_directory
from pbtrl.storage.best_member import referenced_snapshots
from pbtrl.storage.journal import Journal, Line
from pbtrl.storage.journal import read_journal as journal_lines
from pbtrl.storage.json_files import SCHEMA
from pbtrl.storage.metrics_log import last_reported_step
from pbtrl.storage.references import cli_reference, run_reference
from pbtrl.storage.retention import Retention
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.run_info import Status, record_end, record_start
from pbtrl.storage.run_lock import RunLock
from pbtrl.storage.run_status import corruption_as_error, load_run
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.storage.stored_config import check_imports, load_stored_config
from pbtrl.system import isolated_call, streams
from pbtrl.system.child_process import is_importing_main
from pbtrl.system.files import check_free_space, is_disk_error, write_atomically
from pbtrl.system.signals import Interrupted, Signals
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json
from pbtrl.training import final_choice, scoring
from pbtrl.training.controller import Controller

FAILED = 3
CHOICE_SECONDS = 60.0  # that the final choice may take at least, beyond the wall clock


def start(
    config: Config, source: ConfigSource, *, root: Path, name: str | None = None,
    if_exists: run_directory.IfExists = "error", mode: terminal.Mode, command: Sequence[str], wide: bool = False,
) -> int:  # fmt: skip
    """Train a new run, or with `if_exists="resume"` go on with an old one; returns the exit code.

    Args:
        config: of the run.
        source: what the config was read from: it places errors, and its text is kept.
        root: the directory of all runs.
        name: of the run; by default the config's, or else one that no other run has.
        if_exists: what to do where there is a run of a name that was asked for.
        mode: of the progress view.
        command: the command line, for the record.
        wide: show every hyperparameter.

    Raises:
        ConfigError: the env cannot be had, or no agent can live in it.
        RunError: the run exists, is in use, or cannot be written; or a module is being imported for another process.
    """
    _expect_a_call()
    streams.reopen()
    prepared = prepare(config, source)
    if name is None and (name := config.name) is None:
        name, if_exists = run_directory.default_name(config.label), "suffix"
    if if_exists != "resume" or not run_directory.has_begun(root / name):
        _expect_room(root / name, prepared, 2)
    run = run_directory.create(root, name, if_exists)
    if run_directory.has_begun(run):
        return resume(run, mode=mode, command=command, asked=config, wide=wide)
    for warning in collect_warnings(prepared):
        _print(f"warning: {warning}", sys.stderr)
    with Signals() as signals, RunLock(run):
        if run_directory.has_begun(run):  # somebody was faster
            raise RunError(f"{run} has just been trained by somebody else: try again")
        record_start(run, command, torch_threads(prepared))
        write_atomically(run / "config.yaml", source.text)
        write_atomically(run / "config.resolved.yaml", to_yaml(prepared))
        header = make_header(prepared, run.name)
        journal = Journal(run / "journal.jsonl")
        journal.append(header.to_line())
        return _Sitting(prepared, run, header, header.population(), journal, signals, mode, wide).run()


def resume(
    run: Path, *, mode: terminal.Mode, command: Sequence[str], overrides: Sequence[str] = (),
    asked: Config | None = None, wide: bool = False, trusted: bool = False,
) -> int:  # fmt: skip
    """Go on with a run from its last snapshots.

    Args:
        run: its directory.
        mode: of the progress view.
        command: the command line, for the record.
        wide: show every hyperparameter.
        overrides: may give it a longer budget, or change how it is carried out.
        asked: a config that should be this run's own; what may change is taken from it.
        trusted: whether a module of the user's own that the run directory names, and `asked` does not, is imported.

    Raises:
        ConfigError: a config that cannot be run.
        RunError: the run is in use, damaged, of another config; or a module is being imported for another process.
    """
    _expect_a_call()
    streams.reopen()
    run_directory.check_links(run)
    if not run_directory.has_begun(run):
        return _begin(run, mode=mode, command=command, overrides=overrides, wide=wide, trusted=trusted)
    with Signals() as signals, RunLock(run):
        run_directory.delete_leftovers(run)
        before, lines, _ = load_run(run)
        with corruption_as_error(run):
            earlier = float(_elapsed(lines))
        stored = load_stored_config(run)
        known = asked is not None and asked.imports == stored.imports
        check_imports(run, stored, allowed=trusted or known)
        wanted = asked or _overridden(run, stored, overrides)
        config = prepare(merge_resume_config(stored, wanted), ConfigSource(file=str(run / "config.resolved.yaml")))
        if lines[-1]["kind"] == "finish" and config == stored:
            _say(mode, _nothing_to_do(run, config, lines[-1]["reason"]))
            return 0
        _expect_room(run, config, 1)
        for warning in record_start(run, command, torch_threads(config)):
            _print(f"warning: {warning}", sys.stderr)
        header = make_header(config, before.name)
        journal = Journal(run / "journal.jsonl")
        changes = config_changes(stored, config)
        resumed = {"kind": "resume", "schema": SCHEMA, "horizon": header.horizon, "changes": changes}
        population = header.population().replay([*lines, journal.append(resumed)])
        write_atomically(run / "config.resolved.yaml", to_yaml(config))  # now that the run is no longer finished
        return _Sitting(config, run, header, population, journal, signals, mode, wide, lines, earlier).run()


def _expect_a_call() -> None:
    """Refuse to train because a module is imported: every process of multiprocessing would train."""
    if is_importing_main():
        raise RunError(
            "training was called while multiprocessing imports the main module for another process, which would train "
            'as well: put the call under `if __name__ == "__main__":`'
        )


def _begin(
    run: Path, *, mode: terminal.Mode, command: Sequence[str], overrides: Sequence[str], wide: bool, trusted: bool
) -> int:  # fmt: skip
    """What was killed before its journal's first line has nothing to go on from, and begins."""
    if not (run / "config.resolved.yaml").is_file():
        raise RunError(f"{run} never began: train its config again, with --if-exists resume")
    source = read(run / "config.resolved.yaml", overrides)
    config = check(source)
    check_imports(run, config, allowed=trusted)
    return start(
        config, source, root=run.parent, name=run.name, if_exists="resume", mode=mode, command=command, wide=wide
    )


def _expect_room(run: Path, config: Config, each: int) -> None:
    """A run keeps two snapshots of every member or more, of which one that is resumed has most."""
    what = f"{each} {'snapshots' if each > 1 else 'snapshot'} of each of {config.population.size} members"
    check_free_space(run, each * config.population.size * snapshot_bytes(config), what)


def _overridden(run: Path, stored: Config, overrides: Sequence[str]) -> Config:
    """The stored config with overrides; a total that set the members' budgets goes on doing so."""
    own = "budget.env_steps_per_member"
    total = None if stored.budget.total_steps is None else with_setting(stored, own, None).steps_per_member
    if total == stored.steps_per_member and not any(o.startswith(f"{own}=") for o in overrides):
        overrides = [f"{own}=null", *overrides]
    wanted = load_stored_config(run, overrides)
    if wanted.steps_per_member < stored.steps_per_member:
        had, got = (f"{c.steps_per_member:,} {c.unit}" for c in (stored, wanted))
        raise RunError(f"a budget can only grow: this run's is {had} per member, more than {got}")
    return wanted


def _nothing_to_do(run: Path, config: Config, reason: str) -> str:
    budget = config.budget
    more = {
        "wall clock": f"budget.wall_clock={2 * (budget.wall_clock or 0):.0f}s",
        "fitness reached": "budget.until_fitness=null",
        "total steps": f"budget.total_steps={2 * (budget.total_steps or 0)}",
    }.get(reason, f"budget.env_steps_per_member={2 * config.steps_per_member}")
    return f"{run} is finished ({reason}): nothing to do. To go on: pbtrl resume {cli_reference(run, config)} {more}"


def _say(mode: terminal.Mode, text: str) -> None:
    """For people; what reads JSON sees nothing of it."""
    if mode not in ("json", "none"):
        _print(text)


def _print(text: str, where: TextIO | None = None) -> None:
    """A run trains also where nothing can be printed."""
    with contextlib.suppress(DiskFullError):
        tell(text, where)


@dataclass
class _Sitting:
    """What one sitting works with. `lines` is the journal of the earlier ones, `earlier` their seconds."""

    config: Config
    run_directory: Path
    header: RunHeader
    population: Population
    journal: Journal
    signals: Signals
    mode: terminal.Mode
    wide: bool
    lines: Sequence[Line] = ()
    earlier: float = 0.0

    def run(self) -> int:
        """Train, choose the best, tell; returns the exit code."""
        run = self.run_directory
        try:
            with (
                closing(self.journal),
                closing(make_executor(self.config, run, list(self.population.members))) as executor,
                closing(TensorBoardWriter(run, self.header, self.population, resume=bool(self.lines))) as board,
            ):
                return self._sit(executor, board)
        except Exception as error:
            full = is_disk_error(error)
            with contextlib.suppress(DiskFullError, RunError):
                record_end(run, "stopped" if full else "failed", f"{type(error).__name__}: {error}")
            if isinstance(error, OSError) and not full and str(error.filename).startswith(f"{run}{os.sep}"):
                raise RunError(f"cannot write to {error.filename}: {error.strerror or error}") from error
            if full:
                raise DiskFullError(
                    f"{error}; make room, then: pbtrl resume {cli_reference(run, self.config)}"
                ) from error
            raise

    def _sit(self, executor: Executor, board: TensorBoardWriter) -> int:
        run = self.run_directory
        found, lost = self._found()
        _say(self.mode, self._opening(found))
        controller = self._controller(executor, board, lost)
        with closing(self._view()) as view:
            controller.listeners = [*controller.listeners, view]
            controller.interrupted = lambda: self._noticed(view)
            reason = controller.run()
        executor.close()
        if reason == "interrupted":
            return self._stopped(controller)
        if all(m.lost for m in self.population.members.values()):
            again = f"when that is mended: pbtrl resume {cli_reference(run, self.config)}"
            return self._failed(f"no member survived: {self._last_error()}; {again}")
        try:
            with self.signals.raising():
                best = self._choose(controller.seconds)
        except Interrupted:
            return self._stopped(controller)
        except DamagedError:
            raise
        except Exception as error:  # most likely the user's own env: the members are safe, and resume tries again
            log = run / "log.txt"
            with log.open("a") as file:
                file.write(traceback.format_exc())
            return self._failed(f"the final evaluation failed: {type(error).__name__}: {error}; see {log}")
        if not best:
            return self._failed(f"no score: the run ended ({reason}) before any member came to the end of a slice")
        if unscored := scoring.unscored(self.config, [best["evaluation"]]):
            return self._failed(f"{unscored}; to choose again: pbtrl resume {cli_reference(run, self.config)}")
        self._end("finish", "finished", reason, controller.seconds)
        board.describe()
        if self.mode == "json":
            _print(to_json({"kind": "finish", "run": str(run), "best": best}))
        _say(
            self.mode,
            closing_text(best, run, run_reference(run), cli_reference(run, self.config)),
        )
        return 0

    def _controller(self, executor: Executor, board: TensorBoardWriter, lost: Sequence[str]) -> Controller:
        snapshots = self.config.snapshots
        retention = Retention(
            SnapshotStore(self.run_directory / "members"),
            self.population,
            keep_last=snapshots.keep_last,
            milestones_every=snapshots.milestones_every,
            lines=self.lines,
            always=referenced_snapshots(self.run_directory),
        )
        return Controller(
            population=self.population,
            strategy=make_strategy(self.config),
            executor=executor,
            journal=self.journal,
            limits=stop_criteria(self.config),
            listeners=[retention, board],
            lost=lost,
            earlier=self.earlier,
        )

    def _found(self) -> tuple[list[str], list[str]]:
        """What each member goes on from, in words; and the snapshots that are needed and not whole.

        What is left of those goes into quarantine. One that was to be made again, and was stopped in the middle, is
        whole in itself and not what the journal says.
        """
        store = SnapshotStore(self.run_directory / "members")
        found, lost = [], []
        for m in self.population.members.values():
            name = m.pending.parent if m.pending else m.snapshot
            done = (
                m.pending.id if m.pending and store.state(m.pending.id) is not None else None
            )  # and only not reported
            if name and name not in lost and not store.is_at(name, self.population.snapshot_origin[name].stop):
                store.quarantine(name)
                lost += [] if done else [name]
            shown = done or name
            state = "damaged: made again" if shown in lost else "verified"
            text = f"{shown}, {state}" if shown else "fresh weights"
            came = last_reported_step(store.members / m.id / "metrics.jsonl", m.pending.id) if m.pending else None
            again = came - m.pending.start if came is not None and m.pending else 0
            found.append(f"{m.id} from {text}" + (f"; {again:,} {self.header.steps} again" if again > 0 else ""))
        return found, lost

    def _view(self) -> terminal.View:
        members = self.run_directory / "members"
        standings = LiveStatus(
            self.header, self.population, members,
            wall_clock=self.config.budget.wall_clock, earlier=self.earlier,
        )  # fmt: skip
        return terminal.make_view(self.mode, standings, workers=describe_placement(self.config), wide=self.wide)

    def _noticed(self, view: terminal.View) -> bool:
        """Whether a signal came; the view then says that the members are being saved."""
        if self.signals.code is None:
            return False
        view.stopping()
        return True

    def _choose(self, elapsed: float) -> dict[str, Any]:
        final, among = self.config.final, final_choice.candidates(self.config, self.run_directory, self.population)
        if self.config.env is not None and among:
            members = "member" if len(among) == 1 else "members"
            _say(
                self.mode,
                f"choosing the best of {len(among)} {members} on {final.selection_episodes} fresh episodes each, "
                f"then its score on {final.episodes} others",
            )
        if self.config.execution.backend == "inline":
            return final_choice.choose(self.config, self.run_directory, self.population, self._left(elapsed))
        run = self.run_directory
        arguments = (str(run), self._left(elapsed))
        best: dict[str, Any] = isolated_call.call(
            "pbtrl.training.final_choice:choose_of", *arguments, log=run / "log.txt"
        )
        return best

    def _left(self, elapsed: float) -> float | None:
        """Seconds that the final choice may take; see `Budget.wall_clock`."""
        limit = self.config.budget.wall_clock
        return None if limit is None else max(0.0, limit - elapsed) + max(CHOICE_SECONDS, limit / 10)

    def _stopped(self, controller: Controller) -> int:
        self._end("stop", "stopped", "interrupted", controller.seconds)
        _print(f"stopped; go on with: pbtrl resume {cli_reference(self.run_directory, self.config)}", sys.stderr)
        return self.signals.code or FAILED

    def _failed(self, why: str) -> int:
        record_end(self.run_directory, "failed", why)
        _print(why, sys.stderr)
        return FAILED

    def _end(self, kind: str, status: Status, reason: str, elapsed: float) -> None:
        self.journal.append({"kind": kind, "reason": reason, "timing": {"elapsed": elapsed}})
        record_end(self.run_directory, status, reason)

    def _last_error(self) -> str:
        """Of the failures, the last, and where more of it is told."""
        failures = [line for line in journal_lines(self.run_directory / "journal.jsonl") if line["kind"] == "failure"]
        last = failures[-1]
        log = self.run_directory / "members" / last["member"] / "log.txt"
        return f"{last['error']}; see {log if log.exists() and log.stat().st_size else self.journal.path}"

    def _opening(self, found: Sequence[str]) -> str:
        config = self.config
        trains = describe_env(config) if config.env else config.trainable.name if config.trainable else ""
        return opening_text(
            self.run_directory,
            self.header,
            trains=trains,
            agent=describe_agent(config) if config.env else None,
            workers=describe_placement(config),
            slices=describe_slices(config),
            wall_clock=config.budget.wall_clock,
            resumed=self.population if self.lines else None,
            found=found,
            name=run_reference(self.run_directory),
        )


def _elapsed(lines: Sequence[Line]) -> float:
    """Seconds that earlier sittings took."""
    return max((line["timing"]["elapsed"] for line in lines if "timing" in line), default=0.0)
