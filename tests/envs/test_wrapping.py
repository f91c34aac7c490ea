"""Wrappers of the user's own, and observations of nested spaces as vectors."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, Sequence, Space, Tuple, flatten, flatten_space

from pbtrl import api, envs
from pbtrl.build import describe, factory
from pbtrl.config.load import parse
from pbtrl.errors import ConfigError, EnvError, RunError
from tests.command import Command
from tests.odd_envs import Odd

HERE = __name__
CART = "CartPole-v1"

NESTED = Dict(
    {"to": Tuple((Discrete(3, start=1), Box(-1.0, 1.0, (2, 2), np.float32))), "at": Box(0, 255, (3,), np.uint8)}
)


class Scaled(gymnasium.RewardWrapper[Any, Any]):
    """Multiplies rewards."""

    def __init__(self, env: Any, factor: float = 2.0) -> None:
        super().__init__(env)
        self.factor = factor

    def reward(self, reward: Any) -> float:
        return self.factor * float(reward)


class Shuffles(gymnasium.Env[Any, Any]):
    """Changes the list that it was given."""

    def __init__(self, goals: list[int]) -> None:
        self.goals = goals
        self.observation_space, self.action_space = Box(0.0, 10.0, (1,), np.float32), Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.np_random.shuffle(self.goals)
        return np.array(self.goals[:1], np.float32), {}

    def step(self, action: Any) -> Any:
        return np.array(self.goals[:1], np.float32), 0.0, True, False, {}


class Counts(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Changes the list that it was given."""

    def __init__(self, env: Any, seen: list[int]) -> None:
        super().__init__(env)
        self.seen = seen

    def observation(self, observation: Any) -> Any:
        self.seen[0] += 1
        return 0 * observation + self.seen[0]


class Shifted(gymnasium.RewardWrapper[Any, Any]):
    """Adds 1 to rewards."""

    def reward(self, reward: Any) -> float:
        return float(reward) + 1.0


def short(env: Any, steps: int) -> Any:
    """A function that wraps."""
    return gymnasium.wrappers.TimeLimit(env.unwrapped, steps)


