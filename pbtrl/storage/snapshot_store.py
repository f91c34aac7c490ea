"""Snapshots: all learned state of a member, as a tensor file, a small JSON file and a manifest.

A snapshot `m03/000012` is `members/m03/snapshots/000012/{tensors.safetensors,state.json,MANIFEST.json}`. It is written
to a temporary directory, synced and renamed, so it exists completely or not at all. The manifest's SHA-256 of each file
is checked before every use, because a flipped byte in a tensor file would load without an error. `pack` and `unpack`
convert between tensors and the bytes of these files, which also travel between machines.
"""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
from typing_extensions import override

from pbtrl.core.naming import RUN_NAME
from pbtrl.core.tensors import Tensors
from pbtrl.errors import DamagedError, DiskFullError, NewerError, SnapshotError
from pbtrl.storage.json_files import MAX_BYTES, SCHEMA, open_plain_file, parse_object
from pbtrl.system.crash_points import crash_point
from pbtrl.system.files import (
    is_disk_error,
    make_directory,
    reason,
    retry_attempts,
    sync_directory,
    translate_disk_errors,
    write_durably,
)
from pbtrl.system.strict_json import to_json

HASHED, MANIFEST = ("tensors.safetensors", "state.json"), "MANIFEST.json"
FILES = (*HASHED, MANIFEST)
Files = Mapping[str, bytes]  # content of a snapshot's files, by name
SNAPSHOT_NAME = re.compile(RUN_NAME.pattern + "/[0-9]{1,12}")


