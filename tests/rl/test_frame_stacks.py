"""Frames that travel once: what is stacked again equals what the env stacked, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pbtrl import envs
from pbtrl.rl.frame_stacks import restack, stacks, unstack


def played(vector: envs.Vector, members: int, time: int) -> tuple[torch.Tensor, int]:
    """Observations [P, T, B, ...] of random play, and the number of episodes that began after the first step."""
    rng, actions = np.random.default_rng(0), vector.single_action_space
    rows, resets = [vector.reset().copy()], 0
    for _ in range(time - 1):
        rows.append(vector.step(rng.integers(actions.n, size=vector.num_envs))[0].copy())  # type: ignore[attr-defined]
        resets += int(vector.is_reset_step.sum())
    vector.close()
    rows = [row.reshape(members, -1, *row.shape[1:]) for row in rows]
    return torch.from_numpy(np.stack(rows, 1)), resets


@pytest.mark.parametrize("protocol", ["sticky", "classic"])
def test_stacks_of_atari_are_restored_across_episodes(protocol: Any) -> None:
    vector = envs.make(
        "ALE/Pong-v5", range(2), protocol=protocol, backend="gymnasium", kwargs={"max_num_frames_per_episode": 60}
    )
    observations, resets = played(vector, members=2, time=60)
    assert resets >= 4
    assert stacks(observations)
    frames, repeats = unstack(observations)
    assert torch.equal(restack(frames, repeats), observations)
    assert repeats.sum() >= 2 * 59 - resets
    assert len(frames) <= 2 * 60 + 3 * (2 + resets)  # three more at the start of the block and of each episode


def test_any_images_are_restored() -> None:
    """Also those that are no stacks, where all travels, and those that never change."""
    generator = torch.Generator().manual_seed(0)
    colors = torch.randint(256, (2, 5, 3, 3, 4, 4), dtype=torch.uint8, generator=generator)
    frames, repeats = unstack(colors)
    assert len(frames) == 2 * 5 * 3 * 3
    assert not repeats.any()
    assert torch.equal(restack(frames, repeats), colors)
    still = colors[:1, :1, :1].expand(2, 5, 3, 3, 4, 4)[:, :, :, :1].expand(2, 5, 3, 3, 4, 4)
    frames, repeats = unstack(still)
    assert len(frames) == 2 * 3 * (3 + 4)
    assert torch.equal(restack(frames, repeats), still)
    one = colors[:, :1]
    assert torch.equal(restack(*unstack(one)), one)


def test_stack_that_begins_again_in_the_middle_is_restored() -> None:
    """Envs fill the first stack of an episode with zeros, with copies of its first frame or with whatever they like."""
    generator = torch.Generator().manual_seed(1)
    stream = torch.randint(256, (2, 12, 3, 5, 5), dtype=torch.uint8, generator=generator)
    for fill in (lambda t: torch.zeros_like(stream[:, 0]), lambda t: stream[:, t], lambda t: stream[:, t] ^ 255):
        past, rows = [fill(0)] * 4, []
        for t in range(12):
            past = [fill(t)] * 3 + [stream[:, t]] if t == 7 else [*past[1:], stream[:, t]]
            rows.append(torch.stack(past, 2))
        observations = torch.stack(rows, 1)
        frames, repeats = unstack(observations)
        assert torch.equal(restack(frames, repeats), observations)
        assert repeats.all(2).all(0).tolist() == [t not in (0, 7) for t in range(12)]


def test_only_images_of_several_channels_may_be_stacks() -> None:
    assert stacks(torch.zeros(1, 2, 1, 4, 8, 8, dtype=torch.uint8))
    assert not stacks(torch.zeros(1, 2, 1, 1, 8, 8, dtype=torch.uint8))
    assert not stacks(torch.zeros(1, 2, 1, 4, 8, 8))
    assert not stacks(torch.zeros(1, 2, 1, 17))
