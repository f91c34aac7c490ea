"""Import of modules that a config names."""

import importlib
from typing import Any

from pbtrl.envs.errors import ENV_EXCEPTIONS, brief
from pbtrl.errors import EnvError
from pbtrl.system.imports import search_working_directory


def imported(setting: str, module: str) -> Any:
    """Import a module from the current directory or the installed packages; EnvError for `setting` if it cannot be."""
    search_working_directory()
    try:
        return importlib.import_module(module)
    except ENV_EXCEPTIONS as error:
        raise EnvError(
            setting,
            f"cannot import {module}: {brief(error)}; "
            "modules are searched for in the current directory and the installed packages",
        ) from error
