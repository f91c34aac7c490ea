"""Names of code in a config: the keys that may hold `module:name`, and the modules that they name."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, get_args

from pbtrl.config.wording import Path
from pbtrl.config.yaml_source import section

CodeKind = Literal["strategy", "env", "wrapper", "agent", "trainable", "metric"]
WITHOUT_ENVS: tuple[CodeKind, ...] = ("strategy", "agent", "trainable")
"""Kinds of code that are imported by callers that make no envs, in part by reading the config."""


def code_names(tree: Mapping[str, Any]) -> Iterator[tuple[CodeKind, Path, str]]:
    """Yield kind, path and name of everything in a raw config that may name code; other types than text are skipped."""
    yield from ((kind, path, value) for kind, path, value in _values(tree) if isinstance(value, str))


def code_modules(tree: Mapping[str, Any], kinds: Collection[CodeKind] = get_args(CodeKind)) -> tuple[str, ...]:
    """List the modules that a raw config names as `module:name` for some kinds of code, each once."""
    names = (name for kind, _, name in code_names(tree) if kind in kinds)
    return tuple(dict.fromkeys(name.partition(":")[0] for name in names if ":" in name))


def names_function(metric: str) -> bool:
    """Return whether a fitness metric is `module:function`; the key of `episode/info/KEY` may have a colon too."""
    return ":" in metric and not metric.startswith("episode/")


def _values(tree: Mapping[str, Any]) -> Iterator[tuple[CodeKind, Path, Any]]:
    yield "strategy", ("strategy", "name"), section(tree, "strategy").get("name")
    env = section(tree, "env")
    yield "env", ("env", "id"), env.get("id")
    wrappers = env.get("wrappers")
    for number, wrapper in enumerate(wrappers if isinstance(wrappers, list) else ()):
        yield "wrapper", ("env", "wrappers", number), wrapper.get("id") if isinstance(wrapper, dict) else wrapper
    yield "agent", ("agent", "name"), section(tree, "agent").get("name")
    for key, entry in section(tree, "agents").items():
        if isinstance(entry, dict | None):
            yield "agent", ("agents", key, "name"), (entry or {}).get("name", key)
    yield "trainable", ("trainable", "name"), section(tree, "trainable").get("name")
    metric = section(tree, "fitness").get("metric")
    if isinstance(metric, str) and names_function(metric):
        yield "metric", ("fitness", "metric"), metric
