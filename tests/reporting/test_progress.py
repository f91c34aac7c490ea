"""Terminal output (live view, plain lines, JSON, opening, summary) from journals written by hand."""

import errno
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pbtrl.core.population import FitnessRule
from pbtrl.reporting import formatting, live_table, progress_lines, summary, tables, terminal
from pbtrl.reporting.live_status import LiveStatus
from pbtrl.reporting.plots import RunData
from pbtrl.storage import run_status
from pbtrl.storage.parsing import parse_best
from pbtrl.storage.run_directory import RunDirectory
from tests.journal_writer import JournalWriter, best_json, many_trials, one_copy

pytestmark = pytest.mark.usefixtures("quick_disk")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def console(width: int = 100, height: int = 40) -> Console:
    return Console(record=True, width=width, height=height, file=io.StringIO())


def drawn(standings: LiveStatus, events=(), width: int = 100, height: int = 40) -> str:
    c = console(width, height)
    c.print(live_table.live_table(standings, events, "2 members on 1 worker", c))
    return c.export_text()


def started(tmp_path: Path, **fields) -> tuple[JournalWriter, LiveStatus, Clock]:
    w, clock = JournalWriter(tmp_path / "pong", **fields), Clock()
    return w, LiveStatus(w.header, w.population, w.run / "members", clock=clock), clock


def copied(tmp_path: Path, **fields) -> tuple[JournalWriter, LiveStatus, list, Clock]:
    """`one_copy`, with every line passed to the live status."""
    source = one_copy(tmp_path / "source")
    w, standings, clock = started(tmp_path, **fields)
    events = []
    for line in source.records[1:]:
        w.population.record(line)
        events += standings.event(line)
    return w, standings, events, clock


def test_rows_are_sorted_by_fitness_and_copies_name_their_donor(tmp_path: Path):
    _, standings, events, _ = copied(tmp_path)
    text = drawn(standings, events)
    assert "pong · gen 1 · 200 / 2.0k env steps (10 %)" in text
    first, second = (line.split() for line in text.splitlines() if re.match(r"\d  ", line))
    assert first == ["1", "m00", "3.00", "█", "0.01", "20", "100", "-", "1", "train"]
    assert second == ["2", "m01", "(-5.00)", "▁", "5.0e-3", "↓", "20", "↑", "100", "-", "1", "copied", "m00"]
    assert "0:00:40  m01 <- m00  fitness -5.00 -> 3.00  learning_rate 0.1 -> 5.0e-3  unroll_length" in text
    assert "Ctrl-C: save and stop" in text


def test_fitness_from_before_a_copy_is_in_parentheses(tmp_path: Path):
    """Until there is a new one."""
    w, standings, _ = started(tmp_path, rule=FitnessRule(window=10, min_episodes=2))
    for line in one_copy(tmp_path / "source").records[1:]:
        w.population.record(line)
    views = []
    for returns in ((7.0,), (8.0, 9.0)):
        views.append([(r.member, r.fitness, r.before_copy) for r in standings.rows()])
        w.report("m01", *returns)
        w.decide(w.next("m01"))
    assert views == [[("m00", 3.0, False), ("m01", -5.0, True)]] * 2
    assert [(r.member, r.fitness, r.before_copy) for r in standings.rows()] == [
        ("m01", 8.0, False),
        ("m00", 3.0, False),
    ]


def test_broken_member_has_no_fitness_from_before_its_copy(tmp_path: Path):
    w = one_copy(tmp_path / "pong")
    w.report("m01", diverged=True)
    standings = LiveStatus(w.header, w.population, w.run / "members")
    assert [(r.member, r.fitness, r.before_copy) for r in standings.rows()] == [
        ("m00", 3.0, False),
        ("m01", None, False),
    ]
    assert w.population.before_copy == 0
    table = tables.members(run_status.status(RunDirectory(w.run)))
    assert table.rows[1][:2] == ["m01", "-"]
    assert not any("before a copy" in note for note in table.notes)


