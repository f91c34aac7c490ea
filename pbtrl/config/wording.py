"""Wording of messages about a config: paths, the nearest valid name, and values as the user writes them."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

Path = tuple[str | int, ...]
"""Keys and list indices that lead to a setting."""
SHOWN = 80  # characters of a value in a message


def unknown(label: str, name: str, known: Iterable[str], aliases: Mapping[str, str]) -> str:
    """Format `unknown key. Did you mean 'size'?`, or the list of known names if none is close."""
    known = list(known)
    alias = aliases.get(name)
    suggestion = f"Did you mean '{alias}'?" if alias in known else did_you_mean(name, known)
    return f"{label}. {suggestion or 'Known: ' + ', '.join(known)}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Format `Did you mean 'size'?`; empty if no known name is close."""
    close = difflib.get_close_matches(name[:SHOWN].lower(), known, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else ""


def dotted(path: Path) -> str:
    """Format a path as the user writes it: `population.size`."""
    return shortened(".".join(map(str, path)))


def shortened(text: str) -> str:
    """Cut text to the length that messages allow."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def shown(value: object) -> str:
    """Format a value as the user would write it, shortened."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return repr(list(value)) if len(repr(value)) < 40 else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shortened(repr(value))


def listed(names: Iterable[str], word: str) -> str:
    """Format `a, b and c`."""
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last
