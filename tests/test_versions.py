"""Runs of earlier versions can be read and resumed, with warnings about what changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pbtrl.build import placement
from pbtrl.errors import RunError
from pbtrl.storage.journal import canonical
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.stored_config import load_stored_config
from tests.command import CART, ROOT, Command, journal

OLD = sorted((ROOT / "tests/golden").glob("run-*"))
MORE = "budget.env_steps_per_member=60"


@pytest.fixture(params=OLD, ids=lambda path: path.name)
def run(request: pytest.FixtureRequest, pbtrl: Command) -> Path:
    """Copy of an old run among the user's runs."""
    copied: Path = shutil.copytree(request.param, Path("runs") / request.param.name)
    return copied


def said(pbtrl: Command, *argv: object) -> str:
    result = pbtrl(*argv)
    assert result.code == 0, result.err
    return result.out


def test_runs_of_every_version_are_read_and_resumed(pbtrl: Command, run: Path) -> None:
    assert OLD
    assert said(pbtrl, "verify", run.name).startswith(f"{run}: clean")
    assert json.loads(said(pbtrl, "status", run.name, "--json"))["state"] == "finished"
    assert len(json.loads(said(pbtrl, "eval", run.name, "--member", "all", "--json"))) == 2
    said(pbtrl, "lineage", run.name)
    said(pbtrl, "resume", run.name, MORE)
    assert said(pbtrl, "verify", run.name).startswith(f"{run}: clean")
    said(pbtrl, "train", run / "config.resolved.yaml", "--name", "today")  # resuming wrote it under today's keys
    assert_close(canonical(journal(Path("runs/today"))), canonical(journal(run)))


def assert_close(today: Any, then: Any) -> None:
    """Equal, floats to nine digits, because another machine computed the stored ones."""
    if isinstance(then, dict):
        assert today.keys() == then.keys()
        for key in then:
            assert_close(today[key], then[key])
    elif isinstance(then, list):
        for one, other in zip(today, then, strict=True):
            assert_close(one, other)
    else:
        assert type(today) is type(then)
        assert today == (pytest.approx(then, rel=1e-9) if isinstance(then, float) else then)


def test_files_without_a_schema_count_as_oldest(pbtrl: Command, run: Path) -> None:
    for path in (run / "run.json", run / "best.json", *run.glob("members/*/snapshots/*/MANIFEST.json")):
        kept = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("schema", "snapshot")}
        path.write_text(json.dumps(kept))
    (run / "best.json").unlink()  # it names the hash of a manifest, which is another now
    said(pbtrl, "eval", run.name, "--member", "m00")
    said(pbtrl, "resume", run.name, MORE)


def test_warning_for_another_version_or_machine(pbtrl: Command, run: Path) -> None:
    said(pbtrl, "resume", run.name, MORE)
    card = json.loads((run / "run.json").read_text())
    now = dict(card["versions"])
    card["versions"] |= {"torch": "1.0", "processor": "an abacus"}
    (run / "run.json").write_text(json.dumps(card))
    result = pbtrl("resume", run.name, "budget.env_steps_per_member=70")
    assert (result.code, result.err.splitlines()) == (
        0,
        [
            f"warning: {what} -> {now[key]} since the last session: not bit-exact from here on"
            for key, what in (("processor", "processor an abacus"), ("torch", "torch 1.0"))
        ],
    )


def test_warning_for_another_number_of_threads(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("c.yaml").write_text(CART)
    monkeypatch.setattr(placement, "usable_cores", lambda: 3)
    said(pbtrl, "train", "c.yaml", "population.size=1", "--name", "one", "--progress", "none")
    monkeypatch.setattr(placement, "usable_cores", lambda: 1)
    result = pbtrl("resume", "one", "budget.env_steps_per_member=960", "--progress", "none")
    assert result.err == "warning: torch threads 3 -> 1 since the last session: not bit-exact from here on\n"


OLD_KEYS = """
env: {id: CartPole-v1}
agent: {name: impala, feed_back: true, passes: 2, max_log_rho: 0.5, optimiser: adam, rewards: normalise}
budget: {env_steps_per_member: 640}
hparams: {adam_epsilon: {prior: choice, values: [1e-3, 1e-5], mutate: neighbour}}
fitness: {every: 320}
strategy: {ready: {every: 320}}
"""


def test_stored_config_is_read_with_its_old_keys(tmp_path: Path) -> None:
    (tmp_path / "config.resolved.yaml").write_text(OLD_KEYS)
    config = load_stored_config(RunDirectory(tmp_path), ["agent.epochs=3"])
    assert config.agent is not None
    result = config.agent
    assert result.use_last_action_reward
    assert (result.epochs, result.max_log_ratio, result.optimizer, result.rewards) == (3, 0.5, "adam", "normalize")
    assert config.hparams["adam_epsilon"].mutate == "neighbor"
    assert config.fitness.curve_interval == config.strategy.ready.slice_steps == 320


def test_renamed_hyperparameter_cannot_be_resumed(tmp_path: Path) -> None:
    """The journal names it, too."""
    searched = OLD_KEYS.replace("passes: 2, ", "").replace(
        "hparams: {", "hparams: {passes: {prior: int_uniform, low: 1, high: 3}, "
    )
    (tmp_path / "config.resolved.yaml").write_text(searched)
    with pytest.raises(RunError, match="searches 'passes', which is now called 'epochs'"):
        load_stored_config(RunDirectory(tmp_path))
