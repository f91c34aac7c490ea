"""The two messages between a strategy and its executor: assignments go down, reports or failures come back.

Both are JSON. They are the body of journal lines, and complete in themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Hyperparameters = dict[str, Any]


SKIPPED_UPDATES, UPDATES = "learning/skipped_updates", "learning/updates"
"""Scalars of a report: updates that were skipped because their gradient was not finite, and updates, skipped ones too.

Both are of the slice, and only there where some were skipped.
"""


@dataclass(frozen=True)
class Assignment:
    """Train one member from `start` to `stop`: complete in itself, the same whoever carries it out.

    Attributes:
        id: `m03/000012`, the member and its generation; also the name of the snapshot that it commits.
        member: who trains.
        parent: snapshot to load (weights and everything else that learned), or None for fresh weights.
        start: the member's own clock before the slice (env steps).
        stop: and after it; a worker trains exactly `stop - start` steps, whatever clock the parent carries.
        hyperparameters: the searched ones, applied after the parent was loaded; in a population of several agents
            also the `agent` that the member is.
        seed: root of all randomness of the slice.
        donor: who was copied by this assignment (weights, hyperparameters or both), or None.
        note: why, for people: "exploit m03, rank 1 of 8".
    """

    id: str
    member: str
    parent: str | None
    start: int
    stop: int
    hyperparameters: Hyperparameters
    seed: int
    donor: str | None = None
    note: str = ""

    @property
    def generation(self) -> int:
        """How many slices the member was given before this one."""
        return int(self.id.rsplit("/", 1)[1])

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Report:
    """A member reached `step` and committed a snapshot.

    Attributes:
        assignment: id of the assignment that was carried out; also the name of the committed snapshot.
        member: who trained.
        step: where the member's clock stands now (env steps); below the assignment's `stop` after an early
            stop.
        hyperparameters: the *effective* ones, read back from what the learner consumed.
        assigned: those of the assignment, which the worker found equal.
        returns: raw returns of the training episodes that began after the last copy and ended in the slice. Here, in
            `evaluation`, `curve` and `scalars` None stands for a number that was not finite: JSON has none such.
        lengths: their lengths (env steps).
        evaluation: raw returns of the evaluation episodes played at the end of the slice, where fitness asks
            for them.
        curve: points (step, mean return) inside the slice.
        scalars: a few more numbers.
        diverged: the learner met non-finite values too often in a row; the snapshot holds the last finite
            ones.
        timing: seconds, not part of the canonical journal.
    """

    assignment: str
    member: str
    step: int
    hyperparameters: Hyperparameters
    returns: tuple[float | None, ...] = ()
    lengths: tuple[int, ...] = ()
    evaluation: tuple[float | None, ...] = ()
    curve: tuple[tuple[int, float | None], ...] = ()
    scalars: Mapping[str, float | None] = field(default_factory=dict)
    diverged: bool = False
    timing: Mapping[str, float] = field(default_factory=dict)
    assigned: Hyperparameters = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """An assignment was not carried out.

    Attributes:
        assignment, member: which.
        error: what happened, in a line.
        fatal: it would fail the same way again.
        alone: nothing else was under way where it failed, so the fault is its own.
        snapshot: its parent, where that is missing or damaged, which is nobody's fault.
        memory: there was not enough memory.
    """

    assignment: str
    member: str
    error: str
    fatal: bool = False
    alone: bool = True
    snapshot: str | None = None
    memory: bool = False

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def skips(line: Mapping[str, Any]) -> tuple[int, int] | None:
    """Of a report's journal line: updates that were skipped, and all updates; None where none was skipped."""
    scalars = line.get("scalars", {})
    return (int(scalars[SKIPPED_UPDATES]), int(scalars[UPDATES])) if scalars.get(SKIPPED_UPDATES) else None


def numbers(values: Iterable[float | None]) -> list[float]:
    """Values as read from JSON, in which null stands for a number that was not finite, with NaN for these."""
    return [math.nan if value is None else value for value in values]
