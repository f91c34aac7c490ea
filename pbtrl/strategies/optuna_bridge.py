"""Optuna (Akiba et al. 2019, arXiv 1907.10902) as a function from earlier trials to the next suggestion.

The study is built again from the trials at every call, so that the journal is the only state. Two kinds of samplers:
TPE, GP and random ones learn from the finished trials alone. CMA-ES and QMC count their own suggestions, so the study
is played again trial by trial. Other versions of Optuna may suggest other values.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from pbtrl.core.dimensions import Choice, Dimension, IntLogUniform, IntUniform, LogUniform, OneMinusLogUniform
from pbtrl.core.messages import Hyperparameters
from pbtrl.core.search_space import SearchSpace
from pbtrl.core.values import Value

if TYPE_CHECKING:
    from pbtrl.strategies.suggestions import Sampler

Trials = tuple[tuple[tuple[Value, ...], float | None], ...]
"""Values and fitness of each trial; None while it trains."""


@lru_cache(maxsize=256)
def suggest(
    sampler: Sampler, space: SearchSpace, trials: Trials, startup_trials: int, run_seed: int, seed: int
) -> Hyperparameters:
    """Suggest values for one more trial.

    Args:
        sampler: name of the sampler.
        space: search space of one agent.
        trials: earlier trials in the order of their ids; fitness is maximized.
        startup_trials: number of finished trials below which suggestions are random.
        run_seed: seed of samplers that are played again.
        seed: seed of this suggestion.
    """
    distributions = {name: distribution(dimension) for name, dimension in space.items()}
    with _quiet():
        build = _replayed if sampler in ("cmaes", "qmc") else _rebuilt
        made = _SAMPLERS[sampler](run_seed if build is _replayed else seed, startup_trials)
        study = build(made, space, distributions, trials)
        params = study.ask(distributions).params
    return {name: decode(dimension, params[name]) for name, dimension in space.items()}


_SAMPLERS: dict[Sampler, Callable[[int, int], BaseSampler]] = {
    "tpe": lambda seed, startup: TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True),
    "gp": lambda seed, startup: GPSampler(seed=seed, n_startup_trials=startup, deterministic_objective=False),
    "cmaes": lambda seed, startup: CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False),
    "qmc": lambda seed, startup: QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False),
    "random": lambda seed, startup: RandomSampler(seed=seed),
}


def _rebuilt(
    sampler: BaseSampler, space: SearchSpace, distributions: dict[str, BaseDistribution], trials: Trials
) -> optuna.Study:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, fitness in trials:
        state = TrialState.RUNNING if fitness is None else TrialState.COMPLETE
        params = _encoded(space, values)
        study.add_trial(create_trial(params=params, distributions=distributions, value=fitness, state=state))
    return study


def _replayed(
    sampler: BaseSampler, space: SearchSpace, distributions: dict[str, BaseDistribution], trials: Trials
) -> optuna.Study:
    """Ask for every trial again and answer with its values, whatever the sampler suggests."""
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, fitness in trials:
        study.enqueue_trial(_encoded(space, values))
        trial = study.ask(distributions)
        trial.relative_params  # noqa: B018, computes the suggestion, and so moves the sampler on
        if fitness is not None:
            study.tell(trial, fitness)
    return study


def distribution(dimension: Dimension) -> BaseDistribution:
    """Return Optuna's distribution of a dimension's prior."""
    match dimension:
        case Choice():
            return CategoricalDistribution([str(place) for place in range(len(dimension.values))])
        case IntUniform() | IntLogUniform():
            return IntDistribution(dimension.low, dimension.high, log=isinstance(dimension, IntLogUniform))
        case OneMinusLogUniform():
            return FloatDistribution(1.0 - dimension.high, 1.0 - dimension.low, log=True)
        case _:
            return FloatDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogUniform))


def encode(dimension: Dimension, value: Value) -> Any:
    """Convert a hyperparameter's value to Optuna's; inverse of `decode`."""
    if isinstance(dimension, Choice):
        return str(dimension.values.index(dimension.clip(value)))
    assert isinstance(value, int | float)
    if isinstance(dimension, OneMinusLogUniform):
        return min(max(1.0 - value, 1.0 - dimension.high), 1.0 - dimension.low)
    return min(max(value, dimension.low), dimension.high)


def decode(dimension: Dimension, value: Any) -> Value:
    """Convert Optuna's value to that of a hyperparameter, rounded."""
    if isinstance(dimension, Choice):
        return dimension.values[int(value)]
    if isinstance(dimension, IntUniform | IntLogUniform):
        return int(value)
    number = 1.0 - value if isinstance(dimension, OneMinusLogUniform) else float(value)
    return min(max(dimension.rounded(number), dimension.low), dimension.high)


def _encoded(space: SearchSpace, values: Sequence[Value]) -> dict[str, Any]:
    return {name: encode(dimension, value) for (name, dimension), value in zip(space.items(), values, strict=True)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Optuna's log and its warnings that a sampler is experimental."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
