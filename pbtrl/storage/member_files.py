"""Files of the members of a run that a worker appends to: metrics and logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import override

from pbtrl.system.files import make_directory, open_log, translate_disk_errors
from pbtrl.system.strict_json import to_json

METRICS, LOG = "metrics.jsonl", "log.txt"


class MemberSink(Protocol):
    """Destination of a worker's metrics and logs: files here, or the controller's node on a cluster."""

    def write_metrics(self, member: str, line: Mapping[str, Any]) -> None:
        """Append one line of metrics of a slice under way."""

    def write_log(self, member: str, text: str) -> None:
        """Append text to the member's log."""


class MemberFiles(MemberSink):
    """`metrics.jsonl` and `log.txt` of each member, below `folder`; those of later members are made when needed.

    Raises:
        DiskFullError: no space for them.
    """

    def __init__(self, folder: Path, members: Sequence[str]) -> None:
        self._folder = folder
        self._made: set[str] = set()
        make_directory(folder)
        for member in members:
            self._make(member)

    @override
    def write_metrics(self, member: str, line: Mapping[str, Any]) -> None:
        self._append(member, METRICS, to_json(line) + "\n")

    @override
    def write_log(self, member: str, text: str) -> None:
        self._append(member, LOG, text)

    def _make(self, member: str) -> None:
        if member not in self._made:
            make_directory(self._folder / member)
            self._made.add(member)

    def _append(self, member: str, name: str, text: str) -> None:
        self._make(member)
        path = self._folder / member / name
        with translate_disk_errors(path), open_log(path) as file:
            file.write(text)
