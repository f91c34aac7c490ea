"""Sampler for Optuna: reproducible studies, every kind of distribution, and what other trials mean to it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

optuna = pytest.importorskip("optuna", minversion="5")
optuna.logging.set_verbosity(optuna.logging.WARNING)

from pbtrl.integrations.optuna_sampler import RLSampler  # noqa: E402
from pbtrl.strategies.rl_rules import ModelRules  # noqa: E402

QUICK = ModelRules(method="none")


def peak(trial: Any) -> float:
    x, y = trial.suggest_float("x", -2.0, 2.0), trial.suggest_float("y", 1e-4, 1.0, log=True)
    return -((x - 0.5) ** 2) - (np.log10(y) + 2) ** 2


def study_of(sampler: RLSampler, objective: Any = peak, trials: int = 40, direction: str = "maximize") -> Any:
    study = optuna.create_study(direction=direction, sampler=sampler)
    study.optimize(objective, n_trials=trials)
    return study


def params(study: Any) -> list[dict[str, Any]]:
    return [t.params for t in study.trials]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_optimizes_two_parameters(direction: str) -> None:
    sign = 1 if direction == "maximize" else -1
    study = study_of(RLSampler(seed=1, model=QUICK), lambda t: sign * peak(t), 320, direction)
    values = sign * np.array([t.value for t in study.trials])
    assert values[-32:].mean() > -0.1 > values[:32].mean()


def test_same_seed_gives_the_same_study() -> None:
    one, same, other = (study_of(RLSampler(seed=s, model=ModelRules(max_batches=2, warmup=1))) for s in (1, 1, 2))
    assert params(one) == params(same) != params(other)


def test_new_sampler_continues_from_the_trials() -> None:
    whole = study_of(RLSampler(seed=1, model=QUICK))
    study = study_of(RLSampler(seed=1, model=QUICK), trials=25)
    study.sampler = RLSampler(seed=1, model=QUICK)
    study.optimize(peak, n_trials=15)
    assert params(study) == params(whole)


def test_every_kind_of_distribution_stays_in_its_range() -> None:
    def objective(trial: Any) -> float:
        trial.suggest_float("step", 0.1, 0.7, step=0.2)
        trial.suggest_int("int", -3, 9, step=4)
        trial.suggest_int("log", 1, 100, log=True)
        trial.suggest_categorical("choice", [None, "a", 2.5])
        trial.suggest_float("single", 2.0, 2.0)
        if trial.number % 2:
            trial.suggest_float("sometimes", 0.0, 1.0)
        return float(trial.params["choice"] == "a")

    study = study_of(RLSampler(seed=3, batch_size=8, model=QUICK), objective)
    seen = {name: {t.params[name] for t in study.trials} for name in ("step", "int", "choice")}
    assert {round(x, 6) for x in seen["step"]} == {0.1, 0.3, 0.5, 0.7}
    assert seen["int"] == {-3, 1, 5, 9}
    assert seen["choice"] == {None, "a", 2.5}
    assert all(1 <= t.params["log"] <= 100 for t in study.trials)


def test_pruned_failed_and_enqueued_trials_are_accepted() -> None:
    def objective(trial: Any) -> float:
        value = peak(trial)
        if trial.number % 5 == 0:
            raise optuna.TrialPruned
        if trial.number % 7 == 0:
            raise ArithmeticError
        return value

    study = optuna.create_study(direction="maximize", sampler=RLSampler(seed=1, batch_size=8, model=QUICK))
    study.enqueue_trial({"x": 0.5, "y": 0.01})
    study.optimize(objective, n_trials=30, catch=ArithmeticError)
    assert len(study.trials) == 30


def test_infinite_values_count_as_pruned() -> None:
    """Optuna accepts them; as rewards they would make every failure look good."""

    def objective(trial: Any, *, prune: bool) -> float:
        value = -peak(trial)
        if trial.number % 5 == 2:
            if prune:
                raise optuna.TrialPruned
            return float("inf")
        return float(value)

    studies = [
        study_of(RLSampler(seed=1, batch_size=8, model=ModelRules(max_batches=2, warmup=1)), run, 40, "minimize")
        for run in (partial(objective, prune=True), partial(objective, prune=False))
    ]
    assert params(studies[0]) == params(studies[1])


def test_two_objectives_are_refused() -> None:
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=RLSampler(seed=1))
    with pytest.raises(ValueError, match="one objective"):
        study.optimize(lambda t: (peak(t), 0.0), n_trials=2)
