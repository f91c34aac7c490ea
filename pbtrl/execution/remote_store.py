"""Files of a run for workers on other machines: one desk beside the run directory, and a store that asks it.

    worker: pack, hash  -- bytes, by any transport -->  desk: check hashes, write, sync    (and back: read, check)

Only names, text and the bytes of snapshot files travel. The desk never parses a tensor file, and the worker never
parses one that does not match its manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from pbtrl.core.tensors import Tensors
from pbtrl.errors import DiskFullError, NewerError, SnapshotError
from pbtrl.storage.json_files import parse_object
from pbtrl.storage.member_files import MemberFiles, MemberSink
from pbtrl.storage.snapshot_store import Files, SnapshotStore, Store, check_files, pack, unpack
from pbtrl.system.strict_json import to_json

Answer = tuple[str, Any]  # name of an error or "", and its text or the result
Transport = Callable[..., Answer]  # transport(verb, *arguments): what `StoreDesk.answer` returns
ERRORS: dict[str, type[Exception]] = {e.__name__: e for e in (DiskFullError, NewerError, SnapshotError)}


class StoreDesk:
    """The side of the run directory: carries out what remote workers ask for. Every verb may be repeated."""

    def __init__(self, members: Path) -> None:
        self._store, self._files = SnapshotStore(members), MemberFiles(members, [])

    def answer(self, verb: str, *arguments: Any) -> Answer:
        """Carry out `read`, `state`, `write`, `quarantine`, `write_metrics` or `write_log`."""
        verbs: dict[str, Callable[..., Any]] = {
            "read": self._store.read,
            "state": self._state,
            "write": self._write,
            "quarantine": self._store.quarantine,
            "write_metrics": self._write_metrics,
            "write_log": self._files.write_log,
        }
        try:
            return "", verbs[verb](*arguments)
        except tuple(ERRORS.values()) as error:
            return next(name for name, kind in ERRORS.items() if isinstance(error, kind)), str(error)

    def _write(self, name: str, files: Files) -> None:
        check_files(name, files)
        self._store.write(name, files)

    def _state(self, name: str) -> bytes | None:
        try:
            return self._store.read(name)["state.json"]
        except SnapshotError:
            return None

    def _write_metrics(self, member: str, line: str) -> None:
        self._files.write_metrics(member, parse_object(line.encode(), "metrics"))


class RemoteStore(Store, MemberSink):
    """The worker's side: snapshots, metrics and logs of a run directory on another machine."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _ask(self, verb: str, *arguments: Any) -> Any:
        error, result = self._transport(verb, *arguments)
        if error:
            raise ERRORS[error](result)
        return result

    @override
    def load(self, name: str) -> tuple[Tensors, dict[str, Any]]:
        files = self._ask("read", name)
        check_files(name, files)
        return unpack(name, files)

    @override
    def state(self, name: str) -> dict[str, Any] | None:
        state = self._ask("state", name)
        return None if state is None else parse_object(state, f"state of snapshot {name}")

    @override
    def commit(self, name: str, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        self._ask("write", name, pack(name, tensors, state))

    @override
    def quarantine(self, name: str) -> None:
        self._ask("quarantine", name)

    @override
    def write_metrics(self, member: str, line: Mapping[str, Any]) -> None:
        self._ask("write_metrics", member, to_json(line))

    @override
    def write_log(self, member: str, text: str) -> None:
        self._ask("write_log", member, text)
