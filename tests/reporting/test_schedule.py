"""Discovered schedules from journals written by hand: steps, values, formats, and the choice of the snapshot."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pbtrl.config.load import config_from_dict
from pbtrl.errors import DamagedError, RunError
from pbtrl.reporting.schedule import constant_settings, discover
from pbtrl.storage.run_directory import RunDirectory
from tests.journal_writer import JournalWriter

pytestmark = pytest.mark.usefixtures("quick_disk")

FIRST, SECOND, THIRD = ({"learning_rate": rate, "unroll_length": 20} for rate in (0.01, 0.1 + 0.2, 1e-05))


def copied_late(run: Path, **fields: Any) -> JournalWriter:
    """m00 trains three slices under two settings; m01, at step 100, copies it and trains two slices under a third."""
    w = JournalWriter(run, **fields)
    w.decide(w.next("m00", hyperparameters=FIRST), w.next("m01", hyperparameters=SECOND))
    w.report("m00", 1.0)
    w.report("m01", 0.0)
    w.decide(w.next("m00"))
    w.report("m00", 2.0)
    w.decide(w.next("m00", hyperparameters=SECOND))
    w.report("m00", 3.0)
    w.decide(w.next("m01", donor="m00", hyperparameters=THIRD))
    rounded = {**THIRD, "learning_rate": 9.999999747378752e-06}
    w.report("m01", 4.0, hyperparameters=rounded)
    w.decide(w.next("m01"))
    w.report("m01", 5.0, step=250, hyperparameters=rounded)  # stopped early
    return w


def test_steps_are_those_trained_and_values_those_assigned(tmp_path: Path) -> None:
    """The clock of m01 stands at 250 only, and its learner rounded the learning rate to single precision."""
    copied_late(tmp_path / "a")
    result = discover(RunDirectory(tmp_path / "a"))
    assert result.to_json() == {
        "run": str(tmp_path / "a"), "member": "m01", "snapshot": "m01/000002", "agent": None, "steps": 450,
        "unit": "env_steps",
        "schedule": [{"at": 0, **FIRST}, {"at": 200, **SECOND}, {"at": 300, **THIRD}],
    }  # fmt: skip


def test_formats_hold_every_digit(tmp_path: Path) -> None:
    copied_late(tmp_path / "a")
    result = discover(RunDirectory(tmp_path / "a"))
    text = result.to_yaml()
    assert text.splitlines()[:2] == [
        f"# m01/000002 of {tmp_path / 'a'}",
        "# trained for 450 env steps: budget.env_steps_per_member=450",
    ]
    section = yaml.safe_load(text)["strategy"]
    assert section == {"name": "schedule_replay", "schedule": result.setting()}
    prior = {
        "learning_rate": {"prior": "log_uniform", "low": 1e-6, "high": 1.0},
        "unroll_length": {"prior": "choice", "values": [10, 20]},
    }
    config: Any = config_from_dict({
        "env": {"id": "CartPole-v1", "num_envs": 1}, "budget": {"env_steps_per_member": 450}, "hparams": prior,
        "strategy": section,
    })  # fmt: skip
    assert [(p.at, p.values) for p in config.strategy.schedule] == [(0, FIRST), (200, SECOND), (300, THIRD)]
    rows = list(csv.DictReader(result.to_csv().splitlines()))
    assert [(int(r["at"]), float(r["learning_rate"]), r["unroll_length"]) for r in rows] == [
        (0, 0.01, "20"), (200, 0.1 + 0.2, "20"), (300, 1e-05, "20"),
    ]  # fmt: skip
    assert json.loads(json.dumps(result.to_json())) == result.to_json()


def test_best_is_that_of_the_final_choice_or_else_the_fittest(tmp_path: Path) -> None:
    w = copied_late(tmp_path / "a")
    assert discover(RunDirectory(w.run)).snapshot == "m01/000002"
    w.choose("m00", 1.0, snapshot="m00/000001")
    assert discover(RunDirectory(w.run)).points == [(0, FIRST)]
    assert discover(RunDirectory(w.run)).steps == 200
    assert discover(RunDirectory(w.run), "m00").points == [(0, FIRST), (200, SECOND)]
    assert discover(RunDirectory(w.run), "m00").member == "m00"


def test_member_without_a_schedule_is_an_error(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=3)
    w.decide(w.next("m00"), w.next("m01"))
    for member, message in {
        "best": "has no best member yet: name one of m00, m01, m02 with --member",
        "m00": "m00 has no snapshot yet",
        "m07": "no member 'm07' in",
        "all": "no member 'all' in",
    }.items():
        with pytest.raises(RunError, match=re.escape(message)):
            discover(RunDirectory(w.run), member)
    w.choose("m00", 1.0, snapshot="m00/000001")
    with pytest.raises(DamagedError, match="no report of m00/000001"):
        discover(RunDirectory(w.run))


def test_schedule_of_a_mix_names_its_agent(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a")
    w.decide(
        w.next("m00", hyperparameters={"agent": "fast", **FIRST}),
        w.next("m01", hyperparameters={"agent": "slow", "eps": 1.0}),
    )
    w.report("m00", 1.0)
    w.report("m01", 2.0)
    w.decide(w.next("m01", hyperparameters={"agent": "slow", "eps": 2.0}))
    w.report("m01", 3.0)
    result = discover(RunDirectory(w.run))
    assert (result.agent, result.points) == ("slow", [(0, {"eps": 1.0}), (100, {"eps": 2.0})])
    assert result.to_yaml().splitlines()[0].endswith(", agents.slow")
    assert w.population.members["m01"].hyperparameters["agent"] == "slow"
    assert constant_settings(w.records, w.population, "fast") == {"m00": FIRST}
    assert constant_settings(w.records, w.population, "slow") == {}


def test_constant_settings_are_those_of_whole_ancestries(tmp_path: Path) -> None:
    """m02 copies m01 unchanged and so has seen one setting; m00 changes without a copy; m03 has no fitness."""
    w = JournalWriter(tmp_path / "a", size=5, roles={"m04": "evaluator"})
    members = ["m00", "m01", "m02", "m03", "m04"]
    w.decide(*(w.next(m, hyperparameters=SECOND if m == "m01" else FIRST) for m in members))
    for place, m in enumerate(members):
        w.report(m, *([] if m == "m03" else [float(place)]))
    w.decide(w.next("m00", hyperparameters=THIRD), w.next("m02", donor="m01", hyperparameters=SECOND))
    w.report("m00", 9.0)
    w.report("m02", 8.0)
    assert list(constant_settings(w.records, w.population).items()) == [("m02", SECOND), ("m01", SECOND)]
    w.decide(w.next("m01", hyperparameters=THIRD))  # is not part of its newest snapshot yet
    assert list(constant_settings(w.records, w.population)) == ["m02", "m01"]
