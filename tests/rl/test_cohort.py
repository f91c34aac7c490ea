"""The RL cohort, made by the builder and run by the host: members do not affect each other."""

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pbtrl.agents import actor_critic
from pbtrl.build.rl import RLBuilder
from pbtrl.config.load import config_from_dict
from pbtrl.core.messages import Assignment, Failure, Report
from pbtrl.core.seeding import seed_for
from pbtrl.core.tensors import Tensors
from pbtrl.execution.host import Host
from pbtrl.rl import rollout as rollouts
from pbtrl.rl.cohort import DIVERGED_AFTER, RLCohort
from pbtrl.storage.snapshot_store import SnapshotStore
from pbtrl.testing.trainables import assert_equal
from tests.agent_fixtures import first_inputs

pytestmark = pytest.mark.usefixtures("quick_disk")

ALL = ("m00", "m01", "m02", "m03")
CARTPOLE = {"id": "CartPole-v1", "backend": "gymnasium"}
UNREAL = {"name": "unreal", "unroll_mode": "budget", "core_units": 8, "replay": 200}
FEUDAL = {"name": "feudal", "unroll_mode": "budget", "goal_units": 8, "embedding": 8, "horizon": 3}


def builder(env: dict[str, Any] | str, num_envs: int = 4, agent: Any = None, **sections: Any) -> RLBuilder:
    env = CARTPOLE if env == "CartPole-v1" else {"id": env} if isinstance(env, str) else env
    return RLBuilder(
        config_from_dict(
            {
                "env": {"num_envs": num_envs, **env},
                "agent": {"block_length": 10, "unroll_length": 5, "hidden": [16], **(agent or {})},
                "budget": {"env_steps_per_member": 1_000_000},
                **sections,
            }
        )
    )


def slice_of(member: str, steps: int, generation: int = 0, **changes: Any) -> Assignment:
    """Slice that continues from the member's own last snapshot, with hyperparameters of its own."""
    number = int(member[1:])
    values = {"learning_rate": 1e-3 / (number + 1), "unroll_length": 4 + number, "entropy_cost": 0.01 * number}
    plain = Assignment(
        id=f"{member}/{generation:06d}",
        member=member,
        parent=f"{member}/{generation - 1:06d}" if generation else None,
        start=steps * generation,
        stop=steps * (generation + 1),
        hyperparameters=values,
        seed=1000 * number + generation,
    )
    return replace(plain, **changes)


def run(cohort: RLCohort, assignments: list[Assignment], parents: dict[str, Tensors] | None = None) -> list[Tensors]:
    """Run a whole slice; returns the tensors of every slot."""
    for slot, a in enumerate(assignments):
        if parents:
            cohort.load(slot, parents[a.member])
        elif a.parent is None:
            cohort.init(slot, a.seed)
    cohort.begin(assignments)
    while not cohort.advance():
        pass
    return [cohort.save(slot) for slot in range(len(assignments))]


class Workplace:
    """Host over a folder of snapshots."""

    def __init__(self, members: Path, build: RLBuilder, *groups: tuple[str, ...], discard: bool = False) -> None:
        self.store = SnapshotStore(members)
        self.host = Host.local(build, members, groups or [ALL], discard_on_stop=discard)

    def run(self, *assignments: Assignment) -> dict[str, Report | Failure]:
        self.host.submit(assignments)
        answers: list[Report | Failure] = []
        while self.host.busy():
            answers += self.host.advance()
        return {r.assignment: r for r in answers}

    def reports(self, *assignments: Assignment) -> list[Report]:
        answers = self.run(*assignments)
        result = [answers[a.id] for a in assignments]
        assert all(isinstance(r, Report) for r in result), result
        return result  # type: ignore[return-value]

    def tensors(self, name: str) -> Tensors:
        return self.store.load(name)[0]


def same(one: Report, other: Report) -> bool:
    """Equal, except for the duration."""
    return replace(one, timing={}) == replace(other, timing={})


# Bit-exactness


