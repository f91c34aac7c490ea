"""The config that a run directory stores, and whether the code it names may be imported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pbtrl.errors import DamagedError, RunError

if TYPE_CHECKING:
    from pbtrl.config.schema import Config


def check_imports(run: Path, config: Config, *, allowed: bool) -> None:
    """Nothing is imported because a run directory says so: it may be a stranger's.

    Raises:
        RunError: its config names a module, and the user did not allow it.
    """
    if config.imports and not allowed:
        raise RunError(f"{run} asks to import {config.imports!r}, which runs its code: allow it with --trust-imports")


def load_stored_config(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The resolved config that a run is of.

    Raises:
        DamagedError: it is missing.
        ConfigError: it, or an override, is none.
    """
    from pbtrl.config.load import load

    path = run / "config.resolved.yaml"
    if not path.is_file():
        raise DamagedError(f"{path} is missing, and with it what the run is of: put it back, or train anew")
    return load(path, overrides)
