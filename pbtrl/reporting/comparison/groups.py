"""Groups of runs that are replications of each other, and short labels made of what differs between the groups."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pbtrl.errors import printable
from pbtrl.reporting.comparison.runs import ComparedRun, Settings
from pbtrl.reporting.formatting import format_value
from pbtrl.system.strict_json import to_json

DERIVED = (
    "population.size", "strategy.ready.slice_steps", "budget.", "fitness.", "final.",
)  # fmt: skip
"""Settings that name a group only if nothing else does, because they often follow from others; telling ones first."""
SEED = re.compile(r"(-s\d*|[-_. ]+\d*|\d+)$")  # at the end of the names of replications
MAX_LABEL_LENGTH = 60  # characters of a label


def group_runs(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """Put runs with the same settings together, in the order of the runs."""
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault(_key(run.settings), []).append(run)
    return list(groups.values())


def varying_settings(groups: Sequence[Settings]) -> dict[str, list[Any]]:
    """Map each setting that differs to its value in every group, None where it is absent; the telling ones first."""
    names = dict.fromkeys(name for settings in groups for name in settings)
    values = {name: [settings.get(name) for settings in groups] for name in names}
    return {name: values[name] for name in sorted(names, key=_priority) if len(set(map(_key, values[name]))) > 1}


def may_change_task(name: str, values: Sequence[Any]) -> bool:
    """Return whether a setting with these values may change what a score measures, so that groups differ in the task.

    A setting of a trainable may, unless a group searches it: then it is a hyperparameter.
    """
    if name.startswith("trainable."):
        return not any(map(_is_prior, values))
    return name.startswith("env.kwargs.") or name in ("env.wrappers", "env.flatten_observations", "final.max_steps")


def labels(groups: Sequence[Settings], names: Sequence[Sequence[str]] = ()) -> list[str]:
    """Name each group by as few differing settings as tell all groups apart.

    Args:
        groups: settings of each group.
        names: names of each group's runs; used if a setting is too long to be shown.
    """
    if len(groups) == 1:
        return [_word("strategy.name", groups[0].get("strategy.name", "all runs"))]
    chosen: list[str] = []
    varying = varying_settings(groups)
    for name in varying:
        if _count(varying, [*chosen, name]) > _count(varying, chosen):
            chosen.append(name)
    texts = [", ".join(word for n in chosen if (word := _word(n, varying[n][i]))) for i in range(len(groups))]
    stems = [_stem(group) for group in names]
    if len(set(stems)) == len(groups) and all(stems) and any(len(text) > MAX_LABEL_LENGTH for text in texts):
        return stems
    short = [text if len(text) <= MAX_LABEL_LENGTH else f"{text[: MAX_LABEL_LENGTH - 1]}…" for text in texts]
    short = [text or "others" for text in short]
    return [text if short.count(text) == 1 else f"{text} ({short[:i].count(text) + 1})" for i, text in enumerate(short)]


def _stem(names: Sequence[str]) -> str:
    """Common beginning of the names of replications, without the seed, as in `pbt` for `pbt-s1` and `pbt-s12`."""
    first, last = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return printable(SEED.sub("", first[:same]) if len(names) > 1 else first)


def _count(varying: Mapping[str, Sequence[Any]], names: Sequence[str]) -> int:
    """Number of groups that these settings tell apart."""
    return len({_key(row) for row in zip(*(varying[name] for name in names), strict=True)}) if names else 1


def _priority(name: str) -> tuple[int, str]:
    first = ("strategy.name", "agent.name", "trainable.name")
    if name in first:
        return first.index(name), name
    derived = [i for i, start in enumerate(DERIVED) if name.startswith(start)]
    if derived or name.endswith(("block_length", "curve_interval")):
        return (5 + min(derived, default=len(DERIVED))), name
    return (3 if name.startswith(("agent.", "trainable.")) else 4), name


def _word(name: str, value: Any) -> str:
    """Format a setting for a label: `pbt`, `learning_rate 1e-3`, `exploit t_test`; empty if it is absent."""
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        text = "+".join(map(format_value, value)) or "none"
    elif _is_prior(value):
        low, high = (format_value(value[end]) if end in value else "" for end in ("low", "high"))
        text = f"searched {low} to {high}" if low or high else "searched"
    else:
        text = format_value(value) if isinstance(value, str | int | float) else _key(value)
    *sections, last = name.split(".")
    if last == "name":
        return printable(text)
    key = sections[-1] if last == "method" and sections else last
    return printable(f"{key} {text}")


def _is_prior(value: Any) -> bool:
    return isinstance(value, dict) and "prior" in value


def setting_text(value: Any) -> str:
    """Format any setting, exactly; empty if it is absent."""
    if value is None:
        return ""
    return printable(value if isinstance(value, str) else _key(value))


def _key(value: Any) -> str:
    return to_json(value, sort_keys=True, default=str)
