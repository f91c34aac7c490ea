"""Runs of several agents: reproducibility, members that change their agent, and every command on such runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pbtrl.build import evaluators, factory, rl
from pbtrl.config.load import check, load, parse
from pbtrl.config.yaml_source import ConfigSource
from pbtrl.core.messages import Assignment
from pbtrl.errors import ConfigError, SnapshotError
from pbtrl.storage.journal import digest
from pbtrl.storage.snapshot_store import SnapshotStore
from tests.command import Command, journal, kinds, weights
from tests.training.test_session import CONTINUE, signalled

MIXED = """\
env: {id: CartPole-v1, num_envs: 4, backend: gymnasium, between_slices: reset}
seed: 3
population: {mix: {impala: 2, a3c: 1, vmpo: 1}, mode: sync}
agents:
  impala: {hidden: [16], hparams: {rho_bar: {prior: uniform, low: 0.5, high: 2}}}
  a3c: {hidden: [8]}
  vmpo: {hidden: [16], hparams: {target_period: {prior: int_uniform, low: 1, high: 4}}}
execution: {backend: inline}
budget: {env_steps_per_member: 960}
hparams:
  learning_rate: {prior: log_uniform, low: 1e-4, high: 1e-2}
  unroll_length: {prior: int_uniform, low: 5, high: 10}
