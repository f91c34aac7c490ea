"""The config that a run directory stores, and whether the code it names may be imported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbtrl.errors import ConfigError, DamagedError, RunError

if TYPE_CHECKING:
    from pbtrl.config.schema import Config


def check_imports(run: Path, config: Config, *, allowed: bool) -> None:
    """Refuse to import modules because a run directory names them: it may be a stranger's.

    Raises:
        RunError: its config names a module, and the user did not allow it.
    """
    _check(run, config.imports, allowed)


def _check(run: Path, modules: Sequence[str], allowed: bool) -> None:
    if modules and not allowed:
        named = ", ".join(map(repr, modules))
        raise RunError(
            f"{run} asks to import {named}, which runs its code: allow it with --trust-imports "
            "(in Python, trust_imports=True)"
        )


def names_modules(run: Path) -> bool:
    """Whether a run's config names modules to import; nothing is imported to find out, and nothing raised."""
    from pbtrl.config.load import read
    from pbtrl.config.open_names import code_modules

    try:
        tree = read(run / "config.resolved.yaml").data
    except ConfigError:
        return False
    env = tree.get("env")
    return bool(code_modules(tree)) or ":" in str(env.get("id") if isinstance(env, dict) else "")


def load_stored_config(
    run: Path, overrides: Sequence[str] = (), *, trusted: bool = False, known: Collection[str] = ()
) -> Config:
    """The resolved config of a run, also of one that an earlier pbtrl stored under other keys.

    Args:
        run: its directory.
        overrides: as on the command line.
        trusted: whether modules of agents, strategies and trainables that it names may be imported.
        known: modules that the user named too.

    Raises:
        DamagedError: it is missing.
        ConfigError: the config or an override is invalid.
        RunError: it names a module that is not trusted, or searches hyperparameters that have other names now.
    """
    from pbtrl.config.load import check, read
    from pbtrl.config.open_names import code_modules
    from pbtrl.config.renamed_keys import RENAMED, modernize

    path = run / "config.resolved.yaml"
    if not path.is_file():
        raise DamagedError(f"{path} is missing; restore it or start a new run")
    source = read(path)
    searched = [*_searched(source.data), *(h for agent in _agents(source.data) for h in _searched(agent))]
    if former := next((name for name in searched if name in RENAMED), None):
        raise RunError(
            f"{run} searches {former!r}, which is {RENAMED[former]!r} since this version: finish it with the pbtrl "
            f"that made it (see run.json), or train anew"
        )
    _check(run, [module for module in code_modules(source.data) if module not in known], trusted)
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
