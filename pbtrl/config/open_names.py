"""Agents and strategies outside pbtrl: their settings join the config schema when a config names them."""

from __future__ import annotations

from dataclasses import is_dataclass, make_dataclass
from typing import Any, Literal

from pbtrl.agents.settings import AGENTS, ActorCriticSettings
from pbtrl.config import registry
from pbtrl.config.code_names import code_names
from pbtrl.config.schema import Config, refuse_unknown_keys
from pbtrl.config.sections import AGENT_ENTRIES, agent_entry
from pbtrl.config.wording import Path
from pbtrl.config.yaml_source import ConfigSource
from pbtrl.errors import ConfigProblem
from pbtrl.strategies.catalog import STRATEGIES
from pbtrl.strategies.settings import StrategySettings

BASES: dict[registry.Kind, type] = {"agent": ActorCriticSettings, "strategy": StrategySettings}


def adopt(source: ConfigSource) -> None:
    """Import the agents and strategies that a config names by `module:Class`, registered name or entry point.

    Registered names are replaced by their `module:Class`, which every process understands.

    Raises:
        ConfigError: a class cannot be imported, or is not of the kind that its key asks for.
    """
    problems, extended = [], False
    for kind, path, name in list(code_names(source.data)):
        if kind not in ("agent", "strategy", "trainable"):
            continue
        canonical = registry.canonical(kind, name)
        if canonical != name:
            source.data = _with(source.data, path, canonical)
        if kind == "trainable" or canonical in registry.BUILT_IN[kind]:
            continue
        if ":" in canonical or canonical in registry.known(kind):
            try:
                _add(kind, canonical)
                extended = True
            except (ImportError, TypeError) as error:
                problems.append(ConfigProblem(str(error), path))
    if problems:
        raise source.error(problems)
    if extended:
        Config.model_rebuild(force=True)


def _add(kind: registry.Kind, name: str) -> None:
    cls, base = registry.load(kind, name), BASES[kind]
    if not (isinstance(cls, type) and issubclass(cls, base) and is_dataclass(cls)):
        raise TypeError(f"must be a dataclass derived from {base.__module__}.{base.__name__}")
    named: Any = make_dataclass(cls.__name__, [("name", Literal[name], name)], bases=(cls,), frozen=True, kw_only=True)
    named.__module__, named.__doc__ = cls.__module__, cls.__doc__
    if kind == "agent":
        refuse_unknown_keys(named)
        AGENTS[name] = named
        AGENT_ENTRIES[name] = agent_entry(named)
    else:
        STRATEGIES[name] = named


def _with(tree: dict[Any, Any] | None, path: Path, value: str) -> dict[Any, Any]:
    head, *rest = path
    tree = tree or {}
    return {**tree, head: _with(tree[head], tuple(rest), value) if rest else value}