def test_steps_and_rates_are_updated_from_metrics(tmp_path: Path):
    w, standings, _, clock = copied(tmp_path)
    w.metrics("m01", 999, perf__env_steps_per_s=25.0, text='{"assignment": "m01/000000", "step": 999}\n')
    for step in (110, 120, 130, 150):
        clock.now += 1.0
        w.metrics("m00", step, perf__env_steps_per_s=25.0)
        standings.refresh()
    assert [(r.member, r.step, r.rate) for r in standings.rows()] == [("m00", 150, 25.0), ("m01", 100, None)]
    assert standings.step == 250
    assert standings.rate == pytest.approx(250 / 4)
    assert standings.left == pytest.approx(1750 / (250 / 4))


def test_search_beyond_its_plan_has_no_share_and_no_time_left(tmp_path: Path):
    w, standings, _, clock = copied(tmp_path, total=220)
    w.metrics("m00", 150, perf__env_steps_per_s=25.0)
    for _ in range(4):
        clock.now += 1.0
        standings.refresh()
    assert (standings.step, standings.left) == (250, None)
    for text in (drawn(standings), progress_lines.plain_line(standings)):
        assert "250 / 220 env steps (beyond the plan)" in text
    status = {"name": "a", "state": "training", "env_steps": 250, "steps_budget": 220, "unit": "env_steps"}
    assert tables.progress(status) == "a: training, 250 of 220 env steps (beyond the plan)"
    facts = {"trains": "ALE/Pong-v5", "agent": "impala", "workers": "2 members"}
    assert "1.0k env steps per member, 220 planned (880 frames)\n" in summary.opening_text(
        RunDirectory(w.run), w.header, **facts
    )


def test_rate_is_that_of_slices_where_steps_are_known_at_their_end(tmp_path: Path):
    """Two members train one step per second each; their slices of 100 seconds end at different times."""
    w, standings, clock = started(tmp_path)
    w.decide(w.next("m00"), w.next("m01"))
    rates = {}
    for second in range(1, 520):
        clock.now = float(second)
        for member, late in (("m00", 0), ("m01", 10)):
            if second % 100 == late and second > late:
                w.report(member, 1.0)
                w.decide(w.next(member))
        standings.refresh()
        rates[second] = standings.rate
    assert {rates[second] for second in range(1, 100)} == {None}
    assert rates[100] == 1.0
    assert rates[110] == pytest.approx(200 / 110)
    assert {rates[second] for second in range(200, 520)} == {2.0}
    assert standings.left == pytest.approx(500)


