"""Settings of searches over trials: rungs, planned steps, and the journal of whole runs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pbtrl.build.factory import make_header, make_strategy
from pbtrl.config.load import parse
from pbtrl.config.schema import Config
from pbtrl.core.population import Population
from pbtrl.strategies import Strategy
from pbtrl.strategies.asha import ASHA
from pbtrl.strategies.successive_halving import SuccessiveHalving

TEXT = """\
trainable: {name: constant}
population: {size: 4}
hparams: {x: {prior: uniform, low: 0, high: 1}, y: {prior: choice, values: [1, 2]}}
"""


def config(strategy: str, budget: str = "env_steps_per_member: 81", overrides: Sequence[str] = ()) -> Config:
    return parse(f"{TEXT}budget: {{{budget}}}\nstrategy: {strategy}\n", "c.yaml", overrides)


@pytest.mark.parametrize(
    ("strategy", "steps"),
    [
        ("{name: random_search}", 4 * 81),
        ("{name: random_search, trials: 10}", 10 * 81),
        ("{name: fixed}", 4 * 81),
        ("{name: fixed, trials: 5}", 5 * 81),
        ("{name: grid, points: 4}", 8 * 81),
        ("{name: bayesian, trials: 20}", 20 * 81),
        ("{name: successive_halving}", 297),
        ("{name: successive_halving, trials: 27, min_steps: 9}", 27 * 9 + 9 * 18 + 3 * 54),
        ("{name: hyperband}", 297 + (34 * 3 + 11 * 6 + 3 * 18 + 54) + (15 * 9 + 5 * 18 + 54) + (8 * 27 + 2 * 54) + 405),
        ("{name: hyperband, sizes: table}", 297 + 27 * 3 + 9 * 6 + 3 * 18 + 54 + 189 + 6 * 27 + 2 * 54 + 405),
        ("{name: asha, eta: 3, trials: 81}", 297),
    ],
)
def test_planned_steps(strategy: str, steps: int) -> None:
    assert make_header(config(strategy), "run").budget == steps


def test_total_steps_cap_the_plan() -> None:
    for cap, budget in ((200, 200), (300, 297)):
        made = config("{name: successive_halving}", f"env_steps_per_member: 81, total_steps: {cap}")
        assert made.steps_per_member == 81
        assert make_header(made, "run").budget == budget


def test_total_steps_are_shared_where_members_stay() -> None:
    made = config("{name: fixed}", "total_steps: 400")
    assert (made.steps_per_member, make_header(made, "run").budget) == (100, 400)


def in_blocks_of_20(strategy: str, steps: str) -> Strategy:
    text = (
        f"env: {{id: CartPole-v1, num_envs: 4}}\nbudget: {{env_steps_per_member: {steps}}}\n"
        f"strategy: {{name: {strategy}}}\nagent: {{unroll_length: 5}}\n"
    )
    return make_strategy(parse(text, "c.yaml"))


def test_rungs_are_whole_blocks_down_to_an_81st_of_the_budget() -> None:
    made = in_blocks_of_20("asha", "8e4")
    assert isinstance(made, ASHA)
    assert made.rungs == (1260, 5000, 20_000, 80_000)


def test_rounding_costs_no_default_rung() -> None:
    made = in_blocks_of_20("hyperband", "1e6")
    assert isinstance(made, SuccessiveHalving)
    assert [b.rungs[0] for b in made.brackets] == [12_360, 37_040, 111_120, 333_340, 1_000_000]


def test_lowest_rung_of_a_small_budget_is_one_block() -> None:
    made = make_strategy(config("{name: successive_halving, min_steps: 1, trials: 9}", "env_steps_per_member: 10"))
    assert isinstance(made, SuccessiveHalving)
    assert [(b.rungs, b.sizes) for b in made.brackets] == [((2, 4, 10), (9, 3, 1))]


def test_constants_reach_the_strategy() -> None:
    made = make_strategy(config("{name: fixed, values: {y: 2}}"))
    assert made.decide(Population(1, 0))[0].hyperparameters == {"x": 0.5, "y": 2}


@pytest.mark.parametrize(
    "strategy", ["{name: fixed, values: {n: 3e0}}", "{name: schedule_replay, schedule: [{at: 0, n: 3e0}]}"]
)
def test_integer_of_a_strategy_may_be_written_as_a_float(strategy: str) -> None:
    made = config(strategy, overrides=["hparams={n: {prior: int_uniform, low: 0, high: 4}}"])
    assert repr(make_strategy(made).decide(Population(1, 0))[0].hyperparameters) == "{'n': 3}"
