"""Videos of episodes in a run's `eval/`: MP4 by imageio-ffmpeg, or GIF by Pillow where that is missing.

This is the only file that encodes and decodes videos.
"""

from __future__ import annotations

import errno
import io
import itertools
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pbtrl.errors import DamagedError, MissingPackageError, RunError
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.system.files import translate_disk_errors

Frame = NDArray[np.uint8]
GIF_SIDE, MOST_GIF_FRAMES = 320, 1000
LARGEST_GIF = 1_400_000  # bytes, which are below 2 MB as text in a page
PREVIEWS = ((240, 10.0), (200, 8.0), (160, 6.0), (120, 4.0), (80, 2.0))  # pixels of the longer side, frames per second


def has_encoder() -> bool:
    """Return whether MP4 can be written."""
    try:
        _ffmpeg()
    except RunError:
        return False
    return True


def write_video(path: Path, frames: Iterable[Frame], fps: float) -> None:
    """Write frames [H, W, 3] uint8 of equal shape to a `.mp4` or `.gif` file, as a whole.

    A GIF is limited in size (320 pixels) and length (the first 1000 frames).

    Raises:
        DiskFullError: no space left; nothing was written.
        RunError: the encoder failed; nothing was written.
    """
    staged = path.with_name(f".tmp-{path.name}")
    try:
        with translate_disk_errors(path):
            if path.suffix == ".gif":
                first_frames = itertools.islice(frames, MOST_GIF_FRAMES)
                staged.write_bytes(_gif((_shrunk(frame, GIF_SIDE) for frame in first_frames), fps))
            else:
                _write_mp4(staged, frames, fps)
            staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def newest_video(run: RunDirectory, snapshot: str = "") -> Path | None:
    """Return the newest video of a run, or of one of its snapshots; None if there is none."""
    pattern = f"*-{snapshot.replace('/', '-')}.*" if snapshot else "*"
    videos = (path for path in run.evaluations.glob(pattern) if path.suffix in (".mp4", ".gif") and path.is_file())
    return max((path for path in videos if not path.name.startswith(".")), key=lambda path: path.name, default=None)


def preview(path: Path, seconds: float = 5.0) -> bytes:
    """Return the first seconds of a video as a small GIF.

    Raises:
        RunError: an MP4 cannot be read without imageio-ffmpeg.
        DamagedError: the file is no video.
    """
    frames, fps = read_video(path, seconds)
    for side, rate in PREVIEWS:
        step = max(1, round(fps / rate))
        content = _gif((_shrunk(frame, side) for frame in frames[::step]), fps / step)
        if len(content) <= LARGEST_GIF:
            break
    return content


def read_video(path: Path, seconds: float) -> tuple[list[Frame], float]:
    """Return the frames [H, W, 3] of the first seconds, and their number per second. Raises as `preview`."""
    try:
        return (_read_gif if path.suffix == ".gif" else _read_mp4)(path, seconds)
    except (OSError, RuntimeError, ValueError) as error:
        raise DamagedError(f"{path} is no video") from error


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise RunError(str(MissingPackageError("an MP4 video", "imageio-ffmpeg", "video"))) from None
    return imageio_ffmpeg


def _write_mp4(path: Path, frames: Iterable[Frame], fps: float) -> None:
    iterator = iter(frames)
    first = next(iterator)
    height, width = first.shape[:2]
    ffmpeg, count, text = _ffmpeg(), 0, ""
    writer = ffmpeg.write_frames(
        str(path), (width, height), fps=fps, codec="libx264", pix_fmt_out="yuv420p", macro_block_size=2, quality=7,
        output_params=["-f", "mp4"], ffmpeg_log_level="error",
    )  # fmt: skip
    with closing(writer):
        writer.send(None)
        for frame in itertools.chain([first], iterator):
            try:
                writer.send(np.ascontiguousarray(frame))
            except OSError as error:  # its process died
                text = " ".join(str(error).split())[-300:]
                break
            count += 1
    if text or not path.exists() or ffmpeg.count_frames_and_secs(str(path))[0] != count:
        if "No space left" in text:
            raise OSError(errno.ENOSPC, text)
        raise RunError(f"ffmpeg cannot write {path}: {text or 'frames are missing'}")


def _gif(frames: Iterable[Frame], fps: float) -> bytes:
    from PIL import Image

    images = [Image.fromarray(frame).quantize(64) for frame in frames]
    file = io.BytesIO()
    images[0].save(
        file, "GIF", save_all=True, append_images=images[1:], duration=max(20, round(1000 / fps)), loop=0,
        optimize=True,
    )  # fmt: skip
    return file.getvalue()


def _read_mp4(path: Path, seconds: float) -> tuple[list[Frame], float]:
    ffmpeg = _ffmpeg()
    count, duration = ffmpeg.count_frames_and_secs(str(path))
    command = [ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(path), "-t", str(seconds), "-f", "image2pipe"]
    data = subprocess.run([*command, "-c:v", "ppm", "-"], capture_output=True, check=False).stdout
    header = b"\n".join(data[:32].split(b"\n")[:3]) + b"\n"  # P6, width and height, 255
    width, height = map(int, header.split()[1:3])
    pictures = np.frombuffer(data, np.uint8).reshape(-1, len(header) + 3 * width * height)[:, len(header) :]
    return list(pictures.reshape(-1, height, width, 3)), count / max(duration, 0.01)


def _read_gif(path: Path, seconds: float) -> tuple[list[Frame], float]:
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        fps = 1000.0 / max(20, int(image.info.get("duration", 100)))
        frames = itertools.islice(ImageSequence.Iterator(image), max(1, int(seconds * fps)))
        return [np.asarray(frame.convert("RGB")) for frame in frames], fps


def _shrunk(frame: Frame, side: int) -> Frame:
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((side, side))
    return np.asarray(image)


def caption(frame: Frame, lines: Sequence[str]) -> Frame:
    """Return a copy of a frame with lines of text at the top."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(frame)
    font = ImageFont.load_default(max(10, frame.shape[1] // 24))
    draw = ImageDraw.Draw(image)
    text = "\n".join(lines)
    left, top, right, bottom = draw.multiline_textbbox((4, 4), text, font)
    draw.rectangle((left - 4, top - 4, right + 4, bottom + 4), fill=(0, 0, 0))
    draw.multiline_text((4, 4), text, (255, 255, 255), font)
    return np.asarray(image)
