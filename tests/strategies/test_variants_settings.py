"""Settings of PB2 and MF-PBT: defaults, and what reaches the strategy."""

from __future__ import annotations

import pytest

from pbtrl.build.factory import make_header, make_strategy
from pbtrl.config.load import parse
from pbtrl.errors import ConfigError
from pbtrl.strategies.mf_pbt import MFPBT
from pbtrl.strategies.pb2 import PB2

TOY = """\
trainable: {name: drifting_bandit}
population: {size: 8, mode: sync}
budget: {env_steps_per_member: 200}
hparams: {h: {prior: uniform, low: 0.0, high: 1.0}}
"""


def test_defaults_of_pb2() -> None:
    strategy = make_strategy(parse(TOY + "strategy: {name: pb2}"))
    assert isinstance(strategy, PB2)
    assert (strategy.exploit.method, strategy.exploit.bottom, strategy.exploit.top) == ("truncation", 0.25, 0.25)
    assert (strategy.time, strategy.spread, strategy.window, strategy.synchronous) == ("rounds", "sd", 200, True)
    assert (strategy.slice_steps, strategy.horizon, strategy.burn_in, strategy.references) == (8, 200, 0, 0)


def test_settings_of_pb2() -> None:
    text = "strategy: {name: pb2, time: normalized, spread: variance, window: 50, exploit: {min_gap: 0.5},"
    text += " ready: {slice_steps: 10, burn_in: 20}}"
    overrides = ["population.mode=async", "population.reference_members=1"]
    strategy = make_strategy(parse(TOY + text, overrides=overrides))
    assert isinstance(strategy, PB2)
    assert (strategy.time, strategy.spread, strategy.window, strategy.synchronous) == (
        "normalized",
        "variance",
        50,
        False,
    )
    assert (strategy.exploit.min_gap, strategy.exploit.bottom) == (0.5, 0.25)
    assert (strategy.slice_steps, strategy.burn_in, strategy.references) == (10, 20, 1)


def test_defaults_of_mf_pbt() -> None:
    config = parse(TOY + "strategy: {name: mf_pbt}")
    strategy = make_strategy(config)
    assert isinstance(strategy, MFPBT)
    assert (strategy.frequencies, strategy.explore.factors, strategy.synchronous) == (
        {"p1": 1, "p2": 5},
        (0.8, 1.25),
        True,
    )
    header = make_header(config, "toy")
    assert header.roles == {f"m{place:02d}": "p1" if place < 4 else "p2" for place in range(8)}
    assert header.candidate_roles == ()
    assert header.bounds != {}


def test_settings_of_mf_pbt() -> None:
    text = "strategy: {name: mf_pbt, frequencies: [2, 1], explore: {method: none}, ready: {burn_in: 40}}"
    config = parse(TOY + text)
    strategy = make_strategy(config)
    assert isinstance(strategy, MFPBT)
    assert (strategy.frequencies, strategy.explore.method, strategy.burn_in) == ({"p1": 2, "p2": 1}, "none", 40)
    assert make_header(config, "toy").bounds == {}


@pytest.mark.parametrize(("frequency", "refused"), [(5, False), (6, True)])
def test_frequency_of_a_quarter_of_the_rounds_is_allowed(frequency: int, refused: bool) -> None:
    """20 rounds; also if `total_steps` says so."""
    text = TOY + f"strategy: {{name: mf_pbt, frequencies: [1, {frequency}], ready: {{slice_steps: 10}}}}"
    total = text.replace("env_steps_per_member: 200", "env_steps_per_member: 1000, total_steps: 1600")
    for config in (text, total):
        if refused:
            with pytest.raises(ConfigError, match=r"20 / 4 = 5 \(200 steps in slices of 10\)"):
                parse(config)
        else:
            assert parse(config).strategy.name == "mf_pbt"
