"""Errors of envs, each reported in one line."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import numpy as np

from pbtrl.errors import EnvError

MAX_MESSAGE_LENGTH = 300  # characters of an env's own error message that are shown
_SHORTAGES = {errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}

NOT_MADE = "could not be made: "

ENV_EXCEPTIONS = (Exception, SystemExit)
"""Exceptions caught from an env's own code. An env that calls sys.exit must not end the run."""


class SubEnvError(Exception):
    """An error of one env in a vector; `Vector` turns it into an EnvError with the env's id and step.

    Attributes:
        index: position of the env in its vector.
    """

    def __init__(self, index: int, what: str) -> None:
        super().__init__(what)
        self.index = index


def brief(error: BaseException) -> str:
    """Format an exception as one line of limited length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= MAX_MESSAGE_LENGTH else text[:MAX_MESSAGE_LENGTH] + '...'}"


def of_the_machine(error: BaseException) -> bool:
    """Return whether an error is a shortage of memory or disk space, and so not the env's fault."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _SHORTAGES


@contextmanager
def named(id: str, what: str = "") -> Iterator[None]:
    """Turn exceptions of an env or its library into an EnvError with the env's id."""
    try:
        yield
    except EnvError:
        raise
    except ENV_EXCEPTIONS as error:
        if of_the_machine(error):
            raise
        raise EnvError(f"env.id={id}", f"{what}{brief(error)}") from error


def described(value: object) -> str:
    """Describe an invalid value returned by an env, for an error message."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:60] + '...'} ({type(value).__name__})"


@cache
def warn(text: str) -> None:
    """Print a warning once per process; a worker's output goes to its log."""
    with suppress(OSError):
        print(f"warning: {text}", file=sys.stderr)
