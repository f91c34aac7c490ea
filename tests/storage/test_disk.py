"""A full disk ends a run so that it can be resumed, and leaves nothing half-written."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import time
from collections import namedtuple
from pathlib import Path

import pytest

from pbtrl.errors import DiskFullError, RunError
from pbtrl.storage import json_files, snapshot_store
from pbtrl.storage.journal import Journal, digest
from pbtrl.storage.run_lock import RunLock
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.system import files
from tests.command import Command, contents, journal, kinds, weights


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PAUSES", (0.0,))


def fill(monkeypatch: pytest.MonkeyPatch, after: int, room_again: int | None = None) -> None:
    """Fill the disk after a number of written files; with `room_again` it has space again after that many attempts."""
    real, written = files.write_durably, [0]

    def write(path: Path, data: bytes) -> None:
        written[0] += 1
        if written[0] > after and (room_again is None or written[0] <= after + room_again):
            real(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    for module in (files, snapshot_store):
        monkeypatch.setattr(module, "write_durably", write)


# Snapshots take three files each; before the first come run.json and the two configs.
@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 5, 6, 12, 20, 30, 40])
def test_full_disk_exits_with_75_and_resumes_to_the_same_end(pbtrl: Command, monkeypatch, after: int):
    assert pbtrl("train", "cart.yaml", "--name", "golden").code == 0
    with monkeypatch.context() as inside:
        fill(inside, after)
        full = pbtrl("train", "cart.yaml", "--name", "a")
    assert full.code == 75
    assert "no space on the disk for runs/a/" in full.err
    run = Path("runs/a")
    assert not list(run.rglob(".tmp-*"))
    if after > 2:
        assert full.err.splitlines()[-1].endswith("; make room or mend the disk, then: pbtrl resume a")
        assert pbtrl("verify", "a").out.startswith("runs/a: clean")
    assert pbtrl("train", "cart.yaml", "--name", "a", "--if-exists", "resume").code == 0
    golden = Path("runs/golden")
    assert (digest(journal(run)), weights(run)) == (digest(journal(golden)), weights(golden))
    assert "failure" not in kinds(run)


def test_temporarily_full_disk_changes_nothing(pbtrl: Command, monkeypatch):
    fill(monkeypatch, 8, room_again=1)
    assert pbtrl("train", "cart.yaml", "--name", "a").code == 0
    assert "failure" not in kinds(Path("runs/a"))


@pytest.mark.cold_workers
def test_full_disk_in_a_worker_exits_with_75(pbtrl: Command, tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))  # room for small files, but for no snapshot
    try:
        full = pbtrl("train", "cart.yaml", "--name", "a", "execution={backend: processes, workers: 1}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert full.code == 75
    assert "bytes are needed" in full.err
    assert pbtrl("resume", "a").code == 0


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_staged_file_of_a_stranger_is_replaced(tmp_path: Path, kind: str):
    (tmp_path / "target").write_text("mine")
    staged = tmp_path / ".tmp-a.json"
    staged.symlink_to("target") if kind == "link" else os.mkfifo(staged)
    files.write_atomically(tmp_path / "a.json", "{}")
    assert (tmp_path / "target").read_text() == "mine"
    assert (tmp_path / "a.json").read_text() == "{}"
    assert not (tmp_path / "a.json").is_symlink()


def test_partial_journal_line_is_removed(tmp_path: Path):
    lines = Journal(tmp_path / "journal.jsonl")
    lines.append({"kind": "stop", "reason": "short"})
    before = (tmp_path / "journal.jsonl").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(DiskFullError, match=r"journal\.jsonl: File too large, 2\d\d bytes are needed"):
            lines.append({"kind": "stop", "reason": "x" * 200})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "journal.jsonl").read_bytes() == before
    lines.append({"kind": "stop", "reason": "again"})
    lines.close()
    assert (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == 2


def test_too_little_free_space_stops_a_run_before_start(pbtrl: Command, monkeypatch):
    usage = namedtuple("usage", "total used free")
    assert pbtrl("train", "cart.yaml", "--name", "a").code == 0
    size = len(next(Path("runs/a").glob("members/*/snapshots/*/tensors.safetensors")).read_bytes())
    before = contents(Path("runs/a"))
    for command, each, message in (
        (["train", "cart.yaml", "--name", "b"], 2, "2 snapshots of each of 4 members"),
        (["train", "cart.yaml", "--name", "a", "--overwrite"], 2, "2 snapshots"),
        (["resume", "a", "budget.env_steps_per_member=960"], 1, "1 snapshot of each of 4 members"),
    ):
        with monkeypatch.context() as inside:
            inside.setattr(shutil, "disk_usage", lambda path, free=int(0.8 * each * 4 * size): usage(10**12, 0, free))
            refused = pbtrl(*command)
        assert (refused.code, refused.out) == (75, "")
        assert re.match(r"no space on the disk for runs/[ab]: [\d,]+ bytes are needed for ", refused.err)
        assert message in refused.err
        assert len(refused.err.splitlines()) == 1
        assert not Path("runs/b").exists()
        assert contents(Path("runs/a")) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, int(1.1 * 8 * size)))
    assert pbtrl("train", "cart.yaml", "--name", "b").code == 0


def test_slow_fsync_changes_nothing(pbtrl: Command, monkeypatch):
    """A run waits for many calls of fsync: for its journal, and for every file of a snapshot."""
    command = ["train", "cart.yaml", "population.size=2"]
    assert pbtrl(*command, "--name", "quick").code == 0
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.05))
    assert pbtrl(*command, "--name", "slow").code == 0
    assert pbtrl("verify", "slow", "--digest").out == pbtrl("verify", "quick", "--digest").out
    assert weights(Path("runs/slow")) == weights(Path("runs/quick"))
    assert "failure" not in kinds(Path("runs/slow"))


def test_other_errors_are_not_translated(tmp_path: Path):
    store = SnapshotStore(tmp_path / "members")
    (tmp_path / "members").write_text("")
    with pytest.raises(OSError, match="Not a directory") as caught:
        store.commit("m00/000000", {}, {})
    assert not isinstance(caught.value, DiskFullError)
    assert os.listdir(tmp_path) == ["members"]


def test_read_only_disk_is_named_although_nothing_can_be_removed(tmp_path: Path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "write_durably", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    with pytest.raises(DiskFullError, match=r"cannot write .*a\.json: Read-only file system"):
        files.write_atomically(tmp_path / "a.json", "{}")


def test_failing_disk_is_not_blamed_on_a_member(pbtrl: Command, monkeypatch):
    """It ends the run. The journal has only what is safely on the disk."""
    assert pbtrl("train", "cart.yaml", "--name", "golden").code == 0
    real = os.fsync
    for after, kind in ((12, errno.EIO), (14, errno.EROFS), (16, errno.ESTALE), (30, errno.EIO)):
        left = [after]

        def fails(descriptor: int, left: list[int] = left, kind: int = kind) -> None:
            left[0] -= 1
            if left[0] <= 0:
                raise OSError(kind, os.strerror(kind))
            real(descriptor)

        with monkeypatch.context() as inside:
            inside.setattr(os, "fsync", fails)
            result = pbtrl("train", "cart.yaml", "--name", "a", "--if-exists", "resume")
        assert result.code == 75
        assert "Traceback" not in result.err
        assert os.strerror(kind) in result.err
        assert "failure" not in kinds(Path("runs/a"))
    assert pbtrl("resume", "a").code == 0
    assert digest(journal(Path("runs/a"))) == digest(journal(Path("runs/golden")))


def test_snapshots_that_cannot_be_read_for_a_while_are_kept(pbtrl: Command, monkeypatch):
    assert pbtrl("train", "cart.yaml", "--name", "a").code == 0
    before, real = contents(Path("runs/a/members")), json_files._open_nonblocking

    def fails(path: str, flags: int) -> int:
        if path.endswith(("tensors.safetensors", "MANIFEST.json")):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return real(path, flags)

    with monkeypatch.context() as inside:
        inside.setattr(json_files, "_open_nonblocking", fails)
        result = pbtrl("resume", "a", "budget.env_steps_per_member=960")
    assert (result.code, "Traceback" in result.err) == (75, False)
    assert "cannot read snapshot m00/000002: Input/output error" in result.err
    assert contents(Path("runs/a/members")) == before
    assert pbtrl("resume", "a").code == 0


def test_lock_works_without_text_on_a_full_disk(tmp_path: Path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with RunLock(tmp_path), pytest.raises(RunError, match="is in use"):
        RunLock(tmp_path).acquire()
