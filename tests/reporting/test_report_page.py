"""Sections of the report's page, its pictures of the members, and `report --watch`."""

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from pbtrl.config.differences import differences_from_defaults
from pbtrl.config.load import config_from_dict, to_yaml
from pbtrl.core.population import FitnessRule
from pbtrl.reporting import html_report
from pbtrl.reporting.html_page import table
from pbtrl.reporting.plots import PLOTS, RunData
from pbtrl.reporting.plots.embedding import svg_element
from pbtrl.reporting.plots.members import coordinates
from pbtrl.reporting.tables import Table
from pbtrl.storage.journal import Line
from pbtrl.storage.parsing import parse_record
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_lock import RunLock
from tests.command import Command, spawn
from tests.journal_writer import JournalWriter, one_copy
from tests.reporting.html_checks import checked

pytestmark = pytest.mark.usefixtures("quick_disk")


def data_of(w: JournalWriter, best: str | None = None) -> RunData:
    header, records, population = RunDirectory(w.run).load()
    return RunData(header, records, population, best)


def page_of(w: JournalWriter) -> str:
    page = html_report.write_report(RunDirectory(w.run), only=["speed"])[0].read_text()
    checked(page)
    return page


def rows_of(page: str, title: str) -> list[list[str]]:
    part = page[page.index(f"<h2>{title}</h2>") :]
    body = part[part.index("<tbody>") : part.index("</tbody>")]
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in body.split("<tr>")[1:]]


# Tables


