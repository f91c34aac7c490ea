"""Search by model-based reinforcement learning: batches of trials, learning from them, and the same run everywhere."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from pbtrl.core.dimensions import IntUniform, LogUniform, Uniform
from pbtrl.core.messages import Assignment, Report
from pbtrl.core.population import Population
from pbtrl.core.search_space import SearchSpace
from pbtrl.storage.journal import digest
from pbtrl.strategies import rl_learner
from pbtrl.strategies.rl_agent import DrawnEpisodes, SearchAgent
from pbtrl.strategies.rl_learner import FinishedTrial, Learner
from pbtrl.strategies.rl_rules import AgentRules, ModelRules
from pbtrl.strategies.rl_search import RLSearch
from pbtrl.system.torch_settings import single_thread
from pbtrl.testing import SearchConformance
from pbtrl.testing.fakes import LAST, died, trained
from pbtrl.testing.strategies import SPACE
from pbtrl.trainables.chain import chain
from tests.command import Command, journal, weights
from tests.fakes import answer, decision
from tests.training.test_session import signalled


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Strategies compute with one torch thread, and so do these tests of a learner."""
    with single_thread():
        yield


NO_MODEL = ModelRules(method="none")
FEW = ModelRules(warmup=1, horizon="fixed", max_batches=1)


def search(**changes: Any) -> RLSearch:
    settings = {"space": SPACE, "slice_steps": 300, "horizon": 600, "trials": 10, "batch_size": 4, "model": NO_MODEL}
    return RLSearch(**{**settings, **changes})


class TestAsynchronous(SearchConformance):
    size: ClassVar[int] = 3
    slice_steps: ClassVar[int] = 300

    @classmethod
    def strategy(cls) -> RLSearch:
        return search()


class TestSynchronousWithModel(SearchConformance):
    size: ClassVar[int] = 2
    slice_steps: ClassVar[int] = 600

    @classmethod
    def strategy(cls) -> RLSearch:
        return search(slice_steps=600, model=FEW, synchronous=True, trials=8)


class TestOneShot(SearchConformance):
    size: ClassVar[int] = 4
    slice_steps: ClassVar[int] = 300

    @classmethod
    def strategy(cls) -> RLSearch:
        return search(sequential=False, shuffled=False)


# Batches


Result = Callable[[Assignment], Any]


def play(strategy: RLSearch, result: Result, *, size: int = 4, seed: int = 0) -> tuple[Population, list[list[str]]]:
    """Play a run; returns the population and the members of each decision."""
    population, decisions = Population(size, seed, LAST), []
    while True:
        population.free = size - len(population.pending)
        assignments = strategy.decide(population)
        if not assignments:
            return population, decisions
        decisions.append([a.member for a in assignments])
        population.record(decision(*assignments))
        for a in assignments:
            population.record(answer(result(a)))


def by_lr(a: Assignment) -> Report:
    return trained(a, math.log10(a.hyperparameters["lr"]))


def test_batches_larger_than_the_population_train_in_waves() -> None:
    _, decisions = play(search(slice_steps=600, trials=10), by_lr, size=3)
    assert [len(d) for d in decisions] == [3, 1, 3, 1, 2]
    assert [m for d in decisions for m in d] == [f"m{i:02d}" for i in range(10)]


def test_straggler_holds_the_next_batch() -> None:
    strategy, population = search(slice_steps=600), Population(4, 0, LAST)
    assignments = strategy.decide(population)
    population.record(decision(*assignments))
    for a in assignments[1:]:
        population.record(answer(by_lr(a)))
        population.free = 3
        assert strategy.decide(population) == []
    population.record(answer(by_lr(assignments[0])))
    assert [a.member for a in strategy.decide(population)] == ["m04", "m05", "m06"]


def test_trials_start_with_fresh_weights_and_train_to_the_end() -> None:
    population, _ = play(search(), by_lr)
    assert [m.step for m in population.members.values()] == [600] * 10
    assert {m.copy for m in population.members.values()} == {None}
    origins = population.snapshot_origin.values()
    assert [a.parent for a in origins if a.start == 0] == [None] * 10


def test_ended_trials_are_retired() -> None:
    strategy = search(slice_steps=600)
    bad = {"m01": trained, "m02": lambda a: died(a, fatal=True), "m03": lambda a: trained(a, diverged=True)}
    population, _ = play(strategy, lambda a: bad.get(a.member, by_lr)(a))
    assert list(strategy.retired(population)) == [f"m{i:02d}" for i in range(10)]
    population = Population(4, 0, LAST)
    population.record(decision(*strategy.decide(population)))
    assert list(strategy.retired(population)) == []


def values(population: Population) -> list[dict[str, Any]]:
    return [m.hyperparameters for m in population.members.values()]


def test_only_the_last_slice_is_a_reward() -> None:
    """The same final fitness gives the same proposals, whatever the slices before it reported."""

    def slices(first: float) -> list[dict[str, Any]]:
        return values(play(search(), lambda a: by_lr(a) if a.stop == 600 else trained(a, first))[0])

    assert slices(1.0) == slices(-1000.0)


