"""From a config to the parts of a run: placement, header, strategy, and configs that cannot be built."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pbtrl.build import describe, determinism, factory, placement, rl, worker_entry
from pbtrl.build.trainables import trainable_builder
from pbtrl.config.load import config_from_json, load, parse, resolve, with_setting
from pbtrl.config.resume import merge_resume_config
from pbtrl.config.schema import Config
from pbtrl.core.messages import Assignment
from pbtrl.errors import ConfigError, RunError
from pbtrl.execution.inline import Inline
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.strategies.pbt import PBT
from pbtrl.system import cgroups, child_process
from pbtrl.trainables import builder as builder_module
from pbtrl.trainables import datasets
from tests.command import CART

TOY = """\
trainable: {name: quadratic}
budget: {env_steps_per_member: 100}
hparams: {h0: {prior: uniform, low: 0, high: 1}}
"""


def cart(*overrides: str) -> Config:
    return parse(CART, overrides=overrides)


def toy(*overrides: str) -> Config:
    return parse(TOY, overrides=overrides)


def machine(monkeypatch: pytest.MonkeyPatch, cores: int = 4, quota: float | None = None) -> None:
    monkeypatch.setattr(placement, "available_cores", lambda: list(range(cores)))
    monkeypatch.setattr(cgroups, "cpu_quota", lambda: quota)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)


# Who trains where


@pytest.mark.parametrize(
    ("size", "overrides", "cores", "groups"),
    [
        (1, [], [(0, 1, 2, 3)], [["m00"]]),
        (2, [], [(0, 1), (2, 3)], [["m00"], ["m01"]]),
        (3, [], [(0,), (1,), (2,)], [["m00"], ["m01"], ["m02"]]),
        (6, [], [(0,), (1,), (2,), (3,)], [["m00"], ["m01", "m02"], ["m03"], ["m04", "m05"]]),
        (3, ["execution.workers=2"], [(0, 1), (2, 3)], [["m00"], ["m01", "m02"]]),
        (5, ["execution.workers=5"], [(0,), (1,), (2,), (3,), (0,)], [["m00"], ["m01"], ["m02"], ["m03"], ["m04"]]),
        (6, ["execution.cohort=4"], [(0, 1), (2, 3)], [["m00", "m01", "m02", "m03"], ["m04", "m05"]]),
        (3, ["execution.cohort=3"], [(0, 1, 2, 3)], [["m00", "m01", "m02"]]),
        (2, ["execution.backend=inline"], [(0, 1, 2, 3)], [["m00", "m01"]]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("four_cores")
def test_every_member_has_one_worker(size, overrides, cores, groups):
    config = toy(f"population.size={size}", *overrides)
    members = [f"m{i:02d}" for i in range(size)]
    shares = placement.worker_shares(config, members)
    assert [share.cores for share in shares] == cores
    assert [share.threads for share in shares] == [len(own) for own in cores]
    assert [group for share in shares for group in share.groups] == groups
    assert len(shares) == placement.worker_count(config)


@pytest.mark.parametrize(
    ("quota", "size", "overrides", "threads"),
    [
        (0.5, 2, [], [1]),
        (1.0, 2, [], [1]),
        (1.5, 3, [], [1, 1]),
        (3.0, 1, [], [3]),
        (3.0, 2, [], [1, 1]),
        (0.5, 2, ["execution.workers=2"], [1, 1]),
        (2.0, 4, ["execution.backend=inline"], [2]),
    ],
)
def test_workers_respect_cpu_quota_and_are_not_pinned(monkeypatch, quota, size, overrides, threads):
    """Containers that share a machine see all its cores; if each pinned its workers, all would crowd the first ones."""
    machine(monkeypatch, quota=quota)
    config = toy(f"population.size={size}", *overrides)
    shares = placement.worker_shares(config, [f"m{i:02d}" for i in range(size)])
    assert [share.threads for share in shares] == threads
    assert {share.cores for share in shares} == {(0, 1, 2, 3)}
    assert len(shares) == placement.worker_count(config)


@pytest.mark.parametrize(("cores", "quota", "usable"), [(4, 9.0, 4), (4, 3.2, 4), (4, 0.01, 1), (1, 2.0, 1)])
def test_smaller_of_affinity_and_quota_limits_the_cores(monkeypatch, cores, quota, usable):
    machine(monkeypatch, cores, quota)
    assert placement.usable_cores() == usable
    (share,) = placement.worker_shares(toy("population.size=1"), ["m00"])
    assert (share.cores, share.threads) == (tuple(range(cores)), usable)


LATER_TRIAL = Assignment("m07/000000", "m07", None, 0, 40, {"unroll_length": 9}, seed=1)
ONE_LENGTH = ["agent.unroll_mode=exact", "hparams={learning_rate: {prior: uniform, low: 0, high: 1}}"]


@pytest.mark.usefixtures("four_cores")
def test_members_with_updates_of_their_own_length_train_alone():
    """Trials that begin later too, which join the group of another one."""
    config = cart("agent.unroll_mode=exact", "execution.workers=2", "execution.backend=processes")
    shares = placement.worker_shares(config, ["a", "b", "c", "d"])
    assert [share.groups for share in shares] == [[["a"], ["c"]], [["b"], ["d"]]]
    assert rl.RLBuilder(config).structure(LATER_TRIAL) == "m07"


@pytest.mark.parametrize("overrides", [[], ONE_LENGTH], ids=["blocks", "fixed unrolls"])
@pytest.mark.usefixtures("four_cores")
def test_members_with_updates_of_one_length_train_together(overrides):
    config = cart(*overrides, "execution.workers=2", "execution.backend=processes")
    shares = placement.worker_shares(config, ["a", "b", "c", "d"])
    assert [share.groups for share in shares] == [[["a", "b"]], [["c", "d"]]]
    assert rl.RLBuilder(config).structure(LATER_TRIAL) is None


@pytest.mark.parametrize(
    ("acting", "workers"), [("inline", 4), ("actors, processes: 2", 2), ("actors, processes: 3", 1), ("hogwild", 4)]
)
@pytest.mark.usefixtures("four_cores")
def test_actor_processes_count_as_cores(acting, workers):
    config = cart("execution.backend=processes", f"acting={{mode: {acting}}}")
    assert placement.worker_count(config) == workers
    assert placement.worker_count(with_setting(config, "execution.workers", 3)) == 3


@pytest.mark.parametrize(
    ("size", "acting", "threads"), [(1, "inline", 4), (2, "inline", 1), (1, "actors, processes: 2", 1)]
)
@pytest.mark.usefixtures("four_cores")
def test_single_member_uses_all_cores(size, acting, threads):
    for backend in ("inline", "processes"):
        config = cart(f"population.size={size}", f"acting={{mode: {acting}}}", f"execution.backend={backend}")
        assert placement.torch_threads(config) == threads


def test_single_member_respects_cpu_quota(monkeypatch):
    machine(monkeypatch, quota=2.5)
    assert placement.torch_threads(cart("population.size=1")) == 3


def test_rounded_numbers_are_described():
    assert describe.describe_slices(cart()) == "240 env steps each"
    rounded = cart("strategy.ready={slice_steps: 250, burn_in: 300}", "budget.env_steps_per_member=730")
    assert describe.describe_slices(rounded) == (
        "280 env steps each, no copies before 320; in whole blocks of 40: "
        "budget.env_steps_per_member 730 to 760, ready.slice_steps 250 to 280, ready.burn_in 300 to 320"
    )
    assert describe.describe_slices(resolve(rounded)) == "280 env steps each, no copies before 320"
    never = toy("strategy={name: random_search, ready: {slice_steps: 10, burn_in: 20}}")
    assert describe.describe_slices(never) == "10 steps each"


def test_slices_of_trials_may_end_earlier_at_a_rung():
    assert describe.describe_slices(cart("strategy={name: asha, trials: 9}")) == "at most 40 env steps"


@pytest.mark.usefixtures("four_cores")
def test_placement_description():
    assert placement.describe_placement(cart()) == "4 members in this process, 4 envs each"
    assert placement.describe_placement(toy("population.size=1")) == "1 member on 1 worker"
    actors = cart("execution.backend=processes", "acting={mode: actors, processes: 2}")
    assert placement.describe_placement(actors) == "4 members on 2 workers, 4 envs each in 2 actors"
    spread = cart("execution.backend=ray", "acting={mode: actors, placement: spread}")
    assert placement.describe_placement(spread) == "4 members on Ray, 4 envs each in 1 actor on any node"
    hogwild = cart("acting={mode: hogwild}")
    assert placement.describe_placement(hogwild) == "4 members in this process, 4 envs each in 1 hogwild process"
    assert placement.describe_placement(toy("population.size=9")) == "9 members on 4 workers"
    assert placement.describe_placement(toy("execution.backend=ray")).endswith(" on Ray")


@pytest.mark.parametrize(
    ("overrides", "room", "groups"),
    [
        ([], 2, [[["m00", "m01"]], [["m02", "m03"]]]),
        ([], 9, [[["m00"]], [["m01"]], [["m02"]], [["m03"]]]),
        ([], 0, [[["m00", "m01", "m02", "m03"]]]),
        (["execution.workers=2"], 9, [[["m00", "m01"]], [["m02", "m03"]]]),
        (["execution.cohort=1"], 3, [[["m00"], ["m03"]], [["m01"]], [["m02"]]]),
    ],
)
def test_members_are_placed_on_a_cluster(overrides: list[str], room: int, groups: list[list[list[str]]]):
    config = toy("population.size=4", "execution.backend=ray", *overrides)
    assert placement.cluster_groups(config, ["m00", "m01", "m02", "m03"], room) == groups


def test_torch_threads_on_a_cluster_are_the_reserved_cores():
    overrides = ["execution.backend=ray", "execution.cores_per_worker=3"]
    assert placement.torch_threads(cart("population.size=1", *overrides)) == 3
    assert placement.torch_threads(cart(*overrides)) == 1


# What a run is made of


@pytest.mark.parametrize(("mode", "expected"), [("sync", True), ("async", False)])
def test_training_is_deterministic_where_the_header_says_so(monkeypatch: pytest.MonkeyPatch, mode: str, expected: bool):
    """And torch's compiler is not imported, which would take each worker two seconds and 70 MiB."""
    monkeypatch.setitem(sys.modules, "torch._inductor", None)
    before = torch.get_deterministic_debug_mode()
    rl.rl_builder(cart(f"population.mode={mode}")).cohort(["m00"], 1).close()
    result = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_deterministic_debug_mode(before)
    assert result == (expected, False)


