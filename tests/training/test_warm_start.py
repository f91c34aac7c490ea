"""Warm start: `init_from` begins every member from another run's snapshot, and the run never needs the other again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbtrl.agents.settings import FeudalSettings, NetworkSettings, VMPOSettings
from pbtrl.build.warm_start import needed_settings
from pbtrl.storage.best_member import best_snapshot
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.snapshot_store import SnapshotStore
from tests.command import Command, journal

TOY = "execution.backend=inline"
CART = """\
env: {id: CartPole-v1, num_envs: 2, backend: gymnasium, between_slices: reset}
agent: {name: impala, hidden: [8], optimizer: adam}
population: {size: 2, mode: sync}
execution: {backend: inline}
budget: {env_steps_per_member: 80}
hparams: {learning_rate: {prior: log_uniform, low: 1e-4, high: 1e-2}}
fitness: {min_episodes: 1}
strategy: {ready: {slice_steps: 40}, exploit: {bottom: 0.5, top: 0.5}}
final: {candidates: 1, selection_episodes: 1, episodes: 1}
"""
FIRST = Path("runs/first")


def tensors(run: Path, name: str) -> dict[str, np.ndarray]:
    return SnapshotStore(run / "members").load(name)[0]


def assignments(run: Path) -> list[dict[str, Any]]:
    return [a for line in journal(run) if line["kind"] == "decision" for a in line["assignments"]]


@pytest.fixture
def first(pbtrl: Command) -> Path:
    """Finished toy run."""
    assert pbtrl("train", "toy_quadratic", TOY, "--name", "first", "--progress", "none").code == 0
    return FIRST


@pytest.fixture
def cart(pbtrl: Command) -> Path:
    """Finished run in CartPole."""
    Path("c.yaml").write_text(CART)
    assert pbtrl("train", "c.yaml", "--name", "first", "--progress", "none").code == 0
    return FIRST


def test_every_member_begins_from_the_best(pbtrl: Command, first: Path) -> None:
    done = pbtrl("train", "toy_quadratic", TOY, "init_from=first", "--name", "second", "--progress", "plain")
    assert done.code == 0, done.err
    run, best = Path("runs/second"), best_snapshot(RunDirectory(first))
    assert best is not None
    header, _, _ = RunDirectory(run).load()
    assert (header.initial["snapshot"], header.initial["run"]) == (best, str(first.resolve()))
    assert {a["parent"] for a in assignments(run) if a["start"] == 0} == {"initial/000000"}
    own, other = tensors(run, "initial/000000"), tensors(first, best)
    assert {k: v.tolist() for k, v in own.items()} == {k: v.tolist() for k, v in other.items()}
    began = next(line for line in journal(run) if line["kind"] == "report")
    assert began["returns"][0] > 1.1, "fresh weights have 0.39"
    assert f"all members began from {best} of {first.resolve()}" in done.err + done.out


def test_the_other_run_may_go(pbtrl: Command, first: Path) -> None:
    """Resume, verify, decisions, status, lineage and report work without it."""
    assert (
        pbtrl("train", "toy_quadratic", TOY, "init_from=first/m01", "--name", "second", "--progress", "none").code == 0
    )
    origin = "all members began from m01/"
    shutil.rmtree(first)
    assert pbtrl("resume", "second", "budget.env_steps_per_member=230", "--progress", "none").code == 0
    assert pbtrl("verify", "second").out.endswith("snapshots hashed)\n")
    assert pbtrl("verify", "second").code == 0
    assert "all the same" in pbtrl("verify", "second", "--decisions").out
    for command in (["status", "second"], ["lineage", "second"]):
        assert origin in pbtrl(*command).out
    assert json.loads(pbtrl("lineage", "second", "--json").out)["initial"]["snapshot"].startswith("m01/")
    assert json.loads(pbtrl("status", "second", "--json").out)["origin"].startswith(origin)
    assert pbtrl("report", "second").code == 0
    assert origin in Path("runs/second/report.html").read_text()
    third = pbtrl("train", "toy_quadratic", TOY, "init_from=second/initial", "--name", "third", "--progress", "none")
    assert third.code == 0
    assert tensors(Path("runs/third"), "initial/000000")["theta"].tolist() == (
        tensors(Path("runs/second"), "initial/000000")["theta"].tolist()
    )


def test_repeated_command_needs_the_other_run_no_more(pbtrl: Command, first: Path) -> None:
    """Also where the config names the run."""
    train = ["train", "toy_quadratic", TOY, "init_from=first", "name=second", "--if-exists", "resume"]
    assert pbtrl(*train, "--progress", "none").code == 0
    shutil.rmtree(first)
    again = pbtrl(*train)
    assert (again.code, again.err) == (0, "")
    assert again.out.startswith("runs/second is finished (budget): nothing to do. ")


def test_trials_that_begin_later_begin_from_it_too(pbtrl: Command) -> None:
    for name, more in (("first", []), ("second", ["init_from=first"])):
        assert pbtrl("train", "toy_halving", *more, "--name", name, "--progress", "none").code == 0
    begun = [a for a in assignments(Path("runs/second")) if a["start"] == 0]
    assert len(begun) > RunDirectory(Path("runs/second")).load()[0].size
    assert {a["parent"] for a in begun} == {"initial/000000"}


def test_same_run_on_processes(pbtrl: Command, first: Path) -> None:
    digests = []
    for backend in ("inline", "processes"):
        train = ["train", "toy_quadratic", f"execution.backend={backend}", "init_from=first", "--name", backend]
        assert pbtrl(*train, "--progress", "none").code == 0
        digests.append(pbtrl("verify", backend, "--digest").out)
    assert digests[0] == digests[1]
    assert digests[0] != pbtrl("verify", "first", "--digest").out


def test_agent_begins_with_weights_normalizer_and_optimizer(pbtrl: Command, cart: Path) -> None:
    train = ["train", "c.yaml", "init_from=first", "--progress", "none"]
    assert pbtrl(*train, "--name", "same").code == 0
    best = best_snapshot(RunDirectory(cart))
    assert best is not None
    own, theirs = tensors(Path("runs/same"), "initial/000000"), tensors(cart, best)
    assert own.keys() == theirs.keys()
    assert all((own[name] == theirs[name]).all() for name in own)
    assert own["adam.steps"] > 0
    assert own["shift"].any()
    assert pbtrl(*train, "--name", "other", "agent.optimizer=rmsprop").code == 0
    own = tensors(Path("runs/other"), "initial/000000")
    assert (own["params"] == theirs["params"]).all()
    assert (own["rmsprop.mean_square"] == 1).all()
    assert not [name for name in own if name.startswith("adam")]


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["init_from=nothing"], "no run 'nothing' in runs: there are first"),
        (["init_from=''"], "no run '' in runs: there are first"),
        (["init_from=first/m07"], "no member 'm07' in runs/first: there are m00, m01"),
        (["agent.hidden=[9]"], "first does not fit: it was trained with agent.hidden [8], not [9]"),
        (["agent.activation=relu"], "first does not fit: it was trained with agent.activation tanh, not relu"),
        (["agent.name=a3c"], "first does not fit: it is of the agent impala, not of a3c"),
        (["env.id=Acrobot-v1"], "first does not fit: its observation space is Box(shape [4], dtype float32), not Box("),
        (["env.id=MountainCar-v0"], "first does not fit: its observation space is Box(shape [4], "),
        (["agent.rewards=clip"], "first does not fit: return.count is unknown"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(pbtrl: Command, cart: Path, overrides: list[str], text: str) -> None:
    given = [] if overrides[0].startswith("init_from") else ["init_from=first"]
    for more in ([], ["--dry-run"]):
        refused = pbtrl("train", "c.yaml", "--name", "second", "--progress", "none", *given, *overrides, *more)
        assert (refused.code, refused.out) == (2, "")
        message, closing = refused.err.splitlines()
        assert text in message
        assert message.startswith("override 'init_from=")
        assert closing == "1 error. Nothing was started."
    assert not Path("runs/second").exists()


@pytest.mark.parametrize(
    ("agent", "needed"),
    [
        (VMPOSettings(), {"log_std"}),  # an offset of the network's output
        (VMPOSettings(std="free"), set()),  # the start of a learned weight
        (FeudalSettings(std="free"), {"horizon"}),
    ],
    ids=["softplus", "free", "feudal"],
)
def test_settings_that_change_the_policy_must_be_equal(agent: NetworkSettings, needed: set[str]) -> None:
    settings = set(needed_settings(agent, acts_in_box=True))
    assert {"log_std", "horizon"} & settings == needed
    assert {"hidden", "activation"} <= settings
    assert "log_std" not in needed_settings(agent, acts_in_box=False)


def test_other_kinds_of_model(pbtrl: Command, first: Path) -> None:
    Path("c.yaml").write_text(CART)
    refused = pbtrl("train", "c.yaml", "init_from=first")
    assert "first does not fit: it is of the trainable quadratic, not of an agent" in refused.err
    refused = pbtrl("train", "toy_chebykin", "init_from=first")
    assert "first does not fit: it is of quadratic, not of the trainable chebykin" in refused.err


def test_damaged_copy(pbtrl: Command, first: Path) -> None:
    """Members that began do not need it; verify finds it."""
    assert pbtrl("train", "toy_quadratic", TOY, "init_from=first", "--name", "second", "--progress", "none").code == 0
    file = Path("runs/second/members/initial/snapshots/000000/tensors.safetensors")
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    result = pbtrl("verify", "second")
    assert (result.code, "initial" in result.out) == (4, True)
    assert pbtrl("resume", "second", "budget.env_steps_per_member=230", "--progress", "none").code == 0
    shutil.rmtree(file.parent)
    assert "missing   members/initial/snapshots/000000" in pbtrl("verify", "second").out


def test_killed_before_the_journal(pbtrl: Command, first: Path) -> None:
    """The copy alone does not make a directory look like a run that lost its journal."""
    run = Path("runs/second")
    assert pbtrl("train", "toy_quadratic", TOY, "init_from=first", "--name", "second", "--progress", "none").code == 0
    shutil.rmtree(run / "tb")
    for path in [*run.iterdir()]:
        if path.is_file() and path.name not in ("config.yaml", "config.resolved.yaml", "run.json", "LOCK"):
            path.unlink()
    for member in run.glob("members/m*"):
        shutil.rmtree(member)
    again = pbtrl("train", "toy_quadratic", TOY, "init_from=first", "--name", "second", "--progress", "none")
    assert again.code == 0, again.err
