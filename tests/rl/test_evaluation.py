"""Evaluation: fixed quotas, seeds, and snapshots that do not depend on each other."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pbtrl import envs
from pbtrl.agents.types import ActOutput, Inputs
from pbtrl.build.rl import RLBuilder
from pbtrl.config.load import config_from_dict
from pbtrl.core.scores import EvaluationEpisodes
from pbtrl.core.seeding import env_seeds
from pbtrl.core.tensors import Tensors
from pbtrl.envs import Vector
from pbtrl.rl import evaluation
from pbtrl.rl.evaluation import evaluate
from tests.rl.scripted_envs import CountingAgent, scripted_envs


def builder(**env: Any) -> RLBuilder:
    budget = {"env_steps_per_member": 1000}
    return RLBuilder(config_from_dict({"env": env, "agent": {"observations": "raw"}, "budget": budget}))


def fresh(build: RLBuilder, seed: int) -> Tensors:
    """Snapshot of an untrained member."""
    state = build.agent.init([torch.Generator().manual_seed(seed)])
    return {name: value[0].numpy() for name, value in state.tensors.items()}


class Recorder(CountingAgent):
    """Agent that acts at random, and records its inputs and outputs at every step."""

    def __init__(self, actions: int = 1000) -> None:
        super().__init__(actions)
        self.shown: list[Inputs] = []
        self.acted: list[ActOutput] = []

    def noise(self, generators: Sequence[torch.Generator], time: int, envs: int) -> torch.Tensor:
        return torch.stack([torch.randint(self.actions, (time, envs), generator=g) for g in generators], 1)

    def act(self, state: Any, inputs: Inputs, memory: torch.Tensor, noise: Any) -> ActOutput:
        self.shown.append(Inputs(*(x.clone() for x in vars(inputs).values())))
        self.acted.append(super().act(state, inputs, memory, noise))
        return self.acted[-1]


def play(
    episodes: int,
    members: int,
    lengths: Sequence[int],
    own_limit: int | None = None,
    *,
    seed: int = 3,
    agent: Any = None,
    **options: Any,
) -> tuple[list[EvaluationEpisodes], list[Vector]]:
    """Evaluate members in envs with episodes of these lengths."""
    made: list[Vector] = []

    def make(seeds: Sequence[int], threads: int) -> Vector:
        assert list(seeds) == env_seeds(seed, len(seeds) // members) * members
        made.append(scripted_envs([*lengths][: len(seeds) // members] * members))
        made[-1].max_episode_steps = own_limit
        return made[-1]

    agent = agent or CountingAgent()
    return evaluate(agent, lambda action: action, make, [{}] * members, episodes=episodes, seed=seed, **options), made


def test_every_env_plays_its_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short its episodes are; otherwise short ones would be overrepresented."""
    monkeypatch.setattr(evaluation, "ENVS", 3)
    (one, two), _ = play(7, 2, [2, 5, 40])
    assert one.lengths == two.lengths == [2] * 3 + [5] * 2 + [40] * 2
    assert one.returns == [20.0] * 3 + [100.0] * 2 + [1200.0] * 2
    assert two.returns == [80.0] * 3 + [250.0] * 2 + [2400.0] * 2  # the scripted envs pay by row
    assert one.seeds == two.seeds == env_seeds(3, 3)


@pytest.mark.parametrize(("episodes", "count"), [(1, 1), (5, 5), (16, 16), (20, 16), (40, 16)])
def test_requested_episodes_from_at_most_sixteen_envs(episodes: int, count: int) -> None:
    (played,), (vector,) = play(episodes, 1, range(1, 17))
    assert vector.num_envs == count == len(set(played.seeds))
    assert len(played.returns) == len(played.lengths) == episodes
    quotas = np.bincount(played.lengths)[1:]
    assert quotas.max() - quotas.min() <= 1
    assert vector._pool is None  # closed


def test_policy_inputs_and_memory_until_an_episode_ends() -> None:
    agent = Recorder()
    play(4, 2, [2, 5, 3, 4], agent=agent)
    paid = torch.tensor([[10.0, 20.0, 30.0, 40.0], [50.0, 60.0, 70.0, 80.0]])
    ages = torch.stack([inputs.observations[..., 1] for inputs in agent.shown])
    for t, (inputs, acted) in enumerate(zip(agent.shown, agent.acted, strict=True)):
        assert torch.equal(inputs.first, ages[t] == 0)
        assert torch.equal(inputs.rewards, torch.where(inputs.first, 0.0, paid))
        assert torch.equal(acted.rnn_state[..., 0], ages[t] + 1)  # it counts the observations of the episode
        assert torch.equal(inputs.actions, agent.acted[t - 1].actions if t else torch.full((2, 4), -1))
    assert (ages[1:] == 0).any()


