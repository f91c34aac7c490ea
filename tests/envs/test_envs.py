"""Envs: one conformance class for all backends, then the specifics of each."""

import contextlib
import importlib
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary

from pbtrl import envs
from pbtrl.envs import maze
from pbtrl.envs.probes import Probe
from pbtrl.envs.vector import SEED_LIMIT, Spaces, Vector
from pbtrl.errors import MissingPackageError


def actions_of(seed, steps, space):
    """Actions of the env seeded with `seed`, [T] or [T, A]; they depend on nothing else."""
    rng = np.random.default_rng(seed)
    if isinstance(space, Discrete):
        return rng.integers(0, space.n, steps)
    return rng.uniform(space.low, space.high, (steps, *space.shape)).astype(np.float32)


def trajectory(vector, seeds, steps):
    """All outputs of a fresh vector: observations [T + 1, N, ...], rewards, the four flags [T, N]."""
    chosen = np.stack([actions_of(seed, steps, vector.single_action_space) for seed in seeds], 1)
    observations, rows = [vector.reset().copy()], []
    for actions in chosen:
        obs, rewards, terminated, truncated = vector.step(actions)
        observations.append(obs.copy())
        rows.append(
            (rewards, terminated.copy(), truncated.copy(), vector.episode_over.copy(), vector.is_reset_step.copy())
        )
    return [np.stack(observations), *(np.stack(column) for column in zip(*rows, strict=True))]


@pytest.fixture(scope="class")
def run(request):
    """The vector of four envs on two threads that the conformance class asks for, and its trajectory."""
    wanted, seeds = request.cls, [3, 11, 5, SEED_LIMIT - 1]
    vector = envs.make(wanted.id, seeds, threads=2, **wanted.options)
    result = trajectory(vector, seeds, wanted.steps)
    vector.close()
    vector.close()
    return vector, result


class Conformance:
    """The env contract. A back end is checked by subclassing this with an id and its options."""

    id = ""
    options: dict = {}  # noqa: RUF012
    steps = 60
    ends = True
    """Whether episodes end within `steps`."""

    def test_shapes_and_types(self, run):
        vector, (obs, rewards, terminated, truncated, over, dead) = run
        space = vector.single_observation_space
        assert vector.num_envs == 4
        assert isinstance(space, Box)
        assert obs.shape == (self.steps + 1, 4, *space.shape)
        assert obs.dtype == space.dtype
        assert rewards.dtype == np.float32
        assert {flag.dtype for flag in (terminated, truncated, over, dead)} == {np.dtype(bool)}
        assert np.isfinite(obs).all()
        assert np.isfinite(rewards).all()

    def test_spaces_are_known_before_making(self, run):
        options = {k: v for k, v in self.options.items() if k != "training"}
        known = envs.spaces(self.id, **options)
        assert known[:2] == (run[0].single_observation_space, run[0].single_action_space)

    def test_transition_after_an_episode_is_a_reset_step(self, run):
        _, (_, rewards, terminated, truncated, over, dead) = run
        assert not dead[0].any()
        assert (dead[1:] == over[:-1]).all()
        assert not rewards[dead].any()
        assert not (terminated | truncated | over)[dead].any()

    def test_every_end_is_flagged(self, run):
        _, (_, _, terminated, truncated, over, _) = run
        assert over.any() == self.ends
        assert ((terminated | truncated)[over]).all()
        assert over[truncated].all()

    def test_env_depends_on_its_own_seed_only(self, run):
        alone = trajectory(envs.make(self.id, [11], **self.options), [11], self.steps)
        for together, single in zip(run[1], alone, strict=True):
            np.testing.assert_array_equal(together[:, 1:2], single)

    def test_later_resets_start_afresh_and_repeatably(self):
        first, second = (self.reset_twice() for _ in range(2))
        np.testing.assert_array_equal(first, second)

    def reset_twice(self):
        vector = envs.make(self.id, [1, 2], **self.options)
        vector.reset()
        vector.step(np.stack([actions_of(1, 1, vector.single_action_space)[0]] * 2))
        obs = vector.reset().copy()
        assert not vector.is_reset_step.any()
        assert not vector.episode_over.any()
        vector.close()
        return obs


class TestCartPole(Conformance):
    id = "CartPole-v1"
    options = {"backend": "gymnasium"}  # noqa: RUF012


