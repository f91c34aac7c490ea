"""Python API: train, resume and read runs from scripts and notebooks.

    run = pbtrl.train("quickstart", overrides=["seed=2"])
    run.best, run.evaluate(), run.load_policy().predict(observation)

Every error is a `PbtrlError`. Nothing is printed unless a progress view is requested; warnings go to the logger
`pbtrl`. Signal handlers are installed only in the main thread and only while a run trains.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from typing_extensions import override

from pbtrl.config.load import check, read
from pbtrl.config.plain_values import plain
from pbtrl.config.schema import Config
from pbtrl.core.member import Member
from pbtrl.core.records import Record, ReportRecord, UnknownRecord
from pbtrl.errors import ConfigProblem, RunError, TrainingError
from pbtrl.reporting.plot_names import PLOT_NAMES, Plot
from pbtrl.storage import run_status
from pbtrl.storage.best_member import best_snapshot
from pbtrl.storage.run_creation import IfExists
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_lookup import find, run_directories
from pbtrl.storage.stored_config import load_stored_config
from pbtrl.system.argument_checks import as_path, check_choice, check_text, check_texts, whole_number
from pbtrl.system.strict_json import to_json
from pbtrl.system.torch_settings import torch_settings_restored
from pbtrl.training.callbacks import Callback, CallbackListener

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pbtrl.reporting.comparison.comparison import Comparison
    from pbtrl.reporting.presenter import TerminalPresenter
    from pbtrl.rl.policy import Policy
    from pbtrl.training.session import SessionHooks, SessionResult
    from pbtrl.training.sweep import Sweep
    from pbtrl.training.sweep_arms import ConfigInput

Progress = Literal["auto", "live", "plain", "json", "none"]


@torch_settings_restored()
def train(
    config: str | Path | Mapping[str, Any], *, overrides: Sequence[str] = (), runs: str | Path = "runs",
    name: str | None = None, if_exists: IfExists = "error", progress: Progress = "auto",
    callbacks: Sequence[Callback] = (),
) -> Run:  # fmt: skip
    """Train a population and choose its best member.

    Args:
        config: a YAML file, the name of a shipped config, or a dictionary with the same keys.
        overrides: `"section.key=value"`, as on the command line.
        runs: directory of all runs.
        name: name of the run; by default the config's, or env and time.
        if_exists: action if a run of that name exists: `error`, `resume`, `overwrite` or `suffix`.
        progress: `live`, `plain`, `json` or `none`; `auto` is `live` on a terminal and `none` elsewhere.
        callbacks: observers of the run, which may request a stop.

    Returns:
        The run; its `status()["state"]` is `finished`, or `stopped` after Ctrl-C or a callback's request.

    Raises:
        ConfigError: the config is invalid; nothing was started.
        RunError: the run exists, is in use or cannot be written.
        TrainingError: the run failed; it can be resumed once the cause is removed.
        CallbackError: a callback raised; the run can be resumed.
        DiskFullError: no space left; the run can be resumed.
    """
    from pbtrl.training.start import start

    check_choice("if_exists", if_exists, get_args(IfExists))
    check_texts("overrides", overrides)
    if name is not None:
        check_text("name", name)
    source, listener = read(config, overrides), CallbackListener(callbacks)
    checked, hooks = check(source), _hooks(progress, listener)
    result = start(checked, source, hooks, root=as_path("runs", runs), name=name, if_exists=if_exists, command=sys.argv)
    return _finish(result, listener)


@torch_settings_restored()
def resume(
    run: str | Path = "last", *, overrides: Sequence[str] = (), runs: str | Path = "runs", progress: Progress = "auto",
    callbacks: Sequence[Callback] = (), trust_imports: bool = False,
) -> Run:  # fmt: skip
    """Resume a stopped, failed or finished run.

    Args:
        run: `last`, the name of a run, a unique prefix of it, or a path.
        overrides: a longer budget, as in `budget.env_steps_per_member=2e6`, or settings of the sections `execution`,
            `final`, `snapshots` and `failure`, or `acting.placement`.
        runs, progress, callbacks: as in `train`.
        trust_imports: import the modules that the run's config names. This runs their code, so trust the author of the
            run.

    Raises:
        RunError: the run does not exist, is in use or damaged, or its config names a module that is not trusted.
        TrainingError, CallbackError, DiskFullError, ConfigError: as in `train`.
    """
    from pbtrl.training.start import resume as resume_run

    check_texts("overrides", overrides)
    listener = CallbackListener(callbacks)
    result = resume_run(
        find(str(run), as_path("runs", runs)), _hooks(progress, listener), command=sys.argv, overrides=overrides,
        trusted=trust_imports,
    )  # fmt: skip
    return _finish(result, listener)


@torch_settings_restored()
def sweep(
    config: ConfigInput | Sequence[ConfigInput] | None = None, *, grid: Mapping[str, Sequence[Any]] | None = None,
    seeds: int | Sequence[int] | None = None, overrides: Sequence[str] = (), runs: str | Path = "runs",
    name: str | None = None, unequal: bool = False, progress: Progress = "auto", trust_imports: bool = False,
) -> Sweep:  # fmt: skip
    """Train a grid of settings with several seeds each, at equal compute; the same call continues an interrupted sweep.

    Args:
        config: one or several configs, as in `train`; without any, the sweep `name` continues.
        grid: values of each setting that varies, as in `{"strategy.name": ["pbt", "random_search"]}`.
        seeds: list of seeds, or their number, from the config's seed on; by default five.
        overrides, runs, progress: as in `train`.
        name: name of the sweep's directory; by default that of the first config with `-sweep`.
        unequal: allow arms that train for different numbers of steps.
        trust_imports: import the modules that a stored sweep names, if it continues without `config`.

    Returns:
        The sweep; `result()["runs"]` has state, score and path of each run. Some are not finished after Ctrl-C,
        or while another process trains them.

    Raises:
        ConfigError: an arm cannot run, or `grid` or `seeds` are invalid; nothing was started.
        RunError: another sweep has that name, its directory cannot be written, or the arms would not train equally
            long; nothing was started.
        TrainingError: runs failed or are damaged; all others were trained. Once the causes are removed, the same call
            continues.
        DiskFullError: no space left; the sweep can be continued.
    """
    from pbtrl.reporting.presenter import PartPresenter
    from pbtrl.reporting.sweep_tables import event_text
    from pbtrl.training.sweep import plan
    from pbtrl.training.sweep_arms import grid_text

    check_texts("overrides", overrides)
    if name is not None:
        check_text("name", name)
    if isinstance(config, str | Path | Mapping) or not isinstance(config, Iterable):
        config = [] if config is None else [config]
    planned = plan(
        list(config), root=as_path("runs", runs), name=name, overrides=overrides, grid=grid_text(grid or {}),
        seeds=seeds, unequal=unequal, trusted=trust_imports,
    )  # fmt: skip
    hooks = _hooks(progress, CallbackListener(()), PartPresenter)
    for note in dict.fromkeys(note for arm in planned.arms for note in arm.notes):
        hooks.presenter.warn(note)
    outcome = planned.train(hooks, lambda event: hooks.presenter.say(event_text(event)), sys.argv)
    if outcome.failed:
        texts = "; ".join(f"{run}: {message}" for run, message in outcome.failed.items())
        raise TrainingError(f"{len(outcome.failed)} of {len(planned.runs)} runs failed: {texts}")
    return planned


def load_run(run: str | Path = "last", *, runs: str | Path = "runs", trust_imports: bool = False) -> Run:
    """Find a run by `last`, its name, a unique prefix of it, or its path.

    Raises:
        RunError: there is no such run, or there are several.
    """
    return Run(find(str(run), as_path("runs", runs)).path, trust_imports=trust_imports)


def list_runs(runs: str | Path = "runs") -> list[Run]:
    """List all runs in a directory, sorted by name."""
    return [Run(run.path) for run in sorted(run_directories(as_path("runs", runs)))]


def compare(
    selected: str | Path | Run | Sequence[str | Path | Run], *, metric: str = "score", runs: str | Path = "runs"
) -> Comparison:
    """Compare strategies, agents or configs by independent runs, as `pbtrl compare` does.

    Args:
        selected: runs (names, prefixes, paths, `Run`), or a folder that holds runs, such as that of a sweep.
        metric: `score` (of the chosen member), `fitness`, `median` or `steps_to=VALUE`.
        runs: directory of all runs.

    Returns:
        Groups of replications with their statistics, and the comparison of each two. `print` it, or use `markdown`,
        `to_json` and `save`, which writes the page.

    Raises:
        RunError: there is no such run or metric, or two runs cannot be compared.
        DamagedError: a run is damaged; in a folder it is left out.
    """
    from pbtrl.reporting.comparison.comparison import compare

    check_text("metric", metric)
    several = [selected] if isinstance(selected, str) or not isinstance(selected, Iterable) else [*selected]
    if wrong := [one for one in several if not isinstance(one, str | Path | Run)]:
        raise RunError(f"selected must be runs, or a folder of runs, not {wrong[0]!r:.80}")
    return compare([str(one.path if isinstance(one, Run) else one) for one in several], as_path("runs", runs), metric)


class Run:
    """Run directory: its config, journal and members. Every access reads the files again, also while the run trains.

    Attributes:
        path: the run directory.
    """

    def __init__(self, path: str | Path, *, trust_imports: bool = False) -> None:
        self.path = as_path("path", path)
        self._run = RunDirectory(self.path)
        self._trusted = trust_imports

    @override
    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return self.path.name

    @property
    def config(self) -> Config:
        """Resolved config."""
        return load_stored_config(self._run, trusted=self._trusted, makes_envs=False)

    @property
    def members(self) -> dict[str, Member]:
        """Current state of every member, by id, from the journal."""
        return self._run.load()[2].members

    @property
    def journal(self) -> list[Record]:
        """Journal as typed records, oldest first, without its header."""
        return [r for r in self._run.load()[1][1:] if not isinstance(r, UnknownRecord)]

    @property
    def best(self) -> dict[str, Any] | None:
        """Content of best.json: the chosen member, its hyperparameters and its score; None before the choice."""
        return self._run.best() or None

    def status(self) -> dict[str, Any]:
        """Return state, steps and members of the run, as `pbtrl status --json` prints them."""
        return run_status.status(self._run)

    def lineage(self) -> list[dict[str, Any]]:
        """Return all copies, oldest first, as `pbtrl lineage --json` prints them."""
        from pbtrl.reporting.lineage import copies

        return copies(self._run.load()[1])

    def schedule(self, member: str = "best") -> list[dict[str, Any]]:
        """Return the hyperparameters along the ancestry of a member's newest snapshot.

        Args:
            member: `best`, or an id such as `m03`.

        Returns:
            Points such as `{"at": 0, "learning_rate": 1e-3}`, in the form of `strategy.schedule` of the strategy
            `schedule_replay`; `at` is the number of steps trained before.
        """
        from pbtrl.reporting.schedule import discover

        return discover(self._run, member).setting()

    def set(self, settings: Mapping[str, Any] | None = None, *, retire: Sequence[str] = ()) -> str:
        """Change the run from its next decision on, also while another process trains it; see `pbtrl set`.

        Args:
            settings: values by dotted key, such as `{"strategy.explore.factors": [1.5, 0.7]}`.
            retire: members that get no further assignment.

        Returns:
            What was done, in words.

        Raises:
            RunError: a key may not change, a value is invalid, or the run is finished; nothing was changed.
        """
        from pbtrl.training.adjusting import set_run

        check_texts("retire", retire)
        try:
            values = plain({} if settings is None else settings)
        except ConfigProblem as problem:
            raise RunError(str(problem)) from problem
        if not isinstance(values, dict):
            raise RunError(f"settings must map keys to values, not {settings!r:.80}")
        items = [f"{key}={to_json(value)}" for key, value in values.items()]
        return set_run(self._run, [*items, *(f"retire={member}" for member in retire)], trusted=self._trusted)

    def fitness(self) -> Any:
        """Return one row per report.

        Columns: `member`, `generation`, `env_steps`, `elapsed` (seconds), `fitness` and `hparams/<name>`.

        Returns:
            A pandas DataFrame if pandas is installed, else a list of dictionaries.
        """
        rows = self._fitness_rows()
        try:
            import pandas as pd  # type: ignore[import-untyped,import-not-found,unused-ignore]
        except ImportError:
            return rows
        return pd.DataFrame(rows)

    def _fitness_rows(self) -> list[dict[str, Any]]:
        header, records, _ = self._run.load()
        population = header.population()
        rows: list[dict[str, Any]] = []
        for record in records:
            population.record(record)
            if isinstance(record, ReportRecord):
                member = population.members[record.report.member]
                rows.append({
                    "member": member.id,
                    "generation": member.generation,
                    "env_steps": member.step,
                    "elapsed": record.elapsed,
                    "fitness": member.fitness,
                    **{f"hparams/{name}": value for name, value in record.report.hyperparameters.items()},
                })  # fmt: skip
        return rows

    @torch_settings_restored()
    def evaluate(
        self,
        member: str = "best",
        *,
        episodes: int | None = None,
        seed: int = 0,
        deterministic: bool = False,
        video: int = 0,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Evaluate a member's newest snapshot on fresh episodes, with raw returns.

        Args:
            member: `best`, an id such as `m03`, or `all`, which gives a list.
            episodes: episodes per member; by default 30.
            seed: seed of envs and actions.
            deterministic: take the most likely actions instead of samples.
            video: number of episodes of which a video is written to the run's `eval/`.

        Returns:
            Mean, 95 % interval and more, as `pbtrl eval --json` prints them. They are also saved in the run's
            `eval/`; a warning says if that is not possible.
        """
        from pbtrl.reporting.presenter import LOGGER
        from pbtrl.training.scoring import evaluate_member

        episodes = None if episodes is None else whole_number("episodes", episodes, 1, 1_000_000)
        seed = whole_number("seed", seed, 0, 2**64 - 1)
        video = whole_number("video", video, 0, 16)
        self._run.check_links()
        config = load_stored_config(self._run, trusted=self._trusted)
        results, unsaved = evaluate_member(
            config, self._run, member, episodes=episodes, seed=seed, deterministic=deterministic, video=video
        )
        if unsaved:
            LOGGER.warning(unsaved)
        return results if member == "all" else results[0]

    def load_policy(self, member: str = "best", *, seed: int = 0) -> Policy:
        """Load the policy of a member's newest snapshot. It needs neither the env nor its package.

        Args:
            member: `best`, or an id such as `m03`.
            seed: seed of sampled actions.

        Raises:
            RunError: the run trains no policies, or there is no such member or snapshot.
        """
        from pbtrl.build.policies import load_policy

        seed = whole_number("seed", seed, 0, 2**64 - 1)
        return load_policy(self._run, self.config, member, trusted=self._trusted, seed=seed).policy

    def export(self, member: str = "best", *, format: str = "bundle", out: str | Path | None = None) -> Path:
        """Write the policy of a member's newest snapshot for use without pbtrl, as `pbtrl export` does.

        Args:
            member: `best`, or an id such as `m03`.
            format: `bundle` (weights and a policy.py that needs numpy alone), `onnx`, or `hub` (a bundle with a model
                card).
            out: folder; by default `export/MEMBER-FORMAT` in the run directory. An earlier export is replaced.

        Returns:
            The folder.

        Raises:
            RunError: the run trains no policies, there is no such member or snapshot, the folder is something else, a
                package is missing, or the exported policy differs from pbtrl's.
        """
        from pbtrl.export.export import export

        self._run.check_links()
        return export(
            self._run, self.config, member, format, None if out is None else as_path("out", out), trusted=self._trusted
        ).folder

    def plot(self, kind: Plot = "training") -> Figure:
        """Draw a figure of the run, one of those in `pbtrl report`."""
        from pbtrl.reporting.plots import RunData, make_figure

        check_choice("kind", kind, PLOT_NAMES)
        header, records, population = self._run.load()
        leader = population.best.snapshot if population.best else None
        return make_figure(RunData(header, records, population, best_snapshot(self._run) or leader), kind)


def _hooks(progress: Progress, listener: CallbackListener, kind: type[TerminalPresenter] | None = None) -> SessionHooks:
    """Return the hooks of a session that shows its progress by a presenter of this kind."""
    from pbtrl.reporting.presenter import SilentPresenter, TerminalPresenter
    from pbtrl.training.session import SessionHooks

    check_choice("progress", progress, get_args(Progress))
    if progress == "auto":
        progress = "live" if sys.stdout is not None and sys.stdout.isatty() else "none"
    presenter = SilentPresenter() if progress == "none" else (kind or TerminalPresenter)(progress)
    return SessionHooks(presenter, [listener], lambda: listener.stop_requested)


def _finish(result: SessionResult, listener: CallbackListener) -> Run:
    if result.outcome == "failed":
        raise TrainingError(result.message)
    run = Run(result.run, trust_imports=True)
    if result.outcome == "finished":
        listener.finish(run.best)
    return run
