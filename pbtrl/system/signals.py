"""SIGINT, SIGTERM and SIGHUP: the first asks to save and stop, a second SIGINT or SIGTERM ends the process at once.

A terminal that closes may send SIGHUP several times, so it never counts as the second. Where SIGHUP is ignored from the
start (`nohup`), it stays ignored.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType

EXIT = {signal.SIGHUP: 129, signal.SIGINT: 130, signal.SIGTERM: 143}
SHOW_CURSOR = b"\x1b[?25h\n"  # the live view hides it


class Interrupted(BaseException):
    """The first signal came where there is nothing to save; an env's own `except Exception` does not catch it."""


class Signals:
    """Within its `with`, signals are noted rather than raised; in the main thread alone, where Python handles them.

    Attributes:
        code: the exit code of the first signal; None before there is one.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._raises = False

    def __enter__(self) -> Signals:
        heeded = EXIT if threading.current_thread() is threading.main_thread() else ()
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._before = {
            number: signal.signal(number, self._handle)
            for number in heeded
            if not (ignored and number == signal.SIGHUP)
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextmanager
    def raising(self) -> Iterator[None]:
        """Nothing needs to be saved in here: the first signal, also an earlier one, raises Interrupted."""
        self._raises = True
        try:
            if self.code is not None:
                raise Interrupted
            yield
        finally:
            self._raises = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        code = EXIT[signal.Signals(number)]
        if self.code is not None:
            if number == signal.SIGHUP:
                return
            with suppress(OSError, ValueError, AttributeError):  # the terminal is gone, or there is none
                if sys.stdout.isatty():
                    os.write(sys.stdout.fileno(), SHOW_CURSOR)
            os._exit(code)
        self.code = code
        if self._raises:
            raise Interrupted
