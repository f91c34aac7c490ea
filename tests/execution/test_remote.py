"""What the executor on Ray is made of, without Ray: the store over a transport, the worker, and the checks before."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pbtrl.config.sections import Execution
from pbtrl.core.messages import Assignment, Report
from pbtrl.errors import ConfigProblem, DiskFullError, NewerError, RunError, SnapshotError, WorkerError
from pbtrl.execution import ray_checks
from pbtrl.execution.ray_text import (
    classify_death,
    count_room,
    count_workers,
    describe_death,
    describe_shortage,
    listed,
    quiet,
)
from pbtrl.execution.ray_worker import RemoteWorker, check_versions, facts, version_differences
from pbtrl.execution.remote_store import RemoteStore, StoreDesk
from pbtrl.execution.worker import WorkerSpec
from pbtrl.execution.worker_messages import Answers, Began, DiskFull, StartFailed, Stop, Stopped, Submit, decode, encode
from pbtrl.storage.snapshot_store import MANIFEST, SnapshotStore, pack
from tests.command import Command
from tests.conformance import ExecutorConformance

NAME = "m00/000003"
TENSORS = {"w": np.arange(6.0).reshape(2, 3), "n": np.array([7])}


@pytest.fixture
def members(tmp_path: Path, quick_disk: None) -> Path:
    return tmp_path / "members"


@pytest.fixture
def remote(members: Path) -> RemoteStore:
    return RemoteStore(StoreDesk(members).answer)


def test_snapshot_crosses_unchanged_and_lies_as_a_local_one(remote: RemoteStore, members: Path) -> None:
    remote.commit(NAME, TENSORS, {"answer": 42})
    for store in (remote, SnapshotStore(members)):
        tensors, state = store.load(NAME)
        assert (list(tensors), state, store.state(NAME)) == (["n", "w"], {"answer": 42}, {"answer": 42})
        np.testing.assert_array_equal(tensors["w"], TENSORS["w"])
    local = SnapshotStore(members.parent / "local" / "members")
    local.members.parent.mkdir()
    local.commit(NAME, TENSORS, {"answer": 42})
    assert local.read(NAME) == SnapshotStore(members).read(NAME)


def broken(verb: str, change: Callable[[dict[str, bytes]], object], desk: StoreDesk) -> RemoteStore:
    """Store over a network that changes the files of one verb."""

    def transport(called: str, *arguments: Any) -> tuple[str, Any]:
        if called == verb == "write":
            change(arguments[1])
        error, result = desk.answer(called, *arguments)
        if called == verb == "read":
            change(result)
        return error, result

    return RemoteStore(transport)


CHANGES = {
    "flipped": (lambda f: f.update({"state.json": f["state.json"].replace(b"42", b"43")}), "state.json was damaged"),
    "cut": (lambda f: f.update({"tensors.safetensors": f["tensors.safetensors"][:-1]}), "tensors.safetensors was"),
    "lost": (lambda f: f.pop("state.json"), "arrived incomplete"),
    "added": (lambda f: f.update({"../x": b""}), "../x was damaged"),
    "other": (lambda f: f.update(pack("m01/000001", TENSORS, {})), "holds 'm01/000001' instead"),
    "no manifest": (lambda f: f.update({MANIFEST: b"[]"}), "arrived incomplete"),
}


@pytest.mark.parametrize("verb", ["read", "write"])
@pytest.mark.parametrize("change", CHANGES)
def test_damage_on_the_way_is_noticed(members: Path, verb: str, change: str) -> None:
    desk = StoreDesk(members)
    how, message = CHANGES[change]
    store = broken(verb, how, desk)
    if verb == "write":
        with pytest.raises(SnapshotError, match=message):
            store.commit(NAME, TENSORS, {"answer": 42})
        assert SnapshotStore(members).names("m00") == []
    else:
        store.commit(NAME, TENSORS, {"answer": 42})
        with pytest.raises(SnapshotError, match=message):
            store.load(NAME)


def test_errors_keep_their_kind(remote: RemoteStore, members: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert remote.state(NAME) is None
    with pytest.raises(SnapshotError, match="m00/000003 is missing"):
        remote.load(NAME)
    with pytest.raises(SnapshotError, match="not a snapshot name"):
        remote.commit("../x", TENSORS, {})
    remote.commit(NAME, TENSORS, {"schema": 99})
    with pytest.raises(NewerError, match="newer pbtrl"):
        remote.load(NAME)

    def full(*_: object) -> None:
        raise DiskFullError("no space")

    monkeypatch.setattr(SnapshotStore, "_commit", full)
    monkeypatch.setattr("pbtrl.storage.snapshot_store.retry_attempts", lambda: [True])
    with pytest.raises(DiskFullError, match="no space"):
        remote.commit(NAME, TENSORS, {})


def test_quarantine_metrics_and_logs_land_in_the_run_directory(remote: RemoteStore, members: Path) -> None:
    remote.commit(NAME, TENSORS, {})
    remote.quarantine(NAME)
    remote.quarantine(NAME)
    assert remote.state(NAME) is None
    assert len(list((members / "m00/quarantine").iterdir())) == 1
    remote.write_metrics("m00", {"loss/policy": 0.5, "step": 3})
    remote.write_log("m00", "failed\n")
    assert json.loads((members / "m00/metrics.jsonl").read_text()) == {"loss/policy": 0.5, "step": 3}
    assert (members / "m00/log.txt").read_text() == "failed\n"


# The worker


def worker(members: Path, **config: Any) -> RemoteWorker:
    groups = ExecutorConformance.groups
    spec = WorkerSpec("tests.fakes:build", json.dumps(config), "nowhere", tuple(groups), (), 1, False)
    return RemoteWorker(json.dumps(asdict(spec)), StoreDesk(members).answer)


def work(w: RemoteWorker, *messages: Submit | Stop, seconds: float = 5.0) -> list[Any]:
    return [decode(news) for news in w.work([encode(m) for m in messages], seconds)]


SLICE = Assignment("m00/000000", "m00", None, 0, 8, {}, 1)


def test_worker_tells_news_at_once_and_otherwise_when_its_time_is_over(members: Path) -> None:
    quick, endless = worker(members), worker(members, endless=True)
    assert work(quick, Submit((SLICE,))) == [Began()]
    (news,) = work(quick)
    assert isinstance(news, Answers)
    assert [type(r) for r in news.reports] == [Report]
    assert SnapshotStore(members).names("m00") == ["m00/000000"]
    assert work(quick) == []

    other = Assignment("m01/000000", "m01", None, 0, 8, {}, 1)
    assert work(endless, Submit((other,))) == [Began()]
    began = time.monotonic()
    assert work(endless, seconds=0.2) == []
    assert time.monotonic() - began >= 0.2
    answers, stopped = work(endless, Stop())
    assert [r.step for r in answers.reports] == [4]
    assert stopped == Stopped()


def test_worker_says_why_it_cannot_work(members: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (news,) = work(worker(members, unfit=True), Submit((SLICE,)))
    assert isinstance(news, StartFailed)
    assert "ValueError: no such thing" in news.traceback

    def full(*_: object) -> None:
        raise DiskFullError("no space here")

    monkeypatch.setattr(RemoteStore, "commit", full)
    w = worker(members)
    work(w, Submit((SLICE,)))
    assert work(w) == [DiskFull("no space here")]


def test_facts_name_what_differs(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    assert facts(probe)["probe"] is None
    probe.write_text("x")
    here = facts(probe)
    assert here["probe"] == "x"
    assert version_differences(here, here) == []
    there = {**here, "versions": {**here["versions"], "torch": "2.12", "ale_py": None}}
    assert version_differences(here, there) == [
        f"torch 2.12 (here {here['versions']['torch']})",
        f"ale_py missing (here {here['versions']['ale_py']})",
    ]
    check_versions(here, here)
    with pytest.raises(WorkerError, match=r"node \S+ has torch 2.12 \(here .*\), ale_py missing .*: install the same"):
        check_versions(here, there)


# Checks before Ray is imported


@pytest.fixture
def login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "5" * 64)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


def settings(**values: Any) -> Execution:
    return Execution(backend="ray", **values)


def test_missing_ray_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigProblem, match=r'needs ray, which is not installed: pip install "pbtrl\[ray\]"'):
        ray_checks.check_settings(settings())


@pytest.mark.usefixtures("login")
def test_login_is_required_unless_the_cluster_is_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_checks.check_settings(settings())
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ConfigProblem, match=r"there is no token .* or set execution.insecure: true"):
        ray_checks.check_settings(settings())
    (tmp_path / "token").write_text("x")
    ray_checks.check_settings(settings())
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(ConfigProblem, match="token login is off"):
        ray_checks.check_settings(settings())
    ray_checks.check_settings(settings(insecure=True))
    ray_checks.check_settings(settings(address="local"))


@pytest.mark.usefixtures("login")
def test_address_where_no_cluster_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster's head greets in HTTP/2; another server or a silent one would make Ray wait for minutes."""

    def check(greeting: bytes | None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as threads:
            answered = threads.submit(answer, server, greeting)
            address = f"127.0.0.1:{server.getsockname()[1]}"
            ray_checks.check_settings(settings(address=address))
            answered.result()

    def answer(server: socket.socket, greeting: bytes | None) -> None:
        with server.accept()[0] as connection:
            assert connection.recv(100).startswith(b"PRI * HTTP/2.0")
            if greeting is None:
                connection.recv(100)  # until the other side gives up
            else:
                connection.sendall(greeting)

    check(b"\0\0\0\4\0\0\0\0\0")
    for greeting, why in (
        (b"HTTP/1.0 400 Bad Request", "something else does"),
        (b"", "something else"),
        (None, "timed"),
    ):
        if greeting is None:
            monkeypatch.setattr(ray_checks, "REACH", 0.5)
        with pytest.raises(ConfigProblem, match=rf"no Ray cluster answers at 127.0.0.1:\d+ \({why}"):
            check(greeting)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigProblem, match=r"127.0.0.1:1 \(Connection refused\)"):
        ray_checks.check_settings(settings())
    with pytest.raises(ConfigProblem, match=r"no Ray cluster answers at 127.0.0.1:99999"):
        ray_checks.check_settings(settings(address="127.0.0.1:99999"))