@pytest.mark.parametrize(
    ("env", "num_envs", "agent"),
    [
        (CARTPOLE, 16, {}),
        (CARTPOLE, 4, {"optimizer": "adam", "advantages": "normalize", "reduction": "mean"}),
        ({**CARTPOLE, "backend": "envpool"}, 16, {"optimizer": "adam", "epochs": 2}),
        ({"id": "probe/PreviousAction-v0"}, 5, {"hidden": [50, 10]}),
        ({"id": "probe/Target-v0"}, 3, {"actions": "squash", "optimizer": "adam"}),
        ({"id": "Pendulum-v1", "backend": "gymnasium"}, 4, {"lambda_": 0.9}),
        ({"id": "probe/Recall-v0"}, 3, UNREAL),
        ({"id": "probe/Recall-v0"}, 3, FEUDAL),
    ],
    ids=["cartpole of 16", "cartpole of 4", "envpool", "probe of 5", "squashed", "gaussian", "unreal", "feudal"],
)
def test_member_is_bit_identical_in_every_slot_and_cohort(
    env: dict[str, Any], num_envs: int, agent: dict[str, Any]
) -> None:
    build, steps = builder(env, num_envs, agent), 20 * num_envs
    trained: dict[str, list[Tensors]] = {member: [] for member in ALL}
    for members in (ALL, ("m00",), ("m01",), ("m02",), ("m03",), ("m01", "m00"), ("m02", "m03"), ALL[::-1]):
        cohort = build.cohort(members, threads=1)
        for generation in range(2):
            result = run(cohort, [slice_of(m, steps, generation) for m in members])
        for member, tensors in zip(members, result, strict=True):
            trained[member].append(tensors)
        cohort.close()
    for first, *others in trained.values():
        assert len(others) == 3
        for other in others:
            assert_equal(other, first)
    assert not np.array_equal(trained["m00"][0]["params"], trained["m01"][0]["params"])


def test_images_are_bit_identical_in_every_slot() -> None:
    build = builder("probe/BrightSide-v0", 3)
    together = run(build.cohort(ALL[:2], 1), [slice_of(m, 30) for m in ALL[:2]])
    for member, tensors in zip(ALL, together, strict=False):
        (alone,) = run(build.cohort((member,), 1), [slice_of(member, 30)])
        assert_equal(alone, tensors)


def test_groups_and_threads_change_no_number(tmp_path: Path) -> None:
    build = builder({**CARTPOLE, "backend": "envpool"}, 6)
    reports = []
    for name, groups, threads in (("a", [ALL], 1), ("b", [ALL[:2], ALL[2:]], 2), ("c", [(m,) for m in ALL], 1)):
        host = Host.local(build, tmp_path / name, groups, threads=threads)
        place = Workplace(tmp_path / name, build)
        place.host = host
        for generation in range(2):
            reports.append(place.reports(*(slice_of(m, 300, generation) for m in ALL)))
    for result in (reports[2:4], reports[4:6]):
        assert all(
            same(a, b) for own, theirs in zip(result, reports, strict=False) for a, b in zip(own, theirs, strict=True)
        )
    for name in ("m00/000001", "m03/000001"):
        files = [tmp_path / x / name.replace("/", "/snapshots/") / "tensors.safetensors" for x in "abc"]
        assert len({f.read_bytes() for f in files}) == 1


# What a member takes over, and what it does not


def test_loaded_member_equals_donor_except_random_stream() -> None:
    build = builder("CartPole-v1", agent={"optimizer": "adam"})
    (donor,) = run(build.cohort(("m00",), 1), [slice_of("m00", 400)])
    assert {"params", "adam.m", "adam.steps", "observation.mean", "return.m2", "skipped"} <= set(donor)
    cohort = build.cohort(("m00", "m01", "m02"), 1)
    seeds = {"m00": 7, "m01": 8, "m02": 7}
    for slot in range(3):
        cohort.load(slot, donor)
        assert_equal(cohort.save(slot), donor)
    cohort.begin([slice_of(m, 40, 1, seed=seed, hyperparameters={}) for m, seed in seeds.items()])
    block = cohort.collect()
    assert torch.equal(block.observations[0], block.observations[2])
    assert torch.equal(block.actions[0], block.actions[2])
    assert not torch.equal(block.observations[0], block.observations[1])
    agent, state = build.agent, cohort._state
    seen = block.observations[0, 0].expand(3, -1, -1)
    acted = agent.act(state, *first_inputs(agent, seen), torch.zeros(3, 4, 2))
    assert (acted.policy == acted.policy[:1]).all()
    assert (acted.actions == acted.actions[:1]).all()
    noise = agent.noise(cohort._generators, 5, 4)
    assert not torch.equal(noise[:, 0], noise[:, 1])


