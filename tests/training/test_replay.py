"""`pbtrl replay`: the new runs, their comparison, stops, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import t

from pbtrl.config.load import load
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_lock import RunLock
from pbtrl.storage.run_state import state
from pbtrl.training import scoring
from pbtrl.training.replay import Replay
from tests.command import Command, contents, journal, spawn
from tests.training.test_mixed_runs import MIXED
from tests.training.test_session import signalled

RUN, NEW = Path("runs/toy_quadratic"), Path("runs/toy_quadratic-replay")


@pytest.fixture
def quadratic(pbtrl: Command) -> Command:
    """The command line, beside a finished run of the toy."""
    assert pbtrl("train", "toy_quadratic", "--progress", "none").code == 0
    return pbtrl


def slices(run: Path, member: str = "m00") -> list[tuple[int, dict[str, Any]]]:
    """Steps trained before each slice of a member, and its effective hyperparameters."""
    reports = [line for line in journal(run) if line["kind"] == "report" and line["member"] == member]
    return [
        (before, r["hyperparameters"]) for before, r in zip([0, *(r["step"] for r in reports)], reports, strict=False)
    ]


def changes(run: Path, member: str = "m00") -> list[dict[str, Any]]:
    """Schedule of a member, as its reports say."""
    points: list[dict[str, Any]] = []
    for step, values in slices(run, member):
        if not points or {**values, "at": points[-1]["at"]} != points[-1]:
            points.append({"at": step, **values})
    return points


def reports(run: Path) -> int:
    return sum(line["kind"] == "report" for line in journal(run))


def test_printed_schedule_trains_the_same_steps(quadratic: Command) -> None:
    """And with them, in this deterministic toy, the same fitness."""
    text = quadratic("schedule", "last").out
    section = yaml.safe_load(text)
    tree = {**yaml.safe_load((RUN / "config.resolved.yaml").read_text()), **section, "name": "again"}
    Path("again.yaml").write_text(yaml.safe_dump(tree))
    assert quadratic("train", "again.yaml").code == 0
    assert changes(Path("runs/again")) == section["strategy"]["schedule"]
    assert changes(Path("runs/again"), "m01") == section["strategy"]["schedule"]
    best, again = (json.loads((run / "best.json").read_text()) for run in (RUN, Path("runs/again")))
    assert again["evaluation"]["return_mean"] == best["evaluation"]["return_mean"]


def test_schedule_beyond_the_first_bounds_is_replayed(pbtrl: Command) -> None:
    """`pbtrl set` widened them while the run was stopped."""
    bandit = {"prior": "uniform", "low": 0.2, "high": 0.5}
    tree: dict[str, Any] = {
        "trainable": {"name": "drifting_bandit", "noise": 0.01},
        "population": {"size": 4, "mode": "sync"},
        "budget": {"env_steps_per_member": 20},
        "execution": {"backend": "inline"},
        "hparams": {"h": bandit},
        "strategy": {"ready": {"slice_steps": 10}, "explore": {"factors": [1.5, 0.8]}},
        "name": "bandit",
    }
    Path("bandit.yaml").write_text(yaml.safe_dump(tree))
    assert pbtrl("train", "bandit.yaml", "--progress", "none").code == 0
    done = journal(Path("runs/bandit"))
    (Path("runs/bandit") / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in done[:-1]))
    assert pbtrl("set", "bandit", "hparams.h.bounds=[0.2, 0.9]").code == 0
    assert pbtrl("resume", "bandit", "budget.env_steps_per_member=200", "--progress", "none").code == 0
    section = yaml.safe_load(pbtrl("schedule", "bandit").out)
    assert max(point["h"] for point in section["strategy"]["schedule"]) > 0.5
    assert pbtrl("replay", "bandit", "--seeds", "1", "--progress", "none").code == 0


def test_replay_compares_schedule_and_constants(quadratic: Command) -> None:
    before = contents(RUN)
    result = quadratic("replay", "last", "--seeds", "3", "--progress", "plain")
    assert (result.code, result.err) == (0, "")
    assert contents(RUN) == before
    points = quadratic("schedule", "toy_quadratic", "--format", "json").json["schedule"]
    assert len(points) > 1
    assert changes(NEW / "schedule") == points
    assert changes(NEW / "final") == [{**points[-1], "at": 0}]
    assert changes(NEW / "constant") == [{**points[0], "at": 0}]  # both members of the toy copied
    for arm in ("schedule", "final", "constant"):
        config, original = load(NEW / arm / "config.resolved.yaml"), load(RUN / "config.resolved.yaml")
        assert (config.population.size, config.population.mode, config.steps_per_member) == (3, "sync", 200)
        assert (config.trainable, config.hparams, config.slice_steps) == (original.trainable, original.hparams, 10)
        assert config.seed != original.seed
        seeds = [{a["seed"] for a in line["assignments"]} for line in journal(NEW / arm)[1:] if "assignments" in line]
        assert len(seeds[0]) == 3
    table = result.out.splitlines()[-10:]
    rows = {row["name"]: row for row in json.loads((NEW / "replay.json").read_text())["rows"]}
    assert [line[:26].strip() for line in table[1:5]] == [
        "original best member", "replayed schedule", "final values held constant", "best constants",
    ]  # fmt: skip
    assert table[2].split()[2:] == ["1.15", "1.15", "to", "1.15", "1.15", "1.15", "3", "200"]
    assert "the first values of the schedule, because the hyperparameters of every member changed" in table[-1]
    assert rows["schedule"]["return_mean"] == pytest.approx(rows["original"]["return_mean"], abs=1e-12)
    assert [m["member"] for m in rows["final"]["members"]] == ["m00", "m01", "m02"]
    assert [row["seeds"] for row in rows.values()] == [1, 3, 3, 3]
    assert len({m["seed"] for row in rows.values() for m in row["members"]}) == 1
    assert quadratic("status", "schedule", "--runs", NEW, "--json").json["state"] == "finished"
    assert quadratic("status", "last", "--json").json["name"] == "toy_quadratic"  # and so the command can be repeated


def test_repeated_replay_prints_the_same_and_trains_nothing(
    quadratic: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = quadratic("replay", "last", "--seeds", "2", "--json").json
    assert first["rows"][1]["steps"] == 200
    before = contents(NEW)
    with monkeypatch.context() as inside:
        inside.setattr(scoring, "evaluate", None)
        assert quadratic("replay", "toy_quadratic", "--seeds", "2", "--json").json == first
    assert contents(NEW) == before
    shutil.rmtree(NEW / "final")
    assert quadratic("replay", "toy_quadratic", "--seeds", "2", "--json").json == first
    assert contents(NEW / "schedule") == {
        name.removeprefix("schedule/"): data for name, data in before.items() if name.startswith("schedule/")
    }


def test_stopped_replay_continues_with_the_same_command(quadratic: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["replay", "toy_quadratic", "--seeds", "3", "--json"]
    whole = quadratic(*command, "--name", "whole").json
    with signalled(monkeypatch, signal.SIGTERM, report=9):
        stopped = quadratic(*command)
    assert (stopped.code, stopped.out) == (143, "")
    assert stopped.err.splitlines() == [
        "stopped; resume with: pbtrl resume toy_quadratic-replay/schedule",
        "the same command continues the replay, without what is finished",
    ]
    done = reports(NEW / "schedule")
    assert 0 < done < reports(Path("runs/whole/schedule"))
    assert not (NEW / "final").exists()
    with monkeypatch.context() as inside:
        inside.setattr(Replay, "scores", lambda self: signal.raise_signal(signal.SIGINT))
        assert quadratic(*command).code == 130
    before = {arm: contents(NEW / arm) for arm in ("schedule", "final", "constant")}
    result = quadratic(*command)
    assert result.code == 0
    assert {arm: contents(NEW / arm) for arm in before} == before
    assert [row["return_mean"] for row in result.json["rows"]] == [row["return_mean"] for row in whole["rows"]]
    assert [row["steps"] for row in result.json["rows"]] == [200] * 4


def test_processes_share_a_replay(quadratic: Command) -> None:
    """A second one trains what the first has not begun. Whoever comes last compares."""
    command = ["replay", "toy_quadratic", "--seeds", "2", "--json"]
    whole = quadratic(*command, "--name", "whole").json
    assert quadratic(*command).code == 0
    for arm in ("schedule", "final"):
        shutil.rmtree(NEW / arm)
    (NEW / "schedule").mkdir()
    with RunLock(NEW / "schedule"):
        result = quadratic(*command)
    assert (result.code, result.out, state(RunDirectory(NEW / "final"))) == (2, "", "finished")
    assert result.err == f"another process trains schedule of {NEW}: repeat the command when it has ended\n"
    last = quadratic(*command)
    assert [row["return_mean"] for row in last.json["rows"]] == [row["return_mean"] for row in whole["rows"]]


def test_replays_that_start_together_train_each_run_once(quadratic: Command) -> None:
    processes = [spawn(Path.cwd(), "replay", "last", "--seeds", "2", "--progress", "none") for _ in range(2)]
    ends = [(process.communicate(timeout=120)[1], process.returncode) for process in processes]
    for err, code in ends:
        assert code == 0 or "another process trains" in err, ends
    assert 0 in [code for _, code in ends], ends


def test_fittest_member_that_never_changed_gives_the_best_constants(pbtrl: Command) -> None:
    six = ["population.size=6", "strategy.exploit.method=truncation", "budget.env_steps_per_member=30"]
    assert pbtrl("train", "toy_quadratic", *six).code == 0
    copied = {c["member"] for c in pbtrl("lineage", "last", "--json").json["copies"]}
    never = [m for m in pbtrl("status", "last", "--json").json["members"] if m["id"] not in copied]
    assert len(never) > 1
    fittest = max(never, key=lambda m: m["fitness"])
    result = pbtrl("replay", "last", "--seeds", "2", "--member", min(copied), "--json").json
    assert result["constants_of"] == fittest["id"]
    assert result["constants"] == fittest["hyperparameters"]
    assert changes(NEW / "constant") == [{"at": 0, **fittest["hyperparameters"]}]
    assert result["rows"][3]["return_mean"] == pytest.approx(fittest["fitness"])
    text = pbtrl("replay", "last", "--seeds", "2", "--member", min(copied)).out
    assert f"those of {fittest['id']}, the fittest member whose hyperparameters never changed" in text
    assert "episodes" not in text


def test_agent_of_a_mix_is_replayed_alone(pbtrl: Command) -> None:
    Path("mixed.yaml").write_text(MIXED)
    changed = ["strategy.explore.when=always", "budget.env_steps_per_member=480"]
    assert pbtrl("train", "mixed.yaml", "--name", "mixed", *changed).code == 0
    result = pbtrl("replay", "mixed", "--seeds", "2", "--member", "m03", "--json").json
    assert result["agent"] == "vmpo"
    config = load("runs/mixed-replay/schedule/config.resolved.yaml")
    assert config.agents is None
    assert config.agent
    assert (config.agent.name, list(config.hparams)) == (
        "vmpo", ["learning_rate", "unroll_length", "target_period"],
    )  # fmt: skip
    assert [row["steps"] for row in result["rows"]] == [480] * 4
    evaluations = [e for row in result["rows"] for e in row["members"]]
    assert [e["episodes"] for e in evaluations] == [3] * 7
    assert all(e["seeds"] == evaluations[0]["seeds"] for e in evaluations)
    assert [e["agent"] for e in evaluations] == ["vmpo"] * 7
    text = pbtrl("replay", "mixed", "--seeds", "2", "--member", "m03").out
    assert "the same 3 fresh episodes for every member, raw returns" in text


def test_replay_trains_as_long_as_the_ancestry_whatever_the_budget(pbtrl: Command) -> None:
    """The original run ended before its budget, at a fitness that does not end the new ones."""
    assert pbtrl("train", "toy_quadratic", "budget={env_steps_per_member: 200, until_fitness: 1.0}").code == 0
    steps = pbtrl("schedule", "last", "--format", "json").json["steps"]
    assert steps < 200
    result = pbtrl("replay", "last", "--seeds", "1", "--json").json
    assert [row["steps"] for row in result["rows"]] == [steps] * 4
    assert [row["incomplete"] for row in result["rows"]] == [{}] * 4
    assert load(NEW / "schedule/config.resolved.yaml").budget.until_fitness is None


FLAKY = """\
import math
import numpy as np
from pbtrl.trainables.quadratic import Quadratic

