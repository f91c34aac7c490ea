"""Replay of a schedule: slices, values and seeds of its decisions, and the same journal on every executor."""

import signal
from pathlib import Path
from typing import Any

import pytest

from pbtrl.build.factory import make_strategy
from pbtrl.config.load import config_from_dict, resolve
from pbtrl.config.warnings import find_warnings
from pbtrl.core.population import Population
from pbtrl.strategies import Strategy
from pbtrl.strategies.schedule_replay import ScheduleReplay
from pbtrl.testing.fakes import LAST, died, trained
from pbtrl.testing.strategies import PopulationConformance, SearchConformance
from tests.command import Command, journal, weights
from tests.fakes import answer, decision
from tests.training.test_session import canonical, signalled

POINTS = ((0, {"lr": 1e-3, "unroll": 5}), (200, {"lr": 2e-3, "unroll": 10}), (300, {"lr": 2e-3, "unroll": 50}))


class TestOnTheGrid(PopulationConformance, SearchConformance):
    draws = False

    @classmethod
    def strategy(cls) -> Strategy:
        return ScheduleReplay(schedule=POINTS, slice_steps=cls.slice_steps, horizon=cls.horizon)


class TestOffTheGrid(SearchConformance):
    horizon = 650
    draws = False

    @classmethod
    def strategy(cls) -> Strategy:
        schedule = ((0, POINTS[0][1]), (130, POINTS[1][1]), (170, POINTS[2][1]), (900, POINTS[0][1]))
        return ScheduleReplay(schedule=schedule, slice_steps=100, horizon=650)


def train(strategy: Strategy, population: Population, *, stop_at: int | None = None) -> list[tuple[int, int, Any]]:
    """Train to the end, but stop the first slice at `stop_at`; return the slices of the first member."""
    slices = []
    while decided := strategy.decide(population):
        population.record(decision(*decided))
        for a in decided:
            stop, stop_at = stop_at, None
            population.record(answer(trained(a, 1.0, step=stop)))
        first = decided[0]
        slices.append((first.start, population.members["m00"].step, first.hyperparameters["lr"]))
    return slices


def test_slices_end_at_changes_and_on_the_grid() -> None:
    schedule = ((0, {"lr": 1.0}), (130, {"lr": 2.0}), (200, {"lr": 3.0}), (230, {"lr": 4.0}))
    strategy = ScheduleReplay(schedule=schedule, slice_steps=100, horizon=350)
    expected = [(0, 100, 1.0), (100, 130, 1.0), (130, 200, 2.0), (200, 230, 3.0), (230, 300, 4.0), (300, 350, 4.0)]
    assert train(strategy, Population(1, 0, LAST)) == expected
    stopped = [(0, 40, 1.0), (40, 100, 1.0), *expected[1:]]
    assert train(strategy, Population(1, 0, LAST), stop_at=40) == stopped


def test_members_differ_in_their_seeds_alone() -> None:
    decided = ScheduleReplay(schedule=POINTS, slice_steps=100, horizon=600).decide(Population(3, 0, LAST))
    assert len({a.seed for a in decided}) == 3
    assert [a.hyperparameters for a in decided] == [POINTS[0][1]] * 3
    assert {(a.parent, a.donor) for a in decided} == {(None, None)}


@pytest.mark.parametrize("how", ["diverged", "given up"])
def test_member_that_failed_is_retired(how: str) -> None:
    population = Population(2, 0, LAST)
    strategy = ScheduleReplay(schedule=POINTS, slice_steps=100, horizon=600)
    one, two = strategy.decide(population)
    population.record(decision(one, two))
    assert strategy.retired(population) == []
    population.record(answer(trained(one, 1.0, diverged=True) if how == "diverged" else died(one)))
    population.record(answer(trained(two, 1.0)))
    assert strategy.retired(population) == ["m00"]
    assert [a.member for a in strategy.decide(population)] == ["m01"]


CONFIG = {
    "env": {"id": "CartPole-v1", "num_envs": 4},
    "budget": {"env_steps_per_member": 1000},
    "agent": {"block_length": 10},
    "hparams": {
        "learning_rate": {"prior": "log_uniform", "low": 1e-4, "high": 1},
        "unroll_length": {"prior": "choice", "values": [5, 10]},
    },
}


def configured(*points: dict[str, Any]) -> Any:
    return config_from_dict({**CONFIG, "strategy": {"name": "schedule_replay", "schedule": list(points)}})


def test_config_gives_points_in_whole_blocks() -> None:
    """A block is 10 steps in each of 4 envs. Integers of a real dimension become floats."""
    config = configured(
        {"at": 0, "unroll_length": 5, "learning_rate": 1},
        {"at": 41, "unroll_length": 10, "learning_rate": 0.1},
        {"at": 120, "unroll_length": 10, "learning_rate": 0.2},
    )
    strategy = make_strategy(resolve(config))
    assert strategy == ScheduleReplay(
        schedule=(
            (0, {"learning_rate": 1.0, "unroll_length": 5}),
            (80, {"learning_rate": 0.1, "unroll_length": 10}),
            (120, {"learning_rate": 0.2, "unroll_length": 10}),
        ),
        slice_steps=40,
        horizon=1000,
    )
    assert isinstance(strategy, ScheduleReplay)
    assert type(strategy.schedule[0][1]["learning_rate"]) is float
    assert not config.strategy.copies
    assert not config.strategy.explores


def test_points_beyond_the_budget_are_warned_of() -> None:
    def about_schedule(*steps: int) -> list[str]:
        config = configured(*({"at": step, "unroll_length": 5, "learning_rate": 0.1} for step in steps))
        return [line for line in find_warnings(config) if "schedule" in line]

    message = (
        "strategy.schedule is longer than a member's budget (1,000 env steps): points from 1,000 on are never reached"
    )
    assert about_schedule(0, 999) == []
    assert about_schedule(0, 1000, 2000) == [message]


STRATEGY = (
    "strategy={name: schedule_replay, ready: {slice_steps: 240}, schedule: ["
    "{at: 0, learning_rate: 1e-3, unroll_length: 5}, {at: 320, learning_rate: 5e-3, unroll_length: 10}]}"
)


def test_executors_and_stops_change_nothing(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pbtrl("train", "cart.yaml", "--name", "inline", STRATEGY).code == 0
    expected = canonical("inline")
    reports = [line for line in journal(Path("runs/inline")) if line["kind"] == "report" and line["member"] == "m02"]
    assert [r["step"] for r in reports] == [240, 320, 480, 720]
    rates = [r["hyperparameters"]["learning_rate"] for r in reports]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-3, 5e-3])
    assert [r["hyperparameters"]["unroll_length"] for r in reports] == [5, 5, 10, 10]
    assert len(set(weights(Path("runs/inline")).values())) == len(weights(Path("runs/inline")))
    assert pbtrl("train", "cart.yaml", "--name", "workers", STRATEGY, "execution.backend=processes").code == 0
    assert canonical("workers") == expected
    with signalled(monkeypatch, signal.SIGINT, report=7):
        assert pbtrl("train", "cart.yaml", "--name", "stopped", STRATEGY).code == 130
    assert pbtrl("resume", "stopped").code == 0
    assert canonical("stopped") == expected
