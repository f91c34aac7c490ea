"""Reading of JSON files in a run directory, with checks of size, content and schema version.

A file with a schema version is read if it is of this or an older version, and refused if it is of a newer one.
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
MAX_BYTES = 64 * 2**20  # bytes; enough for a population of thousands with all its episodes


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        FileNotFoundError: there is no file.
        DamagedError: the file cannot be read, is too large, or holds no JSON object.
        NewerError: a newer pbtrl wrote it.
    """
    return parse_object(read_plain_file(path, MAX_BYTES + 1), path)


def read_json_if_exists(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file; empty if there is no file."""
    try:
        return read_json(path)
    except FileNotFoundError:
        return {}


def read_json_list(path: Path) -> list[dict[str, Any]]:
    """Read the JSON objects of a list in a file.

    Raises:
        FileNotFoundError: there is no file.
        DamagedError: the file cannot be read, is too large, or holds no list of JSON objects.
    """
    data = read_plain_file(path, MAX_BYTES + 1)
    try:
        items = json.loads(data) if len(data) <= MAX_BYTES else None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DamagedError(f"{path} is not a list of JSON objects")
    return items


def read_plain_file(path: Path, most: int = -1, start: int = 0) -> bytes:
    """Read up to `most` bytes of a regular file from `start` on; a pipe or device, which could block, is refused.

    Raises:
        FileNotFoundError: there is no file.
        DamagedError: it cannot be read, or is not a regular file.
    """
    try:
        with open_plain_file(path) as file:
            file.seek(start)
            return file.read(most)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error}") from error


@contextmanager
def open_plain_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading.

    Raises:
        DamagedError: it is not a regular file.
        OSError: as `open`.
    """
    with open(path, "rb", opener=_open_nonblocking) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DamagedError(f"{path} is not a regular file")
        yield file


def _open_nonblocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def parse_object(data: bytes, where: object) -> dict[str, Any]:
    """Parse the JSON object in a file's bytes. Raises like `read_json`, with `where` as the file's name."""
    if len(data) > MAX_BYTES:
        raise DamagedError(f"{where} cannot be read: larger than {MAX_BYTES / 2**20:.0f} MiB")
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{where} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DamagedError(f"{where} is not a JSON object")
    check_version(content, where)
    return content


def check_version(content: Mapping[str, Any], where: object) -> None:
    """Raise NewerError if a file's `schema` is newer than this program; a file without it has version 1."""
    version = content.get("schema", 1)
    if not isinstance(version, int) or version > SCHEMA:
        raise NewerError(f"{where}: written by a newer pbtrl (schema {version}; this one reads up to {SCHEMA})")
