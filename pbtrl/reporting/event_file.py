"""Writer of a TensorBoard event file. `torch.utils.tensorboard` would import torch, which takes two seconds.

tensorboard is imported when a file is created; a thread writes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FLUSH_SECONDS = 10  # largest delay of the file
QUEUE = 1000  # points in the queue of its thread
_NUMBER = ("DATA_TYPE_FLOAT64", "number_value")
_HPARAM = {
    bool: ("DATA_TYPE_BOOL", "bool_value"),
    int: _NUMBER,
    float: _NUMBER,
    str: ("DATA_TYPE_STRING", "string_value"),
}


class EventFile:
    """A new event file in a folder; `step` and `at` (unix time, now by default) are the two x axes."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import (  # type: ignore[import-untyped]
            EventFileWriter,
        )

        self._file = EventFileWriter(str(folder), QUEUE, FLUSH_SECONDS)

    def add_scalar(self, tag: str, y: float, step: int, at: float | None = None) -> None:
        """Write a point of a curve."""
        self._add(step, at, summary={"value": [{"tag": tag, "simple_value": y}]})

    def add_text(self, tag: str, text: str, step: int, at: float | None = None) -> None:
        """Write Markdown."""
        from tensorboard.plugins.text.metadata import create_summary_metadata  # type: ignore[import-untyped]

        tensor = {"dtype": "DT_STRING", "string_val": [text.encode()], "tensor_shape": {"dim": [{"size": 1}]}}
        value = {"tag": f"{tag}/text_summary", "metadata": create_summary_metadata("", ""), "tensor": tensor}
        self._add(step, at, summary={"value": [value]})

    def add_hparams(self, values: Mapping[str, bool | float | str], metrics: Iterable[str]) -> None:
        """Write this file's row of the HParams table: the values, and the tags of curves to show with them."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2  # type: ignore[import-untyped]

        start, infos = plugin_data_pb2.SessionStartInfo(), []
        for name, value in values.items():
            kind, field = _HPARAM[type(value)]
            setattr(start.hparams[name], field, value)
            infos.append({"name": name, "type": kind})
        experiment = {"hparam_infos": infos, "metric_infos": [{"name": {"tag": tag}} for tag in metrics]}
        for tag, content in (
            (metadata.EXPERIMENT_TAG, {"experiment": experiment}),
            (metadata.SESSION_START_INFO_TAG, {"session_start_info": start}),
            (metadata.SESSION_END_INFO_TAG, {"session_end_info": {"status": api_pb2.STATUS_SUCCESS}}),
        ):
            about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
            self._add(0, None, summary={"value": [{"tag": tag, "metadata": about}]})

    def hide_after(self, step: int) -> None:
        """Hide the points from `step` on that this folder has so far."""
        self._add(step, None, session_log={"status": "START"})

    def close(self) -> None:
        """Write what is queued and end the thread."""
        self._file.close()

    def _add(self, step: int, at: float | None, **what: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]

        self._file.add_event(Event(step=step, wall_time=time.time() if at is None else at, **what))
