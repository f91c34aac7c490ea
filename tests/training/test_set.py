"""`pbtrl set`: what may change while a run lives, as a line of the journal that the next decision reads."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from pbtrl import api
from pbtrl.config.adjust import adjustable, adjusted
from pbtrl.config.load import load, parse
from pbtrl.core.records import RunChanged
from pbtrl.errors import DamagedError, RunError
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.system.files import make_directory
from pbtrl.training.adjusting import set_run
from tests.command import Command, journal

TOY = """\
trainable: {name: quadratic, clamp: true}
seed: 1
population: {size: 4, mode: sync}
execution: {backend: inline}
budget: {env_steps_per_member: 60}
hparams: {h0: {prior: uniform, low: 0.2, high: 1.0}, h1: {prior: uniform, low: 0.2, high: 1.0}}
strategy: {ready: {slice_steps: 10}, exploit: {bottom: 0.5, top: 0.25}, explore: {factors: [1.2, 0.8]}}
"""
EVERYTHING = (
    "strategy.explore.factors, strategy.explore.sd, strategy.explore.probability, strategy.explore.resample_probability"
)
RUN = Path("runs/a")
DIRECTORY = RunDirectory(RUN)


class StopAt(api.Callback):
    """Stops the run after a number of reports."""

    def __init__(self, reports: int) -> None:
        self.left = reports

    def on_report(self, record: Any) -> bool | None:
        self.left -= 1
        return self.left <= 0


@pytest.fixture
def stopped(pbtrl: Command) -> Path:
    """Stopped run of four members, after two generations."""
    Path("c.yaml").write_text(TOY)
    api.train("c.yaml", name="a", callbacks=[StopAt(8)], progress="none")
    assert journal(RUN)[-1]["kind"] == "stop"
    return RUN


def assignments(run: Path, after: str) -> list[dict[str, Any]]:
    """Assignments decided after the last line of a kind."""
    lines = journal(run)
    place = max(i for i, line in enumerate(lines) if line["kind"] == after)
    return [a for line in lines[place:] if line["kind"] == "decision" for a in line["assignments"]]


def test_bounds_apply_from_the_next_decision_on(pbtrl: Command, stopped: Path) -> None:
    done = pbtrl("set", "a", "hparams.h0.low=0.0", "hparams.h0.high=0.1", "strategy.explore.factors=[0.5, 0.4]")
    assert (done.code, done.err) == (0, "")
    message = "hparams.h0.low 0.0, hparams.h0.high 0.1, strategy.explore.factors [0.5, 0.4]"
    assert done.out == f"{message}: read by the first decision after a resume\n"
    assert pbtrl("status", "a").out.splitlines()[0].startswith("a: stopped")
    assert pbtrl("resume", "a", "--progress", "none").code == 0
    explored = [a for a in assignments(RUN, "set") if a["donor"]]
    assert explored
    assert max(a["hyperparameters"]["h0"] for a in explored) <= 0.1
    before = [a for line in journal(RUN)[:12] if line["kind"] == "decision" for a in line["assignments"]]
    assert min(a["hyperparameters"]["h0"] for a in before) >= 0.2
    assert "all the same" in pbtrl("verify", "a", "--decisions").out
    for command in ("status", "lineage"):
        assert f"changed by pbtrl set: {message}" in pbtrl(command, "a").out
        assert pbtrl(command, "a", "--json").json["changes"][0]["settings"]["hparams.h0.high"] == 0.1
    assert pbtrl("report", "a").code == 0
    assert "strategy.explore.factors [0.5, 0.4]" in Path("runs/a/report.html").read_text()
    assert DIRECTORY.load()[0].bounds[""]["h0"] == [0.0, 0.1]


def test_change_survives_another_resume(pbtrl: Command, stopped: Path) -> None:
    """Of the two sessions after it, both read it; a later change wins."""
    set_run(DIRECTORY, ["hparams.h0.low=0.0", "hparams.h0.high=0.1"])
    api.resume("a", callbacks=[StopAt(4)], progress="none")
    set_run(DIRECTORY, ["hparams.h0.high=0.05"])
    api.resume("a", overrides=["budget.env_steps_per_member=100"], progress="none")
    explored = [a for a in assignments(RUN, "set") if a["donor"]]
    assert explored
    assert max(a["hyperparameters"]["h0"] for a in explored) <= 0.05
    assert "all the same" in pbtrl("verify", "a", "--decisions").out


def test_request_that_no_session_read_comes_before_a_later_one(pbtrl: Command, stopped: Path) -> None:
    """As of a run that was killed before it could read it."""
    make_directory(DIRECTORY.requests)
    old = {"items": ["strategy.explore.factors=[1.5, 0.7]", "hparams.h0.low=0.0"]}
    (DIRECTORY.requests / "1-1.json").write_text(json.dumps(old))
    (DIRECTORY.requests / "2-1.json").write_text(json.dumps({"items": ["seed=3"]}))
    done = pbtrl("set", "a", "strategy.explore.factors=[1.1, 0.9]")
    refused, written = done.out.splitlines()
    assert refused.startswith("a request was refused: 'seed' cannot change")
    assert written.startswith("strategy.explore.factors [1.1, 0.9]: read by")
    assert [line["settings"] for line in journal(RUN) if line["kind"] == "set"] == [
        {"strategy.explore.factors": [1.5, 0.7], "hparams.h0.low": 0.0}, {"strategy.explore.factors": [1.1, 0.9]},
    ]  # fmt: skip
    assert not list(DIRECTORY.requests.iterdir())
    assert pbtrl("resume", "a", "--progress", "none").code == 0
    assert "all the same" in pbtrl("verify", "a", "--decisions").out


def test_request_is_kept_if_a_later_one_is_refused(pbtrl: Command, stopped: Path) -> None:
    make_directory(DIRECTORY.requests)
    (DIRECTORY.requests / "1-1.json").write_text(json.dumps({"items": ["hparams.h0.low=0.0"]}))
    before = journal(RUN)
    assert pbtrl("set", "a", "seed=3").code == 2
    assert journal(RUN) == before
    assert len(list(DIRECTORY.requests.iterdir())) == 1
    assert pbtrl("resume", "a", "--progress", "none").code == 0
    (DIRECTORY.requests / "2-1.json").write_text(json.dumps({"items": ["hparams.h0.low=0.1"]}))
    finished = journal(RUN)
    assert "runs/a is finished: no decision would read it" in pbtrl("set", "a", "hparams.h0.low=0.1").err
    assert journal(RUN) == finished


def test_without_the_line_decisions_differ(pbtrl: Command, stopped: Path) -> None:
    """What `verify --decisions` finds if it does not read the line."""
    set_run(DIRECTORY, ["strategy.explore.factors=[0.5]"])
    api.resume("a", progress="none")
    lines = [line for line in (RUN / "journal.jsonl").read_text().splitlines() if '"kind":"set"' not in line]
    (RUN / "journal.jsonl").write_text("\n".join([*lines, ""]))
    assert pbtrl("verify", "a", "--decisions").code == 4


def test_retired_member_gets_no_assignment_and_donates_none(pbtrl: Command, stopped: Path) -> None:
    best = DIRECTORY.load()[2].best
    assert best
    assert (
        pbtrl("set", "a", f"retire={best.id}").out == f"{best.id} retired: read by the first decision after a resume\n"
    )
    assert pbtrl("resume", "a", "--progress", "none").code == 0
    later = assignments(RUN, "set")
    assert len(later) == 3 * 4
    assert best.id not in {a["member"] for a in later} | {a["donor"] for a in later}
    assert "all the same" in pbtrl("verify", "a", "--decisions").out
    assert {m["id"]: m["state"] for m in pbtrl("status", "a", "--json").json["members"]}[best.id] == "retired"
    assert pbtrl("verify", "a").code == 0


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["seed=3"], f"'seed' cannot change while a run lives. What can: {EVERYTHING}, hparams.h0.low, hparams.h0."),
        (["strategy.explore.method=none"], "'strategy.explore.method' cannot change while a run lives. What can: "),
        (["hparams.h2.low=0"], "'hparams.h2.low' cannot change while a run lives. What can: "),
        (["hparams.h0.low=2"], "override 'hparams.h0.low=2': needs low < high, not 2.0 and 1.0"),
        (["hparams.h0.low=no"], "override 'hparams.h0.low=no': must be a number, not 'no'"),
        (["strategy.explore.factors=[-1]"], "must be > 0, not -1"),
        (["hparams.h0.low"], "override 'hparams.h0.low': write it as key=value"),
        (["retire=m09"], "no member 'm09' in runs/a: there are m00, m01, m02, m03"),
        (["retire=m00,m01,m02,m03"], "one member must go on: to end the run, stop it with Ctrl-C"),
        (["retire=m00", "seed=3"], "'seed' cannot change while a run lives."),
    ],
)  # fmt: skip
def test_invalid_changes_are_one_line_and_change_nothing(
    pbtrl: Command, stopped: Path, items: list[str], message: str
) -> None:  # fmt: skip
    before = (RUN / "journal.jsonl").read_bytes()
    refused = pbtrl("set", "a", *items)
    assert (refused.code, refused.out, len(refused.err.splitlines())) == (2, "", 1)
    assert message in refused.err
    assert (RUN / "journal.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toy_halving", "'seed' cannot change while a run lives. Nothing can with the strategy asha"),
        ("toy_pb2", "'seed' cannot change while a run lives. What can: hparams."),
    ],
)
def test_other_strategies(pbtrl: Command, name: str, message: str) -> None:
    """They retire nobody on request."""
    api.train(name, name="a", callbacks=[StopAt(2)], progress="none")
    with pytest.raises(RunError, match=re.escape(message)):
        set_run(DIRECTORY, ["seed=3"])
    with pytest.raises(RunError, match="retires no members on request; pbt does"):
        set_run(DIRECTORY, ["retire=m00"])


def test_member_retires_once_and_finished_runs_do_not_change(pbtrl: Command, stopped: Path) -> None:
    assert set_run(DIRECTORY, ["retire=m01,m01"]).count("m01 retired") == 1
    with pytest.raises(RunError, match="m01 is retired already"):
        set_run(DIRECTORY, ["retire=m01"])
    api.resume("a", progress="none")
    with pytest.raises(RunError, match="runs/a is finished: no decision would read it"):
        set_run(DIRECTORY, ["retire=m02"])


class Sets(api.Callback):
    """Changes the run from a thread, after the second report; waits until the request is there."""

    def __init__(self) -> None:
        self.reports, self.said = 0, ""
        self.thread = threading.Thread(target=self._set)

    def train(self) -> None:
        """Train the toy, and wait for the answer to the request."""
        Path("c.yaml").write_text(TOY)
        api.train("c.yaml", name="a", callbacks=[self], progress="none")
        self.thread.join()

    def _set(self) -> None:
        self.said = api.load_run("a").set({"hparams.h0.low": 0.0, "hparams.h0.high": 0.1}, retire=["m03"])

    def on_report(self, record: Any) -> bool | None:
        self.reports += 1
        if self.reports == 2:
            self.thread.start()
            while not any(DIRECTORY.requests.glob("[0-9]*.json")):
                pass
        return False


def test_live_run_reads_a_request_before_its_next_decision(pbtrl: Command) -> None:
    sets = Sets()
    sets.train()
    assert sets.said == "hparams.h0.low 0.0, hparams.h0.high 0.1, m03 retired: read by the next decision"
    later = assignments(RUN, "set")
    assert "m03" not in {a["member"] for a in later}
    assert max(a["hyperparameters"]["h0"] for a in later if a["donor"]) <= 0.1
    assert not any(DIRECTORY.requests.glob("[0-9]*.json"))
    assert "all the same" in pbtrl("verify", "a", "--decisions").out
    assert pbtrl("verify", "a").code == 0


class Refuses(Sets):
    """As if another request had come first: the run drops this one without a line."""

    def _set(self) -> None:
        with pytest.raises(RunError, match="m03 retired: the run refused it; its output says why"):
            api.load_run("a").set(retire=["m03"])
        self.said = "refused"

    def on_report(self, record: Any) -> bool | None:
        super().on_report(record)
        for path in DIRECTORY.requests.glob("[0-9]*.json"):
            path.unlink()
        return False


def test_refused_request_is_no_success(pbtrl: Command) -> None:
    refuses = Refuses()
    refuses.train()
    assert refuses.said == "refused"
    assert not [line for line in journal(RUN) if line["kind"] == "set"]


def test_request_counts_once_and_impossible_ones_are_dropped(pbtrl: Command, stopped: Path) -> None:
    """After a crash between the journal's line and the removal of the request; one still being written waits."""
    DIRECTORY.requests.mkdir()
    staged = ".tmp-4.json"
    for name, items in (("1.json", ["retire=m03"]), ("2.json", ["seed=3"]), ("3.json", 3), (staged, ["retire=m02"])):
        (DIRECTORY.requests / name).write_text(json.dumps({"items": items}))
    api.resume("a", callbacks=[StopAt(2)], progress="none")
    (DIRECTORY.requests / "1.json").write_text(json.dumps({"items": ["retire=m03"]}))
    api.resume("a", progress="none")
    assert [line["request"] for line in journal(RUN) if line["kind"] == "set"] == ["1.json"]
    assert os.listdir(DIRECTORY.requests) == [staged]


def test_only_searches_that_explore_change() -> None:
    assert adjustable(load("toy_halving")) == []
    keys = adjustable(load("mixed"))
    assert "strategy.explore.probability" in keys
    assert any(key.startswith("agents.") and key.endswith(".high") for key in keys)
    assert "hparams.learning_rate.bounds" in adjustable(parse(TOY.replace("h0", "learning_rate")))


def test_journal_of_others_sets_nothing_else() -> None:
    """A journal must not reach what a module's name can be put into."""
    config = parse(TOY)
    for settings in ({"trainable.name": "os:getcwd"}, {"hparams.h0.low": "x"}, {"hparams.h0.low": 7}):
        with pytest.raises(DamagedError, match="the journal sets"):
            adjusted(config, [RunChanged(settings)])