def test_header_has_what_readers_need():
    rounded = "budget.env_steps_per_member=701"
    result = factory.make_header(cart(rounded), "cart")
    assert (result.horizon, result.size, result.budget, result.unit) == (720, 4, 2880, "env_steps")
    assert (result.rule.window, result.rule.min_episodes, result.rule.share, result.rule.cut_episodes) == (
        20,
        1,
        0.5,
        True,
    )
    assert result.hyperparameters == ("learning_rate", "unroll_length")
    assert result.deterministic == determinism.DETERMINISTIC
    assert factory.make_header(cart("env.id=ALE/Pong-v5"), "pong").frames_per_step == 4
    assert "population.mode: async" in factory.make_header(cart("population.mode=async"), "cart").deterministic
    assert "between_slices: continue" in factory.make_header(cart("env.between_slices=continue"), "cart").deterministic
    for acting, message in (
        ("hogwild", determinism.DETERMINISTIC),
        ("actors", "no, because actors act with whatever weights are newest (acting.mode: actors)"),
        ("hogwild, processes: 2", "no, because processes change the weights without locks (acting.mode: hogwild)"),
    ):
        assert factory.make_header(cart(f"acting={{mode: {acting}}}"), "cart").deterministic == message
    assert result.bounds == {"": {"learning_rate": (1e-4, 1e-2), "unroll_length": (5, 10)}}
    for still in ("strategy.name=random_search", "strategy.explore.method=none"):
        assert factory.make_header(cart(still), "cart").bounds == {}
    evaluated = factory.make_header(cart("fitness={source: evaluation, episodes: 5}"), "cart").rule
    assert (evaluated.source, evaluated.min_episodes) == ("evaluation", 1)
    assert (factory.make_header(toy(), "toy").unit, factory.make_header(toy(), "toy").rule.min_episodes) == ("steps", 1)


