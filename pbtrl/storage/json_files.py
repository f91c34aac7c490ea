"""The JSON files of a run directory: how large they may be, what they hold, and of which version they are.

Every file says its own version, an older one is read, a newer one refused.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pbtrl.errors import DamagedError, NewerError

SCHEMA = 1
LARGEST = 64 * 2**20  # bytes; a population of thousands with all its episodes needs less


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it cannot be read, is too large, or holds something else.
        NewerError: a newer pbtrl wrote it.
    """
    return parse_object(read_plain_file(path, LARGEST + 1), path)


def read_json_if_exists(path: Path) -> dict[str, Any]:
    """As `read`, but empty where there is no file."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


def read_plain_file(path: Path, most: int = -1) -> bytes:
    """What a plain file holds, `most` bytes of it; from a pipe or a device somebody might wait for ever.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it cannot be read, or is no file.
    """
    try:
        with open_plain_file(path) as file:
            return file.read(most)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error


@contextmanager
def open_plain_file(path: Path) -> Iterator[BinaryIO]:
    """A plain file, to be read; DamagedError for anything else, and OSError as `open`."""
    with open(path, "rb", opener=_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DamagedError(f"{path} is no file")
        yield file


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def parse_object(data: bytes, where: object) -> dict[str, Any]:
    """The object in a file's bytes; `where` is what errors call it, which are those of `read`."""
    if len(data) > LARGEST:
        raise DamagedError(f"{where} cannot be read: larger than {LARGEST / 2**20:.0f} MiB")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise DamagedError(f"{where} is no JSON object")
    check_version(found, where)
    return found


def check_version(found: Mapping[str, Any], where: object) -> None:
    """Raise NewerError where a file's `schema` is newer than this program; one without it is as old as can be."""
    version = found.get("schema", 1)
    if not isinstance(version, int) or version > SCHEMA:
        raise NewerError(f"{where}: written by a newer pbtrl (schema {version}; this one reads up to {SCHEMA})")