fitness: {window_episodes: 20, min_episodes: 1}
strategy: {ready: {slice_steps: 240}}
snapshots: {keep_last: 9}
final: {candidates: 2, selection_episodes: 2, episodes: 3}
"""
"""Four generations; m00 and m01 are impala, m02 is a3c, m03 is vmpo."""

ACROSS = "strategy.exploit.across_agents=true"
OWN = {"impala": "rho_bar", "vmpo": "target_period"}
DEALT = ["impala", "impala", "a3c", "vmpo"]


@pytest.fixture
def mixed(pbtrl: Command) -> Command:
    Path("mixed.yaml").write_text(MIXED)
    return pbtrl


def train(mixed: Command, name: str, *overrides: str) -> Path:
    assert mixed("train", "mixed.yaml", "--name", name, *overrides).code == 0
    return Path("runs") / name


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def finished(mixed: Command, kept: Path) -> Callable[..., Path]:
    """Give a copy of the finished run `a`, which is trained once per set of overrides."""

    def copy(*overrides: str) -> Path:
        run, original = Path("runs/a"), kept / "-".join(["a", *overrides])
        if original.exists():
            return Path(shutil.copytree(original, run))
        train(mixed, "a", *overrides)
        shutil.copytree(run, original)
        return run

    return copy


def canonical(run: Path) -> tuple[str, dict[str, str]]:
    return digest(journal(run)), weights(run)


def assigned(run: Path, member: str) -> list[dict[str, Any]]:
    decisions = [line for line in journal(run) if line["kind"] == "decision"]
    return [a for line in decisions for a in line["assignments"] if a["member"] == member]


def agents(run: Path, member: str) -> list[str]:
    """Agent of a member in each of its slices."""
    return [a["hyperparameters"]["agent"] for a in assigned(run, member)]


PPO = """{hidden: [16], epochs: 2, hparams: {
  minibatches: {prior: choice, values: [2, 5]}, clip: {prior: uniform, low: 0.1, high: 0.3}
}}"""
"""Blocks are of 10 steps of 4 envs."""


@pytest.mark.parametrize("across", [[], [ACROSS]], ids=["within", "across"])
def test_ppo_mixes_with_the_others(mixed: Command, across):
    """Its members differ in their minibatches, and how cohorts are formed changes nothing."""
    mix = [f"agents.ppo={PPO}", "population.mix={impala: 1, a3c: 1, vmpo: 1, ppo: 3}", *across]
    if not across:  # a single member of an agent has nobody to copy
        mix.append("strategy.exploit.method=none")
    run = train(mixed, "together", *mix)
    assert canonical(train(mixed, "apart", "execution.cohort=1", *mix)) == canonical(run)
    result = {a["hyperparameters"]["minibatches"] for m in ("m03", "m04", "m05") for a in assigned(run, m)[:1]}
    assert result == {2, 5}


# The same journal


@pytest.mark.parametrize("across", [[], [ACROSS]], ids=["within", "across"])
def test_executor_and_stops_change_nothing(mixed: Command, monkeypatch, across):
    expected = canonical(train(mixed, "inline", *across))
    processes = ["execution.backend=processes", "execution.workers=2"]
    assert canonical(train(mixed, "workers", *processes, *across)) == expected
    assert canonical(train(mixed, "apart", "execution.cohort=1", *across)) == expected
    for report in (2, 7):
        with signalled(monkeypatch, 2, report):
            assert mixed("train", "mixed.yaml", "--name", f"stopped{report}", *across).code == 130
        assert mixed("resume", f"stopped{report}").code == 0
        assert canonical(Path(f"runs/stopped{report}")) == expected


def test_members_keep_their_agent(mixed: Command, finished: Callable[..., Path]):
    run = finished()
    assert [set(agents(run, f"m0{i}")) for i in range(4)] == [{agent} for agent in DEALT]
    copies = mixed("lineage", "a", "--json").json["copies"]
    assert copies
    assert {(c["member"], c["donor"]) for c in copies} <= {("m00", "m01"), ("m01", "m00")}


def test_stopped_slices_of_continuing_envs_finish_later(mixed: Command, monkeypatch):
    with signalled(monkeypatch, 2, report=3):
        assert mixed("train", "mixed.yaml", "--name", "a", *CONTINUE, ACROSS).code == 130
    assert mixed("resume", "a").code == 0
    members = mixed("status", "a", "--json").json["members"]
    assert [m["env_steps"] for m in members] == [960] * 4
    assert all(OWN.get(m["hyperparameters"]["agent"], "agent") in m["hyperparameters"] for m in members)
    assert kinds(Path("runs/a"))[-1] == "finish"


# A member that becomes another agent


def test_across_agents_a_changed_member_trains_and_is_evaluated(mixed: Command, finished: Callable[..., Path]):
    run = finished(ACROSS)
    result = {m: agents(run, m) for m in ("m00", "m01", "m02", "m03")}
    changed = [m for m, kind in result.items() if kind[0] != kind[-1] and kind[-1] == kind[-2]]
    assert changed, result
    member = changed[0]
    before, after = result[member][0], result[member][-1]
    slices = assigned(run, member)
    first = next(i for i, kind in enumerate(result[member]) if kind == after)
    donor = slices[first]["donor"]
    assert slices[first]["parent"].startswith(donor)
    assert slices[first + 1]["parent"] == slices[first]["id"]  # goes on with what it made of it
    reports = {line["assignment"]: line for line in journal(run) if line["kind"] == "report"}
    for a in slices:
        agent, used = a["hyperparameters"]["agent"], reports[a["id"]]["hyperparameters"]
        assert list(used) == list(a["hyperparameters"])
        assert used["agent"] == agent
        assert all((own in used) == (kind == agent) for kind, own in OWN.items())
        tensors, _ = SnapshotStore(run / "members").load(a["id"])
        assert ("target" in tensors) == (agent == "vmpo")
    steps = reports[slices[first]["id"]]["step"] - slices[first]["start"]
    assert (steps, mixed("status", "a", "--json").json["members"][int(member[1:])]["env_steps"]) == (240, 960)
    score = mixed("eval", "a", "--member", member, "--episodes", 2, "--json").json
    assert (score["snapshot"], score["episodes"]) == (slices[-1]["id"], 2)
    copies = mixed("lineage", "a", "--json").json["copies"]
    (copy,) = [c for c in copies if c["member"] == member and c["env_steps"] == slices[first]["start"]]
    assert [copy[f"hyperparameters_{when}"]["agent"] for when in ("before", "after")] == [before, after]
    assert f"agent {before} -> {after}" in mixed("lineage", "a").out


# What the commands say


def test_status_names_every_agent_and_hyperparameter(mixed: Command, finished: Callable[..., Path]):
    finished()
    result = mixed("status", "a", "--json").json["members"]
    assert [m["hyperparameters"]["agent"] for m in result] == DEALT
    titles, *rows = mixed("status", "a").out.splitlines()[1:6]
    assert titles.split()[4:] == ["agent", "learning_rate", "unroll_length", "rho_bar", "target_period"]
    assert {row.split()[0]: row.split()[4] for row in rows} == dict(
        zip(["m00", "m01", "m02", "m03"], DEALT, strict=True)
    )
    assert [row.split()[-2:] for row in rows if " a3c " in row] == [["-", "-"]]


def test_mixed_snapshots_are_evaluated_as_each_alone(mixed: Command, finished: Callable[..., Path]):
    run = finished()
    together = mixed("eval", "a", "--member", "all", "--episodes", 4, "--json").json
    alone = [mixed("eval", "a", "--member", f"m0{i}", "--episodes", 4, "--json").json for i in range(4)]
    assert together == alone
    assert [score["agent"] for score in together] == list(DEALT)
    best = json.loads((run / "best.json").read_text())
    assert best["hyperparameters"]["agent"] == DEALT[int(best["member"][1:])]
    assert mixed("eval", "a", "--json").json["snapshot"] == best["snapshot"]


def test_snapshot_of_an_unconfigured_agent_is_refused():
    with pytest.raises(SnapshotError, match="an agent that the config does not have: dqn"):
        evaluators.make_evaluator(parse(MIXED))([{}], [{"agent": "dqn"}], episodes=1, seed=1)


def test_tensorboard_shows_members_per_agent(finished: Callable[..., Path]):
    run = finished(ACROSS)
    events = EventAccumulator(str(run / "tb" / "population")).Reload()
    counts = {a: [e.value for e in events.Scalars(f"population/members/{a}")] for a in ("impala", "a3c", "vmpo")}
    assert [c[0] for c in counts.values()] == [2, 1, 1]
    assert [sum(now) for now in zip(*counts.values(), strict=True)] == [4] * 4
    last = [agents(run, f"m0{i}")[-1] for i in range(4)]
    assert {a: c[-1] for a, c in counts.items()} == {a: last.count(a) for a in counts}


def test_opening_and_plain_lines_show_the_mix(mixed: Command):
    out = mixed("train", "mixed.yaml", "--name", "a", "--progress", "plain").out
    assert (
        "agent      2 impala: impala, mlp of 211 parameters, blocks of 10 steps (budget)\n           1 a3c: a3c" in out
    )
    assert "  2 impala, 1 a3c, 1 vmpo\n" in out
    lines = mixed("train", "mixed.yaml", "--name", "b", "--progress", "json").out.splitlines()
    progress = [line for line in map(json.loads, lines) if line["kind"] == "progress"]
    assert progress[-1]["agents"] == {"impala": 2, "a3c": 1, "vmpo": 1}


def test_bench_measures_all_agents(mixed: Command):
    result = mixed("bench", "mixed.yaml", "execution.workers=1", "--seconds", 0.2, "--json").json
    assert (result["members"], result["workers"]) == (4, 1)
    assert result["env_steps_per_s"] > 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["strategy={name: random_search, ready: {slice_steps: 240}}"],
        ["fitness.source=evaluation", "fitness.episodes=2", ACROSS],
        ["population.reference_members=1", ACROSS],
        ["population.mode=async", "env.between_slices=continue", "strategy.explore.when=always"],
    ],
    ids=["random search", "evaluation", "references", "async"],
)
def test_other_strategies_and_fitness_sources(mixed: Command, overrides: list[str]):
    run = train(mixed, "a", *overrides)
    assert [m["env_steps"] for m in mixed("status", "a", "--json").json["members"]] == [960] * 4
    if "random" in overrides[0]:
        for i in range(4):
            first, *rest = (a["hyperparameters"] for a in assigned(run, f"m0{i}"))
            assert rest == [first] * 3
    if "evaluation" in overrides[0]:
        assert all(len(line["evaluation"]) == 2 for line in journal(run) if line["kind"] == "report")
    if "reference" in overrides[0]:
        assert set(agents(run, "m00")) == {"impala"}
        assert not any(a["donor"] for a in assigned(run, "m00"))


def test_mix_cannot_change_on_resume(mixed: Command, finished: Callable[..., Path]):
    finished()
    for overrides, message in (
        (["population.mix.vmpo=2", "population.size=5"], "population.mix.vmpo (1 -> 2), population.size (4 -> 5)"),
        (["agents.a3c.hidden=[9]"], "agents.a3c.hidden ([8] -> [9])"),
    ):
        assert f"cannot change on resume: {message}." in mixed("resume", "a", *overrides).err
    assert mixed("resume", "a", "budget.env_steps_per_member=1200").code == 0
    assert mixed("train", "mixed.yaml", "--name", "a", "--if-exists", "resume").code == 0


# What is built


def test_every_unfit_agent_is_named():
    source = ConfigSource(MIXED, overrides=["agents.a3c.network=shallow", "agents.vmpo.network=deep"])
    with pytest.raises(ConfigError) as caught:
        factory.prepare(check(source), source)
    first, second = caught.value.messages
    assert first.startswith("override 'agents.a3c.network=shallow': shallow cannot read observations")
    assert second.startswith("override 'agents.vmpo.network=deep': deep cannot read observations")


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["env.id=tests.faulty_envs:tuples"],
            "override 'env.id=tests.faulty_envs:tuples': tests.faulty_envs:tuples: "
            "actions of type Tuple are not supported",
        ),
        (
            ["env.id=tests.faulty_envs:unbounded", "agents.vmpo.actions=squash"],
            "override 'agents.vmpo.actions=squash': squash needs finite",
        ),
    ],
)
def test_unsupported_actions_are_one_error(overrides, text):
    """Whether no agent or only one agent cannot take them."""
    source = ConfigSource(MIXED, overrides=overrides)
    with pytest.raises(ConfigError) as caught:
        factory.prepare(check(source), source)
    (message,) = caught.value.messages
    assert message.startswith(text)


def test_cohort_has_one_agent_and_exact_members_train_alone():
    config = factory.prepare(load("mixed"))
    made = rl.MixedBuilder(config)
    first = factory.make_strategy(config).decide(factory.make_header(config, "a").population())
    result = [made.structure(a) for a in first]
    assert result == [*[("impala", None)] * 3, ("a3c", "m03"), ("a3c", "m04"), *[("vmpo", None)] * 3]
    cohort = made.cohort(["m05", "m06"], 1, result[5])
    assert cohort.members == ("m05", "m06")


def test_report_names_the_agent_that_trained():
    """Not the assigned one."""
    config = factory.prepare(parse(MIXED))
    cohort = rl.MixedBuilder(config).cohort(["m00"], 1, ("impala", None))
    cohort.init(0, seed=1)
    cohort.begin([Assignment("m00/000000", "m00", None, 0, 40, {"agent": "vmpo", "learning_rate": 0.5}, seed=1)])
    while not cohort.advance():
        pass
    assert cohort.outcome(0).hyperparameters == {"agent": "impala", "learning_rate": 0.5}
    cohort.close()