class Spaceless(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Replaces a space by something else."""

    @property
    def observation_space(self) -> Any:
        return (4,)


class Longer(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Changes observations, but not their space."""

    def observation(self, observation: Any) -> Any:
        return np.concatenate([observation, observation])


def raises(env: Any) -> Any:
    raise RuntimeError("no\nlicense")


def forgets(env: Any) -> Any:
    """Return nothing."""


NUMBER = 3


class Shown(Odd):
    """Can render."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__()
        self.render_mode = render_mode

    def render(self) -> Any:
        return np.full((8, 8, 3), 9, np.uint8)


def nested(shows: str = "samples") -> Odd:
    """Env with observations in NESTED."""
    wrong = {"lacks": {"at": 1}, "outside": {"to": (0, np.zeros((2, 2), np.float32)), "at": np.zeros(3, np.uint8)}}
    return Odd(NESTED, look=(lambda env: NESTED.sample()) if shows == "samples" else lambda env: wrong[shows])


def shown(space: str) -> Odd:
    spaces: dict[str, Space[Any]] = {
        "image": Dict(a=Dict(camera=Box(0, 255, (24, 24, 3), np.uint8))),
        "picture": Box(0, 255, (24, 24), np.uint8),
        "sequence": Dict(a=Sequence(Discrete(2))),
        "huge": Tuple((Discrete(20_000),)),
    }
    return Odd(spaces[space])


def run(vector: envs.Vector, steps: int = 3) -> list[float]:
    vector.reset()
    paid = [vector.step(np.zeros(vector.num_envs, np.int64))[1].tolist() for _ in range(steps)]
    vector.close()
    return paid


def test_envs_share_no_argument() -> None:
    """An env depends only on its own seed and actions, although a list in the config is one object."""
    goals = {"goals": [1, 2, 3, 4, 5, 6]}

    def first_goals(seeds: list[int]) -> list[float]:
        with contextlib.closing(envs.make(f"{HERE}:Shuffles", seeds, kwargs=goals)) as vector:
            return [float(x) for x in vector.reset()[:, 0]]

    assert first_goals([11]) == first_goals([3, 11, 5])[1:2]
    assert goals == {"goals": [1, 2, 3, 4, 5, 6]}
    wrappers = ((f"{HERE}:Counts", {"seen": [0]}),)
    with contextlib.closing(envs.make(CART, [1, 2], wrappers=wrappers)) as vector:
        assert vector.reset()[:, 0].tolist() == [1.0, 1.0]


def test_wrappers_are_applied_in_order_to_each_env() -> None:
    inner, outer = (f"{HERE}:Scaled", {"factor": 3.0}), (f"{HERE}:Shifted", {})
    assert run(envs.make(CART, [0, 1], wrappers=[inner, outer])) == [[4.0, 4.0]] * 3
    assert run(envs.make(CART, [0, 1], wrappers=[outer, inner])) == [[6.0, 6.0]] * 3


def test_function_with_arguments_wraps_and_sets_the_limit() -> None:
    vector = envs.make(CART, [0], wrappers=[(f"{HERE}:short", {"steps": 2})])
    assert vector.max_episode_steps == 2
    vector.reset()
    assert [bool(vector.step(np.zeros(1, np.int64))[3][0]) for _ in range(3)] == [False, True, False]
    vector.close()


def test_wrapped_envs_render() -> None:
    vector = envs.make(f"{HERE}:Shown", [0], wrappers=[(f"{HERE}:Scaled", {})], rendered=1)
    vector.reset()
    assert vector.render(0).all()
    vector.close()


def test_wrapped_envs_run_in_gymnasium() -> None:
    wrappers = [(f"{HERE}:Scaled", {})]
    assert envs.resolve_backend(CART, "auto", {}, wrappers) == "gymnasium"
    with pytest.raises(
        EnvError, match=r"^env.backend: envpool cannot run what env.wrappers wraps; set env.backend=auto"
    ):
        envs.resolve_backend(CART, "envpool", {}, wrappers)
    with pytest.raises(EnvError, match=r"^env.wrappers: Atari games run in ale_py's own vector env"):
        envs.spaces("ALE/Pong-v5", wrappers=wrappers)
    with pytest.raises(EnvError, match=r"^env.flatten_observations: Atari games run in ale_py's own vector env"):
        envs.make("ALE/Pong-v5", [0], flatten_observations=True)


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("no_such:Thing", r"env.wrappers.1=no_such:Thing: cannot import no_such: ModuleNotFoundError: "),
        (f"{HERE}:Nothing", f"env.wrappers.1={HERE}:Nothing: module {HERE} has no class or function Nothing"),
        (f"{HERE}:NUMBER", f"env.wrappers.1={HERE}:NUMBER: module {HERE} has no class or function NUMBER"),
        (f"{HERE}:raises", f"env.wrappers.1={HERE}:raises: raised RuntimeError: no license"),
        (f"{HERE}:short", f"env.wrappers.1={HERE}:short: raised TypeError: short() missing 1 required positional"),
        (f"{HERE}:forgets", f"env.wrappers.1={HERE}:forgets: returned None (NoneType), not a gymnasium.Env"),
        (f"{HERE}:Spaceless", f"env.wrappers.1={HERE}:Spaceless: its observation_space is (4,) (tuple), not a"),
        (f"{HERE}:Longer", f"env.id={CART} in {HERE}:Scaled, {HERE}:Longer: the observation has shape (8,), but the"),
    ],
)
def test_faulty_wrapper_is_one_line(wrapper: str, message: str) -> None:
    with pytest.raises(EnvError, match=f"^{re.escape(message)}"):
        envs.spaces(CART, wrappers=[(f"{HERE}:Scaled", {}), (wrapper, {})])


def test_faulty_wrapper_is_reported_with_its_place_in_the_config() -> None:
    text = f"env:\n  id: CartPole-v1\n  wrappers:\n    - {HERE}:Scaled\n    - {HERE}:raises\n" + (
        "budget: {env_steps_per_member: 100}\n"
    )
    from pbtrl.config.yaml_source import ConfigSource

    config = parse(text)
    with pytest.raises(ConfigError) as caught:
        factory.prepare(config, ConfigSource(text, "c.yaml"))
    (message,) = caught.value.messages
    assert message == f"c.yaml:5:7: env.wrappers.1: {HERE}:raises: raised RuntimeError: no license"


def test_config_keeps_wrappers_and_resolves_their_paths(tmp_path: Path) -> None:
    text = (
        "env: {id: CartPole-v1, wrappers: [a:B, {id: c:D, kwargs: {file: ./x}}]}\nbudget: {env_steps_per_member: 9}\n"
    )
    config = parse(text, str(tmp_path / "c.yaml"))
    assert config.to_dict()["env"]["wrappers"] == ["a:B", {"id": "c:D", "kwargs": {"file": str(tmp_path / "x")}}]
    assert config.imports == ("a", "c")


def test_nested_observations_become_gymnasiums_vectors() -> None:
    vector = envs.make(f"{HERE}:nested", [3, 4], flatten_observations=True)
    flat = flatten_space(NESTED)
    assert vector.single_observation_space.shape == flat.shape == (3 + 3 + 4,)
    seen = vector.reset()
    for row, seed in zip(seen, (3, 4), strict=True):
        NESTED.seed(seed)
        assert (row == flatten(NESTED, NESTED.sample())).all()
    vector.close()


def test_flattening_follows_the_wrappers_and_leaves_vectors_alone() -> None:
    plain, flat = (envs.make(CART, [5], backend="gymnasium", flatten_observations=f) for f in (False, True))
    assert (plain.reset() == flat.reset()).all()
    assert envs.spaces("Blackjack-v1", flatten_observations=True).single_observation_space.shape == (32 + 11 + 2,)


@pytest.mark.parametrize(
    ("id", "name", "message"),
    [
        ("shown", "image", "env.flatten_observations: the observation['a']['camera'] is an image of 24x24x3, which"),
        ("shown", "picture", "env.flatten_observations: the observation is an image of 24x24, which no vector should"),
        ("shown", "sequence", "env.flatten_observations: the observation['a'] of type Sequence has no fixed size"),
        ("shown", "huge", "env.flatten_observations: the observation[0] of type Discrete(20000) has more than 10,000"),
        ("nested", "lacks", f"env.id={HERE}:nested in flatten_observations: reset() raised ValueError: the observation "
         "is {'at': 1} (dict), which is not in Dict("),
        ("nested", "outside", f"env.id={HERE}:nested in flatten_observations: reset() raised ValueError: the "
         "observation['to'][0] is 0 (int), which is not in Discrete(3, start=1)"),
    ],
)  # fmt: skip
def test_what_no_vector_holds_is_one_line(id: str, name: str, message: str) -> None:
    kwargs = {"shows" if id == "nested" else "space": name}
    with pytest.raises(EnvError, match=f"^{re.escape(message)}"):
        envs.spaces(f"{HERE}:{id}", kwargs=kwargs, flatten_observations=True)


def test_refusal_names_the_setting() -> None:
    with pytest.raises(
        EnvError, match=r"of type Dict are not supported.*; set env.flatten_observations=true to see them"
    ):
        envs.spaces(f"{HERE}:nested")
    with pytest.raises(EnvError, match=r"ObservationWrapper with env\.wrappers"):
        envs.spaces(f"{HERE}:shown", kwargs={"space": "sequence"})


CONFIG = """\
env: {id: CartPole-v1, num_envs: 2, between_slices: reset, wrappers: [own_wrapper:Wide], flatten_observations: true}
agent: {hidden: [8]}
population: {size: 1, mode: sync}
execution: {backend: inline}
budget: {env_steps_per_member: 80}
fitness: {min_episodes: 1}
strategy: {ready: {slice_steps: 40}}
final: {candidates: 1, selection_episodes: 1, episodes: 1}
"""
OWN = """\
import gymnasium, numpy, pathlib
from gymnasium.spaces import Box, Dict
pathlib.Path("imported").touch()
class Wide(gymnasium.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.observation_space = Dict(a=env.observation_space, b=Box(0.0, 1.0, (2,), numpy.float32))
    def observation(self, observation):
        return {"a": observation, "b": numpy.ones(2, numpy.float32)}
"""


def test_run_with_an_own_wrapper(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """It trains, is scored and exported; others import the wrapper only where they trust the run."""
    import sys

    Path("own_wrapper.py").write_text(OWN)
    Path("c.yaml").write_text(CONFIG)
    trained = pbtrl("train", "c.yaml", "--name", "a", "--progress", "none")
    assert trained.code == 0, trained.err
    run = api.load_run("a")
    assert "CartPole-v1 in own_wrapper:Wide, flatten_observations, 6 -> 2 actions" in describe.describe_env(run.config)
    assert pbtrl("export", "a", "--format", "bundle").code == 0
    assert pbtrl("export", "a", "--format", "hub").code == 0
    card = next(Path("runs/a/export").glob("*-hub/README.md")).read_text()
    assert "- env CartPole-v1 in own_wrapper:Wide, flatten_observations" in card
    Path("imported").unlink()
    sys.modules.pop("own_wrapper")
    refused = pbtrl("eval", "a")
    assert (refused.code, refused.out) == (2, "")
    assert "asks to import 'own_wrapper', which runs its code: allow it with --trust-imports" in refused.err
    assert pbtrl("resume", "a", "budget.env_steps_per_member=160").code == 2
    with pytest.raises(RunError, match="trust_imports=True"):
        run.evaluate()
    assert not Path("imported").exists()
    assert pbtrl("eval", "a", "--trust-imports", "--episodes", "1").code == 0
    assert Path("imported").exists()
