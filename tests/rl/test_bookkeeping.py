"""Seeds of an RL cohort, and its metrics and outcomes during and after a slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pbtrl.agents.actor_critic import ActorCritic
from pbtrl.core.seeding import env_seeds, evaluation_seed, seed_for
from pbtrl.envs import Vector
from pbtrl.errors import SnapshotError
from pbtrl.rl import cohort as module
from pbtrl.rl.cohort import RLCohort
from tests.rl.test_cohort import CARTPOLE, builder, slice_of

TWO = ("m00", "m01")


def begun(build: Any, blocks: int = 100) -> RLCohort:
    """Two fresh members at the start of a slice."""
    cohort: RLCohort = build.cohort(TWO, 1)
    for slot in range(2):
        cohort.init(slot, slot)
    cohort.begin([slice_of(m, 40 * blocks, 1) for m in TWO])
    return cohort


# Seeds


def test_seeds_differ_by_purpose_member_and_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The draws for weights, envs, actions and evaluation are independent of each other."""
    drawn: list[int] = []
    init, noise = ActorCritic.init, ActorCritic.noise

    def noted_init(self: Any, generators: Sequence[torch.Generator]) -> Any:
        drawn.extend(g.initial_seed() for g in generators if g.initial_seed())  # 0 where a snapshot comes later
        return init(self, generators)

    def noted_noise(self: Any, generators: Sequence[torch.Generator], time: int, envs: int) -> Any:
        drawn.extend(g.initial_seed() for g in generators)
        return noise(self, generators, time, envs)

    build = builder({**CARTPOLE, "between_slices": "reset"}, fitness={"source": "evaluation", "episodes": 1})
    roots: list[list[int]] = []

    def noted_make(seeds: Sequence[int], threads: int) -> Vector:
        roots.append([*seeds])
        return make(seeds, threads)

    make = build.spec.make
    spec = replace(build.spec, make=noted_make, evaluate=lambda row, seed, threads: drawn.append(seed) or [0.0])
    monkeypatch.setattr(ActorCritic, "init", noted_init)
    monkeypatch.setattr(ActorCritic, "noise", noted_noise)
    cohort = RLCohort(TWO, spec, 1)
    for generation in range(2):
        assignments = [slice_of(m, 40, generation) for m in TWO]
        for slot, a in enumerate(assignments):
            cohort.init(slot, a.seed)
        cohort.begin(assignments)
        assert cohort.advance()
        for slot in range(2):
            cohort.outcome(slot)
    cohort.close()
    assert len(drawn) == len(set(drawn)) == 3 * 2 * 2  # of weights, actions and evaluation
    seeds = [seed for made in roots for seed in made]
    assert len(seeds) == len(set(seeds)) == 2 * 2 * 4
    envs_of_others = {s for seed in drawn for s in env_seeds(seed, 4)}
    assert not envs_of_others & set(seeds)


def test_seeds_depend_on_root_and_purpose() -> None:
    purposes, roots = ("weights", "envs", "actions", "evaluation"), (0, 1, 2**62)
    assert len({seed_for(root, purpose) for root in roots for purpose in purposes}) == 12
    assert all(0 <= seed_for(root, "envs") < 2**63 for root in roots)
    seeds = env_seeds(3, 1000)
    assert len({*seeds}) > 990
    assert max(seeds) > 2**30
    assert min(seeds) >= 0


def test_evaluation_seed_is_that_of_stored_runs() -> None:
    """A repeated final choice plays the same episodes as that of tests/golden/run-0.1.0."""
    assert evaluation_seed(1, "final") == 20583345126593592


# Snapshots


def test_saved_snapshot_does_not_change_with_training() -> None:
    cohort = begun(builder(CARTPOLE))
    before = cohort.save(0)
    kept = {name: value.copy() for name, value in before.items()}
    cohort.advance()
    for name, value in before.items():
        np.testing.assert_array_equal(value, kept[name])
    assert not np.array_equal(cohort.save(0)["params"], kept["params"])
    cohort.close()


def test_snapshot_of_another_network_is_refused() -> None:
    cohort, wider = begun(builder(CARTPOLE)), begun(builder(CARTPOLE, agent={"hidden": [32]}))
    before = cohort.save(0)
    with pytest.raises(SnapshotError, match="does not fit this config: params is"):
        cohort.load(0, wider.save(0))
    np.testing.assert_array_equal(cohort.save(0)["params"], before["params"])
    for one in (cohort, wider):
        one.close()


# What is said of a slice


