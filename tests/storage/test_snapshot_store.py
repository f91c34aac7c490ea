"""Snapshots are complete or absent, checked before use, and never half replaced."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pbtrl.errors import DiskFullError, SnapshotError
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.system.files import write_atomically

NAME = "m03/000012"
TENSORS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "count": np.array([7])}
FILES = ["tensors.safetensors", "state.json", "MANIFEST.json"]


@pytest.fixture
def store(tmp_path: Path, quick_disk: None) -> SnapshotStore:
    store = SnapshotStore(tmp_path / "members")
    store.commit(NAME, TENSORS, {"answer": 42})
    return store


def test_commit_and_load_round_trip(store: SnapshotStore) -> None:
    tensors, state = store.load(NAME)
    assert state == {"answer": 42}
    assert list(tensors) == sorted(TENSORS)
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype
        np.testing.assert_array_equal(tensors[name], value)
    assert store.state(NAME) == {"answer": 42}
    assert sorted(p.name for p in store.path(NAME).iterdir()) == sorted(FILES)


def test_views_and_transposed_arrays_round_trip(store: SnapshotStore) -> None:
    store.commit("m00/000000", {"w": TENSORS["w"].T, "row": TENSORS["w"][:, 1]}, {})
    tensors, _ = store.load("m00/000000")
    np.testing.assert_array_equal(tensors["w"], TENSORS["w"].T)
    np.testing.assert_array_equal(tensors["row"], [1, 4])


def test_equal_tensors_give_equal_files(store: SnapshotStore) -> None:
    store.commit("m00/000000", dict(reversed(TENSORS.items())), {})
    one, other = (store.path(n) / "tensors.safetensors" for n in (NAME, "m00/000000"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("file", FILES)
def test_flipped_bytes_are_detected(store: SnapshotStore, file: str) -> None:
    path, expected = store.path(NAME) / file, store.load(NAME)
    good = path.read_bytes()
    refused = 0
    for place in range(len(good)):
        for bit in (0x01, 0x80):
            path.write_bytes(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
            try:
                tensors, state = store.load(NAME)
            except SnapshotError:
                assert store.state(NAME) is None
                refused += 1
            else:  # a flip that changes nothing that counts, in the manifest alone
                assert file == "MANIFEST.json"
                assert state == expected[1]
                np.testing.assert_array_equal(tensors["w"], expected[0]["w"])
    assert refused == 2 * len(good) if file != "MANIFEST.json" else refused > len(good)


@pytest.mark.parametrize("file", FILES)
def test_truncated_files_are_detected(store: SnapshotStore, file: str) -> None:
    path = store.path(NAME) / file
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(SnapshotError, match=NAME):
            store.load(NAME)


@pytest.mark.parametrize("manifest", ["[]", "3", '"x"', "{}", '{"tensors.safetensors": 1}'])
def test_malformed_manifest_is_refused(store: SnapshotStore, manifest: str) -> None:
    (store.path(NAME) / "MANIFEST.json").write_text(manifest)
    with pytest.raises(SnapshotError, match=NAME):
        store.load(NAME)


@pytest.mark.parametrize("file", FILES)
def test_missing_file_is_a_missing_snapshot(store: SnapshotStore, file: str) -> None:
    (store.path(NAME) / file).unlink()
    with pytest.raises(SnapshotError, match="missing or incomplete"):
        store.load(NAME)
    assert store.state(NAME) is None


def test_unknown_snapshot_is_missing(store: SnapshotStore) -> None:
    with pytest.raises(SnapshotError, match="m09/000000"):
        store.load("m09/000000")
    assert store.state("m09/000000") is None
    assert store.names("m09") == []


def test_second_commit_replaces_the_first(store: SnapshotStore) -> None:
    store.commit(NAME, {"w": np.zeros(1)}, {"answer": 43})
    tensors, state = store.load(NAME)
    assert (list(tensors), state) == (["w"], {"answer": 43})
    assert [p.name for p in store.path(NAME).parent.iterdir()] == ["000012"]


class Crash(Exception):
    """Simulated end of the process."""


def test_crash_at_any_step_leaves_a_whole_snapshot_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that reaches the disk is a place to crash; the next attempt always succeeds."""

    def attempt(store: SnapshotStore, crash_at: int) -> int:
        calls = 0

        def counted(original: object) -> object:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if calls == crash_at:
                    raise Crash
                return original(*args, **kwargs)  # type: ignore[operator]

            return call

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", counted(lambda descriptor: None))
            patch.setattr(Path, "rename", counted(Path.rename))
            patch.setattr(Path, "mkdir", counted(Path.mkdir))
            patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
            store.commit(NAME, TENSORS, {"answer": 42})
        return calls

    steps = attempt(SnapshotStore(tmp_path / "whole"), 0)
    assert steps >= 8
    for crash_at in range(1, steps + 1):
        store = SnapshotStore(tmp_path / str(crash_at))
        with pytest.raises(Crash):
            attempt(store, crash_at)
        if store.names("m03"):
            assert store.load(NAME)[1] == {"answer": 42}
        attempt(store, 0)
        assert store.load(NAME)[1] == {"answer": 42}


