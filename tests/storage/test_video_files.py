"""Files of videos: MP4 and GIF, written as a whole, and their previews."""

from __future__ import annotations

import builtins
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pbtrl.errors import DamagedError, DiskFullError, RunError
from pbtrl.storage import video_files
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.video_files import Frame, caption, has_encoder, newest_video, preview, read_video, write_video


def frames(count: int = 12, height: int = 60, width: int = 80) -> Iterator[Frame]:
    """A square that moves to the right on gray."""
    for i in range(count):
        frame = np.full((height, width, 3), 90, np.uint8)
        frame[20:40, 4 * i : 4 * i + 20] = (250, 30, 30)
        yield frame


@pytest.fixture
def without_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importing(name: str, *args: Any) -> Any:
        if name == "imageio_ffmpeg":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", importing)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_frames_come_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_video(path, frames(), 20.0)
    film, fps = read_video(path, 60)
    assert (len(film), fps) == (12, pytest.approx(20))
    for one, other in zip(film, frames(), strict=True):
        assert one.shape == other.shape
        assert np.abs(one.astype(int) - other).mean() < 8
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio-ffmpeg leaves pipes open
@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_failure_leaves_nothing(tmp_path: Path, name: str) -> None:
    def failing() -> Iterator[Frame]:
        yield from frames(3)
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError):
        write_video(tmp_path / name, failing(), 20.0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        ("Unknown\nencoder", RunError, r"ffmpeg cannot write .*a\.mp4: Unknown encoder"),
        ("av_write: No space left on device", DiskFullError, r"no space on the disk for .*a\.mp4"),
        ("", RunError, r"ffmpeg cannot write .*a\.mp4: frames are missing"),
    ],
)
def test_failing_encoder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, error: type[Exception], text: str
) -> None:
    class Broken:
        @staticmethod
        def write_frames(path: str, *_: Any, **__: Any) -> Iterator[None]:
            Path(path).touch()
            yield
            while not message:
                yield
            raise OSError(message)

        @staticmethod
        def count_frames_and_secs(path: str) -> tuple[int, float]:
            return 11, 0.5

    monkeypatch.setattr(video_files, "_ffmpeg", lambda: Broken)
    with pytest.raises(error, match=text):
        write_video(tmp_path / "a.mp4", frames(), 20.0)
    assert not list(tmp_path.iterdir())


def test_encoder_is_optional(without_encoder: None, tmp_path: Path) -> None:
    assert not has_encoder()
    write_video(tmp_path / "a.gif", frames(), 20.0)
    with pytest.raises(RunError, match=r'needs imageio-ffmpeg, which is not installed: pip install "pbtrl\[video\]"'):
        write_video(tmp_path / "a.mp4", frames(), 20.0)


def test_long_gif_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_files, "MOST_GIF_FRAMES", 5)
    write_video(tmp_path / "a.gif", frames(), 20.0)
    assert len(read_video(tmp_path / "a.gif", 60)[0]) == 5


def test_newest_video(tmp_path: Path) -> None:
    assert newest_video(RunDirectory(tmp_path)) is None
    (tmp_path / "eval").mkdir()
    for name in ("20260101-000000-0-m00-000002.mp4", "20260102-000000-1-m01-000002.gif", "20260103-000000-2.json",
                 ".tmp-20260104-000000-1-m01-000002.gif"):  # fmt: skip
        (tmp_path / "eval" / name).touch()
    assert newest_video(RunDirectory(tmp_path)) == tmp_path / "eval/20260102-000000-1-m01-000002.gif"
    assert newest_video(RunDirectory(tmp_path), "m00/000002") == tmp_path / "eval/20260101-000000-0-m00-000002.mp4"
    assert newest_video(RunDirectory(tmp_path), "m00/000003") is None


@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_preview_is_the_first_seconds(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, frames(120, 60, 600), 20.0)
    image = Image.open(io.BytesIO(preview(tmp_path / name, seconds=2.0)))
    assert image.n_frames == 20  # type: ignore[attr-defined]
    assert image.size == (240, 24)
    assert image.info["duration"] == 100


def test_preview_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    write_video(tmp_path / "a.gif", (rng.integers(0, 256, (100, 100, 3), np.uint8) for _ in range(8)), 20.0)
    large = preview(tmp_path / "a.gif")
    monkeypatch.setattr(video_files, "LARGEST_GIF", len(large) - 1)
    assert len(preview(tmp_path / "a.gif")) < len(large)
    assert video_files.LARGEST_GIF * 4 / 3 < 2_000_000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio-ffmpeg leaves pipes open
@pytest.mark.parametrize("name", ["a.mp4", "a.gif"])
def test_damaged_video(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no video")
    with pytest.raises(DamagedError, match="is no video"):
        preview(tmp_path / name)


def test_caption_is_readable_and_at_the_top() -> None:
    plain = np.full((300, 300, 3), 90, np.uint8)
    titled = caption(plain, ["return 19.0", "1,234 env steps"])
    changed = (titled != plain).any(-1)
    assert changed[:60, :200].mean() > 0.2
    assert not changed[80:].any()
    assert (titled == 255).any()
    assert (plain == 90).all()
