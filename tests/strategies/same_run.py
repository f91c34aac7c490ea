"""Check that executors and stops change nothing in a synchronous run."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.command import Command
from tests.training.test_session import canonical, signalled


def outcome(run: str) -> tuple[str, dict[str, str]]:
    """Digest of the journal, and hash of the newest snapshot of each member.

    Older snapshots may stay longer or shorter: how long depends on the order of reports.
    """
    digest, weights = canonical(run)
    return digest, {Path(name).parts[-3]: sha for name, sha in sorted(weights.items())}


def check_same_run(
    pbtrl: Command, monkeypatch: pytest.MonkeyPatch, config: Sequence[str], stops: Sequence[int]
) -> None:
    """Train inline, in two workers, and with a stop at each of some reports, and compare; then re-derive decisions."""
    assert pbtrl("train", *config, "--name", "inline").code == 0
    expected = outcome("inline")
    processes = ["execution.backend=processes", "execution.workers=2"]
    assert pbtrl("train", *config, "--name", "workers", *processes).code == 0
    assert outcome("workers") == expected
    for report in stops:
        with signalled(monkeypatch, signal.SIGINT, report):
            assert pbtrl("train", *config, "--name", f"stopped{report}").code == 130
        assert pbtrl("resume", f"stopped{report}").code == 0
        assert outcome(f"stopped{report}") == expected
    for command in ("verify", "status", "lineage", "report"):
        assert pbtrl(command, "inline").code == 0
