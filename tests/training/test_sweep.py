"""`pbtrl sweep`: its arms, pairing, equal compute, stops, failures, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pbtrl as library
from pbtrl.config.differences import changed_settings
from pbtrl.config.load import load, parse
from pbtrl.config.schema import Config
from pbtrl.errors import ConfigError, DiskFullError, RunError, TrainingError
from pbtrl.reporting.presenter import SilentPresenter
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_lock import RunLock
from pbtrl.storage.run_state import state
from pbtrl.training import start
from pbtrl.training import sweep as sweep_module
from pbtrl.training.session import SessionHooks
from pbtrl.training.sweep import plan
from pbtrl.training.sweep_arms import arm_names, make_arms, parse_grid
from tests.command import Command, contents, journal, spawn
from tests.training.test_session import signalled

SWEEP = Path("runs/toy_quadratic-sweep")
SHORT = "budget.env_steps_per_member=20"
STRATEGIES = "strategy.name=pbt,random_search"
COMMAND = ["sweep", "toy_quadratic", SHORT, "--set", STRATEGIES, "--seeds", "2"]
SILENT = SessionHooks(SilentPresenter())
DECEPTIVE = ["toy_deceptive", "population.size=9", "budget.env_steps_per_member=20", "strategy.ready.slice_steps=10"]


def runs(folder: Path = SWEEP) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def begun(folder: Path = SWEEP) -> list[str]:
    """Runs in the order in which they began."""
    names = [name for name in runs(folder) if (folder / name / "run.json").exists()]
    return sorted(names, key=lambda name: json.loads((folder / name / "run.json").read_text())["created"])


# Arms


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a.b=pbt,random_search", ["pbt", "random_search"]),
        ("a.b=1, 2", ["1", "2"]),
        ("a.b=[1,2],[3]", ["[1,2]", "[3]"]),
        ("a.b={x: [1,2], y: 3},{}", ["{x: [1,2], y: 3}", "{}"]),
        ('a.b=\'x,y\',"z\\",",w', ["'x,y'", '"z\\","', "w"]),
        ("a.b=[']', 1],2", ["[']', 1]", "2"]),
        ("a.b=x=1", ["x=1"]),
    ],
)
def test_values_are_separated_by_commas(text: str, values: list[str]) -> None:
    assert parse_grid([text]) == {"a.b": values}


@pytest.mark.parametrize("option", ["a.b", "a.b=", "=x", "a.b=x,,y", "a.b=x,"])
def test_malformed_set_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="write it as key=a,b"):
        parse_grid([option])


def test_setting_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        parse_grid(["a=1", "a=2"])


@pytest.mark.parametrize(
    ("labels", "settings", "names"),
    [
        (["a.yaml"], [{}], ["a"]),
        (["x/a.yaml", "b"], [{}, {}], ["a", "b"]),
        (["a"], [{"strategy.name": "pbt"}], ["a"]),
        (["a"] * 2, [{"strategy.name": "pbt", "n": 1}, {"strategy.name": "my.code:Search", "n": 1}], ["pbt", "Search"]),
        (["a"] * 2, [{"population.size": 4}, {"population.size": 8}], ["size4", "size8"]),
        (["a"] * 2, [{"copy": ["weights", "hparams"]}, {"copy": None}], ["copy-weights-hparams", "copy-none"]),
        (["a"] * 2, [{"x": True}, {"x": -1e-5}], ["x-true", "x-1e-05"]),
        (["a"] * 3, [{"x": "u v"}, {"x": "u/v"}, {"x": "U-v"}], ["u-v", "u-v-2", "U-v-3"]),
        (["a"] * 2, [{"x": "y" * 50 + "1"}, {"x": "y" * 50 + "2"}], ["y" * 40, "y" * 35 + "-2"]),
        (["a"] * 2, [{"x": "ü"}, {"x": {"y": 1}}], ["arm", "x-y-1"]),
        (["a"] * 3, [{"s": {"name": n}} for n in ("asha", "pbt", "pbt")], ["asha", "pbt", "pbt-2"]),
        (
            ["a"] * 5,
            [
                {"s": {"name": "pbt", "ready": {"slice_steps": 4}}},
                {"s": {"name": "pbt", "copy": ["weights"], "ready": {"slice_steps": 4}}},
                {"s": {"name": "fire", "ready": {"slice_steps": 8}}},
                {"s": {"name": "pbt", "ready": {"slice_steps": 8}}},
                {"s": {"name": "pbt", "exploit": {"method": "t_test"}}},
            ],
            ["pbt", "pbt-copy-weights", "fire", "pbt-slice_steps8", "pbt-t_test"],
        ),
        (["a"] * 2, [{"s": {"name": "pbt", "copy": ["weights"]}}, {"s": {"name": "pbt"}}], ["pbt-copy-weights", "pbt"]),
    ],
)
def test_arms_are_named_after_what_varies(labels: list[str], settings: list[dict[str, Any]], names: list[str]) -> None:
    assert arm_names(labels, settings) == names


def test_sweep_keeps_the_names_that_its_arms_have(pbtrl: Command) -> None:
    """Another version may have named them otherwise."""
    grid = {"strategy": ["{name: pbt}", "{name: pbt, copy: [weights]}"]}
    begun = plan(["toy_quadratic"], root=Path("runs"), name="old", grid=grid, seeds=1)
    arms = [replace(arm, name=name) for arm, name in zip(begun.arms, ("pbt", "pbt-2"), strict=True)]
    begun.folder.mkdir(parents=True)
    replace(begun, arms=arms)._save()
    again = plan(["toy_quadratic"], root=Path("runs"), name="old", grid=grid, seeds=1)
    assert [arm.name for arm in again.arms] == ["pbt", "pbt-2"]


def test_planned_steps_count_everything_that_trains() -> None:
    arms = make_arms(["toy_halving"], ["population.size=9"], {"strategy.name": ["asha", "pbt", "fire", "rl_search"]})
    result = {arm.name: (arm.trains, arm.steps) for arm in arms}
    assert result["pbt"] == ("9 members", 9 * 64)
    assert result["fire"] == ("9 members (2 evaluators)", 9 * 64)
    assert result["rl_search"] == ("64 trials", 64 * 64)
    assert result["asha"] == ("64 trials", 64 * 1 + 16 * 3 + 4 * 12 + 1 * 48)
    capped = make_arms(["toy_halving"], ["budget.total_steps=200"], {"strategy.name": ["asha", "pbt"]})
    assert [arm.steps for arm in capped] == [200, 200]


def test_arm_survives_its_text() -> None:
    """A sweep continues from the text in sweep.json."""
    for config in ("toy_deceptive", "cartpole"):
        (arm,) = make_arms([config], ["seed=4"], {})
        assert not changed_settings(parse(arm.text), arm.config)


# Runs


def test_sweep_trains_arms_times_seeds_in_balanced_order(pbtrl: Command) -> None:
    result = pbtrl(*COMMAND, "--progress", "plain")
    assert result.code == 0
    assert begun() == ["pbt-s1", "random_search-s1", "pbt-s2", "random_search-s2"]
    assert result.err == "warning: strategy.name=random_search does not use exploit, explore of toy_quadratic.yaml\n"
    assert "4 runs in runs/toy_quadratic-sweep, seeds 1, 2" in result.out
    lines = [line for line in result.out.splitlines() if line.startswith("run ") and " of " in line]
    assert ["left for all runs" in line for line in lines] == [False, True, True, True]
    assert [line.partition(";")[0] for line in lines] == [
        "run 1 of 4: pbt, seed 1", "run 2 of 4: random_search, seed 1", "run 3 of 4: pbt, seed 2",
        "run 4 of 4: random_search, seed 2",
    ]  # fmt: skip
    best = {name: json.loads((SWEEP / name / "best.json").read_text())["evaluation"]["return_mean"] for name in runs()}
    for name in runs():
        config = load(SWEEP / name / "config.resolved.yaml")
        assert name == f"{config.strategy.name}-s{config.seed}"
        assert (config.steps_per_member, config.name) == (20, None)
    before = contents(SWEEP)
    again = pbtrl("sweep", "toy_quadratic-sweep", "--json").json
    assert contents(SWEEP) == before
    assert [(row["run"], row["score"], row["steps"], row["state"]) for row in again["runs"]] == [
        (name, best[name], 40, "finished") for name in ("pbt-s1", "random_search-s1", "pbt-s2", "random_search-s2")
    ]
    assert all(row["seconds"] > 0 for row in again["runs"])
    assert again["grid"] == {"strategy.name": ["pbt", "random_search"]}
    table = result.out.splitlines()[-5:]
    assert table[1].split()[:4] == ["pbt", "2", "of", "2"]
    mean = (best["pbt-s1"] + best["pbt-s2"]) / 2
    assert float(table[1].split()[4]) == pytest.approx(mean, abs=1e-3)
    assert table[-1] == "next  pbtrl compare toy_quadratic-sweep"


def test_runs_are_found_by_directory_and_name(pbtrl: Command) -> None:
    assert pbtrl(*COMMAND[:-1], "1", "--progress", "none").code == 0
    for name in ("toy_quadratic-sweep/pbt-s1", "toy_quadratic-sweep/p", "runs/toy_quadratic-sweep/pbt-s1"):
        assert pbtrl("status", name, "--json").json["path"] == str(SWEEP / "pbt-s1")
    assert pbtrl("status", "toy_quadratic-sweep/last", "--json").json["name"] == "random_search-s1"
    for command in (["eval"], ["verify"], ["lineage"], ["resume"]):
        assert pbtrl(command[0], "toy_quadratic-sweep/pbt-s1", *command[1:]).code == 0
    hint = pbtrl("resume", "toy_quadratic-sweep", SHORT)
    assert hint.code == 2
    assert "pbt-s1, random_search-s1; `pbtrl sweep toy_quadratic-sweep` continues it" in hint.err
    SWEEP.parent.rename("there")
    assert "`pbtrl sweep toy_quadratic-sweep --runs there`" in pbtrl("eval", SWEEP.name, "--runs", "there").err
    assert "`pbtrl sweep there/toy_quadratic-sweep`" in pbtrl("eval", f"there/{SWEEP.name}").err
    Path("there").rename(SWEEP.parent)
    (row,) = pbtrl("list", "--json").json
    assert (row["name"], row["state"], row["runs"]) == ("toy_quadratic-sweep", "finished", {"finished": 2})
    shutil.rmtree(SWEEP / "pbt-s1")
    assert pbtrl("list").out.splitlines()[1].split()[:8] == [
        "toy_quadratic-sweep/", "stopped", "-", "-", "1", "of", "2", "runs",
    ]  # fmt: skip


def test_replications_are_paired(pbtrl: Command) -> None:
    """Members of all arms have the same draws and seeds. FIRE's evaluators start as copies."""
    grid = "strategy.name=pbt,random_search,fire,pb2,asha"
    options = ["fitness.curve_interval=1", "--seeds", "3,8", "--progress", "none", "--unequal"]
    assert pbtrl("sweep", *DECEPTIVE, "--set", grid, *options).code == 0
    firsts: dict[str, dict[str, Any]] = {}
    for name in runs(Path("runs/toy_deceptive-sweep")):
        decision = next(line for line in journal(Path("runs/toy_deceptive-sweep") / name) if line["kind"] == "decision")
        firsts[name] = {a["member"]: (a["hyperparameters"], a["seed"]) for a in decision["assignments"]}
    assert set(firsts) == {
        f"{arm}-s{seed}" for arm in ("pbt", "random_search", "fire", "pb2", "asha") for seed in (3, 8)
    }
    for seed in (3, 8):
        pbt = firsts[f"pbt-s{seed}"]
        assert len(pbt) == 9
        assert [arm for arm in ("random_search", "pb2", "asha") if firsts[f"{arm}-s{seed}"] != pbt] == []
        fire = firsts[f"fire-s{seed}"]
        assert len(fire) == 7
        assert fire.items() <= pbt.items()
    assert firsts["pbt-s3"].keys() == firsts["pbt-s8"].keys()
    assert not [member for member, first in firsts["pbt-s3"].items() if firsts["pbt-s8"][member] == first]


