"""A run that is killed at any crash point resumes to the same journal and weights."""

from __future__ import annotations

import random
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from pbtrl.storage.journal import digest
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.snapshot_store import SnapshotStore
from tests.command import CART, ROOT, ForkServer, journal, kinds, weights

FILES = ["tensors.safetensors", "state.json", "MANIFEST.json"]
ONE_FILE = [f"{name}.{what}" for name in ("run.json", "config.yaml", "config.resolved.yaml", "best.json")
            for what in ("staged", "replaced")]  # fmt: skip
WHEN = ("before", "wrote", "synced")
LINES = [f"journal.{when} {kind}" for kind in ("run", "decision", "report", "finish") for when in WHEN]
SNAPSHOT = ["staged", *(f"wrote {file}" for file in FILES), "synced", "renamed", "committed", "hidden", "removed"]
POINTS = [*ONE_FILE, *LINES, *(f"snapshot.{p}" for p in SNAPSHOT), "host.began", "host.loaded", "host.reports"]
LATER = [f"{p}:{n}" for p, n in (("snapshot.renamed", 7), ("snapshot.hidden", 3), ("journal.wrote decision", 3),
         ("journal.synced report", 6), ("host.reports", 8), ("run.json.staged", 2))]  # fmt: skip

TOY = """\
trainable: {name: quadratic}
seed: 3
population: {size: 4, mode: sync}
execution: {backend: inline}
budget: {env_steps_per_member: 30}
hparams: {h0: {prior: uniform, low: 0, high: 1}, h1: {prior: uniform, low: 0, high: 1}}
strategy: {ready: {slice_steps: 10}}
final: {candidates: 2, selection_episodes: 2, episodes: 3}
"""
"""As many slices, copies and files as `CART`, in a quarter of its time."""

Golden = tuple[str, dict[str, str]]


