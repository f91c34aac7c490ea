"""Paths as a user types them in a shell, for commands in messages."""

from __future__ import annotations

import shlex
from pathlib import Path


def shell_word(path: Path) -> str:
    """Quote a path for a shell so that it is not read as an option or a home directory."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith(("-", "~")) else text)


def root_option(root: Path) -> str:
    """Option `--runs ROOT` with a leading space; empty if `root` is the default."""
    return "" if root.resolve() == Path("runs").resolve() else f" --runs {shell_word(root)}"
