"""Hyperparameter search by model-based reinforcement learning (Wu, Chen & Liu 2020).

An LSTM agent proposes the hyperparameters of a trial one after another, and PPO trains it with the trial's fitness as
the reward of the last step. A generation is a batch of trials with fresh weights. Between two batches a predictive
model, fitted on all trials so far, scores further proposals while the policy stays near.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import numpy as np
from typing_extensions import override

from pbtrl.core.member import Member
from pbtrl.core.messages import Assignment, Hyperparameters
from pbtrl.core.naming import member_id
from pbtrl.core.population import Population
from pbtrl.core.search_space import SearchSpace
from pbtrl.strategies import Strategy
from pbtrl.strategies.assigning import assign, next_stop
from pbtrl.strategies.rl_learner import FinishedTrial, Learner, LearnerCache
from pbtrl.strategies.rl_rules import AgentRules, ModelRules
from pbtrl.strategies.rungs import started


@dataclass(frozen=True, kw_only=True)
class RLSearch(Strategy):
    """The strategy.

    Attributes:
        space: search space.
        slice_steps: env steps of a trial between two reports.
        horizon: budget of a trial (env steps).
        trials: number of trials.
        batch_size: number of trials per update of the agent.
        sequential: whether a hyperparameter depends on those that were drawn before it.
        shuffled: whether the agent decides hyperparameters in an order drawn from the seed, or in that of the space.
        agent: settings of the agent.
        model: settings of the predictive model.
        synchronous: decide only when no trial is training. Decisions then do not depend on the order of reports.
    """

    space: SearchSpace
    slice_steps: int
    horizon: int
    trials: int
    batch_size: int = 16
    sequential: bool = True
    shuffled: bool = True
    agent: AgentRules = field(default_factory=AgentRules)
    model: ModelRules = field(default_factory=ModelRules)
    synchronous: bool = False
    _cache: LearnerCache = field(default_factory=LearnerCache, init=False, repr=False, compare=False)

    @override
    def decide(self, population: Population) -> list[Assignment]:
        """Continue trials of the open batch, then start new ones; the next batch when all of it have ended."""
        if self.synchronous and population.pending:
            return []
        trials = started(population)
        open_trials = [m for m in trials if m.pending is None and not self._ended(m)]
        waiting = itertools.chain(((m, m.hyperparameters) for m in open_trials), self._new_trials(population, trials))
        return [
            assign(
                population, m, m.snapshot, values, next_stop(m.step, self.slice_steps, self.horizon),
                note="" if m.generation >= 0 else f"batch {len(trials) // self.batch_size}",
            )
            for m, values in itertools.islice(waiting, population.free)
        ]  # fmt: skip

    @override
    def retired(self, population: Population) -> Collection[str]:
        return [m.id for m in started(population) if self._ended(m)]

    def _ended(self, member: Member) -> bool:
        """Whether a trial never trains again: it used its budget, diverged or was given up."""
        return member.pending is None and (member.retired or not member.healthy or member.step >= self.horizon)

    def _new_trials(
        self, population: Population, trials: list[Member]
    ) -> Iterator[tuple[Member, Hyperparameters]]:  # fmt: skip
        """Yield the trials of the open batch that have not started, or of the next batch if all have ended."""
        batch, place = divmod(len(trials), self.batch_size)
        if place == 0 and not all(map(self._ended, trials)):
            return
        size = min(self.batch_size, self.trials - batch * self.batch_size)
        members = population.unstarted(size - place)
        if not members:
            return
        proposals = self._proposals(population, trials[: batch * self.batch_size], size)
        for member, values in zip(members, proposals[place:], strict=False):
            yield member, dict(zip(self.space.names, values, strict=True))

    def _proposals(self, population: Population, ended: list[Member], size: int) -> list[tuple[object, ...]]:
        """Return the proposals of a whole batch, so that they do not depend on how many trials start at once."""
        results = [
            FinishedTrial(
                number, tuple(m.hyperparameters[name] for name in self.space.names), m.fitness if m.ranked else None
            )
            for number, m in enumerate(ended)
        ]
        batches = [tuple(results[i : i + self.batch_size]) for i in range(0, len(results), self.batch_size)]
        numbers = range(len(results), len(results) + size)
        return [*self._cache.propose(population.seed, lambda: self._learner(population), batches, numbers)]

    def _learner(self, population: Population) -> Learner:
        def rng(number: int, purpose: str) -> np.random.Generator:
            return population.rng(member_id(number, population.size), 0, f"rl_search {purpose}")

        dimensions = list(self.space.values())
        order = rng(0, "order").permutation(len(dimensions)) if self.shuffled else range(len(dimensions))
        return Learner(dimensions, [*map(int, order)], self.agent, self.model, rng, sequential=self.sequential)
