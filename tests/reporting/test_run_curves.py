"""Curves of hand-written journals: the best member is judged by episodes that its ranking had not seen."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pbtrl.core.population import FitnessRule
from pbtrl.errors import DamagedError
from pbtrl.reporting.comparison.run_curves import RunCurve, RunCurves, run_curves
from pbtrl.storage.best_member import read_best
from pbtrl.storage.run_directory import RunDirectory
from tests.journal_writer import JournalWriter, best_json

pytestmark = pytest.mark.usefixtures("quick_disk")


def curves(w: JournalWriter, score: float | None = None, played: Any = None) -> RunCurves:
    header, records, _ = RunDirectory(w.run).load()
    return run_curves(header, records, played or {}, score)


def points(curve: RunCurve) -> list[tuple[int, float]]:
    return list(zip(curve.steps, curve.values, strict=True))


def first_slices(w: JournalWriter, *returns: float) -> None:
    """All members train 100 steps, each with one episode."""
    names = list(w.population.members)[: len(returns)]
    w.decide(*(w.next(name) for name in names))
    for name, value in zip(names, returns, strict=True):
        w.report(name, value)


def test_best_member_is_scored_by_its_next_report_alone(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a")
    first_slices(w, 5.0, 1.0)
    w.decide(w.next("m00"), w.next("m01"))
    w.report("m01", 9.0)
    w.report("m00", 2.0)  # the mean of its window is 3.5
    w.decide(w.next("m00"), w.next("m01"))
    w.report("m00", 7.0)
    w.report("m01", 4.0)  # m01 ranked best with 5.0
    result = curves(w, score=3.0)
    assert points(result.best) == [(400, 2.0), (600, 3.0)]  # 4.0 and the score are at the same step
    assert points(curves(w).best) == [(400, 2.0), (600, 4.0)]
    assert result.best.seconds == [60.0, 90.0]
    assert points(result.median) == [(200, 3.0), (400, 4.25), (600, (14 / 3 + 14 / 3) / 2)]
    assert result.median.seconds == [40.0, 70.0, 90.0]


def test_overwritten_member_is_not_scored_as_the_best_one(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a")
    first_slices(w, 5.0, 1.0)
    w.decide(w.next("m00", donor="m01"), w.next("m01"))  # an unusual strategy
    w.report("m00", 50.0)
    w.report("m01", 2.0)
    assert points(curves(w).best) == [(400, 2.0)]


def test_paused_leader_that_copies_before_its_next_report_is_not_scored(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a")
    first_slices(w, 5.0, 1.0)
    w.decide(w.next("m01"))
    w.report("m01", 2.0)
    w.decide(w.next("m00", donor="m01"))
    w.report("m00", 50.0)
    assert points(curves(w).best) == []


def test_late_report_of_an_earlier_leader_does_not_replace_a_later_one(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=3)
    first_slices(w, 5.0, 1.0, 0.0)
    w.decide(w.next("m00"), w.next("m01"), w.next("m02"))  # m00 leads
    w.report("m01", 99.0)
    w.decide(w.next("m01"))  # m01 leads
    w.report("m01", 3.0)
    w.report("m00", 4.0)
    assert points(curves(w).best) == [(500, 3.0)]


def test_report_without_episodes_leaves_the_score_to_the_next_one(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1)
    first_slices(w, 5.0)
    for returns in ((), (4.0,)):
        w.decide(w.next("m00"))
        w.report("m00", *returns)
    assert points(curves(w).best) == [(300, 4.0)]


def test_episodes_that_cover_too_little_of_a_slice_do_not_count(tmp_path: Path) -> None:
    """Short episodes end first; as for the fitness. An episode of the writer has 25 steps, and one for the reset."""
    w = JournalWriter(tmp_path / "a", size=1, rule=FitnessRule(window=10, min_episodes=1, share=0.52))
    first_slices(w, 5.0)  # 26 of 100 steps: no fitness yet
    for returns in ((4.0, 4.0, 4.0), (1.0,), (2.0, 2.0)):
        w.decide(w.next("m00"))
        w.report("m00", *returns)
    assert points(curves(w).best) == [(400, 2.0)]


def test_evaluation_episodes_count_where_they_are_the_fitness(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1, rule=FitnessRule("evaluation", 10, 1))
    for value in (5.0, 6.0):
        w.decide(w.next("m00"))
        w.report("m00", 77.0, evaluation=[value, value + 2])
    assert points(curves(w).best) == [(200, 7.0)]


def test_evaluators_are_not_ranked_but_their_steps_count(tmp_path: Path) -> None:
    roles = {"m00": "p1", "m01": "p2", "m02": "evaluator"}
    w = JournalWriter(tmp_path / "a", size=3, roles=roles, candidate_roles=("p1",))
    first_slices(w, 1.0, 2.0, 99.0)
    w.decide(*(w.next(name) for name in roles))
    for name, value in (("m00", 3.0), ("m01", 4.0), ("m02", 99.0)):
        w.report(name, value)
    result = curves(w)
    assert points(result.best) == [(400, 3.0)]
    assert points(result.median) == [(300, 1.5), (600, 2.5)]


def test_copy_counts_in_the_median_with_its_placeholder(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a")
    first_slices(w, 5.0, 1.0)
    w.decide(w.next("m00"), w.next("m01", donor="m00"))
    w.report("m00", 5.0)
    w.decide(w.next("m00"))  # m01, which still trains, has no fitness of its own
    assert points(curves(w).median) == [(200, 3.0), (300, 3.0)]


def test_diverged_member_is_at_the_bottom(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=3)
    w.decide(w.next("m00"), w.next("m01"), w.next("m02"))
    w.report("m00", 5.0)
    w.report("m01", 9.0, diverged=True)
    w.report("m02", 3.0)
    assert points(curves(w).median) == [(300, 3.0)]


def test_median_of_mostly_diverged_members_is_no_result(tmp_path: Path) -> None:
    """Not the one from before they diverged."""
    w = JournalWriter(tmp_path / "a", size=3)
    w.decide(w.next("m00"), w.next("m01"), w.next("m02"))
    for member in ("m00", "m01", "m02"):
        w.report(member, 5.0)
    assert curves(w).final_median == 5.0
    w.decide(w.next("m00"), w.next("m01"), w.next("m02"))
    for member in ("m00", "m01", "m02"):
        w.report(member, 9.0, diverged=member != "m02")
    assert curves(w).final_median is None


def test_finished_trial_is_scored_by_the_final_choice(tmp_path: Path) -> None:
    """It never reports again, so that no other episodes exist: of three trials in a row the second one is chosen."""
    w = JournalWriter(tmp_path / "a", size=1)
    for place, value in enumerate((5.0, 8.0, 6.0)):
        w.start(f"m{place:02d}")
        w.report(f"m{place:02d}", value)
        w.retire(f"m{place:02d}")
    w.choose("m01", 7.0, selection={"m01": 7.5, "m00": 4.5})
    best = read_best(RunDirectory(w.run))
    assert best
    result = curves(w, best.evaluation.return_mean, best.means)
    assert points(result.best) == [(100, 4.5), (200, 7.0), (300, 7.0)]
    assert points(result.median) == [(100, 5.0), (200, 6.5), (300, 6.0)]  # dead trials count


@pytest.mark.parametrize(
    "damaged",
    [
        best_json("m00", 1.0, ci95=["0", "nan"]),
        best_json("m00", 1.0, selection={"m01": "x"}),
    ],
)
def test_damaged_scores_are_one_error(tmp_path: Path, damaged: dict[str, object]) -> None:
    w = JournalWriter(tmp_path / "a", size=2)
    (w.run / "best.json").write_text(json.dumps(damaged))
    with pytest.raises(DamagedError, match=r"best\.json cannot be read"):
        read_best(RunDirectory(w.run))


def test_values_that_are_not_finite_are_no_points(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1)
    first_slices(w, 5.0)
    w.decide(w.next("m00"))
    w.report("m00", math.nan)
    assert points(curves(w, score=math.inf).best) == []


def test_curve_is_a_step_function() -> None:
    curve = RunCurve([100, 200], [1.0, 2.0], [5.0, 7.0])
    assert math.isnan(curve.at(99))
    assert [curve.at(x) for x in (100, 199, 200, 1000)] == [5.0, 5.0, 7.0, 7.0]
    assert [curve.at(x, "seconds") for x in (1.5, 2.0)] == [5.0, 7.0]
    assert [curve.steps_to(v) for v in (5.0, 6.0, 8.0)] == [100, 200, math.inf]
