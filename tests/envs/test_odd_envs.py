"""Every odd env trains to a finite score, is refused before the start, or ends the run in one line.

tests/odd_envs.py has the envs.
"""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box

from pbtrl import envs
from pbtrl.agents.distributions import distribution
from pbtrl.agents.settings import ImpalaSettings
from pbtrl.build import describe, factory
from pbtrl.config.load import load, parse
from pbtrl.envs.adapters import adapt_observations
from tests.command import Command, Result, kinds
from tests.odd_envs import ENVS

ODD = """\
env: {id: "tests.odd_envs:make", num_envs: 2, between_slices: reset}
agent: {hidden: [8]}
population: {size: 1}
execution: {backend: inline}
budget: {env_steps_per_member: 80}
hparams: {learning_rate: {prior: log_uniform, low: 1e-4, high: 1e-2}}
fitness: {min_episodes: 1}
strategy: {ready: {slice_steps: 40}}
failure: {max_restarts_per_member: 1, env_step_timeout: 5s}
final: {candidates: 1, selection_episodes: 1, episodes: 1}
"""

TRAINS = (
    "zero-d", "float64", "huge float64 bounds", "integers", "memory", "gray", "stacked", "stacked last", "board",
    "float picture", "discrete", "discrete from -2",
    "shows a list", "shows float64 as float32", "shows int64 as int32",
    "act in float64", "act in float16", "act between bounds that float32 moves", "act without bounds",
    "act with half a bound", "act from 3", "act in a MultiDiscrete", "act in a grid from 1", "act without a choice",
    "pays a zero-d array", "pays integers", "pays booleans", "pays float32", "pays sometimes integers",
    "ends with numpy booleans", "ends with integers",
    "close raises", "close exits",
)  # fmt: skip

REFUSED = {
    "small picture": "needs images of at least 20 x 20 pixels, not 7 x 7",
    "empty": "observations are empty: the observation space is a Box of shape (0,)",
    "huge discrete": "observations of type Discrete(300000) have too many states for one-hot vectors, more than 10,000",
    "dict": "observations of type Dict are not supported, only Box and Discrete; set "
    "env.flatten_observations=true to see them as a vector",
    "tuple": "observations of type Tuple are not supported",
    "multi-binary": "env.flatten_observations=true",
    "multi-discrete": "env.flatten_observations=true",
    "text": "observations of type Text are not supported",
    "shows NaN at once": "the observation is not finite: nan at [0] (env 0 of 1, step 0)",
    "shows None": "the observation is None (NoneType), but the observation space is Box(-1.0, 1.0, (3,), float32)",
    "shows a dict": "the observation is {'a': 1} (dict), but the observation space is Box",
    "shows a ragged list": "the observation is [[1.0], [1.0, 2.0], 3.0] (list), but the observation space is Box",
    "shows another shape": "the observation has shape (4,), but the observation space has shape (3,)",
    "shows int64 as uint8": "the observation has type int64, but the observation space has type uint8",
    "shows floats as uint8": "the observation has type float64, but the observation space has type uint8",
    "shows -1 of Discrete(5)": "the observation -1 is not in the observation space Discrete(5)",
    "shows a float of Discrete(5)": "the observation has type float64, but the observation space has type int64",
    "act in one number": "actions of type Box of shape () and type float32 are not supported, only Discrete",
    "act in a matrix": "actions of type Box of shape (2, 2) and type float32 are not supported, only Discrete",
    "act in integers": "actions of type Box of shape (2,) and type int64 are not supported, only Discrete",
    "act in nothing": "actions of type Box of shape (0,) and type float32 are not supported, only Discrete",
    "act in a Dict": "wrap the env in gymnasium.wrappers.TransformAction",
    "pays an array of one": "the reward is an array of shape (1,) and type float64, but must be a number",
    "pays an array of two": "the reward is an array of shape (2,) and type float64, but must be a number",
    "pays None": "the reward is None (NoneType), but must be a number (env 0 of 1, step 1)",
    "pays a string": "the reward is '1.0' (str), but must be a number",
    "pays a complex number": "the reward is (1+0j) (complex), but must be a number",
    "pays 10**30": "the reward is 1000000000000000000000000000000 (int), but must be a number",
    "ends with None": "the flag truncated is None (NoneType), but must be true or false",
    "ends with strings": "the flag truncated is 'no' (str), but must be true or false",
    "ends with an array": "the flag truncated is an array of shape (1,) and type bool, but must be true or false",
    "reset without info": "reset() returned an array of shape (3,) and type float32; gymnasium requires 2 values: obs",
    "reset to two numbers": "reset() returned an array of shape (2,) and type float32; gymnasium requires 2 values: o",
    "four values": "step() returned 4 values; gymnasium requires 5 values: observation, reward, terminated, trunc",
    "no step": "step() returned None (NoneType); gymnasium requires 5 values",
    "no observation space": "the env has no observation_space: AttributeError: ",
    "no action space": "the env has no action_space: AttributeError: ",
    "a space of another kind": "the env's observation_space is (3,) (tuple), not a gymnasium.spaces.Space",
    "no env": "returned a Ducktyped, not a gymnasium.Env",
    "nothing": "returned a NoneType, not a gymnasium.Env",
    "raises": "could not be made: RuntimeError: no license",
    "exits": "could not be made: SystemExit: 0",
    "wants an argument": "could not be made: TypeError: _wants_argument() missing 1 required positional argument",
    "divides by zero": "step() raised ZeroDivisionError: division by zero (env 0 of 1, step 1)",
}
"""What can be seen from one env, its reset and a step."""

