"""Settings that an override made foreign: `strategy.name=random_search` on a config file that describes PBT.

Settings of the file that the old strategy or agent has and the new one lacks are dropped with a note, so that one file
serves to compare strategies. Unknown keys are still mistakes, and so are foreign settings given by an override.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from pbtrl.agents.settings import AGENTS
from pbtrl.config.yaml_source import ConfigSource
from pbtrl.strategies.catalog import STRATEGIES

KINDS: tuple[tuple[str, Mapping[str, type], str], ...] = (("strategy", STRATEGIES, "pbt"), ("agent", AGENTS, "impala"))


def drop_foreign_settings(source: ConfigSource) -> None:
    """Drop the settings of the file that only the replaced strategy or agent has; `source.notes` names them."""
    for key, classes, default in KINDS:
        section, path = source.data.get(key), (key, "name")
        if path not in source.marks or source.marks[path].override is None or not isinstance(section, dict):
            continue
        old, new = str(source.replaced.get(path, default)), str(section.get("name"))
        if old == new or old not in classes or new not in classes:
            continue
        foreign = _names(classes[old]) - _names(classes[new])
        dropped = [name for name in section if name in foreign and not _is_overridden(source, (key, name))]
        if dropped:
            source.data[key] = {name: value for name, value in section.items() if name not in dropped}
            source.notes.append(f"{key}.name={new} does not use {', '.join(dropped)} of {Path(source.file).name}")


def _is_overridden(source: ConfigSource, path: tuple[str, ...]) -> bool:
    """Return whether an override gives a setting, or a part of it."""
    return any(mark.override is not None for known, mark in source.marks.items() if known[: len(path)] == path)


def _names(settings: type) -> set[str]:
    return {field.name for field in fields(settings)}
