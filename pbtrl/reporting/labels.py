"""Alignment of labeled lines of text."""

from __future__ import annotations

from collections.abc import Mapping


def labeled(lines: Mapping[str, str]) -> str:
    """Format one line per entry as `label  text`; further lines of a text are indented below its first one."""
    below = "\n" + 11 * " "
    return "\n".join(f"{name.strip():<11}{text}".replace("\n", below) for name, text in lines.items())
