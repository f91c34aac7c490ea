"""Decoupled acting (Espeholt et al. 2018, section 3): actors act ahead of one learner, with the newest weights.

    actor 0 .. n-1                                        learner
      wait for a request  <-------------- free slot -----   ask for up to SLOTS blocks per actor within the slice
      copy the newest weights  <-------------------------   publish after every update
      act; block -> slot  ------- version, episodes ----->   take the oldest block, learn, free its slot

Every actor steps its own envs, num_envs per member, for all members at once. A block contains the action distributions
of the policy that acted, so V-trace can correct for the lag: the number of updates between the acting weights and the
update that learns from the block. Slots form the queue: if the learner is slow, actors wait for a free one
(back-pressure). No block outlives its slice, so no update learns from the data of a replaced policy.

A transport carries weights and blocks: `local_actors` to processes through shared memory, `remote_actors` to other
machines as bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.agents.types import State, Trajectory, UpdateResult
from pbtrl.core.messages import Assignment
from pbtrl.core.seeding import env_seeds, seed_for
from pbtrl.core.trainable import Outcome
from pbtrl.rl.cohort import RLCohort
from pbtrl.rl.cohort_spec import CohortSpec
from pbtrl.rl.pool_messages import Act, Block, Forget, Request, ResetEnvs
from pbtrl.rl.process_pool import POLL_SECONDS, Link, WorkerPool
from pbtrl.rl.rollout import Episodes, Instrument, Source
from pbtrl.rl.shared_memory import from_dict
from pbtrl.rl.unroll_replay import UnrollReplay

SLOTS = 2  # per actor: one to write while the other one waits or is learned from
GRACE = 2.0  # seconds for an actor to finish a block that will be discarded


class Transport(Protocol):
    """Transport of weights and blocks between a learner and its actors.

    Attributes:
        links: one per actor.
        patience: seconds that an actor has to come up while no other one is.
    """

    links: Sequence[Link]
    patience: float

    def wait(self, timeout: float) -> Sequence[int]:
        """Wait up to `timeout` seconds for links that can receive; returns their indices."""

    def publish(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Replace the weights, which the actors use from their next block on."""

    def block(self, i: int, answer: Block) -> dict[str, Tensor]:
        """Return the block of an answer of actor i; it is valid until its slot is asked for again."""


TransportFactory = Callable[[CohortSpec, State, int, int], Transport]
"""Function that makes a transport from a cohort's specification, state, number of members and simulator threads."""


class ActorsCohort(RLCohort):
    """Cohort of k members for which other processes act; implements `pbtrl.core.trainable.Cohort`."""

    def __init__(self, members: Sequence[str], spec: CohortSpec, threads: int, transport: TransportFactory) -> None:
        super().__init__(members, spec, threads)
        self._transport = transport

    @property
    def _actors(self) -> Actors:
        assert isinstance(self.rollout, Actors)
        return self.rollout

    @override
    def begin(self, assignments: Sequence[Assignment]) -> None:
        super().begin(assignments)
        self._actors.publish(self._state)

    @override
    def advance(self) -> bool:
        """Learn from one block, if one arrives within POLL_SECONDS."""
        return self._ready() and super().advance()

    @override
    def collect(self) -> Trajectory:
        """Take the oldest block from the actors, together with replayed unrolls."""
        while not self._ready():
            pass
        return self._actors.take(self._state, self._generators[0])

    @override
    def learn(self, block: Trajectory) -> UpdateResult:
        """Learn from a block, free its slot and publish the new weights."""
        learned = super().learn(block)
        lag = float(self._actors.learned(self._state))
        return replace(learned, metrics={**learned.metrics, "acting/lag": torch.full((len(self.members),), lag)})

    @override
    def outcome(self, slot: int) -> Outcome:
        """Return the result of the slice so far; blocks in flight are awaited and dropped."""
        self._actors.drop()
        return super().outcome(slot)

    def _ready(self) -> bool:
        self._actors.ask(self.left, self.block, self._generators)
        return self._actors.answered(POLL_SECONDS)

    @override
    def _reset_envs(self) -> None:
        if self.rollout is None:
            transport = self._transport(self._spec, self._state, len(self.members), self._threads)
            self.rollout = Actors(self._spec, self.members, self._state, transport)
        replaced = [slot for slot, new in enumerate(self._new_policy) if new]
        self._actors.renew([seed_for(a.seed, "envs") for a in self._assignments], replaced)


