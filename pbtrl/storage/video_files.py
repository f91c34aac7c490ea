"""Videos of episodes in a run's `eval/`: MP4 by imageio-ffmpeg, or GIF by Pillow where that is missing.

This is the only file that encodes and decodes videos.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pbtrl.errors import DamagedError, MissingPackageError, RunError
from pbtrl.system.files import translate_disk_errors

Frame = NDArray[np.uint8]
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

    Raises:
        DiskFullError: no space left; nothing was written.
        RunError: the encoder failed; nothing was written.
    """
    staged = path.with_name(f".tmp-{path.name}")
    try:
        with translate_disk_errors(path):
            if path.suffix == ".gif":
                staged.write_bytes(_gif(frames, fps))
            else:
                _write_mp4(staged, frames, fps)
            staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)


def newest_video(run: Path, snapshot: str = "") -> Path | None:
    """Return the newest video of a run, or of one of its snapshots; None if there is none."""
    named = f"*-{snapshot.replace('/', '-')}.*" if snapshot else "*"
    found = (path for path in (run / "eval").glob(named) if path.suffix in (".mp4", ".gif") and path.is_file())
    return max((path for path in found if not path.name.startswith(".")), key=lambda path: path.name, default=None)


def preview(path: Path, seconds: float = 5.0) -> bytes:
    """Return the first seconds of a video as a small GIF.

    Raises:
        RunError: an MP4 cannot be read without imageio-ffmpeg.
        DamagedError: the file is no video.
    """
    for side, rate in PREVIEWS:
        frames, fps = (_read_gif if path.suffix == ".gif" else _read_mp4)(path)
        step = max(1, round(fps / rate))
        chosen = itertools.islice(frames, 0, max(1, int(seconds * fps)), step)
        content = _gif((_shrunk(frame, side) for frame in chosen), fps / step)
        if len(content) <= LARGEST_GIF:
            break
    return content


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
    writer = _ffmpeg().write_frames(
        str(path), (width, height), fps=fps, codec="libx264", pix_fmt_out="yuv420p", macro_block_size=2, quality=7,
        output_params=["-f", "mp4"], ffmpeg_log_level="error",
    )  # fmt: skip
    try:
        writer.send(None)
        for frame in itertools.chain([first], iterator):
            writer.send(np.ascontiguousarray(frame))
    except OSError as error:
        text = " ".join(str(error).split())[-300:]
        raise RunError(f"ffmpeg cannot write {path}: {text}") from error
    finally:
        writer.close()


def _gif(frames: Iterable[Frame], fps: float) -> bytes:
    from PIL import Image

    images = [Image.fromarray(frame).quantize(64) for frame in frames]
    file = io.BytesIO()
    images[0].save(
        file, "GIF", save_all=True, append_images=images[1:], duration=max(20, round(1000 / fps)), loop=0,
        optimize=True,
    )  # fmt: skip
    return file.getvalue()


def _read_mp4(path: Path) -> tuple[Iterator[Frame], float]:
    reader = _ffmpeg().read_frames(str(path))
    try:
        meta = next(reader)
    except (OSError, RuntimeError, StopIteration) as error:
        raise DamagedError(f"{path} is no video") from error
    width, height = meta["size"]
    return (np.frombuffer(data, np.uint8).reshape(height, width, 3) for data in reader), float(meta["fps"])


def _read_gif(path: Path) -> tuple[Iterator[Frame], float]:
    from PIL import Image, ImageSequence

    try:
        image = Image.open(path)
    except OSError as error:
        raise DamagedError(f"{path} is no video") from error
    frames = (np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image))
    return frames, 1000.0 / max(20, int(image.info.get("duration", 100)))


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
