"""What overrides drop from a file: settings of another strategy or agent, and the other form of a hyperparameter."""

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


MIX = """
env: {id: CartPole-v1}
agents:
  impala: {gamma: 0.9, hparams: {lambda_: {prior: uniform, low: 0.8, high: 1.0}}}
  vmpo: {}
population: {mix: {impala: 1, vmpo: 1}}
budget: {env_steps_per_member: 10_000}
hparams: {learning_rate: {prior: log_uniform, low: 1.0e-4, high: 1.0e-2}}
"""


@pytest.mark.parametrize(
    ("text", "override", "note"),
    [
        (FILE, "agent.learning_rate=0.001", "agent.learning_rate replaces hparams.learning_rate"),
        (FILE, "hparams.rho_bar={prior: uniform, low: 1, high: 2}", "hparams.rho_bar replaces agent.rho_bar"),
        (FILE, "hparams={rho_bar: {prior: uniform, low: 1, high: 2}}", "hparams.rho_bar replaces agent.rho_bar"),
        (MIX, "agents.impala.lambda_=0.9", "agents.impala.lambda_ replaces agents.impala.hparams.lambda_"),
        (MIX, "agents.impala.hparams.gamma={prior: uniform, low: 0.9, high: 1.0}",
         "agents.impala.hparams.gamma replaces agents.impala.gamma"),
        (MIX, "hparams.gamma={prior: uniform, low: 0.9, high: 1.0}", "hparams.gamma replaces agents.impala.gamma"),
    ],
)  # fmt: skip
def test_the_other_form_of_a_hyperparameter_is_dropped_with_a_note(text: str, override: str, note: str) -> None:
    source = ConfigSource(text, "folder/c.yaml", [override])
    config = check(source)
    assert source.notes == [f"{note} of c.yaml"]
    name = override.split("=")[0].split(".")[-1] if not override.startswith("hparams=") else "rho_bar"
    searched = [name in c.hparams for c in config.per_agent_configs.values()]
    assert any(searched) == ("hparams" in override)


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        (FILE.replace("rho_bar", "learning_rate"), ["seed=2"]),  # both in the file
        (FILE, ["agent.gamma=0.9", "hparams.gamma={prior: uniform, low: 0.9, high: 1.0}"]),  # both by overrides
        (MIX, ["agents.impala.learning_rate=0.001"]),  # searched for the other agents too
    ],
)
def test_two_forms_that_contradict_remain_a_mistake(text: str, overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match="both fixed"):
        parse(text, "c.yaml", overrides)