FAILS = {
    "shows NaN": "the observation is not finite: nan at [0] (env 0 of 2, step 16)",
    "shows infinity": "the observation is not finite: inf at [0] (env 0 of 2, step 16)",
    "shows 1e300": "the observation is not finite: inf at [0] (env 0 of 2, step 16)",
    "shows another shape later": "the observation has shape (4,), but the observation space has shape (3,) (env 0 of ",
    "shows 300 as int8": "the observation contains 300, which does not fit the space's type int8 (env 0 of 2, step 17)",
    "shows 5 of Discrete(5)": "the observation 5 is not in the observation space Discrete(5) (env 0 of 2, step 16)",
    "pays None once": "the reward is None (NoneType), but must be a number (env 0 of 2, step 16)",
    "pays NaN once": "the reward is not finite: nan (env 0 of 2, step 16)",
    "pays infinity once": "the reward is not finite: inf (env 0 of 2, step 16)",
    "pays 1e300 once": "the reward is not finite: 1e+300 (env 0 of 2, step 16)",
    "four values later": "step() returned 4 values; gymnasium requires 5 values",
    "spaces that differ": "the env's observation_space must always be the same, but is Box(",
    "divides by zero later": "step() raised ZeroDivisionError: division by zero (env 0 of 2, step 17)",
    "exits in a step": "step() raised SystemExit: 0",
    "a broken pipe": "step() raised BrokenPipeError: ",
    "a long story": "step() raised ValueError: no no no",
}
"""What only shows in training."""

RUN = Path("runs/a")


@pytest.fixture
def train(pbtrl: Command):
    """Train the odd env of a name."""
    Path("odd.yaml").write_text(ODD)

    def command(name: str, *overrides: str) -> Result:
        result = pbtrl("train", "odd.yaml", "--name", "a", f'env.kwargs={{name: "{name}"}}', *overrides)
        assert "Traceback" not in result.out + result.err
        return result

    return command


def finite(run: Path) -> bool:
    text = (run / "best.json").read_text()
    score = re.search(r'"return_mean": (\S+),', text)
    return score is not None and math.isfinite(float(score[1])) and "NaN" not in text


def test_every_odd_env_is_in_exactly_one_table():
    rows = [*TRAINS, *REFUSED, *FAILS, "hangs"]
    assert sorted(rows) == sorted(ENVS)


@pytest.mark.parametrize("name", TRAINS)
def test_odd_env_trains_to_a_finite_score(train, name: str):
    result = train(name)
    assert result.code == 0, result.err
    assert finite(RUN)
    assert "failure" not in kinds(RUN)


