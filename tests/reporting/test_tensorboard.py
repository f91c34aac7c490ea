"""TensorBoard event files, as TensorBoard reads them back."""

import errno
import math
import threading
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pbtrl.reporting.tensorboard_writer import TensorBoardWriter
from pbtrl.storage import metrics_log
from tests.journal_writer import START, JournalWriter, one_copy

pytestmark = pytest.mark.usefixtures("quick_disk")


def curves(run: Path, member: str) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(run / "tb" / member)).Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def pong_run(tmp_path: Path, **fields) -> JournalWriter:
    w = JournalWriter(tmp_path / "pong", **fields)
    w.listener = TensorBoardWriter(w.run, w.header, w.population)
    return w


def test_mix_is_counted_at_every_decision(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00", hyperparameters={"agent": "impala"}), w.next("m01", hyperparameters={"agent": "vmpo"}))
    w.report("m00", 1.0)
    w.report("m01", 2.0)
    w.decide(w.next("m00", donor="m01", hyperparameters={"agent": "vmpo"}))
    w.end("finish")
    w.listener.close()
    found = {tag: points for tag, points in curves(w.run, "population").items() if "members" in tag}
    assert found == {
        "population/members/impala": [(0, 1.0), (200, 0.0)],
        "population/members/vmpo": [(0, 1.0), (200, 2.0)],
    }


def test_returns_without_a_mean_are_skipped(tmp_path: Path):
    w = pong_run(tmp_path)
    for returns in ((math.inf, -math.inf), (1e308, 1e308), (2.0,)):
        w.decide(w.next("m00"))
        w.report("m00", *returns)
    w.listener.close()
    *_, last = curves(w.run, "m00")["episode/return_mean"]
    assert last == (300, 2.0)


def test_streamed_values_reports_and_population_curves(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00"), w.next("m01"))
    w.metrics("m00", 50, loss__policy=0.5, perf__env_steps_per_s=2000.0)
    w.listener.tick()
    w.metrics("m00", 100, loss__policy=0.25)
    w.report("m00", 1.0, 5.0)
    w.report("m01", -4.0, -6.0)
    w.decide(w.next("m01", donor="m00", hyperparameters={"learning_rate": 0.05, "unroll_length": 20}))
    w.report("m01", 2.0)
    w.listener.close()
    assert curves(w.run, "m00") == {
        "loss/policy": [(50, 0.5), (100, 0.25)],
        "perf/env_steps_per_s": [(50, 2000.0)],
        "episode/return_mean": [(100, 3.0)],
        "episode/length_mean": [(100, 25.0)],
        "hparams/learning_rate": [(0, 0.01), (100, 0.01)],
        "hparams/unroll_length": [(0, 20.0), (100, 20.0)],
    }
    other = curves(w.run, "m01")
    assert other["hparams/learning_rate"] == [(0, 0.01), (100, 0.01), (100, 0.05), (200, 0.05)]
    assert other["hparams/unroll_length"] == [(0, 20.0), (100, 20.0), (200, 20.0)]
    assert curves(w.run, "population") == {
        "population/fitness_max": [(100, 3.0), (200, 3.0), (300, 3.0)],
        "population/fitness_median": [(100, 3.0), (200, -1.0), (300, 2.5)],
        "population/fitness_min": [(100, 3.0), (200, -5.0), (300, 2.0)],
        "population/exploits": [(200, 1.0)],
        "population/before_copy": [(200, 1.0), (300, 0.0)],
    }


def test_points_carry_the_time_of_their_line(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00"), wait=10)
    w.metrics("m00", 50, loss__policy=0.5)
    w.report("m00", 1.0, wait=20)
    w.listener.close()
    found = EventAccumulator(str(w.run / "tb" / "m00")).Reload()
    assert [e.wall_time for e in found.Scalars("loss/policy")] == [START + 10]
    assert [e.wall_time for e in found.Scalars("hparams/learning_rate")] == [START + 10, START + 30]


def test_report_does_not_repeat_streamed_values(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00"))
    w.metrics("m00", 100, episode__return_mean=2.5, loss=0.5)
    w.report("m00", 1.0, 5.0, scalars={"loss": 0.5, "other": 7.0})
    w.listener.close()
    found = curves(w.run, "m00")
    assert found["episode/return_mean"] == [(100, 2.5)]
    assert (found["loss"], found["other"]) == ([(100, 0.5)], [(100, 7.0)])


def test_metrics_without_a_step_use_the_slices_end(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00"))
    w.metrics("m00", accuracy=0.5)
    w.listener.close()
    assert curves(w.run, "m00") == {"accuracy": [(100, 0.5)]}


def test_retried_slice_hides_values_of_the_failed_one(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00"))
    w.metrics("m00", 100, loss__policy=1.0)
    w.report("m00", 1.0)
    w.decide(w.next("m00"))
    w.metrics("m00", 180, loss__policy=9.0)
    w.fail("m00")
    w.metrics("m00", 150, loss__policy=2.0)
    w.metrics("m00", 200, loss__policy=3.0)
    w.report("m00", 1.0)
    w.listener.close()
    assert curves(w.run, "m00")["loss/policy"] == [(100, 1.0), (150, 2.0), (200, 3.0)]


def test_resume_hides_values_beyond_the_journal(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00"))
    w.metrics("m00", 100, loss__policy=1.0)
    w.report("m00", 1.0)
    w.decide(w.next("m00"))
    w.metrics("m00", 180, loss__policy=9.0)
    w.listener.close()
    w.metrics("m00", 190, loss__policy=9.0)
    w.listener = TensorBoardWriter(w.run, w.header, w.population, resume=True)
    w.metrics("m00", 150, loss__policy=2.0)
    w.report("m00", 2.0)
    w.listener.close()
    found = curves(w.run, "m00")
    assert found["loss/policy"] == [(100, 1.0), (150, 2.0)]
    assert found["hparams/learning_rate"][-1] == (200, 0.01)
    assert curves(w.run, "population")["population/fitness_max"] == [(100, 1.0), (200, 1.5)]


def test_hparams_are_written_once_per_member(tmp_path: Path):
    w = one_copy(tmp_path / "pong")
    w.listener = TensorBoardWriter(w.run, w.header, w.population)
    w.report("m00", 3.0)
    w.end("finish")
    w.listener.describe()
    w.listener.close()
    assert sorted(p.name for p in (w.run / "tb").iterdir()) == ["m00", "m01", "population"]
    assert [p.is_dir() for p in (w.run / "tb" / "m00").iterdir()] == [False]
    found = EventAccumulator(str(w.run / "tb" / "m00")).Reload()
    assert set(found.PluginTagToContent("hparams")) == {
        "_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info",
    }  # fmt: skip


def test_odd_values_are_skipped_or_written(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00", hyperparameters={"network": "deep", "flag": True, "rate": 0.5, "none": None}))
    w.metrics("m00", text='{"assignment": "m00/000000", "time": 1.0, "step": 10, "loss/policy": NaN}\n')
    w.metrics("m00", text='{"assignment": "m00/0000{"torn": 1}\n')
    w.metrics("m00", text='{"assignment": "m00/000000", "time": 1.0, "step": 20, "loss/policy": 1.0, "x')
    w.listener.tick()
    w.report("m00")
    w.end("finish")
    w.listener.close()
    found = curves(w.run, "m00")
    assert [step for step, _ in found["loss/policy"]] == [10]
    assert [tag for tag in found if tag.startswith("hparams")] == ["hparams/rate"]


def test_null_values_give_no_points(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00"), w.next("m01"))
    w.metrics("m00", text='{"assignment": "m00/000000", "time": 1.0, "step": 10, "loss/policy": null, "x": 1.0}\n')
    w.report(
        "m00",
        None,
        1.0,
        scalars={"a": None, "learning/skipped_updates": 2.0, "learning/updates": 5.0},
        curve=[[100, None]],
    )
    w.report("m01", 1.0, evaluation=[None])
    w.listener.close()
    found = curves(w.run, "m00")
    assert found["x"] == [(10, 1.0)]
    assert found["learning/skipped_updates"] == [(100, 2.0)]
    assert not {"a", "loss/policy", "episode/return_mean"} & found.keys()


def test_tail_reads_each_line_once_and_seldom(tmp_path: Path):
    w = one_copy(tmp_path / "pong")
    now = [0.0]
    tail = metrics_log.MetricsTail(w.run / "members", ["m00", "m01"], clock=lambda: now[0])
    w.metrics("m00", 110)
    assert [(m, line["step"]) for m, line in tail.poll()] == [("m00", 110)]
    w.metrics("m00", 120)
    w.metrics("m01", text='{"step": 1')
    assert tail.poll() == []
    now[0] = 2.0
    assert [(m, line["step"]) for m, line in tail.poll()] == [("m00", 120)]
    w.metrics("m01", text="30}\n")
    assert [line["step"] for line in tail.read("m01")] == [130]


def test_threads_ended_by_a_full_disk_print_nothing(tmp_path: Path, monkeypatch):
    told: list[object] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    w = pong_run(tmp_path)
    for error in (OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken"), ValueError("a bug")):
        threading.excepthook(threading.ExceptHookArgs((type(error), error, None, None)))
    assert [type(args.exc_value) for args in told] == [ValueError]
    w.listener.close()
    assert threading.excepthook == told.append


def test_roles_scores_and_retirements_are_written(tmp_path: Path):
    """The members' folders have their roles. An evaluation is no exploit."""
    roles = {"m00": "p1", "m01": "evaluator"}
    w = pong_run(tmp_path, roles=roles, candidate_roles=("p1",))
    w.decide(w.next("m00"), w.next("m01", scalars={"fire/score": 0.5}))
    w.report("m00", 1.0)
    w.report("m01", 2.0)
    w.decide(w.next("m01", donor="m00", parent="m00/000000", hparams_donor="m00"))
    w.retire("m00")
    w.listener.close()
    assert sorted(p.name for p in (w.run / "tb").iterdir()) == ["m00-p1", "m01-evaluator", "population"]
    assert curves(w.run, "m01-evaluator")["fire/score"] == [(0, 0.5)]
    population = curves(w.run, "population")
    assert "population/exploits" not in population
    assert [y for _, y in population["population/fitness_max"]] == [1.0, 1.0]
    assert [y for _, y in population["population/retired"]] == [1.0]
