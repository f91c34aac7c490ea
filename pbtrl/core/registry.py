"""Registry of agents, strategies and trainables by name.

A name is built in, comes from an installed package's entry points (groups `pbtrl.agents`, `pbtrl.strategies`,
`pbtrl.trainables`), was registered by a call, or is `module:Class`. Classes are imported when they are needed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
from functools import cache
from typing import Any, Literal

Kind = Literal["agent", "strategy", "trainable"]

GROUPS: dict[Kind, str] = {
    "agent": "pbtrl.agents",
    "strategy": "pbtrl.strategies",
    "trainable": "pbtrl.trainables",
}
BUILT_IN: dict[Kind, dict[str, str]] = {
    "agent": {
        "impala": "pbtrl.agents.settings:ImpalaSettings",
        "a3c": "pbtrl.agents.settings:A3CSettings",
        "vmpo": "pbtrl.agents.settings:VMPOSettings",
        "ppo": "pbtrl.agents.settings:PPOSettings",
        "unreal": "pbtrl.agents.settings:UnrealSettings",
        "feudal": "pbtrl.agents.settings:FeudalSettings",
    },
    "strategy": {
        "pbt": "pbtrl.strategies.pbt_settings:PBTSettings",
        "fire": "pbtrl.strategies.fire_settings:FireSettings",
        "schedule_replay": "pbtrl.strategies.replay_settings:ScheduleReplaySettings",
        "random_search": "pbtrl.strategies.trial_settings:RandomSearchSettings",
        "grid": "pbtrl.strategies.trial_settings:GridSettings",
        "fixed": "pbtrl.strategies.trial_settings:FixedSettings",
        "successive_halving": "pbtrl.strategies.trial_settings:SuccessiveHalvingSettings",
        "hyperband": "pbtrl.strategies.trial_settings:HyperbandSettings",
        "asha": "pbtrl.strategies.trial_settings:ASHASettings",
        "bayesian": "pbtrl.strategies.trial_settings:BayesianSettings",
        "pb2": "pbtrl.strategies.pbt_variants_settings:PB2Settings",
        "mf_pbt": "pbtrl.strategies.pbt_variants_settings:MFPBTSettings",
        "rl_search": "pbtrl.strategies.rl_search_settings:RLSearchSettings",
    },
    "trainable": {
        "quadratic": "pbtrl.trainables.quadratic:Quadratic",
        "noisy_quadratic": "pbtrl.trainables.noisy_quadratic:NoisyQuadratic",
        "chebykin": "pbtrl.trainables.chebykin:Chebykin",
        "constant": "pbtrl.trainables.constant:Constant",
        "drifting_bandit": "pbtrl.trainables.drifting_bandit:DriftingBandit",
        "chain": "pbtrl.trainables.chain:Chain",
        "boosting": "pbtrl.trainables.boosting:Boosting",
        "classifier": "pbtrl.trainables.classifier:Classifier",
        "gan": "pbtrl.trainables.gan:GAN",
        "translator": "pbtrl.trainables.translator:Translator",
    },
}
_registered: dict[Kind, dict[str, str]] = {kind: {} for kind in GROUPS}


def register(kind: Kind, name: str, target: type) -> None:
    """Register a class under a name for configs. They store its `module:Class`, by which other processes import it.

    Raises:
        ValueError: the name is taken or contains a colon, or the class is not importable (as in a script or function).
    """
    if ":" in name or not name:
        raise ValueError(f"{name!r} is not a valid name: a colon separates module and class")
    if name in known(kind) and _registered[kind].get(name) != _path(target):
        raise ValueError(f"the name {name!r} is taken by another {kind}")
    module, qualified = target.__module__, target.__qualname__
    try:
        importable = module != "__main__" and import_object(_path(target)) is target
    except (ImportError, AttributeError):
        importable = False
    if not importable:
        raise ValueError(f"{qualified} cannot be imported from {module}: move it to a module that can be imported")
    _registered[kind][name] = _path(target)


def known(kind: Kind) -> list[str]:
    """List the names that need no module."""
    return [*BUILT_IN[kind], *_entry_points(kind), *_registered[kind]]


def canonical(kind: Kind, name: str) -> str:
    """Return a name that every process knows: for a registered class its `module:Class`."""
    return _registered[kind].get(name, name)


def load(kind: Kind, name: str) -> Any:
    """Import the class of a name.

    Raises:
        KeyError: the name is unknown.
        ImportError: its module cannot be imported or has no such class; the message is one line.
    """
    path = {**BUILT_IN[kind], **_entry_points(kind), **_registered[kind]}.get(name, name)
    if ":" not in path:
        raise KeyError(name)
    return load_path(path)


def load_path(path: str) -> Any:
    """Import what `module:name` names, also from the working directory.

    Raises:
        ImportError: the module cannot be imported or has no such name; the message is one line.
    """
    if path.startswith("__main__:"):
        raise ImportError(f"{path} cannot be imported by workers: move it to an importable module")
    if os.getcwd() not in sys.path and "" not in sys.path:  # console scripts do not look in the working directory
        sys.path.append(os.getcwd())
    try:
        return import_object(path)
    except Exception as error:  # the module is the user's own code
        raise ImportError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error


def import_object(path: str) -> Any:
    """Import what `module:name` names."""
    module, _, qualified = path.partition(":")
    result: Any = importlib.import_module(module)
    for part in qualified.split("."):
        result = getattr(result, part)
    return result


def _path(target: type) -> str:
    return f"{target.__module__}:{target.__qualname__}"


@cache
def _entry_points(kind: Kind) -> dict[str, str]:
    return {e.name: e.value for e in importlib.metadata.entry_points(group=GROUPS[kind])}
