"""TensorBoard event files, as TensorBoard reads them back."""

import errno
import math
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from pbtrl.core.scores import BestMember
from pbtrl.reporting import tensorboard_hparams
from pbtrl.reporting.tensorboard_hparams import layout
from pbtrl.reporting.tensorboard_writer import TensorBoardWriter
from pbtrl.storage import metrics_log
from pbtrl.storage.parsing import parse_best
from pbtrl.storage.run_directory import RunDirectory
from tests.journal_writer import START, JournalWriter, best_json, one_copy

pytestmark = pytest.mark.usefixtures("quick_disk")


def curves(run: Path, member: str) -> dict[str, list[tuple[int, float]]]:
    result = EventAccumulator(str(run / "tb" / member)).Reload()
    return {tag: [(e.step, round(e.value, 6)) for e in result.Scalars(tag)] for tag in result.Tags()["scalars"]}


def pong_run(tmp_path: Path, **fields) -> JournalWriter:
    w = JournalWriter(tmp_path / "pong", **fields)
    w.listener = TensorBoardWriter(RunDirectory(w.run), w.header, w.population)
    return w


def test_mix_is_counted_at_every_decision(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00", hyperparameters={"agent": "impala"}), w.next("m01", hyperparameters={"agent": "vmpo"}))
    w.report("m00", 1.0)
    w.report("m01", 2.0)
    w.decide(w.next("m00", donor="m01", hyperparameters={"agent": "vmpo"}))
    w.listener.close()
    result = {tag: points for tag, points in curves(w.run, "population").items() if "members" in tag}
    assert result == {
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
        "fitness": [(100, 3.0)],
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
    result = EventAccumulator(str(w.run / "tb" / "m00")).Reload()
    assert [e.wall_time for e in result.Scalars("loss/policy")] == [START + 10]
    assert [e.wall_time for e in result.Scalars("hparams/learning_rate")] == [START + 10, START + 30]


def test_report_does_not_repeat_streamed_values(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00"))
    w.metrics("m00", 100, episode__return_mean=2.5, loss=0.5)
    w.report("m00", 1.0, 5.0, scalars={"loss": 0.5, "other": 7.0})
    w.listener.close()
    result = curves(w.run, "m00")
    assert result["episode/return_mean"] == [(100, 2.5)]
    assert (result["loss"], result["other"]) == ([(100, 0.5)], [(100, 7.0)])


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
    w.listener = TensorBoardWriter(RunDirectory(w.run), w.header, w.population, resume=True)
    w.metrics("m00", 150, loss__policy=2.0)
    w.report("m00", 2.0)
    w.listener.close()
    result = curves(w.run, "m00")
    assert result["loss/policy"] == [(100, 1.0), (150, 2.0)]
    assert result["hparams/learning_rate"][-1] == (200, 0.01)
    assert curves(w.run, "population")["population/fitness_max"] == [(100, 1.0), (200, 1.5)]


def hparams_of(run: Path, member: str) -> dict[str, object]:
    """The member's row of the HParams tab."""
    content = EventAccumulator(str(run / "tb" / member)).Reload().PluginTagToContent("hparams")
    assert set(content) == {"_hparams_/session_start_info"}
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    assert start.group_name == member
    return {name: getattr(v, v.WhichOneof("kind")) for name, v in start.hparams.items()}


def described(tmp_path: Path, best: BestMember) -> JournalWriter:
    """m01 copied m00 and halved its learning rate; the run has ended."""
    w = one_copy(tmp_path / "pong")
    w.listener = TensorBoardWriter(RunDirectory(w.run), w.header, w.population)
    w.report("m00", 3.0)
    w.report("m01", 9.0)
    w.end("finish")
    w.listener.describe(best)
    w.listener.close()
    return w


SELECTION = {"m01": 7.0, "m00": None}
BEST = parse_best(best_json("m01", 8.5, selection=SELECTION))


def test_hparams_tab_has_first_and_last_values_and_scores(tmp_path: Path):
    w = described(tmp_path, BEST)
    assert sorted(p.name for p in (w.run / "tb").iterdir()) == ["m00", "m01", "population"]
    assert not [p for p in (w.run / "tb" / "m00").iterdir() if p.is_dir()]
    assert hparams_of(w.run, "m01") == {
        "learning_rate (initial)": 0.1, "learning_rate (final)": 0.005,
        "unroll_length (initial)": 5, "unroll_length (final)": 20,
    }  # fmt: skip
    assert hparams_of(w.run, "m00")["learning_rate (initial)"] == 0.01
    result = curves(w.run, "m01")
    assert (result["final/score"], result["final/selection_score"]) == ([(200, 8.5)], [(200, 7.0)])
    assert result["fitness"] == [(200, 9.0)]
    assert not [tag for tag in curves(w.run, "m00") if tag.startswith("final/")]


def test_hparams_columns_are_described_once(tmp_path: Path):
    w = described(tmp_path, BEST)
    content = EventAccumulator(str(w.run / "tb" / "population")).Reload().PluginTagToContent("hparams")
    assert set(content) == {"_hparams_/experiment"}
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert [h.name for h in experiment.hparam_infos] == [
        "learning_rate (initial)", "learning_rate (final)", "unroll_length (initial)", "unroll_length (final)",
    ]  # fmt: skip
    assert [h.differs for h in experiment.hparam_infos] == [True, True, True, False]
    assert experiment.hparam_infos[0].domain_interval.max_value == 0.1
    assert {m.name.tag: m.display_name for m in experiment.metric_infos} == {
        "fitness": "fitness in training",
        "final/selection_score": "return on selection seeds",
        "final/score": "return on fresh seeds",
    }


@pytest.mark.parametrize(
    ("held_out", "data"), [(True, "on held-out data"), (False, "on the data that it was chosen with")]
)
def test_hparams_columns_name_the_data_of_a_trainables_score(tmp_path: Path, held_out: bool, data: str):
    w = JournalWriter(tmp_path / "model", size=1, unit="steps", metric="accuracy")
    best = replace(BEST, evaluation=replace(BEST.evaluation, held_out=held_out))
    names = tensorboard_hparams._score_names(w.header, best)
    assert names == {
        "final/selection_score": "accuracy in the final choice", "final/score": f"accuracy {data}"
    }  # fmt: skip


def test_hparams_of_a_continued_run_replace_the_first(tmp_path: Path):
    """TensorBoard shows only the first summary that it finds in a folder."""
    w = described(tmp_path, BEST)
    w.listener = TensorBoardWriter(RunDirectory(w.run), w.header, w.population, resume=True)
    w.decide(w.next("m01", hyperparameters={"learning_rate": 0.5, "unroll_length": 20}))
    w.report("m01", 1.0)
    w.listener.describe(parse_best(best_json("m01", 1.5, selection=SELECTION)))
    w.listener.close()
    assert hparams_of(w.run, "m01")["learning_rate (final)"] == 0.5
    assert curves(w.run, "m01")["final/score"] == [(300, 1.5)]


def test_interrupted_run_has_no_hparams(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00"))
    w.listener.close()
    assert not list(w.run.glob("tb/*/*.hparams"))


def texts(run: Path, name: str, tag: str) -> list[tuple[int, str]]:
    result = EventAccumulator(str(run / "tb" / name)).Reload()
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in result.Tensors(f"{tag}/text_summary")]


def test_copies_are_text_with_donor_and_change(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00"), w.next("m01", hyperparameters={"learning_rate": 0.1, "unroll_length": 20}))
    w.report("m00", 3.0)
    w.report("m01", -5.0)
    new = {"learning_rate": 0.005, "unroll_length": 20}
    w.decide(w.next("m01", donor="m00", hyperparameters=new, note="exploit m00 | rank 1"))
    w.listener.close()
    assert texts(w.run, "m01", "exploit") == [
        (100, "m01 <- m00: fitness -5.00 -> 3.00; learning_rate 0.1 -> 5.0e-3 (exploit m00 | rank 1)")
    ]
    ((step, table),) = texts(w.run, "population", "population/exploits")
    assert step == 200
    assert table.splitlines() == [
        "| member | donor | env steps | fitness | hyperparameters | reason |",
        "| --- | --- | --- | --- | --- | --- |",
        "| m01 | m00 | 100 | -5.00 -> 3.00 | learning_rate 0.1 -> 5.0e-3 | exploit m00 / rank 1 |",
    ]


def test_layout_finds_the_curves(tmp_path: Path):
    """Every chart of the custom-scalars tab matches a tag that the run has."""
    w = pong_run(tmp_path)
    w.decide(w.next("m00"), w.next("m01"))
    w.metrics("m00", 50, perf__env_steps_per_s=2000.0)
    w.report("m00", 1.0)
    w.report("m01", 1.0)
    w.decide(w.next("m01", donor="m00"))
    w.listener.close()
    w.listener = TensorBoardWriter(RunDirectory(w.run), w.header, w.population, resume=True)
    w.listener.close()
    result = EventAccumulator(str(w.run / "tb" / "population")).Reload()
    (event,) = result.Tensors("custom_scalars__config__")
    chosen = Layout.FromString(event.tensor_proto.string_val[0])
    assert [c.title for c in chosen.category] == ["population", "members", "hyperparameters"]
    assert [c.title for c in chosen.category[2].chart] == ["learning_rate", "unroll_length"]
    tags = {tag for name in ("m00", "m01", "population") for tag in curves(w.run, name)}
    for chart in (chart for category in chosen.category for chart in category.chart):
        for pattern in chart.multiline.tag:
            assert [tag for tag in tags if re.match(pattern, tag)], pattern


def test_trainables_name_their_fitness(tmp_path: Path):
    w = pong_run(tmp_path, unit="steps", metric="accuracy")
    w.decide(w.next("m00"))
    w.report("m00", 0.75)
    w.listener.close()
    result = curves(w.run, "m00")
    assert (result["fitness/accuracy"], result["evaluation/accuracy"]) == ([(100, 0.75)], [(100, 0.75)])
    charts = layout(w.header)["members"]
    assert charts["accuracy of each member"] == ["^fitness/accuracy$"]
    assert "perf/steps_per_s" in charts


def test_odd_values_are_skipped_or_written(tmp_path: Path):
    w = pong_run(tmp_path)
    w.decide(w.next("m00", hyperparameters={"network": "deep", "flag": True, "rate": 0.5, "none": None}))
    w.metrics("m00", text='{"assignment": "m00/000000", "time": 1.0, "step": 10, "loss/policy": NaN}\n')
    w.metrics("m00", text='{"assignment": "m00/0000{"torn": 1}\n')
    w.metrics("m00", text='{"assignment": "m00/000000", "time": 1.0, "step": 20, "loss/policy": 1.0, "x')
    w.listener.tick()
    w.report("m00")
    w.listener.describe(parse_best(best_json("m00", None)))
    w.listener.close()
    assert hparams_of(w.run, "m00")["network (final)"] == "deep"
    assert hparams_of(w.run, "m00")["flag (final)"] == "True"
    result = curves(w.run, "m00")
    assert [step for step, _ in result["loss/policy"]] == [10]
    assert [tag for tag in result if tag.startswith("hparams")] == ["hparams/rate"]


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
    result = curves(w.run, "m00")
    assert result["x"] == [(10, 1.0)]
    assert result["learning/skipped_updates"] == [(100, 2.0)]
    assert not {"a", "loss/policy", "episode/return_mean"} & result.keys()


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


def test_position_of_a_line_without_numbers_is_that_given():
    for line, expected in (
        ({"step": 7, "time": 5}, (7, 5.0)),
        ({"step": 7.0, "time": 5.5}, (7, 5.5)),
        ({"step": "x", "time": float("nan")}, (3, 4.0)),
        ({"step": 2**80}, (3, 4.0)),
        ({}, (3, 4.0)),
    ):
        assert metrics_log.position(line, 3, 4.0) == expected


def test_threads_ended_by_a_full_disk_print_nothing(tmp_path: Path, monkeypatch):
    received: list[object] = []
    monkeypatch.setattr(threading, "excepthook", received.append)
    w = pong_run(tmp_path)
    for error in (OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "broken"), ValueError("a bug")):
        threading.excepthook(threading.ExceptHookArgs((type(error), error, None, None)))
    assert [type(args.exc_value) for args in received] == [ValueError]
    w.listener.close()
    assert threading.excepthook == received.append


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
