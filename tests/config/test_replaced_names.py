"""One config file for several strategies and agents: an override of the name drops the settings that become foreign."""

from __future__ import annotations

import pytest

from pbtrl.config.load import check, parse
from pbtrl.config.yaml_source import ConfigSource
from pbtrl.errors import ConfigError
from pbtrl.strategies.trial_settings import RandomSearchSettings

FILE = """
env: {id: CartPole-v1}
agent: {name: impala, rho_bar: 2.0}
budget: {env_steps_per_member: 10_000}
hparams: {learning_rate: {prior: log_uniform, low: 1.0e-4, high: 1.0e-2}}
strategy:
  ready: {slice_steps: 1000}
  exploit: {method: truncation}
"""


def test_settings_of_the_old_strategy_are_dropped_with_a_note() -> None:
    source = ConfigSource(FILE, "folder/c.yaml", ["strategy.name=random_search"])
    config = check(source)
    assert isinstance(config.strategy, RandomSearchSettings)
    assert config.strategy.ready.slice_steps == 1000
    assert source.notes == ["strategy.name=random_search does not use exploit of c.yaml"]


def test_settings_of_the_old_agent_are_dropped() -> None:
    source = ConfigSource(FILE, "c.yaml", ["agent.name=vmpo"])
    assert check(source).agent
    assert source.notes == ["agent.name=vmpo does not use rho_bar of c.yaml"]


def test_same_name_changes_nothing() -> None:
    source = ConfigSource(FILE, "c.yaml", ["strategy.name=pbt", "agent.name=impala"])
    assert check(source).agent.rho_bar == 2.0  # type: ignore[union-attr]
    assert source.notes == []


@pytest.mark.parametrize(
    ("text", "override"),
    [
        (FILE, "strategy.exploit.top=0.1"),  # asked for beside the new name
        (FILE + "  exploits: {}\n", "strategy.ready.slice_steps=500"),  # unknown to both
    ],
)
def test_other_unknown_keys_remain_mistakes(text: str, override: str) -> None:
    with pytest.raises(ConfigError, match="exploit"):
        parse(text, "c.yaml", ["strategy.name=random_search", override])
