"""Keys of configs that were stored before they were renamed, so that a run made then can still be resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {
    "feed_back": "use_last_action_reward",
    "passes": "epochs",
    "max_log_rho": "max_log_ratio",
    "optimiser": "optimizer",
}
"""Settings of agents, by their former names."""

RENAMED_VALUES = {"normalise": "normalize", "neighbour": "neighbor"}


def modernize(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A stored config with today's keys and values. Hyperparameters keep their names: the journal has them too."""
    found = dict(tree)
    if isinstance(agent := found.get("agent"), Mapping):
        found["agent"] = _agent(agent)
    if isinstance(agents := found.get("agents"), Mapping):
        found["agents"] = {name: _agent(a) if isinstance(a, Mapping) else a for name, a in agents.items()}
    if isinstance(hparams := found.get("hparams"), Mapping):
        found["hparams"] = _dimensions(hparams)
    if isinstance(fitness := found.get("fitness"), Mapping):
        found["fitness"] = _renamed(fitness, {"every": "curve_interval"})
    if isinstance(strategy := found.get("strategy"), Mapping) and isinstance(ready := strategy.get("ready"), Mapping):
        found["strategy"] = {**strategy, "ready": _renamed(ready, {"every": "slice_steps"})}
    return found


def _agent(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {key: _value(value) for key, value in _renamed(settings, RENAMED).items()}
    if isinstance(hparams := found.get("hparams"), Mapping):
        found["hparams"] = _dimensions(hparams)
    return found


def _dimensions(hparams: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {key: _value(value) for key, value in dimension.items()} if isinstance(dimension, Mapping) else dimension
        for name, dimension in hparams.items()
    }


def _renamed(section: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in section.items()}


def _value(value: Any) -> Any:
    return RENAMED_VALUES.get(value, value) if isinstance(value, str) else value