def test_agents_of_one_replication_are_paired(pbtrl: Command) -> None:
    result = pbtrl(
        "sweep", "cart.yaml", "budget.env_steps_per_member=240", "--set", "agent.name=impala,a3c", "--seeds", "1",
        "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert [run["run"] for run in result.json["runs"]] == ["impala-s3", "a3c-s3"]
    decisions = [journal(Path("runs/CartPole-v1-sweep") / f"{name}-s3")[1] for name in ("impala", "a3c")]
    impala, a3c = ([(a["hyperparameters"], a["seed"]) for a in d["assignments"]] for d in decisions)
    assert impala == a3c
    assert [run["steps"] for run in result.json["runs"]] == [arm["steps"] for arm in result.json["arms"]] == [960, 960]
    assert {run["held_out"] for run in result.json["runs"]} == {True}


def test_progress_as_json_names_the_runs(pbtrl: Command) -> None:
    lines = [json.loads(line) for line in pbtrl(*COMMAND, "--progress", "json").out.splitlines()]
    events = [line for line in lines if line.get("kind") in ("run", "run_end")]
    assert [(e["kind"], e["run"]) for e in events[:3]] == [
        ("run", "pbt-s1"), ("run_end", "pbt-s1"), ("run", "random_search-s1"),
    ]  # fmt: skip
    assert events[0] == {
        "kind": "run", "run": "pbt-s1", "arm": "pbt", "seed": 1, "number": 1, "of": 4, "left": None,
    }  # fmt: skip
    assert {key: value for key, value in events[1].items() if key != "kind"} == lines[-1]["runs"][0]
    seconds = [run["seconds"] for run in lines[-1]["runs"]]
    assert events[2]["left"] == pytest.approx(3 * seconds[0])
    assert events[6]["left"] == pytest.approx(seconds[1])


def test_dry_run_writes_nothing(pbtrl: Command) -> None:
    result = pbtrl(*COMMAND, "--dry-run")
    assert (result.code, result.out.splitlines()) == (0, [
        "arm            trains     steps per run",
        "pbt            2 members             40",
        "random_search  2 members             40",
        "4 runs in runs/toy_quadratic-sweep, seeds 1, 2",
    ])  # fmt: skip
    assert not Path("runs").exists()
    assert [run["state"] for run in pbtrl(*COMMAND, "--dry-run", "--json").json["runs"]] == ["not started"] * 4


# Stops and failures


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_sweep_continues_where_it_was(
    pbtrl: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    whole = pbtrl(*COMMAND, "--name", "whole", "--json").json
    with signalled(monkeypatch, number, report=6):  # in the second run
        stopped = pbtrl(*COMMAND, "--json")
    assert (stopped.code, stopped.out) == (code, "")
    assert stopped.err.splitlines()[-2:] == [
        "stopped; resume with: pbtrl resume toy_quadratic-sweep/random_search-s1",
        "the same command, or `pbtrl sweep toy_quadratic-sweep`, continues the sweep, without what is finished",
    ]
    assert runs() == ["pbt-s1", "random_search-s1"]
    before = contents(SWEEP / "pbt-s1")
    command = COMMAND if code == 130 else ["sweep", "--name", "toy_quadratic-sweep"]
    result = pbtrl(*command, "--json")
    assert result.code == 0
    assert contents(SWEEP / "pbt-s1") == before
    assert [(row["run"], row["score"]) for row in result.json["runs"]] == [
        (row["run"], row["score"]) for row in whole["runs"]
    ]


def test_signal_between_runs_stops(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sweep_module.start_part

    def start_part(*given: Any, **options: Any) -> Any:
        result = real(*given, **options)
        signal.raise_signal(signal.SIGTERM)
        return result

    with monkeypatch.context() as inside:
        inside.setattr(sweep_module, "start_part", start_part)
        stopped = pbtrl(*COMMAND)
    assert stopped.code == 143
    assert "continues the sweep" in stopped.err
    assert runs() == ["pbt-s1"]
    assert pbtrl(*COMMAND).code == 0


def test_signal_before_the_first_step_stops_the_run(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sweep_module.start_part

    def start_part(*given: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real(*given, **options)

    monkeypatch.setattr(sweep_module, "start_part", start_part)
    assert pbtrl(*COMMAND).code == 143
    assert pbtrl("status", "toy_quadratic-sweep/pbt-s1", "--json").json["state"] == "stopped"


def test_full_disk_ends_the_sweep(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_part(*given: Any, **options: Any) -> Any:
        raise DiskFullError("no space")

    monkeypatch.setattr(sweep_module, "start_part", start_part)
    assert (pbtrl(*COMMAND).code, runs()) == (75, [])


def test_signal_at_the_end_of_a_run_stops(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is too late to stop the run, the next one does not begin."""
    with monkeypatch.context() as inside:
        finish = "pbtrl.reporting.presenter.PartPresenter.finish"
        inside.setattr(finish, lambda *_: signal.raise_signal(signal.SIGINT))
        assert pbtrl(*COMMAND).code == 130
    assert runs() == ["pbt-s1"]
    assert pbtrl("status", "toy_quadratic-sweep/pbt-s1", "--json").json["state"] == "finished"


BROKEN = """\
import os
from pbtrl.trainables.quadratic import Quadratic

class Broken(Quadratic):
    def __init__(self, rng, *, fails):
        super().__init__(rng, clamp=True)
        self.fails = fails

    def train(self, steps, hyperparameters, rng):
        if self.fails and not os.path.exists("repaired"):
            raise ValueError("bad luck")
        return super().train(steps, hyperparameters, rng)
"""


def test_failed_run_does_not_end_the_sweep(pbtrl: Command) -> None:
    """The next call tries it again. Continuing without the config needs trust in the module that it names."""
    Path("broken_model.py").write_text(BROKEN)
    fails = ["toy_quadratic", SHORT, "trainable={name: 'broken_model:Broken', fails: false}", "--seeds", "2"]
    command = ["sweep", *fails, "--set", "trainable.fails=true,false", "failure.max_restarts_per_member=1"]
    result = pbtrl(*command, "--json")
    assert result.code == 3
    assert [(row["run"], row["state"]) for row in result.json["runs"]] == [
        ("fails-true-s1", "crashed"), ("fails-false-s1", "finished"), ("fails-true-s2", "crashed"),
        ("fails-false-s2", "finished"),
    ]  # fmt: skip
    assert [row["score"] is None for row in result.json["runs"]] == [True, False, True, False]
    assert "bad luck" in result.json["runs"][0]["reason"]
    lines = result.err.splitlines()[-3:]
    assert [line.split(": ")[1] for line in lines[:2]] == ["fails-true-s1", "fails-true-s2"]
    assert (
        lines[2] == "2 of 4 runs failed; once the causes are removed: pbtrl sweep toy_quadratic-sweep --trust-imports"
    )
    refused = pbtrl("sweep", "toy_quadratic-sweep")
    assert refused.code == 2
    assert "asks to import 'broken_model'" in refused.err
    Path("repaired").touch()
    before = contents(SWEEP / "fails-false-s1")
    assert pbtrl(*command, "--seeds", "1,", "--dry-run").code == 0  # the user names the module
    done = pbtrl("sweep", "toy_quadratic-sweep", "--trust-imports", "--json")
    assert done.code == 0, done.err
    assert [row["state"] for row in done.json["runs"]] == ["finished"] * 4
    assert contents(SWEEP / "fails-false-s1") == before


def test_unexpected_error_fails_one_run(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sweep_module.start_part

    def start_part(tree: Any, *given: Any, **options: Any) -> Any:
        if options["name"] == "pbt-s1":
            raise ZeroDivisionError("a bug")
        return real(tree, *given, **options)

    monkeypatch.setattr(sweep_module, "start_part", start_part)
    result = pbtrl(*COMMAND)
    assert result.code == 3
    assert "failed: pbt-s1: ZeroDivisionError: a bug" in result.err
    assert "Traceback" in result.err
    assert runs() == ["pbt-s2", "random_search-s1", "random_search-s2"]
    with pytest.raises(TrainingError, match="1 of 4 runs failed: pbt-s1: ZeroDivisionError"):
        library.sweep(name="toy_quadratic-sweep")


def test_run_of_another_process_is_left_alone(pbtrl: Command) -> None:
    assert pbtrl(*COMMAND).code == 0
    shutil.rmtree(SWEEP / "random_search-s1")
    text = (SWEEP / "pbt-s1/journal.jsonl").read_text()
    (SWEEP / "pbt-s1/journal.jsonl").write_text("".join(text.splitlines(keepends=True)[:3]))
    with RunLock(SWEEP / "pbt-s1"):
        result = pbtrl(*COMMAND, "--json")
    assert result.code == 0
    assert [row["state"] for row in result.json["runs"]] == ["running", "finished", "finished", "finished"]
    assert pbtrl(*COMMAND, "--json").json["runs"][0]["state"] == "finished"


def test_run_that_another_process_begins_first_is_no_failure(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes may look for the next run at the same time."""
    real = sweep_module.start_part
    locks: list[RunLock] = []

    def start_part(tree: Any, *given: Any, **options: Any) -> Any:
        if not locks:
            real(tree, *given, **options)
            locks.append(RunLock(SWEEP / "pbt-s1").__enter__())
        return real(tree, *given, **options)

    monkeypatch.setattr(sweep_module, "start_part", start_part)
    result = pbtrl(*COMMAND, "--json")
    locks[0].__exit__(None, None, None)
    assert (result.code, locks != []) == (0, True)
    assert result.json["runs"][0]["state"] == "running"


def test_run_that_another_process_has_just_claimed_is_left_alone(pbtrl: Command) -> None:
    """It has a directory and the lock, but no file yet."""
    assert pbtrl(*COMMAND).code == 0
    shutil.rmtree(SWEEP / "pbt-s1")
    (SWEEP / "pbt-s1").mkdir()
    with RunLock(SWEEP / "pbt-s1"):
        result = pbtrl(*COMMAND, "--json")
    assert (result.code, result.err.splitlines()[1:]) == (0, [])
    assert [row["state"] for row in result.json["runs"]] == ["not started", "finished", "finished", "finished"]
    assert pbtrl(*COMMAND, "--json").json["runs"][0]["state"] == "finished"


def test_run_that_another_process_has_just_trained_is_no_failure(
    pbtrl: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, began = start.collect_warnings, list[str]()

    def trained_meanwhile(config: Config) -> list[str]:
        if not began:
            began.append("the other process")
            plan([], root=SWEEP.parent, name=SWEEP.name).train(SILENT)
        return list(real(config))

    monkeypatch.setattr(start, "collect_warnings", trained_meanwhile)
    result = pbtrl(*COMMAND, "--progress", "none")
    assert (result.code, began) == (0, ["the other process"])
    assert "failed" not in result.err


def test_processes_that_start_together_share_a_sweep(tmp_path: Path) -> None:
    """As the tasks of a Slurm array do."""
    processes = [spawn(tmp_path, *COMMAND, "--name", "s", "--progress", "none") for _ in range(3)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    assert [code for _, code in ends] == [0, 0, 0], ends
    states = {name: state(RunDirectory(tmp_path / "runs/s" / name)) for name in runs(tmp_path / "runs/s")}
    assert states == dict.fromkeys(["pbt-s1", "pbt-s2", "random_search-s1", "random_search-s2"], "finished")


def test_sweeps_of_one_name_that_begin_together(pbtrl: Command) -> None:
    """The same one gets the seeds of both; another one is refused before it trains."""
    one, same, other = (
        plan(["toy_quadratic"], root=SWEEP.parent, overrides=[SHORT, *more], seeds=seeds)
        for more, seeds in (([], [1]), ([], [2]), (["population.size=3"], [1]))
    )
    one.train(SILENT)
    same.train(SILENT)
    with pytest.raises(RunError, match="is another sweep"):
        other.train(SILENT)
    assert [run["state"] for run in pbtrl("sweep", SWEEP.name, "--json").json["runs"]] == ["finished"] * 2
    assert runs() == ["toy_quadratic-s1", "toy_quadratic-s2"]


def test_sweep_that_was_killed_before_it_was_written_is_new(pbtrl: Command) -> None:
    SWEEP.mkdir(parents=True)
    for name in (".tmp-sweep.json", "LOCK"):
        (SWEEP / name).touch()
    assert pbtrl(*COMMAND, "--progress", "none").code == 0


def test_finished_run_without_its_best_member_chooses_it_again(pbtrl: Command) -> None:
    before = pbtrl(*COMMAND, "--json").json["runs"]
    trained = journal(SWEEP / "pbt-s1")
    (SWEEP / "pbt-s1/best.json").unlink()
    row = pbtrl(*COMMAND, "--dry-run", "--json").json["runs"][0]
    assert (row["state"], row["score"]) == ("damaged", None)
    assert row["reason"].endswith("best.json is missing: `pbtrl resume toy_quadratic-sweep/pbt-s1` chooses again")
    after = pbtrl(*COMMAND, "--json").json["runs"]
    assert [(row["state"], row["score"]) for row in after] == [(row["state"], row["score"]) for row in before]
    assert [line["kind"] for line in journal(SWEEP / "pbt-s1")[len(trained) :]] == ["resume", "finish"]


def test_finished_run_that_is_damaged_is_a_failure_with_its_reason(pbtrl: Command) -> None:
    assert pbtrl(*COMMAND).code == 0
    path = SWEEP / "pbt-s1/journal.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], "xx\n", *lines[3:]]))
    result = pbtrl("sweep", SWEEP.name)
    assert (result.code, "not finished: pbt-s1 (damaged)" in result.out) == (3, True)
    assert result.err.splitlines()[0].startswith(f"failed: pbt-s1: {path}:3: not a journal line")
    with pytest.raises(TrainingError, match=r"1 of 4 runs failed: pbt-s1: .*journal\.jsonl:3: not a journal line"):
        library.sweep(name=SWEEP.name)


def test_damaged_run_is_reported(pbtrl: Command) -> None:
    assert pbtrl(*COMMAND).code == 0
    (SWEEP / "pbt-s1/journal.jsonl").write_text('{"kind": "nothing"}\n')
    result = pbtrl(*COMMAND, "--json")
    assert result.code == 3
    assert result.json["runs"][0]["state"] == "damaged"
    assert "journal.jsonl:1 is damaged: a journal begins with a line of kind run" in result.err


def test_sweep_is_continued_by_name_or_path(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pbtrl(*COMMAND, "--progress", "none").code == 0
    before, folder = contents(SWEEP), SWEEP.absolute()
    for word in (SWEEP.name, f"{SWEEP.name}/", str(SWEEP), str(folder), f"{folder}/"):
        assert pbtrl("sweep", word, "--json").json["name"] == SWEEP.name
    monkeypatch.chdir(SWEEP)
    for word in (".", f"../{SWEEP.name}"):
        result = pbtrl("sweep", word)
        assert (result.code, result.out.splitlines()[-1].startswith(f"next  pbtrl compare {SWEEP.name} --runs ")) == (
            0, True,
        )  # fmt: skip
    monkeypatch.chdir("pbt-s1")
    assert pbtrl("sweep", "..", "--json").json["path"] == str(folder)
    assert contents(folder) == before


# Seeds


def test_seeds_can_be_added(pbtrl: Command) -> None:
    one = [*COMMAND[:-1], "1"]
    assert pbtrl(*one).code == 0
    before = contents(SWEEP / "pbt-s1")
    assert pbtrl(*COMMAND).code == 0
    assert contents(SWEEP / "pbt-s1") == before
    assert len(runs()) == 4
    assert pbtrl(*one, "--json").json["seeds"] == [1, 2]
    assert pbtrl("sweep", "toy_quadratic-sweep", "--seeds", "9,1", "--json").json["seeds"] == [1, 2, 9]
    assert len(runs()) == 6


@pytest.mark.parametrize("seeds", ["0", "1001", "1,1", "a", "-1", "", "1.5"])
def test_other_seeds_are_refused(pbtrl: Command, seeds: str) -> None:
    refused = pbtrl("sweep", "toy_quadratic", f"--seeds={seeds}")
    assert refused.code == 2
    assert not Path("runs").exists()


def test_five_seeds_by_default_and_a_single_one_as_list(pbtrl: Command) -> None:
    assert plan(["toy_quadratic"], root=Path("runs")).seeds == (1, 2, 3, 4, 5)
    assert pbtrl("sweep", "toy_quadratic", "seed=7", "--seeds", "9,", "--dry-run", "--json").json["seeds"] == [9]
    assert pbtrl("sweep", "toy_quadratic", "seed=7", "--seeds", "2", "--dry-run", "--json").json["seeds"] == [7, 8]


# Refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--set", "strategy.name=pbt"], "its arms are pbt, random_search, not pbt"),
        (["--set", "strategy.name=pbt,fixed"], "its arms are pbt, random_search, not pbt, fixed"),
        (["--set", STRATEGIES, "population.size=3"], "population.size of pbt is 2, not 3"),
        (["--set", STRATEGIES, "final.episodes=3"], "final.episodes of pbt is 30, not 3"),
    ],
)
def test_another_sweep_of_the_name_is_refused(pbtrl: Command, changed: list[str], message: str) -> None:
    assert pbtrl(*COMMAND, "--progress", "none").code == 0
    before = contents(SWEEP)
    refused = pbtrl("sweep", "toy_quadratic", SHORT, *changed)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.splitlines()[-1] == f"{SWEEP} is another sweep ({message}): choose another --name"
    assert contents(SWEEP) == before


def test_settings_of_the_machine_may_change(pbtrl: Command) -> None:
    assert pbtrl(*COMMAND[:-1], "1", "--progress", "none").code == 0
    more = ["failure.max_restarts_per_member=1", "snapshots.keep_last=1"]
    assert pbtrl(*COMMAND, *more, "--progress", "none").code == 0
    assert load(SWEEP / "pbt-s1/config.resolved.yaml").snapshots.keep_last == 2
    assert load(SWEEP / "pbt-s2/config.resolved.yaml").snapshots.keep_last == 1
    assert pbtrl("sweep", "toy_quadratic-sweep", "--seeds", "3", "--progress", "none").code == 0
    assert load(SWEEP / "pbt-s3/config.resolved.yaml").snapshots.keep_last == 1


def test_foreign_directory_is_refused(pbtrl: Command) -> None:
    assert pbtrl("train", "toy_quadratic", SHORT).code == 0
    for name in ("toy_quadratic", "a/b", "", ".."):
        refused = pbtrl(*COMMAND, f"--name={name}")
        assert (refused.code, refused.out) == (2, "")
        assert len(refused.err.splitlines()) == 1


def test_unequal_compute_is_refused_unless_allowed(pbtrl: Command) -> None:
    command = ["sweep", "toy_quadratic", SHORT, "--set", "strategy.name=pbt,hyperband", "--seeds", "1"]
    refused = pbtrl(*command)
    assert (refused.code, refused.out) == (2, "")
    (pbt,) = [line for line in refused.err.splitlines() if line.startswith("pbt ")]
    (hyperband,) = [line for line in refused.err.splitlines() if line.startswith("hyperband ")]
    assert pbt.split() == ["pbt", "2", "members", "40"]
    assert int(hyperband.split()[3].replace(",", "")) > 40
    assert "budget.total_steps=40, or allow it with --unequal" in refused.err
    assert not Path("runs").exists()
    equal = pbtrl(*command, "budget.total_steps=40", "--json")
    assert equal.code == 0
    assert [arm["steps"] for arm in equal.json["arms"]] == [40, 40]
    allowed = pbtrl(*command, "--unequal", "--name", "allowed", "--progress", "none")
    assert allowed.code == 0
    assert "unequal: hyperband trained" in allowed.out
    assert (
        "score: of the chosen member, on the data that it was chosen with; seeds 1" in allowed.out
    )  # a toy has no other
    assert pbtrl("sweep", "allowed").code == 0


def test_shared_totals_count_whole_blocks() -> None:
    grid = {"population.size": ["2", "8"]}
    shared = ["budget.total_steps=10_000", "budget.env_steps_per_member=null", "strategy.ready.slice_steps=512"]
    arms = plan(["cartpole"], root=Path("none"), grid=grid, overrides=shared, seeds=1, unequal=True).arms
    assert [arm.steps for arm in arms] == [arm.config.population.size * arm.config.steps_per_member for arm in arms]
    with pytest.raises(RunError, match="different numbers of steps"):
        plan(["cartpole"], root=Path("none"), grid=grid, overrides=shared, seeds=1)


def test_init_from_is_checked_before_anything_starts(pbtrl: Command) -> None:
    refused = pbtrl(*COMMAND, "init_from=nonexist")
    assert (refused.code, refused.out) == (2, "")
    assert "init_from" in refused.err
    assert not Path("runs").exists()


def test_comparison_is_proposed_only_for_arms_of_one_task(pbtrl: Command) -> None:
    short = [SHORT, "--seeds", "1", "--name", "two", "--progress", "none"]
    result = pbtrl("sweep", "toy_quadratic", "toy_chebykin", *short, "--unequal")
    assert (result.code, "next  pbtrl compare" in result.out) == (0, False)
    assert pbtrl("compare", "two").code == 2


def test_one_percent_is_equal() -> None:
    grid = {"budget.env_steps_per_member": ["1000", "1010"]}
    assert len(plan(["toy_quadratic"], root=Path("none"), grid=grid).arms) == 2
    with pytest.raises(RunError, match="different numbers of steps"):
        plan(["toy_quadratic"], root=Path("none"), grid={"budget.env_steps_per_member": ["1000", "1011"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toy_quadratic", "--set", "strategy.name=pbt,pbd"], "pbd: override 'strategy.name=pbd': unknown strategy"),
        (["toy_quadratic", "toy_nothing"], "toy_nothing: toy_nothing: no such file"),
        (["toy_quadratic", "budgets=1", "--set", STRATEGIES], "override 'budgets=1': unknown key"),
        (
            ["toy_quadratic", "--set", "strategy.name=pbt,random_search,pbt"],
            "pbt (strategy.name='pbt') and pbt-2 (strategy.name='pbt') are the same config",
        ),
        (["toy_quadratic", "toy_quadratic"], "toy_quadratic and toy_quadratic-2 are the same config"),
        (
            ["toy_quadratic", "strategy.name=fire", "--set", STRATEGIES],
            "override 'strategy.name=fire': --set strategy.name",
        ),
        (
            ["toy_quadratic", "strategy.copy=[weights]", "--set", "strategy={name: pbt},{name: fire}"],
            "override 'strategy.copy=[weights]': --set strategy would replace it",
        ),
        (["toy_quadratic", "--set", "seed=1,2"], "--set seed: not a setting to vary; use --seeds"),
        (["toy_quadratic", "--set", "name=a,b"], "--set name: not a setting to vary; use --name"),
        (
            ["toy_quadratic", "--set", "execution.workers=1,2"],
            "--set execution.workers: not a setting to vary; it belongs",
        ),
        (["toy_quadratic", "--set", "snapshots={keep_last: 3},{}"], "--set snapshots: not a setting to vary"),
        (["cartpole", "--set", "env.id=CartPole-v1,Nothing-v1"], "Nothing-v1: override 'env.id=Nothing-v1'"),
        ([], "name a config to sweep"),
        (["nothing"], "nothing: no such file"),
        (["--name", "nothing"], "no sweep in runs/nothing"),
        (["--name", "nothing", "--set", "a=1,2"], "a sweep continues as it began"),
    ],
)
def test_mistakes_name_the_arm_before_anything_starts(pbtrl: Command, arguments: list[str], message: str) -> None:
    refused = pbtrl("sweep", *arguments)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith(message), refused.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sweep: "{", "cannot be read"),
        (lambda sweep: json.dumps({**sweep, "seeds": []}), "seeds"),
        (lambda sweep: json.dumps({**sweep, "seeds": [1, 1]}), "listed twice"),
        (lambda sweep: json.dumps({**sweep, "arms": [{**sweep["arms"][0], "name": "../x"}]}), "arms.0.name"),
        (lambda sweep: json.dumps({**sweep, "arms": [{**sweep["arms"][0], "text": "seed: 3"}]}), "SHA-256"),
        (lambda sweep: json.dumps({**sweep, "schema": 99}), "newer pbtrl"),
    ],
)
def test_damaged_sweep_is_one_line(pbtrl: Command, change: Any, message: str) -> None:
    assert pbtrl(*COMMAND[:-1], "1", "--progress", "none").code == 0
    path = SWEEP / "sweep.json"
    path.write_text(change(json.loads(path.read_text())))
    before = contents(SWEEP)
    for command in (["sweep", "toy_quadratic-sweep"], COMMAND):
        refused = pbtrl(*command)
        assert refused.code == 4
        assert len(refused.err.splitlines()) == 1
        assert message in refused.err
    listed = pbtrl("list")
    assert (listed.code, message in listed.out) == (0, True)
    assert contents(SWEEP) == before


def test_link_in_a_stored_sweep_is_refused(pbtrl: Command) -> None:
    assert pbtrl(*COMMAND[:-1], "1", "--progress", "none").code == 0
    (SWEEP / "pbt-s2").symlink_to("/tmp")
    refused = pbtrl("sweep", "toy_quadratic-sweep", "--seeds", "2")
    assert (refused.code, "is a symbolic link" in refused.err) == (2, True)


# Python


def test_sweep_in_python(pbtrl: Command) -> None:
    configs = [{"name": "mine", **load("toy_quadratic", [SHORT]).to_dict(), "seed": 5}]
    grid = {"strategy.copy": [["weights"], ["weights", "hparams"]]}
    results = library.sweep(configs, grid=grid, seeds=[2], progress="none")
    assert results.folder == Path("runs/toy_quadratic-sweep")
    result = results.result()
    assert [run["run"] for run in result["runs"]] == ["copy-weights-s2", "copy-weights-hparams-s2"]
    assert [library.load_run(run["path"]).status()["state"] for run in result["runs"]] == ["finished"] * 2
    assert result["grid"] == grid
    assert library.sweep(name="toy_quadratic-sweep", seeds=1).seeds == (2, 5)
    with pytest.raises(RunError, match="another sweep"):
        library.sweep("toy_quadratic", overrides=[SHORT], grid=grid, seeds=[2])


def test_continued_sweep_in_python_needs_a_name_and_changes_nothing(pbtrl: Command) -> None:
    with pytest.raises(RunError, match="name a config to sweep, or a sweep to continue"):
        library.sweep()
    for changed in ({"overrides": [SHORT]}, {"grid": {"population.size": [2, 3]}}):
        with pytest.raises(RunError, match="continues as it began"):
            library.sweep(name="nothing", **changed)


@pytest.mark.parametrize(
    "seeds", [0, -1, 1001, 10**30, True, 2.0, "3", [], [-1], [1.5], [1, 1], [True], ["1"], [10**20], np.arange(0)]
)
def test_other_seeds_are_refused_in_python(pbtrl: Command, seeds: Any) -> None:
    with pytest.raises(ConfigError, match="seeds: must be a number of seeds from 1 to 1,000, or a list of different"):
        library.sweep("toy_quadratic", seeds=seeds)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("seeds", "result"),
    [(np.int64(2), (1, 2)), (np.arange(2), (0, 1)), (range(3, 5), (3, 4)), ((7, np.uint8(0)), (7, 0))],
)
def test_seeds_of_other_integers(seeds: Any, result: tuple[int, ...]) -> None:
    assert plan(["toy_quadratic"], root=Path("none"), seeds=seeds).seeds == result


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"population.size": 2}, "grid: population.size: must be a list of values, not 2"),
        ({"strategy.name": []}, "grid: strategy.name: must be a list of values, not an empty one"),
        ({"strategy.name": "pbt"}, "grid: strategy.name: must be a list of values, not 'pbt'"),
        ({"strategy": {"name": "pbt"}}, "grid: strategy: must be a list of values, not a section"),
        ({"population.size": [2, object()]}, "grid: population.size: must be text, a number, true, false"),
        (["strategy.name=pbt,fire"], "grid: must map settings to values"),
        ({7: [1]}, "7=1"),
    ],
)
def test_malformed_grid_is_refused_in_python(pbtrl: Command, grid: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        library.sweep("toy_quadratic", grid=grid)
    assert not Path("runs").exists()
