"""State of one member, which `Population` computes from the journal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pbtrl.core.curve import Curve
from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.naming import EVALUATOR

MemberState = Literal["given up", "diverged", "retired", "train", "done", "waiting"]
UNHEALTHY: tuple[MemberState, ...] = ("given up", "diverged")
"""States of members that are not healthy."""


def table_order(fitness: float | None, *, healthy: bool) -> tuple[bool, bool, float]:
    """Sort key of members in tables: the best first, those without a fitness later, those that broke last."""
    return not healthy, fitness is None, -(fitness or 0.0)


@dataclass
class Member:
    """State of one member.

    Attributes:
        hyperparameters: hyperparameters of the open slice, or of the last one.
        previous_hparams: hyperparameters before the last decision about it.
        snapshot: newest snapshot.
        snapshot_hparams: hyperparameters of the slice that made `snapshot`. A donor gives both, so that they match even
            while it already tries other hyperparameters.
        fitness: a number, or None if absent; meaningless while `diverged`.
        placeholder: fitness from before the last copy, until there is a new one; see `rank_fitness`.
        diverged: its weights or gradients were not finite in the last slice. A copy or a fresh start clears it.
        given_up: an assignment failed too often to be tried again. A copy or a fresh start clears it.
        consecutive_failures: number of assignments given up since the last report.
        skipped_updates: updates skipped because their gradient was not finite, in all slices.
        window_start_step: the member's step at its start or last copy; if slices cut episodes, at the slice's start.
        counted_steps: env steps since `window_start_step` that lie in finished training episodes.
        role: role in the strategy, such as `p1` or `evaluator`; empty if all members are alike.
        retired: the strategy gives it no further assignment.
        curve: fitness curve since its start or last copy.
        copy: last assignment that copied another member, or None.
        copied_at: number of the decision, counted from 1, that gave the member other weights: a copy or a fresh start.
        evaluated_at: number of the decision in which its last evaluation began or, once its evaluator evaluates another
            member, ended; 0 if there is none.
    """

    id: str
    step: int = 0
    generation: int = -1
    hyperparameters: Hyperparameters = field(default_factory=dict)
    previous_hparams: Hyperparameters = field(default_factory=dict)
    snapshot: str | None = None
    snapshot_hparams: Hyperparameters = field(default_factory=dict)
    parent: str | None = None
    window: list[float] = field(default_factory=list)
    fitness: float | None = None
    placeholder: float | None = None
    diverged: bool = False
    given_up: bool = False
    consecutive_failures: int = 0
    skipped_updates: int = 0
    window_start_step: int = 0
    counted_steps: int = 0
    pending: Assignment | None = None
    history: list[tuple[int, float | None]] = field(default_factory=list)
    role: str = ""
    retired: bool = False
    curve: Curve = field(default_factory=Curve)
    copy: Assignment | None = None
    copied_at: int = 0
    evaluated_at: int = 0

    @property
    def place(self) -> int:
        """Place in the order of ids, from 0."""
        return int(self.id[1:])

    @property
    def is_evaluator(self) -> bool:
        """Whether the member evaluates others, and so is never a candidate for the best."""
        return self.role.startswith(EVALUATOR)

    @property
    def evaluates(self) -> tuple[str, str] | None:
        """Parent and child of an evaluation under way, or None."""
        began = self.copy if self.is_evaluator and self.pending else None
        return (began.donor or "", began.hparams_donor or "") if began else None

    @property
    def healthy(self) -> bool:
        """Whether the member has neither diverged nor been given up after repeated failures."""
        return not (self.diverged or self.given_up)

    @property
    def ranked(self) -> bool:
        """Whether the member may be compared with others: healthy, with a fitness."""
        return self.healthy and self.fitness is not None

    def state(self, horizon: int) -> MemberState:
        """State to show: `train` with an open assignment, `done` at the budget of `horizon` env steps.

        A failure is shown also after the strategy has retired the member for it.
        """
        if self.given_up:
            return "given up"
        if self.diverged:
            return "diverged"
        if self.retired:
            return "retired"
        if self.pending:
            return "train"
        return "done" if self.step >= horizon else "waiting"

    @property
    def rank_fitness(self) -> float | None:
        """Number that ranks the member: its fitness, or its placeholder if the fitness is absent.

        A copy empties the fitness. Without a placeholder the member would leave the ranking, the others' ranks would
        fall, and asynchronous truncation would select far more than the bottom fraction. A placeholder never makes a
        member a donor.
        """
        return self.placeholder if self.fitness is None else self.fitness

    @property
    def last_fitness(self) -> float | None:
        """Fitness at the last report, also after a copy, which empties `fitness`."""
        return self.history[-1][1] if self.history else None

    @property
    def before_copy(self) -> bool:
        """Whether a placeholder ranks the member; broken members are not ranked."""
        return self.healthy and self.fitness is None and self.placeholder is not None

    @property
    def shown_fitness(self) -> float | None:
        """Fitness to show: the number that ranks the member, or of a broken one its own."""
        return self.placeholder if self.before_copy else self.fitness
