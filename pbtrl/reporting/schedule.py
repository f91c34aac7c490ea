"""Discovered schedule of a member: the hyperparameters along the ancestry of its newest snapshot, as YAML, CSV or JSON.

Its steps are those that the ancestors trained, one after another. They differ from the members' clocks, between which
weights jump when they are copied.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pbtrl.config.yaml_source import dump_yaml
from pbtrl.core.dimensions import AGENT
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.population import Population
from pbtrl.core.records import Record
from pbtrl.errors import DamagedError, RunError
from pbtrl.reporting.lineage import ancestry, schedule, trained_slices
from pbtrl.storage.best_member import read_best
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_status import check_member


@dataclass(frozen=True)
class DiscoveredSchedule:
    """Schedule that led to a snapshot.

    Attributes:
        run: run directory.
        snapshot: the snapshot.
        steps: steps that its ancestors trained.
        unit: `env steps` or `steps`.
        points: pairs of (steps trained before, searched hyperparameters).
        agent: in a mixed population the entry of `agents`, which is the same in the whole ancestry.
    """

    run: RunDirectory
    snapshot: str
    steps: int
    unit: str
    points: Sequence[tuple[int, Hyperparameters]]
    agent: str | None = None

    @property
    def member(self) -> str:
        """Id of the member."""
        return self.snapshot.partition("/")[0]

    def setting(self) -> list[dict[str, Any]]:
        """Return the points as `strategy.schedule` of a config takes them."""
        return [{"at": step, **values} for step, values in self.points]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "run": str(self.run),
            "member": self.member,
            "snapshot": self.snapshot,
            "agent": self.agent,
            "steps": self.steps,
            "unit": self.unit.replace(" ", "_"),
            "schedule": self.setting(),
        }

    def to_yaml(self) -> str:
        """As the section `strategy` of a config that replays it, with its origin in comments."""
        agent = f", agents.{self.agent}" if self.agent else ""
        section = {"strategy": {"name": "schedule_replay", "schedule": self.setting()}}
        return (
            f"# {self.snapshot} of {self.run}{agent}\n"
            f"# trained for {self.steps:,} {self.unit}: budget.env_steps_per_member={self.steps}\n"
            f"{dump_yaml(section)}"
        )

    def to_csv(self) -> str:
        """As a table with a column per hyperparameter."""
        text = io.StringIO()
        rows = self.setting()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def discover(run: RunDirectory, member: str = "best") -> DiscoveredSchedule:
    """Return the schedule of a member's newest snapshot, from the journal alone.

    Args:
        run: run directory.
        member: an id, or `best` for the snapshot in best.json, or else the newest one of the fittest member.

    Raises:
        RunError: there is no such member, or no snapshot of it.
        DamagedError: the journal or best.json is damaged.
    """
    header, records, population = run.load()
    snapshot = _snapshot(run, population, member)
    path = ancestry(trained_slices(records), snapshot)
    if not path:
        raise DamagedError(f"{run}: its journal has no report of {snapshot}")
    points = [(step, dict(values)) for step, values in schedule(path)]
    agents = [values.pop(AGENT, None) for _, values in points]
    return DiscoveredSchedule(run, snapshot, sum(s.stop - s.start for s in path), header.steps, points, agents[0])


def constant_settings(
    records: Sequence[Record], population: Population, agent: str | None = None
) -> dict[str, Hyperparameters]:
    """Return the hyperparameters of the members that were trained under the same ones all along, fittest member first.

    They are constant in the whole ancestry of the member's newest snapshot. Evaluators, members without a fitness and,
    in a mixed population, members of other agents are left out.
    """
    slices = trained_slices(records)
    ranked = [m for m in population.members.values() if m.ranked and not m.is_evaluator]
    ranked.sort(key=lambda m: m.fitness or 0.0, reverse=True)
    settings = {}
    for member in ranked:
        points = schedule(ancestry(slices, member.snapshot))
        if len(points) == 1 and points[0][1].get(AGENT) == agent:
            settings[member.id] = {name: value for name, value in points[0][1].items() if name != AGENT}
    return settings


def _snapshot(run: RunDirectory, population: Population, member: str) -> str:
    if member == "best":
        best = read_best(run)
        leader = population.best.snapshot if population.best else None
        snapshot = best.snapshot if best else leader
        if snapshot is None:
            raise RunError(f"{run} has no best member yet: name one of {', '.join(population.members)} with --member")
        return snapshot
    check_member(run, population, member)
    if (newest := population.members[member].snapshot) is None:
        raise RunError(f"{run}: {member} has no snapshot yet")
    return newest
