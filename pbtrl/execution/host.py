"""Host of a worker: holds its cohorts, trains them in turn, commits snapshots and reports.

    submit(assignments) -> cohorts of equal structure and equal length -> advance, advance, ... -> [Report, ...]

A host keeps the cohorts that it trained last in memory, so a member that continues from its own snapshot does not load
it. If memory runs out, fewer members train at a time and the others wait.
"""

from __future__ import annotations

import errno
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.naming import INITIAL
from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Builder, Cohort, Outcome
from pbtrl.errors import DiskFullError, MismatchError, NotFiniteError, SnapshotError
from pbtrl.storage.json_files import SCHEMA
from pbtrl.storage.member_files import MemberFiles, MemberSink
from pbtrl.storage.parsing import parse_report
from pbtrl.storage.snapshot_store import SnapshotStore, Store
from pbtrl.system.crash_points import crash_point

SLICE_ERRORS = (Exception, SystemExit)  # fail a slice and not the run; an env may call sys.exit
IDENTITY_FIELDS = ("parent", "start", "hyperparameters", "seed")  # fields of an assignment that determine its snapshot
OUT_OF_MEMORY_TEXTS = ("MemoryError", "CUDA error: out of memory", "DefaultCPUAllocator: can't allocate memory")
METRICS_EVERY = 2.0  # seconds between two lines of a member's metrics.jsonl


@dataclass
class _Slice:
    """Open slice of a cohort, with its assignments by slot.

    Attributes:
        head_start: smallest `progress` of the other slices when this one began.
        waits: its last turn trained nothing, because other processes act.
    """

    cohort: Cohort
    assignments: list[Assignment]
    head_start: float = 0.0
    waits: bool = False
    started_at: float = field(default_factory=time.monotonic)
    last_metrics_at: float = field(default_factory=time.monotonic)
    attempt: float = field(default_factory=time.time)

    @property
    def progress(self) -> float:
        """Steps by which turns are given; those of all open slices grow at the same rate."""
        return self.head_start + self.cohort.steps_done


class _OrphanError(Exception):
    """The parent of an assignment is missing or damaged."""

    def __init__(self, a: Assignment, parent: str, error: SnapshotError) -> None:
        super().__init__(str(error))
        self.parent = parent
        self.failure = Failure(a.id, a.member, f"{type(error).__name__}: {error}", snapshot=parent)


