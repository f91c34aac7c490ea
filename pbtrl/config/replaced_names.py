"""Settings of a config file that an override makes invalid; they are dropped with a note.

- `strategy.name=random_search` on a file that describes PBT drops what random search lacks, so that one file serves to
  compare strategies. `agent.name` does the same.
- `agent.gamma=0.99` drops the search of `hparams.gamma`, and an override of `hparams.gamma` the fixed `agent.gamma`.

Unknown keys are still mistakes, and so is what overrides alone contradict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from pbtrl.agents.settings import AGENTS
from pbtrl.config.wording import dotted
from pbtrl.config.yaml_source import ConfigSource, section
from pbtrl.strategies.catalog import STRATEGIES

KINDS: tuple[tuple[str, Mapping[str, type], str], ...] = (("strategy", STRATEGIES, "pbt"), ("agent", AGENTS, "impala"))

Keys = tuple[str, ...]


def drop_foreign_settings(source: ConfigSource) -> None:
    """Drop the settings of the file that only the replaced strategy or agent has; `source.notes` names them."""
    for key, classes, default in KINDS:
        settings, path = section(source.data, key), (key, "name")
        if path not in source.marks or source.marks[path].override is None:
            continue
        old, new = str(source.replaced.get(path, default)), str(settings.get("name"))
        if old == new or old not in classes or new not in classes:
            continue
        foreign = _names(classes[old]) - _names(classes[new])
        dropped = [name for name in settings if name in foreign and not _is_overridden(source, (key, name))]
        if dropped:
            source.data[key] = {name: value for name, value in settings.items() if name not in dropped}
            source.notes.append(f"{key}.name={new} does not use {', '.join(dropped)} of {Path(source.file).name}")


def drop_other_form(source: ConfigSource) -> None:
    """Drop a hyperparameter's fixed value if an override searches it, and its search if an override fixes it."""
    _drop_pairs(source, fixed=("agent",), searched=("hparams",))
    for name in section(source.data, "agents"):
        _drop_pairs(source, fixed=("agents", name), searched=("agents", name, "hparams"))
        _drop_pairs(source, fixed=("agents", name), searched=("hparams",), only_fixed=True)


def _drop_pairs(source: ConfigSource, fixed: Keys, searched: Keys, *, only_fixed: bool = False) -> None:
    for name in sorted(section(source.data, *fixed).keys() & section(source.data, *searched).keys()):
        by_override = [_is_overridden(source, (*path, name)) for path in (fixed, searched)]
        if by_override == [False, True]:
            old, new = fixed, searched
        elif by_override == [True, False] and not only_fixed:
            old, new = searched, fixed
        else:
            continue
        del section(source.data, *old)[name]
        source.notes.append(f"{dotted((*new, name))} replaces {dotted((*old, name))} of {Path(source.file).name}")


def _is_overridden(source: ConfigSource, path: tuple[str, ...]) -> bool:
    """Return whether an override gives a setting, or a part of it."""
    return any(mark.override is not None for known, mark in source.marks.items() if known[: len(path)] == path)


def _names(settings: type) -> set[str]:
    return {field.name for field in fields(settings)}
