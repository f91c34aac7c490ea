"""Writer of a TensorBoard event file. `torch.utils.tensorboard` would import torch, which takes two seconds.

tensorboard is imported when a file is created; a thread writes it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FLUSH_SECONDS = 10  # largest delay of the file
QUEUE = 1000  # points in the queue of its thread


class EventFile:
    """A new event file in a folder; `step` and `at` (unix time, now by default) are the two x axes."""

    def __init__(self, folder: Path, suffix: str = "") -> None:
        from tensorboard.summary.writer.event_file_writer import (  # type: ignore[import-untyped]
            EventFileWriter,
        )

        self._file = EventFileWriter(str(folder), QUEUE, FLUSH_SECONDS, filename_suffix=suffix)

    def add_scalars(self, points: Mapping[str, float], step: int, at: float | None = None) -> None:
        """Write a point of each curve, by tag, as one record: the records are what costs time."""
        if points:
            self._add(step, at, summary={"value": [{"tag": tag, "simple_value": y} for tag, y in points.items()]})

    def add_text(self, tag: str, text: str, step: int, at: float | None = None) -> None:
        """Write Markdown."""
        from tensorboard.plugins.text.metadata import create_summary_metadata  # type: ignore[import-untyped]

        tensor = {"dtype": "DT_STRING", "string_val": [text.encode()], "tensor_shape": {"dim": [{"size": 1}]}}
        value = {"tag": f"{tag}/text_summary", "metadata": create_summary_metadata("", ""), "tensor": tensor}
        self._add(step, at, summary={"value": [value]})

    def add_layout(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Write the charts of the custom-scalars tab: by category and title the patterns of their tags."""
        from tensorboard.plugins.custom_scalar import layout_pb2, metadata  # type: ignore[import-untyped]

        categories = [
            {"title": category, "chart": [{"title": t, "multiline": {"tag": tags}} for t, tags in charts.items()]}
            for category, charts in layout.items()
        ]
        content = layout_pb2.Layout(category=categories).SerializeToString()
        tensor = {"dtype": "DT_STRING", "string_val": [content], "tensor_shape": {}}
        about = {"plugin_data": {"plugin_name": metadata.PLUGIN_NAME}}
        value = {"tag": metadata.CONFIG_SUMMARY_TAG, "metadata": about, "tensor": tensor}
        self.add_summary({"value": [value]})

    def add_summary(self, summary: Any) -> None:
        """Write a summary of a plugin."""
        self._add(0, None, summary=summary)

    def hide_after(self, step: int) -> None:
        """Hide the points from `step` on that this folder has so far."""
        self._add(step, None, session_log={"status": "START"})

    def close(self) -> None:
        """Write what is queued and end the thread."""
        self._file.close()

    def _add(self, step: int, at: float | None, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

        self._file.add_event(Event(step=step, wall_time=time.time() if at is None else at, **what))
