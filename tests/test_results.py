"""The results of sweeps that are kept: what is read from run directories, and the page that is written from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import pbtrl
from benchmarks import results
from benchmarks.results import Result

FIRST = Result(
    sweep="hopper", arm="pbt", seed=1, score=3066.4, score_interval=[2819.0, 3313.2], most_likely=3359.0,
    most_likely_interval=None, median=2100.0, members=8, steps=8_000_000, unit="env steps", seconds=305.0,
    machine="AMD EPYC", commit="0954e9e", config="189149f5",
)  # fmt: skip


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "results.jsonl"
    monkeypatch.setattr(results, "RESULTS", path)
    return path


def test_page_is_that_of_the_results() -> None:
    assert results.PAGE.read_text() == results.page(results.load())


def test_later_result_of_the_same_run_replaces_the_earlier_one(kept: Path) -> None:
    other = replace(FIRST, arm="fire")
    assert results.keep([FIRST, other]) == [other, FIRST]
    again = replace(FIRST, score=1.0)
    assert results.keep([again, replace(FIRST, seed=2)]) == [other, again, replace(FIRST, seed=2)]
    assert results.keep([]) == results.load()
    assert len(kept.read_text().splitlines()) == 3


def test_page_has_a_row_per_run_and_a_mean_per_arm() -> None:
    text = results.page([FIRST, replace(FIRST, seed=2, score=2000.0)])
    assert "\n- pbt: interquartile mean 2533 [2000, 3066], seeds: 2\n" in text
    row = "| pbt | 1 | 3066 [2819, 3313] | 3359 | 2100 | 8 x 1.0M env steps | 0:05:05 | AMD EPYC | 0954e9e | 189149f5 |"
    assert f"\n{row}\n" in text


def test_runs_of_a_changed_config_have_a_mean_of_their_own() -> None:
    text = results.page([FIRST, replace(FIRST, seed=2, config="x"), replace(FIRST, seed=3, score=2000.0)])
    means = [line for line in text.splitlines() if line.startswith("- pbt")]
    assert means == [
        "- pbt: interquartile mean 2533 [2000, 3066], seeds: 2",
        "- pbt: interquartile mean 3066, seeds: 1",
    ]


def test_page_has_published_scores_of_the_same_task() -> None:
    assert "CleanRL (v4) 2383" in results.page([replace(FIRST, sweep="million-hopper")])
    assert "CleanRL (v4)" not in results.page([FIRST])


def test_finished_runs_of_a_sweep(kept: Path, tmp_path: Path) -> None:
    grid = {"strategy.name": ["pbt", "random_search"]}
    pbtrl.sweep(
        "toy_quadratic", grid=grid, seeds=[3, 4], overrides=["budget.env_steps_per_member=20"],
        name="toy", runs=tmp_path, progress="none",
    )  # fmt: skip
    (tmp_path / "toy/pbt-s4/journal.jsonl").unlink()
    found = list(results.finished(tmp_path / "toy"))
    assert [(one.arm, one.seed, one.members, one.steps, one.unit) for one in found] == [
        ("pbt", 3, 2, 40, "steps"),
        ("random_search", 3, 2, 40, "steps"),
        ("random_search", 4, 2, 40, "steps"),
    ]
    for one in found:
        run = pbtrl.load_run(tmp_path / f"toy/{one.arm}-s{one.seed}")
        assert run.best is not None
        assert one.score == run.best["evaluation"]["return_mean"]
        assert one.most_likely is None
    assert found[0].config != found[1].config == found[2].config
    results.keep(found)
    assert results.load() == found
    journal = tmp_path / "toy/pbt-s3/journal.jsonl"
    *earlier, last = journal.read_text().split('"diverged":false')
    journal.write_text('"diverged":false'.join(earlier) + '"diverged":true' + last)
    assert found[0].median is not None
    assert next(results.finished(tmp_path / "toy")).median is None
