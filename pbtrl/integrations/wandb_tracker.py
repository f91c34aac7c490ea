"""Tracker for Weights & Biases (extra `wandb`): one W&B run per member, all in one group.

Mode, key and entity come from W&B's own environment variables and `wandb login`. `WANDB_MODE=offline` works without
network and key. The x axis of all charts is the member's clock.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from typing_extensions import override
from wandb.errors import Error

from pbtrl.errors import TrackingError
from pbtrl.integrations.tracking_events import (
    POPULATION,
    Ended,
    Event,
    ExploitEvent,
    MetricPoints,
    RunOutcome,
    Started,
    TrackedRun,
    Tracker,
)

TIMEOUT = 30.0  # seconds to reach the service


class WandbTracker(Tracker):
    """Client of W&B.

    Args:
        about: run to track.
        project: W&B project.

    Raises:
        TrackingError: no key, or the service cannot be reached.
    """

    def __init__(self, about: TrackedRun, project: str) -> None:
        self._about, self._project = about, project
        self._runs: dict[str, Any] = {}
        wandb.setup(settings=wandb.Settings(silent=True))
        population = self._run(POPULATION)
        population.config.update(dict(about.config), allow_val_change=True)
        folder = Path(population.dir).parents[1]
        offline = f", offline; to send it: wandb sync {folder}/offline-run-*-{_identifier(about.group)}-*"
        self.where = f"W&B project {project}, group {about.group}" + (offline if population.offline else "")

    @override
    def take(self, events: Sequence[Event]) -> None:
        for event in events:
            match event:
                case Started(member, role, hyperparameters):
                    values = {"member": member, "role": role, "initial": hyperparameters, **self._about.config}
                    self._run(member).config.update(values, allow_val_change=True)
                case MetricPoints(name, step, time, values):
                    self._log(name, step, time, values)
                case ExploitEvent(member, donor, step, time, number):
                    text = {"exploit/event": event.text, "exploit/donor": donor, "exploit/number": number}
                    self._log(member, step, time, text)
                case Ended(member):
                    if member in self._runs:
                        self._runs.pop(member).finish()

    @override
    def finish(self, outcome: RunOutcome) -> None:
        run = self._run(POPULATION)
        run.log({"members": _table(outcome.members), "exploits": _table([_row(e) for e in outcome.exploits])})
        if best := outcome.best:
            run.summary.update({"best/member": best.member, "best/score": best.evaluation.return_mean})
        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "_", self._about.group), type="pbtrl-run")
        for path in outcome.files:
            artifact.add_file(str(path), name=path.name)
        run.log_artifact(artifact)

    @override
    def close(self) -> None:
        for run in self._runs.values():
            run.finish()
        self._runs.clear()

    def _log(self, name: str, step: int, time: float, values: Mapping[str, Any]) -> None:
        self._run(name).log({self._about.unit: step, "_timestamp": time, **values})

    def _run(self, name: str) -> Any:
        """Open the W&B run of a member, or the one of an earlier session."""
        if name in self._runs:
            return self._runs[name]
        unit, offline = self._about.unit, os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun")
        try:
            run = wandb.init(
                project=self._project, group=self._about.group, name=name, id=_identifier(self._about.id_of(name)),
                job_type=POPULATION if name == POPULATION else "member", reinit="create_new",
                resume=None if offline else "allow",
                settings=wandb.Settings(
                    silent=True, console="off", init_timeout=TIMEOUT, x_disable_stats=True, disable_code=True,
                ),
            )  # fmt: skip
        except (Error, OSError) as error:
            raise TrackingError(f"W&B: {_reason(error)}; WANDB_MODE=offline works without key and network") from error
        run.define_metric(unit)
        run.define_metric("*", step_metric=unit)
        if name != POPULATION:
            run.define_metric(self._about.metric, step_metric=unit, summary="last,max")
        self._runs[name] = run
        return run


def _identifier(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", text)[-64:]


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _table(rows: Any) -> Any:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return wandb.Table(
        columns=columns, data=[[row.get(key) for key in columns] for row in rows], allow_mixed_types=True
    )


def _row(exploit: ExploitEvent) -> dict[str, Any]:
    before, after = exploit.fitness
    row = {"number": exploit.number, "member": exploit.member, "donor": exploit.donor, "step": exploit.step}
    return {**row, "fitness": before, "donor's fitness": after, "event": exploit.text}
