"""Whole runs of the shipped toys with every strategy: equal journals on all executors, and after a kill."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pbtrl.storage.journal import digest
from tests.command import Command, ForkServer, journal

TOYS = {
    "pbt": ("toy_deceptive", "strategy.name=pbt", "population.size=6", "budget.env_steps_per_member=300"),
    "fire": ("toy_deceptive", "population.size=11", "budget.env_steps_per_member=400", "hparams.learning_rate.low=0.1"),
}
"""Config and overrides by strategy; seconds each."""


@pytest.mark.parametrize("name", TOYS)
def test_journal_is_the_same_on_every_executor(pbtrl: Command, name: str) -> None:
    assert pbtrl("train", *TOYS[name], "--name", "inline").code == 0
    workers = ("execution.backend=processes", "execution.workers=2")
    assert pbtrl("train", *TOYS[name], *workers, "--name", "processes").code == 0
    assert digest(journal(Path("runs/inline"))) == digest(journal(Path("runs/processes")))


@pytest.mark.parametrize("point", ["journal.wrote decision:3", "snapshot.renamed:9"])
@pytest.mark.parametrize("name", TOYS)
def test_killed_run_resumes_to_the_same_journal(
    pbtrl: Command, fork_server: ForkServer, tmp_path: Path, name: str, point: str
) -> None:
    assert pbtrl("train", *TOYS[name], "--name", "whole").code == 0
    assert fork_server(tmp_path, "train", *TOYS[name], "--name", "a", crash=point)["code"] == -signal.SIGKILL
    assert fork_server(tmp_path, "resume", "a")["code"] == 0
    assert digest(journal(Path("runs/a"))) == digest(journal(Path("runs/whole")))
    assert pbtrl("verify", "a").code == 0
