"""`pbtrl track`: events from the journal, the position in it, and the command with a recording tracker."""

from __future__ import annotations

import builtins
import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from pbtrl.cli import track as command
from pbtrl.core.records import UnknownRecord
from pbtrl.errors import DiskFullError, JournalError, RunError, TrackingError
from pbtrl.integrations import tracking
from pbtrl.integrations.tracking import Tracking
from pbtrl.integrations.tracking_events import (
    POPULATION,
    Ended,
    Event,
    ExploitEvent,
    MetricPoints,
    RunEvents,
    RunOutcome,
    Started,
    TrackedRun,
)
from pbtrl.storage.journal import JournalTail
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_lock import RunLock
from tests.command import Command
from tests.journal_writer import START, JournalWriter, one_copy

pytestmark = pytest.mark.usefixtures("quick_disk")


class Recorder:
    """Tracker that keeps everything, in every session."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.outcomes: list[RunOutcome] = []
        self.abouts: list[TrackedRun] = []
        self.closed = 0
        self.where = "a list"
        self.refuse = False

    def connect(self, about: TrackedRun, project: str = "") -> Recorder:
        self.abouts.append(about)
        return self

    def take(self, events: Sequence[Event]) -> None:
        if self.refuse:
            raise TrackingError("no route to the service")
        self.events += events

    def finish(self, outcome: RunOutcome) -> None:
        self.outcomes.append(outcome)

    def close(self) -> None:
        self.closed += 1

    def curve(self, name: str, tag: str) -> list[tuple[int, float]]:
        points = [e for e in self.events if isinstance(e, MetricPoints) and e.name == name]
        return [(e.step, e.values[tag]) for e in points if tag in e.values]


def session(w: JournalWriter, recorder: Recorder) -> Tracking:
    transfer = Tracking(RunDirectory(w.run), "list", recorder.connect, lambda: [w.run / "journal.jsonl"])
    transfer.advance()
    transfer.close()
    return transfer


def doubled(recorder: Recorder) -> list[Any]:
    """Points that were sent twice: same run, tag, step, time and value."""
    points = (e for e in recorder.events if isinstance(e, MetricPoints))
    count = Counter((e.name, e.step, e.time, tag, y) for e in points for tag, y in e.values.items())
    return [key for key, number in count.items() if number > 1]


# Events


def test_members_population_and_schedules_are_series(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a")
    w.report("m01", 7.0)
    seen = Recorder()
    session(w, seen)
    assert seen.curve("m00", "fitness") == [(100, 3.0)]
    assert seen.curve("m01", "fitness") == [(100, -5.0), (200, 7.0)]
    assert seen.curve("m01", "episode/return_mean") == [(100, -5.0), (200, 7.0)]
    assert seen.curve("m01", "episode/length_mean") == [(100, 25.0), (200, 25.0)]
    assert seen.curve("m01", "hparams/learning_rate") == [(0, 0.1), (100, 0.1), (100, 0.005), (200, 0.005)]
    assert seen.curve(POPULATION, "population/fitness_max") == [(100, 3.0), (200, 3.0), (300, 7.0)]
    assert seen.curve(POPULATION, "population/exploits") == [(200, 1.0)]
    assert [e for e in seen.events if isinstance(e, Started)][1] == Started(
        "m01", "", {"learning_rate": 0.1, "unroll_length": 5}
    )
    assert not doubled(seen)


def test_exploit_has_donor_change_and_time(tmp_path: Path) -> None:
    seen = Recorder()
    session(one_copy(tmp_path / "a"), seen)
    (exploit,) = [e for e in seen.events if isinstance(e, ExploitEvent)]
    assert (exploit.member, exploit.donor, exploit.step, exploit.number) == ("m01", "m00", 100, 1)
    assert exploit.fitness == (-5.0, 3.0)
    assert exploit.changes == {"learning_rate": (0.1, 0.005), "unroll_length": (5, 20)}
    assert exploit.text == "m01 <- m00: learning_rate 0.1 -> 0.005, unroll_length 5 -> 20 (exploit m00)"
    assert exploit.time == START + 40


def test_several_copies_in_a_decision_are_counted_one_by_one(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=3)
    w.decide(*(w.next(m) for m in ("m00", "m01", "m02")))
    for m in ("m00", "m01", "m02"):
        w.report(m, 1.0)
    w.decide(w.next("m01", donor="m00"), w.next("m02", donor="m00"))
    seen = Recorder()
    session(w, seen)
    assert [e.number for e in seen.events if isinstance(e, ExploitEvent)] == [1, 2]


def test_live_metrics_come_with_the_report_and_only_of_its_attempt(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1)
    w.decide(w.next("m00"))
    line = {"assignment": "m00/000000", "loss": 9.0}
    first = [{**line, "attempt": 1.0, "time": START + 11, "step": step} for step in (30, 60)]
    w.metrics("m00", text="".join(json.dumps(row) + "\n" for row in first))
    seen = Recorder()
    session(w, seen)
    assert seen.curve("m00", "loss") == []  # the slice is open
    w.fail("m00")
    second = {**line, "attempt": 2.0, "time": START + 21, "step": 60, "loss": 0.5, "episode/return_mean": 4.0}
    remade = {**line, "attempt": 3.0, "time": START + 9999, "step": 60, "loss": 7.0}
    w.metrics("m00", text=json.dumps(second) + "\n" + json.dumps(remade) + "\n")
    w.report("m00", 2.0)
    session(w, seen)
    assert seen.curve("m00", "loss") == [(60, 0.5)]
    assert seen.curve("m00", "episode/return_mean") == [(60, 4.0)]  # streamed, so the report does not repeat it
    assert not doubled(seen)


def test_trainables_keep_the_name_of_their_fitness(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", size=1, unit="steps", metric="BLEU")
    w.decide(w.next("m00"))
    w.report("m00", 0.4)
    w.end("finish")
    seen = Recorder()
    session(w, seen)
    assert seen.curve("m00", "fitness/BLEU") == [(100, 0.4)]
    assert seen.curve("m00", "evaluation/BLEU") == [(100, 0.4)]
    assert (seen.abouts[0].unit, seen.abouts[0].metric) == ("steps", "fitness/BLEU")
    assert seen.outcomes[0].members[0]["BLEU"] == 0.4
    assert seen.outcomes[0].members[0]["steps"] == 100


def test_retired_members_end_and_evaluations_are_no_exploits(tmp_path: Path) -> None:
    w = JournalWriter(tmp_path / "a", roles={"m01": "evaluator"})
    w.decide(w.next("m00"), w.next("m01", scalars={"fire/score": 0.5}))
    w.report("m00", 1.0)
    w.report("m01", 1.0)
    w.decide(w.next("m01", donor="m00", parent="m00/000000", hparams_donor="m00"))
    w.retire("m00")
    seen = Recorder()
    session(w, seen)
    assert [e for e in seen.events if isinstance(e, ExploitEvent)] == []
    assert [e.member for e in seen.events if isinstance(e, Ended)] == ["m00"]
    assert [e.role for e in seen.events if isinstance(e, Started)] == ["", "evaluator"]
    assert seen.curve("m01", "fire/score") == [(0, 0.5)]


def test_config_is_read_without_importing(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a")
    (w.run / "config.resolved.yaml").write_text("strategy: {name: 'boom:Strategy', ready: {burn_in: 3}}\n")
    seen = Recorder()
    session(w, seen)
    assert seen.abouts[0].config == {"strategy.name": "boom:Strategy", "strategy.ready.burn_in": 3}


# Position


def test_tail_reads_each_line_once_and_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"kind": "a"}\n{"kind": ')
    tail = JournalTail(path)
    assert tail.read() == [UnknownRecord("a")]
    assert tail.read() == []
    with path.open("a") as file:
        file.write('"b"}\n[]\n')
    with pytest.raises(JournalError, match=r"journal\.jsonl:3: not a journal line"):
        tail.read()
    path.write_text('{"kind": "a"}\n{"kind": "b"}\n')
    assert tail.read() == [UnknownRecord("b")]
    assert tail.count == 2


def test_every_prefix_of_the_journal_continues_without_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session after each line, also one whose last line is torn, gives the events of a single session."""
    monkeypatch.setattr(tracking, "CHUNK", 2)
    w = one_copy(tmp_path / "a")
    w.report("m01", 7.0)
    w.end("finish")
    whole = Recorder()
    session(w, whole)
    (w.run / "track-list.json").unlink()
    lines, seen = (w.run / "journal.jsonl").read_text().splitlines(keepends=True), Recorder()
    for count in range(1, len(lines) + 1):
        torn = lines[count][:20] if count < len(lines) else ""
        (w.run / "journal.jsonl").write_text("".join(lines[:count]) + torn)
        session(w, seen)
    assert seen.events == whole.events
    assert len(seen.outcomes) == 1
    assert len({about.group for about in seen.abouts}) == 1
    assert [about.continued for about in seen.abouts] == [False] + [True] * (len(lines) - 1)


