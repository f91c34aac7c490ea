"""The JSON files of a run directory: how large they may be, what they hold, and of which version they are.

Every file says its own version, an older one is read, a newer one refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pbtrl.lock import DamagedError

SCHEMA = 1
LARGEST = 64 * 2**20  # bytes; a population of thousands with all its episodes needs less


class NewerError(DamagedError):
    """A file that only a newer pbtrl can read."""


def read(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it cannot be read, is too large, or holds something else.
        NewerError: a newer pbtrl wrote it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    return parsed(data, path)


def parsed(data: bytes, where: object) -> dict[str, Any]:
    """The object in a file's bytes; `where` is what errors call it, which are those of `read`."""
    if len(data) > LARGEST:
        raise DamagedError(f"{where} cannot be read: larger than {LARGEST / 2**20:.0f} MiB")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DamagedError(f"{where} is no JSON object")
    check(found, where)
    return found


def check(found: Mapping[str, Any], where: object) -> None:
    """Raise NewerError where a file's `schema` is newer than this program; one without it is as old as can be."""
    version = found.get("schema", 1)
    if not isinstance(version, int) or version > SCHEMA:
        raise NewerError(f"{where}: written by a newer pbtrl (schema {version}; this one reads up to {SCHEMA})")
