"""A worker process: one host, which carries out what the controller sends through a pipe."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from pbtrl.core.messages import Failure, Report
from pbtrl.core.registry import import_object
from pbtrl.errors import DiskFullError
from pbtrl.execution.host import Host
from pbtrl.execution.worker_messages import (
    Answers,
    Began,
    Close,
    DiskFull,
    StartFailed,
    Stop,
    Stopped,
    Submit,
    ToWorker,
    decode,
    encode,
)
from pbtrl.system.child_process import init_child, redirect_output
from pbtrl.system.files import make_directory


@dataclass(frozen=True)
class WorkerSpec:
    """Start parameters of a worker.

    Attributes:
        builder: `module:function`, called with `config`.
        config: the resolved config as JSON.
        members: path of the run's `members/`.
        groups: members of the worker by group.
        cores: CPU cores that the worker is pinned to.
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
        threads = min(self.threads + other.threads, len(cores))
        return replace(self, groups=self.groups + other.groups, cores=cores, threads=threads)

    def host(self) -> Host:
        """Create the worker's host."""
        builder = import_object(self.builder)(self.config)
        return Host.local(
            builder,
            Path(self.members),
            self.groups,
            threads=self.threads,
            discard_on_stop=self.discard_on_stop,
        )


def _make_host(pipe: Connection, spec: WorkerSpec) -> Host | None:
    """Create the host; on an error, send the traceback to the controller and return None."""
    try:
        return spec.host()
    except DiskFullError:
        raise
    except Exception:
        pipe.send_bytes(encode(StartFailed(traceback.format_exc())))
        return None


def _serve(pipe: Connection, host: Host, parent: int) -> None:
    began = False
    while os.getppid() == parent:
        if pipe.poll(0 if host.busy() else 1.0):
            try:
                message: ToWorker = decode(pipe.recv_bytes())
            except (EOFError, OSError):
                break
            match message:
                case Close():
                    break
                case Stop():
                    _send(pipe, host.stop())
                    pipe.send_bytes(encode(Stopped()))
                case Submit(assignments):
                    host.submit(assignments)
        if host.busy() and not began:
            began = True
            pipe.send_bytes(encode(Began()))
        _send(pipe, host.advance())
    host.close()


def _send(pipe: Connection, messages: Sequence[Report | Failure]) -> None:
    if messages:
        reports = tuple(m for m in messages if isinstance(m, Report))
        failures = tuple(m for m in messages if isinstance(m, Failure))
        pipe.send_bytes(encode(Answers(reports, failures)))


def _log_output(member: Path) -> None:
    """Redirect the output of libraries and envs to the log of the worker's first member."""
    make_directory(member.parent)
    make_directory(member)
    redirect_output(member / "log.txt")


def run_worker(pipe: Connection, parent: int, spec: WorkerSpec) -> None:
    """Main function of a worker process."""
    init_child(parent, pipe)
    try:
        _log_output(Path(spec.members) / spec.groups[0][0])
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, spec.cores)
        if (host := _make_host(pipe, spec)) is not None:
            _serve(pipe, host, parent)
    except DiskFullError as error:
        pipe.send_bytes(encode(DiskFull(str(error))))
