"""Imports of what a text names, as `module:name`."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def import_object(path: str) -> Any:
    """Import what `module:name` names."""
    module, _, qualified = path.partition(":")
    result: Any = importlib.import_module(module)
    for part in qualified.split("."):
        result = getattr(result, part)
    return result


def import_own_object(path: str) -> Any:
    """Import what `module:name` names in the user's own code, also from the working directory.

    Raises:
        ImportError: the module cannot be imported or has no such name; the message is one line.
    """
    if path.startswith("__main__:"):
        raise ImportError(f"{path} cannot be imported by workers: move it to an importable module")
    search_working_directory()
    try:
        return import_object(path)
    except Exception as error:  # the module is the user's own code
        raise ImportError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error


def search_working_directory() -> None:
    """Add the working directory to the end of the module search path, which lacks it in console scripts."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
