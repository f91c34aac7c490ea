"""W&B's real client, offline: what lies in its files, and one line where there is no key or no network."""

from __future__ import annotations

import json
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pbtrl.cli import track as command
from tests.command import Command
from tests.journal_writer import START, JournalWriter, one_copy

wandb = pytest.importorskip("wandb")
from wandb.proto import wandb_internal_pb2  # noqa: E402

pytestmark = [pytest.mark.usefixtures("quick_disk"), pytest.mark.filterwarnings("default")]

BLOCK = 32768  # bytes; LevelDB's log format


@pytest.fixture(autouse=True)
def home(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B's folders are the test's, and its service ends with the test."""
    for name in ("WANDB_API_KEY", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(Path.cwd()))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(command, "_files", lambda run: [run.journal_path])
    yield
    wandb.teardown()


def records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file."""
    data, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := BLOCK - place % BLOCK) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        if not kind:
            return
        part += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(part)
            part = b""


class Offline:
    """All that W&B would send, of all sessions."""

    def __init__(self) -> None:
        wandb.teardown()  # its service may write the last rows after a run's `finish`
        self.history: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.runs: dict[str, Any] = {}
        self.config: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        self.summary: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        self.artifacts: list[str] = []
        for path in sorted(Path("wandb").glob("offline-run-*/*.wandb")):
            name = path.stem.rsplit("-", 1)[1]
            for record in records(path):
                self._add(name, record)

    def _add(self, name: str, record: Any) -> None:
        match record.WhichOneof("record_type"):
            case "run":
                self.runs[name] = record.run
                self.config[name] |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
            case "config":
                self.config[name] |= {i.key: json.loads(i.value_json) for i in record.config.update}
            case "history":
                row = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                self.history[name].append(row)
            case "summary":
                self.summary[name] |= {
                    ".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.summary.update
                }
            case "artifact":
                self.artifacts += [entry.path for entry in record.artifact.manifest.contents]

    def curve(self, name: str, tag: str, clock: str = "env_steps") -> list[tuple[int, Any]]:
        return [(row[clock], row[tag]) for row in self.history[name] if tag in row]


def tracked(pbtrl: Command, w: JournalWriter) -> str:
    result = pbtrl("track", "a", "--to", "wandb", "--project", "lab")
    assert (result.code, result.err) == (0, "")
    return result.out


def test_sessions_make_one_run_per_member(pbtrl: Command) -> None:
    """Two sessions of one run: every point once, in one group."""
    w = one_copy(Path("runs/a"))
    (w.run / "config.resolved.yaml").write_text("seed: 5\n")
    out = tracked(pbtrl, w)
    group = json.loads((w.run / "track-wandb.json").read_text())["id"]
    assert out.startswith(f"W&B project lab, group a-{group}, offline; to send it: wandb sync ")
    w.report("m01", 7.0)
    w.end("finish")
    w.choose("m01", 6.5)
    tracked(pbtrl, w)
    assert tracked(pbtrl, w) == "nothing is new\n"
    result = Offline()
    assert set(result.runs) == {"m00", "m01", "population"}
    assert {run.run_group for run in result.runs.values()} == {f"a-{group}"}
    assert {run.project for run in result.runs.values()} == {"lab"}
    assert result.runs["m01"].run_id == f"a-{group}-m01"
    assert (result.runs["m01"].display_name, result.runs["m01"].job_type) == ("m01", "member")
    assert result.config["m01"]["initial"] == {"learning_rate": 0.1, "unroll_length": 5}
    assert result.config["m01"]["seed"] == result.config["population"]["seed"] == 5
    assert result.curve("m01", "fitness") == [(100, -5), (200, 7)]
    assert result.curve("m01", "hparams/learning_rate") == [(0, 0.1), (100, 0.1), (100, 0.005), (200, 0.005)]
    assert result.curve("population", "population/fitness_max") == [(100, 3), (200, 3), (300, 7)]
    assert result.curve("m01", "exploit/donor") == [(100, "m00")]
    assert [row["_timestamp"] for row in result.history["m01"] if "fitness" in row] == [START + 30, START + 50]
    assert result.summary["population"]["best/score"] == 6.5
    tables = {key.partition(".")[0] for row in result.history["population"] for key in row}
    assert {"members", "exploits"} <= tables
    assert result.artifacts.count("journal.jsonl") == 1


def test_no_key_is_one_line(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    one_copy(Path("runs/a"))
    monkeypatch.setenv("WANDB_MODE", "online")
    refused = pbtrl("track", "a", "--to", "wandb")
    assert refused.code == 3
    assert refused.err.count("\n") == 1
    assert refused.err.startswith("W&B: No API key configured")
    assert "WANDB_MODE=offline works without key and network" in refused.err
    assert json.loads(Path("runs/a/track-wandb.json").read_text())["lines"] == 0


def test_no_network_is_one_line(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from pbtrl.integrations import wandb_tracker

    one_copy(Path("runs/a"))
    monkeypatch.setattr(wandb_tracker, "TIMEOUT", 0.5)
    for name, value in {"MODE": "online", "API_KEY": "0" * 40, "BASE_URL": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    refused = pbtrl("track", "a", "--to", "wandb")
    assert refused.code == 3
    assert refused.err.startswith("W&B: ")
    assert refused.err.count("\n") == 1
