"""The bench measures the same learning as training, without changing the policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pbtrl.agents.actor_critic import ActorCritic
from pbtrl.config.load import parse
from pbtrl.diagnostics.bench_worker import BenchWorker
from pbtrl.rl.actors import ActorsCohort
from pbtrl.rl.rollout import Rollout
from pbtrl.testing.trainables import assert_equal
from tests.command import CART

PASSES = (
    "agent.epochs=4",
    "agent.max_log_ratio=1e-3",
    "hparams.learning_rate={prior: log_uniform, low: 1e-5, high: 1e-1}",
)


@pytest.fixture
def updates(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Epochs of every update in this process, by member."""
    noted: list[list[int]] = []
    learn = ActorCritic.learn

    def noting(self: ActorCritic, *args: Any) -> Any:
        learned = learn(self, *args)
        noted.append(learned.metrics["loss/epochs"].long().tolist())
        return learned

    monkeypatch.setattr(ActorCritic, "learn", noting)
    return noted


@pytest.fixture(params=["inline", "actors", "inline, minibatches"])
def share(request: pytest.FixtureRequest) -> Iterator[BenchWorker]:
    mode, _, more = request.param.partition(", ")
    overrides = [f"acting={{mode: {mode}, processes: 1}}", *PASSES, *(["agent.minibatches=2"] if more else [])]
    share = BenchWorker(parse(CART, overrides=overrides).to_json(), [["m00", "m01", "m02"]], 1)
    yield share
    share.close()


def test_learning_alone_takes_as_many_epochs_as_training(share: BenchWorker, updates: list[list[int]]) -> None:
    """Epochs stop early, each member at its own time."""
    share.train(0.2)
    share.rest()
    (training,) = share.epochs
    counts = [epochs.tolist() for epochs in training]
    assert counts == updates[-len(counts) :]
    assert len({tuple(epochs) for epochs in counts}) > 1
    for measure in (share.learn, share.learn_one_thread):
        updates.clear()
        measure(0.3)
        alone = updates[:-1] if share.mode == "actors" else updates  # the last one gives their block back
        repeated = counts * (1 + len(alone) // len(counts))
        assert alone == repeated[: len(alone)]
    assert share.metrics["epochs"]
    assert min(map(min, counts)) <= min(share.metrics["epochs"]) <= max(share.metrics["epochs"]) <= 4


def test_learning_alone_does_not_change_the_policy(share: BenchWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    share.train(0.05)
    (cohort,) = share._cohorts
    monkeypatch.setattr(ActorsCohort, "learn", lambda self, block: None)  # by which they give the block back
    before = [cohort.save(slot) for slot in range(3)]
    share.learn(0.1)
    for slot, row in enumerate(before):
        assert_equal(cohort.save(slot), row)


def test_acting_alone_fills_blocks_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = []
    collect = Rollout.collect

    def noting(self: Rollout, state: Any, generators: Any, time: int) -> Any:
        blocks.append(collect(self, state, generators, time))
        return blocks[-1]

    share = BenchWorker(parse(CART).to_json(), [["m00", "m01", "m02"]], 1)
    (cohort,) = share._cohorts
    before, streams = [cohort.save(slot) for slot in range(3)], [g.get_state() for g in cohort._generators]
    seen, rewards = cohort.rollout.inputs.observations.clone(), cohort.rollout.inputs.rewards.clone()
    monkeypatch.setattr(Rollout, "collect", noting)
    rate = share.act(0.05)
    assert rate > 0.0
    assert len(blocks) > 1
    for block in blocks:
        assert block.rewards.shape[1] == cohort.block
        assert torch.equal(block.observations, seen[:, None].expand_as(block.observations))
        assert not block.rewards.any()
        assert not block.done.any()
    assert len({block.actions.numpy().tobytes() for block in blocks}) > 1
    assert torch.equal(cohort.rollout.inputs.observations, seen)
    assert torch.equal(cohort.rollout.inputs.rewards, rewards)
    assert all(torch.equal(g.get_state(), stream) for g, stream in zip(cohort._generators, streams, strict=True))
    for slot, row in enumerate(before):
        assert_equal(cohort.save(slot), row)
    share.close()