@pytest.mark.parametrize("name", REFUSED)
def test_odd_env_is_refused_before_start(train, name: str):
    result = train(name)
    assert result.code == 2
    line, last = result.err.splitlines()
    assert "tests.odd_envs:make" in line or name == "small picture"
    assert REFUSED[name] in line
    assert last == "1 error. Nothing was started."
    assert not RUN.exists()


@pytest.mark.parametrize("name", FAILS)
def test_odd_env_ends_the_run_in_one_line(train, name: str):
    result = train(name)
    assert result.code == 3
    *warnings, line = result.err.splitlines()
    assert all(w.startswith("warning: a slice of 40 env steps holds about 0 episodes") for w in warnings)
    assert line.startswith("no member survived: EnvError: env.id=tests.odd_envs:make: ")
    assert FAILS[name] in line
    assert len(line) < 700
    assert not (RUN / "best.json").exists()


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("close raises", 0, ""),
        ("exits in a step", 3, "step() raised SystemExit: 0 (env "),
        ("hangs", 3, "its envs took longer than failure.env_step_timeout"),
    ],
)
def test_odd_env_in_worker_processes(train, name: str, code: int, message: str):
    result = train(name, "execution={backend: processes, workers: 1}", "failure.env_step_timeout=0.5s")
    assert result.code == code, result.err
    assert message in result.err
    if name == "close raises":
        log = (RUN / "members/m00/log.txt").read_text()
        assert log.startswith("warning: env.id=tests.odd_envs:make: close() raised RuntimeError: the simulator is gone")


def test_env_that_fails_in_eval_is_one_line(train, pbtrl: Command, monkeypatch: pytest.MonkeyPatch):
    assert train("discrete").code == 0
    monkeypatch.setitem(ENVS, "discrete", ENVS["shows 5 of Discrete(5)"])
    result = pbtrl("eval", "a", "--trust-imports", "--episodes", 40)
    assert result.code == 3
    (line,) = result.err.splitlines()
    assert "env.id=tests.odd_envs:make: the observation 5 is not in the observation space Discrete(5) (env " in line


def test_env_that_fails_in_bench_is_one_line(pbtrl: Command):
    Path("odd.yaml").write_text(ODD)
    result = pbtrl("bench", "odd.yaml", 'env.kwargs={name: "pays NaN once"}', "--seconds", 0.1)
    message = (
        r"a worker of the bench failed: env.id=tests.odd_envs:make: the reward is not finite: nan \(env \d of 2, .*\n"
    )
    assert result.code == 3
    assert re.fullmatch(message, result.err)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gray", "1x20x24 -> 2 actions, images of 20x24 as 1x20x24, gymnasium"),
        ("stacked", "6x20x24 -> 2 actions, images of 2x20x24x3 as 6x20x24, gymnasium"),
        ("stacked last", "6x24x20 -> 2 actions, images of 24x20x3x2 as 6x24x20, gymnasium"),
        ("board", "3x3 -> 2 actions, gymnasium"),
        ("zero-d", "1 -> 2 actions, gymnasium"),
    ],
)
def test_changes_to_observations_are_described(name: str, message: str):
    config = factory.prepare(parse(ODD, overrides=[f'env.kwargs={{name: "{name}"}}']))
    assert describe.describe_env(config) == f"tests.odd_envs:make, {message}"


def test_stacked_images_are_merged_plane_by_plane():
    pictures = np.random.default_rng(0).integers(0, 255, (2, 4, 20, 24, 3), dtype=np.uint8)
    adapter = adapt_observations(Box(0, 255, pictures.shape[1:], np.uint8), "here")
    images = adapter.convert(pictures)
    assert adapter.space == Box(0, 255, (12, 20, 24), np.uint8)
    for place, (layer, color) in enumerate(np.ndindex(4, 3)):
        np.testing.assert_array_equal(images[:, place], pictures[:, layer, :, :, color])


