"""What can be wrong with an env, each in one line."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import numpy as np

from pbtrl.errors import EnvError

LONGEST = 300
"""Characters of an env's own error message that are repeated."""
_SHORTAGES = {errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}

NOT_MADE = "could not be made: "

RAISED = (Exception, SystemExit)
"""What an env's own code may raise; one that calls sys.exit ends no run."""


class SubEnvError(Exception):
    """What one env of a vector did wrong; `Vector` adds the env's name and the step, and raises it as an EnvError.

    Attributes:
        index: of the env in its vector.
    """

    def __init__(self, index: int, what: str) -> None:
        super().__init__(what)
        self.index = index


def brief(error: BaseException) -> str:
    """An exception in one line of limited length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= LONGEST else text[:LONGEST] + '...'}"


def of_the_machine(error: BaseException) -> bool:
    """Whether an error means a lack of memory or disk space, which is not the env's fault."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in _SHORTAGES


@contextmanager
def named(id: str, what: str = "") -> Iterator[None]:
    """Turn what an env or its library raises into an EnvError that names it."""
    try:
        yield
    except EnvError:
        raise
    except RAISED as error:
        if of_the_machine(error):
            raise
        raise EnvError(f"env.id={id}: {what}{brief(error)}") from error


def described(value: object) -> str:
    """What came from an env in place of what its contract asks for."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:60] + '...'} ({type(value).__name__})"


@cache
def warn(text: str) -> None:
    """Print a warning once per process; what a worker prints goes to its log."""
    with suppress(OSError):
        print(f"warning: {text}", file=sys.stderr)
