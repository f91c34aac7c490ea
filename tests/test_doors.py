"""Other people's agents, strategies and trainables: registered, by entry point, or by module:Class."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from pbtrl import api, registration
from pbtrl.agents.settings import AGENTS
from pbtrl.config import registry
from pbtrl.config.load import config_from_json, parse
from pbtrl.config.schema import Config
from pbtrl.config.sections import AGENT_ENTRIES
from pbtrl.errors import ConfigError, PbtrlError, RunError
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.stored_config import load_stored_config, names_modules
from pbtrl.strategies.catalog import STRATEGIES
from tests.command import ROOT, Command

OWN = """
from dataclasses import dataclass
import numpy as np
from pbtrl.agents.impala import Impala
from pbtrl.agents.settings import ImpalaSettings, live
from pbtrl.strategies.random_search import random_search
from pbtrl.strategies.settings import StrategySettings

open("imported", "a").close()

@dataclass(frozen=True, kw_only=True)
class Agent(ImpalaSettings):
    name: str = "own"
    bonus: float = live(0.5, low=0.0, high=1.0)

def make(settings, observation_space, action_space):
    return Impala.make(settings, observation_space, action_space)

@dataclass(frozen=True, kw_only=True)
class Search(StrategySettings):
    name: str = "own"
    tries: int = 3

    def build(self, context):
        return random_search(context.space, slice_steps=context.slice_steps, horizon=context.horizon)

class Model:
    def __init__(self, rng, *, size: int = 2):
        self.w = rng.normal(size=size)
    def train(self, steps, hyperparameters, rng):
        self.w = self.w + steps * hyperparameters["rate"]
        return {}
    def evaluate(self, rng):
        return float(self.w.sum())
    def state_dict(self):
        return {"w": self.w.copy()}
    def load_state_dict(self, state):
        self.w = state["w"].copy()

class Plain:
    pass
