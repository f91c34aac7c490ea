"""Checks of arguments that come from a caller's Python code, whose types nothing else has checked."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pbtrl.errors import RunError


def whole_number(name: str, value: Any, least: int, most: int) -> int:
    """Return an argument as an int; numpy's integers are fine.

    Raises:
        RunError: it is no whole number from `least` to `most`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most or isinstance(value, bool):
        raise RunError(f"{name} must be a whole number from {least:,} to {most:,}, not {value!r:.80}")
    return number


def as_path(name: str, value: Any) -> Path:
    """Return an argument as a path, with `~` expanded as on the command line; RunError if it is none."""
    if not isinstance(value, str | os.PathLike) or "\0" in str(value):
        raise RunError(f"{name} must be a path, not {value!r:.80}")
    return Path(os.path.expanduser(value))


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise RunError if an argument is not one of the known ones."""
    if not isinstance(value, str) or value not in known:
        raise RunError(f"{name} must be one of {', '.join(known)}, not {value!r:.80}")


def check_text(name: str, value: Any) -> None:
    """Raise RunError if an argument is not a string."""
    if not isinstance(value, str):
        raise RunError(f"{name} must be a string, not {value!r:.80}")


def check_texts(name: str, value: Any) -> None:
    """Raise RunError if an argument is not a list of strings."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(x, str) for x in value):
        raise RunError(f"{name} must be a list of strings, not {value!r:.80}")
