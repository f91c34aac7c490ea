"""Whole runs of trainables: results, names and units, resume bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pbtrl.storage.json_files import read_json_if_exists
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.testing.trainables import assert_equal
from tests.command import Command

CLASSIFIER = """\
name: digits
seed: 3
trainable: {name: classifier, data: digits, channels: 4}
population: {size: 3, mode: sync}
execution: {backend: inline}
budget: {env_steps_per_member: 12}
hparams:
  learning_rate: {prior: log_uniform, low: 1e-3, high: 0.3}
  dropout: {prior: uniform, low: 0.0, high: 0.5}
strategy: {ready: {slice_steps: 4}}
"""


@pytest.fixture
def digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("digits.yaml").write_text(CLASSIFIER)


@pytest.mark.usefixtures("digits")
def test_metric_has_its_own_name_everywhere(pbtrl: Command) -> None:
    done = pbtrl("train", "digits.yaml", "--progress", "plain")
    assert done.code == 0
    assert "accuracy 0." in done.out
    assert ", on held-out data" in done.out
    assert "fitness" not in done.out
    assert "env step" not in done.out
    assert pbtrl("status", "digits").out.split("\n")[1].split()[:2] == ["member", "accuracy"]
    assert "accuracy" in pbtrl("lineage", "digits").out.split("\n")[0]
    best = read_json_if_exists(Path("runs/digits/best.json"))["evaluation"]
    assert (best["metric"], best["held_out"]) == ("accuracy", True)
    again = pbtrl("eval", "digits").out.split("\n")
    assert again[0].split() == ["member", "snapshot", "accuracy"]
    assert again[1].split()[2] == f"{best['return_mean']:.3f}"
    assert again[2] == "on held-out data, seed 0"
    tags = b"".join(path.read_bytes() for path in Path("runs/digits/tb").rglob("events*"))
    assert b"evaluation/accuracy" in tags
    assert b"episode/" not in tags


@pytest.mark.usefixtures("digits")
def test_selection_never_sees_the_held_out_data(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from pbtrl.trainables.classifier import Classifier

    monkeypatch.setattr(Classifier, "test", lambda self, rng: -1.0)
    assert pbtrl("train", "digits.yaml").code == 0
    best = read_json_if_exists(Path("runs/digits/best.json"))
    assert best["evaluation"]["return_mean"] == -1.0
    assert all(row["return_mean"] >= 0.0 for row in best["selection"])
    assert best["training_fitness"] >= 0.0


@pytest.mark.usefixtures("digits")
def test_stopped_run_continues_bit_for_bit(pbtrl: Command) -> None:
    whole = pbtrl("train", "digits.yaml", "--name", "whole")
    part = pbtrl("train", "digits.yaml", "--name", "part", "budget.env_steps_per_member=8")
    assert (whole.code, part.code) == (0, 0)
    assert pbtrl("resume", "part", "budget.env_steps_per_member=12").code == 0
    assert pbtrl("verify", "whole", "--digest").out == pbtrl("verify", "part", "--digest").out
    stored = [SnapshotStore(Path("runs", name, "members")).load("m00/000002")[0] for name in ("whole", "part")]
    assert_equal(*stored)


@pytest.mark.usefixtures("digits")
def test_trials_of_different_shapes_run_side_by_side(pbtrl: Command) -> None:
    shapes = "hparams={channels: {prior: choice, values: [4, 8]}, kernel: {prior: choice, values: [1, 3]}}"
    options = ("strategy={name: random_search, trials: 6}", "budget.env_steps_per_member=2", "execution.workers=1")
    done = pbtrl("train", "digits.yaml", shapes, *options, "trainable={name: classifier, data: digits}")
    assert done.code == 0, done.err
    members = json.loads(pbtrl("status", "digits", "--json").out)["members"]
    assert len({(m["hyperparameters"]["channels"], m["hyperparameters"]["kernel"]) for m in members}) > 1
    assert [m["env_steps"] for m in members] == [2] * 6
    assert pbtrl("eval", "digits", "--member", "all").code == 0
    assert pbtrl("verify", "digits").code == 0