class TestCartPolePool(Conformance):
    id = "CartPole-v1"
    options = {"backend": "envpool"}  # noqa: RUF012


class TestPendulum(Conformance):
    id = "Pendulum-v1"
    options = {"backend": "gymnasium"}  # noqa: RUF012
    steps = 230


class TestPendulumPool(Conformance):
    id = "Pendulum-v1"
    options = {"backend": "envpool"}  # noqa: RUF012
    steps = 230


class TestHalfCheetah(Conformance):
    id = "HalfCheetah-v5"
    options = {"backend": "gymnasium"}  # noqa: RUF012
    ends = False


class TestHalfCheetahPool(Conformance):
    id = "HalfCheetah-v5"
    options = {"backend": "envpool"}  # noqa: RUF012
    ends = False


class TestFrozenLake(Conformance):
    id = "FrozenLake-v1"
    options = {"backend": "gymnasium"}  # noqa: RUF012


class TestFrozenLakePool(Conformance):
    id = "FrozenLake-v1"
    options = {"backend": "envpool"}  # noqa: RUF012


class TestPongSticky(Conformance):
    id = "ALE/Pong-v5"
    options = {"kwargs": {"max_num_frames_per_episode": 160}}  # noqa: RUF012


class TestBreakoutClassic(Conformance):
    id = "ALE/Breakout-v5"
    options = {"protocol": "classic"}  # noqa: RUF012
    steps = 260


class TestFunction(Conformance):
    id = f"{__name__}:walk"
    options = {"kwargs": {"length": 7}}  # noqa: RUF012


class TestPicture(Conformance):
    id = "probe/BrightSide-v0"


class TestMaze(Conformance):
    id = "maze/Foraging-v0"
    options = {"kwargs": {"length": 25}}  # noqa: RUF012


class TestObservedReward(Conformance):
    id = "probe/ObservedReward-v0"


class Walk(Probe):
    """A user's env: a random walk whose actions count from 3, cut after `length` steps."""

    def __init__(self, length):
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = Discrete(2, start=3)
        self.length, self.at = length, 0.0

    def begin(self):
        self.at = float(self.np_random.normal())

    def observe(self):
        return np.array([self.at, self.t])

    def outcome(self, action):
        assert self.action_space.contains(action)
        self.at += float(action) - 3.5 + self.np_random.normal()
        return self.at, False, self.t == self.length - 1


def walk(length):
    return Walk(length)


def odd(observations=None, actions=None):
    """Env with the given spaces."""
    env = Walk(1)
    env.observation_space = observations or env.observation_space
    env.action_space = actions or env.action_space
    return env


class TestTruncation:
    @pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
    def test_pendulum_is_truncated_with_its_last_observation(self, backend):
        vector = envs.make("Pendulum-v1", [4, 9], backend=backend)
        obs, _, terminated, truncated, over, dead = trajectory(vector, [4, 9], 203)
        assert (over.nonzero()[0] == 199).all()
        assert not terminated.any()
        assert truncated[199].all()
        assert dead[200].all()
        assert np.abs(obs[200, :, 2] - obs[199, :, 2]).max() < 8  # still the same swing
        assert np.abs(obs[201, :, 2]).max() <= 1  # Pendulum starts no faster

    def test_atari_is_cut_at_its_frame_cap(self):
        options = {"protocol": "classic", "kwargs": {"max_num_frames_per_episode": 100}}
        vector = envs.make("ALE/Pong-v5", [0], **options)
        _, _, terminated, truncated, over, _ = trajectory(vector, [0], 30)
        assert truncated.any()
        assert not terminated.any()
        assert (over == truncated).all()


@pytest.fixture(scope="module")
def games():
    """Classic Breakout, one random player, by `training`: it loses all five lives in some 200 steps."""

    def play(training):
        return trajectory(envs.make("ALE/Breakout-v5", [5], protocol="classic", training=training), [5], 420)

    return {training: play(training) for training in (True, False)}


