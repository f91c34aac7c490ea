"""Ranges of values that agents accept."""

from dataclasses import fields

from pbtrl.agents.settings import AgentSettings
from pbtrl.core.dimensions import Choice, Dimension


def accepted_ranges(agent: AgentSettings | type[AgentSettings]) -> dict[str, tuple[float | None, float | None]]:
    """Map each live hyperparameter to the closed interval that the agent accepts; None is an open end."""
    return {f.name: (f.metadata["low"], f.metadata["high"]) for f in fields(agent) if f.metadata.get("live")}


def largest_unroll(agent: AgentSettings, searched: Dimension | None) -> int:
    """Return the largest unroll length of a run, in env steps per env; `searched` is its dimension, or None."""
    if searched is None:
        return agent.unroll_length
    if isinstance(searched, Choice):
        numbers = [int(value) for value in searched.values if isinstance(value, int | float)]
        return max(numbers, default=agent.unroll_length)
    return int(searched.limits[1])


def is_within(value: float, low: float | None, high: float | None) -> bool:
    """Return whether a value lies in a closed interval; None is an open end."""
    return (low is None or value >= low) and (high is None or value <= high)


def describe_interval(low: float | None, high: float | None) -> str:
    """Describe a closed interval: `in [0, 1]`, `>= 1`."""
    if low is not None and high is not None:
        return f"in [{low:g}, {high:g}]"
    return f">= {low:g}" if low is not None else f"<= {high:g}"
