"""Bugs that PBT on Ray Tune has had, by the number of its issue, do not happen in a run with copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pbtrl.core.population import Population
from pbtrl.core.stopping import StopCriteria
from pbtrl.execution.host import Host
from pbtrl.execution.inline import Inline
from pbtrl.storage.journal import Journal, Line, read_lines
from pbtrl.storage.retention import Retention
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.strategies.pbt import PBT
from pbtrl.testing.fakes import LAST
from pbtrl.training.controller import Controller
from tests.conformance import toy_space
from tests.fakes import build

MEMBERS = ["m00", "m01", "m02", "m03"]


def train(folder: Path, config: str, *, synchronous: bool) -> list[Line]:
    """Train in as little space as possible."""
    strategy = PBT(space=toy_space(), slice_steps=4, horizon=40, synchronous=synchronous)
    population, journal = Population(4, 1, LAST), Journal(folder / "journal.jsonl")
    executor = Inline(Host.local(build(config), folder / "members", [(m,) for m in MEMBERS]))
    retention = Retention(SnapshotStore(folder / "members"), population, keep_last=1)
    limits = StopCriteria(max_attempts=2)
    assert Controller(population, strategy, executor, journal, limits, [retention]).run() == "budget"
    executor.close()
    journal.close()
    return read_lines(folder / "journal.jsonl")


@pytest.fixture(params=[True, False], ids=["sync", "async"])
def lines(request: Any, tmp_path: Path, quick_disk: None) -> list[Line]:
    return train(tmp_path, '{"toy": true}', synchronous=request.param)


def copies(lines: list[Line]) -> list[tuple[Line, dict[str, Line]]]:
    """Every assignment with a donor, and the last report of each member before it."""
    result, newest = [], dict[str, Line]()
    for line in lines:
        if line["kind"] == "report":
            newest[line["member"]] = line
        elif line["kind"] == "decision":
            result += [(a, dict(newest)) for a in line["assignments"] if a["donor"]]
    assert result
    return result


def test_27170_and_28509_a_donor_has_a_snapshot_and_gives_its_newest(lines: list[Line]) -> None:
    for a, newest in copies(lines):
        assert a["parent"] == newest[a["donor"]]["assignment"]


def test_62173_restored_snapshot_keeps_explored_values(lines: list[Line]) -> None:
    used = {line["assignment"]: line["hyperparameters"] for line in lines if line["kind"] == "report"}
    explored = [(a, newest) for a, newest in copies(lines) if a["id"] in used]
    assert all(used[a["id"]] == pytest.approx(a["hyperparameters"]) for a, _ in explored)
    assert any(used[a["id"]] != newest[a["donor"]]["hyperparameters"] for a, newest in explored)


def test_9036_no_snapshot_is_deleted_that_somebody_needs(lines: list[Line]) -> None:
    assert not [line for line in lines if line["kind"] in ("failure", "void")]


def test_8102_a_snapshot_belongs_to_its_report(lines: list[Line], tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "members")
    names = [name for member in MEMBERS for name in store.names(member)]
    assert len(names) >= len(MEMBERS)
    for name in names:
        (line,) = (line for line in lines if line["kind"] == "report" and line["assignment"] == name)
        report = store.load(name)[1]["report"]
        assert {k: report[k] for k in ("step", "returns")} == {k: line[k] for k in ("step", "returns")}


def test_12122_and_23424_a_dead_member_does_not_hold_up_the_others(tmp_path: Path, quick_disk: None) -> None:
    lines = train(tmp_path, '{"raise": ["m01/000002", "m02/000000"]}', synchronous=True)
    steps = {line["member"]: line["step"] for line in lines if line["kind"] == "report"}
    assert steps["m00"] == steps["m03"] == 40
    assert {line["member"] for line in lines if line.get("given_up")} == {"m01", "m02"}
