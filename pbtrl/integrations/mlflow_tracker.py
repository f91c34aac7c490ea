"""Tracker for MLflow (extra `mlflow`, mlflow-skinny): a parent run for the population, and a nested run per member.

The server comes from MLFLOW_TRACKING_URI; MLflow's default is a database file. Exploits are tags and a metric of the
receiver. The stores with a database ignore a point that they have.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # before the import; 7 of them take minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunData
from mlflow.exceptions import MlflowException
from typing_extensions import override

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
from pbtrl.system.strict_json import to_json

BATCH = 1000  # metrics per request, MLflow's limit
PARAMS = 100  # parameters per request, MLflow's limit
IDENTIFIER = "pbtrl.id"  # tag by which a later session finds its runs


class MlflowTracker(Tracker):
    """Client of MLflow.

    Args:
        about: run to track.
        project: MLflow experiment.

    Raises:
        TrackingError: the store cannot be reached.
    """

    def __init__(self, about: TrackedRun, project: str) -> None:
        self._about = about
        self._ids: dict[str, str] = {}
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        try:
            self._client = MlflowClient()
            experiment = self._client.get_experiment_by_name(project)
            self._experiment = experiment.experiment_id if experiment else self._client.create_experiment(project)
            self._params(POPULATION, about.config)
        except (MlflowException, OSError) as error:
            raise _refused(error) from error
        self.where = f"MLflow experiment {project} in {_public(self._client.tracking_uri)}, run {about.group}"

    @override
    def take(self, events: Sequence[Event]) -> None:
        metrics: dict[str, list[Metric]] = {}
        for event in events:
            match event:
                case Started(member, role, hyperparameters):
                    initial = {f"initial.{name}": value for name, value in hyperparameters.items()}
                    self._params(member, {"member": member, **({"role": role} if role else {}), **initial})
                case MetricPoints(name, step, time, values):
                    metrics.setdefault(name, []).extend(_metrics(step, time, values))
                case ExploitEvent(member, _, step, time, number):
                    metrics.setdefault(member, []).extend(_metrics(step, time, {"exploit": float(number)}))
                    self._call("set_tag", member, f"exploit.{step}", event.text[:5000])
                case Ended(member):
                    self._call("set_terminated", member)
        for name, own in metrics.items():
            for first in range(0, len(own), BATCH):
                self._call("log_batch", name, metrics=own[first : first + BATCH])

    @override
    def finish(self, outcome: RunOutcome) -> None:
        exploits = [{**vars(e), "text": e.text} for e in outcome.exploits]
        self._call("log_text", POPULATION, to_json(outcome.members, indent=2), "members.json")
        self._call("log_text", POPULATION, to_json(exploits, indent=2), "exploits.json")
        for path in outcome.files:
            self._call("log_artifact", POPULATION, str(path))
        if best := outcome.best:
            self._call("set_tag", POPULATION, "best.member", best.member)
            if (score := best.evaluation.return_mean) is not None:
                self._call("set_tag", POPULATION, "best.score", score)
        for row in outcome.members:
            if row["member"] in self._ids or row[self._about.unit]:
                self._call("set_terminated", row["member"])
        self._call("set_terminated", POPULATION)

    @override
    def close(self) -> None:
        pass

    def _params(self, name: str, values: Mapping[str, Any]) -> None:
        """Log parameters. MLflow refuses to change one, so a value that changed since becomes a tag."""
        texts = {_key(key): str(value)[:6000] for key, value in values.items()}
        known = self._call("get_run", name).data if self._about.continued else RunData()
        params = [Param(key, text) for key, text in texts.items() if key not in known.params]
        for first in range(0, len(params), PARAMS):
            self._call("log_batch", name, params=params[first : first + PARAMS])
        for key in texts.keys() & known.params.keys():
            tag, text = f"changed.{key}"[:250], texts[key][:5000]
            if known.tags.get(tag, known.params[key][:5000]) != text:
                self._call("set_tag", name, tag, text)

    def _call(self, method: str, name: str, *args: Any, **keywords: Any) -> Any:
        try:
            return getattr(self._client, method)(self._id(name), *args, **keywords)
        except (MlflowException, OSError) as error:
            raise _refused(error) from error

    def _id(self, name: str) -> str:
        """Find the MLflow run of a member, or create it."""
        if name not in self._ids:
            mark = self._about.id_of(name)
            query = f"tags.`{IDENTIFIER}` = '{mark}'"
            runs = self._client.search_runs([self._experiment], query, max_results=1) if self._about.continued else []
            self._ids[name] = runs[0].info.run_id if runs else self._create(name, mark)
        return self._ids[name]

    def _create(self, name: str, mark: str) -> str:
        tags = {IDENTIFIER: mark, "pbtrl.group": self._about.group}
        if name != POPULATION:
            tags["mlflow.parentRunId"] = self._id(POPULATION)
        title = self._about.group if name == POPULATION else name
        return str(self._client.create_run(self._experiment, tags=tags, run_name=title).info.run_id)


def _metrics(step: int, time: float, values: Mapping[str, float]) -> list[Metric]:
    return [Metric(_key(tag), y, round(1000 * time), step) for tag, y in values.items()]


def _key(name: str) -> str:
    """Replace what MLflow refuses in a name."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)[:250]


def _refused(error: Exception) -> TrackingError:
    return TrackingError(f"MLflow: {_public(str(error).strip().partition(chr(10))[0])[:300]}")


def _public(text: str) -> str:
    """Remove user names and passwords from the URIs in a text."""
    return re.sub(r"//[^/@\s]*@", "//", text)
