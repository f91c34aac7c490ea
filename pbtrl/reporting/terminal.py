"""The progress view of a terminal: a live table, plain lines, or lines of JSON."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from typing import Literal, Protocol

from rich.console import Console, Group
from rich.live import Live

from pbtrl.errors import printable
from pbtrl.reporting.live_status import Event, LiveStatus
from pbtrl.reporting.live_table import EVENTS, HINT, STOPPING, live_table
from pbtrl.reporting.progress_lines import json_event, json_line, plain_event, plain_line
from pbtrl.storage.journal import Line

Mode = Literal["auto", "live", "plain", "json", "none"]

REDRAW = 0.25  # seconds
LINE_EVERY = 30.0  # seconds between two lines of `plain` and `json`


class View(Protocol):
    """A listener of the controller that ends."""

    def event(self, line: Line) -> None:
        """A line was written to the journal and recorded."""

    def tick(self) -> None:
        """Called a few times a second."""

    def stopping(self) -> None:
        """A signal came: members are being saved."""

    def close(self) -> None:
        """Leave the terminal in order; a second time does nothing."""


def make_view(
    mode: Mode, standings: LiveStatus, *, workers: str, console: Console | None = None, wide: bool = False
) -> View:
    """The view for `--progress`; `auto` is `live` on a terminal that can show it and `plain` elsewhere.

    Args:
        mode: `auto`, `live`, `plain`, `json` or `none`.
        standings: where the run stands.
        workers: "8 members on 2 workers".
        console: standard output unless given.
        wide: show every hyperparameter instead of the first three.
    """
    console = console or _Terminal()
    if mode == "auto":
        mode = "live" if _can_redraw(console) else "plain"
    match mode:
        case "live":
            return LiveView(standings, workers, console, wide=wide)
        case "plain":
            return LinesView(standings, console, plain_line, plain_event, f"          {STOPPING}")
        case "json":
            return LinesView(standings, console, json_line, json_event, '{"kind": "stopping"}')
        case _:
            return SilentView()


class _Terminal(Console):
    """A console whose reader may go: Rich's own ends the process then."""

    def on_broken_pipe(self) -> None:
        """Raise what Rich caught, as it does when a terminal fails in another way."""
        raise BrokenPipeError


class SilentView:
    """Shows nothing."""

    def event(self, line: Line) -> None:
        """Nothing."""

    def tick(self) -> None:
        """Nothing."""

    def stopping(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LinesView:
    """A line now and then, and one for every event; for logs and pipes."""

    def __init__(
        self,
        standings: LiveStatus,
        console: Console,
        line: Callable[[LiveStatus], str],
        event: Callable[[Event], str],
        stopping: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._standings, self._console, self._now = standings, console, now
        self._line, self._event, self._stopping = line, event, stopping
        self._told, self._closed = now(), False

    def event(self, line: Line) -> None:
        """Tell what is worth telling of a journal line."""
        for event in self._standings.event(line):
            self._print(self._event(event))

    def tick(self) -> None:
        """Tell where the run stands, every half minute."""
        self._standings.refresh()
        if self._now() - self._told >= LINE_EVERY:
            self._told = self._now()
            self._print(self._line(self._standings))

    def stopping(self) -> None:
        """Say that the members are being saved."""
        self._print(self._stopping)

    def close(self) -> None:
        """Tell once more where the run stands."""
        if not self._closed:
            self._closed = True
            self._standings.refresh()
            self._print(self._line(self._standings))

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # `pbtrl train | head` goes on training, also without its terminal
            self._console.file.write(printable(text) + "\n")
            self._console.file.flush()


class LiveView:
    """A table that is redrawn four times a second, with the last events below."""

    def __init__(self, standings: LiveStatus, workers: str, console: Console, *, wide: bool = False) -> None:
        self._standings, self._workers, self._console, self._wide = standings, workers, console, wide
        self._events: list[Event] = []
        self._hint = HINT
        self._drawn = -math.inf
        self._live = Live(console=console, auto_refresh=False)
        self._closed = False

    def event(self, line: Line) -> None:
        """Keep what is worth telling of a journal line."""
        self._events = (self._events + self._standings.event(line))[-EVENTS:]

    def tick(self) -> None:
        """Redraw."""
        self._standings.refresh()
        if time.monotonic() - self._drawn >= REDRAW:
            self._drawn = time.monotonic()
            try:
                self._live.start()  # nothing is hidden or redirected before the first frame
                self._live.update(self._picture(), refresh=True)
            except OSError:  # the terminal went away, and Rich would keep every frame for it
                self._drawn = math.inf

    def stopping(self) -> None:
        """Say that the members are being saved."""
        self._hint, self._drawn = STOPPING, -math.inf
        self.tick()

    def close(self) -> None:
        """Leave the last state of the table on the screen."""
        if not self._closed:
            self._closed, self._hint, self._drawn = True, "", -math.inf
            self.tick()
            with contextlib.suppress(OSError):
                self._live.stop()

    def _picture(self) -> Group:
        frame = self._standings, self._events, self._workers, self._console
        return live_table(*frame, wide=self._wide, hint=self._hint)


def _can_redraw(console: Console) -> bool:
    utf8 = console.encoding.lower().replace("-", "") == "utf8"
    return console.file.isatty() and not console.is_dumb_terminal and not os.environ.get("CI") and utf8
