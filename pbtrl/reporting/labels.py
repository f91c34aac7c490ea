"""Aligned pairs of a label and text."""

from __future__ import annotations

from collections.abc import Mapping


def labeled(lines: Mapping[str, str]) -> str:
    """A line for each, with its name in front; lines that a text itself has are moved below each other."""
    below = "\n" + 11 * " "
    return "\n".join(f"{name.strip():<11}{text}".replace("\n", below) for name, text in lines.items())
