"""Differences between two configs, and between a config and the defaults of what it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pbtrl.config.load import config_from_dict, resolve
from pbtrl.config.schema import Config
from pbtrl.errors import ConfigError

NEUTRAL = ("execution", "snapshots", "failure")
"""Sections that belong to the machine, not to the experiment."""


def changed_settings(before: Config, after: Config) -> dict[str, tuple[Any, Any]]:
    """Map each setting that differs, by its dotted name, to both values; None is also an absent one."""
    old, new = (dict(flatten(config.to_dict(), split_priors=True)) for config in (before, after))
    names = sorted(old.keys() | new.keys())
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def differences_from_defaults(config: Config) -> list[tuple[str, Any, Any]]:
    """List the settings that differ from the defaults, as (dotted name, value, default), with None for absent ones.

    The default of a setting is its value in a config with the same env, agents, trainable, strategy, searched
    hyperparameters and budget that sets nothing else, or as little as that strategy allows.
    """
    own, usual = dict(flatten(resolve(config).to_dict())), dict(flatten(_usual(config.to_dict())))
    own.pop("name", None)
    names = [*own, *(name for name in usual if name not in own)]
    return [(name, own.get(name), usual.get(name)) for name in names if own.get(name) != usual.get(name)]


def _usual(tree: Mapping[str, Any]) -> dict[str, Any]:
    for kept in ((), ("population",), ("population", "strategy")):
        try:
            return resolve(config_from_dict(_bare(tree) | {key: tree[key] for key in kept})).to_dict()
        except ConfigError:
            continue
    return dict(tree)


def flatten(tree: Mapping[str, Any], prefix: str = "", *, split_priors: bool = False) -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every setting; a prior is one value, or with `split_priors` several settings."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and (split_priors or "prior" not in value):
            yield from flatten(value, f"{prefix}{key}.", split_priors=split_priors)
        else:
            yield f"{prefix}{key}", value


def _bare(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a config to its choices: what is trained, by which agents and strategy, how long, over which values."""
    bare = {key: tree[key] for key in ("hparams", "budget", "trainable") if key in tree}
    for section, name in (("env", "id"), ("agent", "name"), ("strategy", "name")):
        if section in tree and name in tree[section]:
            bare[section] = {name: tree[section][name]}
    if "agents" in tree:
        bare["agents"] = {k: {n: a[n] for n in ("name", "hparams") if n in a} for k, a in tree["agents"].items()}
        bare["population"] = {"mix": tree["population"]["mix"]}
    return bare
