"""The standard streams: open even where they were closed, and harmless once their reader or terminal is gone."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import TextIO

from pbtrl.errors import DiskFullError, printable

GONE = frozenset({errno.EPIPE, errno.EIO})  # the reader of a pipe ended; the terminal was closed


def reopen() -> None:
    """Put the null device where standard streams are closed: what is opened next would take their descriptors.

    Libraries in C and child processes write to descriptors 1 and 2, whatever lies there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            _silence(number)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, for as long as the process


def tell(text: str, where: TextIO | None = None) -> None:
    """Print text with its control characters spelled out; a reader that is gone misses it, which harms nobody.

    Raises:
        DiskFullError: it cannot be written for another reason.
    """
    try:
        print(printable(text), file=where, flush=True)
    except OSError as error:
        if error.errno not in GONE:
            raise DiskFullError(f"standard output: {error.strerror or error}") from error


def flush() -> None:
    """Write what is buffered, for the last time; what fails goes to the null device, or Python would fail at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError, ValueError):  # it has no descriptor
                _silence(stream.fileno())


def _silence(number: int) -> None:
    """The null device as this descriptor, which child processes inherit."""
    null = os.open(os.devnull, os.O_RDWR)
    if null == number:
        os.set_inheritable(null, True)
    else:
        os.dup2(null, number)
        os.close(null)
