"""Event files have what torch's writer would write."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pbtrl.reporting.event_file import EventFile


def contents(folder: Path) -> dict[str, Any]:
    found = EventAccumulator(str(folder)).Reload()
    tags = found.Tags()
    scalars = {tag: [(e.wall_time, e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}
    tensors = {tag: [(e.wall_time, e.step, e.tensor_proto) for e in found.Tensors(tag)] for tag in tags["tensors"]}
    about = {tag: found.SummaryMetadata(tag) for tag in tags["tensors"]}
    return {**scalars, **tensors, "about": about}


def table(folder: Path) -> dict[str, bytes]:
    """What the HParams table gets."""
    content: dict[str, bytes] = EventAccumulator(str(folder)).Reload().PluginTagToContent("hparams")
    return content


def test_equals_torchs_writer(tmp_path: Path) -> None:
    values: dict[str, Any] = {"rate": 0.5, "length": 20, "agent": "impala"}
    ours, theirs = EventFile(tmp_path / "ours"), SummaryWriter(str(tmp_path / "theirs"))
    for writer in (ours, theirs):
        for step, y in ((10, 0.5), (20, float("inf")), (30, 1e-9)):
            writer.add_scalar("loss/policy", y, step, 1000.0 + step)
        writer.add_text("population/exploits", "m00 <- m01\n\nhä", 20, 1020.0)
    ours.add_hparams(values, ["episode/return_mean"])
    for summary in hparams(values, {"episode/return_mean": 0.0}):  # type: ignore[no-untyped-call]
        theirs.file_writer.add_summary(summary)  # type: ignore[union-attr]
    ours.close()
    theirs.close()
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")
    assert table(tmp_path / "ours") == table(tmp_path / "theirs")


def test_kind_of_every_hyperparameter(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.metadata import (
        parse_experiment_plugin_data,
        parse_session_start_info_plugin_data,
    )

    file = EventFile(tmp_path)
    file.add_hparams({"flag": True, "off": False, "rate": 0.5}, [])
    file.close()
    found = table(tmp_path)
    start = parse_session_start_info_plugin_data(found["_hparams_/session_start_info"]).hparams
    assert (start["flag"].bool_value, start["off"].HasField("bool_value"), start["rate"].number_value) == (1, 1, 0.5)
    kinds = {i.name: i.type for i in parse_experiment_plugin_data(found["_hparams_/experiment"]).hparam_infos}
    assert kinds == {"flag": 2, "off": 2, "rate": 3}


@pytest.mark.parametrize("step", [15, 20])
def test_points_from_a_step_on_are_hidden(tmp_path: Path, step: int) -> None:
    first = EventFile(tmp_path)
    for x in (10, 20, 30):
        first.add_scalar("loss", 1.0, x, 1000.0)
    first.hide_after(step)
    first.add_scalar("loss", 2.0, 25)
    first.close()
    assert [(x, y) for _, x, y in contents(tmp_path)["loss"]] == [(10, 1.0), (25, 2.0)]


def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pbtrl.reporting.event_file import EventFile\n"
        "file = EventFile(Path(sys.argv[1])); file.add_scalar('x', 1, 1); file.add_text('x', 'y', 1)\n"
        "file.add_hparams({'x': 1}, []); file.hide_after(1); file.close(); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
