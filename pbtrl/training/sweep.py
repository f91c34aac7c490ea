"""Sweep: a grid of settings times seeds, at equal compute, as ordinary runs in one directory.

    runs/<name>/  sweep.json  pbt-s1/  random_search-s1/  pbt-s2/  ...

The runs of one seed are a replication: the same seed of the run gives the members of every arm the same initial
hyperparameters (of strategies that draw them from the prior) and the same initial weights. Training goes replication
by replication, so that a sweep that is interrupted stays balanced. What is finished is never trained again.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

from pbtrl.build.factory import prepare
from pbtrl.config.differences import NEUTRAL, changed_settings
from pbtrl.config.wording import shown
from pbtrl.core.records import duration
from pbtrl.errors import ConfigError, DamagedError, DiskFullError, PbtrlError, RunError
from pbtrl.reporting.sweep_tables import EQUAL, plan_table
from pbtrl.storage.best_member import read_best, without_best
from pbtrl.storage.json_files import SCHEMA
from pbtrl.storage.run_creation import group_folder, lock_group
from pbtrl.storage.run_directory import RunDirectory, check_links
from pbtrl.storage.run_info import read_run_info
from pbtrl.storage.run_lookup import SWEEP_FILE
from pbtrl.storage.run_state import is_complete
from pbtrl.storage.stored_config import parse_stored_config
from pbtrl.storage.sweep_directory import (
    ArmRecord,
    SweepRecord,
    read_sweep,
    run_name,
    state_in_sweep,
    text_digest,
    write_sweep,
)
from pbtrl.system.signals import Signals
from pbtrl.training.session import SessionHooks, SessionResult
from pbtrl.training.start import check_warm_start, start_part
from pbtrl.training.sweep_arms import Arm, ConfigInput, make_arms

DEFAULT_SEEDS = 5
MAX_SEEDS = 1000
SEED_DIGITS = 20  # that fit into the name of a run
Row = dict[str, Any]


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep."""

    arm: Arm
    seed: int
    path: Path

    @property
    def directory(self) -> RunDirectory:
        """The run directory."""
        return RunDirectory(self.path)

    @property
    def is_complete(self) -> bool:
        """Whether it has nothing left to train or to choose."""
        return is_complete(self.directory)

    @property
    def is_busy(self) -> bool:
        """Whether a process trains it."""
        return self.directory.holder() is not None

    @property
    def state(self) -> str:
        """State of the run; `not started` before its first line."""
        return state_in_sweep(self.directory)

    def row(self) -> Row:
        """Return its result.

        `score` is that of the chosen member (null before the run is finished), `held_out` whether it is of data that
        nothing was chosen with, `steps` are those that were trained, and `seconds` the time of all
        sessions.
        """
        run = self.directory
        row: Row = {"run": self.path.name, "path": str(self.path), "arm": self.arm.name, "seed": self.seed}
        row |= {"state": self.state, "score": None, "held_out": None, "steps": 0, "seconds": 0.0, "reason": None}
        if row["state"] == "not started":
            return row
        try:
            header, records, population = run.load()
            row["steps"], row["seconds"] = population.step, duration(records)
            if row["state"] == "finished":
                if (best := read_best(run)) is None:
                    raise DamagedError(without_best(run, self.arm.config))
                row["score"] = best.evaluation.return_mean
                row["held_out"] = best.evaluation.held_out or header.unit == "env_steps"
            else:
                row["reason"] = read_run_info(run).get("reason")
        except DamagedError as error:
            row |= {"state": "damaged", "reason": str(error)}
        return row


@dataclass(frozen=True)
class SweepOutcome:
    """Outcome of training a sweep.

    Attributes:
        failed: messages of the runs that failed or are damaged, by name.
        stopped: result of the session that a signal stopped; None if every run was tried.
    """

    failed: Mapping[str, str] = field(default_factory=dict)
    stopped: SessionResult | None = None


