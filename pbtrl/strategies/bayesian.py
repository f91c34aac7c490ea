"""Bayesian optimization: a model of earlier results proposes new trials, which all train to the horizon."""

from __future__ import annotations

from collections.abc import Mapping

from pbtrl.core.population import Population
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.strategies.rungs import WORST, started
from pbtrl.strategies.suggestions import Sampler, Suggestions
from pbtrl.strategies.trials import IndependentTrials


def final_results(population: Population, horizon: int) -> Mapping[str, float | None]:
    """Return the fitness of each trial at the horizon, the worst for one that failed, and None while it trains."""
    results: dict[str, float | None] = {}
    for member in started(population):
        if not member.healthy:
            results[member.id] = WORST
        elif member.step < horizon:
            results[member.id] = None
        else:
            results[member.id] = WORST if member.fitness is None else member.fitness
    return results


def bayesian(
    space: SearchSpace | MixedSearchSpace, *, sampler: Sampler, trials: int, startup_trials: int, slice_steps: int,
    horizon: int, synchronous: bool = False,
) -> IndependentTrials:  # fmt: skip
    """Make a search whose first `startup_trials` are random and whose later ones the sampler proposes."""
    propose = Suggestions(
        space=space,
        sampler=sampler,
        startup_trials=startup_trials,
        observe=lambda population: final_results(population, horizon),
    )
    return IndependentTrials(
        propose=propose, count=trials, slice_steps=slice_steps, horizon=horizon, synchronous=synchronous
    )
