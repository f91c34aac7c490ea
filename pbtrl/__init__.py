"""pbtrl: deep reinforcement learning with population based training built in.

The names of the Python API are loaded when they are first used, so that `import pbtrl` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_EXPORTS = {
    "Callback": "pbtrl.training.callbacks",
    "Policy": "pbtrl.rl.policy",
    "Run": "pbtrl.api",
    "Sweep": "pbtrl.training.sweep",
    "compare": "pbtrl.api",
    "list_runs": "pbtrl.api",
    "load_run": "pbtrl.api",
    "register_agent": "pbtrl.registration",
    "register_strategy": "pbtrl.registration",
    "register_trainable": "pbtrl.registration",
    "resume": "pbtrl.api",
    "sweep": "pbtrl.api",
    "train": "pbtrl.api",
    **dict.fromkeys(
        (
            "CallbackError", "ConfigError", "DamagedError", "DiskFullError", "EnvError", "PbtrlError", "RunError",
            "SnapshotError", "TrainingError", "WorkerError",
        ),
        "pbtrl.errors",
    ),
}  # fmt: skip

__all__ = [
    "Callback",
    "CallbackError",
    "ConfigError",
    "DamagedError",
    "DiskFullError",
    "EnvError",
    "PbtrlError",
    "Policy",
    "Run",
    "RunError",
    "SnapshotError",
    "Sweep",
    "TrainingError",
    "WorkerError",
    "compare",
    "list_runs",
    "load_run",
    "register_agent",
    "register_strategy",
    "register_trainable",
    "resume",
    "sweep",
    "train",
]

if TYPE_CHECKING:
    __version__: str
    from pbtrl.api import (
        Run,
        compare,
        list_runs,
        load_run,
        resume,
        sweep,
        train,
    )
    from pbtrl.errors import (
        CallbackError,
        ConfigError,
        DamagedError,
        DiskFullError,
        EnvError,
        PbtrlError,
        RunError,
        SnapshotError,
        TrainingError,
        WorkerError,
    )
    from pbtrl.registration import register_agent, register_strategy, register_trainable
    from pbtrl.rl.policy import Policy
    from pbtrl.training.callbacks import Callback
    from pbtrl.training.sweep import Sweep


def _version() -> str:
    """Version that was installed: the latest tag in git, and the commits since then."""
    from importlib import metadata

    try:
        return metadata.version("pbtrl")
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return "0.0"


def __getattr__(name: str) -> Any:
    if name == "__version__":
        globals()[name] = _version()
        return globals()[name]
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pbtrl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
