"""Proposals of new trials by a model of earlier results, computed from the journal at every decision."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pbtrl.core.dimensions import AGENT
from pbtrl.core.member import Member
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.population import Population
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.strategies.brackets import Bracket
from pbtrl.strategies.results import failure_result
from pbtrl.strategies.rungs import bracket_trials
from pbtrl.strategies.trials import space_of

Sampler = Literal["tpe", "gp", "cmaes", "qmc", "random"]


@dataclass(frozen=True, kw_only=True)
class Suggestions:
    """Suggestions of one of Optuna's samplers, which sees all earlier trials in the order of their ids.

    In a mixed population it sees those of the same agent.

    Attributes:
        sampler: name of the sampler.
        startup_trials: number of results below which trials are random.
        observe: results of the trials to learn from, by member, and None for those that train; -inf is the worst.
    """

    space: SearchSpace | MixedSearchSpace
    sampler: Sampler
    startup_trials: int
    observe: Callable[[Population], Mapping[str, float | None]]

    def __call__(self, population: Population, member: Member, proposed: Sequence[Hyperparameters]) -> Hyperparameters:
        """Suggest the hyperparameters of a new trial."""
        from pbtrl.strategies.optuna_bridge import suggest  # Optuna is optional and takes 0.3 seconds

        space, results = space_of(self.space, population, member), self.observe(population)
        trials = [(m.hyperparameters, results[m.id]) for m in population.members.values() if m.id in results]
        trials += [(values, None) for values in proposed]
        own = [
            (tuple(values[name] for name in space), result)
            for values, result in trials
            if values.get(AGENT) == space.agent
        ]
        values = suggest(
            self.sampler, space, tuple(_finite(own)), self.startup_trials, *self._seeds(population, member)
        )
        return space.labeled(values)

    def _seeds(self, population: Population, member: Member) -> tuple[int, int]:
        """Return the seed of the run's sampler and that of this suggestion."""
        seeds = (population.rng(name, 0, "sampler").integers(2**32) for name in ("m00", member.id))
        run, own = map(int, seeds)
        return run, own


def best_rung_results(
    population: Population, brackets: Sequence[Bracket], slice_steps: int, enough: int
) -> dict[str, float | None]:
    """Return the results at the highest rung that has enough of them, else at the lowest one.

    This is the model of BOHB (Falkner et al. 2018, arXiv 1807.01774), which is fitted on the highest budget.
    """
    results: dict[int, dict[str, float | None]] = {}
    training: dict[str, float | None] = {}
    for bracket, trials in bracket_trials(population, brackets, slice_steps):
        for t in trials:
            training |= {t.member.id: None} if t.ahead else {}
            for rung, result in zip(bracket.rungs, t.results, strict=False):
                results.setdefault(rung, {})[t.member.id] = result
    rung = max((r for r, values in results.items() if len(values) >= enough), default=min(results, default=0))
    return training | results.get(rung, {})


def _finite(
    trials: Sequence[tuple[tuple[object, ...], float | None]],
) -> list[tuple[tuple[object, ...], float | None]]:
    """Replace the results of failures by a number."""
    failure = failure_result([r for _, r in trials if r is not None and math.isfinite(r)])
    return [(values, failure if r == -math.inf else r) for values, r in trials]
