"""The HTML report is self-contained and escapes all text; its plots match the journal."""

import io
import json
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex

from pbtrl import errors
from pbtrl.reporting import html_report, plots
from pbtrl.reporting.plot_names import PLOT_NAMES
from pbtrl.reporting.plots import PLOTS, RunData, draw
from pbtrl.storage.run_directory import RunDirectory
from tests.command import Command, spawn
from tests.journal_writer import JournalWriter, best_json, one_copy
from tests.reporting.html_checks import checked

pytestmark = pytest.mark.usefixtures("quick_disk")

EVIL = "</pre><script>alert(1)</script>$\\frac$\x1b[2J\ud800"


def story(w: JournalWriter, best: str | None = None) -> RunData:
    header, records, population = RunDirectory(w.run).load()
    return RunData(header, records, population, best)


@pytest.fixture
def copied(tmp_path: Path) -> JournalWriter:
    """m01 copied m00 at step 100 and reached 200; besides, there is a failure and a resume."""
    w = one_copy(tmp_path / "a")
    w.fail("m01")
    w.report("m01", 5.0, timing={"seconds": 10.0})
    return w


def panel(found: RunData, picture: str, number: int = 0) -> Axes:
    return PLOTS[picture](found).axes[number]


def points(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in zip(*line.get_data(), strict=True)]


# Pictures


def test_fitness_plot_matches_the_journal(copied: JournalWriter) -> None:
    drawn = {line.get_label(): points(line) for line in panel(story(copied, "m01/000001"), "training").lines}
    assert drawn["m00"] == [(100.0, 3.0)]
    assert drawn["m01"] == [(100.0, -5.0), (200.0, 5.0)]


def test_ancestry_of_the_best_is_black_in_every_panel(copied: JournalWriter) -> None:
    result = story(copied, "m01/000001")
    black = [line for line in panel(result, "training").lines if line.get_color() == "black"]
    assert [points(line) for line in black] == [[(100.0, 3.0), (200.0, 5.0)]]  # m00's slice, then its own
    (rates,) = [line for line in panel(result, "training", 1).lines if line.get_color() == "black"]
    assert points(rates) == [(0.0, 0.01), (100.0, 0.01), (100.0, 0.005), (200.0, 0.005)]
    assert not [line for line in panel(story(copied), "training").lines if line.get_color() == "black"]


def test_schedule_plot_shows_used_hyperparameters(copied: JournalWriter) -> None:
    m00, m01, _ = panel(story(copied, "m01/000001"), "training", 2).lines
    assert points(m00) == [(0.0, 20.0), (100.0, 20.0)]
    assert points(m01) == [(0.0, 5.0), (100.0, 5.0), (100.0, 20.0), (200.0, 20.0)]


