"""Event files have what torch's writer would write."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader as EventFileLoader
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pbtrl.reporting.event_file import EventFile


def contents(folder: Path) -> dict[str, Any]:
    result = EventAccumulator(str(folder)).Reload()
    tags = result.Tags()
    scalars = {tag: [(e.wall_time, e.step, e.value) for e in result.Scalars(tag)] for tag in tags["scalars"]}
    tensors = {tag: [(e.step, e.tensor_proto) for e in result.Tensors(tag)] for tag in tags["tensors"]}
    about = {tag: result.SummaryMetadata(tag) for tag in tags["tensors"]}
    return {**scalars, **tensors, "about": about}


def table(folder: Path) -> dict[str, bytes]:
    """What the HParams table gets."""
    content: dict[str, bytes] = EventAccumulator(str(folder)).Reload().PluginTagToContent("hparams")
    return content


def test_equals_torchs_writer(tmp_path: Path) -> None:
    values: dict[str, Any] = {"rate": 0.5, "length": 20, "agent": "impala"}
    ours, theirs = EventFile(tmp_path / "ours"), SummaryWriter(str(tmp_path / "theirs"))
    for step, y in ((10, 0.5), (20, float("inf")), (30, 1e-9)):
        points = {"loss/policy": y, "loss/value": 2 * y}
        ours.add_scalars(points, step, 1000.0 + step)
        for tag, value in points.items():
            theirs.add_scalar(tag, value, step, 1000.0 + step)  # type: ignore[no-untyped-call]
    for writer in (ours, theirs):
        writer.add_text("population/exploits", "m00 <- m01\n\nhä", 20, 1020.0)
    ours.add_layout({"members": {"fitness": ["^fitness$"], "both": ["a", "b"]}, "other": {}})
    charts = {"fitness": ["Multiline", ["^fitness$"]], "both": ["Multiline", ["a", "b"]]}
    theirs.add_custom_scalars({"members": charts, "other": {}})  # type: ignore[no-untyped-call]
    for summary in hparams(values, {"episode/return_mean": 0.0}):  # type: ignore[no-untyped-call]
        ours.add_summary(summary)
        theirs.file_writer.add_summary(summary)  # type: ignore[union-attr]
    ours.close()
    theirs.close()
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert table(tmp_path / "ours") == table(tmp_path / "theirs")


def test_points_of_a_step_are_one_record(tmp_path: Path) -> None:
    file = EventFile(tmp_path)
    file.add_scalars({"a": 1.0, "b": 2.0}, 10)
    file.add_scalars({}, 20)
    file.close()
    (path,) = tmp_path.iterdir()
    assert len(list(EventFileLoader(str(path)).Load())) == 1 + 1  # the first one has the version


@pytest.mark.parametrize("step", [15, 20])
def test_points_from_a_step_on_are_hidden(tmp_path: Path, step: int) -> None:
    first = EventFile(tmp_path)
    for x in (10, 20, 30):
        first.add_scalars({"loss": 1.0}, x, 1000.0)
    first.hide_after(step)
    first.add_scalars({"loss": 2.0}, 25)
    first.close()
    assert [(x, y) for _, x, y in contents(tmp_path)["loss"]] == [(10, 1.0), (25, 2.0)]


def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pbtrl.reporting.event_file import EventFile\n"
        "file = EventFile(Path(sys.argv[1])); file.add_scalars({'x': 1}, 1); file.add_text('x', 'y', 1)\n"
        "file.add_layout({'x': {'y': ['z']}}); file.hide_after(1); file.close(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
