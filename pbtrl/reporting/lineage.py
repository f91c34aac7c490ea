"""Who descends from whom, read from a journal: copies, the ancestry of a member, and the roots that survive.

A snapshot's parent is what its slice loaded. Only a parent of another member is a copy of weights; a donor
without one gave its hyperparameters alone. The ancestry of the best member is the discovered schedule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pbtrl.core.messages import Hyperparameters
from pbtrl.core.population import Population
from pbtrl.storage.journal import Line
from pbtrl.storage.run_header import read_header


@dataclass(frozen=True)
class TrainedSlice:
    """A slice that a member trained and reported.

    Attributes:
        assignment: its id, also the name of its snapshot.
        parent: the snapshot that it loaded; None for fresh weights.
        start: the member's own clock before it (env steps).
        stop: and where its report left the clock.
        hyperparameters: those that the learner used.
        ended: seconds since the run's start when it was reported.
        seconds: how long it took.
    """

    assignment: str
    parent: str | None
    start: int
    stop: int
    hyperparameters: Hyperparameters
    ended: float
    seconds: float

    @property
    def member(self) -> str:
        """Who trained it."""
        return self.assignment.rsplit("/", 1)[0]

    @property
    def begun(self) -> float:
        """Seconds since the run's start when it began."""
        return max(0.0, self.ended - self.seconds)


def copies(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Every exploit, oldest first.

    `time` is in seconds since the run's start, `env_steps` on the receiver's own clock; `fitness_before` is
    the receiver's and `fitness_after` the donor's, both when it was decided; `weights` is False where the
    hyperparameters alone were copied.
    """
    header, every = read_header(lines)
    population = header.population()
    found: list[dict[str, Any]] = []
    for line in every:
        if line["kind"] == "decision":
            made = [a for a in line["assignments"] if a["donor"]]
            found += [_copy(population, a, line["timing"]["elapsed"]) for a in made]
        population.record(line)
    return found


def trained_slices(lines: Iterable[Line]) -> dict[str, TrainedSlice]:
    """Every reported slice by its assignment, in the order of the reports."""
    decided: dict[str, dict[str, Any]] = {}
    found: dict[str, TrainedSlice] = {}
    for line in lines:
        if line["kind"] == "decision":
            decided |= {a["id"]: a for a in line["assignments"]}
        elif line["kind"] == "report":
            a, timing = decided[line["assignment"]], line["timing"]
            found[a["id"]] = TrainedSlice(
                a["id"], a["parent"], a["start"], line["step"], line["hyperparameters"],
                timing["elapsed"], timing.get("seconds", 0.0),
            )  # fmt: skip
    return found


def ancestry(known: Mapping[str, TrainedSlice], snapshot: str | None) -> list[TrainedSlice]:
    """The slices that made a snapshot, oldest first; none where nobody reported it.

    Each stretch is on the clock of who trained it, so starts and stops may jump at a copy.
    """
    path: list[TrainedSlice] = []
    while stretch := known.get(snapshot or ""):
        path.append(stretch)
        snapshot = stretch.parent
    return path[::-1]


def schedule(path: Sequence[TrainedSlice]) -> list[tuple[int, Hyperparameters]]:
    """An ancestry as (steps trained before, hyperparameters from there on), equal neighbors merged."""
    points: list[tuple[int, Hyperparameters]] = []
    trained = 0
    for stretch in path:
        if not points or points[-1][1] != stretch.hyperparameters:
            points.append((trained, stretch.hyperparameters))
        trained += stretch.stop - stretch.start
    return points


def roots(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """How many members descend from each root, whenever that changes.

    Each entry has `time` (seconds since the run's start), `env_steps` (of the whole population) and `roots`,
    from the id of an assignment that began with fresh weights to the number of members that descend from it.
    """
    header, every = read_header(lines)
    population = header.population()
    root_of: dict[str, str] = {}
    carried: dict[str, str] = {}
    found: list[dict[str, Any]] = []
    for line in every:
        population.record(line)
        if line["kind"] != "decision":
            continue
        for a in line["assignments"]:
            root_of[a["id"]] = root_of.get(a["parent"], a["parent"] or a["id"])
            carried[a["member"]] = root_of[a["id"]]
        alive = dict(sorted(Counter(carried.values()).items()))
        if not found or found[-1]["roots"] != alive:
            found.append({"time": line["timing"]["elapsed"], "env_steps": population.step, "roots": alive})
    return found


def _copy(population: Population, a: dict[str, Any], elapsed: float) -> dict[str, Any]:
    receiver, donor = population.members[a["member"]], population.members[a["donor"]]
    return {
        "time": elapsed,
        "env_steps": a["start"],
        "member": receiver.id,
        "donor": donor.id,
        "weights": a["parent"] is not None and a["parent"].rsplit("/", 1)[0] != receiver.id,
        "hyperparameters_before": receiver.hyperparameters,
        "hyperparameters_after": a["hyperparameters"],
        "fitness_before": receiver.fitness,
        "fitness_after": donor.fitness,
    }