@pytest.mark.parametrize(
    ("env", "agent", "unused"),
    [
        ("CartPole-v1", "vmpo", ["eps_mean", "eps_covariance"]),
        ("Pendulum-v1", "vmpo", ["eps_kl"]),
        ("CartPole-v1", "unreal", ["pixel_control_cost", "pixel_control_gamma"]),
        ("ALE/Pong-v5", "unreal", []),
    ],
)
def test_warning_for_hyperparameter_unused_in_env(env, agent, unused):
    names = ["eps_kl", "eps_mean", "eps_covariance"] if agent == "vmpo" else [
        "pixel_control_cost", "pixel_control_gamma", "reward_prediction_cost"
    ]  # fmt: skip
    searched = [f"hparams.{name}={{prior: uniform, low: 0.1, high: 0.2}}" for name in names]
    config = factory.prepare(cart(f"env.id={env}", f"agent={{name: {agent}}}", *searched))
    message = [f"hparams.{name} has no effect: {agent} does not use it in {env}" for name in unused]
    assert [line for line in factory.collect_warnings(config) if "no effect" in line] == message


def test_strategy_follows_the_config():
    config = cart(
        "strategy={ready: {slice_steps: 100, burn_in: 50}, exploit: {method: t_test, alpha: 0.01}, explore: {sd: 0.3}, "
        "copy: [weights]}",
        "population.reference_members=1",
    )
    result = factory.make_strategy(config)
    assert isinstance(result, PBT)
    assert (result.slice_steps, result.horizon, result.burn_in) == (120, 720, 80)
    assert (result.exploit.method, result.exploit.alpha, result.explore.sd) == ("t_test", 0.01, 0.3)
    assert (result.copy, result.synchronous, result.references) == (frozenset({"weights"}), True, 1)
    search = factory.make_strategy(cart("strategy={name: random_search}"))
    assert isinstance(search, PBT)
    assert (search.exploit.method, search.explore.method) == ("none", "none")


