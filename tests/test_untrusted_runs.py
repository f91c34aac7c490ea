"""Run directories from an untrusted source: nothing is executed, no link is followed, everything is validated."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from pbtrl.cli import main as cli
from pbtrl.errors import SnapshotError
from pbtrl.storage.json_files import MAX_BYTES, SCHEMA
from pbtrl.storage.snapshot_store import SnapshotStore
from tests.command import CART, Command, contents, descendants, journal, spawn

RUN = Path("runs/toy_quadratic")
DEEP = b"[" * 100_000


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished run, to be copied."""
    where = tmp_path_factory.mktemp("finished")
    assert cli.main(["train", "toy_quadratic", "--runs", str(where), "--progress", "none"]) == 0
    return where / "toy_quadratic"


@pytest.fixture
def run(pbtrl: Command, finished: Path) -> Path:
    """Untrusted run among the user's own."""
    shutil.copytree(finished, RUN)
    return RUN


def newest(member: str = "m00") -> Path:
    return sorted((RUN / "members" / member / "snapshots").iterdir())[-1]


def forged(snapshot: Path, **files: bytes) -> None:
    """Replace files of a snapshot, with a matching manifest."""
    manifest = json.loads((snapshot / "MANIFEST.json").read_bytes())
    for file, data in ((name.replace("__", "."), data) for name, data in files.items()):
        (snapshot / file).write_bytes(data)
        manifest[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (snapshot / "MANIFEST.json").write_text(json.dumps(manifest))


class Bomb:
    """Unpickling it creates a directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("boom",)


# What is not what its name says


@pytest.mark.parametrize("command", [["eval", "last", "--member", "m00"], ["verify", "last"]])
def test_pickle_named_safetensors_is_not_unpickled(pbtrl: Command, run: Path, command: list[str]) -> None:
    forged(newest(), tensors__safetensors=pickle.dumps(Bomb()))
    result = pbtrl(*command)
    assert result.code == 4
    assert "snapshot m00/000019: tensors.safetensors holds no tensors" in result.out + result.err
    assert not Path("boom").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("boom").exists(), "the bomb is none"


def test_run_continues_despite_a_forged_snapshot(pbtrl: Command, run: Path) -> None:
    """Its parent exists, so the slice runs again."""
    forged(newest(), tensors__safetensors=pickle.dumps(Bomb()))
    assert pbtrl("resume", "last", "budget.env_steps_per_member=230").code == 0
    assert not Path("boom").exists()


@pytest.mark.parametrize("state", [DEEP, b"{", b"[]", b"{}", b'{"report": 3}', b"\xff"])
def test_malformed_state_is_one_line(pbtrl: Command, run: Path, state: bytes) -> None:
    forged(newest(), state__json=state)
    result = pbtrl("eval", "last", "--member", "m00")
    assert (result.code, result.out, len(result.err.splitlines())) == (4, "", 1)
    assert pbtrl("verify", "last").code == 4


def test_tensors_of_wrong_shape_are_refused_before_copying(pbtrl: Command, run: Path) -> None:
    theta, more = np.zeros(2), np.zeros(1)
    for tensors, message in (
        ({"theta": np.zeros((9, 9))}, "theta is float64 (9, 9), not float64 (2,)"),
        ({"theta": theta.astype(np.float32)}, "theta is float32 (2,), not float64 (2,)"),
        ({"theta": theta, "more": more}, "more is unknown"),
        ({"more": more}, "more is unknown"),
        ({}, "theta is missing"),
    ):
        forged(newest(), tensors__safetensors=safetensors.numpy.save(tensors))
        result = pbtrl("eval", "last", "--member", "m00")
        assert (result.code, result.err) == (4, f"the snapshot does not fit this config: {message}\n")


@pytest.mark.parametrize("file", ["journal.jsonl", "run.json", "best.json"])
def test_deeply_nested_json_is_one_line(pbtrl: Command, run: Path, file: str) -> None:
    (run / file).write_bytes(DEEP + b"\n")
    result = pbtrl("verify", "last", "--runs", "runs")
    assert result.code == 4
    assert f"damaged   {file}" in result.out


@pytest.mark.parametrize("file", ["run.json", "best.json", "members/m00/snapshots/000019/MANIFEST.json"])
def test_oversized_files_are_not_read(pbtrl: Command, run: Path, file: str) -> None:
    os.truncate(run / file, MAX_BYTES + 1)  # zeros, which would be read as no JSON: that is another message
    result = pbtrl("verify", "last", "--json")
    assert result.code == 4
    where = file.removesuffix("/MANIFEST.json")
    (text,) = [f["text"] for f in json.loads(result.out)["findings"] if f["where"] == where]
    assert ("larger than 64 MiB" if where == file else "missing or incomplete") in text


def test_tensors_larger_than_their_manifest_are_not_read(run: Path) -> None:
    os.truncate(newest() / "tensors.safetensors", 2**40)
    with pytest.raises(SnapshotError, match=r"tensors\.safetensors is damaged"):
        SnapshotStore(run / "members").load("m00/000019")


LAUGHS = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}' if n else 'ha'] * 9)}]" for n in range(9))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LAUGHS, ":1:14: more than 100,000 values, those of aliases counted wherever they are used"),
        ("x" * 2**20 + "x", ": larger than 1 MiB, which no config is"),
    ],
)
def test_config_cannot_fill_the_memory(pbtrl: Command, run: Path, config: str, message: str) -> None:
    (run / "config.resolved.yaml").write_text(config)
    result = pbtrl("eval", "last", "--member", "m00")
    assert (result.code, result.err.splitlines()[0]) == (2, f"runs/toy_quadratic/config.resolved.yaml{message}")


def test_swapped_snapshots_are_detected(pbtrl: Command, run: Path) -> None:
    one, other = newest("m00"), newest("m01")
    one.rename(run / "aside")
    other.rename(one)
    (run / "aside").rename(other)
    with pytest.raises(SnapshotError, match=r"snapshot m00/000019 holds 'm01/000019'"):
        SnapshotStore(run / "members").load("m00/000019")
    result = pbtrl("resume", "last", "budget.env_steps_per_member=230")
    assert result.code == 0
    assert sum(line["kind"] == "void" for line in journal(run)) == 2


JOURNALS = {
    "size": {"size": 3_000_000},
    "horizon": {"horizon": "x"},
    "unit": {"unit": [1]},
    "frames_per_step": {"frames_per_step": {}},
}


@pytest.mark.parametrize("what", [*JOURNALS, "parent", "id", "timing", "donor"])
def test_invalid_journal_is_one_line_and_others_are_listed(pbtrl: Command, run: Path, what: str) -> None:
    shutil.copytree(run, run.with_name("mine"))
    lines = journal(run)
    decided = [line for line in lines if line["kind"] == "decision"]
    last = decided[-1]["assignments"][0]
    if what in JOURNALS:
        lines[0] |= JOURNALS[what]
    elif what == "parent":
        last["parent"] = last["id"]
    elif what == "id":
        last["id"] = "\ud800"
    elif what == "donor":
        last["donor"] = "m99"
    else:
        decided[-1]["timing"] = {"elapsed": "x"}
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "mine" in pbtrl("list").out
    for command in (
        ["status", "toy_quadratic"],
        ["lineage", "toy_quadratic"],
        ["resume", "toy_quadratic"],
        ["verify", "toy_quadratic"],
        ["report", "toy_quadratic"],
        ["compare", "toy_quadratic"],
    ):
        result = pbtrl(*command)
        assert "Traceback" not in result.err
        if what not in ("timing", "donor") or command[0] in ("lineage", "report"):
            assert result.code == 4, command


@pytest.mark.parametrize("file", ["journal.jsonl", "run.json", "LOCK", "config.resolved.yaml", "best.json"])
def test_named_pipes_do_not_block(pbtrl: Command, run: Path, file: str) -> None:
    (run / file).unlink()
    os.mkfifo(run / file)
    signal.alarm(60)
    try:
        for name in ("status", "verify", "compare", "eval", "resume"):
            pbtrl(name, "last")
        pbtrl("list")
    finally:
        signal.alarm(0)


def test_control_characters_are_escaped(pbtrl: Command, run: Path) -> None:
    """In names of hyperparameters, in the reason of a run's end, in the run's name."""
    evil = "\x1b]0;owned\x07\x1b[2J"
    text = (run / "journal.jsonl").read_text().replace('"h0"', json.dumps(f"h0{evil}"))
    (run / "journal.jsonl").write_text(text)
    card = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**card, "status": "crashed", "reason": evil}))
    run.rename(run.with_name(f"q{evil.replace('/', '')}"))
    last = [[name, "last"] for name in ("status", "lineage", "verify", "compare", "resume")]
    for command in (["list"], *last):
        result = pbtrl(*command)
        assert "\x1b" not in result.out + result.err
        assert "\x07" not in result.out + result.err
    assert "h0\\x1b]0;owned\\x07" in pbtrl("status", "last").out


def test_children_import_nothing_from_the_working_directory(run: Path, tmp_path: Path) -> None:
    for name in ("pickle", "signal", "struct", "runpy", "json"):
        (run / f"{name}.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    command = [
        Path(sys.executable).with_name("pbtrl"),
        "train",
        "cartpole",
        "--runs",
        tmp_path / "r",
        "--progress",
        "none",
    ]
    small = ["population.size=2", "budget.env_steps_per_member=2_000", "strategy.ready={slice_steps: 1_000}"]
    done = subprocess.run([*command, *small, "final={episodes: 2, selection_episodes: 2}"], cwd=run, check=False)
    assert done.returncode == 0
    assert not (tmp_path / "marker").exists()


# Out of the directory


@pytest.mark.parametrize("name", ["../../../x", "/etc/x", "m00/../../x", "m00\0/000019", "m" * 300 + "/000019", "m00"])
def test_journal_cannot_name_outside_files(pbtrl: Command, run: Path, name: str) -> None:
    best = json.loads((run / "best.json").read_text())
    (run / "best.json").write_text(json.dumps({**best, "snapshot": name}))
    result = pbtrl("eval", "last")
    assert (result.code, result.out) == (4, "")
    assert "is not a snapshot name" in result.err or "is missing or incomplete" in result.err
    with pytest.raises(SnapshotError, match="is not a snapshot name"):
        SnapshotStore(run / "members").path(name)


LINKED = ["LOCK", "run.json", "journal.jsonl", "members", "members/m00", "members/m00/log.txt", "members/m00/snapshots",
          "members/m00/snapshots/000019", "members/m00/snapshots/000019/state.json", "tb", "eval", "plots",
          "report.html"]  # fmt: skip


@pytest.mark.parametrize("where", LINKED)
def test_nothing_is_written_or_read_through_a_link(pbtrl: Command, run: Path, tmp_path: Path, where: str) -> None:
    path, outside = run / where, tmp_path / "outside"
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("precious")
    path.symlink_to(outside)
    before = outside.read_bytes() if outside.is_file() else contents(outside)
    for command in (["resume", "last"], ["verify", "last", "--repair"], ["eval", "last"], ["report", "last"]):
        refused = pbtrl(*command)
        assert (refused.code, refused.out) == (2, "")
        assert (
            refused.err
            == f"runs/toy_quadratic/{where} is a symbolic link, which pbtrl refuses; replace it with the real file\n"
        )
    assert pbtrl("train", "toy_quadratic", "--overwrite").code == (2 if where == "LOCK" else 0)
    assert (outside.read_bytes() if outside.is_file() else contents(outside)) == before


@pytest.mark.parametrize("where", ["members/m00", "members/m00/snapshots", "members/m00/snapshots/000019",
                                   "members/m00/snapshots/000019/tensors.safetensors"])  # fmt: skip
def test_linked_snapshot_is_ignored(run: Path, tmp_path: Path, where: str) -> None:
    (run / where).rename(tmp_path / "outside")
    (run / where).symlink_to(tmp_path / "outside")
    with pytest.raises(SnapshotError, match="m00/000019 is a symbolic link, or inside one"):
        SnapshotStore(run / "members").load("m00/000019")


# Of another version


def bumped(path: Path) -> None:
    text = path.read_text()
    assert f'"schema":{SCHEMA}' in text.replace(" ", "")
    first, _, rest = text.replace('"schema": ', '"schema":').partition(f'"schema":{SCHEMA}')
    path.write_text(f'{first}"schema":{SCHEMA + 1}{rest}')


@pytest.mark.parametrize(
    "file", ["run.json", "journal.jsonl", "best.json", "members/m00/snapshots/000019/MANIFEST.json"]
)
def test_newer_schema_is_refused_and_unchanged(pbtrl: Command, run: Path, file: str) -> None:
    bumped(run / file)
    before = contents(run / "members")
    message = f"runs/toy_quadratic/{file}{':1' if file == 'journal.jsonl' else ''}: written by a newer pbtrl "
    commands = [["verify", "last"], ["verify", "last", "--repair"]]
    commands += [["resume", "last", "budget.env_steps_per_member=230"]] if file != "best.json" else []
    commands += [["eval", "last", "--member", "m00" if "m00" in file else "best"]] if file != "run.json" else []
    for command in commands:
        refused = pbtrl(*command)
        assert refused.code == 4, command
        assert message in refused.out + refused.err
    assert "newer     " in pbtrl("verify", "last").out
    assert contents(run / "members") == before


# What leaves this machine


def test_secrets_are_not_stored(pbtrl: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those of the environment nor those of the command line."""
    secrets = {"PBTRL_TEST_TOKEN": "hunter2-env", "AWS_SECRET_ACCESS_KEY": "hunter2-aws"}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["pbtrl", "train", "x", "hub.api_key=hunter2-argv", "--token", "hunter2-option"])
    received = 'env.kwargs={api_key: hunter2-a, "auth_token": "hunter2-b", url: "https://me:hunter2-c@x"}'
    monkeypatch.setattr(sys, "argv", [*sys.argv, received, "db_password=hunter2-d"])
    broken = ["env.id=tests.faulty_envs:Raising", "env.kwargs={after: 9}", "population.size=2"]
    assert pbtrl("train", "cart.yaml", "--name", "a", *broken).code == 3
    assert pbtrl("train", "toy_quadratic").code == 0
    (text,) = (w for w in json.loads((RUN / "run.json").read_text())["command"] if w.startswith("env.kwargs"))
    assert text == 'env.kwargs={api_key: ..., "auth_token": ..., url: "https://...@x"}'
    result = contents(Path("runs"))
    assert not [path for path, data in result.items() if b"hunter2" in data]