def test_snapshot_round_trips_through_the_store(tmp_path: Path) -> None:
    build = builder("CartPole-v1")
    place, cohort = Workplace(tmp_path, build), build.cohort(("m00",), 1)
    (first,) = run(cohort, [slice_of("m00", 400)])
    place.store.commit("m00/000000", first, {})
    (straight,) = run(cohort, [slice_of("m00", 400, 1)], {"m00": first})
    other = build.cohort(("m00",), 1)
    run(other, [slice_of("m00", 80)])
    other.close()
    other.load(0, place.tensors("m00/000000"))
    loaded = other.save(0)
    assert {k: v.tobytes() for k, v in loaded.items()} == {k: v.tobytes() for k, v in first.items()}
    assert {k: v.dtype for k, v in loaded.items()} == {k: v.dtype for k, v in first.items()}
    assert not np.array_equal(straight["params"], first["params"])


def test_hyperparameters_apply_after_load_and_are_read_back(tmp_path: Path) -> None:
    place = Workplace(tmp_path, builder("CartPole-v1"))
    place.reports(*(slice_of(m, 400) for m in ALL))
    values = {"learning_rate": 0.0, "unroll_length": 7, "gamma": 0.123456789, "epochs": 3}
    copied = slice_of("m01", 400, 1, parent="m00/000000", donor="m00", hyperparameters=values)
    (report,) = place.reports(copied)
    assert report.hyperparameters == {**values, "gamma": 0.1234568}
    donor, result = place.tensors("m00/000000"), place.tensors("m01/000001")
    np.testing.assert_array_equal(result["params"], donor["params"])
    assert not np.array_equal(result["rmsprop.mean_square"], donor["rmsprop.mean_square"])
    assert not np.array_equal(place.tensors("m01/000000")["params"], donor["params"])


def test_deviating_hyperparameters_are_detected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, real = Workplace(tmp_path, builder("CartPole-v1")), actor_critic.unroll_cuts
    monkeypatch.setattr(actor_critic, "unroll_cuts", lambda length, time: real(length.clamp_max(4), time))
    answers = place.run(slice_of("m00", 80), slice_of("m01", 80))
    assert all(isinstance(f, Failure) and not f.fatal for f in answers.values())
    (failure,) = place.run(slice_of("m01", 80)).values()
    assert isinstance(failure, Failure)
    assert failure.fatal
    assert "MismatchError" in failure.error
    assert "unroll_length: assigned 5, effective 4" in failure.error
    assert place.store.names("m01") == []


# Clocks


def updates(cohort: RLCohort, assignments: list[Assignment]) -> list[int]:
    """Length of every block that a slice learned from."""
    lengths: list[int] = []
    learn = cohort.learn

    def counted(block: Any) -> Any:
        lengths.append(block.rewards.shape[1])
        return learn(block)

    cohort.learn = counted  # type: ignore[method-assign]
    run(cohort, assignments)
    return lengths


def test_budget_slice_is_whole_blocks() -> None:
    cohort = builder("CartPole-v1").cohort(("m00", "m01"), 1)
    assert updates(cohort, [slice_of("m00", 120), slice_of("m01", 120)]) == [10, 10, 10]
    for slot, unroll in enumerate([4, 5]):
        outcome = cohort.outcome(slot)
        assert outcome.steps == 120
        assert outcome.hyperparameters["unroll_length"] == unroll


@pytest.mark.parametrize(
    ("unroll", "steps", "expected"),
    [(7, 80, [7, 7, 6]), (10, 80, [10, 10]), (9, 40, [9, 1]), (3, 40, [3, 3, 3, 1]), (8, 28, [7])],
)
def test_exact_mode_updates_every_unroll_and_exact_steps(
    tmp_path: Path, unroll: int, steps: int, expected: list[int]
) -> None:
    """The last case is the rest of a stopped slice."""
    build, values = builder("CartPole-v1", agent={"unroll_mode": "exact"}), {"unroll_length": unroll}
    assignment = slice_of("m00", steps, hyperparameters=values)
    cohort = build.cohort(("m00",), 1)
    assert updates(cohort, [assignment]) == expected
    assert cohort.outcome(0).steps == steps
    (report,) = Workplace(tmp_path, build).reports(assignment)
    assert report.step == steps
    assert report.hyperparameters == values