class Actors(Source):
    """Learner's handle of the actors: requests, and the queue of finished blocks.

    Attributes:
        episodes: as `Rollout.episodes`, of the blocks that were taken.
    """

    def __init__(self, spec: CohortSpec, members: Sequence[str], state: State, transport: Transport) -> None:
        self.episodes = [Episodes() for _ in members]
        self._envs, self._version, self._dropped = spec.envs, 0, 0
        self._transport, self._acting = transport, spec.agent.acting_tensors
        self._free = [list(range(SLOTS)) for _ in transport.links]
        self._running = torch.zeros(len(self._free), len(members), self._envs, dtype=torch.float64)
        self._scaled = "return.mean" in state.tensors
        past = spec.replay / (1.0 - spec.replay) * self._envs
        self._replayed = max(1, round(past)) if past else 0
        self._replay = UnrollReplay(spec.replay_size, self._envs)
        self._taken: _InFlightBlock | None = None
        self.pool = WorkerPool(
            transport.links, transport.wait, self._init_message, self._died, patience=transport.patience
        )
        self.answered = self.pool.answered

    def renew(self, seeds: Sequence[int], replaced: Sequence[int]) -> None:
        """Create new envs in all actors, from one seed per slot; the slots in `replaced` have a new policy."""
        self.drop()
        for slot in replaced:
            self._replay.forget(slot)
        self._seeds = seeds
        self.pool.send_init_message()

    @override
    def clear(self) -> None:
        self.drop()
        self.episodes = [Episodes() for _ in self.episodes]
        self._dropped = 0
        self.pool.clear()

    @override
    def forget(self, slot: int) -> None:
        """Handle a new policy in a slot: open episodes will not count, and the old policy's data is not replayed."""
        self.pool.tell(Forget(slot))
        self._replay.forget(slot)

    def publish(self, state: State) -> None:
        """Publish weights, which the actors use from their next block on."""
        self._transport.publish({name: state.tensors[name] for name in self._acting}, self._version)

    @override
    def instrument(self, wrap: Instrument) -> None:
        self.answered = wrap("wait", self.answered)

    def ask(self, left: int, block: int, generators: Sequence[torch.Generator]) -> None:
        """Request a block of up to `block` steps for every free slot, but not more than `left` steps in total."""
        for i in self.pool.least_loaded(SLOTS):
            if self._free[i] and left > self.pool.pending:
                noise = [int(torch.randint(2**62, (), generator=g)) for g in generators]
                steps = min(block, left - self.pool.pending)
                self.pool.ask(i, Act(self._free[i].pop(0), steps, noise))

    def take(self, state: State, generator: torch.Generator) -> Trajectory:
        """Take the oldest block, together with replayed unrolls; it is valid until `learned` is called."""
        i, answer = self.pool.take()
        assert isinstance(answer, Block)
        for episodes, finished in zip(self.episodes, answer.episodes, strict=True):
            episodes.extend(*finished)
        self._reset_returns(i, answer)
        block = self._transport.block(i, answer)
        self._running[i][block["before.first"]] = 0.0  # a block that was dropped may have ended the episode before
        mixed, past = self._replay.mixed(block, self._replayed, generator)
        own = torch.arange(self._envs) if past is None else (~past).nonzero()[:, 0]
        self._taken = _InFlightBlock(i, answer.slot, self._version - answer.version, block, own)
        if self._scaled:
            state.running["return"] = torch.zeros(mixed["rewards"].shape[::2], dtype=torch.float64)
            state.running["return"][:, own] = self._running[i]
        return from_dict(mixed, past)

    def learned(self, state: State) -> int:
        """Finish the update from the block that was taken; returns its lag in updates."""
        taken = self._taken
        assert taken is not None
        if self._replayed:
            self._replay.add(taken.block)
        if self._scaled:
            self._running[taken.actor] = state.running["return"][:, taken.own]
        self._free[taken.actor].append(taken.slot)
        self._taken = None
        self._version += 1
        self.publish(state)
        return taken.lag

    def drop(self) -> None:
        """Wait for all blocks in flight and discard them."""
        for i, answer in self.pool.drain(GRACE):
            assert isinstance(answer, Block)
            self._reset_returns(i, answer)
            self._free[i].append(answer.slot)
            self._dropped += answer.steps * self._envs

    @override
    def tally(self) -> dict[str, float]:
        """Losses since `clear` by tag: deaths of actors, and env steps per member without an update."""
        return self.pool.tally(self._envs, self._dropped)

    @override
    def close(self) -> None:
        self.pool.close()

    def _init_message(self, i: int, restarts: int) -> ResetEnvs:
        purpose = f"actor {i}, life {restarts}"
        return ResetEnvs([s for seed in self._seeds for s in env_seeds(seed_for(seed, purpose), self._envs)])

    def _died(self, i: int, unanswered: Sequence[Request]) -> None:
        """Free the slots of a dead actor; its replacement has new envs."""
        self._free[i] += [message.slot for message in unanswered if isinstance(message, Act)]

    def _reset_returns(self, i: int, answer: Block) -> None:
        """Reset the running returns if the actor has new envs."""
        if answer.new:
            self._running[i] = 0.0


@dataclass(frozen=True)
class _InFlightBlock:
    """Block that the learner currently learns from.

    Attributes:
        actor: index of the actor that made it.
        slot: index of its slot.
        lag: age of the acting policy (updates).
        block: tensors of the block.
        own: indices of its envs in the mixture with replayed unrolls.
    """

    actor: int
    slot: int
    lag: int
    block: dict[str, Tensor]
    own: Tensor
