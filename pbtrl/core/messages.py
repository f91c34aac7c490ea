"""Messages between strategy and executor: assignments go down, reports or failures come back.

All of them are JSON objects, complete in themselves, and form the bodies of journal lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Hyperparameters = dict[str, Any]


SKIPPED_UPDATES, UPDATES = "learning/skipped_updates", "learning/updates"
"""Scalars of a report: updates skipped because their gradient was not finite, and all updates of the slice.

Both are present only if at least one update was skipped.
"""


UNMEASURED = "episode/unmeasured"
"""Scalar of a report: number of finished episodes that `fitness.metric` does not apply to; absent if there are none."""


METRIC_FIELDS = frozenset({"assignment", "attempt", "time", "step"})
"""Keys of a line of live metrics that are not metrics."""


@dataclass(frozen=True)
class Assignment:
    """Order to train one member from `start` to `stop`. It holds everything that a worker needs.

    Attributes:
        id: member and generation, `m03/000012`; also the name of the snapshot that the slice commits.
        member: id of the member.
        parent: snapshot to load (weights and all other learned state), or None for fresh weights. In a run with
            `init_from`, fresh members load the snapshot that the run was given.
        start: the member's clock before the slice (env steps).
        stop: the member's clock after the slice. A worker trains exactly `stop - start` steps, whatever the parent's
            clock.
        hyperparameters: the searched hyperparameters, applied after the parent is loaded; in a mixed population also
            the member's `agent`.
        seed: root of all randomness of the slice.
        donor: member that was copied (weights, hyperparameters or both), or None.
        note: reason in words: "exploit m03, rank 1 of 8".
        hparams_donor: member whose hyperparameters were copied, if it is another one than `donor`.
        inherit: the member also takes over the donor's window, curve and fitness, because weights and hyperparameters
            are the donor's, unchanged. Any other copy empties them.
        scalars: numbers behind the decision, to plot.
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
    hparams_donor: str | None = None
    inherit: bool = False
    scalars: Mapping[str, float] = field(default_factory=dict)

    @property
    def generation(self) -> int:
        """Number of earlier assignments of the member."""
        return int(self.id.rsplit("/", 1)[1])

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, without the keys that only some strategies use if they have no value."""
        values = asdict(self)
        return {key: value for key, value in values.items() if value or key not in _RARE}


_RARE = ("hparams_donor", "inherit", "scalars")


@dataclass(frozen=True)
class Report:
    """Result of a slice: the member reached `step` and committed a snapshot.

    In `returns`, `evaluation`, `curve` and `scalars` None stands for a non-finite number, which JSON cannot express.

    Attributes:
        assignment: id of the assignment; also the name of the committed snapshot.
        member: id of the member.
        step: the member's clock (env steps); below the assignment's `stop` after an early stop.
        hyperparameters: the *effective* hyperparameters, read back from the learner.
        assigned: the assignment's hyperparameters, which the worker compared with the effective ones.
        returns: what `fitness.metric` measured, by default the raw return, in the training episodes that began after
            the last copy of weights and ended in the slice.
        lengths: lengths of these episodes (env steps), including those that the metric could not measure.
        evaluation: raw returns of the evaluation episodes at the end of the slice, if the fitness uses them.
        curve: points (step, mean return) inside the slice.
        scalars: further numbers to plot.
        diverged: too many consecutive updates were not finite; the snapshot holds the last finite weights.
        timing: durations in seconds, and in a journal also `elapsed` and `time` of its `Record`; not part of the
            canonical journal.
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

    @property
    def finished_steps(self) -> int:
        """Env steps in finished training episodes; the reset of an env is a step."""
        return sum(length + 1 for length in self.lengths)

    @property
    def skips(self) -> tuple[int, int] | None:
        """Number of skipped updates and of all updates; None if none was skipped."""
        skipped, updates = (int(self.scalars.get(tag) or 0) for tag in (SKIPPED_UPDATES, UPDATES))
        return (skipped, updates) if skipped else None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class Failure:
    """Failed attempt at an assignment.

    Attributes:
        assignment, member: ids of the assignment and its member.
        error: one line of text.
        fatal: a retry would fail in the same way.
        alone: no other slice was trained together with it, so the failure counts against the member. After an error
            for lack of memory: no other member was held in the worker.
        snapshot: name of the parent if that is missing or damaged, which does not count against the member.
        memory: memory ran out.
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


def numbers(values: Iterable[float | None]) -> list[float]:
    """Replace None, which stands for a non-finite number in JSON, by NaN."""
    return [math.nan if value is None else value for value in values]