class TestLives:
    def test_lost_life_terminates_learning_but_not_the_game(self, games):
        _, _, terminated, _, over, dead = games[True]
        ends = over[:, 0].nonzero()[0]
        assert len(ends) >= 1
        assert terminated[: ends[0] + 1].sum() == 5
        lost = terminated & ~over
        assert not dead[1:][lost[:-1]].any()

    def test_evaluation_sees_whole_games_only(self, games):
        _, _, terminated, _, over, _ = games[False]
        assert (terminated == over).all()

    def test_games_are_the_same(self, games):
        for index in (0, 1, 3, 4, 5):
            np.testing.assert_array_equal(games[True][index], games[False][index])

    @pytest.mark.parametrize(
        ("before", "lives", "dead", "life_lost"),
        [
            (3, 2, False, True),
            (3, 3, False, False),
            (1, 0, False, False),
            (6, 5, True, False),
            (3, 4, False, False),
        ],
    )
    def test_life_loss_table(self, before, lives, dead, life_lost):
        """(1, 0): the last life counts with the end of the game; (6, 5) dead: the next game began."""
        from pbtrl.envs.atari import AtariVector

        spaces = Spaces(Box(0, 255, (4, 8, 8), np.uint8), Discrete(2))
        vector = AtariVector(StubConsole([before, lives], over=dead), spaces, [0], "stub", lives_end=True)
        vector.reset()
        vector.step(np.zeros(1, np.int64))
        _, _, terminated, _ = vector.step(np.zeros(1, np.int64))
        assert terminated[0] == life_lost
        assert not vector.episode_over[0]


class StubConsole:
    """A console that reports `lives` in turn; with `over` its first step is cut by the frame cap."""

    def __init__(self, lives, over):
        self.lives, self.over = list(lives), over

    def reset(self, seed=None):
        return np.zeros((1, 4, 8, 8), np.uint8), {"lives": np.array(self.lives[:1])}

    def step(self, actions):
        cut, self.over = np.array([self.over]), False
        lives = np.array([self.lives.pop(0)])
        return (
            np.zeros((1, 4, 8, 8), np.uint8),
            np.zeros(1, np.int32),
            np.zeros(1, bool),
            cut,
            {"lives": lives},
        )


class TestAtari:
    def test_action_sets(self):
        """`sticky` has all 18 actions (Machado et al. 2018), `classic` those of the game, if kwargs say nothing."""
        for protocol, count in (("sticky", 18), ("classic", 6)):
            for full in (None, True, False):
                kwargs = {} if full is None else {"full_action_space": full}
                expected = Discrete(count if full is None else 18 if full else 6)
                assert envs.spaces("ALE/Pong-v5", protocol=protocol, kwargs=kwargs).single_action_space == expected
                with contextlib.closing(envs.make("ALE/Pong-v5", [0], protocol=protocol, kwargs=kwargs)) as vector:
                    assert vector.single_action_space == expected

    def test_rewards_are_raw(self):
        rewards = trajectory(envs.make("ALE/MsPacman-v5", [0]), [0], 100)[1]
        assert rewards.max() >= 10  # a pellet

    def test_sticky_games_start_equal_and_diverge_by_seed(self):
        vector = envs.make("ALE/Pong-v5", [1, 2])
        obs = vector.reset()
        np.testing.assert_array_equal(obs[0], obs[1])
        for action in actions_of(0, 200, vector.single_action_space):
            obs = vector.step(np.full(2, action))[0]
        assert (obs[0] != obs[1]).any()


class TestPresentation:
    @pytest.mark.parametrize(
        ("shape", "expected"),
        [
            ((96, 96, 3), (3, 96, 96)),
            ((4, 84, 84), (4, 84, 84)),
            ((64, 64, 12), (12, 64, 64)),
            ((8, 8, 8), (8, 8, 8)),
        ],
    )
    def test_images_are_channels_first(self, shape, expected):
        vector = Vector(None, Spaces(Box(0, 255, shape, np.uint8), Discrete(2)), [0], "here")
        picture = np.random.default_rng(0).integers(0, 255, (1, *shape)).astype(np.uint8)
        assert vector.single_observation_space.shape == expected
        assert vector._convert_observations(picture).shape == (1, *expected)
        if shape != expected:
            np.testing.assert_array_equal(vector._convert_observations(picture)[0, 1], picture[0, :, :, 1])

    def test_float_grids_are_unchanged(self):
        space = Box(0.0, 1.0, (8, 8, 3), np.float32)
        assert Vector(None, Spaces(space, Discrete(2)), [0], "here").single_observation_space == space

    def test_discrete_observations_are_one_hot(self):
        vector = envs.make("FrozenLake-v1", [0, 1], backend="gymnasium")
        np.testing.assert_array_equal(vector.reset(), np.eye(16, dtype=np.float32)[[0, 0]])

    def test_last_info_is_of_one_env(self):
        vector = envs.make("HalfCheetah-v5", [0, 1], backend="gymnasium")
        pool = envs.make("HalfCheetah-v5", [0, 1], backend="envpool")
        for each in (vector, pool):
            each.reset()
            each.step(np.ones((2, 6), np.float32))
            for row in range(2):
                assert np.isfinite(each.last_info(row)["x_velocity"])
                assert "nothing" not in each.last_info(row)


