"""Standard streams: reopened if they are closed, and written without errors whatever their encoding and reader."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import TextIO

from pbtrl.errors import DiskFullError, printable
from pbtrl.system.files import reason

GONE = frozenset({errno.EPIPE, errno.EIO})  # reader of the pipe ended; terminal was closed


def reopen() -> None:
    """Open the null device in place of closed standard streams.

    Otherwise the next open file would get their descriptors, and C libraries and child processes, which write to
    descriptors 1 and 2, would write into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _silence(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, open until the process ends


def escape_unencodable() -> None:
    """Let standard output and standard error escape what they cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def tell(text: str, where: TextIO | None = None) -> None:
    """Print text with escaped control characters; does nothing if the reader is gone.

    Raises:
        DiskFullError: it cannot be written for another reason.
    """
    try:
        print(printable(text), file=where, flush=True)
    except OSError as error:
        if error.errno not in GONE:
            raise DiskFullError(f"standard output: {reason(error)}") from error


def flush() -> None:
    """Flush the streams before exit; a stream that fails is redirected to the null device, else Python's exit fails."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):  # the stream has no descriptor
                _silence(stream.fileno())


def _silence(number: int) -> None:
    """Open the null device as this descriptor, inheritable by child processes."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(null, True)
    else:
        os.dup2(null, number)
        os.close(null)