@pytest.mark.parametrize("bad", [trained, lambda a: died(a, fatal=True), lambda a: trained(a, diverged=True)])
def test_failed_trial_is_a_standard_deviation_below_the_worst(bad: Result) -> None:
    strategy = search(slice_steps=600, trials=8)
    result = values(play(strategy, lambda a: bad(a) if a.member == "m01" else by_lr(a))[0])
    others = [math.log10(result[i]["lr"]) for i in (0, 2, 3)]
    worse = min(others) - float(np.std(others))
    assert values(play(strategy, lambda a: trained(a, worse) if a.member == "m01" else by_lr(a))[0]) == result


def test_failures_stay_below_all_successes(monkeypatch: pytest.MonkeyPatch) -> None:
    rewards, fit = [], rl_learner.fit_model
    monkeypatch.setattr(rl_learner, "fit_model", lambda x, y, rng: rewards.append(y.tolist()) or fit(x, y, rng))
    one = learner(1, model=FEW)
    for batch, results in enumerate(((None, None), (0.9, None), (-3.0, -2.0))):
        one.learn([FinishedTrial(2 * batch + i, (0.5,), reward) for i, reward in enumerate(results)])
    worse = -3.0 - np.std([0.9, -3.0, -2.0])
    assert rewards == [[0.0, 0.0], [0.0, 0.0, 0.9, 0.0], pytest.approx([worse, worse, 0.9, worse, -3.0, -2.0])]


def test_run_in_which_everything_fails_ends() -> None:
    population, _ = play(search(slice_steps=600, model=FEW), lambda a: died(a, fatal=True))
    assert [m.given_up for m in population.members.values()] == [True] * 10


def test_order_comes_from_the_seed_or_the_config() -> None:
    orders = [
        tuple(search(space=SearchSpace({c: Uniform(low=0.0, high=1.0) for c in "abcd"}), shuffled=shuffled)
        ._learner(Population(4, seed, LAST)).order) for shuffled in (True, False) for seed in range(4)
    ]  # fmt: skip
    assert len(set(orders[:4])) > 1
    assert set(orders[4:]) == {(0, 1, 2, 3)}


def test_updates_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    learned, real = [], Learner.learn
    monkeypatch.setattr(Learner, "learn", lambda self, batch: learned.append(batch) or real(self, batch))
    strategy = search(slice_steps=600, trials=40)
    population, _ = play(strategy, by_lr)
    assert len(learned) == 9  # nothing is learned from the last of ten batches
    again = play(search(slice_steps=600, trials=40), by_lr)[0]
    assert (len(learned), values(again)) == (18, values(population))


# Learning


def randomness(seed: int) -> rl_learner.Randomness:
    return lambda number, purpose: np.random.default_rng([seed, number, zlib.crc32(purpose.encode())])


def learner(n: int, seed: int = 0, model: ModelRules = NO_MODEL, **changes: Any) -> Learner:
    return Learner([Uniform(low=0.0, high=1.0)] * n, range(n), AgentRules(), model, randomness(seed), **changes)


def train(one: Learner, reward: Callable[..., float], batches: int, first: int = 0) -> list[float]:
    """Mean reward of each batch of 16 trials."""
    means = []
    for batch in range(first, first + batches):
        numbers = range(16 * batch, 16 * batch + 16)
        trials = [FinishedTrial(k, v, reward(*v)) for k, v in zip(numbers, one.propose(numbers), strict=True)]
        means.append(float(np.mean([t.reward for t in trials])))
        one.learn(trials)
    return means


def chain_of(*links: float) -> float:
    return chain(list(links))


def test_one_hyperparameter_converges_to_the_best_value() -> None:
    for seed, best in enumerate((0.2, 0.5, 0.7)):
        one = learner(1, seed)
        train(one, lambda x, best=best: -((x - best) ** 2), 30)
        assert np.mean(one.propose(range(1000, 1016))) == pytest.approx(best, abs=0.05)


def test_second_hyperparameter_follows_the_first() -> None:
    """The first one is rewarded for nothing, so it stays free, and only a sequential agent can follow it."""
    ridge = lambda a, b: math.exp(-(((b - 0.2 - 0.6 * a) / 0.15) ** 2))  # noqa: E731
    one = learner(2)
    assert np.mean(train(one, ridge, 40)[-5:]) > 0.8


def test_model_phase_needs_no_trials() -> None:
    calls = []
    one = learner(2, model=ModelRules(horizon="fixed", max_batches=3))
    train(one, lambda a, b: calls.append(a) or a + b, 5)
    assert (len(calls), one.model_batches) == (80, [0, 0, 3, 3, 3])


def test_dynamic_horizon_ends_by_distance_or_number() -> None:
    phases = {}
    for delta in (0.0, 0.05, 1e9):
        one = learner(2, model=ModelRules(delta=delta, max_batches=4))
        train(one, lambda a, b: a + b, 6)
        phases[delta] = one.model_batches
    assert phases[0.0] == [0] * 6
    assert phases[1e9] == [0, 0, 4, 4, 4, 4]
    assert 4 <= sum(phases[0.05]) < 16