def test_actions_too_wide_for_float32_are_not_squashed():
    for bound, message in ((1e38, None), (3e38, "squash needs finite bounds")):
        space, settings = Box(-bound, bound, (2,), np.float32), ImpalaSettings(actions="squash")
        with pytest.raises(ValueError, match=message) if message else nullcontext():
            distribution(space, settings)


# Options


@pytest.mark.parametrize(
    ("id", "backend", "kwargs", "message"),
    [
        ("CartPole-v1", "auto", {"max_episode_steps": 0}, "Expect the `max_episode_steps` to be positive"),
        ("CartPole-v1", "auto", {"max_episode_steps": "0.1"}, "Expect the `max_episode_steps` to be an integer"),
        ("CartPole-v1", "auto", {"max_episode_steps": 0.5}, "Expect the `max_episode_steps` to be an integer"),
        ("CartPole-v1", "envpool", {"max_episode_steps": -1}, "max_episode_steps=-1: envpool does not accept"),
        ("CartPole-v1", "envpool", {"max_episode_steps": None}, "max_episode_steps=None: envpool does not accept"),
        ("CartPole-v1", "envpool", {"reward_threshold": "much"}, "could not be made: "),
        ("HalfCheetah-v5", "auto", {"frame_skip": 0}, "env.kwargs.frame_skip=0: must be at least 1"),
        ("HalfCheetah-v5", "auto", {"frame_skip": -1}, "env.kwargs.frame_skip=-1: must be at least 1"),
        ("HalfCheetah-v5", "envpool", {"frame_skip": 0}, "env.kwargs.frame_skip=0: envpool does not accept this value"),
        ("HalfCheetah-v5", "envpool", {"xml_file": "/x.xml"}, "xml_file: envpool and gymnasium interpret it differ"),
        ("HalfCheetah-v5", "auto", {"xml_file": "/x.xml"}, "could not be made: OSError: File /x.xml does not exist"),
        ("HalfCheetah-v5", "auto", {"reset_noise_scale": -1}, "reset() raised ValueError: high - low < 0"),
        ("ALE/Pong-v5", "auto", {"stack_num": 0}, "env.kwargs.stack_num=0: must be an integer from 1 to 100"),
        ("ALE/Pong-v5", "auto", {"stack_num": True}, "env.kwargs.stack_num=True: must be an integer from 1"),
        ("ALE/Pong-v5", "auto", {"img_width": -84}, "env.kwargs.img_width=-84: must be an integer from 1"),
        ("ALE/Pong-v5", "auto", {"img_height": 2**20}, "env.kwargs.img_height=1048576: must be an integer from 1"),
        ("ALE/Pong-v5", "auto", {"max_num_frames_per_episode": 0}, "must be an integer from 1 to 2,147,483,647"),
        ("ALE/Pong-v5", "auto", {"full_action_space": 2}, "env.kwargs.full_action_space=2: must be true or false"),
    ],
)
def test_invalid_values_are_refused(id, backend, kwargs, message):
    with pytest.raises(envs.EnvError) as caught:
        envs.spaces(id, backend=backend, kwargs=kwargs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("id", "backend", "kwargs"),
    [
        ("CartPole-v1", "gymnasium", {"max_episode_steps": 3.0}),
        ("CartPole-v1", "envpool", {"max_episode_steps": 3.0}),
        ("ALE/Pong-v5", "auto", {"max_num_frames_per_episode": 12.0}),
        ("maze/Foraging-v0", "auto", {"length": 3.0}),
    ],
)
def test_whole_float_counts_as_integer(id, backend, kwargs):
    vector = envs.make(id, [0], backend=backend, kwargs=kwargs)
    vector.reset()
    cut = [bool(vector.step(np.zeros(1, np.int64))[3][0]) for _ in range(3)]
    vector.close()
    assert cut == [False, False, True]