class Store(Protocol):
    """Snapshots as a worker sees them: a local directory, or an actor on the controller's node."""

    def load(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        """Load the tensors and the state of a snapshot, verified; SnapshotError if that fails."""

    def state(self, name: str) -> dict[str, Any] | None:
        """Load the verified state of a snapshot; None if there is no intact one."""

    def commit(self, name: str, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Write a snapshot, durably and as a whole."""

    def quarantine(self, name: str) -> None:
        """Move a damaged snapshot out of the way."""


class SnapshotStore(Store):
    """Snapshots of one run in a local directory."""

    def __init__(self, members: Path) -> None:
        self.members = members

    def path(self, name: str) -> Path:
        """Path of a snapshot.

        Raises:
            SnapshotError: the name is invalid; an untrusted journal may contain anything.
        """
        if not SNAPSHOT_NAME.fullmatch(name):
            raise SnapshotError(f"{name!r} is not a snapshot name")
        member, generation = name.split("/")
        return self.members / member / "snapshots" / generation

    @override
    def commit(self, name: str, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Write a snapshot atomically and durably; replaces one of the same name.

        Raises:
            DiskFullError: no space is left after several attempts; nothing of the snapshot remains.
        """
        self.write(name, pack(name, tensors, state))

    def write(self, name: str, files: Files) -> None:
        """Write the files of `pack`, as `commit` does."""
        final = self.path(name)
        for last in retry_attempts():
            try:
                with translate_disk_errors(final, sum(map(len, files.values()))):
                    self._commit(final, files)
                break
            except DiskFullError:
                if last:
                    raise

    def _commit(self, final: Path, files: Files) -> None:
        if not (run := self.members.parent).is_dir():  # moved or deleted: do not recreate it
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(run))
        staged = final.with_name(f".tmp-{final.name}-{os.getpid()}")
        shutil.rmtree(staged, ignore_errors=True)
        try:
            for folder in (self.members, final.parent.parent, final.parent):
                make_directory(folder)
            staged.mkdir()
            self._stage(staged, files)
        except OSError:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        shutil.rmtree(final, ignore_errors=True)
        staged.rename(final)
        crash_point("snapshot.renamed")
        sync_directory(final.parent)
        crash_point("snapshot.committed")

    def _stage(self, staged: Path, files: Files) -> None:
        crash_point("snapshot.staged")
        for file, data in files.items():
            write_durably(staged / file, data)
            crash_point(f"snapshot.wrote {file}")
        sync_directory(staged)
        crash_point("snapshot.synced")

    @override
    def load(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        """Load and verify a snapshot; returns its tensors, sorted by name, and its state.

        Raises:
            SnapshotError: it is missing, a file does not match the manifest, or a file has the wrong content.
            DiskFullError: it exists, but cannot be read.
        """
        return unpack(name, self.read(name))

    @override
    def state(self, name: str) -> dict[str, Any] | None:
        """Verified state of a snapshot; None if it is missing or damaged."""
        try:
            return _object(name, self.read(name))
        except SnapshotError:
            return None

    def is_at(self, name: str, step: int) -> bool:
        """Return whether there is an intact snapshot of this name whose report is of this step."""
        state = self.state(name)
        report = state.get("report") if state else None
        return isinstance(report, dict) and report.get("step") == step

    def names(self, member: str) -> list[str]:
        """Names of a member's committed snapshots, oldest first."""
        folder = self.members / member / "snapshots"
        entries = folder.iterdir() if folder.exists() else []
        return sorted(name for p in entries if SNAPSHOT_NAME.fullmatch(name := f"{member}/{p.name}"))

    def remove(self, name: str) -> None:
        """Delete a snapshot. It is renamed first, so that no reader sees a half-deleted one."""
        path = self.path(name)
        gone = path.with_name(f".gone-{path.name}-{time.time_ns()}")
        path.rename(gone)
        crash_point("snapshot.hidden")
        try:
            shutil.rmtree(gone)
        except OSError as error:  # on NFS a reader's files stay until it closes them; the next session deletes them
            if is_disk_error(error):
                raise
        crash_point("snapshot.removed")

    @override
    def quarantine(self, name: str) -> None:
        """Move a damaged snapshot to the member's `quarantine/`."""
        path = self.path(name)
        aside = path.parent.parent / "quarantine"
        with (
            translate_disk_errors(aside),
            contextlib.suppress(FileNotFoundError),
        ):  # it is missing, or another process moved it
            aside.mkdir(exist_ok=True)
            path.rename(aside / f"{path.name}-{time.time_ns()}")

    def leftovers(self) -> list[Path]:
        """Temporary directories that killed processes left behind; none of them is needed."""
        return sorted(p for kind in (".tmp-*", ".gone-*") for p in self.members.glob(f"*/snapshots/{kind}"))

    def read(self, name: str) -> dict[str, bytes]:
        """Read the files of a snapshot and verify them; DiskFullError if they exist, but cannot be read."""
        path = self.path(name)
        own = self.members.resolve() / path.relative_to(self.members)
        if any((path / file).resolve() != own / file for file in FILES):
            raise SnapshotError(f"snapshot {name} is a symbolic link, or inside one ({path})")
        try:
            manifest = _bytes(path / MANIFEST, MAX_BYTES + 1)
            hashes = _hashes(name, manifest, path / MANIFEST)
            return {MANIFEST: manifest, **{file: _read(name, path / file, **hashes[file]) for file in HASHED}}
        except (NewerError, SnapshotError):
            raise
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, DamagedError, KeyError, TypeError) as error:
            raise SnapshotError(f"snapshot {name} is missing or incomplete ({path})") from error
        except OSError as error:  # perhaps it can be read later, so it is not damaged
            raise DiskFullError(f"cannot read snapshot {name}: {reason(error)} ({path})") from error


def pack(name: str, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> dict[str, bytes]:
    """Convert a snapshot to the bytes of its files, with their SHA-256 in the manifest."""
    arrays = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    files = {"tensors.safetensors": safetensors.numpy.save(arrays), "state.json": to_json(state).encode()}
    hashes = {k: {"bytes": len(v), "sha256": hashlib.sha256(v).hexdigest()} for k, v in files.items()}
    return {**files, MANIFEST: to_json({"schema": SCHEMA, "snapshot": name, **hashes}).encode()}


def unpack(name: str, files: Files) -> tuple[Tensors, dict[str, Any]]:
    """Convert the verified files of a snapshot to its tensors, sorted by name, and its state.

    Raises:
        SnapshotError: a file has the wrong content.
    """
    try:
        tensors = safetensors.numpy.load(files["tensors.safetensors"])  # its order differs between processes
    except Exception as error:
        raise SnapshotError(f"snapshot {name}: tensors.safetensors holds no tensors ({error})") from error
    return {key: tensors[key] for key in sorted(tensors)}, _object(name, files)


def check_files(name: str, files: Files) -> None:
    """Compare files that came from another machine with their manifest.

    Raises:
        SnapshotError: a file is missing, superfluous or damaged, or they belong to another snapshot.
    """
    try:
        hashes = _hashes(name, files[MANIFEST], MANIFEST)
        intact = {f: hashes[f]["sha256"] == hashlib.sha256(files[f]).hexdigest() for f in HASHED}
    except (NewerError, SnapshotError):
        raise
    except (DamagedError, KeyError, TypeError) as error:
        raise SnapshotError(f"snapshot {name} arrived incomplete") from error
    if len(files) != len(FILES) or not all(intact.values()):
        damaged = [file for file in HASHED if not intact[file]] or sorted(files.keys() - set(FILES))
        raise SnapshotError(f"snapshot {name}: {', '.join(damaged)} was damaged on its way")


def _hashes(name: str, manifest: bytes, where: object) -> dict[str, Any]:
    """Parse a manifest, which errors call `where`, and check that it belongs to this snapshot."""
    content = parse_object(manifest, where)
    if (other := content.get("snapshot", name)) != name:
        raise SnapshotError(f"snapshot {name} holds {other!r} instead")
    return content


def _object(name: str, files: Files) -> dict[str, Any]:
    try:
        return parse_object(files["state.json"], "state.json")
    except NewerError:
        raise
    except DamagedError as error:
        raise SnapshotError(f"snapshot {name}: {error}") from error


def _read(name: str, path: Path, *, bytes: int, sha256: str) -> bytes:
    """Read a file and compare it with its manifest; a file of another size is not read at all."""
    if path.stat().st_size == bytes and hashlib.sha256(data := _bytes(path)).hexdigest() == sha256:
        return data
    raise SnapshotError(f"snapshot {name}: {path.name} is damaged ({path.parent})")


def _bytes(path: Path, most: int = -1) -> bytes:
    with open_plain_file(path) as file:
        return file.read(most)