def test_refreshing_often_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The controller does so after every report, hundreds of times a second in a large population."""
    _, standings, clock = started(tmp_path)
    polls = []
    monkeypatch.setattr(standings._tail, "poll", lambda: polls.append(clock()) or [])
    for _ in range(17):
        standings.refresh()
        clock.now += 0.0625
    assert polls == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_wall_clock_budget_bounds_remaining_time(tmp_path: Path):
    w, clock = JournalWriter(tmp_path / "pong"), Clock()
    standings = LiveStatus(w.header, w.population, tmp_path, wall_clock=100.0, earlier=30.0, clock=clock)
    clock.now += 20.0
    assert (standings.elapsed, standings.left) == (50.0, 50.0)


def test_states(tmp_path: Path):
    w, standings, _ = started(tmp_path, size=5, horizon=100)
    w.listener = standings
    w.decide(*(w.next(m) for m in w.population.members))
    w.report("m00", 1.0)
    w.report("m01", 2.0, step=50)
    w.report("m02", 3.0, diverged=True)
    w.fail("m03", given_up=True)
    states = {r.member: r.state for r in standings.rows()}
    assert states == {"m00": "done", "m01": "waiting", "m02": "diverged", "m03": "given up", "m04": "train"}
    w.retire("m01", "m02", "m03")
    states |= {"m01": "retired"}  # the broken ones stay so
    assert {r.member: r.state for r in standings.rows()} == states
    assert {m["id"]: m["state"] for m in run_status.status(RunDirectory(w.run))["members"]} == states


def test_broken_members_come_last(tmp_path: Path):
    w, standings, _ = started(tmp_path, size=4, horizon=300)
    w.listener = standings
    w.decide(*(w.next(m) for m in w.population.members))
    w.report("m00", 9.0)
    w.report("m01", 8.0, diverged=True)
    w.report("m02", 1.0)
    w.decide(w.next("m00"))
    w.fail("m00", given_up=True)
    order = ["m02", "m03", "m00", "m01"]
    assert [row.member for row in standings.rows()] == order
    table = tables.members(run_status.status(RunDirectory(w.run)))
    assert [row[0] for row in table.rows] == order
    assert [row[-1] for row in table.rows] == ["waiting", "train", "given up", "diverged"]
    assert RunData(w.header, w.records, w.population, None).ranked == order


def test_evaluator_names_whom_it_evaluates(tmp_path: Path):
    w, standings, _ = started(tmp_path, size=3, roles={"m02": "evaluator"})
    w.decide(w.next("m00"), w.next("m01"))
    w.report("m00", 1.0)
    w.report("m01", 2.0)
    w.decide(w.next("m02", donor="m01", hparams_donor="m00"))
    (evaluator,) = (r for r in standings.rows() if r.role)
    assert (evaluator.state, evaluator.activity) == ("train", "evaluates m01 under m00")
    assert evaluator.activity in tables.members(run_status.status(RunDirectory(w.run))).rows[-1]


def test_failures_and_divergence_are_shown(tmp_path: Path):
    w, standings, _ = started(tmp_path)
    received = []
    w.listener = type("Listener", (), {"event": lambda self, line: received.extend(standings.event(line))})()
    w.decide(w.next("m00"), w.next("m01"))
    w.fail("m00")
    w.fail("m00", "ValueError: bad\nTraceback")
    w.fail("m00", given_up=True)
    w.report("m01", diverged=True)
    w.decide(w.next("m00", parent=None, note="given up, starts afresh"))
    assert [(e.kind, e.text) for e in received] == [
        ("failure", "m00 failed at 0, attempt 1: worker killed by signal 9"),
        ("failure", "m00 failed at 0, attempt 2: ValueError: bad"),
        ("given_up", "m00 given up at 0: worker killed by signal 9"),
        ("diverged", "m01 diverged at 100"),
        ("fresh", "m00 given up, starts afresh"),
    ]


def test_skipped_updates_are_shown(tmp_path: Path):
    w, standings, _ = started(tmp_path)
    received = []
    w.listener = type("Listener", (), {"event": lambda self, line: received.extend(standings.event(line))})()
    w.decide(w.next("m00"), w.next("m01"))
    scalars = {"learning/skipped_updates": 12.0, "learning/updates": 240.0}
    w.report("m00", 1.0, scalars=scalars)
    w.report("m01", scalars=scalars, diverged=True)
    assert [(e.kind, e.text) for e in received] == [
        ("skipped", "m00 skipped 12 of 240 updates at 100 env steps"),
        ("skipped", "m01 skipped 12 of 240 updates at 100 env steps"),
        ("diverged", "m01 diverged at 100"),
    ]
    facts = json.loads(progress_lines.json_event(received[0]))
    assert (facts["member"], facts["step"], facts["skipped_updates"], facts["updates"]) == ("m00", 100, 12, 240)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("size", [1, 2, 30])
def test_frame_fits_its_terminal(tmp_path: Path, width, size):
    w, standings, _ = started(tmp_path, size=size, hyperparameters=("learning_rate", "entropy_cost", "gamma"))
    values = {"learning_rate": 4.1e-4, "entropy_cost": 2.2e-3, "gamma": 0.9971}
    w.decide(*(w.next(m, hyperparameters=values) for m in w.population.members))
    for i, m in enumerate(w.population.members):
        w.report(m, -1523.7 - i)
    text = drawn(standings, width=width, height=24)
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) <= 24
    assert "m00" in text
    assert "train" not in text
    assert "waiting" in text


def test_many_members_are_cut_to_first_last_and_median(tmp_path: Path):
    w, standings, _ = started(tmp_path, size=30)
    w.decide(*(w.next(m) for m in w.population.members))
    for i, m in enumerate(w.population.members):
        w.report(m, 100.0 - i)
    lines = drawn(standings, height=60).splitlines()
    members = [line.split()[1] for line in lines if re.match(r" *(\d+|…)  ", line)]
    assert members == [*(f"m{i:02d}" for i in range(8)), "+18", *(f"m{i:02d}" for i in range(26, 30))]
    (medians,) = [line for line in lines if line.startswith(" …")]
    assert "83.5" in medians
    assert "78.8 … 88.2" in medians


def mixture(tmp_path: Path) -> tuple[JournalWriter, LiveStatus]:
    """Two impala and one vmpo; m01 has just become a vmpo."""
    w, standings, _ = started(tmp_path, size=3)
    w.listener = standings
    one, other = {"agent": "impala", "learning_rate": 0.01}, {"agent": "vmpo", "learning_rate": 0.02}
    w.decide(*(w.next(m, hyperparameters=h) for m, h in (("m00", one), ("m01", one), ("m02", other))))
    for i, m in enumerate(w.population.members):
        w.report(m, float(i))
    w.decide(w.next("m01", donor="m02", hyperparameters=other))
    return w, standings


def test_mix_shows_each_members_agent_and_counts(tmp_path: Path):
    _, standings = mixture(tmp_path)
    *table, foot = drawn(standings).splitlines()[2:]
    assert [line.split()[:3] for line in table] == [
        ["#", "member", "agent"], ["1", "m02", "vmpo"], ["2", "m01", "vmpo"], ["3", "m00", "impala"]
    ]  # fmt: skip
    assert foot.startswith("2 members on 1 worker: 1 impala, 2 vmpo  ")
    assert "1 impala, 2 vmpo" in progress_lines.plain_line(standings)
    assert json.loads(progress_lines.json_line(standings))["agents"] == {"impala": 1, "vmpo": 2}


@pytest.mark.parametrize("width", [60, 80])
def test_mix_fits_its_terminal(tmp_path: Path, width):
    _, standings = mixture(tmp_path)
    text = drawn(standings, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("vmpo") >= 2


def test_single_agent_is_not_counted(tmp_path: Path):
    _, standings, *_ = copied(tmp_path)
    assert "agent" not in drawn(standings)
    assert "agents" not in json.loads(progress_lines.json_line(standings))


def test_many_members_of_a_mix_are_cut(tmp_path: Path):
    w, standings, _ = started(tmp_path, size=30)
    w.decide(*(w.next(m, hyperparameters={"agent": "a3c"}) for m in w.population.members))
    (medians,) = [line for line in drawn(standings, height=60).splitlines() if line.startswith(" …")]
    assert "a3c" not in medians


def test_before_the_first_event(tmp_path: Path):
    _, standings, _ = started(tmp_path)
    text = drawn(standings)
    assert "gen 0 · 0 / 2.0k env steps (0 %) · - steps/s" in text


def test_sparklines_share_a_scale():
    assert live_table.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 0, 7) == "▁▂▃▄▅▆▇█"
    assert live_table.sparkline([None, 7.0], 0, 7) == " █"
    assert live_table.sparkline([0.0] * 50 + [7.0] * 50, 0, 7) == "▁▁▁▁▁█████"
    assert live_table.sparkline([3.0], 3, 3) == "▁"
    assert live_table.sparkline([1e308] * 20 + [0.0] * 20, 0, 1e308)[-1] == "▁"
    assert live_table.sparkline([], 0, 0) == ""


def test_auto_is_plain_unless_terminal_can_redraw(tmp_path: Path, monkeypatch):
    _, standings, _ = started(tmp_path)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    def kind(file) -> str:
        v = terminal.make_view("auto", standings, workers="", console=Console(file=file, width=100))
        v.close()
        return type(v).__name__

    assert kind(io.StringIO()) == "LinesView"
    assert kind(Terminal()) == "LiveView"
    monkeypatch.setenv("CI", "true")
    assert kind(Terminal()) == "LinesView"
    monkeypatch.delenv("CI")
    monkeypatch.setenv("TERM", "dumb")
    assert kind(Terminal()) == "LinesView"


def test_live_view_redraws_and_keeps_the_last_frame(tmp_path: Path):
    w, standings, _ = started(tmp_path)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, no_color=True)
    v = terminal.make_view("live", standings, workers="2 members on 1 worker", console=console)
    w.listener = v
    w.decide(w.next("m00"), w.next("m01"))
    v.tick()
    w.report("m00", 7.5)
    v.close()
    length = len(file.getvalue())
    v.close()
    assert len(file.getvalue()) == length
    assert "7.50" in file.getvalue().rsplit("pong ·", 1)[1]
    assert "\x1b[31m" not in file.getvalue()


@pytest.mark.parametrize("mode", ["live", "plain", "json"])
def test_run_continues_without_its_terminal(tmp_path: Path, mode: terminal.Mode):
    """After a logout every write to the terminal is an input/output error."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def flush(self) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    w, standings, _ = started(tmp_path)
    v = terminal.make_view(mode, standings, workers="", console=Console(file=Gone(), force_terminal=True, width=100))
    w.listener = v
    w.decide(w.next("m00"), w.next("m01"))
    v.tick()
    v.stopping()
    w.report("m00", 7.5)
    v.close()