def test_limits():
    config = cart("budget.wall_clock=1m", "budget.until_fitness=9", "failure.max_restarts_per_member=5")
    result = factory.stop_criteria(config)
    assert (result.wall_clock, result.total_steps, result.until_fitness, result.max_attempts) == (60.0, None, 9.0, 5)
    assert result.synchronous
    assert not factory.stop_criteria(cart("population.mode=async")).synchronous


def test_shared_total_is_in_whole_blocks_of_every_member():
    """A member's share of 12,700 is 3,175, and its blocks have 40 steps. For a search over trials it is a cap."""
    config = cart("population.size=4", "budget={total_steps: 12_700}")
    assert factory.stop_criteria(config).total_steps == 4 * config.steps_per_member == 4 * 3200
    trials = cart(
        "population.size=4", "budget={total_steps: 12_700, env_steps_per_member: 400}", "strategy={name: asha}"
    )
    assert factory.stop_criteria(trials).total_steps == 12_700


def test_executor_creates_member_directories(tmp_path: Path):
    executor = factory.make_executor(cart(), RunDirectory(tmp_path))
    assert isinstance(executor, Inline)
    assert sorted(p.name for p in (tmp_path / "members").iterdir()) == ["m00", "m01", "m02", "m03"]
    executor.close()


def test_spec_reference_rebuilds_the_same_agent():
    mixed = factory.prepare(with_setting(load("mixed"), "env.backend", "gymnasium"))
    for name in ("impala", "vmpo"):
        own = rl.RLBuilder(mixed, name).spec
        result = own.origin.spec()
        assert (result.agent, result.block, result.live, result.structural) == (
            own.agent,
            own.block,
            own.live,
            own.structural,
        )
    alone = rl.RLBuilder(factory.prepare(cart())).spec
    assert alone.origin.spec().agent == alone.agent


