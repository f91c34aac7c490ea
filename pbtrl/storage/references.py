"""Run arguments as a user types them in a shell, for hints in messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pbtrl.core.naming import RUN_NAME
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_lookup import is_run_group
from pbtrl.storage.shell_words import root_option, shell_word
from pbtrl.storage.stored_config import names_modules

if TYPE_CHECKING:
    from pbtrl.config.schema import Config


def run_reference(run: RunDirectory) -> str:
    """Run argument of a command: the name, with `--runs` if the run is not in `runs/`; the path if that is no name.

    For a run of a sweep or a replay the name is `directory/name`.
    """
    group = run.path.parent
    if RUN_NAME.fullmatch(run.name) and RUN_NAME.fullmatch(group.name) and is_run_group(group):
        return f"{group.name}/{run.name}{root_option(group.parent)}"
    return f"{run.name}{root_option(group)}" if RUN_NAME.fullmatch(run.name) else shell_word(run.path)


def cli_reference(run: RunDirectory, known: Config | None = None) -> str:
    """Run argument of a command that runs the env, with `--trust-imports` if needed; `known` is the run's config."""
    imports = names_modules(run) if known is None else bool(known.imports)
    return run_reference(run) + (" --trust-imports" if imports else "")
