"""Words of messages about a config: a mistake and its place, the nearest valid name, values as written."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

Path = tuple[str | int, ...]
"""Keys and list places that lead to a setting."""
SHOWN = 80  # characters of a text in a message


def unknown(label: str, name: str, known: Iterable[str], aliases: Mapping[str, str]) -> str:
    """`unknown key. Did you mean 'size'?`, or the list of what there is when nothing is near."""
    known = list(known)
    alias = aliases.get(name)
    near = f"Did you mean '{alias}'?" if alias in known else did_you_mean(name, known)
    return f"{label}. {near or 'Known: ' + ', '.join(known)}"


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """`Did you mean 'size'?`, or nothing where no known name is near."""
    close = difflib.get_close_matches(name[:SHOWN].lower(), known, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else ""


def dotted(path: Path) -> str:
    """A path as the user writes it: `population.size`."""
    return shortened(".".join(map(str, path)))


def shortened(text: str) -> str:
    """Text that is short enough for a message."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def shown(value: object) -> str:
    """A value as the user would write it, short."""
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple):
        return repr(list(value)) if len(repr(value)) < 40 else "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return shortened(repr(value))
