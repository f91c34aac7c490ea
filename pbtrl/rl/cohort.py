"""RL cohort: k members that act and learn together, block by block.

collect a block (all members' envs in one pool) -> learn from it -> next block, until the slice is over
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.agents.types import Trajectory, UpdateResult
from pbtrl.core.messages import SKIPPED_UPDATES, UNMEASURED, UPDATES, Assignment
from pbtrl.core.seeding import env_seeds, seed_for
from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Cohort, Outcome
from pbtrl.envs import Vector
from pbtrl.rl.cohort_spec import CohortSpec, fill, generator
from pbtrl.rl.rollout import Instrument, Rollout, Source, stopwatch

TUNED = frozenset({"learning_rate", "entropy_cost", "unroll_length"})  # plotted even if they are not searched
DIVERGED_AFTER = 10  # consecutive updates that were skipped because their gradient was not finite


class RLCohort(Cohort):
    """Cohort of k members of one structure that acts itself; implements `pbtrl.core.trainable.Cohort`.

    Attributes:
        rollout: source of experience, here envs and their buffers; None before the first slice.
    """

    def __init__(self, members: Sequence[str], spec: CohortSpec, threads: int) -> None:
        self.members = tuple(members)
        self._spec, self._threads = spec, threads
        self._state = spec.agent.init([torch.Generator().manual_seed(0) for _ in members])
        self.rollout: Source | None = None
        self._measured_learn: Callable[..., UpdateResult] | None = None
        self._seconds: dict[str, float] = {}
        self._new_policy = [True] * len(members)

    @override
    def init(self, slot: int, seed: int) -> None:
        fresh = self._spec.agent.init([generator(seed, "weights")])
        self._fill(slot, {k: v[0].numpy() for k, v in fresh.tensors.items()})

    @override
    def load(self, slot: int, tensors: Tensors) -> None:
        self._fill(slot, tensors)

    @override
    def begin(self, assignments: Sequence[Assignment]) -> None:
        self._assignments = list(assignments)
        self._length = assignments[0].stop - assignments[0].start
        self._done, self._curve_at = 0, self._spec.curve_interval
        self._hyperparameters = self._live([a.hyperparameters for a in assignments])
        self._consumed: dict[str, Tensor] = {}
        self._generators = [generator(a.seed, "actions") for a in assignments]
        former = self.rollout
        fresh = former is None or self._spec.reset
        if fresh:
            self._reset_envs()
        assert self.rollout is not None
        if self.rollout is not former:
            self.rollout.instrument(stopwatch(self._seconds))
        self._seconds.clear()
        self.rollout.clear()
        for slot, new in enumerate(self._new_policy):
            if new and not fresh:  # fresh envs have no open episodes
                self.rollout.forget(slot)
                self._spec.agent.forget(self._state, slot)
        self._new_policy = [False] * len(self.members)
        self._curves: list[list[tuple[int, float]]] = [[] for _ in self.members]
        self._curve_episodes = [0] * len(self.members)
        self._updates = torch.zeros(len(self.members), dtype=torch.int64)
        self._skipped = torch.zeros_like(self._updates)
        self._clear_metrics()

    @property
    @override
    def steps_done(self) -> float:
        """Env steps of the slice so far."""
        return self._done

    @override
    def advance(self) -> bool:
        """Collect one block and learn from it."""
        block = self.collect()
        learn = stopwatch(self._seconds)("learn", self._measured_learn or self.learn)
        return self._record(learn(block), block.rewards.shape[1])

    def _record(self, learned: UpdateResult, steps: int) -> bool:
        """Record an update from `steps` steps of every env; returns True when the slice is over."""
        self._consumed = self._merged(learned.consumed, steps)
        self._done += steps * self._spec.envs
        self._updates += learned.updates
        self._skipped += learned.skipped
        learning = learned.skipped < learned.updates
        for name, value in learned.metrics.items():
            new = torch.stack([torch.where(learning, value, 0.0), learning])
            self._totals[name] = self._totals.get(name, 0.0) + new
        self._draw_curve()
        return self._done >= self._length

    def collect(self) -> Trajectory:
        """Collect a block of experience."""
        return self._inline.collect(self._state, self._generators, min(self.block, self.left))

    def learn(self, block: Trajectory) -> UpdateResult:
        """Learn from a block with the assigned hyperparameters."""
        return self._spec.agent.learn(self._state, block, self._hyperparameters)

    def instrument(self, wrap: Instrument) -> None:
        """Measure the parts of training: `learn`, and `env` and `act` or `wait`, as `Rollout.instrument`."""
        assert self.rollout is not None
        self._measured_learn = wrap("learn", self._measured_learn or self.learn)
        self.rollout.instrument(wrap)

    def prepare_repeat(self, block: Trajectory, epochs: Tensor) -> Callable[[], UpdateResult]:
        """Prepare an update from a block in exactly `epochs` [P] passes, on a copy of all learned state."""
        state = copy.deepcopy(self._state)
        unlimited = torch.full(epochs.shape, torch.inf)
        fixed = {"epochs": epochs, "max_log_ratio": unlimited, "target_kl": unlimited}
        return functools.partial(self._spec.agent.learn, state, block, {**self._hyperparameters, **fixed})

    def prepare_rollout(self, make: Callable[[Vector, np.ndarray], Vector]) -> Callable[[], int]:
        """Prepare the collection of blocks from other envs, which do not change the policies or their streams.

        Args:
            make: function of the cohort's envs and their newest observations [P * B, ...] that returns the other envs.

        Returns:
            A function that collects one block and returns its number of env steps.
        """
        spec, generators = self._spec, [g.clone_state() for g in self._generators]
        observations = self._inline.inputs.observations.flatten(0, 1).numpy().copy()
        vector = make(self._inline.vector, observations)
        rollout = Rollout(vector, len(self.members), spec.agent, spec.to_env, spec.metric)

        def collect() -> int:
            return rollout.collect(self._state, generators, self.block).rewards.numel()

        return collect

    @property
    def block(self) -> int:
        """Steps per env until the next update."""
        exact = self._spec.exact
        return int(self._hyperparameters["unroll_length"][0]) if exact else self._spec.block

    @property
    def left(self) -> int:
        """Steps per env until the slice is over."""
        return (self._length - self._done) // self._spec.envs

    @override
    def metrics(self) -> list[dict[str, float]]:
        """Return per slot the means over updates since the last call that were not skipped, and the speed."""
        assert self.rollout is not None
        seconds, steps = time.monotonic() - self._since, self._done - self._since_step
        if not steps:
            return [{} for _ in self.members]
        rows = []
        for slot, a in enumerate(self._assignments):
            row: dict[str, float] = {"step": a.start + self._done, "perf/env_steps_per_s": steps / max(seconds, 1e-9)}
            totals = {name: both[:, slot].tolist() for name, both in self._totals.items()}
            row |= {name: total / count for name, (total, count) in totals.items() if count}
            row |= self._skips(slot)
            fixed = (TUNED & self._consumed.keys()) - a.hyperparameters.keys()
            row |= {f"hparams/{name}": self._used(name, slot) for name in sorted(fixed)}
            episodes = self.rollout.episodes[slot]
            recent: dict[str, Sequence[float]] = {
                "episode/return_mean": episodes.returns,
                "episode/length_mean": episodes.lengths,
            }
            if self._spec.metric is not None:
                recent[self._spec.metric.tag] = episodes.scores
            row |= {tag: float(np.mean(values[-20:])) for tag, values in recent.items() if values}
            rows.append(row)
        self._clear_metrics()
        return rows

    @override
    def outcome(self, slot: int) -> Outcome:
        assert self.rollout is not None
        episodes = self.rollout.episodes[slot]
        assigned = self._assignments[slot]
        evaluation: list[float] = []
        unmeasured = {UNMEASURED: float(episodes.unmeasured)} if episodes.unmeasured else {}
        if self._spec.evaluate and self._done >= self._length:  # not after an early stop, which should be quick
            evaluation = self._spec.evaluate(self.save(slot), seed_for(assigned.seed, "evaluation"), self._threads)
        return Outcome(
            steps=self._done,
            hyperparameters={k: self._used(k, slot) for k in assigned.hyperparameters if self._consumed},
            returns=episodes.scores,
            lengths=episodes.lengths,
            evaluation=evaluation,
            curve=self._curves[slot],
            scalars=self._skips(slot) | self.rollout.tally() | unmeasured,
            diverged=int(self._state.tensors["skipped"][slot]) >= DIVERGED_AFTER,
            timing=dict(self._seconds),
        )

    @override
    def save(self, slot: int) -> Tensors:
        return {k: v[slot].numpy().copy() for k, v in self._state.tensors.items()}

    @override
    def close(self) -> None:
        if self.rollout:
            self.rollout.close()
            self.rollout = None

    @property
    def _inline(self) -> Rollout:
        assert isinstance(self.rollout, Rollout)
        return self.rollout

    def _fill(self, slot: int, row: Tensors) -> None:
        fill(self._state, slot, row)
        self._new_policy[slot] = True

    def _live(self, assigned: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """Return every live hyperparameter as a [P] tensor of assigned or default values."""
        chosen = {name: [a.get(name, default) for a in assigned] for name, default in self._spec.live.items()}
        integers = {name for name, default in self._spec.live.items() if isinstance(default, int)}
        kinds = {name: torch.int64 if name in integers else torch.float32 for name in chosen}
        return {name: torch.tensor(values, dtype=kinds[name]) for name, values in chosen.items()}

    def _used(self, name: str, slot: int) -> Any:
        """Effective value of a hyperparameter, as the learner used it."""
        structural = self._spec.structural
        return structural[name] if name in structural else _number(self._consumed[name][slot])

    def _reset_envs(self) -> None:
        if self.rollout:
            self.rollout.close()
        seeds = [s for a in self._assignments for s in env_seeds(seed_for(a.seed, "envs"), self._spec.envs)]
        vector = self._spec.make(seeds, self._threads)
        self.rollout = Rollout(vector, len(self.members), self._spec.agent, self._spec.to_env, self._spec.metric)
        self._state.running.clear()

    def _merged(self, consumed: dict[str, Tensor], steps: int) -> dict[str, Tensor]:
        """Hyperparameters of the last update, with the longest unroll of the slice: its last block may be shorter."""
        longest = consumed["unroll_length"]
        if steps < self.block:  # the slice's end may come before the block's first cut, then nothing was measured
            assigned = self._hyperparameters["unroll_length"]
            longest = torch.where((longest == steps) & (steps < assigned), assigned, longest)
        if self._consumed:
            longest = torch.maximum(longest, self._consumed["unroll_length"])
        return {**consumed, "unroll_length": longest}

    def _draw_curve(self) -> None:
        """Add a point to the curve every `curve_interval` steps: the mean score of the episodes since the last one."""
        assert self.rollout is not None
        if self._done < self._curve_at and self._done < self._length:
            return
        self._curve_at += self._spec.curve_interval
        for slot, a in enumerate(self._assignments):
            scores = self.rollout.episodes[slot].scores
            if recent := scores[self._curve_episodes[slot] :]:
                self._curves[slot].append((a.start + self._done, float(np.mean(recent))))
            self._curve_episodes[slot] = len(scores)

    def _skips(self, slot: int) -> dict[str, float]:
        """Skipped and all updates of the slice so far, by tag; empty if none was skipped."""
        if not (skipped := int(self._skipped[slot])):
            return {}
        return {SKIPPED_UPDATES: float(skipped), UPDATES: float(self._updates[slot])}

    def _clear_metrics(self) -> None:
        self._totals: dict[str, Any] = {}  # [2, P]: sum over the updates that have the metric, and their number
        self._since, self._since_step = time.monotonic(), self._done


def _number(value: Tensor) -> int | float:
    """Round a hyperparameter to the 7 digits of single precision, so that 0.1 prints as 0.1."""
    return float(f"{value.item():.7g}") if value.is_floating_point() else int(value.item())
