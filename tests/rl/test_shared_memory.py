"""Memory shared by processes: tensors, weights without torn reads, blocks with and without replay."""

import threading

import pytest
import torch

from pbtrl.rl.shared_memory import TIMED, SharedTensors, WeightMailbox, from_dict, to_dict, truncate
from pbtrl.rl.unroll_replay import UnrollReplay
from tests.agent_fixtures import agent, block


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((2, 1000), value), "b": torch.full((3,), int(value)), "c": torch.full((), value).double()}


def test_tensors_keep_shape_and_dtype_without_overlap() -> None:
    shared = SharedTensors(tensors(0.0)).tensors
    for value, tensor in enumerate(shared.values(), start=1):
        tensor.fill_(value)
    for value, (name, like) in enumerate(tensors(0.0).items(), start=1):
        assert shared[name].dtype == like.dtype
        assert shared[name].shape == like.shape
        assert (shared[name] == value).all()
        assert shared[name].data_ptr() % 16 == 0


def test_weights_carry_their_version() -> None:
    weights, result = WeightMailbox(tensors(0.0)), tensors(9.0)
    assert weights.read(result) == 0
    weights.write(tensors(5.0), version=7)
    assert weights.read(result) == 7
    assert all((value == 5).all() for value in result.values())


def test_no_reader_gets_weights_of_two_versions() -> None:
    like = {name: torch.zeros(50_000) for name in "abcd"}
    weights, over = WeightMailbox(like), threading.Event()

    def write() -> None:
        version = 0
        while not over.is_set():
            version += 1
            weights.write({name: torch.full((50_000,), float(version)) for name in like}, version)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        seen = set()
        while len(seen) < 50:
            result = {name: torch.zeros(50_000) for name in like}
            version = weights.read(result)
            assert {float(x) for value in result.values() for x in value.unique()} == {float(version)}
            seen.add(version)
    finally:
        over.set()
        writer.join()


def test_reader_waits_for_a_writer_in_the_middle() -> None:
    weights, result = WeightMailbox(tensors(0.0)), tensors(9.0)
    sequence = weights._shared.tensors["sequence"]
    sequence[0] += 1
    reader = threading.Thread(target=weights.read, args=(result,))
    reader.start()
    reader.join(0.05)
    assert reader.is_alive()
    weights._shared.tensors["a"].fill_(3.0)
    sequence[0] += 1
    reader.join(5)
    assert (result["a"] == 3).all()


def test_block_round_trips_and_truncates() -> None:
    whole = block(agent(core="lstm", core_units=8), [0, 1])
    again = from_dict(to_dict(whole))
    for name in (*TIMED, "rnn_state"):
        assert torch.equal(getattr(again, name), getattr(whole, name))
    for name in ("observations", "actions", "rewards", "first"):
        assert torch.equal(getattr(again.initial_inputs, name), getattr(whole.initial_inputs, name))
    short = from_dict(truncate(to_dict(whole), 3))
    assert short.observations.shape[:2] == (2, 4)
    assert torch.equal(short.rewards, whole.rewards[:, :3])


# Replay


def numbered_block(number: int, time: int = 4, members: int = 2, envs: int = 3) -> dict[str, torch.Tensor]:
    """Block in which every env of a member carries 10 * the member's number + the env's."""
    env = 10.0 * number + torch.arange(envs).expand(members, envs)
    return {
        "rewards": env[:, None].repeat(1, time, 1),
        "is_reset_step": torch.zeros(members, time, envs, dtype=torch.bool),
        "rnn_state": env[..., None].clone(),
    }


def test_replayed_unrolls_are_whole_and_beside_new_ones() -> None:
    replay, generator = UnrollReplay(6, 3), torch.Generator().manual_seed(0)
    block, past = replay.mixed(numbered_block(0), 3, generator)
    assert (block["rewards"].shape, past) == ((2, 4, 3), None)  # there is no past yet
    for number in range(4):
        replay.add(numbered_block(number))
    assert len(replay) == 2  # 6 unrolls of 3 envs each
    drawn = []
    for _ in range(200):
        mixed, past = replay.mixed(numbered_block(9), 5, generator)
        assert past.tolist() == [True, False, True, False, True, True, False, True]  # a share for every minibatch
        assert mixed["rewards"].shape == mixed["is_reset_step"].shape == (2, 4, 8)
        assert mixed["rnn_state"].shape == (2, 8, 1)
        assert (mixed["rewards"] == mixed["rnn_state"].transpose(1, 2)).all()
        assert mixed["rnn_state"][0, ~past, 0].tolist() == [90.0, 91.0, 92.0]
        drawn += mixed["rnn_state"][0, past, 0].tolist()
    assert set(drawn) == {20.0, 21.0, 22.0, 30.0, 31.0, 32.0}
    assert all(drawn.count(one) == pytest.approx(1000 / 6, rel=0.25) for one in set(drawn))


def test_only_unrolls_of_one_length_are_mixed() -> None:
    replay, generator = UnrollReplay(30, 3), torch.Generator().manual_seed(0)
    replay.add(numbered_block(0, time=5))
    assert replay.mixed(numbered_block(1), 3, generator)[0]["rewards"].shape == (2, 4, 3)
    replay.add(numbered_block(2))
    mixed, past = replay.mixed(numbered_block(1), 9, generator)
    assert set(mixed["rnn_state"][0, past, 0].tolist()) <= {20.0, 21.0, 22.0}


def test_replaced_policy_gives_no_transitions() -> None:
    replay = UnrollReplay(30, 3)
    replay.add(numbered_block(0))
    replay.forget(1)
    mixed, past = replay.mixed(numbered_block(1), 3, torch.Generator().manual_seed(0))
    assert mixed["is_reset_step"][1, :, past].all()
    assert not mixed["is_reset_step"][0].any()
    assert not mixed["is_reset_step"][:, :, ~past].any()
