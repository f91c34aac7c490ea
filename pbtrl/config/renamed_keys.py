"""Former keys and values of configs, so that runs that stored them can still be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "feed_back": "use_last_action_reward",
    "passes": "epochs",
    "max_log_rho": "max_log_ratio",
    "optimiser": "optimizer",
}
"""Former names of agent settings, mapped to today's names."""

RENAMED_VALUES = {"normalise": "normalize", "neighbour": "neighbor"}


def modernize(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Translate a stored config to today's keys and values. Hyperparameters keep their names, as in the journal."""
    modern = dict(tree)
    if isinstance(agent := modern.get("agent"), Mapping):
        modern["agent"] = _agent(agent)
    if isinstance(agents := modern.get("agents"), Mapping):
        modern["agents"] = {name: _agent(a) if isinstance(a, Mapping) else a for name, a in agents.items()}
    if isinstance(hparams := modern.get("hparams"), Mapping):
        modern["hparams"] = _dimensions(hparams)
    if isinstance(fitness := modern.get("fitness"), Mapping):
        modern["fitness"] = _renamed(fitness, {"every": "curve_interval"})
    if isinstance(strategy := modern.get("strategy"), Mapping) and isinstance(ready := strategy.get("ready"), Mapping):
        modern["strategy"] = {**strategy, "ready": _renamed(ready, {"every": "slice_steps"})}
    return modern


def _agent(settings: Mapping[str, Any]) -> dict[str, Any]:
    modern = {key: _value(value) for key, value in _renamed(settings, RENAMED).items()}
    if isinstance(hparams := modern.get("hparams"), Mapping):
        modern["hparams"] = _dimensions(hparams)
    return modern


def _dimensions(hparams: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {key: _value(value) for key, value in dimension.items()} if isinstance(dimension, Mapping) else dimension
        for name, dimension in hparams.items()
    }


def _renamed(section: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in section.items()}


def _value(value: Any) -> Any:
    return RENAMED_VALUES.get(value, value) if isinstance(value, str) else value
