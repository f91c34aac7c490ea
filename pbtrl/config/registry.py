"""Registry of agents, strategies and trainables by name.

A name is built in, comes from an installed package's entry points (groups `pbtrl.agents`, `pbtrl.strategies`,
`pbtrl.trainables`), was registered by a call, or is `module:Class`. Classes are imported when they are needed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from pbtrl.agents.settings import AGENTS
from pbtrl.strategies.catalog import STRATEGIES
from pbtrl.system.imports import import_object, import_own_object

Kind = Literal["agent", "strategy", "trainable"]

GROUPS: dict[Kind, str] = {
    "agent": "pbtrl.agents",
    "strategy": "pbtrl.strategies",
    "trainable": "pbtrl.trainables",
}
TRAINABLES = {
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
}
BUILT_IN: dict[Kind, Mapping[str, object]] = {"agent": AGENTS, "strategy": STRATEGIES, "trainable": TRAINABLES}
"""Names that come with pbtrl, and agents and strategies that a config adopted."""
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
    """Import the class of a name; those of built-in agents and strategies are in `BUILT_IN`.

    Raises:
        KeyError: the name is unknown.
        ImportError: its module cannot be imported or has no such class; the message is one line.
    """
    built_in = TRAINABLES if kind == "trainable" else {}
    path = {**built_in, **_entry_points(kind), **_registered[kind]}.get(name, name)
    if ":" not in path:
        raise KeyError(name)
    return import_own_object(path)


def _path(target: type) -> str:
    return f"{target.__module__}:{target.__qualname__}"


@cache
def _entry_points(kind: Kind) -> dict[str, str]:
    return {e.name: e.value for e in importlib.metadata.entry_points(group=GROUPS[kind])}
