"""Agents and strategies of other people: their settings become part of the config schema when a config names them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass, make_dataclass
from typing import Any, Literal

from pbtrl.agents.settings import AGENTS, ActorCriticSettings
from pbtrl.config.schema import Config, refuse_unknown_keys
from pbtrl.config.sections import AGENT_ENTRIES, agent_entry
from pbtrl.config.yaml_source import ConfigSource
from pbtrl.core import registry
from pbtrl.errors import ConfigProblem
from pbtrl.strategies.settings import STRATEGIES, StrategySettings

BASES: dict[registry.Kind, type] = {"agent": ActorCriticSettings, "strategy": StrategySettings}


def adopt(source: ConfigSource) -> None:
    """Import what a config names by `module:Class`, by a registered name or by an entry point.

    Registered names are replaced by their `module:Class`, which every process understands.

    Raises:
        ConfigError: a class that cannot be imported, or is not what it is named as.
    """
    problems, grown = [], False
    for kind, path, name in list(_named(source.data)):
        canonical = registry.canonical(kind, name)
        if canonical != name:
            source.data = _with(source.data, path, canonical)
        if kind == "trainable" or canonical in (AGENTS if kind == "agent" else STRATEGIES):
            continue
        if ":" in canonical or canonical in registry.known(kind):
            try:
                _add(kind, canonical)
                grown = True
            except (ImportError, TypeError) as error:
                problems.append(ConfigProblem(str(error), path))
    if problems:
        raise source.error(problems)
    if grown:
        Config.model_rebuild(force=True)


def code_modules(tree: Mapping[str, Any]) -> tuple[str, ...]:
    """Modules of agents, strategies and trainables that a config names; reading the config imports them."""
    names = (registry.canonical(kind, name) for kind, _, name in _named(tree))
    return tuple(dict.fromkeys(name.partition(":")[0] for name in names if ":" in name))


def _named(tree: Mapping[str, Any]) -> Iterator[tuple[registry.Kind, tuple[str, ...], str]]:
    """Every agent, strategy and trainable that a raw config names: kind, path of the name, name."""
    kinds: tuple[registry.Kind, ...] = ("agent", "strategy", "trainable")
    for kind in kinds:
        section = tree.get(kind)
        if isinstance(section, Mapping) and isinstance(name := section.get("name"), str):
            yield kind, (kind, "name"), name
    agents = tree.get("agents")
    for entry, section in agents.items() if isinstance(agents, Mapping) else ():
        if isinstance(section, Mapping) and isinstance(name := section.get("name"), str):
            yield "agent", ("agents", entry, "name"), name


def _add(kind: registry.Kind, name: str) -> None:
    found, base = registry.load(kind, name), BASES[kind]
    if not (isinstance(found, type) and issubclass(found, base) and is_dataclass(found)):
        raise TypeError(f"must be a dataclass derived from {base.__module__}.{base.__name__}")
    named: Any = make_dataclass(
        found.__name__, [("name", Literal[name], name)], bases=(found,), frozen=True, kw_only=True
    )
    named.__module__, named.__doc__ = found.__module__, found.__doc__
    if kind == "agent":
        refuse_unknown_keys(named)
        AGENTS[name] = named
        AGENT_ENTRIES[name] = agent_entry(named)
    else:
        STRATEGIES[name] = named


def _with(tree: dict[str, Any], path: tuple[str, ...], value: str) -> dict[str, Any]:
    head, *rest = path
    return {**tree, head: _with(tree[head], tuple(rest), value) if rest else value}
