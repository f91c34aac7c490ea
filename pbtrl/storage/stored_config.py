"""The config stored in a run directory, and the permission to import the code that it names."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pbtrl.errors import ConfigError, DamagedError, RunError
from pbtrl.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from pbtrl.config.schema import Config
    from pbtrl.config.yaml_source import ConfigSource


def check_imports(owner: object, modules: Iterable[str], *, trusted: bool, known: Collection[str] = ()) -> None:
    """Check that the user allows the imports of a stored config, which may come from an untrusted source.

    Args:
        owner: run, or folder of a sweep, for the message.
        modules: modules that its config names.
        trusted: whether they may be imported.
        known: modules that may be imported in any case, because the user named them too.

    Raises:
        RunError: a module is neither trusted nor known.
    """
    if not trusted and (refused := [module for module in modules if module not in known]):
        raise RunError(
            f"{owner} asks to import {', '.join(map(repr, refused))}, which runs its code: allow it with "
            "--trust-imports (in Python, trust_imports=True)"
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
    run: RunDirectory, overrides: Sequence[str] = (), *, trusted: bool = False, known: Collection[str] = (),
    makes_envs: bool = True,
) -> Config:  # fmt: skip
    """Load the resolved config of a run; keys that were renamed since an earlier pbtrl are translated.

    Args:
        run: run directory.
        overrides: overrides as on the command line.
        trusted: whether the modules that it names may be imported.
        known: modules that may be imported in any case, because the user named them too.
        makes_envs: False for callers that make no envs: those of env, wrappers and metric need no trust then.

    Raises:
        DamagedError: there is none.
        ConfigError: the config or an override is invalid.
        RunError: it names a module that is not trusted, or searches hyperparameters that were renamed since.
    """
    from pbtrl.config.load import read
    from pbtrl.config.renamed_keys import RENAMED

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
    return _load(run, source, overrides, trusted, known, makes_envs)


def parse_stored_config(folder: Path, text: str, *, trusted: bool = False, known: Collection[str] = ()) -> Config:
    """Load a resolved config that a file in `folder` holds as text, with the errors of `load_stored_config`."""
    from pbtrl.config.yaml_source import ConfigSource

    return _load(folder, ConfigSource(text, str(folder)), (), trusted, known, makes_envs=True)


def _load(
    owner: object, source: ConfigSource, overrides: Sequence[str], trusted: bool, known: Collection[str],
    makes_envs: bool,
) -> Config:  # fmt: skip
    from pbtrl.config.code_names import WITHOUT_ENVS, code_modules
    from pbtrl.config.load import check
    from pbtrl.config.renamed_keys import modernize

    check_imports(owner, code_modules(source.data, WITHOUT_ENVS), trusted=trusted, known=known)
    source.data = modernize(source.data)
    for override in overrides:
        source.override(override)
    config = check(source)
    if makes_envs:
        check_imports(owner, config.imports, trusted=trusted, known=known)
    return config


def _searched(section: dict[str, Any]) -> list[str]:
    hparams = section.get("hparams")
    return list(hparams) if isinstance(hparams, dict) else []


def _agents(tree: dict[str, Any]) -> list[dict[str, Any]]:
    agents = tree.get("agents")
    return [a for a in agents.values() if isinstance(a, dict)] if isinstance(agents, dict) else []
