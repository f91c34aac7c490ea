"""Names of the files in a run directory, which earlier runs and other programs have, and what reading them costs."""

import subprocess
import sys
from pathlib import Path

import pytest

from pbtrl.storage.run_directory import RunDirectory

RUN = RunDirectory(Path("runs/pong"))
TOP = {
    "info_file": "run.json",
    "config_file": "config.yaml",
    "resolved_config": "config.resolved.yaml",
    "journal_path": "journal.jsonl",
    "lock_file": "LOCK",
    "best_file": "best.json",
    "members": "members",
    "tensorboard": "tb",
    "evaluations": "eval",
    "requests": "requests",
    "ray_log": "ray.log",
    "report_file": "report.html",
    "plots": "plots",
    "exports": "export",
}


@pytest.mark.parametrize(("attribute", "name"), TOP.items())
def test_names_of_files(attribute: str, name: str):
    assert getattr(RUN, attribute) == Path("runs/pong", name)


def test_files_of_a_member_and_of_a_tracker():
    assert RUN.log("m03") == Path("runs/pong/members/m03/log.txt")
    assert RUN.log() == Path("runs/pong/log.txt")
    assert RUN.metrics("m03") == Path("runs/pong/members/m03/metrics.jsonl")
    assert RUN.snapshots.path("m03/000012") == Path("runs/pong/members/m03/snapshots/000012")
    assert RUN.tracking_file("wandb") == Path("runs/pong/track-wandb.json")


def test_text_and_order_are_those_of_the_path():
    assert (f"{RUN}", RUN.name, RUN.relative(RUN.log("m03"))) == ("runs/pong", "pong", "members/m03/log.txt")
    assert sorted([RUN, RunDirectory(Path("runs/a"))])[1] == RUN


def test_finding_a_run_loads_no_numpy():
    """Completion answers between two keys."""
    code = "import sys, pbtrl.storage.run_lookup; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_run_that_never_began_may_leave_any_file_of_training():
    names = {"run.json", "config.yaml", "config.resolved.yaml", "journal.jsonl", "LOCK", "best.json", "log.txt"}
    assert {path.name for path in RUN.entries} == names | {"members", "tb", "eval"}