class Flaky(Quadratic):
    def __init__(self, rng):
        super().__init__(rng, clamp=True)
        self.luck, self.age = rng.random(), 0.0

    def train(self, steps, hyperparameters, rng):
        self.age += steps
        if self.age > 100 and self.luck < 0.3:
            raise ValueError("bad luck")
        return super().train(steps, hyperparameters, rng)

    def evaluate(self, rng):
        return math.nan if self.age > 150 and self.luck > 0.8 else super().evaluate(rng)

    def state_dict(self):
        return {**super().state_dict(), "own": np.array([self.luck, self.age])}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.luck, self.age = map(float, state["own"])
"""


def test_members_that_fail_are_named(pbtrl: Command) -> None:
    """They are scored where they ended, unless the score is not finite. The run's module needs trust."""
    Path("flaky.py").write_text(FLAKY)
    trained = pbtrl("train", "toy_quadratic", 'trainable={name: "flaky:Flaky"}', "seed=5", "--name", "a")
    assert trained.code == 0, trained.err
    refused = pbtrl("replay", "a", "--seeds", "8")
    assert (refused.code, refused.err.startswith("runs/a asks to import 'flaky'")) == (2, True)
    assert not Path("runs/a-replay").exists()
    result = pbtrl("replay", "a", "--seeds", "8", "--trust-imports", "--progress", "none")
    assert result.code == 0, result.err
    row = json.loads(Path("runs/a-replay/replay.json").read_text())["rows"][1]
    given_up, diverged = (
        sorted(m for m, step in row["incomplete"].items() if (step == 100) == early) for early in (True, False)
    )
    assert given_up
    assert diverged
    assert row["unscored"] == diverged
    assert row["seeds"] == 8 - len(diverged)
    scores = [m["return_mean"] for m in row["members"] if m["member"] not in diverged]
    half = t.ppf(0.975, len(scores) - 1) * np.std(scores, ddof=1) / np.sqrt(len(scores))
    assert len(set(scores)) == 2
    assert row["return_mean"] == pytest.approx(np.mean(scores))
    assert row["ci95"] == pytest.approx([np.mean(scores) - half, np.mean(scores) + half])
    assert (row["return_min"], row["return_max"]) == (min(scores), max(scores))
    assert f"replayed schedule: no finite score of {', '.join(diverged)}\n" in result.out
    ended = ", ".join(f"{m} at {step}" for m, step in row["incomplete"].items())
    assert f"replayed schedule: ended early and scored there: {ended}\n" in result.out


