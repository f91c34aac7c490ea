"""Metrics of finished slices: one attempt each, also with clocks of other machines."""

import json
from pathlib import Path

import pytest

from pbtrl.storage.metrics_log import SliceMetrics


@pytest.mark.parametrize(
    ("lines", "taken"),
    [
        ([(0, 7.0), (0, 9.0)], [7.0, 9.0]),
        ([(0, 7.0), (1, 8.0), (1, 9.0)], [8.0, 9.0]),
        ([(0, 7.0), (0, 10.3)], [7.0, 10.3]),
        ([(0, 10.3)], [10.3]),
        ([(0, 8.0), (0, 10.3), (1, 12.0)], [8.0, 10.3]),
        ([], []),
    ],
    ids=["one attempt", "the last of two", "clock ahead", "single line, clock ahead", "without a later remake", "none"],
)
def test_last_attempt_before_the_report_is_taken(
    tmp_path: Path, lines: list[tuple[int, float]], taken: list[float]
) -> None:
    """The slice was reported at 10 s."""
    (tmp_path / "m00").mkdir()
    texts = [json.dumps({"assignment": "m00/000001", "attempt": a, "time": t}) + "\n" for a, t in lines]
    (tmp_path / "m00" / "metrics.jsonl").write_text("".join(texts))
    metrics = SliceMetrics(tmp_path, ["m00"])
    assert [line["time"] for line in metrics.take("m00", "m00/000001", 10.0)] == taken
    assert metrics.take("m00", "m00/000001", 20.0) == []
