"""`pbtrl verify` reports all damage without changing a run; `--repair` repairs it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pbtrl.storage.journal import digest
from pbtrl.storage.run_lock import RunLock
from pbtrl.storage.snapshot_store import SnapshotStore
from tests.command import Command, contents, journal


@pytest.fixture
def run(pbtrl: Command) -> Path:
    """A finished run."""
    assert pbtrl("train", "cart.yaml", "--name", "a").code == 0
    return Path("runs/a")


def found(pbtrl: Command, code: int) -> list[tuple[str, str]]:
    before = contents(Path("runs/a"))
    result = pbtrl("verify", "a", "--json")
    assert result.code == code
    assert result.json["ok"] == (code == 0)
    assert contents(Path("runs/a")) == before
    return [(f["kind"], f["where"]) for f in result.json["findings"]]


def newest(place: int = 0) -> Path:
    """The newest snapshot of a member that is not the best one."""
    best = json.loads(Path("runs/a/best.json").read_text())["member"]
    member = [m for m in ("m00", "m01", "m02", "m03") if m != best][place]
    return sorted(Path(f"runs/a/members/{member}/snapshots").iterdir())[-1]


def test_intact_run_is_clean(pbtrl: Command, run: Path):
    assert found(pbtrl, 0) == []
    result = pbtrl("verify", "a")
    assert result.out == f"runs/a: clean ({len(journal(run))} journal lines, 8 snapshots hashed)\n"
    assert pbtrl("verify", "a", "--digest").out == digest(journal(run)) + "\n"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_flipped_bit_is_found_and_repaired(pbtrl: Command, run: Path, file: str):
    snapshot = newest()
    flip(snapshot / file)
    where = str(snapshot.relative_to(run))
    assert found(pbtrl, 4) == [("damaged", where)]
    assert (
        f"damaged   {where}: snapshot {snapshot.parent.parent.name}/000002: {file} is damaged"
        in pbtrl("verify", "a").out
    )
    repaired = pbtrl("verify", "a", "--repair")
    assert repaired.err == f"{where}: moved to quarantine\n"
    assert repaired.code == 4
    assert found(pbtrl, 4) == [("missing", where)]
    assert pbtrl("resume", "a", "budget.env_steps_per_member=960").code == 0
    assert found(pbtrl, 0) == []


def test_swapped_snapshots_are_found(pbtrl: Command, run: Path):
    one, other = newest(0), newest(1)
    one.rename(run / "aside")
    other.rename(one)
    (run / "aside").rename(other)
    assert found(pbtrl, 4) == [("damaged", str(p.relative_to(run))) for p in (one, other)]


def test_leftovers_and_orphans_are_not_errors(pbtrl: Command, run: Path):
    store = SnapshotStore(run / "members")
    member = newest().parent.parent.name
    store.commit(f"{member}/000009", *store.load(f"{member}/{newest().name}"))
    (newest().parent / ".tmp-000003-17").mkdir()
    (run / ".tmp-best.json").write_text("{")
    with (run / "journal.jsonl").open("a") as file:
        file.write('{"kind": "repo')
    listed = found(pbtrl, 0)
    assert sorted(kind for kind, _ in listed) == ["leftover", "leftover", "orphan", "torn"]
    assert "nothing is lost" in pbtrl("verify", "a").out
    assert len(pbtrl("verify", "a", "--repair").err.splitlines()) == 4
    assert found(pbtrl, 0) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [cut, lambda path: path.write_text("[]")])
@pytest.mark.parametrize("file", ["run.json", "best.json", "config.resolved.yaml"])
def test_small_files_are_checked(pbtrl: Command, run: Path, file: str, damage: Callable[[Path], object]):
    damage(run / file)
    assert found(pbtrl, 4) == [("damaged", file)]


def test_empty_best_json_is_damaged(pbtrl: Command, run: Path):
    (run / "best.json").write_text("{}")
    assert found(pbtrl, 4) == [("damaged", "best.json")]


def test_best_json_detects_a_changed_snapshot(pbtrl: Command, run: Path):
    best = json.loads((run / "best.json").read_text())["snapshot"]
    manifest = run / "members" / best.replace("/", "/snapshots/") / "MANIFEST.json"
    manifest.write_text(manifest.read_text() + " ")
    assert found(pbtrl, 4) == [("damaged", "best.json")]


def test_damaged_line_is_named(pbtrl: Command, run: Path):
    lines = (run / "journal.jsonl").read_bytes().split(b"\n")
    lines[3] = lines[3][:-7]
    (run / "journal.jsonl").write_bytes(b"\n".join(lines))
    result = pbtrl("verify", "a")
    assert result.code == 4
    assert "damaged   journal.jsonl: runs/a/journal.jsonl:4: not a journal line" in result.out
    refused = pbtrl("verify", "a", "--digest")
    assert (refused.code, refused.out) == (4, "")


def test_links_and_invalid_names_are_not_snapshots(pbtrl: Command, run: Path):
    snapshot = newest()
    snapshot.symlink_to(Path.cwd() / snapshot.rename(run / "elsewhere"))
    assert found(pbtrl, 4) == [("damaged", str(snapshot.relative_to(run)))]
    (snapshot.parent / "..evil").mkdir()
    assert len(found(pbtrl, 4)) == 1


def test_locked_run_is_not_repaired(pbtrl: Command, run: Path):
    with RunLock(run):
        refused = pbtrl("verify", "a", "--repair")
    assert refused.code == 2
    assert str(os.getpid()) in refused.err


def test_unfinished_snapshot_of_a_running_run_is_not_reported(pbtrl: Command, run: Path):
    """While a controller holds the lock, a staged snapshot is work in progress; without one it is a leftover."""
    snapshots = run / "members/m00/snapshots"
    (snapshots / ".tmp-000099-1").mkdir()
    shutil.copytree(max(p for p in snapshots.iterdir() if p.name.isdigit()), snapshots / "000020")
    with RunLock(run):
        assert pbtrl("verify", "last").out.splitlines()[0].startswith("damaged   members/m00/snapshots/000020")
        shutil.rmtree(snapshots / "000020")
        assert ": clean (" in pbtrl("verify", "last").out
    assert pbtrl("verify", "last").out.startswith("leftover")
