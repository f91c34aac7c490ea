"""Progress and events as one line each, in plain text or JSON."""

from __future__ import annotations

import statistics

from pbtrl.reporting.formatting import (
    format_count,
    format_duration,
    format_fitness,
    format_mixture,
)
from pbtrl.reporting.live_status import Event, LiveStatus
from pbtrl.system.strict_json import to_json


def plain_line(standings: LiveStatus) -> str:
    """Where the run stands, for a log."""
    header, best = standings.header, standings.population.best
    share = 100 * standings.step / max(1, header.budget)
    known = _fitnesses(standings)
    parts = [
        f"{format_duration(standings.elapsed):>9}",
        f"{format_count(standings.step)} / {format_count(header.budget)} {header.steps} ({share:.0f} %)",
        f"{format_count(standings.rate)} steps/s" if standings.rate is not None else "",
        f"gen {max(0, standings.generation)}",
        f"best {best.id} {format_fitness(best.fitness)}  median {format_fitness(statistics.median(known))}"
        if best
        else "",
        f"{format_duration(standings.left)} left" if standings.left else "",
        format_mixture(standings.population.agents),
    ]
    return "  ".join(part for part in parts if part)


def _fitnesses(standings: LiveStatus) -> list[float]:
    """Of the members that have one of their own, not one from before a copy."""
    return [r.fitness for r in standings.rows() if r.fitness is not None and not r.before_copy]


def plain_event(event: Event) -> str:
    """An event, for a log."""
    return f"{format_duration(event.elapsed):>9}  {event.text}"


def json_line(standings: LiveStatus) -> str:
    """Where the run stands, as JSON."""
    best = standings.population.best
    known = _fitnesses(standings)
    body = {
        "kind": "progress",
        "elapsed": round(standings.elapsed, 3),
        "left": standings.left,
        "unit": standings.header.unit,
        "env_steps": standings.step,
        "frames": standings.step * standings.header.frames_per_step,
        "steps_budget": standings.header.budget,
        "env_steps_per_s": standings.rate,
        "generation": standings.generation,
        "best": best and {"member": best.id, "fitness": best.fitness},
        "fitness_median": statistics.median(known) if known else None,
        "before_copy": sum(row.before_copy for row in standings.rows()),
    }
    if agents := standings.population.agents:
        body["agents"] = agents
    return to_json(body)


def json_event(event: Event) -> str:
    """An event, as JSON."""
    return to_json({"kind": event.kind, "elapsed": round(event.elapsed, 3), **event.facts})
