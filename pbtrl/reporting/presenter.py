"""Presenters, which show the text and progress of a session in a terminal or not at all."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, Protocol, TextIO

from typing_extensions import override

from pbtrl.errors import DiskFullError
from pbtrl.reporting.live_status import LiveStatus
from pbtrl.reporting.terminal import Mode, SilentView, View, make_view
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json

LOGGER = logging.getLogger("pbtrl")


class Presenter(Protocol):
    """Interface of the output of a session."""

    def say(self, text: str) -> None:
        """Show text for people."""

    def warn(self, text: str) -> None:
        """Show a warning."""

    def finish(self, run: RunDirectory, best: dict[str, Any], text: str) -> None:
        """Show the result of a run: `best` is the content of best.json, `text` the same for people."""

    def view(self, status: LiveStatus, workers: str) -> View:
        """Start a view of the progress of training."""


class TerminalPresenter(Presenter):
    """Presenter on standard output and standard error; errors of printing do not stop a run.

    Args:
        mode: mode of the progress view.
        wide: whether to show every hyperparameter instead of the first three.
    """

    def __init__(self, mode: Mode, *, wide: bool = False) -> None:
        self._mode, self._wide = mode, wide

    @override
    def say(self, text: str) -> None:
        """Print text, except in the modes `json` and `none`."""
        if self._mode not in ("json", "none"):
            _print(text)

    @override
    def warn(self, text: str) -> None:
        """Print a warning to standard error."""
        _print(f"warning: {text}", sys.stderr)

    @override
    def finish(self, run: RunDirectory, best: dict[str, Any], text: str) -> None:
        """Print the result of a run as text, or as JSON in the mode `json`."""
        if self._mode == "json":
            _print(to_json({"kind": "finish", "run": str(run), "best": best}))
        self.say(text)

    @override
    def view(self, status: LiveStatus, workers: str) -> View:
        return make_view(self._mode, status, workers=workers, wide=self._wide)


class PartPresenter(TerminalPresenter):
    """Presenter of several runs, whose results are shown together after the last one; a warning is shown once."""

    def __init__(self, mode: Mode, *, wide: bool = False) -> None:
        super().__init__(mode, wide=wide)
        self._warned: set[str] = set()

    @override
    def warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            super().warn(text)

    @override
    def finish(self, run: RunDirectory, best: dict[str, Any], text: str) -> None:
        pass


class SilentPresenter(Presenter):
    """Presenter that prints nothing; warnings go to the logger `pbtrl`."""

    @override
    def say(self, text: str) -> None:
        pass

    @override
    def warn(self, text: str) -> None:
        LOGGER.warning(text)

    @override
    def finish(self, run: RunDirectory, best: dict[str, Any], text: str) -> None:
        pass

    @override
    def view(self, status: LiveStatus, workers: str) -> View:
        return SilentView()


def _print(text: str, where: TextIO | None = None) -> None:
    with contextlib.suppress(DiskFullError):
        tell(text, where)