def test_time_shares_are_those_of_all_slices(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a")
    w.decide(w.next("m00"), w.next("m01"))
    w.report("m00", 1.0, timing={"seconds": 10.0, "env": 5.0, "act": 2.0, "learn": 1.0})
    w.report("m01", 2.0, timing={"seconds": 30.0, "env": 9.0, "act": 6.0, "learn": 15.0})
    page = page_of(w)
    assert rows_of(page, "Time") == [
        ["all members", "35 %", "20 %", "40 %", "5 %", "0:00:40"],
        ["m01", "30 %", "20 %", "50 %", "0 %", "0:00:30"],
        ["m00", "50 %", "20 %", "10 %", "20 %", "0:00:10"],
    ]
    assert "<th>env</th><th>act</th><th>learn</th><th>other</th>" in page


def test_runs_without_time_shares_have_no_table_of_them(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a")
    assert "<h2>Time</h2>" not in page_of(w)


def test_values_at_a_bound_are_marked(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a", bounds={"": {"learning_rate": (0.005, 1.0), "unroll_length": (1, 20)}})
    w.report("m01", 5.0)
    page = page_of(w)
    assert re.findall(r'class="marked">([^<]*)<', page) == ["5.0e-3 min", "20 max", "20 max"]
    assert "the value is at a bound of its hyperparameter" in page


def test_marks_stay_with_their_rows_when_others_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_report, "MAX_TABLE_ROWS", 2)
    page = html_report._table(Table(["a"], [["1"], ["2"], ["3"]], marked=frozenset({(0, 0), (2, 0)}), notes=["n"]))
    assert re.findall(r"<td[^>]*>\d</td>", page) == ['<td class="text">2</td>', '<td class="text marked">3</td>']
    assert re.findall(r'"note">([^<]*)<', page) == ["1 earlier ones are left out", "n"]


def test_cells_have_their_classes() -> None:
    short = table(["a", "b"], [["1", "2"], ["3", "4"]], text=(), marked={(1, 0)}, wide=(-1,))
    assert '<td class="marked">3</td>' in short
    assert '<td class="text wide">4</td>' in short
    assert '<td>1</td><td class="text wide">2</td>' in short


CONFIG = {
    "env": {"id": "CartPole-v1", "num_envs": 4},
    "agent": {"name": "impala", "optimizer": "adam"},
    "budget": {"env_steps_per_member": 6400},
    "hparams": {"learning_rate": {"prior": "log_uniform", "low": 1e-4, "high": 1e-2}},
}


def test_settings_that_differ_are_listed(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a")
    (w.run / "config.resolved.yaml").write_text(to_yaml(config_from_dict(CONFIG)))
    page = page_of(w)
    assert rows_of(page, "Settings that differ from the defaults") == [
        ["env.num_envs", "4", "16"],
        ["agent.optimizer", "adam", "rmsprop"],
    ]
    assert "<summary>All settings</summary>" in page


def test_own_modules_are_not_imported_for_the_settings(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a")
    (w.run / "config.resolved.yaml").write_text("strategy: {name: 'boom:Strategy'}\nagent: {name: impala}\n")
    page = page_of(w)
    assert "not compared with the defaults: " in page
    assert "asks to import" in page
    assert "name: &#x27;boom:Strategy&#x27;" in page


def test_every_strategy_has_defaults() -> None:
    """FIRE PBT cannot stand without settings of its own; those are not compared."""
    from pbtrl.config.load import load

    assert 0 < len(differences_from_defaults(load("toy_deceptive"))) < 20
    names = [name for name, *_ in differences_from_defaults(load("mixed"))]
    assert "agents.vmpo.minibatches" in names
    assert "name" not in names


# Pictures


def test_episodes_are_those_behind_the_fitness(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a")  # m01 has copied m00, so its window is empty
    assert data_of(w).final_episodes == {"m00": [1.0, 5.0], "m01": [-4.0, -6.0]}
    panel = PLOTS["episodes"](data_of(w)).axes[0]
    dots = [c.get_offsets()[:, 0].tolist() for c in panel.collections if isinstance(c, PathCollection)]
    assert dots == [[1.0, 5.0], [-4.0, -6.0]]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["m00", "m01"]
    assert not panel.lines  # too few for boxes


def test_episodes_of_earlier_slices_count_while_they_are_in_the_window(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1)
    for returns in ((1.0, 2.0), (3.0,)):
        w.decide(w.next("m00"))
        w.report("m00", *returns)
    assert data_of(w).final_episodes == {"m00": [1.0, 2.0, 3.0]}


def test_boxes_show_quartiles(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1)
    w.decide(w.next("m00"))
    w.report("m00", *range(9))
    panel = PLOTS["episodes"](data_of(w)).axes[0]
    assert [4.0, 4.0] in [np.asarray(line.get_xdata()).tolist() for line in panel.lines]
    assert [0.0, 2.0] in [np.asarray(line.get_xdata()).tolist()[::-1] for line in panel.lines]


def test_evaluated_runs_draw_their_evaluations(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1, rule=FitnessRule(source="evaluation", window=10, min_episodes=1))
    w.decide(w.next("m00"))
    w.report("m00", 1.0, evaluation=[7.0, 8.0])
    w.decide(w.next("m00", parent=None, donor="m00"))
    assert data_of(w).final_episodes == {"m00": [7.0, 8.0]}


def test_coordinates_span_the_population(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=3, hyperparameters=("rate", "units", "act", "same"))
    values = [(1e-4, 8, "relu"), (1e-2, 16, "tanh"), (1e-3, 32, "relu")]
    for i, (rate, units, act) in enumerate(values):
        w.decide(w.next(f"m0{i}", hyperparameters={"rate": rate, "units": units, "act": act, "same": 1.0}))
    w.report("m00", 10.0)
    w.report("m01", 20.0)
    rate, units, act, same, fitness = coordinates(data_of(w))
    assert rate.places == pytest.approx({"m00": 0.0, "m01": 1.0, "m02": 0.5})  # logarithmic
    assert units.places == pytest.approx({"m00": 0.0, "m01": 1 / 3, "m02": 1.0})
    assert list(units.ticks.values()) == ["8", "14", "20", "26", "32"]
    assert (act.places, act.ticks) == ({"m00": 0.0, "m01": 1.0, "m02": 0.0}, {0.0: "relu", 1.0: "tanh"})
    assert set(same.places.values()) == {0.5}
    assert fitness.places == {"m00": 0.0, "m01": 1.0}
    lines = {
        len(line.get_xdata()) for line in PLOTS["population"](data_of(w)).axes[0].lines if line.get_marker() == "."
    }
    assert lines == {4, 5}  # m02 has no fitness


def test_broken_members_are_not_on_the_axis_of_the_fitness(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a")
    w.report("m01", diverged=True)
    assert set(coordinates(data_of(w))[-1].places) == {"m00"}


def test_ticks_of_integers_are_at_their_numbers(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=2, hyperparameters=("units", "layers"))
    w.decide(*(w.next(f"m0{i}", hyperparameters={"units": u, "layers": u}) for i, u in enumerate((1, 4))))
    units = coordinates(data_of(w))[0]
    assert units.ticks == pytest.approx({0.0: "1", 1 / 3: "2", 2 / 3: "3", 1.0: "4"})


def test_narrow_coordinates_have_distinct_ticks(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=2)
    w.decide(w.next("m00"), w.next("m01"))
    w.report("m00", 1.1521)
    w.report("m01", 1.1522)
    *_, fitness = coordinates(data_of(w))
    assert len(set(fitness.ticks.values())) == 5


def test_bounds_are_ringed_and_the_best_is_black(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a", bounds={"": {"learning_rate": (0.005, 1.0)}})
    w.report("m01", 5.0)
    panel = PLOTS["population"](data_of(w, "m01/000001")).axes[0]
    (rings,) = [c for c in panel.collections if c.get_label() == "at a bound"]
    assert rings.get_offsets().tolist() == [[0.0, 0.0]]
    assert [line.get_label() for line in panel.lines if line.get_color() == "black"] == ["m01, the best"]


def test_pictures_take_the_colors_of_the_page() -> None:
    file = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="9pt" viewBox="0 0 9 9">'
    file += (
        b'<!-- x --><g id="g1"><path id="p" style="fill: #ffffff; stroke: #000000"/><use xlink:href="#p"/></g></svg>'
    )
    assert svg_element(file, "a") == (
        '<svg viewBox="0 0 9 9"><g><path id="a-p" style="fill: none; stroke: currentColor"/>'
        '<use xlink:href="#a-p"/></g></svg>'
    )


def test_large_pictures_are_png_in_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(html_report, "LARGEST_SVG", 1000)
    assert html_report.write_report(RunDirectory(one_copy(tmp_path / "a").run), only=["speed"])[1].suffix == ".svg"
    assert checked((tmp_path / "a" / "report.html").read_text()).tags["img"] == 1


@pytest.mark.slow
def test_large_run_has_a_small_page(tmp_path: Path) -> None:
    """40 members, 12 hyperparameters and 60 slices each: some plots are larger as SVG than as PNG."""
    names = tuple(f"h{i}" for i in range(12))
    w = JournalWriter(tmp_path / "a", size=40, horizon=10**6, hyperparameters=names)
    rng = np.random.default_rng(0)
    lines = []

    def append(line: Line) -> None:  # fast
        w.population.record(parse_record(json.loads(json.dumps(line)), "line"))
        lines.append(json.dumps(line))

    w._append = append
    for _ in range(60):
        members = list(w.population.members)
        w.decide(*(w.next(m, hyperparameters=dict(zip(names, rng.random(12), strict=True))) for m in members))
        for m in members:
            w.report(m, *rng.random(10).tolist(), wait=0.1, timing={"seconds": 2.0})
    (w.run / "journal.jsonl").write_text("\n".join([json.dumps(w.header.to_line()), *lines, ""]))
    page = html_report.write_report(RunDirectory(w.run))[0].read_text()
    result = checked(page)
    assert result.tags["img"] >= 1
    assert result.tags["svg"] >= 1
    assert len(page) < 1_500_000


# Watching


def test_watch_ends_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is written when the journal has grown, and a last time without a refresh."""
    w = one_copy(tmp_path / "a")
    written: list[int | None] = []
    lock = RunLock(w.run).acquire()
    pauses = iter([lambda: None, lambda: w.report("m00", 1.0), lock.release])
    monkeypatch.setattr(html_report.time, "sleep", lambda seconds: next(pauses)())
    html_report.watch(RunDirectory(w.run), written.append)
    assert written == [10, 10, None]


def test_watched_page_loads_itself_again(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a")
    page = html_report.write_report(RunDirectory(w.run), only=["speed"], refresh=10)[0].read_text()
    assert '<meta http-equiv="refresh" content="10">' in page
    checked(page)


def test_watch_of_a_finished_run_writes_once(pbtrl: Command) -> None:
    pbtrl("train", "toy_quadratic")
    result = pbtrl("report", "last", "--watch", "--only", "speed")
    assert result.code == 0
    assert result.out.startswith("runs/toy_quadratic/report.html, again every 10 seconds")
    assert "refresh" not in Path("runs/toy_quadratic/report.html").read_text()


def test_interrupted_watch_exits_130(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "runs" / "a")
    with RunLock(w.run):
        process = spawn(tmp_path, "report", "a", "--watch", "--only", "speed")
        assert process.stdout
        assert "report.html" in process.stdout.readline()
        for _ in range(200):
            if (w.run / "plots" / "speed.svg").exists():
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")
    assert 'content="10"' in (w.run / "report.html").read_text()
