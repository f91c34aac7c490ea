"""Run directories: names, locks, states."""

import errno
import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from pbtrl.errors import BusyError, DamagedError, RunError
from pbtrl.reporting import tables
from pbtrl.storage import run_creation, run_info, run_lock, run_lookup, run_state, run_status
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader
from pbtrl.system import files
from tests.command import Command, contents
from tests.journal_writer import JournalWriter, many_trials, one_copy

pytestmark = pytest.mark.usefixtures("quick_disk")

HOLD = """
import sys, time
from pathlib import Path
from pbtrl.storage.run_lock import RunLock
lock = RunLock(Path(sys.argv[1])).acquire()
print("held", flush=True)
time.sleep(60)
"""


def test_new_run_gets_its_directory(tmp_path: Path):
    assert run_creation.create(tmp_path / "runs", "pong").path == tmp_path / "runs" / "pong"
    assert (tmp_path / "runs" / "pong").is_dir()


def test_taken_name_is_an_error_with_suggestions(tmp_path: Path):
    JournalWriter(tmp_path / "pong").end("finish")
    with pytest.raises(
        RunError, match=r"pong exists \(finished\).*`pbtrl resume pong --runs .*`.*--suffix.*--overwrite"
    ):
        run_creation.create(tmp_path, "pong")


def test_directory_of_a_run_that_never_started_is_new(tmp_path: Path):
    run_info.record_start(run_creation.create(tmp_path, "pong"), ["pbtrl", "train"])
    assert run_creation.create(tmp_path, "pong").path == tmp_path / "pong"