@pytest.fixture(scope="module")
def golden(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """Result of an undisturbed run."""
    return undisturbed(fork_server, tmp_path_factory.mktemp("golden"), CART)


@pytest.fixture(scope="module")
def golden_toy(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    return undisturbed(fork_server, tmp_path_factory.mktemp("toy"), TOY)


def undisturbed(fork_server: ForkServer, where: Path, config: str) -> Golden:
    (where / "cart.yaml").write_text(config)
    results = result(fork_server, where)
    assert any(line["donor"] for d in journal(where / "runs/a") if d["kind"] == "decision" for line in d["assignments"])
    return results


def result(fork_server: ForkServer, where: Path, *argv: str) -> Golden:
    """Journal and weights after `cart.yaml` was trained to the end."""
    done = fork_server(where, "train", "cart.yaml", "--name", "a", "--if-exists", "resume", *argv)
    assert done["code"] == 0, done["err"]
    run = where / "runs/a"
    assert kinds(run)[-1] == "finish"
    assert not list(run.rglob(".*"))
    return digest(journal(run)), weights(run)


def test_every_crash_point_is_listed() -> None:
    source = "".join(path.read_text() for path in (ROOT / "pbtrl").rglob("*.py"))
    patterns = [re.sub(r"\{[^}]*\}", ".+", results) for results in re.findall(r'crash_point\(f?"([^"]+)"\)', source)]
    assert patterns
    for pattern in patterns:
        assert any(re.fullmatch(pattern, point) for point in POINTS), pattern
    for point in POINTS:
        assert any(re.fullmatch(pattern, point) for pattern in patterns), point


@pytest.mark.parametrize("point", POINTS)
def test_toy_killed_at_any_point_resumes_identically(
    fork_server: ForkServer, golden_toy: Golden, tmp_path: Path, point: str
) -> None:
    (tmp_path / "cart.yaml").write_text(TOY)
    crashed = fork_server(tmp_path, "train", "cart.yaml", "--name", "a", crash=point)
    assert crashed["code"] == -signal.SIGKILL
    assert result(fork_server, tmp_path) == golden_toy


@pytest.mark.parametrize("point", LATER)
def test_run_killed_later_resumes_identically(
    fork_server: ForkServer, golden: Golden, tmp_path: Path, point: str
) -> None:
    (tmp_path / "cart.yaml").write_text(CART)
    crashed = fork_server(tmp_path, "train", "cart.yaml", "--name", "a", crash=point)
    assert crashed["code"] == -signal.SIGKILL
    assert result(fork_server, tmp_path) == golden


@pytest.mark.parametrize("workers", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_run_with_workers_resumes_identically(
    fork_server: ForkServer, golden: Golden, tmp_path: Path, workers: int
) -> None:
    """The controller is killed while they train, and one of them while it commits."""
    (tmp_path / "cart.yaml").write_text(CART)
    processes = ["execution.backend=processes", f"execution.workers={workers}"]
    train = ["train", "cart.yaml", "--name", "a", *processes]
    assert fork_server(tmp_path, *train, crash="journal.wrote report:3")["code"] == -signal.SIGKILL
    done = fork_server(tmp_path, "resume", "a", crash="snapshot.renamed:3")
    assert done["code"] == 0, done["err"]
    run = tmp_path / "runs/a"
    assert "failure" in kinds(run)
    assert (digest(journal(run)), weights(run)) == golden


def test_run_killed_repeatedly_still_finishes(fork_server: ForkServer, golden: Golden, tmp_path: Path) -> None:
    (tmp_path / "cart.yaml").write_text(CART)
    points = ["snapshot.renamed:2", "journal.synced report:2", "journal.wrote decision", "host.began", "host.loaded"]
    for point in points:
        killed = fork_server(tmp_path, "train", "cart.yaml", "--name", "a", "--if-exists", "resume", crash=point)
        assert killed["code"] == -signal.SIGKILL
    assert result(fork_server, tmp_path) == golden


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_async_runs_reach_the_same_fitness(fork_server: ForkServer, tmp_path: Path) -> None:
    """Not bit for bit, but in distribution: 20 runs that were killed twice against 20 that were not."""
    rng = random.Random(0)
    longer = ["population.mode=async", "env.between_slices=continue", "budget.env_steps_per_member=8000",
              "strategy.ready.slice_steps=800"]  # fmt: skip
    fitness: dict[int, list[float]] = {0: [], 2: []}
    for seed in range(40):
        kills = 2 * (seed % 2)
        where = tmp_path / str(seed)
        where.mkdir()
        (where / "cart.yaml").write_text(CART)
        for _ in range(kills):
            point = f"{rng.choice(['host.reports', 'snapshot.renamed', 'journal.before report'])}:{rng.randint(2, 16)}"
            argv = ["train", "cart.yaml", "--name", "a", "--if-exists", "resume", f"seed={seed}", *longer]
            assert fork_server(where, *argv, crash=point)["code"] == -signal.SIGKILL
        result(fork_server, where, f"seed={seed}", *longer)
        _, _, population = RunDirectory(where / "runs/a").load()
        assert {m.step for m in population.members.values()} == {8000}
        fitness[kills].append(float(np.mean([m.fitness for m in population.members.values() if m.fitness])))
    assert np.mean(fitness[0]) > 60  # a random policy's is 22: they learned
    assert mannwhitneyu(fitness[0], fitness[2]).pvalue > 0.01, fitness


def damage_flipped(snapshot: Path) -> None:
    file = snapshot / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def damage_cut(snapshot: Path) -> None:
    (snapshot / "state.json").write_bytes((snapshot / "state.json").read_bytes()[:100])


def damage_manifest(snapshot: Path) -> None:
    (snapshot / "MANIFEST.json").unlink()


@pytest.mark.parametrize("damage", [damage_flipped, damage_cut, damage_manifest, shutil.rmtree])
@pytest.mark.parametrize("crash", ["journal.synced decision:2", "journal.synced report:6", "best.json.staged"])
def test_lost_snapshots_are_made_again(
    fork_server: ForkServer,
    golden: Golden,
    tmp_path: Path,
    damage: Callable[[Path], None],
    crash: str,
) -> None:
    (tmp_path / "cart.yaml").write_text(CART)
    assert fork_server(tmp_path, "train", "cart.yaml", "--name", "a", crash=crash)["code"] == -signal.SIGKILL
    run = tmp_path / "runs/a"
    _, _, population = RunDirectory(run).load()
    newest = [SnapshotStore(run / "members").path(m.snapshot) for m in population.members.values() if m.snapshot]
    assert len(newest) == 4
    for snapshot in newest:  # those of members that wait, that train, and that others are to copy
        damage(snapshot)
    assert result(fork_server, tmp_path) == golden
    assert {"void", "remade"} <= set(kinds(run))
    aside = list(run.glob("members/*/quarantine/*"))
    assert bool(aside) == (damage is not shutil.rmtree)


@pytest.mark.parametrize("kind", ["resume", "void", "remade"])
@pytest.mark.parametrize("when", WHEN)
def test_killed_while_remaking_lost_snapshots(
    fork_server: ForkServer, golden: Golden, tmp_path: Path, when: str, kind: str
) -> None:
    (tmp_path / "cart.yaml").write_text(CART)
    assert fork_server(tmp_path, "train", "cart.yaml", "--name", "a", crash="journal.synced report:6")["code"] < 0
    _, _, population = RunDirectory(tmp_path / "runs/a").load()
    store = SnapshotStore(tmp_path / "runs/a/members")
    for member in population.members.values():
        shutil.rmtree(store.path(str(member.snapshot)))
    assert fork_server(tmp_path, "resume", "a", crash=f"journal.{when} {kind}")["code"] == -signal.SIGKILL
    assert result(fork_server, tmp_path) == golden
    assert fork_server(tmp_path, "verify", "a")["code"] == 0


def test_partial_remade_snapshot_is_not_used(fork_server: ForkServer, golden: Golden, tmp_path: Path) -> None:
    """A stop leaves it where episodes continue over it: hashes and name are right, but it ends too early."""
    (tmp_path / "cart.yaml").write_text(CART)
    assert fork_server(tmp_path, "train", "cart.yaml", "--name", "a", crash="journal.synced report:6")["code"] < 0
    _, _, population = RunDirectory(tmp_path / "runs/a").load()
    store = SnapshotStore(tmp_path / "runs/a/members")
    for name in sorted({str(m.snapshot) for m in population.members.values()}):
        tensors, state = store.load(name)
        state["report"]["step"] -= 40
        store.commit(name, {key: 0 * value for key, value in tensors.items()}, state)
    assert result(fork_server, tmp_path) == golden
    assert {"void", "remade"} <= set(kinds(tmp_path / "runs/a"))
    assert fork_server(tmp_path, "verify", "a")["code"] == 0


@pytest.mark.parametrize("point", ["journal.synced resume", "config.resolved.yaml.staged"])
def test_killed_while_a_finished_run_is_extended(fork_server: ForkServer, tmp_path: Path, point: str) -> None:
    (tmp_path / "cart.yaml").write_text(CART)
    result(fork_server, tmp_path)
    more = "budget.env_steps_per_member=960"
    assert fork_server(tmp_path, "resume", "a", more, crash=point)["code"] == -signal.SIGKILL
    done = fork_server(tmp_path, "resume", "a", more)
    assert done["code"] == 0, done["err"]
    _, _, population = RunDirectory(tmp_path / "runs/a").load()
    assert {m.step for m in population.members.values()} == {960}
    assert kinds(tmp_path / "runs/a")[-1] == "finish"


@pytest.mark.parametrize("when", WHEN)
def test_killed_while_writing_a_failure(fork_server: ForkServer, tmp_path: Path, when: str) -> None:
    once = (
        "env={id: tests.faulty_envs:Fatal, num_envs: 4, between_slices: reset, "
        "kwargs: {marker: fell, after: 30, how: exit}}"
    )
    (tmp_path / "smooth").mkdir()
    (tmp_path / "smooth/cart.yaml").write_text(CART)
    (tmp_path / "smooth/fell").touch()  # so nothing happens there
    expected = result(fork_server, tmp_path / "smooth", once)
    (tmp_path / "rough").mkdir()
    (tmp_path / "rough/cart.yaml").write_text(CART)
    killed = fork_server(tmp_path / "rough", "train", "cart.yaml", "--name", "a", once, crash=f"journal.{when} failure")
    assert killed["code"] == -signal.SIGKILL
    assert result(fork_server, tmp_path / "rough", once) == expected


@pytest.mark.parametrize("when", WHEN)
def test_killed_while_stopping(fork_server: ForkServer, golden: Golden, tmp_path: Path, when: str) -> None:
    (tmp_path / "cart.yaml").write_text(CART)
    killed = fork_server(tmp_path, "train", "cart.yaml", "--name", "a", crash=f"journal.{when} stop", stop=True)
    assert killed["code"] == -signal.SIGKILL
    assert ("stop" in kinds(tmp_path / "runs/a")) == (when != "before")
    assert result(fork_server, tmp_path) == golden


@pytest.mark.parametrize("gone", ["012", "0123"])
def test_strategy_decides_if_parents_are_lost_too(fork_server: ForkServer, tmp_path: Path, gone: str) -> None:
    (tmp_path / "cart.yaml").write_text(CART)
    assert fork_server(tmp_path, "train", "cart.yaml", "--name", "a", crash="journal.synced decision:3")["code"] < 0
    run = tmp_path / "runs/a"
    for snapshot in run.glob(f"members/m0[{gone}]/snapshots/*"):
        shutil.rmtree(snapshot)
    result(fork_server, tmp_path)
    given_up = [line["member"] for line in journal(run) if line.get("given_up")]
    assert {member[-1] for member in given_up} <= set(gone)
    assert given_up
    _, _, population = RunDirectory(run).load()
    assert [m.step for m in population.members.values()] == [720] * 4