@pytest.mark.parametrize("discard", [True, False])
def test_stop_gives_finished_steps_or_nothing(tmp_path: Path, discard: bool) -> None:
    build = builder("CartPole-v1")
    place = Workplace(tmp_path, build, discard=discard)
    place.host.submit([slice_of("m00", 400), slice_of("m01", 400)])
    place.host.advance()
    place.host.advance()
    stopped = place.host.stop()
    if discard:
        assert stopped == []
        assert place.store.names("m00") == []
        return
    assert [(r.assignment, r.step) for r in stopped if isinstance(r, Report)] == [
        ("m00/000000", 80),
        ("m01/000000", 80),
    ]
    expected = run(build.cohort(("m00",), 1), [slice_of("m00", 80)])
    assert_equal(place.tensors("m00/000000"), {k: np.atleast_1d(v) for k, v in sorted(expected[0].items())})


def test_stop_before_the_first_block_plays_no_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = builder("CartPole-v1", fitness={"source": "evaluation", "episodes": 2})
    monkeypatch.setattr(RLBuilder, "evaluate", lambda self, *args, **options: pytest.fail("was evaluated"))
    place = Workplace(tmp_path, build)
    place.host.submit([slice_of("m00", 400)])
    assert place.host.stop() == []


# Envs between slices


@pytest.mark.parametrize("agent", [{"rewards": "normalize"}, UNREAL, FEUDAL], ids=["impala", "unreal", "feudal"])
def test_reset_slice_is_a_pure_function_of_its_assignment(agent: dict[str, Any], tmp_path: Path) -> None:
    env = {**CARTPOLE, "between_slices": "reset"}
    build = builder(env, 4, agent)
    first, second = ([slice_of(m, 400, g) for m in ALL[:2]] for g in range(2))
    place = Workplace(tmp_path / "a", build)
    place.reports(*first)
    straight = place.reports(*second)  # the cohort holds the parents live

    resumed = Workplace(tmp_path / "a", build)  # it loads them
    for name in ("m00/000001", "m01/000001"):
        resumed.store.remove(name)
    loaded = resumed.reports(*second)

    busy = Workplace(tmp_path / "b", build)  # it has trained others, and each of these alone
    for a in first:
        busy.reports(a)
    busy.reports(slice_of("m02", 400), slice_of("m03", 400))
    alone = [busy.reports(a)[0] for a in second]

    for one, two, three in zip(straight, loaded, alone, strict=True):
        assert one.returns
        assert same(one, two)
        assert same(one, three)
        assert_equal(resumed.tensors(one.assignment), busy.tensors(one.assignment))


LONG = {"id": "probe/Truncated-v0", "kwargs": {"length": 30}}  # dead steps included, an episode takes 31


def test_episodes_continue_between_slices_unless_reset(tmp_path: Path) -> None:
    for mode, lengths in (("continue", [30] * 4), ("reset", [])):
        place = Workplace(tmp_path / mode, builder({**LONG, "between_slices": mode}))
        (first,) = place.reports(slice_of("m00", 80))
        (second,) = place.reports(slice_of("m00", 80, 1))
        assert first.lengths == ()
        assert list(second.lengths) == lengths
        assert second.returns == tuple(30.0 for _ in lengths)


def test_episode_played_by_two_policies_does_not_count(tmp_path: Path) -> None:
    place = Workplace(tmp_path, builder(LONG))
    place.reports(*(slice_of(m, 80) for m in ALL[:2]))
    went_on, copied = place.reports(slice_of("m00", 80, 1), slice_of("m01", 80, 1, parent="m00/000000", donor="m00"))
    assert went_on.lengths == (30,) * 4
    assert copied.lengths == ()
    _, later = place.reports(
        slice_of("m00", 160, 1, id="m00/000002"), slice_of("m01", 160, 1, id="m01/000002", parent="m01/000001")
    )
    assert later.lengths == (30,) * 4