def listening(pid: int) -> set[str]:
    """Addresses at which a process and its threads accept connections, as the kernel writes them."""
    own = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            own.add(os.readlink(link))
        except OSError:
            continue
    tables = (Path(f"/proc/{pid}/net/{kind}") for kind in ("tcp", "tcp6", "udp", "udp6"))
    rows = [row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] in ("0A", "07") and f"socket:[{row[9]}]" in own}


LOCAL = ("0100007F:", "00000000000000000000000001000000:")  # 127.0.0.1 and ::1


def test_training_opens_no_socket(tmp_path: Path) -> None:
    (tmp_path / "cart.yaml").write_text(CART)
    acting = ["acting={mode: actors, processes: 1}", "execution={backend: processes, workers: 1}", "population.size=1"]
    budget = "budget.env_steps_per_member=100000000"
    with spawn(tmp_path, "train", "cart.yaml", "--name", "a", *acting, budget) as process:
        try:
            snapshots = tmp_path / "runs/a/members/m00/snapshots"
            while not snapshots.is_dir() and process.poll() is None:
                time.sleep(0.05)
            family = [process.pid, *descendants(process.pid)]
            assert len(family) >= 3  # controller, worker, actor
            addresses = {pid: listening(pid) for pid in family}
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=60)
    assert not any(addresses.values())


@pytest.mark.parametrize(
    ("options", "from_where", "warned"),
    [
        ([], LOCAL, ""),
        (["--expose"], ("00000000:", f"{0:032}:"), "warning: anyone who can reach this machine can see these curves"),
    ],
)
def test_tensorboard_listens_on_localhost_only(
    run: Path, tmp_path: Path, options: list[str], from_where: tuple[str, ...], warned: str
) -> None:
    with spawn(tmp_path, "tb", "last", "--port", 0, *options) as process:
        assert process.stdout
        assert process.stderr
        try:
            process.stdout.readline()
            addresses = listening(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGINT)
        assert process.stderr.read().startswith(warned)
    assert addresses
    assert all(address.startswith(from_where) for address in addresses)
