"""The version of what a run directory holds: every file says its own, an older one is read, a newer one refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pbtrl.lock import DamagedError

SCHEMA = 1


class NewerError(DamagedError):
    """A file that only a newer pbtrl can read."""


def check(found: Mapping[str, Any], where: object) -> None:
    """Raise NewerError where a file's `schema` is newer than this program; one without it is as old as can be."""
    version = found.get("schema", 1)
    if not isinstance(version, int) or version > SCHEMA:
        raise NewerError(f"{where}: written by a newer pbtrl (schema {version}; this one reads up to {SCHEMA})")