def test_foreign_directory_is_unchanged(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    for way in ("error", "overwrite"):
        with pytest.raises(RunError):
            run_creation.create(tmp_path, "thesis", way)
    assert (tmp_path / "thesis" / "chapter1.tex").exists()


def test_concurrent_suffixes_are_unique(tmp_path: Path):
    gate = threading.Barrier(16)

    def claim(_: int) -> RunDirectory:
        gate.wait()
        return run_creation.create(tmp_path / "deep" / "runs", "pong", "suffix")

    with ThreadPoolExecutor(16) as pool:
        result = list(pool.map(claim, range(16)))
    assert len(set(result)) == 16
    assert {run.name for run in result} == {"pong", *(f"pong-{n}" for n in range(2, 17))}


def test_suffix_counts(tmp_path: Path):
    JournalWriter(tmp_path / "pong")
    JournalWriter(tmp_path / "pong-2")
    assert run_creation.create(tmp_path, "pong", "suffix").name == "pong-3"
    assert run_creation.create(tmp_path, "breakout", "suffix").name == "breakout"


def test_resume_keeps_and_overwrite_empties_the_directory(tmp_path: Path):
    JournalWriter(tmp_path / "pong")
    assert run_creation.create(tmp_path, "pong", "resume").journal_path.exists()
    assert not any(run_creation.create(tmp_path, "pong", "overwrite").path.iterdir())


@pytest.mark.parametrize("names", [["pong"], []])
def test_half_removed_run_is_not_listed_and_removed_later(tmp_path: Path, names: list[str]):
    """A process that was killed while removing a run leaves `.gone-NAME`, perhaps alone; the next one deletes it."""
    for name in (".gone-pong", *names):
        JournalWriter(tmp_path / name)
    assert [run["name"] for run in run_status.listing(tmp_path)] == names
    run_creation.create(tmp_path, "pong", "overwrite")
    assert [p.name for p in tmp_path.iterdir()] == ["pong"]


def test_lock_of_a_removed_run_is_invalid(tmp_path: Path, monkeypatch):
    """Otherwise a process that waited for the lock would hold no run, or another one."""
    run = JournalWriter(tmp_path / "pong").run
    take = run_lock._take

    def removed(file: IO[bytes], patience: float) -> bool:
        monkeypatch.setattr(run_lock, "_take", take)
        run_creation.create(tmp_path, "pong", "overwrite").path.rmdir()
        JournalWriter(run)
        return take(file, patience)

    monkeypatch.setattr(run_lock, "_take", removed)
    with pytest.raises(RunError, match="removed by another process: try again"):
        run_lock.RunLock(run).acquire()
    with run_lock.RunLock(run):
        assert run_lock.holder(run)


def test_running_run_is_not_overwritten(tmp_path: Path):
    run = JournalWriter(tmp_path / "pong").run
    with run_lock.RunLock(run), pytest.raises(RunError, match=f"in use by process {os.getpid()} on"):
        run_creation.create(tmp_path, "pong", "overwrite")


def test_run_that_another_process_begins_is_busy(tmp_path: Path):
    (tmp_path / "pong").mkdir()
    with run_lock.RunLock(tmp_path / "pong"), pytest.raises(BusyError, match="begun by another process"):
        run_creation.create(tmp_path, "pong", "resume")


def test_group_is_checked_again_under_its_lock(tmp_path: Path):
    """Another process may have begun a run there meanwhile."""
    folder = run_creation.group_folder(tmp_path, "s", "sweep.json")
    JournalWriter(folder)
    with pytest.raises(RunError, match="exists and is not a sweep"), run_creation.lock_group(folder, "sweep.json"):
        pass


@pytest.mark.parametrize("name", ["", "../x", "/x", "a/b", "a\0b", "-x", ".x", "x" * 65, "a b"])
def test_names_stay_below_the_root(tmp_path: Path, name):
    with pytest.raises(RunError, match="is not a run name"):
        run_creation.create(tmp_path, name)


def test_unwritable_root_is_one_line(tmp_path: Path):
    (tmp_path / "runs").touch()
    with pytest.raises(RunError, match=r"^cannot write to .*runs: [^\n]*$"):
        run_creation.create(tmp_path / "runs", "pong")
    with pytest.raises(RunError, match=r"^cannot write to .*sub: [^\n]*$"):
        run_creation.create(tmp_path / "runs" / "sub", "pong")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_root_is_one_line(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot write"):
        run_creation.create(tmp_path, "pong")


@pytest.mark.parametrize("what", ["root", "folder"])
def test_unwritable_folder_of_a_sweep_or_replay_is_one_line(pbtrl: Command, monkeypatch: pytest.MonkeyPatch, what: str):
    """Tested through the error, because permissions do not stop root."""
    assert pbtrl("train", "toy_quadratic").code == 0
    before = contents(Path("runs"))

    def refuse(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(*((os, "mkdir", refuse) if what == "root" else (files, "write_durably", refuse)))
    for command, folder in (("sweep", "toy_quadratic-sweep"), ("replay", "toy_quadratic-replay")):
        refused = pbtrl(command, "toy_quadratic", "--progress", "none")
        place = "runs" if what == "root" else f"runs/{folder}"
        assert (refused.code, refused.err) == (2, f"cannot write to {place}: Permission denied\n")
    assert contents(Path("runs")) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a file system without room, to which nobody may write")
def test_invalid_root_is_not_reported_as_full_disk(pbtrl: Command):
    refused = pbtrl("train", "toy_quadratic", "--runs", "/proc/x")
    assert (refused.code, refused.err) == (2, "cannot write to /proc/x: No such file or directory\n")


@pytest.mark.parametrize("what", ["lock", "card", "eval"])
def test_run_on_a_read_only_disk_is_one_line(pbtrl: Command, monkeypatch: pytest.MonkeyPatch, what: str):
    """Tested through the error, because permissions do not stop root."""
    assert pbtrl("train", "toy_quadratic").code == 0
    before = contents(Path("runs/toy_quadratic"))

    def refuses(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    command = ["resume", "last", "budget.env_steps_per_member=400"]
    if what == "lock":
        monkeypatch.setattr(run_lock, "_open", refuses)
    else:
        monkeypatch.setattr(files, "write_durably", refuses)
    if what == "eval":
        result = pbtrl("eval", "last", "--json")
        assert (result.code, result.json["member"]) == (0, json.loads(before["best.json"])["member"])
        message = r"warning: results not saved in runs/toy_quadratic/eval: cannot write .+json: Read-only file system\n"
        assert re.fullmatch(message, result.err)
    else:
        result = pbtrl(*command)
        assert (result.code, result.out) == (2 if what == "lock" else 75, "")
        assert re.fullmatch(
            r"cannot write (to )?runs/toy_quadratic\S*: Read-only file system", result.err.splitlines()[-1]
        )
    assert contents(Path("runs/toy_quadratic")) == before
    assert pbtrl("status", "last").code == pbtrl("verify", "last").code == 0


def test_clock_jumps_change_nothing(pbtrl: Command, monkeypatch: pytest.MonkeyPatch):
    assert pbtrl("train", "toy_quadratic", "--name", "steady").code == 0
    days = itertools.cycle([0, 40_000, -10_000, 3, -5])
    with monkeypatch.context() as inside:
        inside.setattr(time, "time", lambda: 1.7e9 + 86_400 * next(days))
        assert pbtrl("train", "toy_quadratic", "--name", "jumping", "budget.wall_clock=1h").code == 0
        assert pbtrl("status", "jumping", "--json").json["state"] == "finished"
        assert pbtrl("list").code == pbtrl("lineage", "jumping").code == 0
    assert pbtrl("verify", "jumping", "--digest").out == pbtrl("verify", "steady", "--digest").out


def test_find_by_name_prefix_path_and_last(tmp_path: Path):
    for name in ("pong-a", "pong-b", "breakout"):
        run_info.record_start(RunDirectory(JournalWriter(tmp_path / name).run), [])
    run_info.record_start(RunDirectory(tmp_path / "pong-a"), [])  # resumed last
    assert run_lookup.find("last", tmp_path).name == "pong-a"
    assert run_lookup.find("b", tmp_path).name == "breakout"
    assert run_lookup.find("pong-b", tmp_path).name == "pong-b"
    assert run_lookup.find(str(tmp_path / "pong-b"), Path("elsewhere")).name == "pong-b"
    with pytest.raises(RunError, match=r"'pong' is ambiguous: it may mean pong-a, pong-b$"):
        run_lookup.find("pong", tmp_path)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text("{}")
    with pytest.raises(RunError, match=r"no run 'x' in .*: there are breakout, pong-a, pong-b, s/NAME$"):
        run_lookup.find("x", tmp_path)
    with pytest.raises(RunError, match="there are no runs"):
        run_lookup.find("last", tmp_path / "none")


def test_exact_name_wins_over_longer_ones(tmp_path: Path):
    JournalWriter(tmp_path / "pong")
    JournalWriter(tmp_path / "pong-2")
    assert run_lookup.find("pong", tmp_path).name == "pong"


def test_link_out_of_the_root_is_not_a_run(tmp_path: Path):
    JournalWriter(tmp_path / "outside" / "pong")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "pong").symlink_to(tmp_path / "outside" / "pong")
    with pytest.raises(RunError, match="no run"):
        run_lookup.find("pong", tmp_path / "runs")


def test_second_controller_is_told_the_first_ones_pid(tmp_path: Path):
    run = JournalWriter(tmp_path / "pong").run
    with run_lock.RunLock(run):
        with pytest.raises(RunError, match=rf"pong is in use by process {os.getpid()} on .+, since 20\d\d"):
            run_lock.RunLock(run).acquire()
        assert run_state.state(RunDirectory(run)) == "running"
    assert run_lock.holder(run) is None
    with run_lock.RunLock(run):
        pass


def test_killed_controller_leaves_no_lock(tmp_path: Path):
    run = JournalWriter(tmp_path / "pong").run
    command = [sys.executable, "-c", HOLD, str(run)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            assert run_state.state(RunDirectory(run)) == "running"
            assert (run_lock.holder(run) or {})["pid"] == process.pid
        finally:
            process.kill()
    assert run_state.state(RunDirectory(run)) == "crashed"
    with run_lock.RunLock(run):
        pass


def test_status_check_does_not_block_a_controller(tmp_path: Path):
    run = JournalWriter(tmp_path / "pong").run
    for _ in range(50):
        assert run_lock.holder(run) is None
        with run_lock.RunLock(run):
            assert run_lock.holder(run)


def test_state_follows_lock_journal_and_heartbeat(tmp_path: Path):
    w = one_copy(tmp_path / "pong")
    assert run_state.state(RunDirectory(w.run)) == "crashed"
    w.end("stop")
    assert run_state.state(RunDirectory(w.run)) == "stopped"
    w.end("resume")
    assert run_state.state(RunDirectory(w.run)) == "crashed"
    w.end("finish")
    assert run_state.state(RunDirectory(w.run)) == "finished"
    with run_lock.RunLock(w.run):
        assert run_state.state(RunDirectory(w.run)) == "running"
        w.metrics("m00", 120)
        long_ago = time.time() - 700
        for age in (500, 700):  # run_state.STALE_AFTER is between them
            for path in (w.run / "journal.jsonl", w.run / "LOCK", w.run / "members" / "m00" / "metrics.jsonl"):
                os.utime(path, (time.time() - age,) * 2)
            assert run_state.state(RunDirectory(w.run)) == ("running" if age == 500 else "stale")
        w.metrics("m00", 160)
        for path in (w.run / "journal.jsonl", w.run / "LOCK"):
            os.utime(path, (long_ago, long_ago))
        assert run_state.state(RunDirectory(w.run)) == "running"  # a metrics line is a heartbeat
        os.utime(w.run / "members" / "m00" / "metrics.jsonl", (long_ago, long_ago))
        assert run_state.state(RunDirectory(w.run)) == "stale"


def test_lock_text_counts_without_fcntl(tmp_path: Path, monkeypatch):
    run = JournalWriter(tmp_path / "pong").run
    monkeypatch.setattr(run_lock, "fcntl", None)
    assert run_lock.holder(run) is None
    with run_lock.RunLock(run):
        assert run_state.state(RunDirectory(run)) == "running"
        with pytest.raises(RunError, match=r"if that process is gone, delete .*LOCK"):
            run_lock.RunLock(run).acquire()
    assert run_lock.holder(run) is None


def test_status_counts_skipped_updates(tmp_path: Path):
    w = one_copy(tmp_path / "pong")
    assert "skipped:" not in tables.status(run_status.status(RunDirectory(w.run)), "pong")
    w.report("m01", 1.0, scalars={"learning/skipped_updates": 12.0, "learning/updates": 240.0})
    result = run_status.status(RunDirectory(w.run))
    assert [m["skipped_updates"] for m in result["members"]] == [0, 12]
    _, titles, first, second, legend, *_ = tables.status(result, "pong").splitlines()
    assert titles.split()[:5] == ["member", "fitness", "gen", "steps", "skipped"]
    assert (first.split()[4], second.split()[4]) == ("0", "12")
    assert legend == "skipped: updates skipped because their gradient was not finite"


def test_status(tmp_path: Path):
    w = one_copy(tmp_path / "pong")
    w.metrics("m00", 120)
    result = run_status.status(RunDirectory(w.run))
    assert result.pop("bytes") > 100
    assert 0 <= result.pop("heartbeat_age") < 60
    assert result == {
        "name": "pong",
        "path": str(w.run),
        "state": "crashed",
        "origin": "",
        "changes": [],
        "unit": "env_steps",
        "metric": "fitness",
        "env_steps": 200,
        "frames": 800,
        "steps_budget": 2000,
        "generation": 1,
        "best": {"member": "m00", "fitness": 3.0},
        "roles": {},
        "retired": 0,
        "members": [
            {
                "id": "m00",
                "role": "",
                "state": "train",
                "evaluates": None,
                "env_steps": 100,
                "frames": 400,
                "fitness": 3.0,
                "fitness_before_copy": None,
                "skipped_updates": 0,
                "generation": 1,
                "parent": "m00/000000",
                "hyperparameters": {"learning_rate": 0.01, "unroll_length": 20},
                "at_bound": {},
            },
            {
                "id": "m01",
                "role": "",
                "state": "train",
                "evaluates": None,
                "env_steps": 100,
                "frames": 400,
                "fitness": None,
                "fitness_before_copy": -5.0,
                "skipped_updates": 0,
                "generation": 1,
                "parent": "m00/000000",
                "hyperparameters": {"learning_rate": 0.005, "unroll_length": 20},
                "at_bound": {},
            },
        ],
    }
    json.dumps(result)


def test_best_member_of_a_finished_run_is_the_chosen_one(tmp_path: Path):
    w = one_copy(tmp_path / "pong")
    w.report("m01", 2.0)
    named = []
    for act in (lambda: w.choose("m01", 9.0), lambda: w.end("finish"), lambda: w.end("resume")):
        act()
        named.append(run_status.status(RunDirectory(w.run))["best"])
    fittest, chosen = {"member": "m00", "fitness": 3.0}, {"member": "m01", "fitness": 2.0}
    assert named == [fittest, chosen, fittest]
    w.end("finish")
    (w.run / "best.json").write_text("{")
    assert run_status.status(RunDirectory(w.run))["best"] == fittest


def test_status_of_many_trials_shows_the_best_and_those_that_train(tmp_path: Path):
    result = run_status.status(RunDirectory(many_trials(tmp_path / "search").run))
    assert len(result["members"]) == 100
    lines = tables.status(result, "search").splitlines()
    rows = [line.split() for line in lines if re.match(r"m\d", line)]
    assert [row[0] for row in rows] == [f"m{place}" for place in (*range(95, 55, -1), 96, 97, 98, 99)]
    assert {row[-1] for row in rows[:40]} == {"retired"}
    assert {row[-1] for row in rows[40:]} == {"train"}
    assert "and 56 members below them; all are in the output of --json" in lines


def test_status_marks_old_fitness_and_values_at_a_bound(tmp_path: Path):
    """A fitness from before the last copy counts as old."""
    w = one_copy(tmp_path / "pong", bounds={"": {"learning_rate": (0.005, 0.1)}})
    result = run_status.status(RunDirectory(w.run))
    assert [m["at_bound"] for m in result["members"]] == [{}, {"learning_rate": "min"}]
    lines = tables.status(result, "pong").splitlines()
    assert lines[3].split()[:6] == ["m01", "(-5.00)", "1", "100", "5.0e-3", "min"]
    assert lines[4].startswith("in parentheses: fitness from before a copy")
    assert lines[5].startswith("min, max: the value is at a bound")


@pytest.mark.parametrize(
    "bounds", [{"": {"a": [1]}}, {"": {"a": [0, "x"]}}, {"": {"a": 3}}, {"": 3}, [1], {"": {"a": [0, None]}}]
)
def test_bounds_in_a_journal_are_validated(tmp_path: Path, bounds: object):
    run = one_copy(tmp_path / "odd").run
    first, *rest = (run / "journal.jsonl").read_text().splitlines()
    first = json.dumps({**json.loads(first), "bounds": bounds})
    (run / "journal.jsonl").write_text("\n".join([first, *rest, ""]))
    with pytest.raises(DamagedError, match=r"does not describe a run|is damaged"):
        run_status.status(RunDirectory(run))


def test_frames_are_steps_outside_rl(tmp_path: Path):
    w = one_copy(tmp_path / "toy", frames_per_step=1, unit="steps")
    result = run_status.status(RunDirectory(w.run))
    assert (result["unit"], result["env_steps"], result["frames"]) == ("steps", 200, 200)


def test_listing_reports_unreadable_runs(tmp_path: Path):
    one_copy(tmp_path / "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "journal.jsonl").write_text("garbage\n")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "journal.jsonl").write_text(
        json.dumps(RunHeader("odd", 1, 1, 10).to_line()) + '\n{"kind":"report","member":"m07"}\n'
    )
    run_info.record_start(run_creation.create(tmp_path, "empty"), [])
    result = {entry["name"]: entry for entry in run_status.listing(tmp_path)}
    assert "error" not in result["good"]
    assert "journal.jsonl:1: not a journal line" in result["bad"]["error"]
    assert "is damaged" in result["odd"]["error"]
    assert "never started" in result["empty"]["error"]
    assert run_status.listing(tmp_path / "none") == []


def test_commit_of_changed_files_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory(JournalWriter(tmp_path / "pong").run)
    commits = []

    def record(text: str, *git: str) -> None:
        Path("code.py").write_text(text)
        for command in git:
            subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command.split()], check=True)
        run_info.record_start(run, [])
        commits.append(run_info.read_run_info(run)["git"])

    record("")
    record("", "init -q", "add code.py", "commit -q -m a")
    record("changed")
    assert commits[0] is None
    assert re.fullmatch("[0-9a-f]{40}", commits[1])
    assert commits[2] == f"{commits[1]}-dirty"


def test_run_json_keeps_identity_and_reports_new_versions(tmp_path: Path):
    run = JournalWriter(tmp_path / "pong").run
    command = ["pbtrl", "train", "pong.yaml", "hub.token=hunter2", "--api-key", "hunter3", "seed=2"]
    assert run_info.record_start(RunDirectory(run), command) == []
    first = run_info.read_run_info(RunDirectory(run))
    redacted = ["pbtrl", "train", "pong.yaml", "hub.token=...", "--api-key", "...", "seed=2"]
    assert first["command"] == redacted
    assert first["versions"]["torch"]
    assert first["status"] == "running"
    run_info.record_end(RunDirectory(run), "stopped", "interrupted")
    assert (
        run_info.read_run_info(RunDirectory(run))["status"],
        run_info.read_run_info(RunDirectory(run))["reason"],
    ) == (
        "stopped",
        "interrupted",
    )
    (run / "run.json").write_text(json.dumps(first | {"versions": first["versions"] | {"torch": "1.0"}}))
    (warning,) = run_info.record_start(RunDirectory(run), command)
    assert warning.startswith(f"torch 1.0 -> {first['versions']['torch']} since the last session: ")
    again = run_info.read_run_info(RunDirectory(run))
    assert (again["id"], again["created"], again[run_info.SESSIONS]) == (first["id"], first["created"], 2)
    assert "hunter" not in (run / "run.json").read_text()