def test_env_and_agent_descriptions():
    config = factory.prepare(cart())
    assert describe.describe_env(config) == "CartPole-v1, 4 -> 2 actions, gymnasium"
    assert describe.describe_agent(config).startswith("impala, mlp of ")
    assert describe.describe_agent(config).endswith("parameters, blocks of 10 steps (budget)")


# What cannot be built


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["env.id=Nothing-v9"], "config: env.id: Nothing-v9: no such env"),
        (["env.id=HalfCheetah-v5", "agent.network=shallow"], "config: agent.network: shallow cannot read observations"),
        (["env.id=ALE/Pong-v5", "agent.network=mlp"], "config: agent.network: mlp cannot read observations that are"),
    ],
)
def test_unfit_env_and_agent_are_one_line(overrides, message):
    with pytest.raises(ConfigError) as caught:
        factory.prepare(cart(*overrides))
    assert len(caught.value.messages) == 1
    assert caught.value.messages[0].startswith(message)


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("trainable={name: cubic}", "trainable.name: unknown trainable 'cubic'. Known: quadratic"),
        ("trainable={name: quadratic, depth: 3}", "trainable.depth: unknown key. Known: start, learning_rate, clamp"),
        ("trainable={name: quadratic, clampp: 1}", "trainable.clampp: unknown key. Did you mean 'clamp'?"),
        ("trainable={name: quadratic, learning_rate: fast}", "trainable.learning_rate: must be a number, not 'fast'"),
        ("trainable={name: quadratic, start: 3}", "trainable.start: "),
        ("trainable={name: 'tests.build.test_build:Needs'}", "trainable: needs size"),
        ("trainable={name: 'tests.build.test_build:Needs', size: x}", "trainable.size: must be an integer, not 'x'"),
        ("trainable={name: 'tests.build.test_build:Unresolved', size: x}", "trainable: cannot be made: TypeError: "),
    ],
)
def test_missing_trainable_or_wrong_keys(override, text):
    with pytest.raises(ConfigError) as caught:
        factory.prepare(toy(override))
    (message,) = caught.value.messages
    assert text in message


class Needs:
    """Trainable with a required key."""

    def __init__(self, rng, *, size: int) -> None:
        raise AssertionError


class Unresolved:
    """Trainable with an annotation that no module defines."""

    def __init__(self, rng, *, size: Nothing) -> None:  # noqa: F821
        raise TypeError("size")


CLASSIFIER = "trainable={name: classifier, data: digits}"


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["hparams={momentun: {prior: uniform, low: 0, high: 0.9}}"],
         "hparams.momentun: classifier has no such hyperparameter. Did you mean 'momentum'?"),
        (["hparams={lr: {prior: uniform, low: 0, high: 0.9}}"],
         "hparams.lr: classifier has no such hyperparameter. Did you mean 'learning_rate'?"),
        (["hparams={momentum: {prior: uniform, low: 0, high: 1}}"], "hparams.momentum: must be < 1, not 1.0"),
        (["hparams={momentum: {prior: uniform, low: 0.1, high: 0.9, bounds: [-1, 0.9]}}"],
         "hparams.momentum: must be >= 0, not -1"),
        (["hparams={shift: {prior: choice, values: [1, 1.5]}}"], "hparams.shift: must be an integer, not 1.5"),
        (["hparams={batch_size: {prior: choice, values: [16.0, 32.0]}}"],
         "hparams.batch_size: must be an integer, not 16.0"),
        (["hparams={batch_size: {prior: log_uniform, low: 16, high: 32}}"],
         "hparams.batch_size.prior: batch_size is an integer: use int_uniform, int_log_uniform or choice"),
        (["hparams={dropout: {prior: uniform, low: 0.1, high: 0.5, bounds: none}}"],
         "hparams.dropout.bounds: none is wider than dropout allows (>= 0): give [low, high]"),
        (["hparams={channels: {prior: choice, values: [8, 16]}}"],
         "hparams.channels: shapes the model, so weights cannot be copied: pbt needs it fixed under trainable"),
        (["hparams={channels: {prior: choice, values: [8, 9]}}", "strategy={name: random_search}"],
         "hparams.channels: must be a multiple of 4, not 9"),
        (["hparams={shift: {prior: int_uniform, low: 0, high: 2}}", "trainable.shift=1"],
         "trainable.shift: both fixed under trainable and searched under hparams: remove one"),
        (["trainable.data=cifar"], "trainable.data: must be digits or mnist1d, not 'cifar'"),
        (["trainable.label_noise=2"], "trainable.label_noise: must be <= 1, not 2"),
        (["trainable.chanels=8"], "trainable.chanels: unknown key. Did you mean 'channels'?"),
    ],
)  # fmt: skip
def test_hyperparameters_that_a_trainable_does_not_accept(overrides, text):
    empty = [] if any(o.startswith("hparams") for o in overrides) else ["hparams={}"]
    with pytest.raises(ConfigError) as caught:
        factory.prepare(toy(CLASSIFIER, *empty, *overrides))
    (message,) = caught.value.messages
    assert text in message


