"""SIGINT, SIGTERM and SIGHUP: the first asks to save and stop, a second SIGINT or SIGTERM ends the process at once.

A closing terminal may send SIGHUP several times, so it never counts as the second signal. If SIGHUP is ignored from the
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
SHOW_CURSOR = b"\x1b[?25h\n"  # the live view hides the cursor


class Interrupted(BaseException):
    """The first signal, raised if nothing needs to be saved; `except Exception` in an env does not catch it."""


class Signals:
    """Context manager that records stop signals instead of raising; has no effect outside the main thread.

    Attributes:
        code: exit code of the first signal; None before there is one.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._raises = False

    def __enter__(self) -> Signals:
        numbers = EXIT if threading.current_thread() is threading.main_thread() else ()
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._before = {
            number: signal.signal(number, self._handle)
            for number in numbers
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
        """Raise Interrupted at the first signal, also at one before this context: nothing needs to be saved in it."""
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
            with suppress(OSError, ValueError, AttributeError):  # no terminal, or not any more
                if sys.stdout.isatty():
                    os.write(sys.stdout.fileno(), SHOW_CURSOR)
            os._exit(code)
        self.code = code
        if self._raises:
            raise Interrupted
