"""pbtrl: deep reinforcement learning with population based training built in.

The names of the Python API are loaded when they are first used, so that `import pbtrl` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Callback": "pbtrl.training.callbacks",
    "Policy": "pbtrl.rl.policy",
    "Run": "pbtrl.api",
    "Sweep": "pbtrl.training.sweep",
    "compare": "pbtrl.api",
    "list_runs": "pbtrl.api",
    "load_run": "pbtrl.api",
    "register_agent": "pbtrl.api",
    "register_strategy": "pbtrl.api",
    "register_trainable": "pbtrl.api",
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
    from pbtrl.api import (
        Run,
        compare,
        list_runs,
        load_run,
        register_agent,
        register_strategy,
        register_trainable,
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
    from pbtrl.rl.policy import Policy
    from pbtrl.training.callbacks import Callback
    from pbtrl.training.sweep import Sweep


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pbtrl' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