def test_structural_hyperparameters_can_be_searched_by_fresh_trials():
    channels = "hparams={channels: {prior: choice, values: [4, 8]}}"
    prepared = factory.prepare(toy(CLASSIFIER, channels, "strategy={name: random_search}"))
    builder = trainable_builder(prepared)
    first, second = (builder.make(np.random.default_rng(0), (("channels", n),)).state_dict() for n in (4, 8))
    assert first["network.head.weight"].shape == (10, 8)
    assert second["network.head.weight"].shape == (10, 16)


class Layered:
    """Trainable with two required keys, of which one is structural."""

    tunable = ("rate",)
    structural = ("layers",)

    def __init__(self, rng, *, layers: int, rate: float) -> None:
        self.weights = np.zeros(layers)

    def state_dict(self):
        return {"weights": self.weights}


NAME = "tests.build.test_build:Layered"
LAYERED = f"trainable={{name: '{NAME}', rate: 0.1}}"


def test_structural_hyperparameter_needs_no_default():
    search = ["hparams={layers: {prior: choice, values: [2, 8, 4]}}", "strategy={name: random_search}"]
    assert factory.snapshot_bytes(factory.prepare(toy(LAYERED, *search))) == 8 * 8  # the largest decides
    search[0] = "hparams={layers: {prior: int_uniform, low: 2, high: 9, bounds: none}}"
    assert factory.snapshot_bytes(factory.prepare(toy(LAYERED, *search))) == 9 * 8
    with pytest.raises(ConfigError, match="trainable: needs layers"):
        factory.prepare(toy(LAYERED, "hparams={}"))


def test_other_hyperparameter_needs_a_default():
    search = "hparams={rate: {prior: uniform, low: 0, high: 1}}"
    with pytest.raises(ConfigError, match=rf"hparams\.rate: needs a default in {NAME}, whose constructor gets no"):
        factory.prepare(toy(f"trainable={{name: '{NAME}', layers: 2}}", search))


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ([np.zeros(2)], "must be a dictionary of numpy arrays, not list"),
        ({"steps": 3}, "steps must be a numpy array, not int"),
        ({"weights": torch.zeros(2)}, "weights must be a numpy array, not Tensor"),
        ({"names": np.array(["a"])}, "names must be an array of numbers or booleans, not of str32"),
        ({"weights": np.zeros(2), "steps": np.array([3]), "done": np.array([True])}, None),
    ],
)
def test_state_that_no_snapshot_can_hold_is_refused_at_the_start(monkeypatch, state, text):
    monkeypatch.setattr(Layered, "state_dict", lambda self: state)
    config = toy(LAYERED, "hparams={}", "trainable.layers=2")
    if text is None:
        assert factory.prepare(config).trainable == config.trainable
        return
    with pytest.raises(ConfigError) as caught:
        factory.prepare(config)
    assert caught.value.messages == (f"config: trainable.name: state_dict of {NAME}: {text}",)


