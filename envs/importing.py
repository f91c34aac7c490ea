"""Import of modules that a config names."""

import importlib
import os
import sys
from typing import Any

from pbtrl.envs.errors import ENV_EXCEPTIONS, brief
from pbtrl.errors import EnvError


def imported(setting: str, module: str) -> Any:
    """Import a module from the current directory or the installed packages; EnvError for `setting` if it cannot be."""
    # For a console script, sys.path lacks the current directory, where a user's own env usually is.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module)
    except ENV_EXCEPTIONS as error:
        raise EnvError(
            setting,
            f"cannot import {module}: {brief(error)}; "
            "modules are searched for in the current directory and the installed packages",
        ) from error
