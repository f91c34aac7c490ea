"""What a run that is gone on with may have otherwise than before: a longer budget, and how it is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pbtrl.config.load import config_from_dict, resolve
from pbtrl.config.schema import Config
from pbtrl.errors import RunError

FREE = ("budget", "execution", "final", "snapshots", "failure")
"""Sections that may change; with any other the run would mean something else."""

Settings = dict[str, Any]


def merge_resume_config(stored: Config, wanted: Config) -> Config:
    """The run's stored config with the free sections of another; a member's budget never shrinks.

    Raises:
        RunError: something else differs. What `wanted` leaves to pbtrl (null or auto) is as the run has it.
    """
    written, meant, kept = (_flat(c) for c in (wanted.to_dict(), resolve(wanted).to_dict(), stored.to_dict()))
    left_open = {name for name, value in written.items() if value is None or value == "auto"}
    changed = [
        f"{name} ({kept.get(name, 'unset')} -> {meant.get(name, 'unset')})"
        for name in sorted(kept.keys() | meant.keys())
        if name not in left_open and name.split(".")[0] not in (*FREE, "name")
        if kept.get(name) != meant.get(name)
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RunError(
            f"a run goes on as what it is, so this cannot change: {', '.join(changed[:3])}{more}. "
            f"What can: {', '.join(FREE)}; for anything else train a new run"
        )
    tree, ours = stored.to_dict(), wanted.to_dict()
    tree |= {section: ours[section] for section in FREE}
    if wanted.steps_per_member < stored.steps_per_member:
        tree["budget"] = stored.to_dict()["budget"]
    return resolve(config_from_dict(tree))


def changes(before: Config, after: Config) -> list[str]:
    """Where two configs differ, as overrides that lead from one to the other."""
    old, new = _flat(before.to_dict()), _flat(after.to_dict())
    return [f"{name}={new.get(name)}" for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Settings:
    """`{"env": {"id": x}}` as `{"env.id": x}`."""
    found: Settings = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