@pytest.mark.usefixtures("login")
@pytest.mark.parametrize(("given", "message"), [("ray://h:10001", "ray job submit"), ("head", "not HOST:PORT")])
def test_environment_is_checked_as_the_config_is(monkeypatch: pytest.MonkeyPatch, given: str, message: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    with pytest.raises(ConfigProblem, match=message):
        ray_checks.check_settings(settings())
    assert ray_checks.cluster_address(settings(address="local")) == "local"


@pytest.mark.usefixtures("login")
def test_command_refuses_a_cluster_before_anything_starts(pbtrl: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    for command in ("train", "doctor"):
        refused = pbtrl(command, "cart.yaml", "execution.backend=ray")
        assert refused.code == 2
        assert "execution.address: token login is off" in refused.err
    assert not Path("runs").exists()


def test_token_file_of_others_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert ray_checks.token_problem() is None
    (tmp_path / "token").write_text("x")
    os.chmod(tmp_path / "token", 0o644)
    problem = ray_checks.token_problem()
    assert problem is not None
    assert "mode 0644" in problem
    os.chmod(tmp_path / "token", 0o600)
    assert ray_checks.token_problem() is None


def test_run_in_a_session_of_ray_is_refused(tmp_path: Path) -> None:
    ray_checks.check_run_directory(tmp_path / "session_notes" / "run")
    with pytest.raises(RunError, match="another --runs"):
        ray_checks.check_run_directory(tmp_path / "session_2026-11-29_15-28-51_1_2" / "runtime_resources" / "run")


# What Ray says


DEAD = """The actor died unexpectedly before finishing this task.
\tclass_name: WorkerActor
\tactor_id: 717873457827516a
\tpid: 3500
\tip: 10.0.0.7
The actor is dead because its {}"""


@pytest.mark.parametrize(
    ("kind", "text", "death", "described"),
    [
        ("ActorDiedError", DEAD.format("worker process has died. Worker exit type: SYSTEM_ERROR"), "process",
         "died: its process on node 10.0.0.7 was killed, ran out of memory or crashed"),
        ("ActorDiedError", DEAD.format("node has died. Node Id: 1"), "node", "lost: node 10.0.0.7 is gone"),
        ("ActorDiedError", DEAD.format("worker was killed due to the node running low on memory (memory pressure)"),
         "memory", "killed: node 10.0.0.7 ran out of memory"),
        ("ActorUnavailableError", "The actor 1 is unavailable: Socket closed.", "network",
         "lost: its node cannot be reached"),
        ("ActorDiedError", "first\nwhat nobody has seen yet\n", "unknown", "died: what nobody has seen yet"),
    ],
)  # fmt: skip
def test_deaths_are_told_in_one_line(kind: str, text: str, death: str, described: str) -> None:
    result = classify_death(text, kind)
    assert (result, describe_death(result, text)) == (death, described)
    assert classify_death(text, kind, preempted=True) == "preempted"


def test_room_is_counted_over_all_that_a_worker_needs() -> None:
    assert count_room({"CPU": 8, "GPU": 1}, {"CPU": 2, "GPU": 0.5}) == 2
    assert count_room({"CPU": 8}, {"CPU": 3}) == 2
    for share, count in ((0.1, 10), (0.2, 5), (0.3, 3), (0.7, 1)):  # 1.0 // 0.1 is 9.0
        assert count_room({"GPU": 1.0}, {"GPU": share}) == count
    assert count_room({"CPU": 8}, {"CPU": 1, "trainer": 1}) == 0
    assert listed({"CPU": 2, "trainer": 0.5}) == "{CPU: 2, trainer: 0.5}"


@pytest.mark.parametrize(
    ("nodes", "actors", "workers"),
    [([8, 8], 0, 8), ([8, 8], 2, 4), ([2, 1, 1, 1], 3, 1), ([1, 9], 2, 2), ([3, 2.9], 3, 1), ([2], 1, 0), ([], 1, 0)],
)
def test_actors_may_be_on_any_node(nodes: list[float], actors: int, workers: int) -> None:
    """A worker needs two cores of one node."""
    resources: list[dict[str, float]] = [{"CPU": cores} for cores in nodes]
    assert count_workers(resources, {"CPU": 2.0}, actors) == workers


def test_shortage_names_what_is_missing() -> None:
    nodes: list[dict[str, float]] = [{"CPU": 2}, {"CPU": 3}]
    assert describe_shortage(nodes, {"CPU": 2.0}, 3) is None
    need = "a worker and its 4 actors (acting.processes) need 6 cores, and all nodes together have 5"
    assert describe_shortage(nodes, {"CPU": 2.0}, 4) == need
    assert describe_shortage([{"CPU": 1}], {"CPU": 1.0}, 1) == (
        "a worker and its actor (acting.processes) need 2 cores, and all nodes together have 1"
    )
    missing = (
        "no node has {CPU: 1, trainer: 1} for a worker (the nodes have {CPU: 2, trainer: 0}, {CPU: 3, trainer: 0})"
    )
    assert describe_shortage(nodes, {"CPU": 1.0, "trainer": 1}, 4) == missing


def test_what_ray_logs_goes_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("ray.somewhere")
    before = logging.getLogger("ray").handlers[:]
    with quiet(tmp_path / "ray.log"):
        logger.warning("chatter")
    assert "chatter" in (tmp_path / "ray.log").read_text()
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger("ray").handlers == before