def lines_of(mode: terminal.Mode, tmp_path: Path, monkeypatch) -> list[str]:
    w, standings, clock = started(tmp_path)
    monkeypatch.setattr(terminal, "LINE_EVERY", 30.0)
    file = io.StringIO()
    v = terminal.make_view(mode, standings, workers="", console=Console(file=file, width=20))
    if isinstance(v, terminal.LinesView):
        v._now, v._last_line = clock, 0.0
    source = one_copy(tmp_path / "source")
    for line in source.records[1:]:
        w.population.record(line)
        v.event(line)
    for _ in range(70):
        clock.now += 1.0
        v.tick()
    v.close()
    v.close()
    return file.getvalue().splitlines()


def test_plain_lines_every_half_minute_and_on_events(tmp_path: Path, monkeypatch):
    event, *rest = lines_of("plain", tmp_path, monkeypatch)
    assert event == "  0:00:40  m01 <- m00  fitness -5.00 -> 3.00  learning_rate 0.1 -> 5.0e-3  unroll_length 5 -> 20"
    assert [line.split()[0] for line in rest] == ["0:00:30", "0:01:00", "0:01:10"]
    assert "200 / 2.0k env steps (10 %)" in rest[0]
    assert "best m00 3.00  median 3.00" in rest[0]
    assert "\n".join([event, *rest]).isascii()


