"""Names of runs and options as a user types them in a shell."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pbtrl.config.schema import Config
from pbtrl.storage.run_lookup import RUN_NAME
from pbtrl.storage.stored_config import names_modules


def run_reference(run: Path) -> str:
    """What to call a run in a shell's command: its name, with `--runs` where it lies elsewhere; its path if renamed."""
    return f"{run.name}{root_option(run.parent)}" if RUN_NAME.fullmatch(run.name) else _word(run)


def root_option(root: Path) -> str:
    """What a shell's command needs besides names of runs that lie in `root`, with a space before it."""
    return "" if root.resolve() == Path("runs").resolve() else f" --runs {_word(root)}"


def _word(path: Path) -> str:
    """A path, quoted for a shell, that is taken neither for an option nor for a home directory."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith(("-", "~")) else text)


def cli_reference(run: Path, known: Config | None = None) -> str:
    """`run_reference` for commands that run the env, which may have to be allowed; `known` is the run's config."""
    imports = names_modules(run) if known is None else bool(known.imports)
    return run_reference(run) + (" --trust-imports" if imports else "")
