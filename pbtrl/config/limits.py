"""Ranges of values that agents accept."""

from dataclasses import fields

from pbtrl.agents.settings import AgentSettings
from pbtrl.core.dimensions import Choice, Dimension


def accepted_ranges(agent: AgentSettings | type[AgentSettings]) -> dict[str, tuple[float | None, float | None]]:
    """Live hyperparameter -> the closed interval that the agent accepts; None is open."""
    return {f.name: (f.metadata["low"], f.metadata["high"]) for f in fields(agent) if f.metadata.get("live")}


def largest_unroll(agent: AgentSettings, searched: Dimension | None) -> int:
    """The largest unroll that an agent may be given, in env steps per env; `searched` is its dimension, if any."""
    if searched is None:
        return agent.unroll_length
    if isinstance(searched, Choice):
        numbers = [int(value) for value in searched.values if isinstance(value, int | float)]
        return max(numbers, default=agent.unroll_length)
    return int(searched.limits[1])


def is_within(value: float, low: float | None, high: float | None) -> bool:
    """Whether a value lies in a closed interval; None is open."""
    return (low is None or value >= low) and (high is None or value <= high)


def describe_interval(low: float | None, high: float | None) -> str:
    """A closed interval in words: `in [0, 1]`, `>= 1`."""
    if low is not None and high is not None:
        return f"in [{low:g}, {high:g}]"
    return f">= {low:g}" if low is not None else f"<= {high:g}"
