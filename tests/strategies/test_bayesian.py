"""Suggestions through Optuna: purity, encoding, learning, and what a sampler sees."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import optuna
import pytest

from pbtrl.build.factory import prepare
from pbtrl.config.load import parse
from pbtrl.core.dimensions import (
    AGENT,
    Choice,
    Dimension,
    IntLogUniform,
    IntUniform,
    LogUniform,
    OneMinusLogUniform,
    Uniform,
)
from pbtrl.core.population import Population
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.errors import ConfigError
from pbtrl.strategies import optuna_bridge
from pbtrl.strategies.bayesian import bayesian, final_results
from pbtrl.strategies.optuna_bridge import decode, distribution, encode, suggest
from pbtrl.strategies.rungs import WORST
from pbtrl.strategies.suggestions import Sampler, Suggestions
from pbtrl.testing.fakes import LAST
from tests.strategies.trial_runs import slices

DIMENSIONS: list[Dimension] = [
    Uniform(low=-1.0, high=3.0),
    LogUniform(low=1e-5, high=1e-2),
    OneMinusLogUniform(low=0.9, high=0.9999),
    IntUniform(low=1, high=9),
    IntLogUniform(low=1, high=100),
    Choice(values=(0.1, "relu", None, True)),
]
SPACE = SearchSpace({f"d{i}": dimension for i, dimension in enumerate(DIMENSIONS)})
PLANE = SearchSpace({"x": Uniform(low=0.0, high=1.0), "y": Uniform(low=0.0, high=1.0)})
FAST: list[Sampler] = ["tpe", "cmaes", "qmc", "random"]


def peak(values: Mapping[str, Any]) -> float:
    return -((values["x"] - 0.3) ** 2) - (values["y"] - 0.8) ** 2


def search(sampler: Sampler, count: int, seed: int, *, behind: int = 3) -> list[dict[str, Any]]:
    """Suggest points one by one; the last `behind` of them are still training."""
    result: list[dict[str, Any]] = []
    for i in range(count):
        history = [
            (tuple(values.values()), peak(values) if place < i - behind else None)
            for place, values in enumerate(result)
        ]
        result.append(suggest(sampler, PLANE, tuple(history), 5, seed, 100 * seed + i))
    return result


def test_samplers_are_all_there() -> None:
    assert set(optuna_bridge._SAMPLERS) == set(get_args(Sampler))


# Values


@pytest.mark.parametrize("dimension", DIMENSIONS, ids=lambda d: d.prior)
def test_values_pass_through_optuna(dimension: Dimension) -> None:
    for fraction in (0.0, 0.123456789, 0.5, 0.99, 1.0):
        value = dimension.from_unit(fraction, of_prior=True)
        encoded = encode(dimension, value)
        assert distribution(dimension)._contains(distribution(dimension).to_internal_repr(encoded))
        assert decode(dimension, encoded) == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value)
        assert type(decode(dimension, encoded)) is type(value)


def test_scales_are_those_of_the_priors() -> None:
    log = [distribution(d) for d in DIMENSIONS[:5]]
    assert [getattr(d, "log") for d in log] == [False, True, True, False, True]  # noqa: B009
    assert (log[2].low, log[2].high) == (1.0 - 0.9999, 1.0 - 0.9)  # type: ignore[attr-defined]


def test_values_outside_the_prior_count_at_its_end() -> None:
    """Those of an agent's own bounds."""
    assert encode(DIMENSIONS[0], 7.0) == 3.0
    assert encode(DIMENSIONS[2], 0.5) == 1.0 - 0.9


def test_suggestions_have_six_digits_on_their_own_scale() -> None:
    assert decode(Uniform(low=0.0, high=1.0), 0.123456789) == 0.123457
    assert decode(OneMinusLogUniform(low=0.9, high=0.9999), 0.00123456789) == 1.0 - 0.00123457
    assert decode(Uniform(low=0.1234564, high=1.0), 0.1234564) == 0.1234564


