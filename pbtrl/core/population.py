"""State of the population, computed from the journal.

`Population.record` takes the records of the journal one by one. Everything about a member follows from them, including
its fitness, window, clock and lineage.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pbtrl.core.copies import Copy
from pbtrl.core.curve import Curve
from pbtrl.core.dimensions import AGENT
from pbtrl.core.member import Member
from pbtrl.core.messages import Assignment, Failure, Report, numbers
from pbtrl.core.naming import member_id, member_ids
from pbtrl.core.records import (
    Decision,
    FailureRecord,
    Record,
    ReportRecord,
    RunChanged,
    RunResumed,
    SnapshotLost,
    SnapshotRemade,
)
from pbtrl.core.values import MAX_MEMBERS


def mean(returns: Iterable[float | None]) -> float:
    """Mean of at least one return; NaN if a return is not finite or the sum overflows."""
    try:
        return statistics.fmean(numbers(returns))
    except (OverflowError, ValueError):
        return math.nan


@dataclass(frozen=True)
class FitnessRule:
    """Definition of a member's fitness as a mean over episodes.

    Attributes:
        source: `training` episodes, or the `evaluation` episodes at the end of the last slice.
        window: number of latest training episodes in the mean.
        min_episodes: with fewer episodes since the last copy the fitness is absent.
        share: fraction of the env steps since the last copy that must lie in finished training episodes. Short episodes
            finish first, so below it the mean would be biased towards them.
        cut_episodes: whether every slice cuts its unfinished episodes (`between_slices: reset`). Then `share` applies
            to each slice, and a slice below it does not count.
    """

    source: str = "training"
    window: int = 100
    min_episodes: int = 10
    share: float = 0.0
    cut_episodes: bool = False

    def is_representative(self, finished: int, steps: int) -> bool:
        """Return whether training episodes with `finished` env steps cover enough of the `steps`."""
        return finished >= self.share * steps

    def check(self) -> None:
        """Raise ValueError if a value is not of its type."""
        types = {
            "source": (str,),
            "window": (int,),
            "min_episodes": (int,),
            "share": (int, float),
            "cut_episodes": (bool,),
        }
        for name, valid in types.items():
            if type(value := getattr(self, name)) not in valid:
                raise ValueError(f"the fitness rule's {name} cannot be {value!r}")


class Population:
    """State of all members, computed from the journal. Strategies read it; only `record` and `replay` change it.

    The first `size` members exist from the start, further ones from their first decision on. Ids are never reused.

    Args:
        size: number of members that may train at the same time.
        seed: root of all randomness.
        rule: definition of the fitness.
        roles: role of each member that has one, by id.
        candidate_roles: roles whose members are candidates for the best; empty for all members.
        initial: as below.

    Attributes:
        initial: snapshot that fresh members load; None for fresh weights.
        free: number of members that may get an assignment in the next decision. It is written into the decision.
        decisions: number of decisions so far.
        copies: number of copies so far, without the starts of evaluations.
        latest_copies: copies of the latest decision, with the starts of evaluations.
        snapshot_origin: the assignment that made each snapshot, by the snapshot's name. After an early stop its `stop`
            is the step that was reached.
        snapshot_fitness: fitness of the member at each report, by the snapshot's name: None if it was absent, minus
            infinity after a divergence.
        best_at: highest fitness that was reported at each step of the members' clocks.
        lost_snapshots: snapshots that are lost and must be made again.
        memo: what a strategy computed from this state and needs again in the same decision; every line empties it.
        folds: what a strategy, the key, computed from the lines so far and brings up to date itself.
    """

    def __init__(
        self, size: int, seed: int, rule: FitnessRule | None = None, *, roles: Mapping[str, str] | None = None,
        candidate_roles: Collection[str] = (), initial: str | None = None,
    ) -> None:  # fmt: skip
        self.size, self.seed = size, seed
        self.rule = rule or FitnessRule()
        self.initial = initial
        self._roles, self._candidate_roles = dict(roles or {}), frozenset(candidate_roles)
        self.members = {name: self._new(name) for name in member_ids(size)}
        self.free = size
        self.decisions = 0
        self.copies = 0
        self.latest_copies: list[Copy] = []
        self.snapshot_origin: dict[str, Assignment] = {}
        self.snapshot_fitness: dict[str, float | None] = {}
        self.best_at: dict[int, float] = {}
        self.lost_snapshots: set[str] = set()
        self.memo: dict[object, Any] = {}
        self.folds: dict[object, Any] = {}
        self._agents: list[str] = []
        self._retired_on_request: set[str] = set()

    def rng(self, member: str, generation: int, purpose: str) -> np.random.Generator:
        """Random generator for one purpose, seeded from (seed, member, generation, purpose) alone."""
        return np.random.default_rng(self._sequence(member, generation, purpose))

    def slice_seed(self, member: str, generation: int) -> int:
        """Seed of a slice, 63 bits."""
        return int(self._sequence(member, generation, "slice").generate_state(1, np.uint64)[0] >> 1)

    def _sequence(self, member: str, generation: int, purpose: str) -> np.random.SeedSequence:
        return np.random.SeedSequence([self.seed, int(member[1:]), generation, zlib.crc32(purpose.encode())])

    @property
    def pending(self) -> list[Assignment]:
        """Open assignments: decided, but neither reported nor given up."""
        return [m.pending for m in self.members.values() if m.pending]

    @property
    def step(self) -> int:
        """Env steps of the whole population."""
        return sum(m.step for m in self.members.values())

    @property
    def all_given_up(self) -> bool:
        """Whether every candidate that has begun was given up, apart from those that a user retired."""
        begun = [m for m in self.candidates if m.generation >= 0 and m.id not in self._retired_on_request]
        return bool(begun) and all(m.given_up for m in begun)

    @property
    def agents(self) -> dict[str, int]:
        """Number of members per agent, including agents without any left; empty in a population of one agent."""
        counts = Counter(m.hyperparameters.get(AGENT) for m in self.members.values())
        return {agent: counts[agent] for agent in self._agents}

    @property
    def roles(self) -> dict[str, int]:
        """Number of members per role, in the order of the members; empty if no member has a role."""
        return dict(Counter(m.role for m in self.members.values() if m.role))

    @property
    def before_copy(self) -> int:
        """Number of members that are ranked by a fitness from before a copy. Evaluators are never ranked."""
        return sum(m.before_copy and not m.is_evaluator for m in self.members.values())

    @property
    def best(self) -> Member | None:
        """Candidate with the highest fitness; the first one in a tie."""
        return max(self.ranking(), key=lambda m: m.fitness or 0.0, default=None)

    @property
    def candidates(self) -> list[Member]:
        """Members that may be chosen as the best."""
        allowed = self._candidate_roles
        return [m for m in self.members.values() if not allowed or m.role in allowed]

    def ranking(self) -> list[Member]:
        """Candidates that have a fitness, best first; ties in the order of their ids."""
        return sorted((m for m in self.candidates if m.ranked), key=lambda m: -(m.fitness or 0.0))

    def unstarted(self, count: int) -> list[Member]:
        """First `count` members that never had an assignment; those that do not exist yet are new objects."""
        waiting = [m for m in self.members.values() if m.generation < 0 and not m.retired][:count]
        places = range(len(self.members), min(MAX_MEMBERS, len(self.members) + count - len(waiting)))
        return waiting + [self._new(member_id(place, self.size)) for place in places]

    def _new(self, name: str) -> Member:
        return Member(name, role=self._roles.get(name, ""))

    def needed(self) -> set[str]:
        """Snapshots to keep: the newest of each member that is not retired, its parent, and those that open assignments
        and remakes load.
        """
        active = [m for m in self.members.values() if not m.retired]
        names = {m.snapshot for m in active} | {m.parent for m in active}
        names |= {a.parent for a in self.pending} | {
            self.snapshot_origin[n].parent for n in self.lost_snapshots if n in self.snapshot_origin
        }
        return {n for n in names if n}

    def replay(self, records: Iterable[Record]) -> Population:
        """Apply every record; returns self."""
        for record in records:
            self.record(record)
        return self

    def record(self, record: Record) -> None:
        """Apply one record of the journal; kinds that do not concern members are ignored.

        Raises:
            ValueError: it contradicts the earlier ones.
        """
        self.memo.clear()
        match record:
            case Decision():
                self.decisions += 1
                self.latest_copies = [self._copy(a, a.donor) for a in record.assignments if a.donor is not None]
                for assignment in record.assignments:
                    self._assigned(assignment)
                self._retire(record.retired)
            case ReportRecord():
                self._reported(record.report)
            case FailureRecord():
                self._failed(record)
            case SnapshotLost():
                if record.snapshot not in self.snapshot_origin:
                    raise ValueError(f"{record.snapshot} is lost, which was never made")
                self.lost_snapshots.add(record.snapshot)
            case SnapshotRemade():
                self.lost_snapshots.discard(record.snapshot)
            case RunChanged():
                self._retire(record.retired)
                self._retired_on_request.update(record.retired)
            case RunResumed():
                self._resumed()

    def _retire(self, names: Iterable[str]) -> None:
        for name in names:
            self._known(name).retired = True

    def _known(self, name: str) -> Member:
        if name not in self.members:
            raise ValueError(f"there is no member {name}")
        return self.members[name]

    def _copy(self, assignment: Assignment, donor: str) -> Copy:
        """Note what receiver and donor have before the decision changes them."""
        receiver, parent = self.members.get(assignment.member) or self._new(assignment.member), assignment.parent
        return Copy(
            assignment,
            donor,
            kind="evaluation" if receiver.is_evaluator else "promotion" if assignment.inherit else "exploit",
            weights=parent not in (None, self.initial) and (parent or "").rpartition("/")[0] != receiver.id,
            fitness_before=receiver.fitness,
            fitness_after=self._known(donor).fitness,
            hyperparameters_before=receiver.hyperparameters,
        )

    def _assigned(self, assignment: Assignment) -> None:
        if assignment.member not in self.members:
            self._add(assignment.member)
        if assignment.hparams_donor is not None:
            self._known(assignment.hparams_donor)
            if assignment.donor is None:
                raise ValueError(f"{assignment.id} copies hyperparameters, but has no donor")
        member = self.members[assignment.member]
        if assignment.id.rpartition("/")[0] != member.id:
            raise ValueError(f"{assignment.id} is not the name of a slice of {member.id}")
        if assignment.id in self.snapshot_origin:
            raise ValueError(f"{assignment.id} was already made")
        fresh = assignment.parent in (None, self.initial)
        if not fresh and assignment.parent not in self.snapshot_origin:
            raise ValueError(f"{assignment.id} continues from {assignment.parent}, which was never made")
        member.pending, member.generation = assignment, assignment.generation
        member.previous_hparams, member.hyperparameters = member.hyperparameters, assignment.hyperparameters
        agent = assignment.hyperparameters.get(AGENT)
        if agent is not None and agent not in self._agents:
            self._agents.append(agent)
        copied = assignment.donor is not None
        if copied or fresh:
            self._restart(member, assignment)
            member.copied_at = self.decisions
        if self.rule.cut_episodes:
            member.window_start_step, member.counted_steps = assignment.start, 0
        if copied:
            if member.is_evaluator:
                for parent in (member.copy and member.copy.donor, assignment.donor):
                    if parent:
                        self._known(parent).evaluated_at = self.decisions
            member.copy = assignment
        self.copies += copied and not member.is_evaluator

    def _add(self, name: str) -> None:
        if name != member_id(len(self.members), self.size) or len(self.members) >= MAX_MEMBERS:
            raise ValueError(f"{name} is not the next new member")
        self.members[name] = self._new(name)

    def _restart(self, member: Member, assignment: Assignment) -> None:
        """Forget the results of the weights before a copy or fresh start, or inherit the donor's."""
        placeholder = None if member.diverged else member.rank_fitness
        member.diverged = member.given_up = False
        if assignment.inherit:
            if assignment.donor is None:
                raise ValueError(f"{assignment.id} inherits, but has no donor")
            donor = self._known(assignment.donor)
            ahead = assignment.start - donor.step
            member.window, member.fitness = list(donor.window), donor.fitness
            member.placeholder = placeholder if donor.fitness is None else None
            member.window_start_step, member.counted_steps = donor.window_start_step + ahead, donor.counted_steps
            member.curve = donor.curve.moved(ahead)
            return
        member.window, member.fitness, member.placeholder = [], None, placeholder
        member.window_start_step, member.counted_steps = assignment.start, 0
        member.curve = Curve(assignment.start)

    def _reported(self, report: Report) -> None:
        member, assignment = self._answered(report)
        member.parent, member.snapshot = assignment.parent, assignment.id
        self.snapshot_origin[assignment.id] = replace(assignment, stop=report.step)
        member.snapshot_hparams, member.consecutive_failures = assignment.hyperparameters, 0
        member.step, member.pending, member.diverged = report.step, None, report.diverged
        if counts := report.skips:
            member.skipped_updates += counts[0]
        member.curve.extend(report.curve)
        representative = True
        if self.rule.source == "training":
            member.counted_steps += report.finished_steps
            representative = self.rule.is_representative(member.counted_steps, member.step - member.window_start_step)
            if representative or not self.rule.cut_episodes:
                member.window = [*member.window, *numbers(report.returns)][-self.rule.window :]
        elif report.evaluation:  # empty after an early stop
            member.window = numbers(report.evaluation)
        enough = representative and len(member.window) >= self.rule.min_episodes
        fitness = mean(member.window) if enough else math.nan
        member.fitness = fitness if math.isfinite(fitness) else None
        if member.fitness is not None:
            member.placeholder = None
        member.history.append((member.step, member.fitness))
        self.snapshot_fitness[assignment.id] = -math.inf if member.diverged else member.fitness
        if member.ranked:
            self.best_at[member.step] = max(member.fitness or 0.0, self.best_at.get(member.step, -math.inf))

    def _failed(self, record: FailureRecord) -> None:
        member, _ = self._answered(record.failure)
        if record.given_up:
            member.pending, member.given_up = None, True
            member.consecutive_failures += 1

    def _resumed(self) -> None:
        """Look for lost snapshots again; if `all_given_up`, let the members that were given up try again.

        A user who resumes such a run has presumably fixed the cause.
        """
        self.lost_snapshots.clear()
        if self.all_given_up:
            failed = [m for m in self.members.values() if m.given_up and m.id not in self._retired_on_request]
            for member in failed:
                member.given_up, member.consecutive_failures, member.retired = False, 0, False
                member.hyperparameters = member.snapshot_hparams or member.hyperparameters

    def _answered(self, message: Report | Failure) -> tuple[Member, Assignment]:
        member = self._known(message.member)
        if member.pending is None or member.pending.id != message.assignment:
            raise ValueError(f"{type(message).__name__.lower()} of {message.assignment}, which is not open")
        return member, member.pending
