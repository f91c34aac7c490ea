"""Sampler for Optuna 5: pbtrl's search by model-based reinforcement learning (`rl_search`), outside pbtrl.

study = optuna.create_study(direction="maximize", sampler=RLSampler(seed=1))
"""

from __future__ import annotations

import datetime
import math
import zlib
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import intersection_search_space
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from typing_extensions import override

from pbtrl.core.dimensions import Dimension, IntLogUniform, IntUniform, LogUniform, Uniform
from pbtrl.core.values import Value
from pbtrl.strategies.rl_learner import FinishedTrial, Learner, LearnerCache
from pbtrl.strategies.rl_rules import AgentRules, ModelRules

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class RLSampler(BaseSampler):
    """Sampler whose agent proposes parameters one after another and learns after each batch of trials.

    It has no state but a cache: the agent is fitted again from `study.trials`. Parameters that not all trials have are
    drawn from their range. Pruned and failed trials count as worse than all others.

    Args:
        seed: root of all randomness; None draws one.
        batch_size: number of trials per update of the agent.
        sequential: whether a parameter depends on those that were drawn before it.
        agent: settings of the agent.
        model: settings of the predictive model.
    """

    def __init__(
        self, *, seed: int | None = None, batch_size: int = 16, sequential: bool = True,
        agent: AgentRules | None = None, model: ModelRules | None = None,
    ) -> None:  # fmt: skip
        self._seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self._batch_size, self._sequential = batch_size, sequential
        self._agent, self._model = agent or AgentRules(), model or ModelRules()
        self._cache = LearnerCache()

    @override
    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        space = intersection_search_space(study.get_trials(deepcopy=False))
        return {name: distribution for name, distribution in space.items() if not distribution.single()}

    @override
    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if len(study.directions) > 1:
            raise ValueError("RLSampler optimizes one objective")
        if not search_space:
            return {}
        dimensions = [_dimension(distribution) for distribution in search_space.values()]

        def make() -> Learner:
            order = self._rng(0, "order").permutation(len(dimensions))
            return Learner(
                dimensions, [*map(int, order)], self._agent, self._model, self._rng, sequential=self._sequential
            )

        batches = self._batches(study, search_space)
        key = repr(search_space)
        (proposal,) = self._cache.propose(key, make, batches, [trial.number])
        return {
            name: _external(distribution, value)
            for (name, distribution), value in zip(search_space.items(), proposal, strict=True)
        }

    @override
    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        position = self._rng(trial.number, param_name).uniform(-1.0, 1.0)
        return _external(param_distribution, _dimension(param_distribution).from_unit(float(position), of_prior=True))

    def _rng(self, number: int, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self._seed, number, zlib.crc32(purpose.encode())])

    def _batches(self, study: Study, space: Mapping[str, BaseDistribution]) -> list[tuple[FinishedTrial, ...]]:
        """Return the full batches of finished trials, in the order of their ends, to which new ones only append."""
        sign = -1.0 if study.direction == StudyDirection.MINIMIZE else 1.0
        trials = [
            t for t in study.get_trials(deepcopy=False, states=FINISHED)
            if all(t.distributions.get(name) == distribution for name, distribution in space.items())
        ]  # fmt: skip
        trials.sort(key=lambda t: (t.datetime_complete or datetime.datetime.max, t.number))
        results = [
            FinishedTrial(
                t.number,
                tuple(_internal(distribution, t.params[name]) for name, distribution in space.items()),
                _reward(t, sign),
            )
            for t in trials
        ]
        ends = range(self._batch_size, len(results) + 1, self._batch_size)
        return [tuple(results[end - self._batch_size : end]) for end in ends]


def _reward(trial: FrozenTrial, sign: float) -> float | None:
    """Return the value to maximize; None if there is none to learn from, also where it is infinite."""
    complete = trial.state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value)
    return sign * cast("float", trial.value) if complete else None


def _dimension(distribution: BaseDistribution) -> Dimension:
    """Return the dimension of a distribution; steps and choices are counted from 0."""
    if isinstance(distribution, CategoricalDistribution):
        return IntUniform(low=0, high=len(distribution.choices) - 1)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = distribution.low, distribution.high
    if distribution.log:
        if isinstance(distribution, IntDistribution):
            return IntLogUniform(low=int(low), high=int(high))
        return LogUniform(low=low, high=high)
    if distribution.step is not None:
        return IntUniform(low=0, high=round((high - low) / distribution.step))
    return Uniform(low=low, high=high)


def _external(distribution: BaseDistribution, value: Value) -> Any:
    """Return the parameter that a dimension's value stands for."""
    assert isinstance(value, int | float)
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(value)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.log or distribution.step is None:
        return value
    return min(distribution.low + value * distribution.step, distribution.high)


def _internal(distribution: BaseDistribution, parameter: Any) -> Value:
    """Return the dimension's value of a parameter."""
    if isinstance(distribution, CategoricalDistribution):
        return round(distribution.to_internal_repr(parameter))
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if distribution.log or distribution.step is None:
        return cast("Value", parameter)
    return int(np.rint((parameter - distribution.low) / distribution.step))