# Suggestions


@pytest.mark.parametrize("sampler", FAST)
def test_same_history_and_seed_give_the_same_suggestion(sampler: Sampler) -> None:
    history = tuple(
        (tuple(d.from_unit(i / 16, of_prior=True) for d in DIMENSIONS), float(i * 7 % 5) if i < 12 else None)
        for i in range(16)
    )
    result = []
    for _ in range(2):
        suggest.cache_clear()
        result.append(suggest(sampler, SPACE, history, 5, 1, 2))
    assert result[0] == result[1]
    assert SPACE.contains(result[0])
    others = [suggest(sampler, SPACE, history, 5, 3, 4), suggest(sampler, SPACE, history[:-1], 5, 1, 3)]
    assert result[0] not in others


def test_gaussian_process_suggests_inside_the_space() -> None:
    history = tuple((tuple(values), peak({"x": values[0], "y": values[1]})) for values in ((0.1, 0.2), (0.3, 0.9)))
    values = suggest("gp", PLANE, history, 2, 1, 2)
    assert PLANE.contains(values)
    suggest.cache_clear()
    assert suggest("gp", PLANE, history, 2, 1, 2) == values


def test_decision_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    history = (((0.5, 0.5), 1.0),)
    expected = suggest("tpe", PLANE, history, 1, 1, 77)
    monkeypatch.setattr(optuna, "create_study", None)
    assert suggest("tpe", PLANE, history, 1, 1, 77) == expected


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_samplers_learn(sampler: Sampler) -> None:
    for seed in range(2):
        late = search(sampler, 50, seed)[-10:]
        assert sum(map(peak, late)) / 10 > -0.15  # a random point has -0.3


def test_quasi_random_points_are_those_of_one_sequence() -> None:
    """Scrambled Sobol points 1 to 15: no two in the same sixteenth of an axis. The first trial is random."""
    points = search("qmc", 16, 5)[1:]
    for axis in ("x", "y"):
        assert len({int(16 * p[axis]) for p in points}) == 15


def test_training_trials_keep_suggestions_apart() -> None:
    """The constant liar: TPE avoids the place where others train."""
    points = np.random.default_rng(0).uniform(size=(20, 2)).tolist()
    history = [((x, y), peak({"x": x, "y": y})) for x, y in points]
    training = [((0.3, 0.8), None)] * 10

    def distance(trials: Sequence[Any]) -> float:
        result = [suggest("tpe", PLANE, tuple(trials), 5, 1, seed) for seed in range(20)]
        return sum(math.hypot(v["x"] - 0.3, v["y"] - 0.8) for v in result) / 20

    assert distance([*history, *training]) > 1.5 * distance(history)


def test_optuna_keeps_its_own_verbosity_and_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    optuna.logging.enable_propagation()
    before = optuna.logging.get_verbosity()
    with caplog.at_level(logging.DEBUG):
        search("qmc", 3, 9)
    optuna.logging.disable_propagation()
    assert not caplog.records
    assert optuna.logging.get_verbosity() == before


# What a sampler sees


def observed(
    monkeypatch: pytest.MonkeyPatch, population: Population, space: Any, results: Any
) -> list[tuple[Any, ...]]:
    """Arguments of all suggestions of the next decision."""
    calls: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> dict[str, Any]:
        calls.append(arguments)
        return {name: dimension.from_unit(len(calls) / 10, of_prior=True) for name, dimension in arguments[1].items()}

    monkeypatch.setattr(optuna_bridge, "suggest", record)
    propose = Suggestions(space=space, sampler="tpe", startup_trials=4, observe=lambda _: results)
    proposed: list[dict[str, Any]] = []
    for member in population.unstarted(2):
        proposed.append(propose(population, member, proposed))
    return calls