def test_model_phase_improves_the_policy() -> None:
    means = [train(learner(2, model=model), lambda a, b: a + b, 6) for model in (NO_MODEL, ModelRules())]
    assert means[0][:3] == means[1][:3]
    assert means[1][-1] > means[0][-1] + 0.1


def test_entropy_bonus_decays_from_batch_to_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    costs, update = [], SearchAgent.update

    def recording(self: SearchAgent, episodes: DrawnEpisodes, rewards: np.ndarray, cost: float) -> None:
        costs.append(cost)
        update(self, episodes, rewards, cost)

    monkeypatch.setattr(SearchAgent, "update", recording)
    train(learner(1), lambda a: a, 3)
    rules = AgentRules()
    assert 0.0 < rules.entropy_decay < 1.0
    assert costs == pytest.approx([rules.entropy_cost * rules.entropy_decay**k for k in range(3)])


def test_agent_without_spread_restarts_from_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl_learner, "SPREAD", 10.0)
    one = learner(2)
    train(one, lambda a, b: a, 1)
    train(one, lambda a, b: -1.0, 4, first=1)
    assert one.restarts == 0
    train(one, lambda a, b: -1.0, 1, first=5)
    assert one.restarts == 1
    best = sorted(a for a, _ in learner(2).propose(range(16)))[-10:]
    assert np.mean([a for a, _ in one.propose(range(100, 164))]) == pytest.approx(np.mean(best), abs=0.1)


def test_trials_of_another_source_teach_too() -> None:
    """What the agent did not draw itself is encoded."""
    one, rng = learner(1), np.random.default_rng(0)
    before = np.mean(one.propose(range(64)))
    for batch in range(6):
        drawn = rng.uniform(0, 1, 16)
        one.learn([FinishedTrial(16 * batch + i, (float(x),), float(x)) for i, x in enumerate(drawn)])
    assert np.mean(one.propose(range(64))) > before + 0.1


def test_rounded_journal_gives_the_same_learner() -> None:
    """Another machine may differ in the last digit."""
    one, other = learner(3), learner(3)
    for k in range(3):
        numbers = range(16 * k, 16 * k + 16)
        drawn = one.propose(numbers)
        one.learn([FinishedTrial(n, v, v[0]) for n, v in zip(numbers, drawn, strict=True)])
        other.learn(
            [FinishedTrial(n, tuple(x * (1 + 1e-6) for x in v), v[0]) for n, v in zip(numbers, drawn, strict=True)]
        )
    assert one.propose(range(64)) == other.propose(range(64))


def test_integers_and_logarithms_are_decoded_in_the_order_of_the_space() -> None:
    dimensions = [LogUniform(low=1e-5, high=1e-2), IntUniform(low=5, high=50)]
    one, other = (Learner(dimensions, order, AgentRules(), NO_MODEL, randomness(0)) for order in ([0, 1], [1, 0]))
    for lr, unroll in one.propose(range(16)) + other.propose(range(16)):
        assert isinstance(unroll, int)
        assert dimensions[0].contains(lr)
        assert dimensions[1].contains(unroll)
    assert one.propose(range(16)) != other.propose(range(16))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_chain_of_six_needs_a_sequential_agent() -> None:
    """960 trials, the means of six seeds; `first` is the number of batches until one has a mean reward of 0.8."""
    first, last = {}, {}
    for name, model, sequential in (("model", ModelRules(), True), ("none", NO_MODEL, True), ("one", NO_MODEL, False)):
        runs = [train(learner(6, seed, model, sequential=sequential), chain_of, 60) for seed in range(20, 26)]
        first[name] = np.mean([next((i for i, x in enumerate(r) if x >= 0.8), 60) for r in runs])
        last[name] = np.mean([r[-1] for r in runs])
    assert min(last["model"], last["none"]) >= 0.75
    assert last["one"] <= 0.68
    assert first["model"] <= 2 / 3 * first["none"]


# Whole runs


SMALL = [
    "strategy={name: rl_search, trials: 20, batch_size: 8, model: {warmup: 1, max_batches: 2}}",
    "population.size=3",
]


def canonical(run: str) -> tuple[str, dict[str, str]]:
    path = Path("runs") / run
    return digest(journal(path)), weights(path)


def test_executor_and_stops_change_nothing(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pbtrl("train", "toy_chain", "--name", "inline", *SMALL).code == 0
    expected = canonical("inline")
    backend = ["execution.backend=processes", "execution.workers=2"]
    assert pbtrl("train", "toy_chain", "--name", "workers", *SMALL, *backend).code == 0
    assert canonical("workers") == expected
    for report in (2, 9):
        with signalled(monkeypatch, 2, report):
            assert pbtrl("train", "toy_chain", "--name", f"stopped{report}", *SMALL).code == 130
        assert pbtrl("resume", f"stopped{report}").code == 0
        assert canonical(f"stopped{report}")[0] == expected[0]


def test_total_steps_end_the_run(pbtrl: Command) -> None:
    assert pbtrl("train", "toy_chain", *SMALL, "budget.total_steps=13").code == 0
    reports = [line for line in journal(Path("runs/toy_chain")) if line["kind"] == "report"]
    assert 13 <= len(reports) <= 15
