"""Pictures of envs: who can render, how MuJoCo does it without a display, and the color twin of Atari games."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from PIL import Image

from pbtrl import envs
from pbtrl.envs import rendering
from pbtrl.errors import RenderError


class Drawn(gymnasium.Env[Any, Any]):
    """Env that renders whatever it is told."""

    observation_space, action_space = Box(-1, 1, (2,)), Discrete(2)
    picture: Any = np.full((4, 6, 3), 7, np.uint8)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, **_: Any) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def render(self) -> Any:
        if isinstance(self.picture, Exception):
            raise self.picture
        return self.picture


def mute() -> Drawn:
    return Drawn()


def shown(id: str, rendered: int = 1, **options: Any) -> envs.Vector:
    vector = envs.make(id, [3, 4], rendered=rendered, **options)
    vector.reset()
    return vector


def test_function_with_a_render_mode_is_rendered() -> None:
    vector = shown(f"{__name__}:Drawn")
    assert (vector.render(0) == Drawn.picture).all()
    assert [env.render_mode for env in vector._pool.envs] == ["rgb_array", None]
    assert vector.fps == 30


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (None, r"render\(\) must return a uint8 array \[H, W, 3\], not None"),
        (np.zeros((4, 4, 3)), "not an array of shape .* and type float64"),
        (np.zeros((4, 4), np.uint8), "not an array of shape"),
        (np.zeros((4, 4, 4), np.uint8), "not an array of shape"),
        (RuntimeError("no\nscreen"), "cannot render: RuntimeError: no screen$"),
    ],
)
def test_wrong_picture_is_one_line(monkeypatch: pytest.MonkeyPatch, picture: Any, message: str) -> None:
    monkeypatch.setattr(Drawn, "picture", picture)
    with pytest.raises(RenderError, match=message) as error:
        shown(f"{__name__}:Drawn").render(0)
    assert "\n" not in str(error.value)


def test_env_without_pictures_is_refused_when_made() -> None:
    with pytest.raises(RenderError, match="its render_mode is None; its function needs a parameter render_mode"):
        envs.make(f"{__name__}:mute", [0], rendered=1)
    with pytest.raises(RenderError, match="probe/Bandit-v0: cannot render: it has no render modes, not rgb_array"):
        envs.make("probe/Bandit-v0", [0], rendered=1)
    with pytest.raises(RenderError, match="cannot render"):
        shown("probe/Bandit-v0", rendered=0).render(0)


def test_envpool_is_not_used_for_pictures() -> None:
    vector = envs.make("CartPole-v1", [3, 4], backend="envpool", rendered=1)
    assert [env.render_mode for env in vector._pool.envs] == ["rgb_array", None]
    vector.close()


def test_maze_is_seen_as_a_whole() -> None:
    vector = shown("maze/Foraging-v0")
    picture, env = vector.render(0), vector._pool.envs[0].unwrapped
    assert picture.shape == (72, 72, 3)
    cells = picture[::8, ::8]
    assert (cells[env.at] == 255).all()
    assert tuple(cells[env.goal]) == (0, 255, 0)
    assert ((cells == 0).all(-1) | ~env.walls | cells.any(-1)).all()
    assert ((cells == 0).all(-1) == ~env.walls).sum() == 81 - 2  # all but agent and goal
    vector.close()


def test_atari_is_shown_in_color_by_a_twin_that_plays_the_same_game() -> None:
    vector, plain = shown("ALE/Breakout-v5"), envs.make("ALE/Breakout-v5", [3, 4])
    plain.reset()
    rng = np.random.default_rng(0)
    for _ in range(60):
        actions = rng.integers(0, 4, 2)
        observation, *rest = vector.step(actions)
        for one, other in zip((observation, *rest), plain.step(actions), strict=True):
            assert (one == other).all()
    picture, newest = vector.render(0), observation[0, -1]
    assert (picture.shape, picture.dtype) == ((210, 160, 3), np.uint8)
    gray = Image.fromarray(picture).convert("L").resize((84, 84), Image.Resampling.BOX)
    assert np.corrcoef(np.asarray(gray).ravel(), newest.ravel())[0, 1] > 0.95
    assert (picture.std(-1) > 10).any()
    assert vector.fps == 15
    vector.close()
    plain.close()


@pytest.fixture
def headless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux without a display and without the user's choice."""
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("MUJOCO_GL", "DISPLAY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("working", "chosen"), [({"egl", "osmesa"}, "egl"), ({"osmesa"}, "osmesa"), ({"egl"}, "egl")])
def test_opengl_is_egl_then_osmesa(
    monkeypatch: pytest.MonkeyPatch, headless: None, working: set[str], chosen: str
) -> None:
    monkeypatch.setattr(rendering, "_works", lambda backend: backend in working)
    rendering.choose_opengl("env.id=x")
    assert os.environ["MUJOCO_GL"] == chosen


def test_choice_of_the_user_takes_precedence(monkeypatch: pytest.MonkeyPatch, headless: None) -> None:
    monkeypatch.setattr(rendering, "_works", lambda backend: False)
    with pytest.raises(RenderError, match=r"env.id=x: cannot render .* neither EGL nor OSMesa works: install libegl1"):
        rendering.choose_opengl("env.id=x")
    monkeypatch.setenv("DISPLAY", ":0")
    rendering.choose_opengl("env.id=x")
    assert "MUJOCO_GL" not in os.environ
    monkeypatch.delenv("DISPLAY")
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    rendering.choose_opengl("env.id=x")
    assert os.environ["MUJOCO_GL"] == "glfw"


def test_probe_is_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever OpenGL this machine has; one that does not exist does not work."""
    asked: list[Any] = []

    def run(command: Any, *, env: Any, **_: Any) -> Any:
        asked.append((env["MUJOCO_GL"], "PYOPENGL_PLATFORM" in env))
        if env["MUJOCO_GL"] == "late":
            raise subprocess.TimeoutExpired(command, 60)
        return subprocess.CompletedProcess(command, int(env["MUJOCO_GL"] != "egl"))

    monkeypatch.setenv("PYOPENGL_PLATFORM", "x")
    monkeypatch.setattr(subprocess, "run", run)
    assert [rendering._works(backend) for backend in ("egl", "osmesa", "late")] == [True, False, False]
    assert asked == [("egl", False), ("osmesa", False), ("late", False)]


@pytest.mark.slow
def test_mujoco_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """On machines that have an OpenGL."""
    try:
        vector = shown("HalfCheetah-v5", backend="envpool")
        picture = vector.render(0)
    except RenderError as error:
        pytest.skip(str(error))
    assert picture.shape == (480, 480, 3)
    assert picture.std() > 10
    assert vector.fps == 20
    vector.close()
