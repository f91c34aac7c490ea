"""SIGINT and SIGTERM: the first asks to save and stop, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

EXIT = {signal.SIGINT: 130, signal.SIGTERM: 143}
SHOW_CURSOR = b"\x1b[?25h\n"  # the live view hides it


class Interrupted(BaseException):
    """The first signal came where there is nothing to save; an env's own `except Exception` does not catch it."""


class Signals:
    """Within its `with`, signals are noted rather than raised.

    Attributes:
        code: the exit code of the first signal; None before there is one.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        self._raises = False

    def __enter__(self) -> Signals:
        self._before = {number: signal.signal(number, self._handle) for number in EXIT}
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
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), SHOW_CURSOR)
            os._exit(code)
        self.code = code
        if self._raises:
            raise Interrupted