def test_reached_bound_is_dotted(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a", bounds={"": {"learning_rate": (0.005, 1.0), "unroll_length": (1, 40)}})
    w.report("m01", 5.0)
    dotted = [line for line in panel(story(w), "training", 1).lines if line.get_linestyle() == ":"]
    assert [line.get_ydata() for line in dotted] == [[0.005, 0.005]]
    assert not [line for line in panel(story(w), "training", 2).lines if line.get_linestyle() == ":"]


def test_text_choices_are_plotted(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1, hyperparameters=("activation", "nobody_has_it"))
    for word in ("tanh", EVIL):
        w.decide(w.next("m00", hyperparameters={"activation": word}))
        w.report("m00", 1.0)
    assert len(panel(story(w, w.population.members["m00"].snapshot), "training", 1).get_yticklabels()) == 2
    assert draw(story(w, w.population.members["m00"].snapshot), "training")


def test_lineage_arrows_lead_from_donor_to_receiver(copied: JournalWriter) -> None:
    result = panel(story(copied, "m01/000001"), "lineage")
    every, best = [c for c in result.collections if isinstance(c, LineCollection)]
    own, slice_of_it, copy = [[0.0, 0.0], [100.0, 0.0]], [[100.0, 1.0], [200.0, 1.0]], [[100.0, 0.0], [100.0, 1.0]]
    other = [[0.0, 1.0], [100.0, 1.0]]
    colors = {
        str(np.asarray(s).tolist()): to_hex(c) for s, c in zip(every.get_segments(), every.get_colors(), strict=True)
    }
    assert set(colors) == {str(s) for s in (own, slice_of_it, copy, other)}
    assert colors[str(own)] == colors[str(copy)] == colors[str(slice_of_it)] != colors[str(other)]
    assert sorted(np.asarray(s).tolist() for s in best.get_segments()) == sorted([own, slice_of_it, copy])
    assert best.get_linewidth()[0] > every.get_linewidth()[0]


def test_timeline_has_a_bar_per_slice_and_a_mark_per_event(copied: JournalWriter) -> None:
    result = story(copied, "m01/000001")
    timeline = panel(result, "timeline")
    marks = {c.get_label(): c for c in timeline.collections if isinstance(c, PathCollection)}
    (bars,) = [c for c in timeline.collections if isinstance(c, PolyCollection)]
    spans = [(p.vertices[:, 0].min(), p.vertices[:, 0].max()) for p in bars.get_paths()]
    assert spans == [(20.0, 20.0), (30.0, 30.0), (50.0, 60.0)]
    assert set(marks) == {"copy, in the donor's color", "failure"}
    offsets = np.asarray(marks["copy, in the donor's color"].get_offsets()).tolist()
    assert offsets == [[40.0, 1.0]]
    assert to_hex(marks["copy, in the donor's color"].get_facecolor()[0]) == result.color("m00")


def test_speed_plot_counts_every_step(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a")
    for seconds in (3.0, 12.5, 0.0):
        w.decide(w.next("m00"), wait=5.0)
        w.report("m00", 1.0, wait=10.0, timing={"seconds": seconds})
    (steps,) = panel(story(w), "speed").patches
    values, edges, _ = steps.get_data()
    assert np.isclose((values * np.diff(edges)).sum(), 300.0)
    assert not values[: int(12 / 45 * len(values))].any()  # the first slice took the last 3 of 15 seconds


@pytest.mark.parametrize("picture", PLOTS)
@pytest.mark.parametrize("size", [1, 2, 60, 1000])
def test_all_population_sizes_and_ages_can_be_plotted(tmp_path: Path, picture: str, size: int) -> None:
    w = JournalWriter(tmp_path / "a", size=size, hyperparameters=tuple(f"h{i}" for i in range(30 if size == 2 else 3)))
    assert draw(story(w), picture).startswith(b"<?xml")
    w.decide(*(w.next(m) for m in list(w.population.members)[:100]))
    assert draw(story(w), picture)
    for m in list(w.population.members)[:100]:
        w.report(m, 1.0)
    ElementTree.fromstring(draw(story(w, next(iter(w.population.members.values())).snapshot), picture))


def test_plot_bytes_are_deterministic(copied: JournalWriter) -> None:
    assert draw(story(copied), "training") == draw(story(copied), "training")


# The page


def text_of(page: str) -> str:
    return re.sub(r"data:image/[^\"]*|<svg.*?</svg>", "", page, flags=re.DOTALL)


def test_page_is_self_contained(pbtrl: Command) -> None:
    assert pbtrl("train", "toy_quadratic").code == 0
    lines = pbtrl("report", "last").out.splitlines()
    assert lines == ["runs/toy_quadratic/report.html", *(f"runs/toy_quadratic/plots/{p}.svg" for p in PLOTS)]
    page = Path(lines[0]).read_text()
    assert re.findall(r"<h2>(.*)</h2>", page) == [
        "Best member", "Members", "Training", "Episodes", "Population", "Lineage", "Timeline", "Speed", "Time",
        "Copies", "Settings that differ from the defaults", "Environment",
    ]  # fmt: skip
    best = json.loads(Path("runs/toy_quadratic/best.json").read_text())
    assert f"{best['member']} ({best['snapshot']})" in page
    assert checked(page).tags["svg"] == len(PLOTS)
    assert "refresh" not in page
    assert pbtrl("verify", "last").code == 0


def test_selected_plots_in_another_format(pbtrl: Command) -> None:
    pbtrl("train", "toy_quadratic")
    lines = pbtrl("report", "last", "--only", "speed", "--only", "lineage", "--format", "png").out.splitlines()
    assert lines[1:] == ["runs/toy_quadratic/plots/speed.png", "runs/toy_quadratic/plots/lineage.png"]
    assert Path(lines[1]).read_bytes().startswith(b"\x89PNG")
    assert Path(lines[0]).read_text().count("data:image/png;base64,") == 2
    wrong = pbtrl("report", "last", "--only", "curves")
    assert wrong.code == 2
    assert "invalid choice: 'curves'" in wrong.err


def test_help_lists_every_plot(pbtrl: Command) -> None:
    for picture in PLOTS:
        assert picture in pbtrl("report", "--help").out


def test_text_from_a_run_is_escaped(tmp_path: Path) -> None:
    run = tmp_path / "a"
    w = JournalWriter(run, size=1, hyperparameters=(EVIL,), deterministic=EVIL)
    w.decide(w.next("m00", hyperparameters={EVIL: EVIL}))
    w.fail("m00", EVIL)
    w.report("m00", 1.0)
    (run / "run.json").write_text(json.dumps({"command": [EVIL], "versions": {EVIL: EVIL}, "git": EVIL}))
    w.choose(EVIL, 1.0, snapshot=EVIL)
    page = html_report.write_report(RunDirectory(run))[0].read_text()
    assert page.count("&lt;script&gt;alert(1)") >= 8
    assert "<script" not in page
    assert "\x1b" not in page
    checked(page)


@pytest.mark.parametrize("best", [
    {}, {"member": 3}, {"evaluation": {}}, {**best_json("m00", 1.0), "evaluation": 3}, best_json("m00", "x"),
    best_json("m00", 1.0, ci95=[1.0]), best_json("m00", 1.0, episodes="<b>"),
])  # fmt: skip
def test_malformed_best_json_is_reported_as_damage(tmp_path: Path, best: dict[str, Any]) -> None:
    w = one_copy(tmp_path / "a")
    (w.run / "best.json").write_text(json.dumps(best))
    with pytest.raises(errors.DamagedError, match=r"best\.json cannot be read"):
        html_report.write_report(RunDirectory(w.run))


def test_running_run_has_a_report_without_a_best_member(tmp_path: Path) -> None:
    page = html_report.write_report(RunDirectory(one_copy(tmp_path / "a").run))[0].read_text()
    assert "Best member" not in page
    assert "m01 &lt;- m00" in page


def test_problems_are_listed_and_long_lists_are_cut(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1)
    w.decide(w.next("m00"))
    for i in range(250):
        w.fail("m00", f"failure {i}.\nand a traceback")
    page = html_report.write_report(RunDirectory(w.run))[0].read_text()
    assert "Failures" in page
    assert "50 earlier ones are left out" in page
    assert "failure 49." not in page
    assert "failure 249." in page
    assert "and a traceback" not in page


def test_unwritable_directory_is_one_line(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    pbtrl("train", "toy_quadratic")

    def refuse(path: Path, content: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(html_report, "write_atomically", refuse)
    refused = pbtrl("report", "last")
    assert (refused.code, refused.err) == (2, "cannot write to runs/toy_quadratic: Permission denied\n")


def test_drawn_plots_are_the_named_ones() -> None:
    assert tuple(PLOTS) == PLOT_NAMES
    assert (plots.__doc__ or "").count("\n    ") == len(PLOTS)


# What the journal of a stranger may hold


def finished(run: Path, **timing: float) -> JournalWriter:
    w = JournalWriter(run, size=1)
    w.decide(w.next("m00"))
    w.report("m00", 1.0, timing={"seconds": 5.0})
    lines = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    lines[-1]["timing"] |= timing
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return w


@pytest.mark.parametrize("timing", [{"seconds": -1.0}, {"elapsed": -1e9}, {"elapsed": 1e300}, {"elapsed": np.nan}])
def test_impossible_times_are_damage(tmp_path: Path, timing: dict[str, float]) -> None:
    finished(tmp_path / "a", **timing)
    with pytest.raises(errors.DamagedError, match=r"journal\.jsonl:3 is damaged: timing must .*\[0, 1e\+10\], not "):
        html_report.write_report(RunDirectory(tmp_path / "a"))


@pytest.mark.parametrize("timing", [{"seconds": 1e9}, {"elapsed": 1e9}])
def test_slice_longer_than_the_run_starts_with_the_run(tmp_path: Path, timing: dict[str, float]) -> None:
    """A slice whose report was lost with its controller counts the seconds of another session."""
    w = finished(tmp_path / "a", **timing)
    (made,) = story(w).slices.values()
    assert made.begun == max(0.0, made.ended - timing.get("seconds", 5.0))
    assert html_report.write_report(RunDirectory(tmp_path / "a"))


def test_duplicate_assignment_is_refused(tmp_path: Path) -> None:
    """Otherwise it could be its own ancestor."""
    w = JournalWriter(tmp_path / "a", size=1)
    w.decide(w.next("m00"))
    w.report("m00", 1.0)
    again = {**w.next("m00").to_json(), "id": "m00/000000", "parent": "m00/000000"}
    with (w.run / "journal.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "decision", "assignments": [again], "timing": {"elapsed": 1.0}}) + "\n")
    with pytest.raises(errors.DamagedError, match="m00/000000 was already made"):
        html_report.write_report(RunDirectory(w.run))


def test_huge_numbers_cause_no_warning(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1, hyperparameters=("rate",))
    for rate in (1e308, 5e-324, 3):
        w.decide(w.next("m00", hyperparameters={"rate": rate}))
        w.report("m00", 1e308)
    assert html_report.write_report(RunDirectory(w.run))


def test_thousands_of_slices_or_words_are_fast(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1, hyperparameters=("word",))
    for i in range(300):
        w.decide(w.next("m00", hyperparameters={"word": str(i)}))
        w.report("m00", 1.0)
    assert not panel(story(w), "training", 1).get_yticklabels()
    assert "300 values" in panel(story(w), "training", 1).get_ylabel()
    assert len(panel(story(w), "timeline").collections) == 1


def matplotlibrc_of(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes({"latex": b"text.usetex: True\nfont.size: 40\n", "bytes": b"\xff\xfe\xff"}[kind])


@pytest.mark.parametrize("kind", ["pipe", *(pytest.param(k, marks=pytest.mark.slow) for k in ("latex", "bytes"))])
def test_matplotlibrc_in_working_directory_is_not_read(pbtrl: Command, kind: str) -> None:
    """It may come from an untrusted run, and matplotlib would run LaTeX for it."""
    assert pbtrl("train", "toy_quadratic").code == 0
    pbtrl("report", "last")
    expected = Path("runs/toy_quadratic/plots/training.svg").read_bytes()
    Path("runs/toy_quadratic/plots/training.svg").unlink()
    matplotlibrc_of(kind, Path("matplotlibrc"))
    process = spawn(Path(), "report", "last")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "report.html" in out
    assert Path("runs/toy_quadratic/plots/training.svg").read_bytes() == expected


def test_best_of_an_earlier_session_is_marked(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1)
    w.decide(w.next("m00"))
    w.report("m00", 1.0)
    w.end("finish")
    w.choose("m00", 1.0)
    assert "<h2>Best member</h2>" in html_report.write_report(RunDirectory(w.run))[0].read_text()
    w.decide(w.next("m00", hyperparameters={"learning_rate": 0.777, "unroll_length": 3}))
    w.report("m00", 1.0)
    page = html_report.write_report(RunDirectory(w.run))[0].read_text()
    assert "<h2>Best member, before the run was continued</h2>" in page
    assert "0.777" not in page.partition("<h2>Members")[0]
    assert [s.assignment for s in story(w, "m00/000000").ancestry] == ["m00/000000"]


@pytest.mark.parametrize("members", [1, 12, 13, 40])
def test_every_member_is_in_the_legend(tmp_path: Path, members: int) -> None:
    w = JournalWriter(tmp_path / "a", size=members, hyperparameters=("learning_rate",))
    w.decide(*(w.next(m) for m in w.population.members))
    for m in w.population.members:
        w.report(m, 1.0)
    figure = PLOTS["training"](story(w, "m00/000000"))
    figure.savefig(io.BytesIO())
    (legend,) = figure.legends
    assert len(legend.get_texts()) == members + 1
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0
    assert box.x1 <= whole.x1
    assert all(line.get_marker() == "." for line in figure.axes[0].lines)  # a line of one point cannot be seen


def test_skipped_updates_are_listed_as_problems(tmp_path: Path):
    w = one_copy(tmp_path / "pong")
    w.report("m01", 1.0, scalars={"learning/skipped_updates": 12.0, "learning/updates": 240.0})
    page, *_ = html_report.write_report(RunDirectory(w.run), only=["speed"])
    assert "skipped 12 of 240 updates, whose gradient was not finite" in page.read_text()