"""
RATE = {"rate": {"prior": "uniform", "low": 0.0, "high": 1.0}}
BUDGET = {"budget": {"env_steps_per_member": 20}, "strategy": {"ready": {"slice_steps": 10}},
          "execution": {"backend": "inline"}, "population": {"size": 2, "mode": "sync"}}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick_disk: None) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_things.py").write_text(OWN)
    for kind, names in registry._registered.items():
        monkeypatch.setitem(registry._registered, kind, dict(names))
    with patch.dict(AGENTS), patch.dict(AGENT_ENTRIES), patch.dict(STRATEGIES):
        yield
    Config.model_rebuild(force=True)
    sys.modules.pop("own_things", None)


def own(name: str) -> Any:
    return getattr(__import__("own_things"), name)


CART = "env: {id: CartPole-v1}\nbudget: {env_steps_per_member: 1280}\n"


def test_own_agent_has_its_keys_and_hparams() -> None:
    config = parse(CART + "agent: {name: 'own_things:Agent', bonus: 0.25, epochs: 2}\n"
                   "hparams: {learning_rate: {prior: uniform, low: 0, high: 1}}")  # fmt: skip
    assert config.agent is not None
    assert (config.agent.name, config.agent.bonus, config.agent.epochs) == ("own_things:Agent", 0.25, 2)
    assert config.imports == ("own_things",)
    assert parse(
        CART + "agent: {name: 'own_things:Agent'}\nhparams: {bonus: {prior: uniform, low: 0, high: 1}}"
    ).hparams
    with pytest.raises(ConfigError, match=r"agent.bonsu: unknown key. Did you mean 'bonus'\?"):
        parse(CART + "agent: {name: 'own_things:Agent', bonsu: 1}")
    with pytest.raises(ConfigError, match=r"agent.bonus: must be in \[0, 1\], not 2"):
        parse(CART + "agent: {name: 'own_things:Agent', bonus: 2}")


def test_own_agent_in_a_mix() -> None:
    config = parse(CART + "agents: {mine: {name: 'own_things:Agent', bonus: 1}, a3c: {}}\n"
                   "population: {mix: {mine: 1, a3c: 2}}")  # fmt: skip
    assert config.agents is not None
    assert config.agents["mine"].settings.bonus == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agent: {name: 'own_things:Nothing'}", "own_things:Nothing cannot be imported: AttributeError"),
        ("agent: {name: 'no_such_module:Agent'}", "no_such_module:Agent cannot be imported: ModuleNotFoundError"),
        ("agent: {name: 'own_things:Plain'}", "must be a dataclass derived from pbtrl.agents.settings.ActorCriticSet"),
        ("agent: {name: 'own_things:Search'}", "must be a dataclass derived from pbtrl.agents.settings"),
        (
            "strategy: {name: 'own_things:Agent'}",
            "must be a dataclass derived from pbtrl.strategies.settings",
        ),
        ("agent: {name: '__main__:Agent'}", "cannot be imported by workers: move it to an importable module"),
        ("agent: {name: impalla}", "unknown agent 'impalla'. Did you mean 'impala'?"),
    ],
)
def test_unavailable_names_are_one_line_with_position(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(CART + text, "own.yaml")
    kind, _, _ = text.partition(":")
    assert len(caught.value.messages) == 1
    assert caught.value.messages[0].startswith(f"own.yaml:3:{len(kind) + 10}: {kind}.name: ")
    assert message in caught.value.messages[0]


@pytest.mark.parametrize("entry", ["mine: {bonus: 1}", "mine: {}", "mine: ", "other: {name: mine}"])
def test_registered_agent_in_a_mix_is_named_by_its_key(entry: str) -> None:
    registration.register_agent("mine", own("Agent"))
    key = entry.partition(":")[0]
    config = parse(CART + f"agents: {{{entry}, vmpo: {{}}}}\npopulation: {{mix: {{{key}: 1, vmpo: 1}}}}")
    assert config.agents is not None
    assert {name: entry.name for name, entry in config.agents.items()} == {key: "own_things:Agent", "vmpo": "vmpo"}
    assert config_from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("agent: {name: zzz}", "Known: impala, .*, mine"),
        ("agents: {zzz: {}}", "Known: impala, .*, mine"),
        ("agents: {mine: 3}", "must be a section of keys, not 3"),
    ],
)
def test_registered_names_are_listed(text: str, message: str) -> None:
    registration.register_agent("mine", own("Agent"))
    with pytest.raises(ConfigError, match=message):
        parse(CART + text)
    registration.register_strategy("looking", own("Search"))
    with pytest.raises(ConfigError, match=r"unknown strategy 'zzz'\. Known: pbt, .*, looking"):
        parse(CART + "strategy: {name: zzz}")


def test_registered_names_are_stored_as_importable_paths() -> None:
    registration.register_agent("mine", own("Agent"))
    registration.register_strategy("looking", own("Search"))
    registration.register_trainable("model", own("Model"))
    registration.register_trainable("model", own("Model"))  # as in a notebook's cell that runs again
    config = {"trainable": {"name": "model", "size": 3}, "hparams": RATE, **BUDGET}
    config["strategy"] = {"name": "looking", "tries": 5, "ready": {"slice_steps": 10}}
    run = api.train(config, overrides=["execution.backend=processes", "execution.workers=1"], name="a")
    assert run.config.trainable is not None
    assert run.config.trainable.name == "own_things:Model"
    assert (run.config.strategy.name, run.config.strategy.tries) == ("own_things:Search", 5)  # type: ignore[attr-defined]
    assert run.status()["state"] == "finished"


def test_names_that_cannot_be_registered() -> None:
    with pytest.raises(ValueError, match="the name 'impala' is taken"):
        registration.register_agent("impala", own("Agent"))
    with pytest.raises(ValueError, match="is not a valid name: a colon"):
        registration.register_agent("a:b", own("Agent"))

    class Local:
        pass

    with pytest.raises(ValueError, match=r"cannot be imported from tests\.test_doors: move it to a module"):
        registration.register_trainable("local", Local)


@pytest.mark.parametrize(
    ("trainable", "message"),
    [
        ("{name: 'own_things:Model', sise: 2}", r"trainable.sise: unknown key. Did you mean 'size'\?"),
        ("{name: 'own_things:Model', size: [a]}", "trainable.size: must be an integer, not"),
        ("{name: 'own_things:Nothing'}", "trainable.name: own_things:Nothing cannot be imported"),
    ],
)
def test_failing_trainable_constructor(trainable: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        api.train({**BUDGET, "hparams": RATE}, overrides=[f"trainable={trainable}"])


def test_untrusted_run_imports_nothing(pbtrl: Command) -> None:
    run = api.train({"trainable": {"name": "own_things:Model"}, "hparams": RATE, **BUDGET}, name="a")
    Path("imported").unlink()
    sys.modules.pop("own_things")
    for name in ("status", "verify", "lineage", "report", "compare"):
        assert pbtrl(name, "a").code == 0
    assert pbtrl("list").code == 0
    assert names_modules(RunDirectory(run.path))
    with pytest.raises(RunError, match="asks to import 'own_things', which runs its code"):
        load_stored_config(RunDirectory(run.path))
    for command in (["eval", "a"], ["resume", "a", "budget.env_steps_per_member=40"]):
        refused = pbtrl(*command)
        assert (refused.code, "--trust-imports" in refused.err) == (2, True)
    with pytest.raises(RunError, match="trust_imports=True"):
        api.load_run("a").evaluate()
    assert not Path("imported").exists()
    assert api.load_run("a", trust_imports=True).evaluate()
    assert (
        api.resume("a", overrides=["budget.env_steps_per_member=40"], trust_imports=True).status()["state"]
        == "finished"
    )


def test_code_that_is_gone_is_one_line_of_eval(pbtrl: Command) -> None:
    """As when the run is evaluated from another directory."""
    run = api.train({"trainable": {"name": "own_things:Model"}, "hparams": RATE, **BUDGET}, name="a")
    Path("own_things.py").unlink()
    sys.modules.pop("own_things")
    refused = pbtrl("eval", "a", "--trust-imports")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert refused.err.startswith("trainable.name: own_things:Model cannot be imported: ModuleNotFoundError")
    with pytest.raises(PbtrlError, match="cannot be imported"):
        run.evaluate()


@pytest.mark.parametrize(
    "code",
    [
        "env: {id: 'never_imported:make'}",
        "env: {id: CartPole-v1, wrappers: ['never_imported:Wide']}",
        "env: {id: CartPole-v1, wrappers: [{id: 'never_imported:Wide', kwargs: {a: 1}}]}",
        "env: {id: CartPole-v1}\nfitness: {metric: 'never_imported:score'}",
    ],
)
def test_stored_config_that_names_code_of_an_env_needs_trust(tmp_path: Path, code: str) -> None:
    """Also where the caller says nothing, but not where it makes no envs."""
    run = RunDirectory(tmp_path)
    run.resolved_config.write_text(f"{code}\nbudget: {{env_steps_per_member: 1280}}\n")
    assert names_modules(run)
    with pytest.raises(RunError, match="asks to import 'never_imported', which runs its code"):
        load_stored_config(run)
    configs = load_stored_config(run, trusted=True), load_stored_config(run, known=["never_imported"])
    assert {config.imports for config in (*configs, load_stored_config(run, makes_envs=False))} == {("never_imported",)}
    assert "never_imported" not in sys.modules


def test_entry_points_of_an_installed_package(tmp_path: Path) -> None:
    """The package is installed elsewhere and used from a directory without it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "env"], check=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "known.pth").write_text(f"{sysconfig.get_path('purelib')}\n{ROOT}\n")
    (tmp_path / "own_things.py").rename(site / "own_things.py")
    (site / "own_things-1.0.dist-info").mkdir()
    (site / "own_things-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: own-things\nVersion: 1.0\n")
    (site / "own_things-1.0.dist-info/entry_points.txt").write_text(
        "[pbtrl.agents]\nmine = own_things:Agent\n[pbtrl.strategies]\nlooking = own_things:Search\n"
        "[pbtrl.trainables]\nmodel = own_things:Model\n"
    )
    (tmp_path / "elsewhere").mkdir()
    command = [tmp_path / "env/bin/python", "-m", "pbtrl"]
    toy = ["trainable={name: model}", "hparams={rate: {prior: uniform, low: 0, high: 1}}", "strategy.name=looking",
           "budget.env_steps_per_member=20", "population={size: 2, mode: sync}", "execution.workers=1"]  # fmt: skip
    (tmp_path / "elsewhere/empty.yaml").write_text("")
    for argv in (["train", "empty.yaml", *toy, "--name", "a"], ["eval", "a"], ["resume", "a"],
                 ["config", "show", "cartpole", "agent={name: mine, bonus: 0.75}"]):  # fmt: skip
        done = subprocess.run(
            [*command, *argv], cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "bonus: 0.75" in done.stdout
