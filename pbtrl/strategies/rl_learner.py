"""Learner of the search by model-based reinforcement learning: from finished trials to the next proposals.

Its state is a function of the seed and all finished trials. `LearnerCache` replays them after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from pbtrl.core.dimensions import Dimension
from pbtrl.core.values import Value
from pbtrl.strategies.results import failure_result
from pbtrl.strategies.rl_agent import SearchAgent, gaussian_kl
from pbtrl.strategies.rl_model import fit_model
from pbtrl.strategies.rl_rules import AgentRules, ModelRules
from pbtrl.system.torch_settings import single_thread

PREFIXES = 64  # proposals on which the distance of two policies is measured
SPREAD, PATIENCE = 0.05, 5  # mean standard deviation of the policy, and batches below it: then a restart
BEST, CLONING = 0.1, 200  # fraction of all trials that a restarted agent imitates, and the number of its updates

Randomness = Callable[[int, str], np.random.Generator]
"""Generator of a number and a purpose."""


@dataclass(frozen=True)
class FinishedTrial:
    """Finished trial.

    Attributes:
        number: number of the trial, from which its noise is drawn.
        values: hyperparameters, in the order of the search space.
        reward: fitness; None if it is absent, or the trial diverged or failed.
    """

    number: int
    values: tuple[Value, ...]
    reward: float | None


class Learner:
    """Agent and predictive model of one run.

    Args:
        dimensions: search space.
        order: permutation of the dimensions, in which the agent decides them.
        agent: settings of the agent.
        model: settings of the predictive model.
        rng: source of randomness, by trial or batch.
        sequential: whether the agent decides one hyperparameter after another, or all at once.

    Attributes:
        batches: number of batches of trials so far.
        restarts: number of restarts from the best trials.
        model_batches: number of batches that the predictive model scored after each batch of trials.
    """

    def __init__(
        self, dimensions: Sequence[Dimension], order: Sequence[int], agent: AgentRules, model: ModelRules,
        rng: Randomness, *, sequential: bool = True,
    ) -> None:  # fmt: skip
        self.order = list(order)
        self._dimensions, self._rng = [dimensions[place] for place in order], rng
        self._agent_rules, self._model_rules, self._sequential = agent, model, sequential
        self._agent = self._new_agent(0)
        self._actions = np.empty((0, len(order)))
        self._results: list[float | None] = []
        self.batches = self.restarts = self._stuck = 0
        self.model_batches: list[int] = []

    def propose(self, numbers: Sequence[int]) -> list[tuple[Value, ...]]:
        """Return the hyperparameters of new trials, in the order of the search space."""
        return [self._decoded(row) for row in self._draw(numbers)]

    def learn(self, batch: Sequence[FinishedTrial]) -> None:
        """Update the agent by one batch of trials, then by batches that the predictive model scores."""
        actions = self._taken(batch)
        self._actions = np.concatenate([self._actions, actions])
        self._results += [t.reward for t in batch]
        rewards = self._rewards()
        episodes = self._agent.follow(actions)
        spread = float(self._agent.distribution(episodes.inputs)[1].mean())
        self._agent.update(episodes, rewards[-len(batch) :], self._entropy_cost)
        self.batches += 1
        self._restart_if_stuck(rewards, len(batch), spread)
        self.model_batches.append(self._model_phase(rewards, len(batch)))

    def _rewards(self) -> np.ndarray:
        """Return the rewards of all trials [N]; those of failed ones move with the worst of all others."""
        failure = failure_result([r for r in self._results if r is not None])
        return np.array([failure if r is None else r for r in self._results])

    def _new_agent(self, batch: int) -> SearchAgent:
        n = len(self._dimensions)
        return SearchAgent(n, self._agent_rules, self._rng(batch, "agent"), sequential=self._sequential)

    def _draw(self, numbers: Sequence[int]) -> np.ndarray:
        n = len(self._dimensions)
        noise = np.stack([self._rng(number, "noise").standard_normal(n) for number in numbers])
        return self._agent.draw(noise).actions.numpy().astype(np.float64)

    def _decoded(self, action: np.ndarray) -> tuple[Value, ...]:
        values = {
            place: dimension.from_unit((float(x) + 1.0) / 2.0, of_prior=True)
            for place, dimension, x in zip(self.order, self._dimensions, action, strict=True)
        }
        return tuple(values[place] for place in range(len(values)))

    def _taken(self, batch: Sequence[FinishedTrial]) -> np.ndarray:
        """Return the actions of trials: the agent's own draws, or the trials' positions if the values differ.

        A draw beyond [-1, 1] or between two integers can only be drawn again. Values differ if they came from another
        source, or from a machine on which the last digits differ.
        """
        drawn = self._draw([trial.number for trial in batch])
        for row, trial in zip(drawn, batch, strict=True):
            if not all(map(_close, self._decoded(row), trial.values)):
                placed = zip(self.order, self._dimensions, strict=True)
                row[:] = [2.0 * d.to_unit(trial.values[p], of_prior=True) - 1.0 for p, d in placed]
        return drawn

    @property
    def _entropy_cost(self) -> float:
        return self._agent_rules.entropy_cost * self._agent_rules.entropy_decay**self.batches

    def _restart_if_stuck(self, rewards: np.ndarray, size: int, spread: float) -> None:
        """After some batches without spread and without a good trial, restart by imitating the best trials."""
        best = np.argsort(-rewards, kind="stable")[: math.ceil(BEST * len(rewards))]
        stuck = spread < SPREAD and rewards[-size:].max() < rewards[best[-1]]
        self._stuck = self._stuck + 1 if stuck else 0
        if self._stuck == PATIENCE:
            self._stuck = 0
            self.restarts += 1
            self._agent = self._new_agent(self.batches)
            self._agent.clone(self._actions[best], CLONING)

    def _model_phase(self, rewards: np.ndarray, size: int) -> int:
        """Update the agent by predicted rewards while its policy stays near; returns the number of batches."""
        rules, n = self._model_rules, len(self._dimensions)
        if rules.method == "none" or self.batches < rules.warmup:
            return 0
        rng = self._rng(self.batches, "model")
        model = fit_model(self._actions, rewards, rng)
        prefixes = self._agent.draw(rng.standard_normal((PREFIXES, n))).inputs
        start = self._agent.distribution(prefixes)
        for batch in range(rules.max_batches):
            distance = float(gaussian_kl(*start, *self._agent.distribution(prefixes)).mean())
            if rules.horizon == "dynamic" and distance >= rules.delta:
                return batch
            episodes = self._agent.draw(rng.standard_normal((size, n)))
            self._agent.update(episodes, model.predict(episodes.actions.numpy()), self._entropy_cost)
        return rules.max_batches


class LearnerCache:
    """Learner of the batches so far. A longer history continues it, any other one replays all updates."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._learner: Learner | None = None
        self._batches: list[tuple[FinishedTrial, ...]] = []
        self._proposals: dict[tuple[int, ...], list[tuple[Value, ...]]] = {}

    def propose(
        self,
        key: Hashable,
        make: Callable[[], Learner],
        batches: Sequence[tuple[FinishedTrial, ...]],
        numbers: Sequence[int],
    ) -> list[tuple[Value, ...]]:
        """Return the proposals for the trials `numbers` after the finished `batches`.

        `make` makes a learner that has seen nothing, a function of `key`.
        """
        with single_thread():
            done = len(self._batches)
            if self._learner is None or key != self._key or list(batches[:done]) != self._batches:
                self._key, self._learner, self._batches, self._proposals = key, make(), [], {}
            for batch in batches[len(self._batches) :]:
                self._learner.learn(batch)
                self._batches.append(batch)
                self._proposals = {}
            wanted = tuple(numbers)
            if wanted not in self._proposals:
                self._proposals[wanted] = self._learner.propose(wanted)
            return self._proposals[wanted]


def _close(one: Value, other: Value) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-9)
    return one == other
