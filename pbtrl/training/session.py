"""Session of a run: train the population, choose the best member and write best.json.

    population, strategy, executor, listeners -> controller.run -> final choice -> best.json

The last line of the journal is `finish` once the best member is chosen, and `stop` after a signal, also during the
final choice. It is neither if no member survived.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pbtrl.build.describe import describe_agent, describe_env, describe_slices
from pbtrl.build.factory import (
    make_executor,
    make_strategy,
    stop_criteria,
)
from pbtrl.build.placement import describe_placement
from pbtrl.config.schema import Config
from pbtrl.core.naming import INITIAL
from pbtrl.core.population import Population
from pbtrl.core.records import FailureRecord, Record
from pbtrl.errors import DamagedError, DiskFullError, RunError
from pbtrl.execution import Executor
from pbtrl.reporting.live_status import LiveStatus
from pbtrl.reporting.presenter import Presenter
from pbtrl.reporting.summary import closing_text, opening_text
from pbtrl.reporting.tensorboard_writer import TensorBoardWriter
from pbtrl.reporting.terminal import View
from pbtrl.storage.best_member import referenced_snapshots
from pbtrl.storage.journal import Journal, read_journal
from pbtrl.storage.metrics_log import last_reported_step
from pbtrl.storage.parsing import parse_best
from pbtrl.storage.references import cli_reference, run_reference
from pbtrl.storage.retention import Retention
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader
from pbtrl.storage.run_info import Status, record_end
from pbtrl.system import isolated_call
from pbtrl.system.files import is_disk_error, open_log, reason
from pbtrl.system.signals import Interrupted, Signals
from pbtrl.training import final_choice, scoring
from pbtrl.training.adjusting import Requests
from pbtrl.training.controller import Controller, Listener

CHOICE_SECONDS = 60.0  # by which the final choice may exceed the wall clock at least


@dataclass(frozen=True)
class SessionHooks:
    """Connections of a session to its caller.

    Attributes:
        presenter: shows the session to the user.
        listeners: further listeners of the controller.
        stop_requested: called in every round; True stops the run so that it can be resumed.
    """

    presenter: Presenter
    listeners: Sequence[Listener] = ()
    stop_requested: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class SessionResult:
    """Result of a session.

    Attributes:
        run: path of the run directory.
        outcome: `finished`, `stopped` (can be resumed) or `failed`.
        message: message for the user; empty if the presenter has shown it.
        signal_exit: exit code of the first signal, as in a shell; None without a signal. One that comes when the run
            is about to end does not stop it.
    """

    run: Path
    outcome: Literal["finished", "stopped", "failed"]
    message: str = ""
    signal_exit: int | None = None


@dataclass
class Session:
    """One session of a run.

    Attributes:
        config: config of the run, with all changes by `pbtrl set`.
        written: config of a new run as it was written, before numbers were rounded to whole blocks.
        records: journal of previous sessions.
        previous_seconds: duration of previous sessions.
    """

    config: Config
    run_directory: RunDirectory
    header: RunHeader
    population: Population
    journal: Journal
    signals: Signals
    hooks: SessionHooks
    records: Sequence[Record] = ()
    previous_seconds: float = 0.0
    written: Config | None = None

    def run(self) -> SessionResult:
        """Train and choose the best member."""
        run = self.run_directory
        try:
            with (
                closing(self.journal),
                closing(make_executor(self.config, run)) as executor,
                closing(TensorBoardWriter(run, self.header, self.population, resume=bool(self.records))) as board,
            ):
                return self._train(executor, board)
        except Exception as error:
            full = is_disk_error(error)
            with contextlib.suppress(DiskFullError, RunError):
                record_end(run, "stopped" if full else "failed", f"{type(error).__name__}: {error}")
            if isinstance(error, OSError) and not full and str(error.filename).startswith(f"{run}{os.sep}"):
                raise RunError(f"cannot write to {error.filename}: {reason(error)}") from error
            if full:
                raise DiskFullError(
                    f"{error}; make room or mend the disk, then: pbtrl resume {cli_reference(run, self.config)}"
                ) from error
            raise

    def _train(self, executor: Executor, board: TensorBoardWriter) -> SessionResult:
        run = self.run_directory
        starts, lost = self._starting_snapshots()
        self.hooks.presenter.say(self._opening(starts, executor.notes))
        controller = self._controller(executor, board, lost)
        with closing(self._view()) as view:
            controller.listeners = [*controller.listeners, view, *self.hooks.listeners]
            controller.interrupted = lambda: self._stop_requested(view)
            reason = controller.run()
        executor.close()
        if reason == "interrupted":
            return self._stopped(controller)
        if self.population.all_given_up:
            again = f"when the cause is fixed: pbtrl resume {cli_reference(run, self.config)}"
            return self._failed(f"no member survived: {self._last_error()}; {again}")
        try:
            with self.signals.raising():
                best = self._choose(controller.seconds)
        except Interrupted:
            return self._stopped(controller)
        except (DamagedError, DiskFullError):
            raise
        except Exception as error:  # most likely from the user's env; the snapshots are safe, and resume tries again
            log = run.log()
            with open_log(log) as file:
                file.write(traceback.format_exc())
            return self._failed(f"the final evaluation failed: {type(error).__name__}: {error}; see {log}")
        if not best:
            return self._failed(f"no score: the run ended ({reason}) before any member came to the end of a slice")
        if unscored := scoring.unscored(self.config, [best["evaluation"]]):
            return self._failed(f"{unscored}; to choose again: pbtrl resume {cli_reference(run, self.config)}")
        self._end("finish", "finished", reason, controller.seconds)
        result = parse_best(best)
        board.describe(result)
        text = closing_text(result, run, run_reference(run), cli_reference(run, self.config))
        self.hooks.presenter.finish(run, best, text)
        return SessionResult(run.path, "finished", signal_exit=self.signals.code)

    def _controller(self, executor: Executor, board: TensorBoardWriter, lost: Sequence[str]) -> Controller:
        snapshots = self.config.snapshots
        retention = Retention(
            self.run_directory.snapshots,
            self.population,
            keep_last=snapshots.keep_last,
            milestones_every=snapshots.milestones_every,
            keep_retired=self.config.final.candidates,
            records=self.records,
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
            requests=Requests(
                self.run_directory, self.config, self.population, self.records, self.hooks.presenter.warn
            ),
            previous_seconds=self.previous_seconds,
        )

    def _starting_snapshots(self) -> tuple[list[str], list[str]]:
        """Verify the snapshots that members continue from, and move damaged ones into quarantine.

        A snapshot at another step than the journal says counts as damaged: making it again was interrupted.

        Returns:
            One line of text per member that may train, and the names of the snapshots that must be made again.
        """
        store = self.run_directory.snapshots
        texts, lost, checked = [], [], set[str]()
        for m in (m for m in self.population.members.values() if not m.retired):
            parent = m.pending.parent if m.pending else m.snapshot
            unreported = m.pending.id if m.pending and store.state(m.pending.id) is not None else None
            if parent == INITIAL:
                if parent not in checked:
                    store.load(parent)  # it cannot be made again
                    checked.add(parent)
            elif (
                parent and parent not in lost and not store.is_at(parent, self.population.snapshot_origin[parent].stop)
            ):
                store.quarantine(parent)
                lost += [] if unreported else [parent]
            name = unreported or parent
            state = "damaged: will be made again" if name in lost else "verified"
            text = f"{name}, {state}" if name else "fresh weights"
            reached = last_reported_step(self.run_directory.metrics(m.id), m.pending.id) if m.pending else None
            again = reached - m.pending.start if reached is not None and m.pending else 0
            texts.append(f"{m.id} from {text}" + (f"; {again:,} {self.header.steps} again" if again > 0 else ""))
        return texts, lost

    def _view(self) -> View:
        members = self.run_directory.members
        status = LiveStatus(
            self.header, self.population, members,
            wall_clock=self.config.budget.wall_clock, earlier=self.previous_seconds,
        )  # fmt: skip
        return self.hooks.presenter.view(status, describe_placement(self.config))

    def _stop_requested(self, view: View) -> bool:
        """Return whether a stop was requested; the view then says that the members are being saved."""
        if self.signals.code is None and not self.hooks.stop_requested():
            return False
        view.stopping()
        return True

    def _choose(self, elapsed: float) -> dict[str, Any]:
        final, among = self.config.final, final_choice.candidates(self.config, self.run_directory, self.population)
        if self.config.env is not None and among:
            members = "member" if len(among) == 1 else "members"
            self.hooks.presenter.say(
                f"choosing the best of {len(among)} {members} on {final.selection_episodes} fresh episodes each, "
                f"then its score on {final.episodes} others",
            )
        if self.config.execution.backend == "inline":
            return final_choice.choose(self.config, self.run_directory, self.population, self._left(elapsed))
        run = self.run_directory
        arguments = (str(run), self._left(elapsed))
        best: dict[str, Any] = isolated_call.call("pbtrl.training.final_choice:choose_of", *arguments, log=run.log())
        return best

    def _left(self, elapsed: float) -> float | None:
        """Return the seconds that the final choice may take; see `Budget.wall_clock`."""
        limit = self.config.budget.wall_clock
        return None if limit is None else max(0.0, limit - elapsed) + max(CHOICE_SECONDS, limit / 10)

    def _stopped(self, controller: Controller) -> SessionResult:
        self._end("stop", "stopped", "interrupted", controller.seconds)
        message = f"stopped; resume with: pbtrl resume {cli_reference(self.run_directory, self.config)}"
        return SessionResult(self.run_directory.path, "stopped", message, self.signals.code)

    def _failed(self, why: str) -> SessionResult:
        record_end(self.run_directory, "failed", why)
        return SessionResult(self.run_directory.path, "failed", why)

    def _end(self, kind: str, status: Status, reason: str, elapsed: float) -> None:
        self.journal.append({"kind": kind, "reason": reason, "timing": {"elapsed": elapsed}})
        record_end(self.run_directory, status, reason)

    def _last_error(self) -> str:
        """Return the error of the last failure, and the file with its details."""
        records = read_journal(self.run_directory.journal_path)
        *_, last = (record.failure for record in records if isinstance(record, FailureRecord))
        log = self.run_directory.log(last.member)
        return f"{last.error}; see {log if log.exists() and log.stat().st_size else self.journal.path}"

    def _opening(self, starts: Sequence[str], cluster: Sequence[str]) -> str:
        config = self.config
        trains = describe_env(config) if config.env else config.trainable.name if config.trainable else ""
        return opening_text(
            self.run_directory,
            self.header,
            trains=trains,
            agent=describe_agent(config) if config.env else None,
            workers=describe_placement(config),
            cluster=cluster,
            slices=describe_slices(self.written or config),
            wall_clock=config.budget.wall_clock,
            resumed=self.population if self.records else None,
            starts=starts,
            name=run_reference(self.run_directory),
        )
