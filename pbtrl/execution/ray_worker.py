"""The worker's side of the executor on Ray, which itself does not import Ray: a station behind remote calls.

    hello(paths, probe) -> facts about the node
    work(messages, seconds) -> messages: take them, then train until there is something to tell, or the time is over

It has one call at a time, so it stays single-threaded like a worker process, and an answer is the message queue.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pbtrl
from pbtrl.errors import DiskFullError, WorkerError
from pbtrl.execution.remote_store import RemoteStore, Transport
from pbtrl.execution.worker import Station, WorkerSpec, build
from pbtrl.execution.worker_messages import DiskFull, FromWorker, StartFailed, decode, encode
from pbtrl.system.strict_json import to_json
from pbtrl.system.versions import PACKAGES, installed_version


class RemoteWorker:
    """Worker on a node of a cluster.

    Args:
        spec: `WorkerSpec` as JSON.
        transport: way to the run directory; None if this node sees it itself.
    """

    def __init__(self, spec: str, transport: Transport | None) -> None:
        self._spec = WorkerSpec(**json.loads(spec))
        self._transport = transport
        self._station: Station | None = None

    def hello(self, paths: Sequence[str], probe: str) -> str:
        """Return `facts` as JSON.

        Args:
            paths: where the driver finds modules; a user's env may lie there.
            probe: path of a file of the driver, whose text is one of the facts.
        """
        sys.path.extend(path for path in paths if path not in sys.path)
        return to_json(facts(Path(probe) if probe else None))

    def work(self, messages: Sequence[bytes], seconds: float) -> list[bytes]:
        """Take messages, then train until there is news, or for `seconds`; returns the news."""
        try:
            return [encode(message) for message in self._work(messages, seconds)]
        except DiskFullError as error:
            return [encode(DiskFull(str(error)))]

    def _work(self, messages: Sequence[bytes], seconds: float) -> Sequence[FromWorker]:
        until = time.monotonic() + seconds
        if self._station is None:
            station = build(self._make)
            if isinstance(station, StartFailed):
                return [station]
            self._station = station
        news = [news for message in messages for news in self._station.take(decode(message))]
        while self._station.busy() and not news and time.monotonic() < until:
            news += self._station.advance()
        return news

    def _make(self) -> Station:
        if self._transport is None:
            return Station.local(self._spec)
        remote = RemoteStore(self._transport)
        return Station(self._spec, remote, remote)


def facts(probe: Path | None = None) -> dict[str, Any]:
    """Return what the driver compares with itself: versions, host, niceness, and the text of a file (None: no file)."""
    return {
        "versions": {"python": platform.python_version(), "pbtrl": pbtrl.__version__}
        | {p: installed_version(p) for p in PACKAGES},
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "nice": os.nice(0),
        "probe": _text(probe) if probe else None,
    }


def version_differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Describe the packages of another node's facts that differ, as `torch 2.12 (here 2.13)`."""
    versions = [(name, there["versions"].get(name), v) for name, v in here["versions"].items()]
    return [f"{name} {other or 'missing'} (here {own or 'missing'})" for name, other, own in versions if other != own]


def check_versions(here: dict[str, Any], there: dict[str, Any]) -> None:
    """Raise WorkerError if another node has other packages than this one, by the facts of both."""
    if other := version_differences(here, there):
        raise WorkerError(
            f"node {there['host']} has {', '.join(other)}: install the same versions, or set "
            "execution.allow_mixed: true"
        )


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