class TestBackend:
    def test_auto_uses_envpool_for_gymnasium_envs(self):
        assert envs.resolve_backend("HalfCheetah-v5", "auto") == "envpool"
        assert envs.resolve_backend("probe/Bandit-v0", "auto") == "gymnasium"
        assert envs.resolve_backend("ALE/Pong-v5", "auto") == "gymnasium"
        assert envs.resolve_backend(f"{__name__}:walk", "auto") == "gymnasium"
        assert envs.resolve_backend("CartPole-v1", "gymnasium") == "gymnasium"

    def test_auto_uses_gymnasium_for_options_without_envpool(self):
        assert envs.resolve_backend("HalfCheetah-v5", "auto", {"forward_reward_weight": 2.0}) == "envpool"
        assert envs.resolve_backend("HalfCheetah-v5", "auto", {"render_mode": "rgb_array"}) == "gymnasium"

    def test_without_envpool(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "pbtrl.envs.pool", None)
        assert envs.resolve_backend("CartPole-v1", "auto") == "gymnasium"
        with pytest.raises(MissingPackageError, match=r'needs envpool, .*: pip install "pbtrl\[fast\]"'):
            envs.resolve_backend("CartPole-v1", "envpool")


class TestErrors:
    @pytest.mark.parametrize(
        ("id", "options", "says"),
        [
            ("HalfChetah-v5", {}, "nearest: HalfCheetah-v5"),
            ("Pong-v5", {}, "nearest: ALE/Pong-v5"),
            ("PongNoFrameskip-v4", {}, "v5 id; nearest: ALE/Pong-v5"),
            ("ALE/Pongg-v5", {}, "nearest: ALE/Pong-v5"),
            ("zzzqqq", {}, "module:function"),
            ("no_such_module:make", {}, "cannot import no_such_module"),
            (f"{__name__}:no_such", {}, "has no function no_such"),
            ("os:getcwd", {}, "returned a str, not a gymnasium.Env"),
            (f"{__name__}:walk", {"kwargs": {"legs": 2}}, "could not be made: TypeError"),
            (f"{__name__}:odd", {"kwargs": {"actions": MultiBinary(3)}}, "type MultiBinary"),
            (f"{__name__}:odd", {"kwargs": {"actions": Box(-1, 1, (2, 2))}}, "one-dimensional float Box"),
            (f"{__name__}:odd", {"kwargs": {"observations": Dict(a=Discrete(2))}}, "env.flatten_observations=true"),
            ("Blackjack-v1", {"backend": "gymnasium"}, "type Tuple"),
            ("CartPole-v1", {"backend": "gymnasium", "kwargs": {"wings": 2}}, "wings"),
            ("CartPole-v1", {"backend": "envpool", "kwargs": {"wings": 2}}, "has no option wings"),
            ("CartPoel-v1", {"backend": "envpool"}, "nearest: CartPole-v"),
            ("CartPole-v1", {"backend": "warp"}, "auto, gymnasium, envpool"),
            ("ALE/Pong-v5", {"backend": "envpool"}, "env.backend=auto"),
            ("ALE/Pong-v5", {"protocol": "soft"}, "sticky, classic"),
            ("ALE/Pong-v5", {"kwargs": {"frameskip": 1}}, "env.kwargs.frameskip: is not an option"),
            ("ALE/Pong-v5", {"kwargs": {"stack_num": "four"}}, "env.kwargs.stack_num=four"),
        ],
    )
    def test_errors_are_one_line(self, id, options, says):
        for call in (envs.spaces, lambda *a, **k: envs.make(*a, [0], **k)):
            with pytest.raises(envs.EnvError) as caught:
                call(id, **options)
            assert says in str(caught.value)
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ({"seeds": [SEED_LIMIT]}, "2\\*\\*31"),
            ({"seeds": [-1]}, "seed -1"),
            ({"seeds": []}, "at least one"),
        ],
    )
    def test_seeds_are_checked(self, arguments, says):
        with pytest.raises(envs.EnvError, match=says):
            envs.make("CartPole-v1", **arguments)

    def test_error_in_step_names_the_env(self):
        vector = envs.make("probe/Raising-v0", [0], kwargs={"after": 2})
        vector.reset()
        for _ in range(2):
            vector.step(np.zeros(1, np.int64))
        message = r"env.id=probe/Raising-v0: step\(\) raised RuntimeError: .* asked to \(env 0 of 1, step 3\)"
        with pytest.raises(envs.EnvError, match=message) as caught:
            vector.step(np.zeros(1, np.int64))
        assert isinstance(caught.value.__cause__, RuntimeError)


