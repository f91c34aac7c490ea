"""UNREAL's auxiliary losses against rlax, a loop over pixels, and identities."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pbtrl.agents.auxiliary import dueling, pixel_control_rewards, pixel_control_targets, reward_class
from pbtrl.agents.losses import value_loss
from tests.agents import oracles

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rlax_pixel_control.json").read_text())["cases"]


def video(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("case", GOLDEN)
def test_pixel_control_rewards_agree_with_rlax(case):
    frames, expected = torch.tensor(case["frames"]), np.array(case["rewards"])
    exact = pixel_control_rewards(frames.double() / 255.0, case["cell_size"])
    np.testing.assert_allclose(exact, expected, rtol=1e-12, atol=1e-15)
    from_bytes = pixel_control_rewards(frames.to(torch.uint8), case["cell_size"])
    assert from_bytes.dtype == torch.float32
    np.testing.assert_allclose(from_bytes, expected, rtol=1e-5, atol=1e-7)


def test_pixel_control_rewards_agree_with_a_loop():
    frames = video(2, 3, 4, 2, 8, 12)
    rewards = pixel_control_rewards(frames.double() / 255.0, 4)
    assert rewards.shape == (2, 3, 3, 2, 3)
    for p, b in np.ndindex(2, 3):
        literal = oracles.pixel_control_rewards(frames[p, b].double().numpy() / 255.0, 4)
        np.testing.assert_allclose(rewards[p, b], literal, rtol=1e-12)


def test_image_of_80_x_80_has_20_x_20_cells():
    frames = video(1, 1, 4, 80, 80).expand(1, 3, 4, 80, 80)
    rewards = pixel_control_rewards(frames, 4)
    assert rewards.shape == (1, 2, 20, 20)
    assert not rewards.any()
    with pytest.raises(RuntimeError):
        pixel_control_rewards(video(2, 1, 84, 84), 5)


def test_one_changed_pixel_changes_one_cell():
    frames = torch.full((2, 3, 8, 8), 0.25)
    frames[1, 2, 5, 2] = 1.0
    rewards = pixel_control_rewards(frames, 4)
    expected = torch.zeros(1, 2, 2)
    expected[0, 1, 0] = 0.75 / (4**2 * 3)
    torch.testing.assert_close(rewards, expected)


def tracks(time, *batch, cells=(2, 3), actions=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    rewards = torch.rand(time, *batch, *cells, generator=g, dtype=torch.float64)
    next_q = torch.randn(time, *batch, actions, *cells, generator=g, dtype=torch.float64)
    ends = torch.rand(time, *batch, generator=g) < 0.2
    cuts = torch.rand(time, *batch, generator=g) < 0.2
    return torch.where(ends, 0.0, 0.9).double(), rewards, next_q, cuts


@pytest.mark.parametrize("time", [1, 2, 20])
def test_targets_are_n_step_returns_of_best_action_per_cell(time):
    discounts, rewards, next_q, cuts = tracks(time, 2, 3)
    targets = pixel_control_targets(discounts, rewards, next_q.requires_grad_(), cuts)
    assert targets.shape == rewards.shape
    assert not targets.requires_grad
    best = next_q.detach().max(-3).values
    for p, b, y, x in np.ndindex(2, 3, 2, 3):
        literal = oracles.n_step_returns(
            discounts[:, p, b].numpy(),
            rewards[:, p, b, y, x].numpy(),
            best[:, p, b, y, x].numpy(),
            cuts[:, p, b].numpy(),
        )
        np.testing.assert_allclose(targets[:, p, b, y, x], literal, rtol=1e-12, atol=1e-12)


def test_targets_do_not_cross_a_terminal():
    discounts, rewards, next_q, cuts = tracks(9, 2)
    discounts[4] = 0.0
    before = pixel_control_targets(discounts, rewards, next_q, cuts)
    later = torch.arange(9) > 4
    after = pixel_control_targets(discounts, rewards + 3.0 * later[:, None, None, None], next_q + 7.0, cuts)
    assert torch.equal(after[4], rewards[4])
    assert torch.equal(after[4], before[4])


def test_dueling():
    g = torch.Generator().manual_seed(0)
    value = torch.randn(2, 5, 1, 2, 3, generator=g, dtype=torch.float64, requires_grad=True)
    advantages = torch.randn(2, 5, 4, 2, 3, generator=g, dtype=torch.float64, requires_grad=True)
    q = dueling(value, advantages)
    assert q.shape == advantages.shape
    torch.testing.assert_close(q.mean(-3, keepdim=True), value)
    torch.testing.assert_close(q - q[..., :1, :, :], advantages - advantages[..., :1, :, :])
    torch.testing.assert_close(dueling(value, advantages + 3.0), q)
    taken = q[..., 1, :, :]
    value_loss(taken, torch.zeros_like(taken), torch.ones_like(taken)).sum().backward()
    torch.testing.assert_close(value.grad[:, :, 0], taken.detach())
    share = torch.tensor([-0.25, 0.75, -0.25, -0.25], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(advantages.grad, share * taken.detach()[..., None, :, :])


def test_reward_class():
    rewards = torch.tensor([[0.0, 1.0, -1.0], [1e-9, -0.0, -250.0]])
    assert reward_class(rewards).tolist() == [[0, 1, 2], [1, 0, 2]]
    assert reward_class(rewards).dtype == torch.int64


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("cells", [(1, 1), (2, 3), (5, 5)])
def test_member_is_bit_identical_alone_and_in_slot(members, cells):
    height, width = cells
    frames = video(4, 3, 6, 3, 4 * height, 4 * width)
    discounts, rewards, next_q, cuts = (
        x.float() if x.is_floating_point() else x for x in tracks(5, 4, 3, cells=cells, actions=6)
    )
    g = torch.Generator().manual_seed(1)
    value, advantages = torch.randn(4, 7, 1, *cells, generator=g), torch.randn(4, 7, 6, *cells, generator=g)
    whole = (
        pixel_control_rewards(frames, 4),
        pixel_control_targets(discounts, rewards, next_q, cuts).movedim(1, 0),
        dueling(value, advantages),
    )
    for start in range(0, 4, members):
        s = slice(start, start + members)
        alone = (
            pixel_control_rewards(frames[s], 4),
            pixel_control_targets(discounts[:, s], rewards[:, s], next_q[:, s], cuts[:, s]).movedim(1, 0),
            dueling(value[s], advantages[s]),
        )
        for x, y in zip(whole, alone, strict=True):
            assert torch.equal(x[s], y)