def test_noise_differs_per_step_and_seed() -> None:
    """The envs' seeds do not matter here, so the actions' seeds do."""
    actions = []
    for seed in (3, 3, 4):
        agent = Recorder()
        play(2, 2, [8, 8], seed=seed, agent=agent)
        actions.append(torch.stack([acted.actions for acted in agent.acted]))
        assert len(actions[-1].flatten(1).unique(dim=0)) == len(actions[-1]) == 8
        assert len(actions[-1][:, 0].unique()) > 8  # nor do two envs share it
    assert torch.equal(actions[0], actions[1])
    assert not (actions[0] == actions[2]).all(dim=-1).any()


def test_images_stay_uint8() -> None:
    agent = Recorder(actions=2)
    make = functools.partial(envs.make, "probe/BrightSide-v0")
    evaluate(agent, lambda action: action, lambda seeds, threads: make(seeds), [{}], episodes=2, seed=3)
    assert {inputs.observations.dtype for inputs in agent.shown} == {torch.uint8}
    assert {inputs.observations.shape for inputs in agent.shown} == {(1, 2, 3, 36, 36)}


def test_snapshots_evaluated_together_equal_each_alone() -> None:
    build = builder(id="CartPole-v1", backend="gymnasium")
    rows = [{**row, "params": 50 * row["params"]} for row in (fresh(build, seed) for seed in range(3))]
    for deterministic in (False, True):
        options: Any = {"episodes": 5, "seed": 9, "deterministic": deterministic}
        together = build.evaluate(rows, **options)
        assert [build.evaluate([row], **options)[0] for row in rows] == together
        assert len({tuple(played.returns) for played in together}) == 3
        assert len({tuple(played.seeds) for played in together}) == 1


def test_seed_decides_everything() -> None:
    build = builder(id="CartPole-v1", backend="gymnasium")
    row = fresh(build, 0)
    one, again, other = (build.evaluate([row], episodes=8, seed=seed)[0] for seed in (1, 1, 2))
    assert one == again
    assert one.returns == [float(n) for n in one.lengths]
    assert one.returns != other.returns
    assert not set(one.seeds) & set(other.seeds)


def test_deterministic_takes_the_mode() -> None:
    build = builder(id="probe/Bandit-v0")
    row = fresh(build, 0)
    for name, value in build.agent.layout.views(torch.from_numpy(row["params"])[None]).items():
        if name == "policy.2.bias":
            value[0, 0, :3] = torch.tensor([0.0, 0.5, 0.0])
    (sampled,) = build.evaluate([row], episodes=40, seed=1)
    assert set(sampled.returns) == {0.0, 0.5, 1.0}
    (mode,) = build.evaluate([row], episodes=40, seed=1, deterministic=True)
    assert set(mode.returns) == {0.5}


def test_whole_games_are_played_despite_life_loss_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training ends an episode at a lost life; evaluation does not."""
    real, lives, ends = envs.make, [], []

    def make(*args: Any, **options: Any) -> Vector:
        assert options["protocol"] == "classic"
        vector = real(*args, **options)
        step = vector.step

        def watched(actions: Any) -> Any:
            result = step(actions)
            lives.append(int(vector.last_info(0)["lives"]))
            ends.append(bool(result[2][0]))
            return result

        monkeypatch.setattr(vector, "step", watched)
        return vector

    monkeypatch.setattr(envs, "make", make)
    build = builder(id="ALE/Breakout-v5", protocol="classic")
    (played,) = build.evaluate([fresh(build, 0)], episodes=1, seed=5)
    assert sorted(set(lives)) == [0, 1, 2, 3, 4, 5]
    assert ends == [False] * (len(ends) - 1) + [True]
    assert played.lengths == [len(lives)]
    assert len(played.returns) == 1


class Film:
    """Camera that keeps what it gets at the ends of episodes."""

    def __init__(self) -> None:
        self.ends: list[tuple[int, float, int]] = []

    def shoot(self, vector: Vector) -> None:
        pass

    def end(self, index: int, result: float, length: int) -> None:
        self.ends.append((index, result, length))


def longer_than_two(vector: Vector, row: int, episode_return: float, length: int) -> float | None:
    """Metric that the first env's episodes do not have."""
    return None if length <= 2 else float(length > 4)