def test_files_are_synced_before_and_folder_after_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name))
    monkeypatch.setattr(Path, "rename", lambda self, to: (calls.append("rename"), rename(self, to)))
    SnapshotStore(tmp_path).commit(NAME, TENSORS, {})
    assert calls == [tmp_path.name, "m03", *FILES, f".tmp-000012-{os.getpid()}", "rename", "snapshots"]


def test_names_are_sorted_and_committed_only(store: SnapshotStore) -> None:
    for generation in (2, 10):
        store.commit(f"m03/{generation:06d}", TENSORS, {})
    (store.path(NAME).parent / ".tmp-000013-1").mkdir()
    assert store.names("m03") == ["m03/000002", "m03/000010", NAME]


def test_removed_snapshot_is_gone(store: SnapshotStore) -> None:
    store.remove(NAME)
    assert store.names("m03") == []
    assert list(store.path(NAME).parent.iterdir()) == []
    store.commit(NAME, TENSORS, {})
    assert store.names("m03") == [NAME]


def test_pipe_in_a_snapshot_does_not_block(store: SnapshotStore) -> None:
    path = store.path(NAME) / "tensors.safetensors"
    path.unlink()
    os.mkfifo(path)
    manifest = store.path(NAME) / "MANIFEST.json"
    hashes = json.loads(manifest.read_text())
    hashes["tensors.safetensors"]["bytes"] = 0
    manifest.write_text(json.dumps(hashes))
    with pytest.raises(SnapshotError, match="missing or incomplete"):
        store.load(NAME)


def test_file_that_a_reader_holds_open_does_not_end_the_run(
    store: SnapshotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS it stays until then; a snapshot of the same name can come and go meanwhile."""

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    for _ in range(2):
        store.remove(NAME)
        assert store.names("m03") == []
        store.commit(NAME, TENSORS, {})
    assert len(store.leftovers()) == 2

    def failing(path: Path, ignore_errors: bool = False) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "rmtree", failing)
    with pytest.raises(OSError, match="Input/output"):
        store.remove(NAME)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EDQUOT, "no space on the disk for .*best.json: .*quota exceeded"),
        (errno.EFBIG, "no space on the disk for .*best.json: File too large"),
    ],
)
def test_limits_other_than_the_disk_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, message: str
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=message):
        write_atomically(tmp_path / "best.json", "{}")


def test_small_file_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best.json"
    write_atomically(path, '{"n": 1}')

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space on the disk"):
            write_atomically(path, '{"n": 2}')
    assert json.loads(path.read_text()) == {"n": 1}
    write_atomically(path, '{"n": 3}')
    assert json.loads(path.read_text()) == {"n": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["best.json"]