def test_metrics_cover_updates_since_the_last_report(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    cohort = begun(builder("probe/Bandit-v0"))
    learn, losses = cohort.learn, []

    def noted(block: Any) -> Any:
        learned = learn(block)
        losses.append(learned.metrics["loss/policy"].clone())
        return learned

    cohort.learn = noted  # type: ignore[method-assign]
    for turns, done in ((3, 120), (2, 200), (0, 200)):
        for _ in range(turns):
            cohort.advance()
        rows = cohort.metrics()
        if not turns:
            assert rows == [{}, {}]
            continue
        assert [row["step"] for row in rows] == [4000 + done] * 2
        assert [row["perf/env_steps_per_s"] for row in rows] == [40 * turns / 2] * 2
        assert [row["loss/policy"] for row in rows] == pytest.approx(torch.stack(losses[-turns:]).mean(0).tolist())
        assert rows[0]["loss/policy"] != rows[1]["loss/policy"]
    cohort.close()


def test_metrics_average_only_updates_that_have_them() -> None:
    """UNREAL has auxiliary losses only once its replay is long enough."""
    cohort = begun(builder("probe/Bandit-v0"))
    learn, extra = cohort.learn, iter([{}, {}, *[{"loss/later": torch.tensor([1.0, 3.0])}] * 3])

    def learn_more(block: Any) -> Any:
        learned = learn(block)
        return replace(learned, metrics={**learned.metrics, **next(extra)})

    cohort.learn = learn_more  # type: ignore[method-assign]
    for _ in range(5):
        cohort.advance()
    assert [row["loss/later"] for row in cohort.metrics()] == [1.0, 3.0]
    cohort.close()


def test_episode_metrics_average_the_last_twenty() -> None:
    cohort = begun(builder(CARTPOLE))
    while any(len(episodes.returns) < 30 for episodes in cohort.rollout.episodes):  # type: ignore[union-attr]
        cohort.advance()
    for slot, row in enumerate(cohort.metrics()):
        returns = cohort.outcome(slot).returns
        assert row["episode/return_mean"] == pytest.approx(np.mean(returns[-20:]))
        assert row["episode/return_mean"] != pytest.approx(np.mean(returns[:20]))
        assert row["episode/length_mean"] == row["episode/return_mean"]  # a step of CartPole pays 1
    cohort.close()


def test_episode_length_and_return_are_separate() -> None:
    cohort = begun(builder("probe/Recall-v0"))
    cohort.advance()
    cohort.advance()
    outcome, (row, _) = cohort.outcome(0), cohort.metrics()
    assert row["episode/length_mean"] == outcome.lengths[0] > 1 >= row["episode/return_mean"]
    cohort.close()


@pytest.mark.parametrize("between", ["continue", "reset"])
def test_slice_reports_only_its_own_episodes_and_curve(between: str) -> None:
    cohort = begun(builder({"id": "probe/Bandit-v0", "between_slices": between}), blocks=1)
    for generation in (1, 2):
        if generation == 2:
            cohort.begin([slice_of(m, 40, generation) for m in TWO])
        assert cohort.advance()
        for outcome in (cohort.outcome(slot) for slot in range(2)):
            assert outcome.steps == 40
            assert outcome.lengths == [1] * 20  # every other step is a reset
            assert outcome.curve == [(40 * (generation + 1), np.mean(outcome.returns))]
    cohort.close()


@pytest.mark.parametrize(("skipped", "diverged"), [(0, False), (9, False), (10, True)])
def test_ten_skipped_updates_in_a_row_are_a_divergence(skipped: int, diverged: bool) -> None:
    cohort = begun(builder(CARTPOLE))
    cohort.advance()
    cohort._state.tensors["skipped"][0] = skipped
    assert [cohort.outcome(slot).diverged for slot in range(2)] == [diverged, False]
    cohort.close()


def test_stopped_slice_plays_no_evaluation() -> None:
    build = builder(CARTPOLE, fitness={"source": "evaluation", "episodes": 2})
    cohort = begun(build, blocks=2)
    assert not cohort.advance()
    assert cohort.outcome(0).evaluation == []
    assert cohort.advance()
    assert len(cohort.outcome(0).evaluation) == 2
    cohort.close()


def test_unused_envs_are_closed() -> None:
    cohort = begun(builder({**CARTPOLE, "between_slices": "reset"}))
    vector = cohort._inline.vector
    cohort.begin([slice_of(m, 40, 2) for m in TWO])
    assert vector._pool is None
    assert cohort._inline.vector is not vector
    last = cohort._inline.vector
    cohort.close()
    assert last._pool is None
    assert cohort.rollout is None