@dataclass(frozen=True)
class Sweep:
    """Sweep, planned or begun.

    Attributes:
        folder: directory of the runs and sweep.json.
        arms: the arms, in the order of training.
        seeds: seeds of the replications, in the order of training.
        grid: values of every setting that varies.
        unequal: whether arms may train for different numbers of steps.
        stored: content of sweep.json when this was planned; None for a new sweep.
    """

    folder: Path
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    grid: Mapping[str, Sequence[Any]]
    unequal: bool = False
    stored: SweepRecord | None = None

    @property
    def runs(self) -> list[SweepRun]:
        """All runs in the order of training: replication by replication."""
        return [SweepRun(arm, seed, self.folder / run_name(arm.name, seed)) for seed in self.seeds for arm in self.arms]

    def train(
        self, hooks: SessionHooks, announce: Callable[[Row], None] = lambda event: None, command: Sequence[str] = ()
    ) -> SweepOutcome:
        """Train every run that is not finished, one after another. A run that fails does not keep the others back.

        A finished run without best.json only chooses its best member again.

        Args:
            hooks: connections of every run to the caller.
            announce: called with an event before each run (`kind` is `run`) and after it (`run_end`, with its row).
            command: command line, which every run stores.

        Raises:
            RunError: the directory cannot be written, or another process has just begun another sweep in it.
            DiskFullError: no space left; the sweep can be continued.
        """
        self._save()
        failed: dict[str, str] = {}
        seconds: dict[Path, float] = {}
        runs = self.runs
        with Signals() as signals:
            own_request = hooks.stop_requested
            hooks = replace(hooks, stop_requested=lambda: signals.code is not None or own_request())
            for number, run in enumerate(runs, start=1):
                if signals.code is not None or own_request():
                    return SweepOutcome(failed, SessionResult(self.folder, "stopped", signal_exit=signals.code))
                if run.is_busy:
                    continue
                if run.is_complete:
                    if (row := run.row())["state"] == "damaged":
                        failed[run.path.name] = row["reason"]
                    continue
                place = {"number": number, "of": len(runs), "left": self._seconds_left(seconds)}
                announce({"kind": "run", "run": run.path.name, "arm": run.arm.name, "seed": run.seed, **place})
                result = self._train_one(run, hooks, command)
                announce({"kind": "run_end", **run.row()})
                if result is None:
                    continue
                if result.outcome == "failed":
                    failed[run.path.name] = result.message
                if result.outcome == "stopped" or result.signal_exit is not None:
                    code = result.signal_exit or signals.code
                    return SweepOutcome(failed, replace(result, outcome="stopped", signal_exit=code))
        return SweepOutcome(failed)

    def result(self) -> dict[str, Any]:
        """Return the sweep and the state and score of each run, as `pbtrl sweep --json` prints them."""
        return {"schema": SCHEMA, "name": self.folder.name, "path": str(self.folder), **self.description()} | {
            "runs": [run.row() for run in self.runs]
        }

    def description(self) -> dict[str, Any]:
        """Return the plan as JSON: grid, seeds and arms; the steps are those of one run."""
        return {
            "grid": {key: list(values) for key, values in self.grid.items()},
            "seeds": list(self.seeds),
            "unequal": self.unequal,
            "arms": [
                {
                    "name": arm.name,
                    "config": arm.label,
                    "settings": dict(arm.settings),
                    "trains": arm.trains,
                    "steps": arm.steps,
                    "unit": arm.config.unit.replace(" ", "_"),
                }
                for arm in self.arms
            ],
        }

    def _train_one(self, run: SweepRun, hooks: SessionHooks, command: Sequence[str]) -> SessionResult | None:
        """Train or resume one run, as `start_part`; errors other than a full disk fail it alone."""
        tree = {**run.arm.config.to_dict(), "seed": run.seed}
        try:
            return start_part(tree, hooks, folder=self.folder, name=run.path.name, command=command)
        except DiskFullError:
            raise
        except PbtrlError as error:
            return SessionResult(run.path, "failed", str(error))
        except Exception as error:
            hooks.presenter.warn(traceback.format_exc().rstrip())
            return SessionResult(run.path, "failed", f"{type(error).__name__}: {error}")

    def _seconds_left(self, known: dict[Path, float]) -> float | None:
        """Estimate the seconds of all runs that are not finished, from those that are; None before the first one.

        Args:
            known: seconds of finished runs, to which those of others are added.
        """
        finished = [run for run in self.runs if run.is_complete]
        if not finished:
            return None
        known |= {run.path: run.row()["seconds"] for run in finished if run.path not in known}
        per_step = sum(known[run.path] for run in finished) / sum(run.arm.steps for run in finished)
        each = {}
        for arm in self.arms:
            seconds = [known[run.path] for run in finished if run.arm is arm]
            each[arm.name] = sum(seconds) / len(seconds) if seconds else arm.steps * per_step
        return sum(each[run.arm.name] for run in self.runs if run not in finished)

    def _save(self) -> None:
        """Write sweep.json, also while other processes begin the same sweep, or another one of the same name."""
        arms = [
            ArmRecord(
                name=arm.name, config=arm.label, settings=dict(arm.settings), steps=arm.steps,
                sha256=text_digest(arm.text), text=arm.text,
            )
            for arm in self.arms
        ]  # fmt: skip
        grid = {key: list(values) for key, values in self.grid.items()}
        with lock_group(self.folder, SWEEP_FILE):
            stored = _stored(self.folder)
            if stored is not None and stored != self.stored:
                _check_same(self.folder, stored, self.arms)
            seeds = dict.fromkeys([*(stored.seeds if stored else []), *self.seeds])
            write_sweep(self.folder, SweepRecord(grid=grid, seeds=list(seeds), unequal=self.unequal, arms=arms))


