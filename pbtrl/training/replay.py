"""Replay of a discovered schedule, to tell what the schedule is worth from what selection and luck added.

Three new runs train from scratch, for as many steps as the ancestry of the original's best member, with the same seeds:

    schedule    along the discovered schedule
    final       with its final values held constant
    constant    with the best constants

The best constants are the hyperparameters of the fittest member that was trained under the same ones all along. If
those of every member changed, they are the first values of the schedule.

    runs/<run>-replay/  replay.json  schedule/  final/  constant/

Each is an ordinary run with the strategy `schedule_replay`. In the end all members play the same fresh episodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pbtrl.config.adjust import adjusted
from pbtrl.config.schema import Config
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.seeding import evaluation_seed
from pbtrl.errors import RunError
from pbtrl.reporting.schedule import DiscoveredSchedule, constant_settings, discover
from pbtrl.storage.json_files import SCHEMA, read_json_if_exists
from pbtrl.storage.run_creation import group_folder, lock_group
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_lookup import REPLAY_FILE
from pbtrl.storage.run_state import is_complete
from pbtrl.storage.stored_config import load_stored_config
from pbtrl.system.files import write_atomically
from pbtrl.system.strict_json import to_json
from pbtrl.training import scoring
from pbtrl.training.session import SessionHooks, SessionResult
from pbtrl.training.start import start_part

ARMS = ("schedule", "final", "constant")
"""Names of the new runs."""


@dataclass(frozen=True)
class Replay:
    """Replay of a run's schedule in new runs.

    Attributes:
        original: the discovered schedule.
        config: config of the original run.
        seeds: number of members of each new run.
        folder: folder of the new runs.
        constants: the best constants.
        constants_of: member that they are from; None for the first values of the schedule.
    """

    original: DiscoveredSchedule
    config: Config
    seeds: int
    folder: Path
    constants: Hyperparameters
    constants_of: str | None

    @property
    def scored(self) -> bool:
        """Whether `scores` has its result already."""
        return "rows" in self._stored

    @property
    def _stored(self) -> dict[str, Any]:
        return read_json_if_exists(self.folder / REPLAY_FILE)

    def unfinished(self) -> list[str]:
        """List the new runs that are still to be trained."""
        return [arm for arm in ARMS if not is_complete(RunDirectory(self.folder / arm))]

    def train(self, arm: str, hooks: SessionHooks, command: Sequence[str] = ()) -> SessionResult | None:
        """Train one of the new runs, or resume it. Scores from before are forgotten.

        Returns:
            The result; None if another process trains the run or has just finished it.

        Raises:
            RunError: the folder cannot be written, or another process has just begun another replay in it.
            DiskFullError: no space left; the replay can be continued.
        """
        if arm not in self.unfinished():
            return None
        self._save(self.description)
        return start_part(self._tree(arm), hooks, folder=self.folder, name=arm, command=command)

    def scores(self) -> dict[str, Any]:
        """Play the same fresh episodes with every member of the new runs and with the original; done only once.

        Returns:
            The content of replay.json, with `rows` for the original and for each new run. The score of a member is its
            mean return; `return_mean`, `return_min` and `return_max` are over the scores, `ci95` is Student's 95 %
            interval of their mean (null for one member), `members` the evaluations, `unscored` the members that have no
            finite score, and `incomplete` the steps at which members diverged or failed; they are scored there.
        """
        if self.scored:
            return self._stored
        one = self.original
        rows = [self._row("original", one.run, self.config, {one.member: one.snapshot})]
        rows[0]["steps"] = one.steps
        for arm in ARMS:
            run = RunDirectory(self.folder / arm)
            members = run.load()[2].members.values()
            row = self._row(arm, run, self._single, {m.id: m.snapshot for m in members})
            row["steps"] = max(m.step for m in members)
            row["incomplete"] = {m.id: m.step for m in members if m.step < one.steps}
            rows.append(row)
        return self._save({**self.description, "rows": rows})

    @property
    def description(self) -> dict[str, Any]:
        """Content of replay.json: the original run and the schedule."""
        return {
            "schema": SCHEMA,
            **self.original.to_json(),
            "run": self.original.run.name,
            "seeds": self.seeds,
            "constants": self.constants,
            "constants_of": self.constants_of,
        }

    @property
    def _single(self) -> Config:
        """Config of the original run; of a mixed population, that of a run in which all members are of the agent."""
        return self.config.per_agent_configs[self.original.agent] if self.config.agents else self.config

    def _tree(self, arm: str) -> dict[str, Any]:
        """Config of a new run. Only its own budget ends it, and snapshots of all members are kept."""
        points = {
            "schedule": self.original.setting(),
            "final": [{"at": 0, **self.original.points[-1][1]}],
            "constant": [{"at": 0, **self.constants}],
        }[arm]
        tree = self._single.to_dict()
        tree.pop("name", None)
        if tree.get("init_from"):  # the other run may be gone
            tree["init_from"] = f"{self.original.run.path.resolve()}/initial"
        return {
            **tree,
            "seed": evaluation_seed(self.config.seed, "replay training"),
            "population": {"size": self.seeds, "mode": self.config.population.mode},
            "budget": {"env_steps_per_member": self.original.steps},
            "strategy": {
                "name": "schedule_replay",
                "ready": {"slice_steps": self.config.slice_steps},
                "schedule": points,
            },
            "final": {**tree["final"], "candidates": self.seeds},
        }

    def _row(self, name: str, run: RunDirectory, config: Config, snapshots: Mapping[str, str | None]) -> dict[str, Any]:
        """Evaluate members of one run, given by their snapshots."""
        results = scoring.evaluate(
            config, run, [s for s in snapshots.values() if s],
            episodes=self.config.final.episodes, seed=evaluation_seed(self.config.seed, "replay"),
        )  # fmt: skip
        means = {r["member"]: r["return_mean"] for r in results if scoring.is_scored(r)}
        statistics = scoring.return_statistics(list(means.values()))
        return {
            "name": name,
            "run": str(run),
            "seeds": len(means),
            **{key: statistics[key] for key in ("return_mean", "ci95", "return_min", "return_max")},
            "unscored": [m for m in snapshots if m not in means],
            "incomplete": {},
            "members": results,
        }

    def _save(self, content: Mapping[str, Any]) -> dict[str, Any]:
        text = to_json(content, indent=2)
        with lock_group(self.folder, REPLAY_FILE):
            _check_unchanged(self)
            write_atomically(self.folder / REPLAY_FILE, text + "\n")
        saved: dict[str, Any] = json.loads(text)
        return saved


def plan(
    run: RunDirectory, *, seeds: int, member: str = "best", name: str | None = None, trusted: bool = False
) -> Replay:
    """Plan the replay of a run's schedule; nothing is trained or written.

    Args:
        run: run directory.
        seeds: number of members of each new run.
        member: an id, or `best`; see `reporting.schedule.discover`.
        name: name of the folder of the new runs, beside the run; by default that of the run with `-replay`.
        trusted: import modules that the run directory names.

    Raises:
        RunError: the run still trains, its schedule has a single point, or the folder holds something else.
        DamagedError: the run is damaged, or the member's snapshot was deleted.
    """
    if run.holder() is not None:
        raise RunError(f"{run} is training: replay it when it has ended")
    run.check_links()
    _, records, population = run.load()
    config = adjusted(load_stored_config(run, trusted=trusted), records)
    original = discover(run, member)
    if len(original.points) == 1:
        why = "its ancestors never changed them" if population.copies else "no member copied another one"
        raise RunError(
            f"{run} has no schedule to replay: the hyperparameters of {original.snapshot} were the same all along, "
            f"because {why}"
        )
    run.snapshots.load(original.snapshot)
    settings = constant_settings(records, population, original.agent)
    constants_of, constants = next(iter(settings.items()), (None, original.points[0][1]))
    folder = group_folder(run.path.parent, name or f"{run.name}-replay", REPLAY_FILE)
    replay = Replay(original, config, seeds, folder, constants, constants_of)
    _check_unchanged(replay)
    return replay


def _check_unchanged(replay: Replay) -> None:
    """Check that a replay that was begun before is the same."""
    stored = read_json_if_exists(replay.folder / REPLAY_FILE)
    wanted: dict[str, Any] = json.loads(to_json(replay.description))
    changed = [key for key in wanted if stored and stored.get(key) != wanted[key]]
    if changed:
        texts = [f"{k} {stored.get(k)} instead of {wanted[k]}" if k in _SHOWN else f"another {k}" for k in changed]
        raise RunError(f"{replay.folder} is another replay ({', '.join(texts)}): choose another --name")


_SHOWN = ("run", "member", "snapshot", "steps", "seeds")