class Host:
    """Trainer of a worker's `groups` of members; a group trains as one cohort if its assignments allow it.

    A member that is in no group, such as a later trial, joins the group with the most free places and stays in it.
    A full or failing disk fails no assignment: `submit`, `advance` and `stop` raise DiskFullError instead.
    """

    def __init__(
        self, builder: Builder, store: Store, sink: MemberSink, groups: Sequence[Sequence[str]], *, threads: int = 1,
        discard_on_stop: bool = False,
    ) -> None:  # fmt: skip
        self._builder, self._store, self._sink = builder, store, sink
        self._group = {m: i for i, group in enumerate(groups) for m in group}
        self._places = [len(group) for group in groups]
        self._capacity = len(self._group)  # largest number of members that train at a time
        self._threads = threads
        self._discard_on_stop = discard_on_stop
        self._cohorts: dict[tuple[tuple[str, ...], object], Cohort] = {}
        self._live_snapshot: dict[str, str] = {}
        self._slices: list[_Slice] = []
        self._waiting: list[tuple[list[Assignment], object]] = []
        self._early: list[Report | Failure] = []

    @classmethod
    def local(
        cls, builder: Builder, members: Path, groups: Sequence[Sequence[str]], *, threads: int = 1,
        discard_on_stop: bool = False,
    ) -> Host:  # fmt: skip
        """Host that keeps everything in a local directory, which is created.

        Args:
            builder: makes the cohorts.
            members: directory of all members of the run.
            groups: of members, each a cohort where it can be one.
            threads: of the simulator.
            discard_on_stop: whether a stop ends slices without a report.
        """
        files = MemberFiles(members, [m for group in groups for m in group])
        return cls(builder, SnapshotStore(members), files, groups, threads=threads, discard_on_stop=discard_on_stop)

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Form cohorts from these assignments and start their slices."""
        together: dict[tuple[Any, ...], list[Assignment]] = {}
        taken = Counter(self._group[a.member] for a in self._open())
        for a in assignments:
            if done := self._committed(a):
                self._early.append(done)
                continue
            freest = max(range(len(self._places)), key=lambda i: self._places[i] - taken[i])
            group = self._group.setdefault(a.member, freest)
            taken[group] += 1
            key = (group, self._builder.structure(a), a.stop - a.start)
            together.setdefault(key, []).append(a)
        for (_, structure, _), cohort in together.items():
            self._waiting.append((sorted(cohort, key=lambda a: a.member), structure))
        self._start_waiting()

    def _open(self) -> list[Assignment]:
        """Assignments that train or wait."""
        return [a for s in self._slices for a in s.assignments] + [a for group, _ in self._waiting for a in group]

    def busy(self) -> bool:
        """Return whether an assignment is unanswered."""
        return bool(self._slices or self._waiting or self._early)

    def advance(self) -> list[Report | Failure]:
        """Train a cohort for a short while; returns the answers if that ends its slice.

        All train the same number of steps in the meantime, so that members whose blocks are short keep up. Cohorts that
        wait for other processes have a turn each.
        """
        if self._early:
            early, self._early = self._early, []
            return early
        self._start_waiting()
        if not self._slices:
            return []
        ranks = [(s.waits, s.progress) for s in self._slices]
        first = min(ranks)
        current = self._slices.pop(ranks.index(first))
        try:
            over = current.cohort.advance()
            for other in self._slices:
                other.waits = False
            current.waits = current.progress == first[1]
            if time.monotonic() - current.last_metrics_at > METRICS_EVERY or over:
                self._write_metrics(current)
            if over:
                return self._reports(current)
        except DiskFullError:
            raise
        except SLICE_ERRORS as error:
            return self._failures(current.assignments, error)
        self._slices.append(current)
        return []

    def stop(self) -> list[Report | Failure]:
        """End every slice now and return early reports, unless slices are discarded on a stop.

        The assignment of a member that has not trained any step stays open.
        """
        ended: list[Report | Failure] = []
        slices, self._slices, self._waiting = self._slices, [], []
        for s in slices:
            try:
                ended += [] if self._discard_on_stop else self._reports(s)
            except DiskFullError:
                raise
            except SLICE_ERRORS as error:
                ended += self._failures(s.assignments, error)
            else:
                self._drop(s.cohort)
        return ended

    def close(self) -> None:
        """Release all cohorts."""
        for cohort in list(self._cohorts.values()):
            self._drop(cohort)

    def _start_waiting(self) -> None:
        """Start waiting assignments in their order of arrival, as far as the capacity allows."""
        while self._waiting and (free := self._capacity - sum(len(s.assignments) for s in self._slices)) > 0:
            group, structure = self._waiting.pop(0)
            if group[free:]:
                self._waiting.insert(0, (group[free:], structure))
            self._start(group[:free], structure)

    def _start(self, group: list[Assignment], structure: object) -> None:
        """Start a slice of all assignments whose parents are intact."""
        while group:
            try:
                self._slices.append(self._begin(group, structure))
            except _OrphanError as orphan:
                if orphan.parent != INITIAL:  # it cannot be made again
                    self._store.quarantine(orphan.parent)
                self._early.append(orphan.failure)
                group = [a for a in group if a.id != orphan.failure.assignment]
            except DiskFullError:
                raise
            except SLICE_ERRORS as error:
                self._early += self._failures(group, error)
                return
            else:
                return

    def _begin(self, group: list[Assignment], structure: object) -> _Slice:
        members = tuple(a.member for a in group)
        cohort = self._cohorts.get((members, structure)) or self._new_cohort(members, structure)
        for slot, a in enumerate(group):
            held = self._live_snapshot.pop(a.member, None)
            if a.parent is None:
                cohort.init(slot, a.seed)
            elif held != a.parent:
                cohort.load(slot, self._parent(a))
                crash_point("host.loaded")
        cohort.begin(group)
        crash_point("host.began")
        return _Slice(cohort, group, min((s.progress for s in self._slices), default=0.0))

    def _parent(self, a: Assignment) -> Tensors:
        assert a.parent is not None
        try:
            tensors, _ = self._store.load(a.parent)
        except SnapshotError as error:
            raise _OrphanError(a, a.parent, error) from error
        return tensors

    def _new_cohort(self, members: tuple[str, ...], structure: object) -> Cohort:
        self._drop_of(members)
        under_way = {id(s.cohort) for s in self._slices}
        for idle in [c for c in self._cohorts.values() if id(c) not in under_way]:
            if len(self._held()) + len(members) > self._capacity:
                self._drop(idle)
        self._cohorts[members, structure] = cohort = self._builder.cohort(members, self._threads, structure)
        return cohort

    def _held(self) -> set[str]:
        """Members whose cohorts are in memory."""
        return {m for c in self._cohorts.values() for m in c.members}

    def _drop_of(self, members: Iterable[str]) -> None:
        for cohort in [c for c in self._cohorts.values() if not set(c.members).isdisjoint(members)]:
            self._drop(cohort)

    def _drop(self, cohort: Cohort) -> None:
        self._cohorts = {key: other for key, other in self._cohorts.items() if other is not cohort}
        for member in cohort.members:
            self._live_snapshot.pop(member, None)
        cohort.close()

    def _reports(self, done: _Slice) -> list[Report | Failure]:
        seconds = time.monotonic() - done.started_at
        outcomes = [done.cohort.outcome(slot) for slot in range(len(done.assignments))]
        return [
            self._report(done.cohort, slot, a, outcome, seconds)
            for slot, (a, outcome) in enumerate(zip(done.assignments, outcomes, strict=True))
            if outcome.steps
        ]

    def _report(self, cohort: Cohort, slot: int, a: Assignment, outcome: Outcome, seconds: float) -> Report:
        if wrong := _differences(a.hyperparameters, outcome.hyperparameters):
            raise MismatchError(f"{a.id}: assigned and effective hyperparameters differ: {wrong}")
        tensors = cohort.save(slot)
        broken = sorted(name for name, values in tensors.items() if not np.isfinite(values).all())
        if broken:
            tensors = self._last_finite(a, broken)
        report = Report(
            assignment=a.id,
            member=a.member,
            step=a.start + outcome.steps,
            hyperparameters=outcome.hyperparameters,
            returns=tuple(outcome.returns),
            lengths=tuple(outcome.lengths),
            evaluation=tuple(outcome.evaluation),
            curve=tuple(outcome.curve),
            scalars=outcome.scalars,
            diverged=outcome.diverged or bool(broken),
            timing={**outcome.timing, "seconds": seconds},
            assigned=a.hyperparameters,
        )
        body = report.to_json()
        parse_report(body)  # what the journal could not hold fails this slice, and not the run
        self._store.commit(a.id, tensors, {"schema": SCHEMA, "assignment": a.to_json(), "report": body})
        if not broken:
            self._live_snapshot[a.member] = a.id
        crash_point("host.reports")
        return report

    def _last_finite(self, a: Assignment, broken: Sequence[str]) -> Tensors:
        """Load the tensors from the start of the slice, for a member whose weights are no longer finite."""
        if a.parent is None:
            raise NotFiniteError(f"{a.id}: not finite after the first slice: {', '.join(broken)}")
        return self._store.load(a.parent)[0]

    def _committed(self, a: Assignment) -> Report | None:
        """Return the report of an earlier attempt that died after committing its snapshot; None if there is none.

        A snapshot of the same name but of another assignment (after a lost journal) is quarantined.
        """
        state = self._store.state(a.id)
        if state is None:
            return None
        origin = state.get("assignment")
        if isinstance(origin, dict) and any(origin.get(key) != getattr(a, key) for key in IDENTITY_FIELDS):
            self._store.quarantine(a.id)
            return None
        try:
            return parse_report(state["report"])
        except (KeyError, TypeError, ValueError):
            return None

    def _failures(self, group: Sequence[Assignment], error: BaseException) -> list[Report | Failure]:
        members = {a.member for a in group}
        self._drop_of(members)
        text = "".join(traceback.format_exception(error))
        for a in group:
            self._sink.write_log(a.member, f"{a.id} failed\n{text}\n")
        alone, short = len(group) == 1, _is_of_memory(error)
        if short:
            held = len(self._held() | members)
            alone, self._capacity = held == 1, max(1, held // 2)
        fatal = alone and isinstance(error, MismatchError | NotFiniteError)
        summary = f"{type(error).__name__}: {error}"
        return [Failure(a.id, a.member, summary, fatal, alone, memory=short) for a in group]

    def _write_metrics(self, current: _Slice) -> None:
        current.last_metrics_at = time.monotonic()
        for a, values in zip(current.assignments, current.cohort.metrics(), strict=True):
            if values:
                line = {**values, "assignment": a.id, "attempt": current.attempt, "time": time.time()}
                self._sink.write_metrics(a.member, line)


def _differences(assigned: dict[str, Any], effective: dict[str, Any]) -> str:
    wrong = {k: (v, effective.get(k)) for k, v in assigned.items() if not _same(v, effective.get(k))}
    return ", ".join(f"{k}: assigned {v}, effective {e}" for k, (v, e) in wrong.items())


def _is_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, on CPU or GPU, here or in another process; torch's CPU error is only a text."""
    text = f"{type(error).__name__}: {error}"
    return getattr(error, "errno", None) == errno.ENOMEM or any(part in text for part in OUT_OF_MEMORY_TEXTS)


def _same(assigned: Any, effective: Any) -> bool:
    """Compare two values; floats in single precision, in which the learner computes."""
    if isinstance(assigned, float) and isinstance(effective, int | float):
        return abs(assigned - effective) <= 1e-6 * abs(assigned)
    return bool(assigned == effective)
