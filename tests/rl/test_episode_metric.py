"""A fitness of one's own: a number of an episode's last info, or a function of the episode."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from pbtrl.envs.vector import Spaces, Vector
from pbtrl.rl.episode_metric import EpisodeMetric
from pbtrl.rl.rollout import Episodes, Rollout
from tests.command import Command
from tests.rl.scripted_envs import CountingAgent, ScriptedPool

MODULE = '''
import gymnasium
import numpy as np


class Goal(gymnasium.Env):
    """Episodes of four steps; succeeds if the last action is 1."""

    observation_space = gymnasium.spaces.Box(0.0, 4.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        info = {"success": bool(action)} if self.t == 4 else {"success": True}
        return np.full(1, self.t, np.float32), 100.0, self.t == 4, False, info


def make():
    return Goal()


def half(episode_return, length, info):
    return episode_return / 200 - length + info["success"]


def when_lucky(episode_return, length, info):
    return episode_return if info["success"] else None
'''
CONFIG = """\
name: goal
env: {id: "goals:make", num_envs: 2}
agent: {hidden: [4], unroll_length: 8}
population: {size: 2, mode: sync}
execution: {backend: inline}
budget: {env_steps_per_member: 64}
hparams: {learning_rate: {prior: log_uniform, low: 1e-4, high: 1e-2}}
fitness: {metric: episode/info/success, min_episodes: 2, window_episodes: 4}
strategy: {ready: {slice_steps: 32}}
final: {candidates: 1, selection_episodes: 4, episodes: 8}
"""


class InfoPool(ScriptedPool):
    """Env j reports j + t / 10 as `score`; the last env reports none."""

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        *rest, _ = super().step(actions)
        has = np.arange(len(self.t)) < len(self.t) - 1
        scores = np.where(has, np.arange(len(self.t)) + self.t / 10, 0.0)
        return (*rest, {"score": scores, "_score": has, "whole": 3.0, "word": np.array(["a"] * len(self.t))})


def vector(lengths: list[int]) -> Vector:
    spaces = Spaces(Box(0.0, np.inf, (2,), np.float32), Discrete(1000))
    return Vector(InfoPool(lengths), spaces, range(len(lengths)), "env.id=scripted")


def played(text: str) -> list[Episodes]:
    rollout = Rollout(vector([3, 4, 2, 5]), 2, CountingAgent(), lambda action: action, EpisodeMetric(text, "score"))
    rollout.collect(None, [None] * 2, 8)
    return rollout.episodes


def test_number_of_the_last_info_is_the_score() -> None:
    first, second = played("episode/info/score")
    assert first.scores == pytest.approx([0.3, 1.4, 0.3])  # env 0 after 3 and 7 steps, env 1 after 4
    assert first.returns == [30.0, 80.0, 30.0]
    assert first.lengths == [3, 4, 3]
    assert (second.scores, second.unmeasured) == (pytest.approx([2.2, 2.2, 2.2]), 1)


@pytest.mark.parametrize("key", ["nothing", "word", "whole", "_score"])
def test_episodes_without_the_number_have_only_a_return_and_a_length(key: str) -> None:
    first, second = played(f"episode/info/{key}")
    assert (first.scores, first.returns, first.lengths) == ([], [30.0, 80.0, 30.0], [3, 4, 3])
    assert (first.unmeasured, second.unmeasured) == (3, 4)


def doubled(episode_return: float, length: int, info: dict[str, Any]) -> float:
    return 2.0 * episode_return + length + info.get("score", 1000.0)


def test_function_gets_return_length_and_info() -> None:
    first, second = played("tests.rl.test_episode_metric:doubled")
    assert first.scores == pytest.approx([63.3, 165.4, 63.3])
    assert second.scores[-2:] == pytest.approx([2 * 200.0 + 5 + 1000.0, 124.2])


def test_episodes_pass_to_another_process() -> None:
    episodes, copy = played("episode/info/score")[1], Episodes()
    copy.extend(*json.loads(json.dumps(episodes.packed())))
    copy.extend([None], [2], [None], 2)
    assert copy.scores[:3] == episodes.scores
    assert np.isnan(copy.scores[3])
    assert copy.unmeasured == 3


@pytest.fixture
def goal(pbtrl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    (tmp_path / "goals.py").write_text(MODULE)
    (tmp_path / "goal.yaml").write_text(CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    return pbtrl


def test_run_maximizes_the_metric_under_its_own_name(goal: Command) -> None:
    done = goal("train", "goal.yaml", "--progress", "plain")
    assert done.code == 0, done.err
    assert ": success 0." in done.out or ": success 1" in done.out
    assert "mean return" not in done.out
    status = json.loads(goal("status", "goal", "--json").out)
    assert status["metric"] == "success"
    assert all(0.0 <= m["fitness"] <= 1.0 for m in status["members"])
    best = json.loads(Path("runs/goal/best.json").read_text())["evaluation"]
    assert (best["metric"], best["episodes"]) == ("success", 8)
    assert best["return_mean"] * 8 == int(best["return_mean"] * 8)
    lines = goal("eval", "goal", "--episodes", "4", "--trust-imports").out.split("\n")
    assert lines[0].split()[:4] == ["member", "snapshot", "episodes", "success"]
    assert "raw returns" not in lines[2]
    tags = b"".join(path.read_bytes() for path in Path("runs/goal/tb").rglob("events*"))
    assert b"episode/success" in tags


def test_missing_number_is_said_once(goal: Command) -> None:
    done = goal("train", "goal.yaml", "fitness.metric=episode/info/luck", "--progress", "plain")
    assert done.out.count("finished episodes have no luck: not part of the fitness") == 1
    assert done.code == 3
    reason = "no score: no episode of m00/000001 in env.id=goals:make has the number luck (fitness.metric)"
    assert done.err.splitlines()[-1].startswith(reason)


@pytest.mark.parametrize("source", ["training", "evaluation"])
def test_episodes_without_the_number_do_not_count_in_scores(goal: Command, source: str) -> None:
    overrides = ("fitness.metric=goals:when_lucky", f"fitness.source={source}")
    done = goal("train", "goal.yaml", *overrides, "--progress", "plain")
    assert done.code == 0, done.err
    best = json.loads(Path("runs/goal/best.json").read_text())["evaluation"]
    absent = best["unmeasured"]
    assert (best["episodes"], best["return_mean"]) == (8, 400.0)
    assert 0 < absent < 8
    assert f", 8 fresh episodes; {absent} of 8 episodes have no number of fitness.metric and do not count" in done.out
    line = goal("eval", "goal", "--trust-imports", "--episodes", "8").out.splitlines()[-1]
    assert re.search(r"m0\d: \d of 8 episodes have no when_lucky and do not count", line)
    assert all(m["fitness"] == 400.0 for m in goal("status", "goal", "--json").json["members"])


def test_own_function_is_code_of_the_run(goal: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert goal("train", "goal.yaml", "env.id=CartPole-v1", "fitness.metric=goals:half", "--dry-run").code == 0
    done = goal("train", "goal.yaml", "fitness.metric=goals:half")
    assert done.code == 0, done.err
    refused = goal("eval", "goal")
    assert refused.code == 2
    assert "goals" in refused.err
    monkeypatch.delattr(sys.modules["goals"], "half")  # the user has renamed it
    refused = goal("eval", "goal", "--trust-imports")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert refused.err.startswith("fitness.metric: goals:half cannot be imported: AttributeError")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("success", "must be episode/return_mean, episode/info/KEY or module:function, not 'success'"),
        ("episode/info/", "must be episode/return_mean, episode/info/KEY or module:function"),
        ("goals:nothing", "goals:nothing cannot be imported"),
        ("goals:np.pi", "goals:np.pi is not a function"),
    ],
)
def test_wrong_metric_is_refused_before_the_start(goal: Command, metric: str, message: str) -> None:
    refused = goal("train", "goal.yaml", f"fitness.metric={metric}")
    assert refused.code == 2
    assert f"override 'fitness.metric={metric}': {message}" in refused.err
    assert not Path("runs").exists()


def test_gymnasium_infos_are_read_per_env() -> None:
    from pbtrl.envs import make

    envs = make("tests.rl.test_episode_metric:walker", [1, 2])
    envs.reset()
    envs.step(np.zeros(2, np.int64))
    assert [envs.last_info(row)["row"] for row in (0, 1)] == [1, 1]
    envs.close()


class Walker(gymnasium.Env[Any, Any]):
    observation_space = Box(0.0, 1.0, (1,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        return np.zeros(1, np.float32), 0.0, False, False, {"row": 1}


def walker() -> Walker:
    return Walker()
