"""`pbtrl compare`: groups, labels, what is left out, what cannot be compared, and the page."""

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import pbtrl
from pbtrl.errors import DamagedError, RunError
from pbtrl.reporting.comparison.group_curves import group_curve
from pbtrl.reporting.comparison.group_statistics import Pair, RunGroup
from pbtrl.reporting.comparison.groups import labels, varying_settings
from pbtrl.reporting.comparison.page import check_target
from pbtrl.reporting.comparison.run_curves import RunCurve, RunCurves
from pbtrl.reporting.comparison.runs import load, read_settings
from pbtrl.storage.run_directory import RunDirectory
from tests.command import Command
from tests.journal_writer import JournalWriter, best_json

pytestmark = pytest.mark.usefixtures("quick_disk")

PBT = {"env": {"id": "CartPole-v1"}, "agent": {"name": "impala", "gamma": 0.99}, "strategy": {"name": "pbt"}}
SEARCH = {**PBT, "strategy": {"name": "random_search"}}


def write_run(
    folder: Path, name: str, score: float | None, config: Any = PBT, *, seed: int = 1, end: str = "finish",
    slices: int = 2, **fields: Any,
) -> Path:  # fmt: skip
    """A run of two members that train `slices` slices of 100 steps; the fitness of m00 is 3.0."""
    w = JournalWriter(folder / name, seed=seed, **fields)
    for _ in range(slices):
        w.decide(w.next("m00"), w.next("m01"))
        w.report("m00", 3.0)
        w.report("m01", 1.0)
    w.end(end)
    (w.run / "config.resolved.yaml").write_text(yaml.safe_dump({"name": name, "seed": seed, **config}))
    if score is not None:
        w.choose("m00", score, ci95=[score - 1, score + 1])
    return w.run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four paired seeds of PBT and random search."""
    folder = tmp_path / "runs" / "sweep"
    for seed, (pbt, search) in enumerate(((10.0, 4.0), (12.0, 5.0), (14.0, 11.0), (16.0, 7.0))):
        write_run(folder, f"pbt-{seed}", pbt, seed=seed)
        write_run(folder, f"search-{seed}", search, SEARCH, seed=seed)
    return folder


# Groups


def test_dot_is_the_working_directory(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(sweep / "runs", "other", 3.0)
    monkeypatch.chdir(sweep)
    assert [g.label for g in pbtrl.compare(".").groups] == ["pbt", "random_search"]
    assert [g.label for g in pbtrl.compare("../sweep").groups] == ["pbt", "random_search"]


def test_runs_of_a_folder_are_grouped_by_what_differs(sweep: Path) -> None:
    result = pbtrl.compare(sweep)
    assert [(g.label, g.values) for g in result.groups] == [
        ("pbt", (10.0, 12.0, 14.0, 16.0)),
        ("random_search", (4.0, 5.0, 11.0, 7.0)),
    ]
    assert result.differences == {"strategy.name": ["pbt", "random_search"]}
    (pair,) = result.pairs
    assert pair.probability == 15 / 16
    assert pair.paired == (6.0, 7.0, 3.0, 9.0)
    assert pair.difference == 6.25
    assert result.groups[0].iqm == 13.0
    assert result.groups[0].average("steps") == 400
    assert result.groups[0].average("seconds") == 70.0


def test_name_seed_and_machine_make_no_difference(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 1.0, {**PBT, "execution": {"backend": "inline"}}, seed=1)
    write_run(tmp_path, "b", 2.0, {**PBT, "execution": {"backend": "processes"}, "snapshots": {"keep_last": 9}}, seed=2)
    (group,) = pbtrl.compare(tmp_path).groups
    assert group.label == "pbt"
    assert group.values == (1.0, 2.0)


def test_one_group_has_no_pairs_and_one_run_no_interval(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", 1.0)
    result = pbtrl.compare(run)
    assert not result.pairs
    assert result.groups[0].interval is None
    assert "pbt" in str(result)
    two = pbtrl.compare([run, write_run(tmp_path, "b", 0.0, SEARCH)])
    assert two.pairs[0].probability == 1.0
    assert two.pairs[0].interval is None
    assert two.pairs[0].verdict == "too few runs to conclude"


def test_zero_variance(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path, f"a{seed}", 2.0, seed=seed)
        write_run(tmp_path, f"b{seed}", 2.0, SEARCH, seed=seed)
    result = pbtrl.compare(tmp_path)
    assert result.groups[0].interval == (2.0, 2.0)
    assert result.pairs[0].probability == 0.5
    assert result.pairs[0].interval == (0.5, 0.5)
    assert result.pairs[0].verdict == "no difference shown"


def test_verdict_follows_the_probability_of_improvement(tmp_path: Path) -> None:
    """Here the group with the better interquartile mean wins less often."""
    result = pbtrl.compare(write_run(tmp_path, "a", 1.0))
    runs = result.groups[0].runs * 60
    a, b = RunGroup("rare", runs, (5.0,) * 40 + (90.0,) * 20), RunGroup("steady", runs, (6.0,) * 60)
    assert (a.iqm or 0) > (b.iqm or 0)
    assert Pair(a, b, result.metric).verdict == "steady is better"
    assert Pair(b, a, result.metric).verdict == "steady is better"


@pytest.mark.parametrize(("low", "high", "verdict"), [
    ((1, 2, 3, 4), (5, 6, 7, 8), "random_search is better"),
    ((5, 6, 7, 8), (1, 2, 3, 4), "pbt is better"),
    ((1, 2, 3), (5, 6, 7), "too few runs to conclude"),
    ((5, 6, 7, 8, 9), (1, 2, 3, 4, 9.5), "no difference shown"),  # U = 5, p = 0.15
    ((5, 6, 7, 8, 9), (1, 2, 3, 4, 8.5), "no difference shown"),  # U = 4, p = 0.095
    ((5, 6, 7, 8, 9), (1, 2, 3, 4, 6.5), "pbt is better"),  # U = 2, p = 0.032
    ((5, 5, 5, 5), (1, 2, 3, 4), "pbt is better"),
    ((5, 5, 5, 5), (1, 2, 3, 5), "no difference shown"),
])  # fmt: skip
def test_verdict(tmp_path: Path, low: tuple[int], high: tuple[int], verdict: str) -> None:
    for seed, (a, b) in enumerate(zip(low, high, strict=True)):
        write_run(tmp_path, f"a{seed}", a, seed=seed)
        write_run(tmp_path, f"b{seed}", b, SEARCH, seed=seed)
    result = pbtrl.compare(tmp_path)
    assert result.pairs[0].verdict == verdict
    assert result.differences["strategy.name"] == [group.label for group in result.groups]


def test_seeds_that_are_not_shared_are_not_paired(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, f"a{seed}", seed, seed=seed)
        write_run(tmp_path, f"b{seed}", 2 * seed + 1, SEARCH, seed=seed + 1)
    assert pbtrl.compare(tmp_path).pairs[0].paired == (0.0, 1.0)  # of the seeds 1 and 2
    write_run(tmp_path, "twice", 9.0, seed=2)
    result = pbtrl.compare(tmp_path)
    assert result.pairs[0].paired == ()
    assert any("pbt: several runs have the seed 2" in line for line in result.warnings)


def test_runs_that_were_changed_while_training_are_named(tmp_path: Path) -> None:
    """Their config is that of the start."""
    write_run(tmp_path, "a", 1.0)
    changed = write_run(tmp_path, "b", 2.0, seed=2)
    assert pbtrl.compare(tmp_path).warnings == []
    lines = (changed / "journal.jsonl").read_text().splitlines()
    line = {"kind": "set", "settings": {}, "retired": ["m01"], "timing": {"time": 1.0, "elapsed": 1.0}}
    (changed / "journal.jsonl").write_text("\n".join([*lines[:2], json.dumps(line), *lines[2:], ""]))
    assert pbtrl.compare(tmp_path).warnings == ["changed by `pbtrl set` while training, unlike their config: b"]


def test_a_run_that_is_given_twice_counts_once(sweep: Path) -> None:
    result = pbtrl.compare(["pbt-1", "pbt-1", str(sweep), pbtrl.load_run("pbt-2", runs=sweep)], runs=sweep)
    assert [len(g.runs) for g in result.groups] == [4, 4]


# Labels


def config(**settings: Any) -> dict[str, Any]:
    return {"strategy.name": "pbt", "agent.gamma": 0.99, **settings}


def test_label_has_as_few_settings_as_tell_the_groups_apart() -> None:
    slow = {"agent.learning_rate": 1e-3, "population.size": 4}
    assert labels([config(), config(**{"strategy.name": "fire", "population.size": 22})]) == ["pbt", "fire"]
    three = [config(**slow), config(**{**slow, "strategy.name": "asha"}), config(**{**slow, "agent.gamma": 0.9})]
    assert labels(three) == ["pbt, gamma 0.99", "asha, gamma 0.99", "pbt, gamma 0.9"]
    rates = [config(**{"agent.learning_rate": rate, "strategy.ready.slice_steps": rate}) for rate in (1e-3, 1e-2)]
    assert labels(rates) == ["learning_rate 1.0e-3", "learning_rate 0.01"]
    grid = [config(**{"strategy.name": n, "agent.learning_rate": r}) for n in ("pbt", "fixed") for r in (0.1, 0.2)]
    assert labels(grid) == [
        "pbt, learning_rate 0.1",
        "pbt, learning_rate 0.2",
        "fixed, learning_rate 0.1",
        "fixed, learning_rate 0.2",
    ]


def test_size_of_the_population_names_groups_of_equal_compute() -> None:
    """The members' budgets follow from it."""
    sizes = [config(**{"population.size": n, "budget.env_steps_per_member": 800 // n}) for n in (2, 4)]
    assert labels(sizes) == ["size 2", "size 4"]


def test_labels_of_other_values() -> None:
    copies = [config(**{"strategy.copy": c}) for c in (["weights"], ["weights", "hparams"])]
    assert labels(copies) == ["copy weights", "copy weights+hparams"]
    wrapped = [config(**{"env.wrappers": wrappers}) for wrappers in ([], ["own:Half"])]
    assert labels(wrapped) == ["wrappers none", "wrappers own:Half"]
    exploits = [config(**{"strategy.exploit.method": m}) for m in ("t_test", "truncation")]
    assert labels(exploits) == ["exploit t_test", "exploit truncation"]
    searched = config(**{"agent.learning_rate": {"prior": "log_uniform", "low": 1e-4, "high": 0.1}})
    assert labels([searched, config(**{"agent.learning_rate": 0.5})])[0] == "learning_rate searched 1.0e-4 to 0.1"
    assert labels([config(), config(**{"agent.extra": True})]) == ["others", "extra True"]


def test_labels_are_unique_and_short() -> None:
    close = [config(**{"agent.gamma": g}) for g in (0.9900001, 0.9900002)]
    assert labels(close) == ["gamma 0.99 (1)", "gamma 0.99 (2)"]
    long = [config(**{"strategy.schedule": [{"at": 0, "rate": i, "x": "y" * 90}]}) for i in range(2)]
    assert labels(long, [["final"], ["constant"]]) == ["final", "constant"]
    assert labels(long, [["a-1", "a-2"], ["b-11", "b-12"]]) == ["a", "b"]
    assert labels(long, [["pbt-s1", "pbt-s2"], ["pbt-copy-s11", "pbt-copy-s12"]]) == ["pbt", "pbt-copy"]
    assert labels(long, [["pbt-8-1", "pbt-8-2"], ["rate0.1-1", "rate0.1-2"]]) == ["pbt-8", "rate0.1"]
    assert all(len(label) < 70 for label in labels(long, [["a-1"], ["a-1"]]))


def test_differences_name_all_settings() -> None:
    result = varying_settings([config(**{"population.size": 4, "agent.x": 1}), config(**{"agent.x": 2})])
    assert result == {"agent.x": [1, 2], "population.size": [4, None]}


def test_searched_hyperparameter_has_the_name_of_its_fixed_value(tmp_path: Path) -> None:
    prior = {"prior": "uniform", "low": 0.1, "high": 0.2}
    settings = read_settings(RunDirectory(write_run(tmp_path, "a", 1.0, {**PBT, "hparams": {"learning_rate": prior}})))
    assert settings["agent.learning_rate"] == prior
    assert not any(name.startswith("hparams") for name in settings)
    mixed = {"agents": {"a": {"name": "vmpo"}}, "hparams": {"learning_rate": prior}}
    assert read_settings(RunDirectory(write_run(tmp_path, "b", 1.0, mixed)))["agent.learning_rate"] == prior


# Runs without a score


def test_runs_without_a_score_are_listed(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(sweep, "stopped", 5.0, seed=7, end="stop")
    write_run(sweep, "unscored", None, seed=8)
    write_run(sweep, "infinite", math.inf, seed=9)
    (write_run(sweep, "damaged", 5.0, seed=10) / "journal.jsonl").write_text("nonsense\n")
    (write_run(sweep, "configless", 5.0, seed=11) / "config.resolved.yaml").unlink()
    result = pbtrl.compare(sweep)
    assert [len(g.runs) for g in result.groups] == [4, 4]
    assert {run.path.name for run in result.left_out} == {"stopped", "unscored", "infinite", "damaged", "configless"}
    (why,) = (run.reason for run in result.left_out if run.path.name == "stopped")
    assert why.startswith("stopped after 400 of 2,000 env steps")
    for text in (str(result), result.markdown(), result.save().read_text()):
        assert all(run.path.name in text for run in result.left_out)


def test_run_that_was_continued_after_its_score_has_none(tmp_path: Path) -> None:
    run = write_run(tmp_path, "a", 5.0)
    with (run / "journal.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "resume", "schema": 1, "horizon": 9000, "timing": {"elapsed": 99.0}}) + "\n")
    result = pbtrl.compare(run)
    assert not result.runs
    assert result.left_out[0].reason.startswith("crashed")
    assert not pbtrl.compare(run, metric="fitness").runs
    assert load(RunDirectory(run)).score is None


def test_no_run_with_a_score(pbtrl: Command, tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "a", None)
    result = pbtrl("compare", "a")
    assert result.code == 3
    assert "left out: a" in result.out


def test_named_run_that_is_damaged_is_an_error(pbtrl: Command, sweep: Path) -> None:
    (sweep / "pbt-1" / "journal.jsonl").write_text("nonsense\n")
    result = pbtrl("compare", sweep / "pbt-1", sweep / "pbt-2")
    assert result.code == 4
    assert result.err.count("\n") == 1
    (sweep / "pbt-2" / "best.json").write_text("{}")
    (sweep / "pbt-3" / "best.json").write_text(json.dumps(best_json("m00", "x")))
    for name in ("pbt-2", "pbt-3"):
        with pytest.raises(DamagedError, match=rf"{name}/best\.json cannot be read"):
            compare_one(sweep / name)
    (sweep / "pbt-0" / "best.json").unlink()
    assert not compare_one(sweep / "pbt-0").runs


def compare_one(run: Path) -> Any:
    import pbtrl as library

    return library.compare(run)


# What cannot be compared


@pytest.mark.parametrize(("changes", "fields", "what"), [
    ({"env": {"id": "Acrobot-v1"}}, {}, "env, 'CartPole-v1' and 'Acrobot-v1'"),
    ({"env": None, "trainable": {"name": "quadratic"}}, {}, "env, 'CartPole-v1' and none"),
    ({"fitness": {"metric": "other"}}, {}, "fitness.metric"),
    ({}, {"unit": "steps"}, "metric, 'return' and 'fitness'"),
])  # fmt: skip
def test_runs_of_different_tasks(
    pbtrl: Command, tmp_path: Path, changes: dict[str, Any], fields: dict[str, Any], what: str
) -> None:
    write_run(tmp_path / "runs", "one", 1.0)
    write_run(tmp_path / "runs", "two", 1.0, {**PBT, **changes}, **fields)
    result = pbtrl("compare", "one", "two")
    assert result.code == 2
    assert result.err.count("\n") == 1
    assert "one and runs/two cannot be compared: they have different " + what in result.err
    assert not (tmp_path / "compare.html").exists()


def test_env_protocol_of_atari(tmp_path: Path) -> None:
    for name in ("sticky", "classic"):
        write_run(tmp_path, name, 1.0, {**PBT, "env": {"id": "ALE/Pong-v5", "protocol": name}})
    with pytest.raises(RunError, match="env protocol, 'classic' and 'sticky'"):
        pbtrl.compare(tmp_path)


def test_trainables_by_the_metric_that_their_journal_names(tmp_path: Path) -> None:
    trainable = {"trainable": {"name": "net"}, "strategy": {"name": "pbt"}}
    run = write_run(tmp_path, "a", 0.9, trainable, unit="steps")
    assert pbtrl.compare(run).metric.title == "fitness of the chosen member on the data that it was chosen with"
    lines = (run / "journal.jsonl").read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "metric": "accuracy"})
    (run / "journal.jsonl").write_text("\n".join(lines) + "\n")
    result = pbtrl.compare(run)
    assert result.metric.title == "accuracy of the chosen member on the data that it was chosen with"
    assert "total steps" in str(result)
    unfinished = write_run(tmp_path, "c", None, trainable, unit="steps", metric="accuracy", end="stop")
    JournalWriter(tmp_path / "d").choose("m00", 0.9, held_out=True)
    (run / "best.json").write_bytes((tmp_path / "d" / "best.json").read_bytes())
    assert pbtrl.compare([unfinished, run]).metric.title == "accuracy of the chosen member on held-out data"
    other = write_run(tmp_path, "b", 0.9, trainable, unit="steps")
    with pytest.raises(RunError, match="metric, 'accuracy' and 'fitness'"):
        pbtrl.compare([run, other])


# Metrics


def test_metrics(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 5.0)
    values = {m: pbtrl.compare(tmp_path, metric=m).groups[0].values[0] for m in ("score", "fitness", "median")}
    assert values == {"score": 5.0, "fitness": 3.0, "median": 2.0}
    assert any("biased" in line for line in pbtrl.compare(tmp_path, metric="fitness").warnings)
    assert not pbtrl.compare(tmp_path).warnings


def test_steps_to_a_value_ranks_runs_that_never_reach_it_last(tmp_path: Path) -> None:
    for seed, (a, b) in enumerate(((5.0, 1.0), (2.0, 1.0), (6.0, 1.0), (6.0, 2.0))):
        write_run(tmp_path, f"a{seed}", a, seed=seed, slices=1)
        write_run(tmp_path, f"b{seed}", b, SEARCH, seed=seed, slices=1)
    result = pbtrl.compare(tmp_path, metric="steps_to=4")
    assert [(g.label, g.values) for g in result.groups] == [
        ("pbt", (200.0, math.inf, 200.0, 200.0)),
        ("random_search", (math.inf,) * 4),
    ]
    assert result.pairs[0].probability == (12 + 4 * 0.5) / 16
    assert result.pairs[0].difference is None
    assert "never" in str(result)
    assert "never to never" in result.save().read_text()


@pytest.mark.parametrize(("metric", "hint"), [
    ("scor", "unknown metric 'scor'. Did you mean 'score'?"),
    ("step_to=4", "Did you mean 'steps_to=VALUE'?"),
    ("steps_to", "Did you mean 'steps_to=VALUE'?"),
    ("score=4", "Known: score, fitness, median, steps_to=VALUE"),
    ("xyz", "Known: score, fitness, median, steps_to=VALUE"),
    ("steps_to=many", "needs a number"),
    ("steps_to=nan", "needs a number"),
])  # fmt: skip
def test_unknown_metric(pbtrl: Command, sweep: Path, metric: str, hint: str) -> None:
    result = pbtrl("compare", sweep, "--metric", metric)
    assert result.code == 2
    assert hint in result.err
    assert result.err.count("\n") == 1
    assert not (sweep / "compare.html").exists()


# Compute, and too few runs


def test_unequal_compute_is_a_warning(tmp_path: Path) -> None:
    write_run(tmp_path, "a", 5.0, slices=100)
    write_run(tmp_path, "b", 5.0, SEARCH, slices=101)
    result = pbtrl.compare(tmp_path)
    assert result.largest_ratio == pytest.approx(1.01)
    assert not result.warnings
    write_run(tmp_path, "c", 5.0, SEARCH, slices=99, seed=2)
    (warning,) = pbtrl.compare(tmp_path).warnings
    assert "compute is not equal: the largest ratio of total steps is 1.02, 20.2k env steps (b)" in warning


def test_other_env_kwargs_and_machines_are_warnings(tmp_path: Path) -> None:
    for i in range(2):
        run = write_run(tmp_path, f"a{i}", 5.0, {**PBT, "env": {"id": "CartPole-v1", "kwargs": {"size": i}}})
        (run / "run.json").write_text(json.dumps({"schema": 1, "versions": {"processor": f"CPU {i}"}}))
    kwargs, machines = pbtrl.compare(tmp_path).warnings
    assert kwargs.startswith("env.kwargs.size differs")
    assert "CPU 0" in machines
    assert "CPU 1" in machines


@pytest.mark.parametrize(("one", "other", "setting"), [
    ({"env": {"wrappers": []}}, {"env": {"wrappers": ["own:Half"]}}, "env.wrappers"),
    ({"env": {}}, {"env": {"flatten_observations": True}}, "env.flatten_observations"),
    ({"final": {"max_steps": 9}}, {"final": {"max_steps": None}}, "final.max_steps"),
    ({"trainable": {"name": "net", "data": "a"}}, {"trainable": {"name": "net", "data": "b"}}, "trainable.data"),
    ({"trainable": {"name": "net", "rate": 0.1}}, {"trainable": {"name": "net"}, "hparams": {"rate": {"prior": "x"}}},
     None),
    ({"final": {"episodes": 9}}, {"final": {"episodes": 8}}, None),
])  # fmt: skip
def test_other_tasks_are_a_warning(tmp_path: Path, one: Any, other: Any, setting: str | None) -> None:
    write_run(tmp_path, "a", 1.0, one)
    write_run(tmp_path, "b", 1.0, other)
    result = pbtrl.compare(tmp_path)
    assert len(result.groups) == 2
    text = f"{setting} differs between the groups: their scores may not mean the same"
    assert result.warnings == ([text] if setting else [])


def test_pairs_of_many_groups_are_cut_in_the_table(tmp_path: Path) -> None:
    for i in range(7):
        write_run(tmp_path, f"a{i}", float(i), {**PBT, "population": {"size": i}})
    result = pbtrl.compare(tmp_path)
    assert len(result.to_json()["pairs"]) == 21
    assert "6 more comparisons" in str(result)
    assert str(result).count("too few runs to conclude\n") == 15


def test_too_few_runs_are_explained_by_arithmetic(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path, f"a{seed}", 5.0 + seed, seed=seed)
        write_run(tmp_path, f"b{seed}", seed, SEARCH, seed=seed)
    text = str(pbtrl.compare(tmp_path))
    assert "with n = 3 pairs a sign test cannot go below p = 0.25" in text
    assert "with 3 and 3 runs a rank test cannot go below p = 0.1" in text
    for seed in range(3, 6):
        write_run(tmp_path, f"a{seed}", 5.0 + seed, seed=seed)
        write_run(tmp_path, f"b{seed}", seed, SEARCH, seed=seed)
    result = pbtrl.compare(tmp_path)
    assert "cannot go below" not in str(result)
    assert result.pairs[0].signed_rank_p == pytest.approx(2 / 2**6)


# Curves


def test_curves_have_common_positions_and_bands(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path, f"a{seed}", float(seed), seed=seed, slices=2 + seed % 2)
    (group,) = pbtrl.compare(tmp_path).groups
    curve = group_curve(group, "best", "steps")
    assert curve
    assert (curve.x[0], curve.x[-1]) == (300.0, 600.0)  # from the second report of m00 to the end of the longest run
    assert (curve.iqm[0], curve.iqm[-1]) == (3.0, group.iqm)  # the runs that have ended keep their scores
    assert "bootstrap" in curve.band
    assert (curve.low[-1], curve.high[-1]) == pytest.approx(group.interval, abs=0.5)  # of fewer resamples
    assert (curve.low[0], curve.high[0]) == (3.0, 3.0)


def test_band_of_few_runs_is_their_range(tmp_path: Path) -> None:
    for seed in range(4):
        write_run(tmp_path, f"a{seed}", float(seed), seed=seed)
    (group,) = pbtrl.compare(tmp_path).groups
    curve = group_curve(group, "best", "seconds")
    assert curve
    assert (curve.low[-1], curve.high[-1]) == (0.0, 3.0)
    assert "4 runs, band: min to max" in curve.band
    assert curve.x[-1] == 60.0


def test_curve_begins_where_all_runs_have_a_value() -> None:
    curves = (RunCurve([100, 300], [1.0, 3.0], [5.0, 6.0]), RunCurve([200], [2.0], [8.0]))
    runs: Any = tuple(SimpleNamespace(curves=RunCurves(c, RunCurve())) for c in curves)
    curve = group_curve(RunGroup("a", runs, (1.0, 2.0)), "best", "steps")
    assert curve
    assert (curve.x[0], curve.x[-1]) == (200.0, 300.0)
    assert (curve.iqm[0], curve.iqm[-1]) == (6.5, 7.0)
    assert group_curve(RunGroup("a", runs, (1.0, 2.0)), "median", "steps") is None


# Output


def test_command_prints_a_table_and_writes_the_page(pbtrl: Command, sweep: Path) -> None:
    result = pbtrl("compare", "sweep")
    assert result.code == 0
    assert result.out.rstrip().endswith("runs/sweep/compare.html")
    assert re.search(r"^pbt +4 +13\.0 ", result.out, re.MULTILINE)
    listed = pbtrl("compare", sweep / "pbt-1", sweep / "search-1")
    assert listed.out.rstrip().endswith("\ncompare.html")


def test_json_has_everything(pbtrl: Command, sweep: Path) -> None:
    result = pbtrl("compare", sweep, "--json").json
    assert result["groups"][0]["iqm"] == 13.0
    assert result["groups"][0]["runs"][0]["curves"]["best"]["values"][-1] == 10.0
    assert result["groups"][0]["curves"]["best"]["steps"]["iqm"][-1] == 13.0
    assert result["pairs"][0]["probability_of_improvement"] == 15 / 16
    assert Path(result["page"]).is_file()
    never = pbtrl("compare", sweep, "--json", "--metric", "steps_to=1000").json
    assert never["groups"][0]["iqm"] is None


def test_markdown_is_a_table_with_provenance(pbtrl: Command, sweep: Path) -> None:
    (sweep / "pbt-0" / "run.json").write_text(
        json.dumps({"schema": 1, "git": "a" * 40 + "-dirty", "versions": {"pbtrl": "0.1.0", "processor": "a CPU"}})
    )
    lines = pbtrl("compare", sweep, "--markdown").out.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert rows[2].startswith("| pbt | 4 | 13.0 |")
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows[:4]} == {10}
    assert "a CPU" in lines[-1]
    assert "commit aaaaaaaaaa-dirty;" in lines[-1]
    assert re.search(r"\d{4}-\d\d-\d\d$", lines[-1])


def test_page_is_self_contained_and_escaped(sweep: Path, tmp_path: Path) -> None:
    evil = "</td><script>alert(1)</script>-->$\\frac$\x1b"
    write_run(sweep, "evil", 3.0, {**PBT, "agent": {"name": "impala", "gamma": evil}})
    result = pbtrl.compare(sweep)
    page = result.save(tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "\x1b" not in page
    assert "default-src 'none'" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page.replace("xlink:href", "href"))
    assert page.count("<svg") == 2
    assert "#010203" not in page
    assert "currentColor" in page
    assert len(page) < 2_000_000
    for text in ("never a member", "on fresh seeds", "color-scheme: light dark", "@media print"):
        assert text in page


def test_nothing_else_is_overwritten(pbtrl: Command, sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.html").write_text("mine")
    result = pbtrl("compare", sweep, "--out", "notes.html")
    assert result.code == 2
    assert (tmp_path / "notes.html").read_text() == "mine"
    assert pbtrl("compare", sweep, "--out", "no/such/folder.html").code == 2
    check_target(pbtrl_page := Path(pbtrl("compare", sweep, "--out", tmp_path).out.split()[-1]))
    assert pbtrl_page == tmp_path / "compare.html"


@pytest.mark.parametrize("selected", ["nope", "", "\0", "."])
def test_no_such_run(pbtrl: Command, sweep: Path, selected: str) -> None:
    result = pbtrl("compare", selected)
    assert result.code == 2
    assert result.err.count("\n") == 1
