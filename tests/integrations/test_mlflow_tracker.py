"""MLflow's real client, with a store of files or a database on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pbtrl.cli import track as command
from pbtrl.errors import TrackingError
from tests.command import Command
from tests.journal_writer import START, JournalWriter, one_copy

mlflow = pytest.importorskip("mlflow")
mlflow_tracker = pytest.importorskip("pbtrl.integrations.mlflow_tracker")

pytestmark = [pytest.mark.usefixtures("quick_disk"), pytest.mark.filterwarnings("default")]


@pytest.fixture(autouse=True)
def place(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is a folder of the test. A database takes long to make."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    at(monkeypatch, f"file://{Path.cwd()}/store")
    monkeypatch.setattr(command, "_files", lambda run: [run.journal_path])


def at(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)


def tracked(pbtrl: Command) -> str:
    result = pbtrl("track", "a", "--to", "mlflow")
    assert result.code == 0, result.err
    return result.out


def check_sessions(pbtrl: Command) -> JournalWriter:
    """Track a run in two sessions, and check what MLflow has."""
    w = one_copy(Path("runs/a"))
    (w.run / "config.resolved.yaml").write_text("seed: 5\nhparams: {learning_rate: {prior: uniform}}\n")
    tracked(pbtrl)
    w.report("m01", 7.0)
    w.end("finish")
    w.choose("m01", 6.5)
    tracked(pbtrl)
    assert tracked(pbtrl) == "nothing is new\n"
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("pbtrl").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    group = "a-" + json.loads((w.run / "track-mlflow.json").read_text())["id"]
    assert set(runs) == {group, "m00", "m01"}
    parent, member = runs[group], runs["m01"]
    assert parent.data.params["seed"] == "5"
    assert parent.data.tags["best.score"] == "6.5"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert member.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert member.data.params["initial.learning_rate"] == "0.1"
    assert member.data.tags["exploit.100"].startswith("m01 <- m00: learning_rate 0.1 -> 0.005")
    history = client.get_metric_history(member.info.run_id, "fitness")
    assert [(m.step, m.value, m.timestamp) for m in history] == [
        (100, -5.0, 1000 * (START + 30)),
        (200, 7.0, 1000 * (START + 50)),
    ]
    rates = client.get_metric_history(member.info.run_id, "hparams/learning_rate")
    assert sorted((m.step, m.value) for m in rates) == [(0, 0.1), (100, 0.005), (100, 0.1), (200, 0.005)]
    population = client.get_metric_history(parent.info.run_id, "population/fitness_max")
    assert [m.value for m in population] == [3.0, 3.0, 7.0]
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {"members.json", "exploits.json", "journal.jsonl"}
    return w


def test_sessions_make_a_parent_and_a_run_per_member(pbtrl: Command) -> None:
    check_sessions(pbtrl)


def tracked_runs() -> list[Any]:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("pbtrl").experiment_id
    return list(client.search_runs([experiment]))


def test_changed_setting_is_a_tag(pbtrl: Command) -> None:
    """As after a resume; MLflow refuses to change a parameter."""
    w = one_copy(Path("runs/a"))
    config = w.run / "config.resolved.yaml"
    for number, (budget, tag) in enumerate(((100, None), (200, "200"), (200, "200"), (100, "100"))):
        config.write_text(f"seed: 5\nbudget: {{env_steps_per_member: {budget}}}\n" + "name: a\n" * (number > 0))
        w.report("m01", 7.0)
        w.decide(w.next("m01"))
        tracked(pbtrl)
        (parent,) = (run.data for run in tracked_runs() if run.info.run_name.startswith("a-"))
        assert parent.params["budget.env_steps_per_member"] == "100"
        assert parent.tags.get("changed.budget.env_steps_per_member") == tag
        assert "changed.seed" not in parent.tags
    assert parent.params["name"] == "a"


def test_refusal_at_the_start_makes_no_second_run(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (one_copy(Path("runs/a")).run / "config.resolved.yaml").write_text("seed: 5\n")
    with monkeypatch.context() as inside:
        inside.setattr(mlflow_tracker.MlflowTracker, "take", refuse)
        assert pbtrl("track", "a", "--to", "mlflow").code == 3
    tracked(pbtrl)
    names = [run.info.run_name for run in tracked_runs()]
    assert len(names) == 3, names


def refuse(*_: Any) -> None:
    raise TrackingError("MLflow: no more")


@pytest.mark.slow
def test_database_ignores_points_that_it_has(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a refusal in the middle of a chunk."""
    at(monkeypatch, f"sqlite:///{Path.cwd()}/mlflow.db")
    w = check_sessions(pbtrl)
    position = json.loads((w.run / "track-mlflow.json").read_text())
    (w.run / "track-mlflow.json").write_text(json.dumps({**position, "lines": 1}))
    tracked(pbtrl)
    client = mlflow.MlflowClient()
    runs = {
        run.info.run_name: run for run in client.search_runs([client.get_experiment_by_name("pbtrl").experiment_id])
    }
    assert len(runs) == 3
    assert len(client.get_metric_history(runs["m01"].info.run_id, "fitness")) == 2


def test_absent_server_is_one_line(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    one_copy(Path("runs/a"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    at(monkeypatch, "http://user:secret@127.0.0.1:9")
    refused = pbtrl("track", "a", "--to", "mlflow")
    assert refused.code == 3
    assert refused.err.startswith("MLflow: ")
    assert refused.err.count("\n") == 1
    assert "secret" not in refused.err
