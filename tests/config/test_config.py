"""The config: defaults, exact error messages, overrides, round trips through JSON and YAML."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pbtrl.config.load import (
    config_from_dict,
    config_from_json,
    json_schema,
    load,
    parse,
    resolve,
    shipped,
    to_yaml,
    with_setting,
)
from pbtrl.config.schema import Config
from pbtrl.config.warnings import find_warnings
from pbtrl.errors import ConfigError

ROOT = Path(__file__).parents[2]
FIVE_LINES = """\
env: {id: CartPole-v1}
budget: {env_steps_per_member: 1e6}
hparams:
  learning_rate: {prior: log_uniform, low: 1e-4, high: 1e-2}
"""
HEAD = """\
env: {id: CartPole-v1}
budget: {env_steps_per_member: 1e6}
"""


def errors(text, *overrides):
    with pytest.raises(ConfigError) as error:
        parse(text, "c.yaml", overrides)
    return list(error.value.messages)


# --- what loads ---


def test_reference_config_loads_with_its_values():
    config = load(ROOT / "configs" / "reference.yaml")
    assert config.space.names == (
        "learning_rate",
        "entropy_cost",
        "unroll_length",
        "gamma",
        "rmsprop_epsilon",
    )
    assert (config.name, config.seed, config.label) == ("pong", 1, "pong")
    assert (config.block_length, config.block) == (50, 800)
    assert (config.steps_per_member, config.slice_steps, config.burn_in) == (3_000_000, 100_000, 200_000)
    assert config.curve_interval == 50_400  # 50,000 in whole blocks
    assert config.budget.wall_clock == 6 * 3600
    assert config.frames_per_step == 4
    assert list(find_warnings(config)) == []


def test_shipped_configs_load_by_name():
    assert "reference" in shipped()
    for name in shipped():
        assert load(name) == load(f"{name}.yaml")


def test_five_lines_are_enough():
    config = parse(FIVE_LINES)
    assert config.agent is not None
    assert config.agent.name == "impala"
    assert config.strategy.name == "pbt"
    assert (config.population.size, config.env.num_envs) == (4, 16)
    assert config.block_length == config.agent.unroll_length == 20
    assert config.steps_per_member == 1_000_000  # 3125 blocks
    assert config.slice_steps == 40_000  # a 25th
    assert config.label == "CartPole-v1"


def test_trainable_replaces_env_agent_and_acting():
    config = parse("trainable: {name: quadratic, noise: 0.1}\nbudget: {env_steps_per_member: 7}\n")
    assert config.trainable.kwargs == {"noise": 0.1}
    assert (config.env, config.agent, config.acting) == (None, None, None)
    assert (config.block, config.steps_per_member, config.unit) == (1, 7, "steps")


@pytest.mark.parametrize("text", ["3e6", "3_000_000", "3000000", "3.0e6", "3000000.0", "+3e+06", "0x2DC6C0"])
def test_integers_may_be_written_in_every_way(text):
    config = parse(HEAD, overrides=[f"budget.env_steps_per_member={text}"])
    assert config.budget.env_steps_per_member == 3_000_000
    assert type(config.budget.env_steps_per_member) is int


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), (".5", 0.5), ("1", 1.0), ("1_0.5", 10.5)])
def test_numbers_follow_yaml_1_2(text, value):
    assert parse(HEAD, overrides=[f"agent.learning_rate={text}"]).agent.learning_rate == value


@pytest.mark.parametrize("text", ["no", "off", "yes", "1:30", "2024-01-01", "1e", "0b1", "_1", "'1e-4'"])
def test_yaml_1_2_strings_stay_strings(text):
    config = parse(HEAD, overrides=[f"env.kwargs.x={text}"])
    assert config.env.kwargs == {"x": text.strip("'")}
    assert parse(to_yaml(config)).env.kwargs == config.env.kwargs


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("6h", 21600), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800), ("45", 45)],
)
def test_durations(text, seconds):
    assert parse(HEAD, overrides=[f"budget.wall_clock={text}"]).budget.wall_clock == seconds


def test_aliases_and_merge_keys_are_copies():
    text = (
        "env: {id: CartPole-v1}\nbudget: {total_steps: 4e5}\nhparams:\n"
        "  rho_bar: &r {prior: uniform, low: 0.5, high: 2}\n  c_bar: *r\n  pg_rho_bar: {<<: *r, high: 4}\n"
    )
    space = parse(text, overrides=["hparams.c_bar.high=3"]).space
    assert [space[name].high for name in space.names] == [2.0, 3.0, 4.0]
    assert errors(text, "hparams.c_bar.high=0") == [
        "override 'hparams.c_bar.high=0': needs low < high, not 0.5 and 0.0"
    ]


MIXED = """\
env: {id: CartPole-v1}
budget: {env_steps_per_member: 1e6}
population: {mix: {fast: 2, vmpo: 1}}
agents:
  fast: {name: a3c, entropy_cost: 0.02}
  vmpo: {hparams: {eps_kl: {prior: log_uniform, low: 1e-3, high: 1e-1}}}
hparams:
  learning_rate: {prior: log_uniform, low: 1e-4, high: 1e-2}
  unroll_length: {prior: int_uniform, low: 5, high: 30}