def test_searched_shape_must_be_valid_between_its_ends():
    """Every multiple of 4 can be built, so the ends 8 and 32 say nothing about 9."""
    channels = "hparams={channels: {prior: int_uniform, low: 8, high: 32}}"
    with pytest.raises(ConfigError, match=r"hparams\.channels: must be a multiple of 4, not 9"):
        factory.prepare(toy(CLASSIFIER, channels, "strategy={name: random_search}"))


def test_keys_of_a_trainable_are_numbers_of_the_annotated_type():
    builder = trainable_builder(toy("trainable={name: gan, critic_steps: 2.0}", "hparams={}"))
    assert {name: type(value) for name, value in builder.kwargs.items()} == {"critic_steps": int}
    builder = trainable_builder(toy("trainable={name: boosting, max_features: 1, task: iris}", "hparams={}"))
    assert (type(builder.kwargs["max_features"]), builder.kwargs["task"]) == (float, "iris")


def test_missing_package_of_a_trainable_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    datasets.load.cache_clear()
    builder_module._prepared.cache_clear()
    text = 'trainable.data: digits needs scikit-learn, which is not installed: pip install "pbtrl[trainables]"'
    with pytest.raises(ConfigError) as caught:
        factory.prepare(toy(CLASSIFIER, "hparams={}"))
    assert caught.value.messages == (f"config: {text}",)


def test_env_backend_is_resolved():
    prepared = factory.prepare(cart("env.backend=auto"))
    assert prepared.env is not None
    assert prepared.env.backend in ("gymnasium", "envpool")
    assert config_from_json(prepared.to_json()) == prepared


# Actors on other nodes


def test_only_a_workers_actors_are_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tools such as bench measure the same config with processes."""
    config = cart("execution.backend=ray", "acting={mode: actors, placement: spread, processes: 3}")
    assert config.spread_actors == 3
    assert worker_entry.make_builder(config.to_json())._wire is not None
    assert rl.rl_builder(config)._wire is None
    local = cart("execution.backend=ray", "acting={mode: actors, processes: 3}")
    assert local.spread_actors == toy().spread_actors == 0
    assert worker_entry.make_builder(local.to_json())._wire is None


def test_placement_of_actors_may_change_on_resume() -> None:
    """It goes with the back end; how many there are does not."""
    stored = resolve(cart("execution.backend=ray", "acting={mode: actors, placement: spread, processes: 3}"))
    merged = merge_resume_config(stored, cart("acting={mode: actors, processes: 3}"))
    assert merged.acting == cart("acting={mode: actors, processes: 3}").acting
    assert merged.execution.backend != "ray"
    with pytest.raises(
        RunError, match=r"cannot change on resume: acting.processes \(3 -> 2\). Only budget.* and acting"
    ):
        merge_resume_config(stored, cart("acting={mode: actors, processes: 2}"))


def test_fewer_steps_on_resume_keep_the_other_limits() -> None:
    stored = resolve(toy("budget.env_steps_per_member=200"))
    merged = merge_resume_config(stored, toy("budget={env_steps_per_member: 100, wall_clock: 1h, until_fitness: 5}"))
    assert merged.budget == stored.budget.model_copy(update={"wall_clock": 3600.0, "until_fitness": 5.0})


def test_envs_time_out_where_somebody_replaces_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a process that multiprocessing has not started, such as a worker on Ray."""
    limits: list[float] = []
    monkeypatch.setattr(child_process, "_supervised", False)
    monkeypatch.setattr(rl.envs, "with_step_timeout", lambda vector, seconds: limits.append(seconds) or vector)
    builder = rl.RLBuilder(cart("failure.env_step_timeout=7s"))
    builder._maker(training=True)([1], 1).close()
    assert limits == []
    child_process.declare_supervised()
    builder._maker(training=True)([1], 1).close()
    assert limits == [7.0]
