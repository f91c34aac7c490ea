"""Changes while a run lives (`pbtrl set`): which settings may change, and the config that follows from the journal.

A change is a line of kind `set` in the journal. The stored config stays that of the run's start; whoever asks the
strategy applies the lines so far to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pbtrl.config.load import check, config_from_dict
from pbtrl.config.schema import Config
from pbtrl.config.yaml_source import ConfigSource
from pbtrl.core.records import Record, RunChanged
from pbtrl.errors import ConfigError, DamagedError, RunError

EXPLORE = ("factors", "sd", "probability", "resample_probability")
BOUNDS = ("low", "high", "bounds")

Settings = dict[str, Any]
"""Values by dotted key."""


def adjustable(config: Config) -> list[str]:
    """List the settings that may change, by dotted key; none if the strategy does not explore."""
    strategy = config.strategy
    if not strategy.explores or strategy.runs_trials:
        return []
    rule = getattr(strategy, "explore", None)
    keys = [f"strategy.explore.{name}" for name in EXPLORE if hasattr(rule, name)]
    sections = {"hparams": config.hparams}
    sections |= {f"agents.{name}.hparams": entry.hparams for name, entry in (config.agents or {}).items()}
    for section, searched in sections.items():
        for name, dimension in searched.items():
            keys += [f"{section}.{name}.{end}" for end in BOUNDS if hasattr(dimension, end)]
    return keys


def adjust(config: Config, overrides: Sequence[str]) -> tuple[Config, Settings]:
    """Apply `key=value`, and check the result as a whole.

    Returns:
        The new config, and the settings as JSON values.

    Raises:
        RunError: a setting may not change or a value is invalid; the message is one line.
    """
    allowed, source = adjustable(config), ConfigSource()
    keys = [text.partition("=")[0].strip() for text in overrides]
    for key in keys:
        if key not in allowed:
            raise RunError(f"{key!r} cannot change while a run lives. {_listed(config, allowed)}")
    source.data = config.to_dict()
    for text in overrides:
        source.override(text)
    try:
        changed = check(source)
    except ConfigError as error:
        raise RunError("; ".join(error.messages)) from None
    tree = changed.to_dict()
    return changed, {key: _at(tree, key.split(".")) for key in keys}


def adjusted(config: Config, records: Iterable[Record]) -> Config:
    """Apply the changes in a journal to a config, in order.

    Raises:
        DamagedError: they hold what no `pbtrl set` wrote; the journal may come from an untrusted source.
    """
    settings: Settings = {}
    for record in records:
        if isinstance(record, RunChanged):
            settings |= record.settings
    if not settings:
        return config
    tree, allowed = config.to_dict(), adjustable(config)
    if foreign := sorted(settings.keys() - set(allowed)):
        raise DamagedError(f"the journal sets {foreign[0]!r}, which cannot change while a run lives")
    for key, value in settings.items():
        *sections, last = key.split(".")
        _at(tree, sections)[last] = value
    try:
        return config_from_dict(tree)
    except ConfigError as error:
        raise DamagedError(f"the journal sets an invalid value: {'; '.join(error.messages)}") from None


def _listed(config: Config, allowed: Sequence[str]) -> str:
    retire = "retire=MEMBER" if config.strategy.retires_on_request else ""
    if known := ", ".join(filter(None, [*allowed, retire])):
        return f"What can: {known}"
    return f"Nothing can with the strategy {config.strategy.name}"


def _at(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    result: Any = tree
    for key in path:
        result = result[key]
    return result
