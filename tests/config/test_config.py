"""The config: defaults, exact error messages, overrides, round trips through JSON and YAML."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from pbtrl.agents.settings import AGENTS
from pbtrl.config.load import (
    config_from_dict,
    config_from_json,
    json_schema,
    load,
    parse,
    read,
    resolve,
    shipped,
    to_yaml,
    with_setting,
)
from pbtrl.config.schema import Config
from pbtrl.config.warnings import find_warnings
from pbtrl.config.yaml_source import ConfigSource
from pbtrl.errors import ConfigError
from tests.config.example_configs import FIVE_LINES, MIXED, TWO_LINES

ROOT = Path(__file__).parents[2]


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
    assert (config.name, config.seed, config.label) == ("reference", 1, "reference")
    assert (config.block_length, config.block) == (50, 800)
    assert (config.steps_per_member, config.slice_steps, config.burn_in) == (3_000_000, 100_000, 200_000)
    assert config.curve_interval == 50_400  # 50,000 in whole blocks
    assert config.budget.wall_clock == 6 * 3600
    assert config.frames_per_step == 4
    defaults = AGENTS["impala"]()
    assert config.agent is not None
    assert (config.agent.hidden, config.agent.activation) == (defaults.hidden, defaults.activation)
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
    config = parse(TWO_LINES, overrides=[f"budget.env_steps_per_member={text}"])
    assert config.budget.env_steps_per_member == 3_000_000
    assert type(config.budget.env_steps_per_member) is int


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), (".5", 0.5), ("1", 1.0), ("1_0.5", 10.5)])
def test_numbers_follow_yaml_1_2(text, value):
    assert parse(TWO_LINES, overrides=[f"agent.learning_rate={text}"]).agent.learning_rate == value


@pytest.mark.parametrize("text", ["no", "off", "yes", "1:30", "2024-01-01", "1e", "0b1", "_1", "'1e-4'"])
def test_yaml_1_2_strings_stay_strings(text):
    config = parse(TWO_LINES, overrides=[f"env.kwargs.x={text}"])
    assert config.env.kwargs == {"x": text.strip("'")}
    assert parse(to_yaml(config)).env.kwargs == config.env.kwargs


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("15m", 900), ("6h", 21600), ("1h30m", 5400), ("1.5h", 5400), ("2d", 172800), ("45", 45)],
)
def test_durations(text, seconds):
    assert parse(TWO_LINES, overrides=[f"budget.wall_clock={text}"]).budget.wall_clock == seconds


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
    space = parse(TWO_LINES, overrides=given_to_it).space
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
    config = parse(TWO_LINES, overrides=[f"hparams.unroll_length={dimension}"])
    assert config.block_length == length
    assert config.block == 16 * length
    assert config.round_to_block(1) == config.round_to_block(16 * length) == 16 * length
    assert config.round_to_block(0) == 0
    assert config.round_to_block(16 * length + 1) == 32 * length


def test_total_budget_is_shared_and_smaller_one_counts():
    assert parse(TWO_LINES, overrides=["budget={total_steps: 12800}"]).steps_per_member == 3200
    both = ["budget={total_steps: 12800, env_steps_per_member: 640}"]
    assert parse(TWO_LINES, overrides=both).steps_per_member == 640


# --- what does not load: the messages stand in mistakes.txt ---


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
    for path in ("configs/toy_quadratc.yaml", "toy_quadratc"):
        with pytest.raises(ConfigError) as error:
            load(path)
        assert error.value.messages == (f"{path}: no such file. Did you mean 'toy_quadratic'?",)
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
        outcome = error.messages
    else:
        outcome = (config.to_json(),)
        assert config_from_json(outcome[0]) == config
        assert set(config.space.names) == {h for kind in config.per_agent_configs.values() for h in kind.hparams}
    assert outcome


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


def test_schema_is_json_and_knows_every_section():
    schema = json.loads(json.dumps(json_schema()))
    assert list(schema["properties"]) == list(Config.model_fields)
    assert {"PBTSettings", "RandomSearchSettings", "ImpalaSettings", "LogUniform"} <= set(schema["$defs"])


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    return Draft202012Validator(json_schema())


@pytest.mark.parametrize("name", shipped())
def test_schema_accepts_shipped_configs(schema: Draft202012Validator, name: str):
    assert [error.message for error in schema.iter_errors(read(name).data)] == []


@pytest.mark.parametrize(
    ("section", "valid"),
    [
        ("agent: {hidden: [64]}", True),
        ("agent: {name: vmpo, eps_kl: 0.1}", True),
        ("agent: {eps_kl: 0.1}", False),
        ("agent: {name: my_module:Agent, own: 1}", True),
        ("agent: {name: vmpa}", False),
        ("strategy: {ready: {slice_steps: 10}}", True),
        ("strategy: {name: fire, ready: {slice_steps: 10}}", True),
        ("strategy: {name: my_module:Strategy, own: 1}", True),
        ("strategy: {name: fires}", False),
        ("agents: {impala: {}, vmpo: }", True),
        ("agents: {vmpo: {eps_kl: 0.1, hparams: {learning_rate: {prior: choice, values: [1e-3]}}}}", True),
        ("agents: {impala: {name: vmpo, eps_kl: 0.1}, fast: {name: a3c}, own: {name: my_module:Agent}}", True),
        ("agents: {impala: {eps_kl: 0.1}}", False),
        ("agents: {fast: {}}", False),
        ("hparams: {learning_rate: {low: 1e-4, high: 1e-2}}", False),
    ],
)
def test_schema_tells_classes_apart_by_name(schema: Draft202012Validator, section: str, valid: bool):
    assert schema.is_valid(ConfigSource(section).data) == valid


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


def test_warnings_for_settings_that_a_trainable_does_not_use():
    text = "trainable: {name: quadratic}\nbudget: {env_steps_per_member: 100}\n"
    assert list(find_warnings(parse(text))) == []
    given = ["fitness={source: evaluation, window_episodes: 20, curve_interval: 2}", "final.max_steps=9"]
    assert list(find_warnings(parse(text, overrides=given))) == [
        f"{name} has no effect: a trainable has no episodes"
        for name in ("fitness.source", "fitness.window_episodes", "final.max_steps")
    ]


def test_warnings_for_settings_of_copies_without_any():
    given = ["population.reference_members=1", "strategy.ready.burn_in=20_000"]
    assert list(find_warnings(parse(FIVE_LINES, overrides=given))) == []
    never = list(find_warnings(parse(FIVE_LINES, overrides=[*given, "strategy.name=random_search"])))
    assert never == [
        f"{name} has no effect: random_search neither copies nor explores"
        for name in ("population.reference_members", "strategy.ready.burn_in")
    ]


def test_warning_for_hyperparameter_without_effect():
    searched = "hparams.rmsprop_epsilon={prior: log_uniform, low: 1e-5, high: 1e-1}"
    message = "hparams.rmsprop_epsilon has no effect: the optimizer of impala is adam"
    assert list(find_warnings(parse(FIVE_LINES, overrides=[searched]))) == []
    assert list(find_warnings(parse(FIVE_LINES, overrides=[searched, "agent.optimizer=adam"]))) == [message]


@pytest.mark.parametrize(("agent", "name"), [("impala", "max_log_ratio"), ("ppo", "target_kl")])
def test_warning_for_a_limit_of_a_single_pass(agent, name):
    searched = [f"agent.name={agent}", f"hparams.{name}={{prior: log_uniform, low: 0.01, high: 1}}"]
    message = f"hparams.{name} has no effect: {agent} makes one pass over each block (epochs is 1)"
    assert list(find_warnings(parse(FIVE_LINES, overrides=[*searched, "agent.epochs=1"]))) == [message]
    for several in ("agent.epochs=2", "hparams.epochs={prior: choice, values: [1, 2]}"):
        assert list(find_warnings(parse(FIVE_LINES, overrides=[*searched, several]))) == []


def test_warning_for_a_single_member_of_an_agent():
    message = "population.mix has one vmpo, which has no other member to copy without strategy.exploit.across_agents"
    assert list(find_warnings(parse(MIXED))) == [message]
    for override in ("strategy.exploit.across_agents=true", "strategy.exploit.method=none", "population.mix.vmpo=2"):
        assert list(find_warnings(parse(MIXED, overrides=[override]))) == []


# --- the house ---


def test_fire_warns_about_few_points_and_holes():
    fire = ["population.size=22", "strategy={name: fire, ready: {slice_steps: 4000}}", "env.num_envs=1"]
    assert list(find_warnings(parse(FIVE_LINES, overrides=fire))) == []
    few = list(find_warnings(parse(FIVE_LINES, overrides=[*fire, "fitness.curve_interval=1200"])))
    assert [text.partition(",")[0] for text in few] == ["the longest evaluation has 10 points of the curve"]
    for source in ("training", "evaluation"):  # a curve is made of training episodes in any case
        changes = [*fire, "fitness.curve_interval=100", f"fitness.source={source}"]
        holes = list(find_warnings(parse(FIVE_LINES, overrides=changes)))
        assert [text.partition(" is ")[0] for text in holes] == ["fitness.curve_interval (100)"]


@pytest.mark.parametrize("interval", [100, 1200])
def test_fire_without_evaluations_warns_about_no_curve(interval: int):
    fire = ["population.size=22", "strategy={name: fire, subpopulations: [22], ready: {slice_steps: 4000}}"]
    changes = [*fire, "env.num_envs=1", f"fitness.curve_interval={interval}"]
    assert list(find_warnings(parse(FIVE_LINES, overrides=changes))) == []


def test_colon_in_the_key_of_an_info_names_no_code():
    config = parse(FIVE_LINES, overrides=["fitness.metric=episode/info/time:min"])
    assert config.imports == ()
    assert parse(FIVE_LINES, overrides=["fitness.metric=mine:score"]).imports == ("mine",)


def test_config_imports_no_torch_numpy_or_gymnasium():
    code = (
        "import sys, pbtrl.config.load; pbtrl.config.load.load('reference'); "
        "print([m for m in ('torch', 'numpy', 'gymnasium', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_settings_of_a_cluster_without_one_are_warned_of():
    given = ["execution.address=10.0.0.1:6379", "execution.shared=true"]
    assert list(find_warnings(parse(FIVE_LINES, overrides=["execution.backend=ray", *given]))) == []
    assert [w for w in find_warnings(parse(FIVE_LINES, overrides=given)) if "execution" in w] == [
        "execution.address has no effect: execution.backend is processes",
        "execution.shared has no effect: execution.backend is processes",
    ]