def test_nothing_new_connects_to_nothing(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a")
    w.end("finish")
    seen = Recorder()
    assert session(w, seen).lines == 6
    again = session(w, seen)
    assert (again.lines, again.points, again.where) == (0, 0, "")
    assert (len(seen.abouts), len(seen.outcomes), seen.closed) == (1, 1, 1)


def test_refused_lines_are_sent_by_the_next_session(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a")
    seen = Recorder()
    seen.refuse = True
    with pytest.raises(TrackingError, match="no route"):
        session(w, seen)
    assert json.loads((w.run / "track-list.json").read_text())["lines"] == 0
    seen.refuse = False
    session(w, seen)
    assert [about.continued for about in seen.abouts] == [False, True]
    assert len({about.group for about in seen.abouts}) == 1
    assert seen.curve("m00", "fitness") == [(100, 3.0)]


def test_session_that_cannot_connect_keeps_its_id(tmp_path: Path) -> None:
    """It may have made the tracked run before the service failed."""
    w, seen = one_copy(tmp_path / "a"), Recorder()

    def fail(about: TrackedRun) -> Recorder:
        seen.abouts.append(about)
        raise TrackingError("no route to the service")

    with pytest.raises(TrackingError):
        Tracking(RunDirectory(w.run), "list", fail, list).advance()
    session(w, seen)
    assert [about.continued for about in seen.abouts] == [False, True]
    assert len({about.group for about in seen.abouts}) == 1


def test_killed_session_doubles_nothing(tmp_path: Path) -> None:
    """The position is on disk before the lines are sent."""
    w = one_copy(tmp_path / "a")
    seen = Recorder()

    class Killed(BaseException):
        pass

    def die(events: Sequence[Event]) -> None:
        seen.events += events
        raise Killed

    seen.take = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        session(w, seen)
    del seen.take
    w.report("m01", 7.0)
    session(w, seen)
    assert seen.curve("m01", "fitness") == [(100, -5.0), (200, 7.0)]
    assert not doubled(seen)


def test_result_is_sent_again_if_the_run_was_continued(tmp_path: Path) -> None:
    w = one_copy(tmp_path / "a")
    w.end("finish")
    w.choose("m00", 2.5)
    seen = Recorder()
    session(w, seen)
    w.report("m00", 9.0)
    w.end("finish")
    session(w, seen)
    assert [outcome.members[0]["fitness"] for outcome in seen.outcomes] == [3.0, pytest.approx(5.0)]
    assert seen.outcomes[1].best.evaluation.return_mean == 2.5
    assert [e.member for e in seen.outcomes[1].exploits] == ["m01"]  # also those of earlier sessions
    assert seen.outcomes[1].files == [w.run / "journal.jsonl"]


@pytest.mark.parametrize(
    "text",
    [
        "{}x",
        '{"id": "a"}',
        '{"id": "a/b", "lines": 1, "finished": 0}',
        '{"id": "a", "lines": -1, "finished": 0}',
    ],
)
def test_damaged_position_is_one_line(tmp_path: Path, text: str) -> None:
    w = one_copy(tmp_path / "a")
    (w.run / "track-list.json").write_text(text)
    with pytest.raises(RunError, match=r"track-list\.json"):
        session(w, Recorder())


def test_run_that_never_started_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="the run never started"):
        RunEvents(RunDirectory(tmp_path))


# The command


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    seen = Recorder()
    monkeypatch.setattr(command, "_tracker", lambda name: seen.connect)
    monkeypatch.setattr(command, "_files", lambda run: [])
    return seen


def naps(monkeypatch: pytest.MonkeyPatch, *actions: Callable[[], object]) -> None:
    """Replace the pauses between two looks by actions."""
    left = iter(actions)
    monkeypatch.setattr(command.time, "sleep", lambda seconds: next(left, lambda: None)() if seconds else None)


def test_command_sends_what_is_new(pbtrl: Command, recorder: Recorder) -> None:
    pbtrl("train", "toy_quadratic")
    result = pbtrl("track", "last", "--to", "wandb")
    assert (result.code, result.err) == (0, "")
    where, sent = result.out.splitlines()
    assert where == "a list"
    assert sent.startswith("sent ")
    assert pbtrl("track", "last", "--to", "wandb").out == "nothing is new\n"
    assert len(recorder.curve("m00", "fitness")) == 20
    assert recorder.abouts[0].config["trainable.name"] == "quadratic"
    assert pbtrl("verify", "last").code == 0


def test_follow_ends_with_the_run(
    tmp_path: Path, pbtrl: Command, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = one_copy(Path("runs/a"))
    lock = RunLock(w.run).acquire()
    naps(monkeypatch, lambda: w.report("m00", 1.0), lambda: (w.report("m01", 2.0), w.end("finish"), lock.release()))
    assert pbtrl("track", "a", "--to", "wandb", "--follow").code == 0
    assert [step for step, _ in recorder.curve("m01", "fitness")] == [100, 200]
    assert (len(recorder.outcomes), recorder.closed) == (1, 1)


def test_follow_is_stopped_by_a_signal(pbtrl: Command, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    w = one_copy(Path("runs/a"))
    with RunLock(w.run):
        naps(monkeypatch, lambda: signal.raise_signal(signal.SIGINT))
        assert pbtrl("track", "a", "--to", "wandb", "--follow").code == 130
    assert recorder.closed == 1
    assert json.loads(Path("runs/a/track-wandb.json").read_text())["lines"] == 5


def test_run_that_is_deleted_ends_follow_with_one_line(
    pbtrl: Command, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = one_copy(Path("runs/a"))
    with RunLock(w.run):
        naps(monkeypatch, lambda: shutil.rmtree(w.run))
        ended = pbtrl("track", "a", "--to", "wandb", "--follow")
    assert (ended.code, ended.err) == (2, "runs/a was moved or deleted while it was tracked\n")


def test_full_disk_has_its_own_exit_code(pbtrl: Command, recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise DiskFullError("no space on the disk")

    one_copy(Path("runs/a"))
    monkeypatch.setattr(tracking, "write_atomically", full)
    assert pbtrl("track", "a", "--to", "wandb").code == 75
    assert recorder.events == []


def test_two_trackers_of_one_run_do_not_run_at_once(pbtrl: Command, recorder: Recorder) -> None:
    w = one_copy(Path("runs/a"))
    with RunLock(w.run, "track-mlflow.lock"):
        refused = pbtrl("track", "a", "--to", "mlflow")
        assert pbtrl("track", "a", "--to", "wandb").code == 0
    assert refused.code == 2
    assert refused.err.startswith("runs/a/track-mlflow.lock is in use by process ")


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_missing_library_names_the_extra(
    pbtrl: Command, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    one_copy(Path("runs/a"))
    load = builtins.__import__

    def without(module: str, *args: Any, **keywords: Any) -> Any:
        if module.endswith(f"{name}_tracker"):
            raise ImportError(module)
        return load(module, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    refused = pbtrl("track", "a", "--to", name)
    assert refused.code == 2
    assert refused.err == f'--to {name} needs {package}, which is not installed: pip install "pbtrl[{name}]"\n'


def test_files_are_the_report_config_and_newest_video(pbtrl: Command) -> None:
    pbtrl("train", "toy_quadratic")
    run = Path("runs/toy_quadratic")
    (run / "eval").mkdir(exist_ok=True)
    for name in ("20260101-000000-m00-000001.mp4", "20260102-000000-m00-000002.mp4"):
        (run / "eval" / name).write_bytes(b"film")
    names = [path.name for path in command._files(RunDirectory(run))]
    assert names == ["report.html", "config.resolved.yaml", "best.json", "20260102-000000-m00-000002.mp4"]