# Refusals


def test_run_without_changes_is_refused(pbtrl: Command) -> None:
    for name, override, why in [
        ("alone", "strategy={name: random_search}", "no member copied another one"),
        ("still", "strategy.explore.method=none", "its ancestors never changed them"),
    ]:
        assert pbtrl("train", "toy_quadratic", "--name", name, override).code == 0
        refused = pbtrl("replay", name)
        assert (refused.code, refused.out) == (2, "")
        snapshot = json.loads(Path(f"runs/{name}/best.json").read_text())["snapshot"]
        assert refused.err == (
            f"runs/{name} has no schedule to replay: the hyperparameters of {snapshot} were the same all along, "
            f"because {why}\n"
        )
        assert not Path(f"runs/{name}-replay").exists()


def test_other_replay_of_the_same_name_is_refused(quadratic: Command) -> None:
    assert quadratic("replay", "last", "--seeds", "1", "--json").json["rows"][1]["ci95"] is None
    before = contents(NEW)
    for options, difference in [
        (["--seeds", "2"], "seeds 1 instead of 2"),
        (["--seeds", "1", "--member", "m00"], "member m01 instead of m00"),
    ]:
        refused = quadratic("replay", "last", *options)
        assert (refused.code, refused.out) == (2, "")
        assert refused.err.startswith(f"{NEW} is another replay (")
        assert difference in refused.err
    assert quadratic("resume", "toy_quadratic", "budget.env_steps_per_member=250").code == 0
    assert "snapshot m01/000019 instead of" in quadratic("replay", "toy_quadratic", "--seeds", "1").err
    assert contents(NEW) == before
    assert quadratic("replay", "toy_quadratic", "--seeds", "1", "--name", "longer", "--json").json["steps"] == 250
    for name in ("../else", "a/b", "", "-"):
        assert quadratic("replay", "toy_quadratic", f"--name={name}").code == 2
    for name in ("toy_quadratic", "again.txt"):
        Path("runs/again.txt").touch()
        refused = quadratic("replay", "toy_quadratic", "--name", name)
        assert (refused.code, refused.err) == (2, f"runs/{name} exists and is not a replay: choose another --name\n")


def test_run_in_training_is_refused(quadratic: Command) -> None:
    with RunLock(RUN):
        refused = quadratic("replay", "toy_quadratic")
    assert (refused.code, refused.err) == (2, "runs/toy_quadratic is training: replay it when it has ended\n")


def test_lost_snapshot_is_found_before_the_training(quadratic: Command) -> None:
    snapshot = json.loads((RUN / "best.json").read_text())["snapshot"]
    member, generation = snapshot.split("/")
    shutil.rmtree(RUN / "members" / member / "snapshots" / generation)
    refused = quadratic("replay", "toy_quadratic")
    assert refused.code == 4
    assert snapshot in refused.err
    assert not NEW.exists()
    assert quadratic("schedule", "toy_quadratic").code == 0
