"""A3C as published (Mnih et al. 2016, algorithm S3): processes act and learn, and share weights without locks.

    process 0 .. n-1, again and again                     coordinator
      copy the shared weights to private ones     <-- ask   blocks of env steps, QUEUED per process at most
      act, and differentiate, by those                      the clock, episodes, metrics, snapshots
      apply the gradient to the shared ones       answer ->

Every process steps envs of its own, num_envs per member, for all members at once. Shared and changed in place, while
others read and write them, are the parameters and the optimizer's moments, as in the paper; a process that overwrites
what another has just written loses a fraction of that update (Recht et al. 2011, arXiv 1106.5730). Everything else
that is learned (statistics of observations and returns) a process copies when a block begins and puts back when it
ends. With one process all of this is the serial run, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from pbtrl.agents.types import UpdateResult
from pbtrl.core.messages import Assignment, numbers
from pbtrl.core.seeding import seed_for
from pbtrl.core.trainable import Outcome
from pbtrl.rl.cohort import RLCohort
from pbtrl.rl.cohort_spec import CohortSpec, CohortSpecRef
from pbtrl.rl.process_pool import DEATHS, WAIT, Message, WorkerPool
from pbtrl.rl.rollout import Episodes
from pbtrl.rl.shared_memory import SharedTensors

QUEUED = 2  # blocks asked of a process: the next one is there when it ends one
GRACE = 4.0  # seconds to end a block; less than what a signal leaves the worker
IN_PLACE = ("params", "rmsprop.", "adam.")


class HogwildCohort(RLCohort):
    """k members that several processes train at once; see `pbtrl.trainable.Cohort` for the contract."""

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

    def begin(self, assignments: Sequence[Assignment]) -> None:
        """Start a slice."""
        replaced = [slot for slot, new in enumerate(self._new_policy) if new]
        super().begin(assignments)
        self._peers.begin(assignments, replaced)

    def advance(self) -> bool:
        """Take note of one block, if a process has learned from one within WAIT seconds."""
        self._peers.ask(self.left, self.block)
        return self._peers.pool.answered(WAIT) and self._note(self._peers.pool.take()[1])

    def outcome(self, slot: int) -> Outcome:
        """What the slice gave so far; blocks under way are waited for and count, for their gradients are applied."""
        for _, answer in self._peers.pool.drain(GRACE):
            self._note(answer)
        return super().outcome(slot)

    def _note(self, answer: Message) -> bool:
        for mine, told in zip(self._peers.episodes, answer["episodes"], strict=True):
            mine.extend(*told)
        metrics = {k: torch.tensor(numbers(v)) for k, v in answer["metrics"].items()}
        consumed = {k: torch.tensor(v) for k, v in answer["consumed"].items()}
        counts = (torch.tensor(answer[key]) for key in ("updates", "skipped"))
        return self._record(UpdateResult(metrics, consumed, *counts), answer["steps"])

    def _reset_envs(self) -> None:
        """The processes do that for themselves."""
        if self.rollout is None:
            self.rollout = Peers(self._spec, self.members, self._shared, self._threads)


class Peers:
    """The processes of a cohort, and what they are asked for.

    Attributes:
        episodes: as `Rollout.episodes`, of all processes.
    """

    def __init__(self, spec: CohortSpec, members: Sequence[str], shared: SharedTensors, threads: int) -> None:
        self.episodes = [Episodes() for _ in members]
        self._envs = spec.envs
        each = max(1, threads // spec.processes)
        self.pool = WorkerPool(
            spec.processes,
            worker_factory=lambda i: (_Peer, (spec.origin, tuple(members), each, shared)),
            init_message=self._init_message,
            deaths=DEATHS if spec.processes > 1 else 1,  # the serial run would fail, and its slice be run again
        )

    def begin(self, assignments: Sequence[Assignment], replaced: Sequence[int]) -> None:
        """Start a slice; the slots in `replaced` have a new policy."""
        self._assignments, self._replaced = assignments, replaced
        self.pool.send_init_message()

    def clear(self) -> None:
        """Start to count anew."""
        self.episodes = [Episodes() for _ in self.episodes]
        self.pool.clear()

    def forget(self, slot: int) -> None:
        """The processes are told when the slice begins."""

    def ask(self, left: int, block: int) -> None:
        """Have every process learn from blocks of up to `block` steps, but from no more than `left` in all."""
        for i in self.pool.least_loaded(QUEUED):
            if left > self.pool.pending:
                self.pool.ask(i, {"steps": min(block, left - self.pool.pending)})

    def tally(self) -> dict[str, float]:
        """What was lost since `clear`, by tag: deaths, and env steps per member."""
        return self.pool.tally(self._envs)

    def close(self) -> None:
        """End the processes."""
        self.pool.close()

    def _init_message(self, i: int, restarts: int) -> Message:
        """Process 0 draws what the serial run draws."""
        seeds = [
            a.seed if i == restarts == 0 else seed_for(a.seed, f"process {i}, life {restarts}")
            for a in self._assignments
        ]
        own = [replace(a, seed=seed) for a, seed in zip(self._assignments, seeds, strict=True)]
        return {"begin": [a.to_json() for a in own], "replaced": list(self._replaced)}


class _Peer(RLCohort):
    """One process's side: a cohort whose weights are shared, and which learns from a block when it is asked to."""

    def __init__(self, origin: CohortSpecRef, members: Sequence[str], threads: int, shared: SharedTensors) -> None:
        super().__init__(members, origin.spec(), threads)
        self._state.private = self._state.tensors["params"]
        self._shared = shared.tensors
        self._copied = [name for name in self._shared if not name.startswith(IN_PLACE)]
        self._state.tensors = dict(self._shared)

    def answer(self, message: Message) -> Message | None:
        """`begin` a slice, or learn from a block of so many `steps`."""
        if "begin" in message:
            for slot in message["replaced"]:
                self._new_policy[slot] = True
            self.begin([Assignment(**a) for a in message["begin"]])
        return self._learn_from(message["steps"]) if "steps" in message else None

    def _learn_from(self, steps: int) -> Message:
        tensors, rollout = self._state.tensors, self._inline
        self._state.refresh()
        tensors |= {name: self._shared[name].clone() for name in self._copied}
        learned = self.learn(rollout.collect(self._state, self._generators, steps))
        for name in self._copied:
            self._shared[name].copy_(tensors[name])
        episodes = [(e.returns, e.lengths) for e in rollout.episodes]
        rollout.clear()
        metrics, consumed = ({k: v.tolist() for k, v in x.items()} for x in (learned.metrics, learned.consumed))
        counts = {"updates": learned.updates.tolist(), "skipped": learned.skipped.tolist()}
        return {"steps": steps, "metrics": metrics, "consumed": consumed, "episodes": episodes, **counts}
