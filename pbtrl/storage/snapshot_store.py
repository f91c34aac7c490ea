"""Snapshots: everything of a member that learned, as one tensor file, a small JSON and a manifest.

A snapshot `m03/000012` is `members/m03/snapshots/000012/{tensors.safetensors,state.json,MANIFEST.json}`. It
is staged beside its place, synced, and renamed into it, so it is there whole or not at all; the manifest's
SHA-256 of each file is checked before anything is used, because a flipped byte in a tensor file loads without
a word.
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
from typing import Any

import numpy as np
import safetensors.numpy

from pbtrl.core.tensors import Tensors
from pbtrl.errors import DamagedError, DiskFullError, NewerError, SnapshotError
from pbtrl.storage.json_files import SCHEMA, parse_object, read_json
from pbtrl.system.crash_points import crash_point
from pbtrl.system.files import (
    make_directory,
    retry_attempts,
    sync_directory,
    translate_disk_errors,
    write_durably,
)
from pbtrl.system.strict_json import to_json

FILES = ("tensors.safetensors", "state.json", "MANIFEST.json")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}/[0-9]{1,12}")


class SnapshotStore:
    """Snapshots of one run in a local directory."""

    def __init__(self, members: Path) -> None:
        self.members = members

    def path(self, name: str) -> Path:
        """Where a snapshot lies.

        Raises:
            SnapshotError: that is no name of a snapshot; a journal from a stranger may hold anything.
        """
        if not NAME.fullmatch(name):
            raise SnapshotError(f"{name!r} is no name of a snapshot")
        member, generation = name.split("/")
        return self.members / member / "snapshots" / generation

    def commit(self, name: str, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Write a snapshot atomically and durably; one of the same name is replaced.

        Raises:
            DiskFullError: there is no room, also after a while; nothing is left of it.
        """
        arrays = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
        files = {
            "tensors.safetensors": safetensors.numpy.save(arrays),
            "state.json": to_json(state).encode(),
        }
        hashes = {k: {"bytes": len(v), "sha256": hashlib.sha256(v).hexdigest()} for k, v in files.items()}
        manifest = {"schema": SCHEMA, "snapshot": name, **hashes}
        files["MANIFEST.json"] = to_json(manifest).encode()
        final = self.path(name)
        for last in retry_attempts():
            try:
                with translate_disk_errors(final, sum(map(len, files.values()))):
                    self._commit(final, files)
                break
            except DiskFullError:
                if last:
                    raise

    def _commit(self, final: Path, files: Mapping[str, bytes]) -> None:
        if not (run := self.members.parent).is_dir():  # moved or deleted: it is not begun anew
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

    def _stage(self, staged: Path, files: Mapping[str, bytes]) -> None:
        crash_point("snapshot.staged")
        for file, data in files.items():
            write_durably(staged / file, data)
            crash_point(f"snapshot.wrote {file}")
        sync_directory(staged)
        crash_point("snapshot.synced")

    def load(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        """Tensors (by name, in order) and state of a snapshot, verified.

        Raises:
            SnapshotError: it is not there, or a file does not match the manifest, or is not what it should be.
        """
        files = self._verified(name)
        try:
            tensors = safetensors.numpy.load(files["tensors.safetensors"])  # in another order in every process
        except Exception as error:
            raise SnapshotError(f"snapshot {name}: tensors.safetensors holds no tensors ({error})") from error
        return {key: tensors[key] for key in sorted(tensors)}, _object(name, files)

    def state(self, name: str) -> dict[str, Any] | None:
        """The verified state of a snapshot, or None where there is no whole one."""
        try:
            return _object(name, self._verified(name))
        except SnapshotError:
            return None

    def is_at(self, name: str, step: int) -> bool:
        """Whether there is a whole snapshot of this name whose report is of this step of the member's."""
        state = self.state(name)
        report = state.get("report") if state else None
        return isinstance(report, dict) and report.get("step") == step

    def names(self, member: str) -> list[str]:
        """Committed snapshots of a member, oldest first."""
        folder = self.members / member / "snapshots"
        found = folder.iterdir() if folder.exists() else []
        return sorted(name for p in found if NAME.fullmatch(name := f"{member}/{p.name}"))

    def remove(self, name: str) -> None:
        """Delete a snapshot: out of sight first, so that no reader sees half of one."""
        path = self.path(name)
        gone = path.with_name(f".gone-{path.name}")
        path.rename(gone)
        crash_point("snapshot.hidden")
        shutil.rmtree(gone)
        crash_point("snapshot.removed")

    def quarantine(self, name: str) -> None:
        """Put what is left of a damaged snapshot aside, where nothing takes it for one."""
        path = self.path(name)
        aside = path.parent.parent / "quarantine"
        with (
            translate_disk_errors(aside),
            contextlib.suppress(FileNotFoundError),
        ):  # it is missing, or somebody else was faster
            aside.mkdir(exist_ok=True)
            path.rename(aside / f"{path.name}-{time.time_ns()}")

    def leftovers(self) -> list[Path]:
        """What killed writers and removers left behind: nothing that counts."""
        return sorted(p for kind in (".tmp-*", ".gone-*") for p in self.members.glob(f"*/snapshots/{kind}"))

    def _verified(self, name: str) -> dict[str, bytes]:
        path = self.path(name)
        own = self.members.resolve() / path.relative_to(self.members)
        if any((path / file).resolve() != own / file for file in FILES):
            raise SnapshotError(f"snapshot {name} is a link, or behind one ({path})")
        try:
            manifest = read_json(path / "MANIFEST.json")
            if (other := manifest.get("snapshot", name)) != name:
                raise SnapshotError(f"snapshot {name} is that of {other!r} ({path})")
            return {file: _whole(name, path / file, **manifest[file]) for file in FILES if file != "MANIFEST.json"}
        except (NewerError, SnapshotError):
            raise
        except (OSError, DamagedError, KeyError, TypeError) as error:
            raise SnapshotError(f"snapshot {name} is missing or not whole ({path})") from error


def _object(name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        return parse_object(files["state.json"], "state.json")
    except NewerError:
        raise
    except DamagedError as error:
        raise SnapshotError(f"snapshot {name}: {error}") from error


def _whole(name: str, path: Path, *, bytes: int, sha256: str) -> bytes:
    """A file that is what its manifest says; of another size it is not even read."""
    if path.stat().st_size == bytes and hashlib.sha256(data := path.read_bytes()).hexdigest() == sha256:
        return data
    raise SnapshotError(f"snapshot {name}: {path.name} is damaged ({path.parent})")
