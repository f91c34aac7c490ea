"""Progress and events as single lines of plain text or JSON."""

from __future__ import annotations

import statistics

from pbtrl.reporting.formatting import (
    format_count,
    format_duration,
    format_fitness,
    format_mixture,
    format_share,
)
from pbtrl.reporting.live_status import ROUTINE, Event, LiveStatus
from pbtrl.system.strict_json import to_json


def plain_line(status: LiveStatus) -> str:
    """Format the progress of a run as plain text."""
    header, best = status.header, status.population.best
    share, known = format_share(status.step, header.budget), _fitnesses(status)
    parts = [
        f"{format_duration(status.elapsed):>9}",
        f"{format_count(status.step)} / {format_count(header.budget)} {header.steps} ({share})",
        f"{format_count(status.rate)} steps/s" if status.rate is not None else "",
        f"gen {max(0, status.generation)}",
        f"best {best.id} {format_fitness(best.fitness)}  median {format_fitness(statistics.median(known))}"
        if best
        else "",
        f"{format_duration(status.left)} left" if status.left else "",
        format_mixture(status.population.agents),
        f"{retired} retired" if (retired := sum(m.retired for m in status.population.members.values())) else "",
    ]
    return "  ".join(part for part in parts if part)


def _fitnesses(status: LiveStatus) -> list[float]:
    """Fitness of all candidates for the best that have one, without those from before a copy."""
    return [m.fitness for m in status.population.ranking() if m.fitness is not None]


def plain_event(event: Event) -> str:
    """Format an event as plain text; empty for events that occur all the time."""
    return "" if event.kind in ROUTINE else f"{format_duration(event.elapsed):>9}  {event.text}"


def json_line(status: LiveStatus) -> str:
    """Format the progress of a run as JSON."""
    best = status.population.best
    known = _fitnesses(status)
    body = {
        "kind": "progress",
        "elapsed": round(status.elapsed, 3),
        "left": status.left,
        "unit": status.header.unit,
        "env_steps": status.step,
        "frames": status.step * status.header.frames_per_step,
        "steps_budget": status.header.budget,
        "env_steps_per_s": status.rate,
        "generation": status.generation,
        "best": best and {"member": best.id, "fitness": best.fitness},
        "fitness_median": statistics.median(known) if known else None,
        "before_copy": status.population.before_copy,
    }
    if agents := status.population.agents:
        body["agents"] = agents
    return to_json(body)


def json_event(event: Event) -> str:
    """Format an event as JSON."""
    return to_json({"kind": event.kind, "elapsed": round(event.elapsed, 3), **event.facts})
