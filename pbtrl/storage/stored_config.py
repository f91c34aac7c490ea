"""The config stored in a run directory, and the permission to import the code that it names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbtrl.errors import DamagedError, RunError

if TYPE_CHECKING:
    from pbtrl.config.schema import Config


def check_imports(run: Path, config: Config, *, allowed: bool) -> None:
    """Check that the user allows the imports of a run's config, which may come from an untrusted source.

    Raises:
        RunError: the config names a module, and imports are not allowed.
    """
    if config.imports and not allowed:
        raise RunError(f"{run} asks to import {config.imports!r}, which runs its code: allow it with --trust-imports")


def load_stored_config(run: Path, overrides: Sequence[str] = ()) -> Config:
    """Load the resolved config of a run; keys that were renamed since an earlier pbtrl are translated.

    Raises:
        DamagedError: there is none.
        ConfigError: the config or an override is invalid.
        RunError: it searches hyperparameters that were renamed since.
    """
    from pbtrl.config.load import check, read
    from pbtrl.config.renamed_keys import RENAMED, modernize

    path = run / "config.resolved.yaml"
    if not path.is_file():
        raise DamagedError(f"{path} is missing; restore it or start a new run")
    source = read(path)
    searched = [*_searched(source.data), *(h for agent in _agents(source.data) for h in _searched(agent))]
    if former := next((name for name in searched if name in RENAMED), None):
        raise RunError(
            f"{run} searches {former!r}, which is now called {RENAMED[former]!r}: finish it with the pbtrl version "
            f"that created it (see run.json), or start a new run"
        )
    source.data = modernize(source.data)
    for override in overrides:
        source.override(override)
    return check(source)


def _searched(section: dict[str, Any]) -> list[str]:
    hparams = section.get("hparams")
    return list(hparams) if isinstance(hparams, dict) else []


def _agents(tree: dict[str, Any]) -> list[dict[str, Any]]:
    agents = tree.get("agents")
    return [a for a in agents.values() if isinstance(a, dict)] if isinstance(agents, dict) else []
