"""Whole runs of searches over trials: one journal on all executors, stops and resumes, and bounded disk."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest

from pbtrl.storage.run_directory import RunDirectory
from tests.command import Command, journal, kinds
from tests.training.test_session import canonical, signalled

TOY = ["train", "toy_halving", "--progress", "none"]
STRATEGIES = {
    "asha": "{name: asha, trials: 12, min_steps: 4}",
    "tpe": "{name: asha, trials: 12, min_steps: 4, sampler: tpe, startup_trials: 2}",
    "halving": "{name: successive_halving, trials: 9, min_steps: 4}",
    "hyperband": "{name: hyperband, min_steps: 16, eta: 2}",
    "bayesian": "{name: bayesian, trials: 10, startup_trials: 2}",
    "cmaes": "{name: bayesian, trials: 10, sampler: cmaes, startup_trials: 2}",
    "grid": "{name: grid, points: 3}",
    "fixed": "{name: fixed, trials: 9}",
}


def snapshots(run: Path) -> int:
    return len(list(run.glob("members/*/snapshots/*")))


FAST = ("tpe", "hyperband", "cmaes")


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(s, id=name, marks=() if name in FAST else pytest.mark.slow) for name, s in STRATEGIES.items()],
)
def test_executor_and_stops_change_nothing(pbtrl: Command, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    line = [*TOY, f"strategy={strategy}", "strategy.ready.slice_steps=64", "population.size=4"]
    assert pbtrl(*line, "--name", "whole").code == 0
    expected = canonical("whole")
    with signalled(monkeypatch, signal.SIGINT, 6):
        assert pbtrl(*line, "--name", "stopped").code == 130
    assert pbtrl("resume", "stopped").code == 0
    assert canonical("stopped") == expected
    assert pbtrl(*line, "--name", "workers", "execution={backend: processes, workers: 2}").code == 0
    assert canonical("workers")[0] == expected[0]
    assert pbtrl("verify", "whole").code == 0
    assert pbtrl("verify", "whole").out.startswith("runs/whole: clean")


def test_200_trials_on_8_places(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Disk stays bounded during the run, and all readers cope with members that come and go."""
    line = [*TOY, "strategy.trials=200", "population.mode=async", "strategy.ready.slice_steps=64"]
    with signalled(monkeypatch, signal.SIGINT, report=150):
        assert pbtrl(*line).code == 130
    run = Path("runs/toy_halving")
    _, _, population = RunDirectory(run).load()
    waiting = [m for m in population.members.values() if m.snapshot and not m.retired]
    assert snapshots(run) <= 2 * len(waiting) + 3
    assert len(waiting) < 70
    status = pbtrl("status", "toy_halving")
    assert "continue with: pbtrl resume toy_halving" in status.out
    assert len(status.out.splitlines()) < 60
    assert re.search(r"^and \d+ members below them", status.out, re.MULTILINE)

    assert pbtrl("resume", "toy_halving").code == 0
    _, _, population = RunDirectory(run).load()
    trials = list(population.members.values())
    assert len(trials) == 200
    assert sum(m.retired for m in trials) >= 199
    assert snapshots(run) <= 2 + 3
    best = json.loads((run / "best.json").read_text())
    assert best["evaluation"]["return_mean"] == max(m.fitness or 0.0 for m in trials)
    assert kinds(run)[-1] == "finish"

    members = pbtrl("status", "toy_halving", "--json").json["members"]
    assert [m["id"] for m in members][:9] == [f"m0{i}" for i in range(9)]
    assert "retired" in pbtrl("status", "toy_halving").out
    assert pbtrl("lineage", "toy_halving").out == "no copies yet\n"
    assert pbtrl("verify", "toy_halving").out.startswith("runs/toy_halving: clean")
    assert pbtrl("report", "toy_halving").code == 0
    assert "toy_halving" in pbtrl("list").out
    assert pbtrl("eval", "toy_halving").code == 0


def test_budget_of_a_finished_search_cannot_grow(pbtrl: Command) -> None:
    line = [*TOY, "strategy={name: random_search, trials: 9, ready: {slice_steps: 64}}"]
    assert pbtrl(*line).code == 0
    again = pbtrl("resume", "toy_halving")
    assert (again.code, again.out) == (0, "runs/toy_halving is finished (budget): nothing to do\n")
    refused = pbtrl("resume", "toy_halving", "budget.env_steps_per_member=128")
    assert refused.code != 0
    assert "the budget of a trial of random_search cannot change on resume (64 steps -> 128 steps)" in refused.err


def test_search_that_total_steps_ended_continues_with_more(pbtrl: Command) -> None:
    line = [*TOY, "strategy={name: random_search, trials: 9, ready: {slice_steps: 64}}"]
    assert pbtrl(*line, "--name", "whole").code == 0
    assert pbtrl(*line, "budget.total_steps=128").code == 0
    assert [line["reason"] for line in journal(Path("runs/toy_halving")) if line["kind"] == "finish"] == ["total steps"]
    assert pbtrl("status", "toy_halving", "--json").json["steps_budget"] == 128
    assert pbtrl("resume", "toy_halving", "budget.total_steps=1000").code == 0
    assert pbtrl("status", "toy_halving", "--json").json["env_steps"] == 9 * 64
    assert canonical("toy_halving")[0] == canonical("whole")[0]


def test_run_with_the_plan_of_another_version_is_not_resumed(pbtrl: Command) -> None:
    """Its trials would be compared at rungs that they never had."""
    assert pbtrl("train", "toy_halving", "strategy.trials=9", "strategy.form=delay", "--name", "a").code == 0
    path = Path("runs/a/journal.jsonl")
    first, *lines = path.read_text().splitlines()
    header = json.loads(first)
    path.write_text("\n".join([json.dumps({**header, "total": header["total"] + 8}), *lines[:-3], ""]))
    before = path.read_bytes()
    refused = pbtrl("resume", "a")
    assert (refused.code, path.read_bytes()) == (2, before)
    assert f"was planned with {header['total'] + 8:,} steps by another version of pbtrl" in refused.err