def test_trials_are_seen_in_the_order_of_their_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    population = Population(5, 0, LAST)
    space = SearchSpace({"lr": Uniform(low=0.0, high=1.0)})
    for name in ("m02", "m00", "m01"):
        slices(population, name, (10, 1.0))
    for place, member in enumerate(population.members.values()):
        member.hyperparameters = {"lr": place / 4}
    first, second = observed(monkeypatch, population, space, {"m02": WORST, "m01": -3.0, "m00": None})
    assert first[2] == (((0.0,), None), ((0.25,), -3.0), ((0.5,), -6.0))
    assert second[2] == (*first[2], ((0.1,), None))
    assert first[3] == 4
    assert first[4] == second[4]
    assert first[5] != second[5]


def test_agents_of_a_mix_are_seen_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    one = {"x": Uniform(low=0.0, high=1.0)}
    space = MixedSearchSpace({"a": SearchSpace(one, "a"), "b": SearchSpace(one, "b")}, {"a": 2, "b": 1})
    population = Population(3, 0, LAST)
    for name, values in (("m00", {AGENT: "a", "x": 0.5}), ("m01", {AGENT: "a", "x": 0.75})):
        slices(population, name, (10, 1.0))
        population.members[name].hyperparameters = values
    calls = observed(monkeypatch, population, space, {"m00": 1.0, "m01": None})
    assert [call[2] for call in calls] == [(), (((0.5,), 1.0), ((0.75,), None))]  # m02 is a b, m03 an a


def test_only_failures_are_equally_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    population, space = Population(3, 0, LAST), SearchSpace({"lr": Uniform(low=0.0, high=1.0)})
    slices(population, "m00", (10, "diverged"))
    (first, _) = observed(monkeypatch, population, space, {"m00": WORST})
    assert [result for _, result in first[2]] == [0.0]


def test_result_of_a_trial_is_its_fitness_at_the_horizon() -> None:
    population = Population(6, 0, LAST)
    slices(population, "m00", (10, 1.0), (20, 2.0))
    slices(population, "m01", (10, 1.0))
    slices(population, "m02", (10, "diverged"))
    slices(population, "m03", (20, None))
    slices(population, "m04", (10, "given up"))
    assert final_results(population, 20) == {"m00": 2.0, "m01": None, "m02": WORST, "m03": WORST, "m04": WORST}


def test_new_trials_of_one_decision_differ() -> None:
    strategy = bayesian(PLANE, sampler="tpe", trials=9, startup_trials=1, slice_steps=10, horizon=10)
    population = Population(4, 0, LAST)
    slices(population, "m00", (10, 1.0))
    population.members["m00"].hyperparameters = {"x": 0.5, "y": 0.5}
    decided = strategy.decide(population)
    assert len({tuple(a.hyperparameters.values()) for a in decided}) == len(decided) == 4


# Without the package

TEXT = """\
trainable: {name: constant}
budget: {env_steps_per_member: 81}
hparams: {x: {prior: uniform, low: 0, high: 1}, y: {prior: uniform, low: 0, high: 1}}
"""


@pytest.mark.parametrize(
    ("strategy", "package"),
    [
        ("{name: bayesian, trials: 9}", "optuna"),
        ("{name: bayesian, trials: 9, sampler: cmaes}", "cmaes"),
        ("{name: asha, sampler: tpe}", "optuna"),
        ("{name: hyperband, sampler: tpe}", "optuna"),
    ],
)
def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, strategy: str, package: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else real(name))
    config = parse(f"{TEXT}strategy: {strategy}\n", "c.yaml", [])
    with pytest.raises(ConfigError) as error:
        prepare(config)
    (message,) = error.value.messages
    assert package in message
    assert 'pip install "pbtrl[search]"' in message


def test_strategies_without_a_sampler_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for strategy in ("asha", "hyperband", "successive_halving", "grid", "fixed", "random_search"):
        config = parse(f"{TEXT}strategy: {{name: {strategy}}}\n", "c.yaml", [])
        prepare(config)