def test_camera_gets_the_return_whatever_the_metric_is() -> None:
    film: Any = Film()
    (played,), _ = play(3, 1, [2, 5, 4], metric=longer_than_two, camera=film)
    assert (played.returns, played.lengths, played.unmeasured) == ([1.0, 0.0], [2, 5, 4], 1)
    assert film.ends == [(0, 20.0, 2), (2, 120.0, 4), (1, 100.0, 5)]


def test_evaluation_without_any_number_is_no_empty_one() -> None:
    """An empty one, as after an early stop, would keep the fitness of the last slice."""
    fitness = {"metric": "episode/info/nothing", "source": "evaluation", "episodes": 2}
    tree = {"env": {"id": "CartPole-v1"}, "budget": {"env_steps_per_member": 1000}, "fitness": fitness}
    build = RLBuilder(config_from_dict(tree))
    assert build.spec.evaluate
    (result,) = build.spec.evaluate(fresh(build, 0), 1, 1)
    assert np.isnan(result)


ENDLESS = 10**9


def test_endless_episode_is_truncated_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every env plays its quota. A truncated env starts its next episode with a reset once no other env plays."""
    monkeypatch.setattr(evaluation, "ENVS", 3)
    (one, two), _ = play(7, 2, [4, 10, ENDLESS], max_steps=10)
    assert one.lengths == two.lengths == [4] * 3 + [10] * 2 + [10] * 2
    assert one.returns == [40.0] * 3 + [200.0] * 2 + [300.0] * 2
    assert (one.truncated, one.max_steps, one.timed_out) == (2, 10, False)  # who ends at the limit is not cut


def test_truncated_episode_leaves_no_memory() -> None:
    """The next episode gets no memory, last action or reward, and its first step is marked as such."""
    seen: list[Inputs] = []
    memories: list[float] = []

    class Watching(CountingAgent):
        def act(self, state: Any, inputs: Inputs, memory: Any, noise: Any) -> Any:
            seen.append(inputs)
            memories.append(float(memory[0, 0, 0]))
            return super().act(state, inputs, memory, noise)

    agent: Any = Watching()
    (played,) = evaluate(
        agent,
        lambda a: a,
        lambda seeds, _: scripted_envs([ENDLESS] * len(seeds)),
        [{}],
        episodes=32,
        seed=3,
        max_steps=5,
    )
    assert (played.lengths, played.truncated) == ([5] * 32, 32)
    assert memories == [0.0, 1.0, 2.0, 3.0, 4.0] * 2
    for t in (0, 5):
        assert seen[t].first.all()
        assert (seen[t].actions == -1).all()
        assert (seen[t].rewards == 0).all()
        assert (seen[t].observations[..., 1] == 0).all()


@pytest.mark.parametrize(
    ("own", "options", "limit"),
    [
        (None, {}, None),
        (None, {"fallback": 12}, 12),
        (8, {"fallback": 12}, 8),
        (8, {"max_steps": 5, "fallback": 12}, 5),
        (8, {"max_steps": 20}, 20),
    ],
)
def test_step_limit_is_setting_then_env_then_fallback(own: Any, options: Any, limit: int | None) -> None:
    (played,), _ = play(1, 1, [15], own, **options)
    assert played.max_steps == limit
    assert played.lengths == [min(15, limit or 15)]
    assert played.truncated == (played.lengths != [15])


def test_episodes_in_progress_are_truncated_at_the_time_limit() -> None:
    (played,), _ = play(40, 1, [ENDLESS] * 16, max_steps=10, seconds=0.0)
    assert (played.lengths, played.truncated, played.timed_out) == ([1] * 16, 16, True)
    (short,), _ = play(40, 1, [1] * 16, seconds=0.0)
    assert (short.lengths, short.truncated, short.timed_out) == ([1] * 16, 0, True)
    (enough,), _ = play(3, 1, [1, 2, 3], seconds=60.0)
    assert (enough.lengths, enough.truncated, enough.timed_out) == ([1, 2, 3], 0, False)


@pytest.mark.parametrize("env", [{"id": "CartPole-v1", "backend": b} for b in ("gymnasium", "envpool")])
def test_simulators_are_reset_after_truncation(env: dict[str, Any]) -> None:
    if env["backend"] == "envpool":
        pytest.importorskip("envpool")
    build = RLBuilder(
        config_from_dict({"env": env, "budget": {"env_steps_per_member": 1000}, "final": {"max_steps": 5}})
    )
    (played,) = build.evaluate([fresh(build, 0)], episodes=40, seed=1)
    assert (played.lengths, played.returns, played.truncated) == ([5] * 40, [5.0] * 40, 40)