def test_json_lines(tmp_path: Path, monkeypatch):
    event, *rest = map(json.loads, lines_of("json", tmp_path, monkeypatch))
    assert (event["kind"], event["member"], event["donor"]) == ("copy", "m01", "m00")
    assert event["hyperparameters_after"]["learning_rate"] == 0.005
    assert [line["kind"] for line in rest] == ["progress"] * 3
    assert (rest[0]["env_steps"], rest[0]["frames"], rest[0]["best"]["member"]) == (200, 800, "m00")


def test_none_shows_nothing(tmp_path: Path, monkeypatch):
    assert lines_of("none", tmp_path, monkeypatch) == []


def test_closed_pipe_does_not_end_the_run(tmp_path: Path):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    _, standings, _ = started(tmp_path)
    terminal.make_view("plain", standings, workers="", console=Console(file=Closed())).close()


def test_opening(tmp_path: Path):
    w = JournalWriter(tmp_path / "pong", size=8, horizon=20_000_000)
    facts = {"trains": "ALE/Pong-v5", "agent": "impala", "workers": "8 members on 2 workers", "name": "runs/pong"}
    first, *rest = summary.opening_text(RunDirectory(w.run), w.header, wall_clock=21600, **facts).splitlines()
    assert first.split() == ["run", str(w.run)]
    assert rest == [
        "trains     ALE/Pong-v5",
        "agent      impala",
        "population 8 members on 2 workers",
        "budget     20.0M env steps per member, 160M in all (640M frames), at most 6:00:00",
        "seed       1; deterministic: yes",
        "watch      pbtrl status runs/pong | pbtrl tb runs/pong; Ctrl-C saves and stops",
    ]