def plan(
    configs: Sequence[ConfigInput], *, root: Path, name: str | None = None, overrides: Sequence[str] = (),
    grid: Mapping[str, Sequence[str]] | None = None, seeds: int | Sequence[int] | None = None, unequal: bool = False,
    trusted: bool = False,
) -> Sweep:  # fmt: skip
    """Plan a new sweep, or find what is left of one; every arm is checked, and nothing is trained or written.

    Args:
        configs: configs of the arms; without any, the sweep `name` continues with the configs that it stored.
        root: directory of all runs.
        name: name of the sweep's directory; by default that of the first config with `-sweep`.
        overrides: `section.key=value` for every arm.
        grid: values of each setting that varies, as YAML text.
        seeds: seeds of the replications, or their number: the first config's seed and those after it. By default those
            of before, or five. A sweep that exists keeps those that it has.
        unequal: allow arms that train for different numbers of steps.
        trusted: import modules that a stored sweep names and `configs` do not.

    Raises:
        ConfigError: an arm cannot run or begin from what `init_from` names, or `seeds` are neither a number nor a list
            of different seeds.
        RunError: there is no such sweep, another one has that name, or the arms would not train equally long.
        DamagedError: sweep.json is damaged.
    """
    if configs:
        arms = make_arms(configs, overrides, grid or {})
        folder = group_folder(root, f"{arms[0].experiment[:58]}-sweep" if name is None else name, SWEEP_FILE)
        if (stored := _stored(folder)) is not None:
            names = {arm.text: arm.name for arm in stored.arms}  # another version may have named them
            arms = [replace(arm, name=names.get(arm.text, arm.name)) for arm in arms]
            _check_same(folder, stored, arms, trusted=trusted)
        else:
            _check_warm_starts(arms, root)
        values = {key: list({repr(v): v for v in (a.settings[key] for a in arms)}.values()) for key in grid or {}}
    elif name is None:
        raise RunError("name a config to sweep, or a sweep to continue")
    elif grid or overrides:
        raise RunError("a sweep continues as it began: give its configs to change settings, and another --name")
    else:
        folder = group_folder(root, name, SWEEP_FILE)
        stored = read_sweep(folder)
        check_links(folder)
        arms = [
            Arm(arm.name, arm.config, arm.settings, prepare(parse_stored_config(folder, arm.text, trusted=trusted)))
            for arm in stored.arms
        ]
        values = stored.grid
    sweep = Sweep(
        folder,
        tuple(arms),
        _seeds(seeds, arms[0].config.seed, stored.seeds if stored else []),
        values,
        unequal or (stored is not None and stored.unequal),
        stored,
    )
    _check_equal(sweep)
    return sweep