def test_auto_uses_envpool_only_for_equivalent_options():
    for kwargs, chosen in (
        ({}, "envpool"),
        ({"max_episode_steps": 50}, "envpool"),
        ({"max_episode_steps": 50.0}, "envpool"),
        ({"max_episode_steps": -1}, "gymnasium"),
        ({"max_episode_steps": None}, "gymnasium"),
        ({"frame_skip": 2, "ctrl_cost_weight": 1}, "envpool"),
        ({"xml_file": "./x.xml"}, "gymnasium"),
        ({"post_constraint": True}, "gymnasium"),
    ):
        assert envs.resolve_backend("HalfCheetah-v5", "auto", kwargs) == chosen, kwargs


def test_reason_against_envpool_is_described():
    config = load("cartpole", ["env.kwargs={max_episode_steps: -1}"])
    message = describe.describe_env(factory.prepare(config))
    assert message.endswith(", gymnasium, because envpool interprets env.kwargs.max_episode_steps differently")


@pytest.mark.parametrize(
    ("id", "options"),
    [
        ("HalfCheetah-v5", {"forward_reward_weight": 2.0, "ctrl_cost_weight": 0.7, "frame_skip": 3}),
        ("Walker2d-v5", {"healthy_reward": 3.0, "terminate_when_unhealthy": False, "max_episode_steps": 7}),
        ("Ant-v5", {"contact_cost_weight": 0.01, "exclude_current_positions_from_observation": False}),
    ],
)
def test_backends_agree_under_shared_options(id, options):
    def played(backend, kwargs):
        vector = envs.make(id, [0], backend=backend, kwargs={"reset_noise_scale": 0.0, **kwargs})
        actions = np.random.default_rng(0).uniform(-1, 1, (8, 1, *vector.single_action_space.shape))
        rows = [(vector.reset()[0].copy(), 0.0, False)]
        for action in actions.astype(np.float32):
            obs, reward, terminated, truncated = vector.step(action)
            rows.append((obs[0].copy(), reward[0], (terminated | truncated)[0]))
        vector.close()
        return [np.array(column) for column in zip(*rows, strict=True)]

    one, other = played("gymnasium", options), played("envpool", options)
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-2)


def test_backends_have_the_same_spread_of_starts():
    starts = []
    for backend in ("gymnasium", "envpool"):
        vector = envs.make("HalfCheetah-v5", range(40), backend=backend, kwargs={"reset_noise_scale": 0.5})
        starts.append(np.concatenate([vector.reset().copy() for _ in range(10)]))
        vector.close()
    np.testing.assert_allclose(*(s.std(0) for s in starts), rtol=0.25)


@pytest.mark.parametrize(
    ("written", "override", "folder"),
    [("./light.xml", None, "models"), ("../light.xml", None, "."), ("/x.xml", "./light.xml", "."), ("~/x", None, "~")],
)
def test_path_is_relative_to_the_file_that_names_it(tmp_path: Path, monkeypatch, written, override, folder):
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/run.yaml").write_text(ODD.replace("num_envs: 2", f'kwargs: {{name: [{{file: "{written}"}}]}}'))
    overrides = [] if override is None else [f'env.kwargs.name=[{{file: "{override}"}}]']
    config = load("models/run.yaml", overrides)
    assert config.env is not None
    wanted = "~/x" if folder == "~" else str((tmp_path / folder / "light.xml").resolve())
    assert config.env.kwargs["name"] == [{"file": wanted}]


def test_model_beside_the_config_is_found_from_elsewhere(pbtrl: Command, tmp_path: Path, monkeypatch):
    import gymnasium.envs.mujoco

    model = (Path(gymnasium.envs.mujoco.__file__).parent / "assets/half_cheetah.xml").read_text()
    Path("own.xml").write_text(model)
    text = ODD.replace('id: "tests.odd_envs:make"', "id: HalfCheetah-v5, kwargs: {xml_file: ./own.xml}")
    Path("own.yaml").write_text(
        text.replace("selection_episodes: 1, episodes: 1", "selection_episodes: 1, episodes: 1")
    )
    result = pbtrl("train", "own.yaml", "--dry-run")
    assert result.code == 0, result.err
    assert f"xml_file: {tmp_path / 'own.xml'}" in result.out
    assert "backend: gymnasium" in result.out