def test_opening_of_a_resumed_run_shows_its_progress(tmp_path: Path):
    w = one_copy(tmp_path / "toy", unit="steps")
    facts = {"trains": "quadratic", "agent": None, "workers": "2 members in this process"}
    starts = ["m00 from m00/000000, verified", "m01 from m00/000000, verified; 31 steps again"]
    text = summary.opening_text(
        RunDirectory(w.run), w.header, resumed=w.population, starts=starts, slices="100 steps each", **facts
    )
    assert "slices     100 steps each\n" in text
    assert "resumed    200 of 2.0k steps are done; 2 open slices start again\n" in text
    assert (
        "\n           m00 from m00/000000, verified\n           m01 from m00/000000, verified; 31 steps again\n" in text
    )
    assert "agent" not in text


def closing_text(w: JournalWriter, member: str, score: float, **changes: Any) -> str:
    return summary.closing_text(parse_best(best_json(member, score, **changes)), RunDirectory(w.run))


def test_summary_names_best_schedule_and_next_commands(tmp_path: Path):
    w = one_copy(tmp_path / "pong")
    w.report("m01", 4.0)
    score = {"member": "m01", "score": 3.5, "snapshot": "m01/000001", "ci95": [3.1, 3.9]}
    text = closing_text(w, **score)
    assert "m01 (m01/000001): mean return 3.50, 95 % interval 3.10 to 3.90, 30 fresh episodes" in text
    assert "learning_rate 0.01 -> 5.0e-3 from 100" in text
    assert "unroll_length 20\n" in text
    assert "0:00:50" in text
    assert "pbtrl tb last | pbtrl eval last | pbtrl report last" in text
    assert str(w.run) in text
    text = closing_text(w, **score, truncated=3, max_steps=1000, timed_out=False)
    assert "30 fresh episodes; 3 of 30 episodes cut at 1,000 steps\n" in text


@pytest.mark.parametrize(("held_out", "data"), [(True, "held-out data"), (False, "the data that it was chosen with")])
def test_summary_names_the_data_of_a_trainables_score(tmp_path: Path, held_out: bool, data: str):
    w = JournalWriter(tmp_path / "net", unit="steps", metric="accuracy")
    text = closing_text(w, "m01", 0.5, held_out=held_out)
    assert f"m01 (m01/000000): accuracy 0.500, on {data}\n" in text


@pytest.mark.parametrize(
    ("bounds", "warning"),
    [
        ({"learning_rate": (0.005, 0.1)}, "learning_rate ends at 5.0e-3, the minimum that its bounds allow"),
        ({"unroll_length": (1, 20)}, "unroll_length ends at 20, the maximum that its bounds allow"),
        ({"learning_rate": (0.001, 0.1), "unroll_length": (1, 40)}, None),
        ({}, None),
    ],
)
def test_summary_warns_if_best_lineage_ends_at_a_bound(tmp_path: Path, bounds, warning: str | None):
    w = one_copy(tmp_path / "pong", bounds={"": bounds})
    w.report("m01", 4.0)
    text = closing_text(w, "m01", 4.0, snapshot="m01/000001")
    assert (warning in text) if warning else ("bounds" not in text)


