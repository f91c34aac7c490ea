"""Recorded episodes: those of the evaluation, with their return in the first frame."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbtrl import api
from pbtrl.envs import maze
from pbtrl.errors import RenderError, RunError
from pbtrl.rl import video
from pbtrl.rl.video import Camera
from pbtrl.storage import video_files
from tests.command import Command

MAZE = """\
env: {id: maze/Foraging-v0, num_envs: 2, kwargs: {length: 12}}
population: {size: 2, mode: sync}
execution: {backend: inline}
budget: {env_steps_per_member: 80}
hparams: {learning_rate: {prior: log_uniform, low: 1e-4, high: 1e-2}}
strategy: {ready: {slice_steps: 40}}
fitness: {min_episodes: 1}
final: {candidates: 2, selection_episodes: 2, episodes: 2}
"""


@pytest.fixture
def run(pbtrl: Command) -> api.Run:
    Path("maze.yaml").write_text(MAZE)
    return api.train("maze.yaml", name="maze")


def refused(pbtrl: Command, *argv: object) -> str:
    result = pbtrl(*argv)
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1
    return result.err


def test_recorded_episodes_are_those_of_the_evaluation(
    pbtrl: Command, run: api.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    captions: list[list[str]] = []
    monkeypatch.setattr(video, "caption", lambda frame, lines: (captions.append(lines), frame)[1])
    plain = json.loads(pbtrl("eval", "maze", "--episodes", 3, "--json").out)
    filmed = json.loads(pbtrl("eval", "maze", "--episodes", 3, "--json", "--video", 3).out)
    details = filmed.pop("video")
    assert filmed == plain
    assert np.mean(details["returns"]) == plain["return_mean"]
    assert (max(details["returns"]), min(details["returns"])) == (plain["return_max"], plain["return_min"])
    assert details["lengths"] == [12, 12, 12]
    formatted = [f"{r:.2f}" if r else "0.000" for r in details["returns"]]
    assert captions == [[f"return {text}", "12 env steps"] for text in formatted]
    frames, fps = video_files.read_video(run.path / details["file"], 60)
    assert (len(frames), fps) == (3 * (8 + 13), pytest.approx(8, rel=0.01))
    result = pbtrl("eval", "maze", "--episodes", 3, "--video")
    assert result.out.splitlines()[-1].startswith("runs/maze/eval/")
    assert result.out.splitlines()[-1].endswith(f".mp4: return {formatted[0]} in 12 steps")
    stored = json.loads(sorted((run.path / "eval").glob("*.json"))[-1].read_text())
    assert stored[0]["video"]["returns"] == details["returns"][:1]
    assert "video" not in (run.best or {})["evaluation"]


def test_first_frame_has_a_caption_and_the_others_have_none(run: api.Run) -> None:
    result: Any = run.evaluate(episodes=1, video=1)
    film, _ = video_files.read_video(run.path / result["video"]["file"], 60)
    frames = [frame.astype(int) for frame in film]
    assert np.abs(frames[0] - frames[7]).max() < 60  # the caption stays
    assert np.abs(frames[7] - frames[8])[:60].mean() > 5
    assert np.abs(frames[7] - frames[8])[100:].mean() < 2


def test_gif_without_an_encoder(pbtrl: Command, run: api.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "has_encoder", lambda: False)
    line = pbtrl("eval", "maze", "--episodes", 1, "--video").out.splitlines()[-1]
    assert line.endswith('in 12 steps; for MP4: pip install "pbtrl[video]"')
    assert ".gif: return" in line


@pytest.mark.parametrize(("picture", "message"), [(0, "all 13 frames are black"), (9, "all 13 frames are equal")])
def test_broken_renderer_leaves_nothing(
    pbtrl: Command, run: api.Run, monkeypatch: pytest.MonkeyPatch, picture: int, message: str
) -> None:
    monkeypatch.setattr(maze.Foraging, "render", lambda self: np.full((8, 8, 3), picture, np.uint8))
    assert f"maze/Foraging-v0: cannot render: {message}" in refused(pbtrl, "eval", "maze", "--video", "--episodes", 1)
    assert not (run.path / "eval").exists()


def test_bad_input(pbtrl: Command, run: api.Run) -> None:
    assert "a video is of one member" in refused(pbtrl, "eval", "maze", "--video", "--member", "all")
    assert "a video of 3 episodes needs as many" in refused(pbtrl, "eval", "maze", "--video", 3, "--episodes", 2)
    assert "must be a whole number from 1 to 16, not 0" in pbtrl("eval", "maze", "--video", 0).err
    with pytest.raises(RunError, match="video must be a whole number from 0 to 16, not 17"):
        run.evaluate(episodes=30, video=17)
    Path("bandit.yaml").write_text(MAZE.replace("maze/Foraging-v0", "probe/Bandit-v0").replace("{length: 12}", "{}"))
    assert pbtrl("train", "bandit.yaml", "--name", "bandit").code == 0
    assert "cannot render: it has no render modes" in refused(pbtrl, "eval", "bandit", "--video")
    assert not Path("runs/bandit/eval").exists()
    assert pbtrl("train", "toy_quadratic", "--progress", "none").code == 0
    assert "trains quadratic, which has no episodes" in refused(pbtrl, "eval", "toy_quadratic", "--video")
    assert "has no episodes to show" in refused(pbtrl, "report", "toy_quadratic", "--video")


def test_report_shows_the_video(pbtrl: Command, run: api.Run) -> None:
    assert "has no video: make one with pbtrl eval maze --video" in refused(pbtrl, "report", "maze", "--video")
    assert not (run.path / "report.html").exists()
    run.evaluate(episodes=1, video=1)
    assert pbtrl("report", "maze", "--video").code == 0
    page = (run.path / "report.html").read_text()
    assert page.count("data:image/gif;base64,") == 1
    assert "First seconds of eval/" in page
    assert pbtrl("report", "maze").code == 0
    assert "data:image/gif" not in (run.path / "report.html").read_text()


class Screen:
    """Vector whose frames are scripted."""

    fps, where = 10.0, "env.id=x"

    def __init__(self) -> None:
        self.t = 0

    def render(self, index: int) -> Any:
        return np.full((4, 6 + (self.t > 5), 3), 10 * index + self.t, np.uint8)


def test_camera_records_first_episodes_only() -> None:
    camera, screen = Camera(2), Screen()
    for screen.t in range(4):
        camera.shoot(screen)  # type: ignore[arg-type]
        if screen.t == 1:
            camera.end(1, 5.0, 1)
            camera.end(2, 9.0, 1)
        if screen.t == 2:
            camera.end(1, 7.0, 2)
    camera.end(0, 3.0, 3)
    values = [[zlib.decompress(frame)[0] for frame in take.frames] for take in camera.takes]
    assert values == [[0, 1, 2, 3], [10, 11]]
    assert [(take.result, take.length) for take in camera.takes] == [(3.0, 3), (5.0, 1)]
    frames = list(camera.frames(str))
    assert len(frames) == 10 + 4 + 10 + 2
    assert frames[-1].shape == (200, 300, 3)
    assert (frames[-1] == 11).all()


def test_frames_of_several_sizes_are_refused() -> None:
    camera, screen = Camera(1), Screen()
    camera.shoot(screen)  # type: ignore[arg-type]
    screen.t = 6
    with pytest.raises(RenderError, match=r"frames of \(4, 6, 3\) and of \(4, 7, 3\) make no video"):
        camera.shoot(screen)  # type: ignore[arg-type]
