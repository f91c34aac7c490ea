"""Presenters: where the text and the progress of a session go, a terminal or nowhere."""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any, Protocol, TextIO

from pbtrl.errors import DiskFullError
from pbtrl.reporting.live_status import LiveStatus
from pbtrl.reporting.terminal import Mode, SilentView, View, make_view
from pbtrl.system.streams import tell
from pbtrl.system.strict_json import to_json

LOGGER = logging.getLogger("pbtrl")


class Presenter(Protocol):
    """Shows a session to somebody."""

    def say(self, text: str) -> None:
        """Show text that is meant for people."""

    def warn(self, text: str) -> None:
        """Show a warning."""

    def finish(self, run: Path, best: dict[str, Any], text: str) -> None:
        """Show the end of a run: the content of best.json, and the same for people."""

    def view(self, status: LiveStatus, workers: str) -> View:
        """Start to show the progress of training."""


class TerminalPresenter:
    """Prints to standard output and standard error; a run also trains where nothing can be printed.

    Args:
        mode: of the progress view.
        wide: show every hyperparameter instead of the first three.
    """

    def __init__(self, mode: Mode, *, wide: bool = False) -> None:
        self._mode, self._wide = mode, wide

    def say(self, text: str) -> None:
        """Print text, except in the modes `json` and `none`."""
        if self._mode not in ("json", "none"):
            _print(text)

    def warn(self, text: str) -> None:
        """Print a warning to standard error."""
        _print(f"warning: {text}", sys.stderr)

    def finish(self, run: Path, best: dict[str, Any], text: str) -> None:
        """Print the end of a run in the mode's form."""
        if self._mode == "json":
            _print(to_json({"kind": "finish", "run": str(run), "best": best}))
        self.say(text)

    def view(self, status: LiveStatus, workers: str) -> View:
        """Start the mode's view."""
        return make_view(self._mode, status, workers=workers, wide=self._wide)


class SilentPresenter:
    """Prints nothing; warnings go to the logger `pbtrl`."""

    def say(self, text: str) -> None:
        """Drop the text."""

    def warn(self, text: str) -> None:
        """Log a warning."""
        LOGGER.warning(text)

    def finish(self, run: Path, best: dict[str, Any], text: str) -> None:
        """Drop the text."""

    def view(self, status: LiveStatus, workers: str) -> View:
        """Start a view that shows nothing."""
        return SilentView()


def _print(text: str, where: TextIO | None = None) -> None:
    with contextlib.suppress(DiskFullError):
        tell(text, where)