def test_first_episodes_of_fresh_envs_count(tmp_path: Path) -> None:
    """No other policy played them, whether the member is new or was loaded."""
    for mode in ("continue", "reset"):
        build = builder({**LONG, "between_slices": mode})
        (first,) = Workplace(tmp_path / mode, build).reports(slice_of("m00", 160))
        (second,) = Workplace(tmp_path / mode, build).reports(slice_of("m00", 160, 1))
        assert first.lengths == second.lengths == (30,) * 4


def test_curve_has_a_point_per_interval() -> None:
    build = builder("probe/Bandit-v0", 4, fitness={"curve_interval": 80})
    assert build.spec.curve_interval == 80
    cohort = build.cohort(("m00",), 1)
    run(cohort, [slice_of("m00", 200, 1, parent=None)])
    outcome = cohort.outcome(0)
    assert [step for step, _ in outcome.curve] == [280, 360, 400]
    assert len(outcome.returns) == len(outcome.lengths) == 4 * 25
    means = [np.mean(outcome.returns[i:j]) for i, j in ((0, 40), (40, 80), (80, 100))]
    np.testing.assert_allclose([value for _, value in outcome.curve], means)


# Divergence and evaluation


@pytest.mark.parametrize("env", [CARTPOLE, {"id": "Pendulum-v1", "backend": "gymnasium"}], ids=["discrete", "gaussian"])
@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_diverging_member_does_not_affect_others(env: dict[str, Any], optimizer: str) -> None:
    build = builder(env, 4, {"optimizer": optimizer})
    steps = 40 * (DIVERGED_AFTER + 5)
    wild = slice_of("m00", steps, hyperparameters={"learning_rate": 1e30})
    cohort = build.cohort(ALL[:2], 1)
    lost, kept = run(cohort, [wild, slice_of("m01", steps)])
    assert [cohort.outcome(slot).diverged for slot in range(2)] == [True, False]
    assert cohort.outcome(0).scalars["learning/skipped_updates"] >= DIVERGED_AFTER
    assert cohort.outcome(0).hyperparameters["learning_rate"] == 1e30
    for name, value in lost.items():
        assert np.isfinite(value).all(), name
    assert_equal(kept, run(build.cohort(("m01",), 1), [slice_of("m01", steps)])[0])
    cohort.load(0, kept)
    run(cohort, [slice_of("m00", 40, 1), slice_of("m01", 40, 1)])
    assert not cohort.outcome(0).diverged