def _seeds(wanted: int | Sequence[int] | None, first: int, stored: Sequence[int]) -> tuple[int, ...]:
    """Return the stored seeds and the wanted ones."""
    if wanted is None:
        return tuple(stored) or tuple(_new_seeds(DEFAULT_SEEDS, first))
    return tuple(dict.fromkeys([*stored, *_new_seeds(wanted, first)]))


def _new_seeds(wanted: Any, first: int) -> list[int]:
    """Return the seeds of a list, or a number of them from `first` on; integers of numpy are integers too."""
    seeds = range(first, first + int(wanted))[: MAX_SEEDS + 1] if _is_whole(wanted) else wanted
    seeds = list(seeds) if isinstance(seeds, Iterable) else []
    valid = [int(seed) for seed in seeds if _is_whole(seed) and 0 <= seed < 10**SEED_DIGITS]
    if len(set(valid)) != len(seeds) or not 1 <= len(seeds) <= MAX_SEEDS:
        raise ConfigError([
            f"seeds: must be a number of seeds from 1 to {MAX_SEEDS:,}, or a list of different seeds of at most "
            f"{SEED_DIGITS} digits such as 3,7,11, not {shown(wanted)}"
        ])  # fmt: skip
    return valid


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_warm_starts(arms: Sequence[Arm], root: Path) -> None:
    """Check that the snapshots that `init_from` names exist and fit."""
    for arm in arms:
        if arm.source is not None:
            check_warm_start(arm.config, arm.source, root)


def _stored(folder: Path) -> SweepRecord | None:
    """Return what was stored of a sweep that was begun before."""
    return read_sweep(folder) if (folder / SWEEP_FILE).is_file() else None


def _check_same(folder: Path, stored: SweepRecord, arms: Sequence[Arm], *, trusted: bool = False) -> None:
    """Check that a sweep that was begun before has the same arms."""
    before, now = ([arm.name for arm in some] for some in (stored.arms, arms))
    if set(before) != set(now):
        raise _other(folder, f"its arms are {', '.join(before)}, not {', '.join(now)}")
    texts = {arm.name: arm.text for arm in stored.arms}
    for arm in (arm for arm in arms if arm.text != texts[arm.name]):
        config = parse_stored_config(folder, texts[arm.name], trusted=trusted, known=arm.config.imports)
        for setting, (old, new) in changed_settings(config, arm.config).items():
            if setting.split(".")[0] not in NEUTRAL:
                raise _other(folder, f"{setting} of {arm.name} is {old}, not {new}")


def _other(folder: Path, why: str) -> RunError:
    return RunError(f"{folder} is another sweep ({why}): choose another --name")


def _check_equal(sweep: Sweep) -> None:
    """Check that all arms are planned to train for as many steps."""
    steps = [arm.steps for arm in sweep.arms]
    if sweep.unequal or max(steps) <= EQUAL * min(steps):
        return
    raise RunError(
        f"the arms would train for different numbers of steps:\n{plan_table(sweep.description())}\n"
        f"give all of them the same budget, as in budget.total_steps={min(steps)}, or allow it with --unequal "
        "(in Python, unequal=True)"
    )
