"""How a `Vector` converts spaces, and how a reset clears earlier episodes."""

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from pbtrl import envs
from pbtrl.envs.atari import AtariVector
from pbtrl.envs.vector import Spaces, Vector, convert_spaces


@pytest.mark.parametrize("backend_space", [Box(3, 250, (32, 40, 3), np.uint8), Box(3, 250, (3, 32, 40), np.uint8)])
def test_image_bounds_follow_the_env(backend_space):
    space = convert_spaces(Spaces(backend_space, Discrete(2)), "here").single_observation_space
    assert space == Box(3, 250, (3, 32, 40), np.uint8)


def test_discrete_states_with_an_offset_are_one_hot():
    vector = Vector(Counting(), Spaces(Discrete(4, start=-1), Discrete(2, start=5)), [0, 0, 0], "here")
    np.testing.assert_array_equal(vector.reset(), np.eye(4, dtype=np.float32)[[0, 1, 3]])
    observations, *_ = vector.step(np.array([0, 1, 0]))
    np.testing.assert_array_equal(observations, np.eye(4, dtype=np.float32)[[3, 2, 1]])
    assert (vector.single_observation_space, vector.single_action_space) == (Box(0, 1, (4,), np.float32), Discrete(2))


class Counting:
    """Three envs whose states start at -1 and whose actions start at 5."""

    def reset(self, seed=None):
        return np.array([-1, 0, 2]), {}

    def step(self, actions):
        assert actions.tolist() == [5, 6, 5]
        never = np.zeros(3, bool)
        return np.array([2, 1, 0]), np.zeros(3), never, never, {}


class Still:
    """One env with a constant observation and these numbers of lives: after each reset, then after each step."""

    def __init__(self, shown, lives=()):
        self.shown, self.lives = shown, list(lives)

    def said(self):
        return {"lives": np.array([self.lives.pop(0)])} if self.lives else {}

    def reset(self, seed=None):
        return self.shown, self.said()

    def step(self, actions):
        never = np.zeros(1, bool)
        return self.shown, np.zeros(1), never, never, self.said()


@pytest.mark.parametrize(("shape", "moved"), [((8, 8, 8), False), ((4, 8, 8), False), ((8, 8, 4), True)])
def test_shorter_axis_is_the_channels(shape, moved):
    """Of equal axes the first is taken."""
    picture = np.random.default_rng(0).integers(0, 255, (1, *shape)).astype(np.uint8)
    vector = Vector(Still(picture), Spaces(Box(0, 255, shape, np.uint8), Discrete(2)), [0], "here")
    np.testing.assert_array_equal(vector.reset(), np.moveaxis(picture, -1, 1) if moved else picture)


@pytest.mark.parametrize(
    ("lives", "lost"),
    [([3, 2], [True]), ([5, 5, 3, 3], [False, False]), ([5, 5, 3, 2], [False, True]), ([1, 1, 3, 3], [False, False])],
)
def test_lives_are_read_again_after_reset(lives, lost):
    """A reset, a step; and once more: the games differ in their lives."""
    spaces = Spaces(Box(0, 255, (4, 8, 8), np.uint8), Discrete(2))
    still = Still(np.zeros((1, 4, 8, 8), np.uint8), lives)
    vector = AtariVector(still, spaces, [0], "here", lives_end=True)
    result = []
    for _ in lost:
        vector.reset()
        result.append(bool(vector.step(np.zeros(1, np.int64))[2][0]))
    assert result == lost


@pytest.mark.parametrize("steps", [1, 2])
def test_reset_clears_episode_flags(steps):
    """An episode of this env is one step; the second one is dead."""
    vector = envs.make("probe/Bandit-v0", [0, 1])
    vector.reset()
    for _ in range(steps):
        vector.step(np.zeros(2, np.int64))
    assert (vector.episode_over if steps == 1 else vector.is_reset_step).all()
    vector.reset()
    assert not vector.is_reset_step.any()
    assert not vector.episode_over.any()
    vector.step(np.zeros(2, np.int64))
    assert not vector.is_reset_step.any()
    vector.close()


@pytest.mark.parametrize("backend", ["gymnasium", "envpool"])
def test_only_the_first_reset_seeds(backend):
    vector = envs.make("CartPole-v1", [3, 4], backend=backend)
    starts = np.stack([vector.reset().copy() for _ in range(4)])
    vector.close()
    assert len(np.unique(starts[..., 0])) == 8
