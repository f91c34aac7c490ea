"""Copies and ancestry from journals written by hand."""

from pathlib import Path

import pytest

from pbtrl.core.records import RunResumed
from pbtrl.errors import JournalError
from pbtrl.reporting.lineage import ancestry, copies, schedule, trained_slices
from pbtrl.storage.journal import read_journal
from pbtrl.storage.parsing import parse_record
from pbtrl.storage.run_header import RunHeader, read_header
from tests.journal_writer import JournalWriter, one_copy

pytestmark = pytest.mark.usefixtures("quick_disk")


def test_copy_has_both_fitnesses_and_hyperparameters(tmp_path: Path):
    w = one_copy(tmp_path / "a")
    assert copies(read_journal(w.run / "journal.jsonl")) == [
        {
            "time": 40.0,
            "kind": "exploit",
            "env_steps": 100,
            "member": "m01",
            "donor": "m00",
            "hparams_donor": None,
            "weights": True,
            "hyperparameters_before": {"learning_rate": 0.1, "unroll_length": 5},
            "hyperparameters_after": {"learning_rate": 0.005, "unroll_length": 20},
            "fitness_before": -5.0,
            "fitness_after": 3.0,
        }
    ]


def test_donor_without_weights_gave_hyperparameters_only(tmp_path: Path):
    """The receiver's parent is its own snapshot."""
    w = one_copy(tmp_path / "a")
    w.report("m01", 0.0)
    w.decide(w.next("m01", donor="m00", parent="m01/000001"))
    assert [c["weights"] for c in copies(w.records)] == [True, False]
    assert [s.assignment for s in ancestry(trained_slices(w.records), "m01/000001")] == ["m00/000000", "m01/000001"]


def test_mutual_copies_use_the_fitness_before_the_decision(tmp_path: Path):
    w = JournalWriter(tmp_path / "a")
    w.decide(w.next("m00"), w.next("m01"))
    w.report("m00", 1.0)
    w.report("m01", 2.0)
    w.decide(w.next("m00", donor="m01"), w.next("m01", donor="m00"))
    assert [(c["fitness_before"], c["fitness_after"]) for c in copies(w.records)] == [(1.0, 2.0), (2.0, 1.0)]


def test_ancestry_walks_from_a_snapshot_to_a_root(tmp_path: Path):
    w = one_copy(tmp_path / "a")
    assert [s.assignment for s in ancestry(trained_slices(w.records), "m01/000000")] == ["m01/000000"]
    w.report("m01", 4.0, step=150)  # stopped early
    w.decide(w.next("m01", every=50))
    w.report("m01", 4.0)
    path = ancestry(trained_slices(w.records), "m01/000002")
    slices = [(s.assignment, s.start, s.stop, s.hyperparameters["learning_rate"]) for s in path]
    assert slices == [
        ("m00/000000", 0, 100, 0.01),
        ("m01/000001", 100, 150, 0.005),
        ("m01/000002", 150, 200, 0.005),
    ]
    assert [(step, h["learning_rate"]) for step, h in schedule(path)] == [(0, 0.01), (100, 0.005)]


def test_ancestry_of_a_member_without_a_report_is_empty(tmp_path: Path):
    w = JournalWriter(tmp_path / "a")
    w.decide(w.next("m00"))
    assert (
        ancestry(trained_slices(w.records), w.population.members["m00"].snapshot)
        == ancestry(trained_slices(w.records), "m00/000000")
        == []
    )
    assert schedule([]) == []


def test_header_round_trips_through_json(tmp_path: Path):
    w = one_copy(tmp_path / "a")
    assert read_header(read_journal(w.run / "journal.jsonl"))[0] == w.header
    assert w.header.population().replay(w.records).members == w.population.members
    assert RunHeader.from_line({**w.header.to_line(), "new": 1}) == w.header


def test_resume_may_extend_the_horizon(tmp_path: Path):
    w = one_copy(tmp_path / "a", horizon=200)
    assert read_header([*w.records, RunResumed(500)])[0].horizon == 500
    assert read_header([*w.records, RunResumed()])[0].horizon == 200


@pytest.mark.parametrize("lines", [[], [{"kind": "stop"}], [{"kind": "run", "schema": 1, "rule": {"x": 1}}]])
def test_journal_without_a_header_is_refused(lines):
    with pytest.raises(JournalError):
        read_header(parse_record(line, "line") for line in lines)
