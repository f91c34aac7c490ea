"""Progress views of a terminal: a live table, plain lines, or lines of JSON."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from typing import Literal, Protocol

from rich.console import Console, Group
from rich.live import Live
from typing_extensions import override

from pbtrl.core.records import Record
from pbtrl.errors import printable
from pbtrl.reporting.live_status import ROUTINE, Event, LiveStatus
from pbtrl.reporting.live_table import EVENTS, HINT, STOPPING, live_table
from pbtrl.reporting.progress_lines import json_event, json_line, plain_event, plain_line

Mode = Literal["auto", "live", "plain", "json", "none"]

REDRAW = 0.25  # seconds
LINE_EVERY = 30.0  # seconds between two progress lines of `plain` and `json`


class View(Protocol):
    """Listener of the controller that shows progress and is closed at the end."""

    def event(self, record: Record) -> None:
        """Called after a line was written to the journal and applied to the population."""

    def tick(self) -> None:
        """Called a few times a second."""

    def stopping(self) -> None:
        """Called when a stop was requested and members are being saved."""

    def close(self) -> None:
        """Restore the terminal; a second call has no effect."""


def make_view(
    mode: Mode, status: LiveStatus, *, workers: str, console: Console | None = None, wide: bool = False
) -> View:
    """Make the view for `--progress`; `auto` is `live` on a terminal that can redraw, and `plain` elsewhere.

    Args:
        mode: `auto`, `live`, `plain`, `json` or `none`.
        status: status of the run.
        workers: "8 members on 2 workers".
        console: console to write to; by default standard output.
        wide: show all hyperparameters instead of the first three.
    """
    console = console or _Terminal()
    if mode == "auto":
        mode = "live" if _can_redraw(console) else "plain"
    match mode:
        case "live":
            return LiveView(status, workers, console, wide=wide)
        case "plain":
            return LinesView(status, console, plain_line, plain_event, f"          {STOPPING}")
        case "json":
            return LinesView(status, console, json_line, json_event, '{"kind": "stopping"}')
        case _:
            return SilentView()


class _Terminal(Console):
    """Console that survives a closed pipe; Rich's own console ends the process."""

    @override
    def on_broken_pipe(self) -> None:
        """Raise the error that Rich caught, as for other failures of a terminal."""
        raise BrokenPipeError


class SilentView(View):
    """View that shows nothing."""

    @override
    def event(self, record: Record) -> None:
        pass

    @override
    def tick(self) -> None:
        pass

    @override
    def stopping(self) -> None:
        pass

    @override
    def close(self) -> None:
        pass


class LinesView(View):
    """View for logs and pipes: a line for every event, and a progress line every 30 s."""

    def __init__(
        self,
        status: LiveStatus,
        console: Console,
        line: Callable[[LiveStatus], str],
        event: Callable[[Event], str],
        stopping: str,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._status, self._console, self._now = status, console, now
        self._line, self._event, self._stopping = line, event, stopping
        self._last_line, self._closed = now(), False

    @override
    def event(self, record: Record) -> None:
        """Print the events of a record."""
        for event in self._status.event(record):
            if text := self._event(event):
                self._print(text)

    @override
    def tick(self) -> None:
        """Print the status of the run every 30 s."""
        self._status.refresh()
        if self._now() - self._last_line >= LINE_EVERY:
            self._last_line = self._now()
            self._print(self._line(self._status))

    @override
    def stopping(self) -> None:
        self._print(self._stopping)

    @override
    def close(self) -> None:
        """Print the final status of the run."""
        if not self._closed:
            self._closed = True
            self._status.refresh()
            self._print(self._line(self._status))

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):  # training continues without a reader, as in `pbtrl train | head`
            self._console.file.write(printable(text) + "\n")
            self._console.file.flush()


class LiveView(View):
    """View of a table that is redrawn four times a second, with the last events below."""

    def __init__(self, status: LiveStatus, workers: str, console: Console, *, wide: bool = False) -> None:
        self._status, self._workers, self._console, self._wide = status, workers, console, wide
        self._events: list[Event] = []
        self._hint = HINT
        self._drawn = -math.inf
        self._live = Live(console=console, auto_refresh=False)
        self._closed = False

    @override
    def event(self, record: Record) -> None:
        """Keep the events of a record for the next frame."""
        events = [event for event in self._status.event(record) if event.kind not in ROUTINE]
        self._events = (self._events + events)[-EVENTS:]

    @override
    def tick(self) -> None:
        """Redraw the table, at most four times a second."""
        self._status.refresh()
        if time.monotonic() - self._drawn >= REDRAW:
            self._drawn = time.monotonic()
            try:
                self._live.start()  # not earlier, because it hides the cursor and redirects output
                self._live.update(self._picture(), refresh=True)
            except OSError:  # the terminal is closed, and Rich would buffer all frames
                self._drawn = math.inf

    @override
    def stopping(self) -> None:
        self._hint, self._drawn = STOPPING, -math.inf
        self.tick()

    @override
    def close(self) -> None:
        """Leave the last state of the table on the screen."""
        if not self._closed:
            self._closed, self._hint, self._drawn = True, "", -math.inf
            self.tick()
            with contextlib.suppress(OSError):
                self._live.stop()

    def _picture(self) -> Group:
        frame = self._status, self._events, self._workers, self._console
        return live_table(*frame, wide=self._wide, hint=self._hint)


def _can_redraw(console: Console) -> bool:
    utf8 = console.encoding.lower().replace("-", "") == "utf8"
    return console.file.isatty() and not console.is_dumb_terminal and not os.environ.get("CI") and utf8
