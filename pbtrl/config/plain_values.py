"""Conversion of a caller's Python values to those that YAML has."""

import os
from collections.abc import Mapping
from typing import Any

from pbtrl.config.wording import Path, shown
from pbtrl.config.yaml_source import DEEPEST, TOO_DEEP
from pbtrl.errors import ConfigProblem


def plain(value: Any, path: Path = ()) -> Any:
    """Return a value as text, a number, a boolean, None, or a list or dictionary of these.

    Numbers and arrays of NumPy or torch are converted, and paths become text. `path` leads to the value.

    Raises:
        ConfigProblem: YAML has no such value, or it is nested too deeply.
    """
    if len(path) > DEEPEST:
        raise ConfigProblem(TOO_DEEP, path)
    if hasattr(value, "dtype") and hasattr(value, "tolist"):  # without an import of either library
        value = value.tolist()
    if value is None or isinstance(value, bool):
        return value
    converters: dict[type, Any] = {str: str.__str__, int: int.__int__, float: float.__float__}
    for kind, convert in converters.items():
        if isinstance(value, kind):
            return convert(value)  # PyYAML refuses subclasses, such as those of Enum
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {_key(key, path): plain(below, (*path, str(key))) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [plain(below, (*path, place)) for place, below in enumerate(value)]
    raise ConfigProblem(f"must be text, a number, true, false, null, a list or a section, not {shown(value)}", path)


def _key(key: Any, path: Path) -> str:
    if not isinstance(key, str):
        raise ConfigProblem(f"keys must be text, not {shown(key)}", path)
    return str.__str__(key)
