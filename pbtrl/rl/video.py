"""Recording of evaluation episodes: a camera that looks at the first episode of some envs, and the video of it.

An episode's return is known only at its end, but stands in its first frame. So frames are kept, compressed, until then.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pbtrl.envs import Vector
from pbtrl.errors import RenderError
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.video_files import Frame, caption, has_encoder, write_video

SMALLEST = 300  # pixels of the longer side, up to which frames are enlarged
TITLE_SECONDS = 1.0  # for which the frame with the caption stays


@dataclass
class Take:
    """Recorded episode.

    Attributes:
        frames: compressed frames.
        result: raw return of the episode, once it is over, whatever `fitness.metric` measures.
        length: its length (env steps).
    """

    frames: list[bytes] = field(default_factory=list)
    result: float | None = None
    length: int = 0


class Camera:
    """Camera that records the first episode of each of the first `episodes` envs.

    Attributes:
        episodes: number of episodes.
        takes: the recorded episodes.
    """

    def __init__(self, episodes: int) -> None:
        self.episodes = episodes
        self.takes = [Take() for _ in range(episodes)]
        self._shape: tuple[int, ...] | None = None
        self._fps, self._where, self._lit = 0.0, "", False

    def shoot(self, vector: Vector) -> None:
        """Take a frame of every recorded episode that is not over.

        Raises:
            RenderError: the env cannot render, or its frames change their size.
        """
        self._fps, self._where = vector.fps, vector.where
        for index, take in enumerate(self.takes):
            if take.result is None:
                frame = vector.render(index)
                if frame.shape != (self._shape or frame.shape):
                    raise RenderError(self._where, f"frames of {self._shape} and of {frame.shape} make no video")
                self._shape = frame.shape
                self._lit = self._lit or bool(frame.any())
                take.frames.append(zlib.compress(frame.tobytes(), 1))

    def end(self, index: int, result: float, length: int) -> None:
        """Note the return and the length of an env's episode that is over."""
        if index < self.episodes and self.takes[index].result is None:
            self.takes[index].result, self.takes[index].length = result, length

    def save(self, run: RunDirectory, snapshot: str, show: Callable[[float], str]) -> dict[str, Any]:
        """Write the video to the run's `eval/`, with captions in which `show` formats the returns.

        Returns:
            Its `file` (relative to the run), and `returns` and `lengths` of the episodes.

        Raises:
            RenderError: all frames are black, or all are equal.
            DiskFullError, RunError: as `write_video`.
        """
        count = sum(len(take.frames) for take in self.takes)
        if not self._lit:
            raise RenderError(self._where, f"cannot render: all {count} frames are black")
        if len({frame for take in self.takes for frame in take.frames}) == 1:
            raise RenderError(self._where, f"cannot render: all {count} frames are equal")
        folder, suffix = run.evaluations, ".mp4" if has_encoder() else ".gif"
        folder.mkdir(exist_ok=True)
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{len(list(folder.iterdir()))}"
        path = folder / f"{stamp}-{snapshot.replace('/', '-')}{suffix}"
        write_video(path, self.frames(show), self._fps)
        results, lengths = [take.result for take in self.takes], [take.length for take in self.takes]
        return {"file": run.relative(path), "returns": results, "lengths": lengths}

    def frames(self, show: Callable[[float], str]) -> Iterator[Frame]:
        """Yield all frames; every episode begins with a caption, which stays for a second."""
        assert self._shape
        scale = -(-SMALLEST // max(self._shape[:2]))
        for take in self.takes:
            for i, data in enumerate(take.frames):
                frame = np.frombuffer(zlib.decompress(data), np.uint8).reshape(self._shape)
                frame = frame.repeat(scale, 0).repeat(scale, 1)
                if i == 0:
                    assert take.result is not None
                    title = caption(frame, [f"return {show(take.result)}", f"{take.length:,} env steps"])
                    yield from [title] * round(TITLE_SECONDS * self._fps)
                yield frame
