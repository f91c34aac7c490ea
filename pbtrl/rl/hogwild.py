"""A3C as published (Mnih et al. 2016, algorithm S3): processes act and learn, and share weights without locks.

    process 0 .. n-1, in a loop                           coordinator
      copy the shared weights to private ones     <-- ask   at most QUEUED blocks per process
      act and compute gradients with the copy               clock, episodes, metrics, snapshots
      apply the gradient to the shared weights    answer ->

Every process steps its own envs, num_envs per member, for all members at once. As in the paper, parameters and
optimizer moments are shared and changed in place while other processes read and write them. A process that overwrites a
concurrent write loses a fraction of that update (Recht et al. 2011, arXiv 1106.5730). All other learned state
(statistics of observations and returns) is copied at the start of a block and written back at its end. With one process
the result equals the serial run bit for bit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import torch
from typing_extensions import override

from pbtrl.agents.types import UpdateResult
from pbtrl.core.messages import Assignment, numbers
from pbtrl.core.seeding import seed_for
from pbtrl.core.trainable import Outcome
from pbtrl.rl.cohort import RLCohort
from pbtrl.rl.cohort_spec import CohortSpec, CohortSpecRef
from pbtrl.rl.pool_messages import Answer, BeginSlice, LearnBlock, Learned, ToWorker
from pbtrl.rl.process_pool import DEATHS, POLL_SECONDS, Process, WorkerPool, wait_for_processes
from pbtrl.rl.rollout import Episodes, Instrument, Source
from pbtrl.rl.shared_memory import SharedTensors

QUEUED = 2  # requested blocks per process, so that the next request is there when a block ends
GRACE = 4.0  # seconds for a process to finish a block; less than a worker has after a stop signal
IN_PLACE = ("params", "rmsprop.", "adam.")


class HogwildCohort(RLCohort):
    """Cohort of k members that several processes train concurrently; implements `pbtrl.core.trainable.Cohort`."""

    def __init__(self, members: Sequence[str], spec: CohortSpec, threads: int) -> None:
        super().__init__(members, spec, threads)
        self._shared = SharedTensors(self._state.tensors)
        for name, value in self._shared.tensors.items():
            value.copy_(self._state.tensors[name])
        self._state.tensors = self._shared.tensors

    @property
    def _peers(self) -> Peers:
        assert isinstance(self.rollout, Peers)
        return self.rollout

    @override
    def begin(self, assignments: Sequence[Assignment]) -> None:
        replaced = [slot for slot, new in enumerate(self._new_policy) if new]
        super().begin(assignments)
        self._peers.begin(assignments, replaced)

    @override
    def advance(self) -> bool:
        """Record one block, if a process learns from one within POLL_SECONDS."""
        self._peers.ask(self.left, self.block)
        return self._peers.pool.answered(POLL_SECONDS) and self._note(self._peers.pool.take()[1])

    @override
    def outcome(self, slot: int) -> Outcome:
        """Return the result of the slice so far; blocks in flight are awaited and count, as their gradients apply."""
        for _, answer in self._peers.pool.drain(GRACE):
            self._note(answer)
        return super().outcome(slot)

    def _note(self, answer: Answer) -> bool:
        assert isinstance(answer, Learned)
        for episodes, finished in zip(self._peers.episodes, answer.episodes, strict=True):
            episodes.extend(*finished)
        metrics = {k: torch.tensor(numbers(v)) for k, v in answer.metrics.items()}
        consumed = {k: torch.tensor(v) for k, v in answer.consumed.items()}
        updates, skipped = torch.tensor(answer.updates), torch.tensor(answer.skipped)
        return self._record(UpdateResult(metrics, consumed, updates, skipped), answer.steps)

    @override
    def _reset_envs(self) -> None:
        """Create the processes, which reset their own envs."""
        if self.rollout is None:
            self.rollout = Peers(self._spec, self.members, self._shared, self._threads)


class Peers(Source):
    """Coordinator's handle of a cohort's processes.

    Attributes:
        episodes: as `Rollout.episodes`, of all processes.
    """

    def __init__(self, spec: CohortSpec, members: Sequence[str], shared: SharedTensors, threads: int) -> None:
        self.episodes = [Episodes() for _ in members]
        self._envs = spec.envs
        each = max(1, threads // spec.processes)
        processes = [Process(_Peer, spec.origin, tuple(members), each, shared) for _ in range(spec.processes)]
        self.pool = WorkerPool(
            processes,
            functools.partial(wait_for_processes, processes),
            init_message=self._init_message,
            deaths=DEATHS if spec.processes > 1 else 1,  # with one process, fail and retry the slice as a serial run
        )

    def begin(self, assignments: Sequence[Assignment], replaced: Sequence[int]) -> None:
        """Start a slice; the slots in `replaced` have a new policy."""
        self._assignments, self._replaced = assignments, replaced
        self.pool.send_init_message()

    @override
    def clear(self) -> None:
        self.episodes = [Episodes() for _ in self.episodes]
        self.pool.clear()

    @override
    def forget(self, slot: int) -> None:
        """Do nothing: `begin` tells the processes which slots have a new policy."""

    @override
    def instrument(self, wrap: Instrument) -> None:
        pass  # its processes cannot be measured from outside

    def ask(self, left: int, block: int) -> None:
        """Request updates from blocks of up to `block` steps, but not more than `left` steps in total."""
        for i in self.pool.least_loaded(QUEUED):
            if left > self.pool.pending:
                self.pool.ask(i, LearnBlock(min(block, left - self.pool.pending)))

    @override
    def tally(self) -> dict[str, float]:
        """Losses since `clear` by tag: deaths of processes, and env steps per member."""
        return self.pool.tally(self._envs)

    @override
    def close(self) -> None:
        self.pool.close()

    def _init_message(self, i: int, restarts: int) -> BeginSlice:
        # Process 0 has the seed of the serial run.
        seeds = [
            a.seed if i == restarts == 0 else seed_for(a.seed, f"process {i}, life {restarts}")
            for a in self._assignments
        ]
        own = tuple(replace(a, seed=seed) for a, seed in zip(self._assignments, seeds, strict=True))
        return BeginSlice(own, self._replaced)


class _Peer(RLCohort):
    """Hogwild process: a cohort with shared weights that learns from one block per request."""

    def __init__(self, origin: CohortSpecRef, members: Sequence[str], threads: int, shared: SharedTensors) -> None:
        super().__init__(members, origin.spec(), threads)
        self._state.private = self._state.tensors["params"]
        self._shared = shared.tensors
        self._copied = [name for name in self._shared if not name.startswith(IN_PLACE)]
        self._state.tensors = dict(self._shared)

    def answer(self, message: ToWorker) -> Answer | None:
        """Begin a slice, or learn from a block."""
        if isinstance(message, BeginSlice):
            for slot in message.replaced:
                self._new_policy[slot] = True
            self.begin(message.assignments)
        return self._learn_from(message.steps) if isinstance(message, LearnBlock) else None

    def _learn_from(self, steps: int) -> Learned:
        tensors, rollout = self._state.tensors, self._inline
        self._state.refresh()
        tensors |= {name: self._shared[name].clone() for name in self._copied}
        learned = self.learn(rollout.collect(self._state, self._generators, steps))
        for name in self._copied:
            self._shared[name].copy_(tensors[name])
        episodes = [e.packed() for e in rollout.episodes]
        rollout.clear()
        metrics, consumed = ({k: v.tolist() for k, v in x.items()} for x in (learned.metrics, learned.consumed))
        return Learned(steps, learned.updates.tolist(), learned.skipped.tolist(), metrics, consumed, episodes)
