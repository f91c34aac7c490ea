"""Atari's two protocols against consoles stepped by hand, one frame at a time, through ale_py's ALEInterface."""

import ale_py
import numpy as np
import pytest
from ale_py import Action, roms

from pbtrl import envs


class Console:
    """One console and its last four images; independent of envs.atari and of ale_py's vector env."""

    def __init__(self, game, seed, stickiness):
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", stickiness)
        self.ale.setInt("random_seed", seed)
        self.ale.loadROM(roms.get_rom_path(game))
        self.ale.reset_game()
        self.pictures = [np.zeros((84, 84))] * 4

    def start(self, actions):
        """Give the actions before an episode, for a frame each; the episode begins with the picture after them."""
        for action in actions:
            self.ale.act(action)
        self.show(self.ale.getScreenGrayscale())

    def step(self, action):
        """Hold an action for four frames, or until the game is over; the sum of the rewards."""
        frames, reward = [], 0
        for _ in range(4):
            reward += self.ale.act(action)
            frames.append(self.ale.getScreenGrayscale())
            if self.ale.game_over():
                return reward
        self.show(np.maximum(frames[2], frames[3]))
        return reward

    def show(self, screen):
        """Shrink 210 x 160 pixels to 84 x 84, each the mean of an area of 2.5 rows and 40/21 columns."""
        rows = screen.astype(np.float64).repeat(2, 0).reshape(84, 5, 160).mean(1)
        self.pictures = [*self.pictures[1:], rows.repeat(21, 1).reshape(84, 84, 40).mean(2)]


FOUR = [Action.NOOP, Action.FIRE, Action.RIGHT, Action.LEFT]
NINE = [Action.NOOP, Action.UP, Action.RIGHT, Action.LEFT, Action.DOWN, Action.UPRIGHT, Action.UPLEFT,
        Action.DOWNRIGHT, Action.DOWNLEFT]  # fmt: skip
EVERY = [Action(i) for i in range(18)]
GAMES = {
    "sticky, minimal actions": ("ALE/Breakout-v5", "breakout", "sticky", {"full_action_space": False}, FOUR, 50),
    "sticky, no FIRE": ("ALE/MsPacman-v5", "ms_pacman", "sticky", {}, EVERY, 50),
    "sticky, all actions": ("ALE/Pong-v5", "pong", "sticky", {}, EVERY, 50),
    "classic, FIRE": ("ALE/Breakout-v5", "breakout", "classic", {}, FOUR, 400),  # random actions lose it earlier
    "classic, no FIRE": ("ALE/MsPacman-v5", "ms_pacman", "classic", {}, NINE, 50),
}


@pytest.mark.parametrize(("id", "game", "protocol", "kwargs", "actions", "steps"), GAMES.values(), ids=GAMES)
def test_game_equals_ale_frame_by_frame(id, game, protocol, kwargs, actions, steps):
    """Images may differ by one gray level, because OpenCV rounds them; everything else is equal."""
    classic = protocol == "classic"
    vector = envs.make(id, [7], protocol=protocol, training=True, kwargs=kwargs)
    observations, console = vector.reset(), Console(game, 7, stickiness=0.0 if classic else 0.25)
    frames, fire = (
        int(vector.last_info(0)["episode_frame_number"]),
        [Action.FIRE] if classic and game == "breakout" else [],
    )
    assert classic or frames == 0
    console.start([*fire, *[Action.NOOP] * (frames - len(fire))])
    for action in np.random.default_rng(1).integers(len(actions), size=steps):
        np.testing.assert_allclose(observations[0], console.pictures, atol=1)
        lives = console.ale.lives()
        observations, reward, terminated, truncated = vector.step(np.array([action]))
        assert reward[0] == console.step(actions[action])
        over = console.ale.game_over()
        assert terminated[0] == (over or (classic and console.ale.lives() < lives))
        assert (vector.episode_over[0], truncated[0]) == (over, False)
        if over:
            break
    vector.close()
    assert over == (steps == 400)


@pytest.mark.parametrize(("protocol", "most"), [("sticky", 0), ("classic", 30)])
def test_number_of_no_ops_follows_the_protocol(protocol, most):
    """Ms. Pac-Man has no FIRE, so nothing but no-ops comes before a game; any number of them is equally likely."""
    vector, frames = envs.make("ALE/MsPacman-v5", [0], protocol=protocol), []
    for _ in range(60):
        vector.reset()
        frames.append(int(vector.last_info(0)["episode_frame_number"]))
    vector.close()
    assert most - 6 <= max(frames) <= most
    assert min(frames) <= 6
    assert np.mean(frames) == pytest.approx(most / 2, abs=5)


@pytest.mark.parametrize(("frames", "steps"), [(40, 10), (42, 11), (3, 1), (4e1, 10)])
def test_step_limit_is_that_of_the_game(frames, steps):
    """Evaluation cuts an episode there, so it must be neither earlier nor a fraction."""
    vector = envs.make("ALE/Pong-v5", [0], kwargs={"max_num_frames_per_episode": frames})
    limit = vector.max_episode_steps
    assert (limit, type(limit)) == (steps, int)
    vector.reset()
    cut = [bool(vector.step(np.array([0]))[3][0]) for _ in range(steps)]
    vector.close()
    assert cut == [False] * (steps - 1) + [True]


def test_game_is_truncated_at_its_frame_limit():
    vector = envs.make("ALE/Pong-v5", [0], kwargs={"max_num_frames_per_episode": 84})
    vector.reset()
    cut = [vector.step(np.array([0]))[3][0] for _ in range(24)]
    vector.close()
    assert [bool(c) for c in cut] == [False] * 20 + [True] + [False] * 3
