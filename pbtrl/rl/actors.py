"""Decoupled acting (Espeholt et al. 2018, section 3): processes act ahead of one learner, with the newest weights.

    actor 0 .. n-1                                        learner
      wait for a request  <-------------- free slot -----   ask for up to SLOTS blocks per actor within the slice
      copy the newest weights  <--- WeightMailbox -------   write after every update
      act; block -> slot  ------- version, episodes ----->   take the oldest block, learn, free its slot

Every actor steps its own envs, num_envs per member, for all members at once. A block contains the action distributions
of the policy that acted, so V-trace can correct for the lag: the number of updates between the acting weights and the
update that learns from the block. Slots form the queue: if the learner is slow, actors wait for a free one
(back-pressure). No block outlives its slice, so no update learns from the data of a replaced policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.agents.types import Agent, Inputs, State, Trajectory, UpdateResult
from pbtrl.core.messages import Assignment
from pbtrl.core.seeding import env_seeds, seed_for
from pbtrl.core.trainable import Outcome
from pbtrl.rl.cohort import RLCohort
from pbtrl.rl.cohort_spec import CohortSpec, CohortSpecRef
from pbtrl.rl.process_pool import WAIT, Message, PoolWorker, WorkerPool
from pbtrl.rl.rollout import Episodes, Instrument, Rollout, Source
from pbtrl.rl.shared_memory import SharedTensors, WeightMailbox, from_dict, to_dict, truncate
from pbtrl.rl.unroll_replay import UnrollReplay

SLOTS = 2  # per actor: one to write while the other one waits or is learned from
GRACE = 2.0  # seconds for an actor to finish a block that will be discarded


class ActorsCohort(RLCohort):
    """Cohort of k members for which other processes act; implements `pbtrl.core.trainable.Cohort`."""

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
        """Learn from one block, if one arrives within WAIT seconds."""
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
        return self._actors.answered(WAIT)

    @override
    def _reset_envs(self) -> None:
        if self.rollout is None:
            self.rollout = Actors(self._spec, self.members, self._state, self._threads)
        replaced = [slot for slot, new in enumerate(self._new_policy) if new]
        self._actors.renew([seed_for(a.seed, "envs") for a in self._assignments], replaced)


class Actors(Source):
    """Learner's handle of the actors: requests, and the queue of finished blocks.

    Attributes:
        episodes: as `Rollout.episodes`, of the blocks that were taken.
    """

    def __init__(self, spec: CohortSpec, members: Sequence[str], state: State, threads: int) -> None:
        self.episodes = [Episodes() for _ in members]
        self._envs, self._version, self._dropped = spec.envs, 0, 0
        self._weights = WeightMailbox({name: state.tensors[name] for name in spec.agent.acting_tensors})
        like = to_dict(_blank(spec.agent, state, len(members), spec.block, spec.envs))
        self._slots = [[SharedTensors(like) for _ in range(SLOTS)] for _ in range(spec.processes)]
        self._free = [list(range(SLOTS)) for _ in self._slots]
        self._running = torch.zeros(len(self._slots), len(members), self._envs, dtype=torch.float64)
        self._scaled = "return.mean" in state.tensors
        past = spec.replay / (1.0 - spec.replay) * self._envs
        self._replayed = max(1, round(past)) if past else 0
        self._replay = UnrollReplay(spec.replay_size, self._envs)
        self._taken: _InFlightBlock | None = None
        each = max(1, threads // spec.processes)
        self.pool = WorkerPool(
            spec.processes,
            worker_factory=lambda i: (_Actor, (spec.origin, len(members), each, self._weights, self._slots[i])),
            init_message=self._init_message,
            died=self._died,
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
        self.pool.tell({"forget": slot})
        self._replay.forget(slot)

    def publish(self, state: State) -> None:
        """Publish weights, which the actors use from their next block on."""
        self._weights.write(state.tensors, self._version)

    @override
    def instrument(self, wrap: Instrument) -> None:
        self.answered = wrap("wait", self.answered)

    def ask(self, left: int, block: int, generators: Sequence[torch.Generator]) -> None:
        """Request a block of up to `block` steps for every free slot, but not more than `left` steps in total."""
        for i in self.pool.least_loaded(SLOTS):
            if self._free[i] and left > self.pool.pending:
                noise = [int(torch.randint(2**62, (), generator=g)) for g in generators]
                steps = min(block, left - self.pool.pending)
                self.pool.ask(i, {"slot": self._free[i].pop(0), "steps": steps, "noise": noise})

    def take(self, state: State, generator: torch.Generator) -> Trajectory:
        """Take the oldest block, together with replayed unrolls; it is valid until `learned` is called."""
        i, answer = self.pool.take()
        for episodes, finished in zip(self.episodes, answer["episodes"], strict=True):
            episodes.extend(*finished)
        self._reset_returns(i, answer)
        block = truncate(self._slots[i][answer["slot"]].tensors, answer["steps"])
        mixed, past = self._replay.mixed(block, self._replayed, generator)
        own = torch.arange(self._envs) if past is None else (~past).nonzero()[:, 0]
        self._taken = _InFlightBlock(i, answer["slot"], self._version - answer["version"], block, own)
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
            self._reset_returns(i, answer)
            self._free[i].append(answer["slot"])
            self._dropped += answer["steps"] * self._envs

    @override
    def tally(self) -> dict[str, float]:
        """Losses since `clear` by tag: deaths of actors, and env steps per member without an update."""
        return self.pool.tally(self._envs, self._dropped)

    @override
    def close(self) -> None:
        self.pool.close()

    def _init_message(self, i: int, restarts: int) -> Message:
        purpose = f"actor {i}, life {restarts}"
        return {"envs": [s for seed in self._seeds for s in env_seeds(seed_for(seed, purpose), self._envs)]}

    def _died(self, i: int, unanswered: Sequence[Message]) -> None:
        """Free the slots of a dead actor; its replacement has new envs."""
        self._free[i] += [message["slot"] for message in unanswered]

    def _reset_returns(self, i: int, answer: Message) -> None:
        """Reset the running returns if the actor has new envs."""
        if answer["new"]:
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


class _Actor(PoolWorker):
    """Actor in its process: acts with the newest weights into shared slots."""

    def __init__(
        self, origin: CohortSpecRef, members: int, threads: int, weights: WeightMailbox, slots: Sequence[SharedTensors]
    ) -> None:
        self._spec = origin.spec()
        self._members, self._threads, self._weights, self._slots = members, threads, weights, slots
        self._state = self._spec.agent.init([torch.Generator().manual_seed(0) for _ in range(members)])
        self._rollout: Rollout | None = None
        self._new = False

    @override
    def answer(self, message: Message) -> Message | None:
        """Create `envs`, `forget` a slot's policy, or act for `steps` into a slot."""
        if "envs" in message:
            self.close()
            self._new = True
            vector = self._spec.make(message["envs"], self._threads)
            self._rollout = Rollout(vector, self._members, self._spec.agent, self._spec.to_env, self._spec.metric)
        assert self._rollout is not None
        if "forget" in message:
            self._rollout.forget(message["forget"])
        return self._act(self._rollout, **message) if "steps" in message else None

    @override
    def close(self) -> None:
        if self._rollout:
            self._rollout.close()

    def _act(self, rollout: Rollout, slot: int, steps: int, noise: Sequence[int]) -> dict[str, Any]:
        version = self._weights.read(self._state.tensors)
        block = rollout.collect(self._state, [torch.Generator().manual_seed(seed) for seed in noise], steps)
        target = truncate(self._slots[slot].tensors, steps)
        for name, value in to_dict(block).items():
            target[name].copy_(value)
        episodes = [e.packed() for e in rollout.episodes]
        rollout.clear()
        new, self._new = self._new, False
        return {"slot": slot, "steps": steps, "version": version, "episodes": episodes, "new": new}


def _blank(agent: Agent, state: State, members: int, time: int, envs: int) -> Trajectory:
    """Create a block of zeros with the shapes and types of a real one."""
    actions, rnn_state = agent.begin(members, envs)
    noise = agent.noise([torch.Generator() for _ in range(members)], 1, envs)[0]
    observations = torch.zeros(members, envs, *agent.shape, dtype=torch.uint8 if agent.image else torch.float32)
    inputs = Inputs(observations, actions, torch.zeros(members, envs), torch.ones(members, envs, dtype=torch.bool))
    acted = agent.act(state, inputs, rnn_state, None)

    def over_time(value: Tensor, steps: int = time) -> Tensor:
        return torch.zeros(1, dtype=value.dtype).expand(members, steps, *value.shape[1:])

    return Trajectory(
        observations=over_time(observations, time + 1),
        actions=over_time(acted.actions),
        rewards=over_time(inputs.rewards),
        terminated=over_time(inputs.first),
        done=over_time(inputs.first),
        is_reset_step=over_time(inputs.first),
        policy=over_time(acted.policy),
        noise=over_time(noise),
        initial_inputs=inputs,
        rnn_state=rnn_state,
    )
