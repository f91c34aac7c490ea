"""Config changes allowed when resuming a run: a longer budget, and the sections that do not change its results."""

from __future__ import annotations

from pbtrl.config.differences import changed_settings, flatten
from pbtrl.config.load import config_from_dict, resolve
from pbtrl.config.schema import Config
from pbtrl.errors import RunError

FREE = ("budget", "execution", "final", "snapshots", "failure")
"""Sections that may change on resume; any other would make it a different experiment."""

PLACEMENT = "acting.placement"  # goes with execution.backend


def merge_resume_config(stored: Config, wanted: Config) -> Config:
    """Merge the free sections of another config into a run's stored config; a member's budget never shrinks.

    Settings that `wanted` leaves to pbtrl (null or auto) keep the stored values.

    Raises:
        RunError: a setting outside the free sections differs.
    """
    written, resolved, kept = (dict(flatten(c.to_dict(), split_priors=True)) for c in (wanted, resolve(wanted), stored))
    left_open = {name for name, value in written.items() if value is None or value == "auto"}
    changed = [
        f"{name} ({kept.get(name, 'unset')} -> {resolved.get(name, 'unset')})"
        for name in sorted(kept.keys() | resolved.keys())
        if name not in left_open and name.split(".")[0] not in (*FREE, "name") and name != PLACEMENT
        if kept.get(name) != resolved.get(name)
    ]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise RunError(
            f"cannot change on resume: {', '.join(changed[:3])}{more}. "
            f"Only {', '.join(FREE)} and {PLACEMENT} can; for other changes train a new run"
        )
    if stored.strategy.runs_trials and wanted.steps_per_member > stored.steps_per_member:
        old, more = (f"{c.steps_per_member:,} {c.unit}" for c in (stored, wanted))
        raise RunError(f"the budget of a trial of {stored.strategy.name} cannot change on resume ({old} -> {more})")
    tree, new = stored.to_dict(), wanted.to_dict()
    tree |= {section: new[section] for section in FREE}
    if stored.acting is not None and wanted.acting is not None:
        tree["acting"] = stored.acting.model_copy(update={"placement": wanted.acting.placement}).model_dump()
    if wanted.steps_per_member < stored.steps_per_member:
        tree["budget"] |= {key: getattr(stored.budget, key) for key in ("env_steps_per_member", "total_steps")}
    return resolve(config_from_dict(tree))


def changes(before: Config, after: Config) -> list[str]:
    """Return the differences between two configs, as overrides that turn `before` into `after`."""
    return [f"{name}={value}" for name, (_, value) in changed_settings(before, after).items()]