"""


def test_mix_counts_agents_with_shared_and_own_hparams():
    config = parse(MIXED)
    assert (config.population.size, config.agent) == (3, None)
    assert [config.space.initial_space(i).agent for i in range(3)] == ["fast", "fast", "vmpo"]
    assert config.space.names == ("learning_rate", "unroll_length", "eps_kl")
    assert {name: space.names for name, space in config.space.spaces.items()} == {
        "fast": ("learning_rate", "unroll_length"),
        "vmpo": ("learning_rate", "unroll_length", "eps_kl"),
    }
    fast, vmpo = config.per_agent_configs["fast"], config.per_agent_configs["vmpo"]
    assert (fast.agent.name, fast.agent.entropy_cost, fast.agents) == ("a3c", 0.02, None)
    assert (vmpo.agent.name, list(vmpo.hparams)) == ("vmpo", ["learning_rate", "unroll_length", "eps_kl"])


def test_size_of_a_mix_may_be_given():
    assert parse(MIXED, overrides=["population.size=3"]) == parse(MIXED)
    assert parse(MIXED).to_dict()["population"]["size"] == 3
    assert parse(MIXED, overrides=["budget={total_steps: 14400}"]).steps_per_member == 4800


def test_mix_slices_are_whole_blocks_of_every_agent():
    config = parse(MIXED, overrides=["agents.fast.block_length=40"])
    assert (config.per_agent_configs["fast"].block_length, config.per_agent_configs["vmpo"].block_length) == (40, 30)
    assert (config.block_length, config.block) == (120, 120 * 16)
    assert config.slice_steps % config.block == config.steps_per_member % config.block == 0
    resolved = resolve(config)
    assert [kind.agent.block_length for kind in resolved.per_agent_configs.values()] == [40, 30]
    for kind in resolved.per_agent_configs.values():
        for derived in ("slice_steps", "curve_interval", "burn_in", "steps_per_member"):
            assert getattr(kind, derived) == getattr(resolved, derived)


def test_unbounded_in_a_mix_uses_each_agents_limits():
    unroll = "hparams.unroll_length={prior: int_uniform, low: 5, high: 20, bounds: none}"
    space = parse(MIXED, overrides=[unroll, "agents.fast.block_length=64", "agents.vmpo.block_length=32"]).space
    assert [space.initial_space(i)["unroll_length"].limits for i in (0, 2)] == [(1, 64), (1, 32)]


def test_unbounded_uses_the_agents_limits():
    search = "{prior: uniform, low: 0.9, high: 0.99, bounds: none}"
    unroll = "{prior: int_uniform, low: 5, high: 20, bounds: none}"
    given_to_it = [f"hparams.lambda_={search}", f"hparams.unroll_length={unroll}", "agent.block_length=64"]
    space = parse(HEAD, overrides=given_to_it).space
    assert space["lambda_"].limits == (0.0, 1.0)
    assert space["unroll_length"].limits == (1, 64)


@pytest.mark.parametrize(
    ("dimension", "length"),
    [
        ("{prior: int_uniform, low: 5, high: 30}", 30),
        ("{prior: int_uniform, low: 5, high: 30, bounds: [1, 40]}", 40),
        ("{prior: choice, values: [5, 80, 20]}", 80),
    ],
)
def test_block_length_defaults_to_largest_unroll(dimension, length):
    config = parse(HEAD, overrides=[f"hparams.unroll_length={dimension}"])
    assert config.block_length == length
    assert config.block == 16 * length
    assert config.round_to_block(1) == config.round_to_block(16 * length) == 16 * length
    assert config.round_to_block(0) == 0
    assert config.round_to_block(16 * length + 1) == 32 * length


def test_total_budget_is_shared_and_smaller_one_counts():
    assert parse(HEAD, overrides=["budget={total_steps: 12800}"]).steps_per_member == 3200
    both = ["budget={total_steps: 12800, env_steps_per_member: 640}"]
    assert parse(HEAD, overrides=both).steps_per_member == 640


# --- what does not: the text is the interface ---

SEARCH = "hparams:\n  learning_rate: "
LIVE = (
    "learning_rate, entropy_cost, unroll_length, value_cost, gamma, lambda_, max_grad_norm, "
    "rmsprop_decay, rmsprop_epsilon, adam_epsilon, rho_bar, c_bar, pg_rho_bar, epochs, max_log_ratio"
)
TOP = (
    "name, seed, env, agent, agents, acting, trainable, population, execution, budget, hparams, fitness, strategy, "
    "snapshots, failure, final"
)
PRIORS = "uniform, log_uniform, one_minus_log_uniform, int_uniform, int_log_uniform, choice"


def test_workers_do_not_import_the_main_module():
    """So a script without a main guard trains once."""
    assert errors(HEAD, "env.id=__main__:make") == [
        "override 'env.id=__main__:make': worker processes do not import the main module: put the function into a "
        "module of its own"
    ]


BROKEN = [
    # unknown keys and names
    ("population: {sise: 4}", "3:14: population.sise: unknown key. Did you mean 'size'?"),
    ("populaton: {size: 4}", "3:1: populaton: unknown key. Did you mean 'population'?"),
    ("lr: 3e-4", "3:1: lr: unknown key. Did you mean 'agent.learning_rate'?"),
    ("num_envs: 8", "3:1: num_envs: unknown key. Did you mean 'env.num_envs'?"),
    ("zzz: 8", f"3:1: zzz: unknown key. Known: {TOP}"),
    ("agent: {name: impalla}", "3:15: agent.name: unknown agent 'impalla'. Did you mean 'impala'?"),
    ("agent: {lr: 1e-3}", "3:9: agent.lr: unknown key. Did you mean 'learning_rate'?"),
    ("strategy: {name: pbtt}", "3:18: strategy.name: unknown strategy 'pbtt'. Did you mean 'pbt'?"),
    (
        "strategy: {name: random_search, exploit: {}}",
        "3:33: strategy.exploit: unknown key. Known: name, ready",
    ),
    (
        SEARCH + "{prior: loguniform, low: 1e-4, high: 1e-2}",
        "4:26: hparams.learning_rate.prior: unknown prior 'loguniform'. Did you mean 'log_uniform'?",
    ),
    (
        SEARCH + "{prior: log_uniform, low: 1e-4, high: 1e-2, base: 10}",
        "4:62: hparams.learning_rate.base: unknown key. Known: prior, low, high, bounds",
    ),
    (
        "hparams:\n  lr: {prior: uniform, low: 0, high: 1}",
        "4:3: hparams.lr: impala has no such hyperparameter. Did you mean 'learning_rate'?",
    ),
    (
        "hparams:\n  network: {prior: choice, values: [mlp, shallow]}",
        f"4:3: hparams.network: fixed for a run. What can be searched: {LIVE}",
    ),
    # values of the wrong kind
    ("population: {size: true}", "3:20: population.size: must be an integer, not true"),
    ("population: {size: 2.5}", "3:20: population.size: must be an integer, not 2.5"),
    ("population: {size: '4'}", "3:20: population.size: must be an integer, not '4'"),
    ("population: {size: 0}", "3:20: population.size: must be >= 1, not 0"),
    ("population: 4", "3:13: population: must be a section of keys, not 4"),
    ("agent: {gamma: true}", "3:16: agent.gamma: must be a number, not true"),
    ("agent: {hidden: 64}", "3:17: agent.hidden: must be a list, not 64"),
    ("agent: {hidden: [64, wide]}", "3:22: agent.hidden.1: must be an integer, not 'wide'"),
    (
        "agent: {network: resnet}",
        "3:18: agent.network: must be auto, mlp, shallow, nature or deep, not 'resnet'",
    ),
    (
        "strategy: {exploit: {method: truncate}}",
        "3:30: strategy.exploit.method: must be truncation, t_test, binary_tournament or none, not "
        "'truncate'. Did you mean 'truncation'?",
    ),
    ("strategy: {exploit: {top: 1.5}}", "3:27: strategy.exploit.top: must be <= 1, not 1.5"),
    ("strategy: {explore: {factors: []}}", "3:31: strategy.explore.factors: needs at least 1 value"),
    ("strategy: {explore: {factors: [1.2, -1]}}", "3:37: strategy.explore.factors.1: must be > 0, not -1"),
    (
        "strategy: {copy: [weight]}",
        "3:19: strategy.copy.0: must be weights or hparams, not 'weight'. Did you mean 'weights'?",
    ),
    ("strategy: {copy: [weights, weights]}", "3:18: strategy.copy: names the same thing twice"),
    ("execution: {backend: ray}", "3:22: execution.backend: must be inline or processes, not 'ray'"),
    ("execution: {workers: 0}", "3:22: execution.workers: must be auto or an integer >= 1, not 0"),
    ("execution: {device: cuda}", "3:21: execution.device: must be cpu, not 'cuda'"),
    (
        "acting: {mode: actor}",
        "3:16: acting.mode: must be inline, actors or hogwild, not 'actor'. Did you mean 'actors'?",
    ),
    ("acting: {mode: actors, processes: 0}", "3:35: acting.processes: must be >= 1, not 0"),
    ("acting: {mode: actors, replay: 1}", "3:32: acting.replay: must be < 1, not 1"),
    ("acting: {mode: actors, replay: -0.5}", "3:32: acting.replay: must be >= 0, not -0.5"),
    ("name: a/b", "3:7: name: must be a folder's name of letters, digits, '.', '_' and '-', at most 64, not 'a/b'"),
    ("seed: .inf", "3:7: seed: must be an integer, not inf"),
    ("seed: -1", "3:7: seed: must be >= 0, not -1"),
    # search dimensions
    (
        SEARCH + "{prior: log_uniform, low: 0, high: 1}",
        "4:44: hparams.learning_rate.low: log_uniform needs low > 0",
    ),
    (
        SEARCH + "{prior: log_uniform, low: 1e-2, high: 1e-3}",
        "4:44: hparams.learning_rate.low: needs low < high, not 0.01 and 0.001",
    ),
    (SEARCH + "{prior: log_uniform, low: 1e-4}", "4:3: hparams.learning_rate.high: missing"),
    (
        SEARCH + "{low: 1e-4, high: 1e-2}",
        f"4:3: hparams.learning_rate.prior: missing. Known: {PRIORS}",
    ),
    (SEARCH + "1e-4", "4:18: hparams.learning_rate: must be a section of keys, not 0.0001"),
    (
        SEARCH + "{prior: log_uniform, low: 1e-4, high: 1e-2, bounds: [1e-3, 1]}",
        "4:70: hparams.learning_rate.bounds: bounds [0.001, 1] must contain the prior's range, [0.0001, 0.01]",
    ),
    (
        SEARCH + "{prior: log_uniform, low: 1e-4, high: 1e-2, bounds: wide}",
        "4:70: hparams.learning_rate.bounds: must be none or [low, high], not 'wide'",
    ),
    (
        SEARCH + "{prior: uniform, low: 0, high: .inf}",
        "4:49: hparams.learning_rate.high: must be finite, not inf",
    ),
    (
        SEARCH + "{prior: choice, values: [1e-3]}",
        "4:42: hparams.learning_rate.values: choice needs at least 2 values",
    ),
    (
        SEARCH + "{prior: choice, values: [1e-3, big]}",
        "4:49: hparams.learning_rate.values.1: must be a number, not 'big'",
    ),
    (
        SEARCH + "{prior: choice, values: [1e-3, [1]]}",
        "4:42: hparams.learning_rate.values: must be a list of numbers, strings or true/false, not [0.001, [1]]",
    ),
    (
        "hparams:\n  gamma: {prior: one_minus_log_uniform, low: 0.9, high: 1}",
        "4:57: hparams.gamma.high: one_minus_log_uniform needs 0 < high < 1",
    ),
    # what people write who know another library, or another section
    (
        SEARCH + "{prior: log_uniform, min: 1e-4, high: 1e-2}",
        [
            "4:3: hparams.learning_rate.low: missing",
            "4:39: hparams.learning_rate.min: unknown key. Did you mean 'low'?",
        ],
    ),
    (SEARCH + "[1e-4, 1e-2]", "4:18: hparams.learning_rate: must be a section of keys, not [0.0001, 0.01]"),
    (
        SEARCH + "{prior: log_uniform, low: '1e-4', high: 1e-2}",
        "4:44: hparams.learning_rate.low: must be a number, not '1e-4'",
    ),
    (
        SEARCH + "{prior: log_uniform, low: 1e-4, high: 1e\u22122}",  # a minus sign from a web page
        "4:56: hparams.learning_rate.high: must be a number, not '1e\u22122'",
    ),
    (
        SEARCH + "{prior: log_uniform, low: 1e-4, high: 1e-2, bounds: [1]}",
        "4:70: hparams.learning_rate.bounds: must be none or [low, high], not [1]",
    ),
    ("hparams:\n- learning_rate", "4:1: hparams: must be a section of keys, not ['learning_rate']"),
    (
        "hparams:\n  unroll_length: {prior: int_uniform, low: 5.5, high: 20}",
        "4:44: hparams.unroll_length.low: must be an integer, not 5.5",
    ),
    ("strategy: pbt", "3:11: strategy: must be a section of keys, not 'pbt'"),
    ("strategy: {exploit: truncation}", "3:21: strategy.exploit: must be a section of keys, not 'truncation'"),
    ("strategy: {ready: {interval: 1000}}", "3:20: strategy.ready.interval: unknown key. Did you mean 'slice_steps'?"),
    ("strategy: {ready: {slice_steps: 0}}", "3:33: strategy.ready.slice_steps: must be >= 1, not 0"),
    ("strategy: {exploit: {bottom: 20}}", "3:30: strategy.exploit.bottom: must be <= 1, not 20"),
    ("strategy: {explore: {factors: 1.2}}", "3:31: strategy.explore.factors: must be a list, not 1.2"),
    ("population: {mode: asynchronous}", "3:20: population.mode: must be async or sync, not 'asynchronous'"),
    ("population: {size: 4, size: 8}", "3:23: population.size is given twice"),
    ("fitness: {metric: reward}", "3:19: fitness.metric: must be episode/return_mean, not 'reward'"),
    ("agent: impala", "3:8: agent: must be a section of keys, not 'impala'"),
    ("agent: {name: ppo}", "3:15: agent.name: unknown agent 'ppo'. Known: impala, a3c, vmpo, unreal, feudal"),
    ("agent: {optimiser: adam}", "3:9: agent.optimiser: unknown key. Did you mean 'optimizer'?"),
    ("agent: {passes: 2}", "3:9: agent.passes: unknown key. Did you mean 'epochs'?"),
    ("strategy: {ready: {every: 9}}", "3:20: strategy.ready.every: unknown key. Did you mean 'slice_steps'?"),
    ("wall_clock: 6h", "3:1: wall_clock: unknown key. Did you mean 'budget.wall_clock'?"),
    ("gamma: 0.99", "3:1: gamma: unknown key. Did you mean 'agent.gamma'?"),
    (
        "failure: {max_restarts: 3}",
        "3:11: failure.max_restarts: unknown key. Did you mean 'max_restarts_per_member'?",
    ),
    ("snapshots: {keep_last: 0}", "3:24: snapshots.keep_last: must be >= 1, not 0"),
    # settings seen together
    (
        "acting: {processes: 2}",
        "3:21: acting.processes: inline has no processes of its own: set mode to actors or hogwild",
    ),
    ("acting: {replay: 0.5}", "3:18: acting.replay: only mode actors can replay, not inline"),
    (
        "agent: {name: a3c}\nacting: {mode: actors, processes: 2}",
        "4:16: acting.mode: a3c does not correct for the lag of actors' policies: use impala, or mode inline or "
        "hogwild",
    ),
    (
        "population: {mix: {impala: 2, a3c: 2}}\nagents: {impala: {}, a3c: {}}\nacting: {mode: actors}",
        "5:16: acting.mode: a3c does not correct for the lag of actors' policies: use impala, or mode inline or "
        "hogwild",
    ),
    (
        "agent: {name: vmpo}\nacting: {mode: hogwild}",
        "4:16: acting.mode: vmpo learns more than weights, which cannot be shared without locks: use impala, "
        "a3c, unreal or feudal, or mode inline",
    ),
    ("agent: {gamma: 1.5}", "3:16: agent.gamma: must be in [0, 1], not 1.5"),
    ("agent: {epochs: 0}", "3:17: agent.epochs: must be >= 1, not 0"),
    ("agent: {core: lstm, core_units: 0}", "3:33: agent.core_units: must be >= 1, not 0"),
    ("agent: {hidden: [64, -3]}", "3:22: agent.hidden.1: must be >= 1, not -3"),
    ("agent: {log_std: 1000}", "3:18: agent.log_std: must be in [-10, 10], not 1000"),
    ("agent: {name: vmpo, temperature: 0}", "3:34: agent.temperature: must be >= 1e-08, not 0"),
    ("agent: {name: vmpo, alpha: -1}", "3:28: agent.alpha: must be >= 1e-08, not -1"),
    ("agent: {name: unreal, cell_size: 0}", "3:34: agent.cell_size: must be >= 1, not 0"),
    ("agent: {name: unreal, replay: -5}", "3:31: agent.replay: must be >= 1, not -5"),
    ("agent: {name: feudal, random_goals: 3}", "3:37: agent.random_goals: must be in [0, 1], not 3"),
    (
        "agent: {minibatches: 99}",
        "3:22: agent.minibatches: must be between 1 and env.num_envs (16), not 99",
    ),
    (
        SEARCH + "{prior: uniform, low: -1, high: 1}",
        "4:40: hparams.learning_rate.low: learning_rate must be in [0, 1e+06], not -1",
    ),
    (
        "hparams:\n  gamma: {prior: uniform, low: 0.9, high: 0.99, bounds: [0.5, 1.5]}",
        "4:63: hparams.gamma.bounds.1: gamma must be in [0, 1], not 1.5",
    ),
    (
        "hparams:\n  unroll_length: {prior: uniform, low: 5, high: 50}",
        "4:26: hparams.unroll_length.prior: unroll_length is an integer: use int_uniform, int_log_uniform or choice",
    ),
    (
        "hparams:\n  unroll_length: {prior: choice, values: [short, long]}",
        [
            "4:43: hparams.unroll_length.values.0: must be an integer, not 'short'",
            "4:50: hparams.unroll_length.values.1: must be an integer, not 'long'",
        ],
    ),
    (
        "hparams:\n  unroll_length: {prior: int_uniform, low: 0, high: 50}",
        "4:44: hparams.unroll_length.low: unroll_length must be >= 1, not 0",
    ),
    (
        "hparams:\n  unroll_length: {prior: int_uniform, low: 5, high: 50, bounds: none}",
        "4:65: hparams.unroll_length.bounds: without a bound needs agent.block_length",
    ),
    (
        "agent: {block_length: 20}\nhparams:\n  unroll_length: {prior: int_uniform, low: 5, high: 50}",
        "3:23: agent.block_length: block_length 20 is shorter than the largest unroll, 50",
    ),
    (
        "agent:\n  gamma: 0.9\nhparams:\n  gamma: {prior: uniform, low: 0.9, high: 0.99}",
        "4:3: agent.gamma: both fixed under agent and searched under hparams: remove one",
    ),
    (
        "population: {size: 2, reference_members: 3}",
        "3:42: population.reference_members: reference_members 3 is more than size 2",
    ),
    (
        "fitness: {window_episodes: 5}",
        "3:28: fitness.window_episodes: min_episodes 10 is more than window_episodes 5",
    ),
    (
        "strategy:\n  exploit:\n    bottom: 0.6\n    top: 0.5",
        "5:13: strategy.exploit.bottom: bottom 0.6 and top 0.5 are more than the whole population",
    ),
    (
        "strategy: {exploit: {method: t_test, episodes: 1}}",
        "3:48: strategy.exploit.episodes: t_test needs at least 2 episodes, not 1",
    ),
    (
        "fitness: {source: evaluation, episodes: 1}\nstrategy: {exploit: {method: t_test}}",
        "3:41: fitness.episodes: t_test needs at least 2 episodes of each member, not 1",
    ),
    ("trainable: {name: quadratic}", "1:1: env: not used with `trainable`: remove one of the two"),
    # YAML itself
    ("env: {id: Pong}", "3:1: env is given twice"),
    ("agent: {gamma: 0.9, gamma: 0.8}", "3:21: agent.gamma is given twice"),
    (
        "agent: {gamma: 0.9",
        "4:1: while parsing a flow mapping, expected ',' or '}', but got '<stream end>'",
    ),
    (
        "\tagent: 1",
        "3:1: while scanning for the next token, found character '\\t' that cannot start any token",
    ),
    ("1: 2", "3:1: a key must be text"),
    ("name: !!python/name:os.system x", "3:7: unknown tag 'tag:yaml.org,2002:python/name:os.system'"),
    ("agent: !!python/name:os.system {}", "3:8: unknown tag 'tag:yaml.org,2002:python/name:os.system'"),
    ("agent: &a {hidden: [*a]}", "3:8: an alias that contains itself"),
    ("---\na: 1", "3:1: expected a single document in the stream, but found another document"),
]


@pytest.mark.parametrize(("text", "expected"), BROKEN, ids=[text.replace("\n", " ") for text, _ in BROKEN])
def test_mistake_is_reported_with_position(text, expected):
    found = errors(f"{HEAD}{text}\n")
    assert found == [f"c.yaml:{line}" for line in ([expected] if isinstance(expected, str) else expected)]


SHARED = "learning_rate, entropy_cost, unroll_length, value_cost, gamma, lambda_, max_grad_norm, rmsprop_decay, "
MIXES = [
    ("population.size=4", "must be 3, what mix adds up to, or left out, not 4"),
    ("population.mix.vmpo=0", "must be >= 1, not 0"),
    ("population.mix={}", "needs at least 1 value"),
    ("population.mix={fast: 2, vmbo: 1}", ["population.mix.vmbo: no such entry of agents. Did you mean 'vmpo'?",
                                           "c.yaml:6:3: agents.vmpo: no member is one: count it in population.mix, "
                                           "or remove it"]),
    ("agents.slow={name: a3c}", "no member is one: count it in population.mix, or remove it"),
    ("agents.vmpo.name=vmbo", "unknown agent 'vmbo'. Did you mean 'vmpo'?"),
    ("agents.vmpo.eps_kl=0.1", "both fixed under agents.vmpo and searched under agents.vmpo.hparams: remove one"),
    ("agents.fast.learning_rate=0.1", "both fixed under agents.fast and searched under hparams: remove one"),
    ("agents.fast.gamma=2", "must be in [0, 1], not 2"),
    ("agents.fast.gamma=true", "must be a number, not true"),
    ("agents.fast.gama=0.9", "unknown key. Did you mean 'gamma'?"),
    ("agents.fast.minibatches=99", "must be between 1 and env.num_envs (16), not 99"),
    ("agents.fast.block_length=20", "block_length 20 is shorter than the largest unroll, 30"),
    ("agents.fast=3", "must be a section of keys, not 3"),
    ("agents.fast.hparams.eps_kl={prior: uniform, low: 0, high: 1}", "a3c has no such hyperparameter. Known: "
     + SHARED + "rmsprop_epsilon, adam_epsilon"),
    ("agents.fast.hparams.gamma={prior: uniform, low: 0, high: 2}",
     "agents.fast.hparams.gamma.high: gamma must be in [0, 1], not 2"),
    ("agents.fast.hparams.hidden={prior: choice, values: [1, 2]}",
     "fixed for a run. What can be searched: " + SHARED + "rmsprop_epsilon, adam_epsilon"),
    ("agents.vmpo.hparams.unroll_length={prior: int_uniform, low: 1, high: 2}",
     "searched both for all agents and for vmpo alone: remove one"),
    ("hparams.target_period={prior: int_uniform, low: 1, high: 9}",
     "fast has no such hyperparameter: search it under agents.vmpo.hparams"),
    ("hparams.lr={prior: uniform, low: 0, high: 1}",
     "no agent of the mix has such a hyperparameter. Did you mean 'learning_rate'?"),
    ("hparams.hidden={prior: choice, values: [1, 2]}",
     "fixed for a run. What can be searched: " + SHARED + "rmsprop_epsilon, adam_epsilon"),
    ("hparams.gamma={prior: uniform, low: 0, high: 2}", "hparams.gamma.high: gamma must be in [0, 1], not 2"),
    ("hparams.unroll_length.bounds=none", ["without a bound needs agents.fast.block_length",
                                           "without a bound needs agents.vmpo.block_length"]),
    ("agent={name: impala}", "not used with `agents`: remove one of the two"),
    ("strategy={copy: [weights], exploit: {across_agents: true}}", "strategy.exploit.across_agents: needs copy: "
     "[weights, hparams], because another agent can use neither without the other"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), MIXES, ids=[override for override, _ in MIXES])
def test_mistake_in_a_mix_is_reported_with_position(override, expected):
    said = [expected] if isinstance(expected, str) else sorted(expected)
    found = sorted(error.removeprefix(f"override '{override}': ") for error in errors(MIXED, override))
    assert found == said


MIX = "population: {mix: {impala: 1, vmpo: 1}}"
UNMIXED = [
    (
        "strategy: {exploit: {across_agents: true}}",
        "3:37: strategy.exploit.across_agents: needs several agents, which population.mix counts",
    ),
    (
        "agents: {vmpo: {}}",
        "3:1: agents: needs population.mix, which says how many members are each, as in `mix: {impala: 2, vmpo: 2}`",
    ),
    (
        MIX,
        "3:14: population.mix: counts entries of `agents`, which is missing, as in `agents: {impala: {}, vmpo: {}}`",
    ),
    (
        MIX + "\nagents: {impala:, vmpo:}\nhparams: {epochs: {prior: int_uniform, low: 1, high: 3}}",
        "5:11: hparams.epochs: vmpo has no such hyperparameter: search it under agents.impala.hparams",
    ),
    (
        "population: {mix: {x: 1, y: 1, z: 2}}\nagents: {x: {name: a3c}, y: {name: a3c}, z: {name: vmpo}}\n"
        "hparams: {eps_kl: {prior: uniform, low: 0, high: 1}}",
        "5:11: hparams.eps_kl: x and y have no such hyperparameter: search it under agents.z.hparams",
    ),
    (
        "population: {mix: {fast: 1}}\nagents: {fast: {}}",
        "4:10: agents.fast.name: unknown agent 'fast'. Known: impala, a3c, vmpo, unreal, feudal",
    ),
    (MIX + "\nagents: {impala: [1], vmpo: {}}", "4:18: agents.impala: must be a section of keys, not [1]"),
]


@pytest.mark.parametrize(("text", "expected"), UNMIXED)
def test_incomplete_mix_is_refused(text, expected):
    assert errors(f"{HEAD}{text}\n") == [f"c.yaml:{expected}"]


def test_trainable_with_a_mix_is_refused():
    head = "trainable: {name: quadratic}\nbudget: {env_steps_per_member: 7}\n"
    assert errors(f"{head}hparams: {{agent: {{prior: uniform, low: 0, high: 1}}}}\n") == [
        "c.yaml:3:11: hparams.agent: is reserved; choose another hyperparameter name"
    ]
    assert errors(f"{head}{MIX}\nagents: {{impala: {{}}, vmpo: {{}}}}\n") == [
        "c.yaml:3:14: population.mix: not used with `trainable`: remove one of the two",
        "c.yaml:4:1: agents: not used with `trainable`: remove one of the two",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "",
            [
                "c.yaml: budget: needs env_steps_per_member or total_steps",
                "c.yaml: env: missing; say which env, as in `env: {id: CartPole-v1}`",
            ],
        ),
        (
            "env: {protocol: stiky}\nbudget: {}\n",
            [
                "c.yaml:1:1: env.id: missing",
                "c.yaml:1:17: env.protocol: must be sticky or classic, not 'stiky'. Did you mean 'sticky'?",
                "c.yaml:2:9: budget: needs env_steps_per_member or total_steps",
            ],
        ),
        ("- 1\n", ["c.yaml:1:1: a config is a mapping of keys to values, not [1]"]),
    ],
)
def test_missing_keys_are_named(text, expected):
    assert errors(text) == expected


OVERRIDES = [
    ("population.sise=8", "unknown key. Did you mean 'size'?"),
    ("population.size=0", "must be >= 1, not 0"),
    ("sed=1", "unknown key. Did you mean 'seed'?"),
    ("foo", "write it as key=value, as in population.size=8"),
    ("=3", "write it as key=value, as in population.size=8"),
    ("a..b=1", "write it as key=value, as in population.size=8"),
    ("env.id.x=1", "env.id is 'CartPole-v1', not a section"),
    ("env.kwargs={a: [1}", "while parsing a flow sequence, expected ',' or ']', but got '}'"),
    ("hparams.learning_rate.low=0", "log_uniform needs low > 0"),
    ("hparams.learning_rate.high=1e-5", "needs low < high, not 0.0001 and 1e-05"),
    ("hparams.learning_rate={prior: choice}", "hparams.learning_rate.values: missing"),
    ("strategy={exploit: {tops: 0.2}}", "strategy.exploit.tops: unknown key. Did you mean 'top'?"),
    ("hparams.gamma.low=0.9", f"hparams.gamma.prior: missing. Known: {PRIORS}"),
    ("env=CartPole-v1", "must be a section of keys, not 'CartPole-v1'"),
    ("env.id=", "must be text, not null"),
    ("env.num_envs=0", "must be >= 1, not 0"),
    ("budget.env_steps_per_member=1M", "must be an integer, not '1M'"),
    ("budget.wall_clock=6 hours", "must be a time such as 6h, 15m, 1h30m or 90s, not '6 hours'"),
    ("agent.block_length=10", "block_length 10 is shorter than the largest unroll, 20"),
]


@pytest.mark.parametrize(("override", "expected"), OVERRIDES)
def test_mistake_in_an_override_names_the_override(override, expected):
    assert errors(FIVE_LINES, override) == [f"override '{override}': {expected}"]


def test_all_mistakes_are_reported_at_once_file_first():
    with pytest.raises(ConfigError) as error:
        parse(
            FIVE_LINES + "population: {sise: 4}\nfitness: {min_episodes: 200}\n",
            "configs/pong.yaml",
            ["foo", "hparams.learning_rate.low=0", "strategy.exploit.bottom=0.9"],
        )
    assert str(error.value) == (
        "configs/pong.yaml:5:14: population.sise: unknown key. Did you mean 'size'?\n"
        "configs/pong.yaml:6:25: fitness.min_episodes: min_episodes 200 is more than window_episodes 100\n"
        "override 'foo': write it as key=value, as in population.size=8\n"
        "override 'hparams.learning_rate.low=0': log_uniform needs low > 0\n"
        "override 'strategy.exploit.bottom=0.9': bottom 0.9 and top 0.2 are more than the whole population\n"
        "5 errors. Nothing was started."
    )


def test_single_mistake_is_counted_in_singular():
    with pytest.raises(ConfigError, match=r"\n1 error\. Nothing was started\.$"):
        parse(FIVE_LINES, overrides=["sed=1"])


def test_files_that_cannot_be_read(tmp_path):
    names = ", ".join(shipped())
    for path in ("configs/foo.yaml", "foo"):
        with pytest.raises(ConfigError) as error:
            load(path)
        assert error.value.messages == (f"{path}: no such file. Shipped configs: {names}",)
    with pytest.raises(ConfigError, match="is a directory"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: ö".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml: not UTF-8 text"):
        load(tmp_path / "latin.yaml")


def test_later_override_wins_and_file_is_unchanged(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(FIVE_LINES)
    assert load(path, ["population.size=8", "population.size=2"]).population.size == 2
    assert path.read_text() == FIVE_LINES


TREES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=3),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.text(max_size=4), below, max_size=2),
    max_leaves=4,
)


def paths_of(tree, above=()):
    for key, value in tree.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*above, key))


WHOLE = {name: load(name).to_dict() for name in ("reference", "mixed")}


@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_text_is_a_config_or_a_config_error(name, data):
    tree = json.loads(json.dumps(WHOLE[name]))
    places = st.tuples(st.sampled_from(list(paths_of(tree))), TREES)
    for path, value in data.draw(st.lists(places, min_size=1, max_size=3)):
        below = tree
        for part in path[:-1]:
            below = below.get(part) if isinstance(below, dict) else None
        if isinstance(below, dict):
            below[path[-1]] = value
    try:
        config = config_from_dict(tree)
    except ConfigError as error:
        said = error.messages
    else:
        said = (config.to_json(),)
        assert config_from_json(said[0]) == config
        assert set(config.space.names) == {h for kind in config.per_agent_configs.values() for h in kind.hparams}
    assert said


# --- text and back ---


@pytest.mark.parametrize("name", shipped())
def test_config_round_trips_through_json_and_yaml(name):
    config = load(name)
    assert config_from_json(config.to_json()) == config
    resolved = parse(to_yaml(config))
    assert resolved == resolve(config) == resolve(resolved)
    for derived in ("space", "steps_per_member", "slice_steps", "burn_in", "curve_interval", "block"):
        assert getattr(resolved, derived) == getattr(config, derived)


def test_trainable_round_trips_through_json_and_yaml():
    config = parse("trainable: {name: quadratic, noise: 1e-05}\nbudget: {total_steps: 9}\n")
    assert config_from_json(config.to_json()) == config
    assert parse(to_yaml(config)) == resolve(config)


def test_change_is_checked_like_a_config():
    config = parse(FIVE_LINES)
    assert with_setting(config, "env.backend", "envpool").env.backend == "envpool"
    assert config.env.backend == "auto"
    with pytest.raises(ConfigError, match=r"env\.backend: must be auto, gymnasium or envpool, not 'pool'"):
        with_setting(config, "env.backend", "pool")


@pytest.mark.parametrize(
    ("time", "problem"),
    [("soon", "must be a time such as 6h, 15m, 1h30m or 90s, not 'soon'"), ("0s", "must be > 0, not '0s'")],
)
def test_invalid_duration_is_refused(time, problem):
    found = errors(f"env: {{id: CartPole-v1}}\nbudget: {{env_steps_per_member: 1e6, wall_clock: {time}}}\n")
    assert found == [f"c.yaml:2:49: budget.wall_clock: {problem}"]


def test_schema_is_json_and_knows_every_section():
    schema = json.loads(json.dumps(json_schema()))
    assert list(schema["properties"]) == list(Config.model_fields)
    assert {"PBTSettings", "RandomSearchSettings", "ImpalaSettings", "LogUniform"} <= set(schema["$defs"])


def test_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        parse(FIVE_LINES).seed = 2  # type: ignore[misc]


# --- warnings ---


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        ([], None),
        (
            ["env.id=HalfCheetah-v5", "strategy.ready.slice_steps=6400"],
            "a slice of 6,400 env steps holds about 6 episodes of 1,000 steps, fewer than "
            "fitness.min_episodes (10): members may have no fitness",
        ),
        (
            ["env.id=HalfCheetah-v5", "strategy.ready.slice_steps=16000", "env.between_slices=reset"],
            None,
        ),
        (
            ["env.id=HalfCheetah-v5", "strategy.ready.slice_steps=15680", "env.between_slices=reset"],
            "a slice of 15,680 env steps holds about 0 episodes of 1,000 steps, fewer than "
            "fitness.min_episodes (10): members may have no fitness",
        ),
        (
            ["strategy.ready.slice_steps=2e6"],
            "strategy.ready.slice_steps (2,000,000) is the whole budget of a member (1,000,000 env steps): nothing "
            "is ever exploited",
        ),
        (
            ["strategy.ready.burn_in=2e6"],
            "strategy.ready.burn_in (2,000,000) is not below a member's budget (1,000,000 env steps)"
            ": nothing is ever exploited",
        ),
    ],
)
def test_warnings(overrides, warning):
    config = parse(FIVE_LINES, overrides=overrides)
    assert list(find_warnings(config)) == ([] if warning is None else [warning])


def test_warning_for_hyperparameter_without_effect():
    searched = "hparams.rmsprop_epsilon={prior: log_uniform, low: 1e-5, high: 1e-1}"
    said = "hparams.rmsprop_epsilon has no effect: the optimizer of impala is adam"
    assert list(find_warnings(parse(FIVE_LINES, overrides=[searched]))) == []
    assert list(find_warnings(parse(FIVE_LINES, overrides=[searched, "agent.optimizer=adam"]))) == [said]


def test_warning_for_a_single_member_of_an_agent():
    said = "population.mix has one vmpo, which has no other member to copy without strategy.exploit.across_agents"
    assert list(find_warnings(parse(MIXED))) == [said]
    for override in ("strategy.exploit.across_agents=true", "strategy.exploit.method=none", "population.mix.vmpo=2"):
        assert list(find_warnings(parse(MIXED, overrides=[override]))) == []


# --- the house ---


def test_config_imports_no_torch_numpy_or_gymnasium():
    code = (
        "import sys, pbtrl.config.load; pbtrl.config.load.load('reference'); "
        "print([m for m in ('torch', 'numpy', 'gymnasium', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"