class TestQuiet:
    def test_loading_a_mujoco_model_leaves_no_files(self, capfd, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        envs.make("HalfCheetah-v5", [0], backend="gymnasium").close()
        captured = capfd.readouterr()
        assert captured.out + captured.err == ""
        assert list(tmp_path.iterdir()) == []

    def test_mujoco_settings_are_restored(self):
        config = importlib.import_module("mujoco").MjLogConfig
        before = config.get().logto_console, config.get().logto_file
        envs.make("HalfCheetah-v5", [0], backend="gymnasium").close()
        assert (config.get().logto_console, config.get().logto_file) == before


def returns(id, policy, gamma, kwargs=None, episodes=1):
    """Mean discounted return of `policy(obs) -> action` over whole episodes."""
    env = gymnasium.make(id, **(kwargs or {}))
    total = 0.0
    for seed in range(episodes):
        obs, over, discount = env.reset(seed=seed)[0], False, 1.0
        while not over:
            obs, reward, terminated, truncated, _ = env.step(policy(obs))
            total += discount * reward
            discount *= gamma
            over = terminated or truncated
    return total / episodes


def distances(walls, goal):
    """Steps to the goal from every cell that can reach it."""
    result, edge = {goal: 0}, [goal]
    for y, x in edge:
        for dy, dx in maze.MOVES:
            there = y + dy, x + dx
            if not walls[there] and there not in result:
                result[there] = result[y, x] + 1
                edge.append(there)
    return result


class TestForaging:
    def test_every_cell_leads_to_the_goal(self):
        """A player who knows the way finds it often."""
        env = maze.Foraging()
        scores = {}
        for seed in range(20):
            env.reset(seed=seed)
            known, rng, steps = distances(env.walls, env.goal), np.random.default_rng(seed), 0
            assert len(known) == (~env.walls).sum() >= 31  # as many as a maze without loops has
            assert env.walls[[0, -1]].all()
            assert env.walls[:, [0, -1]].all()
            for knows in (True, False):
                env.reset(seed=seed)
                total, over = 0.0, False
                while not over:
                    y, x = env.at
                    ways = [known.get((y + dy, x + dx), 999) for dy, dx in maze.MOVES]
                    _, reward, _, over, _ = env.step(np.argmin(ways) if knows else rng.integers(4))
                    total, steps = total + reward, steps + 1
                scores.setdefault(knows, []).append(total)
            assert steps == 400
        assert np.mean(scores[True]) > 20
        assert np.mean(scores[False]) < 5

    @pytest.mark.parametrize(("name", "cells"), [("size", 3), ("size", 8), ("view", 4), ("view", -1)])
    def test_impossible_sizes_are_refused(self, name: str, cells: int):
        with pytest.raises(ValueError, match=f"{name} must be odd and at least ., not {cells}"):
            maze.Foraging(**{name: cells})

    def test_only_nearby_cells_are_visible(self):
        env = maze.Foraging(view=3, pixels=2)
        for seed in range(20):
            seen, _ = env.reset(seed=seed)
            assert seen.shape == (6, 6, 3)
            (y, x), cells = env.at, seen[::2, ::2]
            near = {(dy, dx): (y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
            for (dy, dx), place in near.items():
                color = cells[dy + 1, dx + 1]
                assert (tuple(color) == maze.GOAL) == (place == env.goal)
                assert (color[2] == 160) == env.walls[place]

    def test_wall_blocks_and_goal_teleports(self):
        env = maze.Foraging(size=5, loops=1.0)
        env.reset(seed=3)
        rewards = 0
        for action in np.random.default_rng(0).integers(0, 4, 150):
            before, (dy, dx) = env.at, maze.MOVES[action]
            there = before[0] + dy, before[1] + dx
            _, reward, *_ = env.step(action)
            rewards += reward
            assert reward == (there == env.goal)
            assert reward or env.at == (before if env.walls[there] else there)
            assert env.at != env.goal
        assert rewards > 3


class TestProbes:
    """The values in the docstrings of the probes are the returns of the stated policies."""

    def test_two_steps(self):
        assert returns("probe/TwoSteps-v0", lambda obs: 0, 0.9) == pytest.approx(0.9)

    def test_bandit(self):
        assert [returns("probe/Bandit-v0", lambda obs, a=a: a, 0.9) for a in range(3)] == [0.0, 0.5, 1.0]

    def test_previous_action(self):
        assert returns("probe/PreviousAction-v0", lambda obs: 1, 0.9) == pytest.approx(0.9 + 0.81 + 0.729 + 0.6561)
        last_only = returns("probe/PreviousAction-v0", lambda obs: int(obs[0] == 4), 0.9)
        assert last_only == 0.0

    def test_recall(self):
        cue = []

        def remember(obs):
            cue[:] = [obs[0]] if obs[0] else cue
            return int(cue[0] > 0)

        assert returns("probe/Recall-v0", remember, 0.9, episodes=20) == pytest.approx(0.9**3)
        assert 0.2 < returns("probe/Recall-v0", lambda obs: 1, 1.0, episodes=40) < 0.8

    def test_glimpse_needs_memory(self):
        seen = []

        def remember(obs):
            if obs.max() == 255:
                seen[:] = [int(obs[0, -1, 0] == 255)]
            return seen[0]

        assert returns("probe/Glimpse-v0", remember, 0.9, episodes=20) == pytest.approx(0.9**3)
        assert 0.2 < returns("probe/Glimpse-v0", lambda obs: 1, 1.0, episodes=40) < 0.8

    def test_time_limits_differ_only_in_the_kind_of_end(self):
        cut, ended = (trajectory(envs.make(f"probe/{name}-v0", [0]), [0], 8) for name in ("Truncated", "Terminated"))
        for index in (0, 1, 4, 5):
            np.testing.assert_array_equal(cut[index], ended[index])
        np.testing.assert_array_equal(cut[3], ended[2])
        assert returns("probe/Terminated-v0", lambda obs: 0, 0.9) == pytest.approx((1 - 0.9**3) / (1 - 0.9))

    def test_target(self):
        best = np.array([0.5, -0.3])
        assert returns("probe/Target-v0", lambda obs: best, 0.9) == pytest.approx(0.0)
        assert returns("probe/Target-v0", lambda obs: best + np.array([0.1, 0.2]), 0.9) == pytest.approx(-0.05)

    def test_bright_side(self):
        assert returns("probe/BrightSide-v0", lambda obs: int(obs[0, -1, 0] > 0), 0.9, episodes=10) == 1.0

    def test_observed_reward_and_constant_reward(self):
        for name in ("ObservedReward", "ConstantReward"):
            obs, rewards, *_, dead = trajectory(envs.make(f"probe/{name}-v0", [0]), [0], 20)
            np.testing.assert_array_equal(rewards[~dead], obs[:-1, :, 0][~dead])


@pytest.mark.parametrize(
    ("id", "backend", "kwargs", "limit"),
    [
        ("CartPole-v1", "gymnasium", {}, 500),
        ("CartPole-v1", "gymnasium", {"max_episode_steps": 7}, 7),
        ("CartPole-v1", "gymnasium", {"max_episode_steps": -1}, None),
        ("CartPole-v1", "envpool", {"max_episode_steps": 7}, 7),
        ("CliffWalking-v1", "gymnasium", {}, None),
        ("CliffWalking-v1", "envpool", {}, None),
        ("ALE/Pong-v5", "auto", {}, 27_000),
        ("ALE/Pong-v5", "auto", {"max_num_frames_per_episode": 400}, 100),
        ("tests.faulty_envs:cart", "auto", {}, 500),
        ("tests.faulty_envs:Endless", "auto", {}, None),
    ],
)
def test_vector_knows_its_episode_limit(id, backend, kwargs, limit):
    if backend == "envpool":
        pytest.importorskip("envpool")
    vector = envs.make(id, [1], backend=backend, kwargs=kwargs)
    vector.close()
    assert vector.max_episode_steps == limit