@pytest.mark.parametrize("epochs", [1, 3])
def test_skipped_updates_are_counted_and_keep_metrics(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of five blocks pay NaN to one member: its metrics are those of the other three, its neighbor's of all."""
    agent = {"rewards": "none", "observations": "raw", "epochs": epochs}
    build = builder("CartPole-v1", 4, agent)
    blocks = 0

    def collect(self: RLCohort) -> Any:
        nonlocal blocks
        block = real(self)
        blocks += 1
        if blocks in (2, 5):
            block.rewards[0] = float("nan")
        return block

    cohort, alone = build.cohort(ALL[:2], 1), build.cohort(ALL[1:2], 1)
    run(alone, [slice_of("m01", 200)])
    real = RLCohort.collect
    monkeypatch.setattr(RLCohort, "collect", collect)
    run(cohort, [slice_of("m00", 200), slice_of("m01", 200)])
    assert blocks == 5
    counts = {"learning/skipped_updates": 2.0 * epochs, "learning/updates": 5.0 * epochs}
    assert [cohort.outcome(slot).scalars for slot in range(2)] == [counts, {}]
    assert cohort._state.tensors["skipped"].tolist() == [epochs, 0]
    assert not cohort.outcome(0).diverged
    rows, (other,) = cohort.metrics(), alone.metrics()
    assert counts.items() <= rows[0].items()
    assert all(math.isfinite(value) for value in rows[0].values())
    assert {"loss/policy", "loss/value", "loss/gradient_norm"} <= rows[0].keys()
    assert {k: v for k, v in rows[1].items() if k[:4] == "loss"} == {k: v for k, v in other.items() if k[:4] == "loss"}
    cohort.begin([slice_of("m00", 200, 1), slice_of("m01", 200, 1)])
    cohort.advance()
    assert cohort.outcome(0).scalars == {}  # counted per slice


def test_metrics_are_those_of_the_last_applied_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the second of a block's two minibatches is skipped, they are the first one's."""
    build = builder("CartPole-v1", 4, {"rewards": "none", "observations": "raw", "minibatches": 2})
    cohort, real = build.cohort(ALL[:1], 1), RLCohort.collect

    def collect(self: RLCohort) -> Any:
        block = real(self)
        block.rewards[:, :, 2:] = float("nan")
        return block

    monkeypatch.setattr(RLCohort, "collect", collect)
    run(cohort, [slice_of("m00", 120)])
    (row,) = cohort.metrics()
    assert (row["learning/skipped_updates"], row["learning/updates"]) == (3.0, 6.0)
    assert math.isfinite(row["loss/value"])
    assert row["loss/gradient_norm"] > 0


def test_no_losses_without_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    build = builder("CartPole-v1", 4, {"rewards": "none", "observations": "raw"})
    cohort, real = build.cohort(ALL[:1], 1), RLCohort.collect

    def collect(self: RLCohort) -> Any:
        block = real(self)
        block.rewards[:] = float("nan")
        return block

    monkeypatch.setattr(RLCohort, "collect", collect)
    run(cohort, [slice_of("m00", 120)])
    (row,) = cohort.metrics()
    assert not [name for name in row if name.startswith("loss/")]
    assert row["step"] == 120
    assert row["learning/skipped_updates"] == row["learning/updates"] == 3.0


@pytest.mark.parametrize("between", ["continue", "reset"])
def test_parts_of_a_slice_are_timed(between: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock advances by one second at each reading; env and act are called once per step, learn once per block."""
    seconds = itertools.count()
    monkeypatch.setattr(rollouts, "monotonic", lambda: float(next(seconds)))
    cohort = builder({**CARTPOLE, "between_slices": between}).cohort(("m00",), 1, None)
    for generation in (0, 1):
        cohort.begin([slice_of("m00", 80, generation)])  # 2 blocks of 10 steps of 4 envs
        while not cohort.advance():
            pass
        assert cohort.outcome(0).timing == {"act": 20.0, "env": 20.0, "learn": 2.0}


def test_evaluation_does_not_affect_training() -> None:
    plain, build = builder("CartPole-v1"), builder("CartPole-v1", fitness={"source": "evaluation", "episodes": 5})
    cohort, other = (b.cohort(ALL[:2], 1) for b in (build, plain))
    assignments = [slice_of(m, 400) for m in ALL[:2]]
    result, expected = run(cohort, assignments), run(other, assignments)
    outcomes = [cohort.outcome(slot) for slot in range(2)]
    for slot, a in enumerate(assignments):
        seed = seed_for(a.seed, "evaluation")
        (played,) = plain.evaluate([expected[slot]], episodes=5, seed=seed)
        assert outcomes[slot].evaluation == played.returns
        assert len(played.returns) == 5
        assert outcomes[slot].returns == other.outcome(slot).returns
        assert other.outcome(slot).evaluation == []
        assert_equal(result[slot], expected[slot])
    later = [slice_of(m, 400, 1) for m in ALL[:2]]
    for one, two in zip(run(cohort, later), run(other, later), strict=True):
        assert_equal(one, two)


def test_rehearsed_update_takes_fixed_epochs_and_changes_nothing() -> None:
    """Also where the policy has moved away by then, and where an update would stop at once."""
    cohort = builder("CartPole-v1", agent={"epochs": 3, "max_log_ratio": 0.0}).cohort(("m00", "m01"), 1)
    assert isinstance(cohort, RLCohort)
    assignments = [slice_of(m, 400) for m in cohort.members]
    for slot, a in enumerate(assignments):
        cohort.init(slot, a.seed)
    cohort.begin(assignments)
    assert not cohort.advance()
    block = cohort.collect()
    before = [cohort.save(slot) for slot in range(2)]
    running = {name: value.clone() for name, value in cohort._state.running.items()}
    assert running
    for epochs in ([4, 1], [2, 7]):
        learned = cohort.prepare_repeat(block, torch.tensor(epochs))()
        assert learned.metrics["loss/epochs"].tolist() == epochs
    for slot, row in enumerate(before):
        assert_equal(cohort.save(slot), row)
    assert all(torch.equal(value, cohort._state.running[name]) for name, value in running.items())
    assert cohort.learn(block).metrics["loss/epochs"].max() <= 2
    cohort.close()
