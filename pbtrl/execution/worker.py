"""A worker: one host, which carries out what the controller sends; `run_worker` is one in a process with a pipe."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from pbtrl.core.messages import Failure, Report
from pbtrl.errors import DiskFullError
from pbtrl.execution.host import Host
from pbtrl.execution.worker_messages import (
    Answers,
    Began,
    Close,
    DiskFull,
    FromWorker,
    StartFailed,
    Stop,
    Stopped,
    Submit,
    ToWorker,
    decode,
    encode,
)
from pbtrl.storage.member_files import LOG, MemberFiles, MemberSink
from pbtrl.storage.snapshot_store import SnapshotStore, Store
from pbtrl.system.child_process import init_child, redirect_output
from pbtrl.system.files import make_directory
from pbtrl.system.imports import import_object


@dataclass(frozen=True)
class WorkerSpec:
    """Start parameters of a worker.

    Attributes:
        builder: `module:function`, called with `config`.
        config: the resolved config as JSON.
        members: path of the run's `members/`.
        groups: members of the worker by group.
        cores: CPU cores that the worker is pinned to; empty on Ray, which reserves cores but pins nothing.
        threads: number of threads for its simulators.
        discard_on_stop: whether a stop discards open slices instead of reporting them.
    """

    builder: str
    config: str
    members: str
    groups: tuple[tuple[str, ...], ...]
    cores: tuple[int, ...]
    threads: int
    discard_on_stop: bool

    def merged(self, other: WorkerSpec) -> WorkerSpec:
        """Combine two workers into one."""
        cores = tuple(sorted({*self.cores, *other.cores}))
        threads = min(self.threads + other.threads, len(cores)) if cores else self.threads
        return replace(self, groups=self.groups + other.groups, cores=cores, threads=threads)


class Station:
    """A worker's host behind messages, however they travel.

    Args:
        spec: what the host is made of.
        store: where its snapshots are.
        sink: where its metrics and logs go.
    """

    def __init__(self, spec: WorkerSpec, store: Store, sink: MemberSink) -> None:
        self._host = Host(
            import_object(spec.builder)(spec.config), store, sink, spec.groups,
            threads=spec.threads, discard_on_stop=spec.discard_on_stop,
        )  # fmt: skip
        self._began = False

    @classmethod
    def local(cls, spec: WorkerSpec) -> Station:
        """Station that keeps everything in the spec's local directory."""
        members = Path(spec.members)
        return cls(spec, SnapshotStore(members), MemberFiles(members, [m for group in spec.groups for m in group]))

    def take(self, message: Submit | Stop) -> list[FromWorker]:
        """Carry out a message; returns what the controller should know."""
        if isinstance(message, Stop):
            return [*_answers(self._host.stop()), Stopped()]
        self._host.submit(message.assignments)
        return []

    def busy(self) -> bool:
        """Return whether an assignment is unanswered."""
        return self._host.busy()

    def advance(self) -> list[FromWorker]:
        """Train for a short while; returns what the controller should know. The first call only says `Began`."""
        if self._host.busy() and not self._began:
            self._began = True
            return [Began()]
        return _answers(self._host.advance())

    def close(self) -> None:
        """Release all cohorts."""
        self._host.close()


def _answers(messages: Sequence[Report | Failure]) -> list[FromWorker]:
    reports = tuple(m for m in messages if isinstance(m, Report))
    failures = tuple(m for m in messages if isinstance(m, Failure))
    return [Answers(reports, failures)] if messages else []


def build(make: Callable[[], Station]) -> Station | StartFailed:
    """Make a station; an error becomes the message to the controller."""
    try:
        return make()
    except DiskFullError:
        raise
    except Exception:
        return StartFailed(traceback.format_exc())


def _serve(pipe: Connection, station: Station, parent: int) -> None:
    while os.getppid() == parent:
        if pipe.poll(0 if station.busy() else 1.0):
            try:
                message: ToWorker = decode(pipe.recv_bytes())
            except (EOFError, OSError):
                break
            if isinstance(message, Close):
                break
            _send(pipe, station.take(message))
        _send(pipe, station.advance())
    station.close()


def _send(pipe: Connection, messages: Sequence[FromWorker]) -> None:
    for message in messages:
        pipe.send_bytes(encode(message))


def _log_output(member: Path) -> None:
    """Redirect the output of libraries and envs to the log of the worker's first member."""
    make_directory(member.parent)
    make_directory(member)
    redirect_output(member / LOG)


def run_worker(pipe: Connection, parent: int, spec: WorkerSpec) -> None:
    """Main function of a worker process."""
    init_child(parent, pipe)
    try:
        _log_output(Path(spec.members) / spec.groups[0][0])
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, spec.cores)
        station = build(lambda: Station.local(spec))
        if isinstance(station, StartFailed):
            _send(pipe, [station])
        else:
            _serve(pipe, station, parent)
    except DiskFullError as error:
        _send(pipe, [DiskFull(str(error))])
