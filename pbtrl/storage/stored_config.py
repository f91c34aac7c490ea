"""The config stored in a run directory, and the permission to import the code that it names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbtrl.errors import ConfigError, DamagedError, RunError
from pbtrl.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from pbtrl.config.schema import Config


def check_imports(run: RunDirectory, config: Config, *, allowed: bool) -> None:
    """Check that the user allows the imports of a run's config, which may come from an untrusted source.

    Raises:
        RunError: the config names a module, and imports are not allowed.
    """
    _check(run, config.imports, allowed)


def _check(run: object, modules: Sequence[str], allowed: bool) -> None:
    if modules and not allowed:
        named = ", ".join(map(repr, modules))
        raise RunError(
            f"{run} asks to import {named}, which runs its code: allow it with --trust-imports "
            "(in Python, trust_imports=True)"
        )


def names_modules(run: RunDirectory) -> bool:
    """Return whether a run's config names modules to import; imports and raises nothing."""
    from pbtrl.config.code_names import code_modules
    from pbtrl.config.load import read

    path = run.resolved_config
    if not path.is_file():  # a pipe would block
        return False
    try:
        return bool(code_modules(read(path).data))
    except ConfigError:
        return False


def load_stored_config(
    run: RunDirectory, overrides: Sequence[str] = (), *, trusted: bool = False, known: Collection[str] = ()
) -> Config:
    """Load the resolved config of a run; keys that were renamed since an earlier pbtrl are translated.

    Args:
        run: run directory.
        overrides: overrides as on the command line.
        trusted: whether the modules of agents, strategies and trainables that it names may be imported.
        known: modules that may be imported in any case, because the user named them too.

    Raises:
        DamagedError: there is none.
        ConfigError: the config or an override is invalid.
        RunError: it names a module that is not trusted, or searches hyperparameters that were renamed since.
    """
    from pbtrl.config.code_names import ON_READING, code_modules
    from pbtrl.config.load import check, read
    from pbtrl.config.renamed_keys import RENAMED, modernize

    path = run.resolved_config
    if not path.is_file():
        raise DamagedError(f"{path} is missing; restore it or start a new run")
    source = read(path)
    searched = [*_searched(source.data), *(h for agent in _agents(source.data) for h in _searched(agent))]
    if former := next((name for name in searched if name in RENAMED), None):
        raise RunError(
            f"{run} searches {former!r}, which is now called {RENAMED[former]!r}: finish it with the pbtrl version "
            f"that created it (see run.json), or start a new run"
        )
    _check(run, [module for module in code_modules(source.data, ON_READING) if module not in known], trusted)
    source.data = modernize(source.data)
    for override in overrides:
        source.override(override)
    return check(source)


def parse_stored_config(folder: Path, text: str, *, trusted: bool = False, known: Collection[str] = ()) -> Config:
    """Load a resolved config that a file in `folder` holds as text; arguments and errors as of `load_stored_config`."""
    from pbtrl.config.code_names import ON_READING, code_modules
    from pbtrl.config.load import check
    from pbtrl.config.renamed_keys import modernize
    from pbtrl.config.yaml_source import ConfigSource

    source = ConfigSource(text, str(folder))
    _check(folder, [module for module in code_modules(source.data, ON_READING) if module not in known], trusted)
    source.data = modernize(source.data)
    config = check(source)
    _check(folder, [module for module in config.imports if module not in known], trusted)
    return config


def _searched(section: dict[str, Any]) -> list[str]:
    hparams = section.get("hparams")
    return list(hparams) if isinstance(hparams, dict) else []


def _agents(tree: dict[str, Any]) -> list[dict[str, Any]]:
    agents = tree.get("agents")
    return [a for a in agents.values() if isinstance(a, dict)] if isinstance(agents, dict) else []
