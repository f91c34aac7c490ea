"""Guarantees of every strategy, executor and trainable; a new one inherits these tests by a short subclass."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pbtrl.core.dimensions import LogUniform
from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.population import Population
from pbtrl.core.search_space import SearchSpace
from pbtrl.execution import Executor
from pbtrl.execution.host import Host
from pbtrl.execution.inline import Inline
from pbtrl.storage.journal import Journal, Line, digest, dumps, read_lines
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.random_search import random_search
from pbtrl.testing.fakes import LAST
from pbtrl.training.controller import Controller
from tests.fakes import build

# Strategies


# Executors


def toy_space() -> SearchSpace:
    """Search space for tests of executors, with values that the trainables use as they are."""
    return SearchSpace({"h0": LogUniform(low=0.1, high=1.0), "h1": LogUniform(low=0.1, high=1.0)})


class ExecutorConformance:
    """Subclasses give an `executor` that trains `groups` with the builder `tests.fakes.build(config)`."""

    groups: ClassVar[Sequence[tuple[str, ...]]] = (("m00", "m01"), ("m02", "m03"))

    def meeting(self, fifo: Path) -> dict[str, Any]:
        """Settings with which `wait_for_the_middle` can tell that an endless slice stands in its middle."""
        return {"tell": str(fifo)}

    def wait_for_the_middle(self, executor: Executor, fifo: Path) -> None:
        assert fifo.read_bytes() == b"half way"

    def executor(self, members: Path, config: dict[str, Any], *, discard_on_stop: bool = False) -> Executor:
        raise NotImplementedError

    @pytest.fixture
    def start(self, tmp_path: Path) -> Any:
        """Starts executors, and ends them after the test."""
        started: list[Executor] = []

        def start(folder: str = "members", discard_on_stop: bool = False, **config: Any) -> Executor:
            started.append(self.executor(tmp_path / folder, config, discard_on_stop=discard_on_stop))
            return started[-1]

        yield start
        for executor in started:
            executor.close()

    def first(self, *, seed: int = 1) -> list[Assignment]:
        """The first slice of every member."""
        return random_search(toy_space(), slice_steps=8, horizon=8).decide(Population(4, seed))

    def test_answers_every_assignment_exactly_once(self, start: Callable[..., Executor]) -> None:
        executor, assignments = start(), self.first()
        executor.submit(assignments)
        answers = drain(executor)
        assert Counter(r.assignment for r in answers) == Counter(a.id for a in assignments)
        assert all(isinstance(r, Report) and r.step == 8 for r in answers)
        assert not executor.busy()

    def test_commits_the_snapshot_before_it_reports(self, start: Callable[..., Executor], tmp_path: Path) -> None:
        executor, store = start(), SnapshotStore(tmp_path / "members")
        executor.submit(self.first())
        while executor.busy():
            for report in executor.collect(0.1):
                tensors, state = store.load(report.assignment)
                assert tensors["steps"] == [8.0]
                assert state["report"]["assignment"] == report.assignment

    def test_journal_and_weights_equal_inline(
        self, start: Callable[..., Executor], tmp_path: Path, quick_disk: None
    ) -> None:
        here = Inline(Host.local(build('{"toy": true}'), tmp_path / "inline", [("m00", "m01", "m02", "m03")]))
        expected = run_toy(here, tmp_path / "inline.jsonl")
        result = run_toy(start(toy=True), tmp_path / "found.jsonl")
        assert digest(result) == digest(expected)
        assert any(a["donor"] for line in result if line["kind"] == "decision" for a in line["assignments"])
        assert weights(tmp_path / "members") == weights(tmp_path / "inline")
        assert len(weights(tmp_path / "inline")) == 4 * 5

    def test_failing_slice_does_not_affect_others(self, start: Callable[..., Executor], tmp_path: Path) -> None:
        executor = start(**{"raise": ["m01/000000"]})
        executor.submit(self.first())
        answers = {r.assignment: r for r in drain(executor)}
        failed = {k: r for k, r in answers.items() if isinstance(r, Failure)}
        assert set(failed) == {"m00/000000", "m01/000000"}
        assert all("ValueError: scripted" in r.error and not r.fatal for r in failed.values())
        assert "in advance" in (tmp_path / "members/m01/log.txt").read_text()

        executor.submit([a for a in self.first() if a.member == "m00"])
        executor.submit([a for a in self.first() if a.member == "m01"])
        answers = {r.assignment: r for r in drain(executor)}
        assert isinstance(answers["m00/000000"], Report)
        assert isinstance(answers["m01/000000"], Failure)

    def test_missing_parent_is_named(self, start: Callable[..., Executor]) -> None:
        executor, (a, *_) = start(), self.first()
        executor.submit([Assignment(**{**a.to_json(), "parent": "m03/000009"})])
        (failure,) = drain(executor)
        assert isinstance(failure, Failure)
        assert failure.snapshot == "m03/000009"
        assert "m03/000009" in failure.error

    @pytest.mark.parametrize("discard", [False, True])
    def test_stop_gives_partial_reports_or_none(
        self, start: Callable[..., Executor], tmp_path: Path, discard: bool
    ) -> None:
        os.mkfifo(tmp_path / "fifo")
        executor = start(discard_on_stop=discard, endless=True, **self.meeting(tmp_path / "fifo"))
        executor.submit([a for a in self.first() if a.member in self.groups[0]])
        self.wait_for_the_middle(executor, tmp_path / "fifo")
        executor.stop()
        answers, store = drain(executor), SnapshotStore(tmp_path / "members")
        assert [(r.assignment, getattr(r, "step", None)) for r in answers] == (
            [] if discard else [("m00/000000", 4), ("m01/000000", 4)]
        )
        for report in answers:
            assert store.load(report.assignment)[0]["steps"] == [4.0]
        assert len([*store.names("m00"), *store.names("m01")]) == len(answers)

    def test_stop_before_the_first_step_reports_nothing(self, start: Callable[..., Executor]) -> None:
        executor = start()
        executor.stop()
        assert drain(executor) == []

    def test_retry_reads_report_of_committed_snapshot(self, start: Callable[..., Executor]) -> None:
        first, again = start(), start(**{"raise": [a.id for a in self.first()]})
        first.submit(self.first())
        expected = {r.assignment: dumps(r.to_json()) for r in drain(first)}
        again.submit(self.first())
        assert {r.assignment: dumps(r.to_json()) for r in drain(again)} == expected


def drain(executor: Executor) -> list[Report | Failure]:
    """All answers until no assignment is pending."""
    answers: list[Report | Failure] = []
    while executor.busy():
        answers += executor.collect(0.1)
    return answers


def run_toy(executor: Executor, path: Path) -> list[Line]:
    """A short synchronous PBT run of the toy quadratic."""
    strategy = PBT(space=toy_space(), slice_steps=5, horizon=25, synchronous=True)
    journal = Journal(path)
    assert Controller(Population(4, 1, LAST), strategy, executor, journal).run() == "budget"
    journal.close()
    return read_lines(path)


def weights(members: Path) -> dict[str, str]:
    """SHA-256 of every committed tensor file."""
    files = members.glob("*/snapshots/[0-9]*/tensors.safetensors")
    return {f"{p.parts[-4]}/{p.parts[-2]}": hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


# Trainables