def test_long_schedule_is_abbreviated(tmp_path: Path):
    w = JournalWriter(tmp_path / "pong")
    for i in range(9):
        w.decide(w.next("m00", hyperparameters={"learning_rate": 0.1 * (i + 1)}))
        w.report("m00", 1.0)
    text = closing_text(w, "m00", 1.0, snapshot="m00/000008")
    assert "learning_rate 0.1 -> 0.2 from 100 -> (6 more) -> 0.9 from 800" in text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (0.4, "0.4"), (812, "812"), (999.4, "999"), (4100, "4.1k"), (99_960, "100k"),
     (999_900, "1.0M"), (61_200_000, "61.2M"), (160e6, "160M"), (2.5e9, "2.5G")],
)  # fmt: skip
def test_counts(number, text):
    assert formatting.format_count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(4.1e-4, "4.1e-4"), (0.9971, "0.9971"), (20, "20"), (0.0, "0"), ("deep", "deep"), (True, "True"),
     (1e-10, "1.0e-10"), (-3.9e-3, "-3.9e-3"), (2_000_000, "2.0M"), (1e9, "1.0e9"), (None, "None"),
     (float("nan"), "nan"), (0.99996, "0.99996"), (-0.999958, "-0.999958"), (0.9999, "0.9999"), (0.999, "0.999"),
     (0.95123, "0.9512"), (1.0, "1"), (1 - 2**-53, "0.99999999999999989")],
)  # fmt: skip
def test_values(number, text):
    assert formatting.format_value(number) == text


def test_change_close_to_one_is_shown():
    assert formatting.format_changes({"gamma": 0.9999}, {"gamma": 0.99988}) == ["gamma 0.9999 -> 0.99988"]


def test_scores_clocks_and_sizes():
    assert [formatting.format_fitness(x) for x in (None, 0, 0.9123, -3.5, 18.44, -1523.6, 0.00123)] == [
        "-", "0.000", "0.912", "-3.50", "18.4", "-1524", "1.2e-3",
    ]  # fmt: skip
    assert [formatting.format_duration(x) for x in (0, 8047.9, -1)] == ["0:00:00", "2:14:07", "0:00:00"]
    assert [formatting.format_bytes(x) for x in (812, 4.1e6, 3e12)] == ["812 B", "4.1 MB", "3.0 TB"]


# Members that come and go


def test_live_table_shows_trials_that_train_beside_failed_ones(tmp_path: Path):
    """Of the ended trials all that the strategy retired have diverged."""
    w = JournalWriter(tmp_path / "search", size=30, horizon=200)
    w.decide(*(w.next(f"m{i:02d}") for i in range(30)))
    for i in range(26):
        w.report(f"m{i:02d}", float(i), diverged=i >= 12)
    w.retire(*(f"m{i:02d}" for i in range(12, 26)))
    text = drawn(LiveStatus(w.header, w.population, w.run / "members"), height=24)
    rows = [line.split()[1] for line in text.splitlines() if re.match(r" *\d+ +m\d\d ", line)]
    assert set(rows) >= {"m26", "m27", "m28", "m29", "m11"}
    status = tables.members(run_status.status(RunDirectory(w.run)))
    assert not any("retired" in note for note in status.notes)


def test_live_table_shows_trials_that_train_and_the_best(tmp_path: Path):
    w = many_trials(tmp_path / "search")
    text = drawn(LiveStatus(w.header, w.population, w.run / "members"), height=24)
    rows = [line.split()[1] for line in text.splitlines() if re.match(r" *\d+ +m\d\d ", line)]
    assert rows == ["m95", "m94", "m93", "m92", "m91", "m90", "m89", "m96", "m97", "m98", "m99"]
    assert re.search(r"…  \+89 .* medians", text)
    assert "retired" in text
    assert len(text.splitlines()) <= 24
