"""Running statistics against numpy over all the data at once."""

import numpy as np
import pytest
import torch

from agents import normalise


def blocks(members, *shape, seed=0):
    """Batches of several sizes, far from zero, with masks."""
    g = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.arange(members).reshape(-1, *(1,) * (len(shape) + 1))
    for size in (1, 7, 40, 33):
        x = 1000 + scale * torch.randn(members, size, *shape, generator=g)
        yield x, torch.rand(members, size, generator=g) < 0.7


def merged(data, members, shape):
    state = normalise.init_moments(members, shape)
    for x, mask in data:
        state = normalise.update_moments(state, x, mask)
    return state


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_agrees_with_numpy(shape, masked):
    data = [(x, mask if masked else None) for x, mask in blocks(3, *shape)]
    mean, variance = normalise.mean_and_variance(merged(data, 3, shape))
    for p in range(3):
        rows = [x[p] if mask is None else x[p][mask[p]] for x, mask in data]
        everything = torch.cat(rows).double().numpy()
        np.testing.assert_allclose(mean[p], everything.mean(0), rtol=1e-6)
        np.testing.assert_allclose(variance[p], everything.var(0), rtol=1e-6)


def test_before_the_first_sample():
    state = normalise.init_moments(2, (3,))
    mean, variance = normalise.mean_and_variance(state)
    assert torch.equal(mean, torch.zeros(2, 3))
    assert torch.equal(variance, torch.ones(2, 3))
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(normalise.normalise(x, mean, variance), x)


def test_what_is_masked_does_not_matter():
    (x, mask), *_ = list(blocks(2, 3))[2:]
    state = merged(blocks(2, 3, seed=1), 2, (3,))
    mask[1] = False
    poisoned = torch.where(mask[..., None], x, float("nan"))
    one, two = (normalise.update_moments(state, y, mask) for y in (x, poisoned))
    for key in state:
        assert torch.equal(one[key], two[key])
        assert torch.equal(one[key][1], state[key][1])


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 3, 17])
def test_a_member_alone_equals_its_slot_bit_for_bit(members, width):
    data = list(blocks(4, width))
    whole = merged(data, 4, (width,))
    x = normalise.normalise(data[-1][0], *normalise.mean_and_variance(whole))
    for start in range(0, 4, members):
        slots = slice(start, start + members)
        part = merged([(x[slots], mask[slots]) for x, mask in data], members, (width,))
        for key in whole:
            assert torch.equal(whole[key][slots], part[key])
        alone = normalise.normalise(data[-1][0][slots], *normalise.mean_and_variance(part))
        assert torch.equal(x[slots], alone)


def test_normalise():
    x = torch.tensor([[[1.0, 5.0], [3.0, 1e6]], [[0.0, 0.0], [-1e6, 0.0]]])
    mean, variance = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[4.0, 4.0], [1.0, 0.0]])
    expected = torch.tensor([[[0.0, 2.0], [1.0, 10.0]], [[0.0, 0.0], [-10.0, 0.0]]])
    torch.testing.assert_close(normalise.normalise(x, mean, variance), expected)
    assert normalise.normalise(x, mean, variance, clip=1.5).abs().max() == 1.5
    grid = x[:, None].expand(2, 3, 2, 2)
    assert torch.equal(normalise.normalise(grid, mean, variance)[:, 2], normalise.normalise(x, mean, variance))


def episode_data(members, seed=0):
    g = torch.Generator().manual_seed(seed)
    rewards = 3 * torch.randn(members, 30, 5, generator=g) + 1
    ends = torch.rand(members, 30, 5, generator=g) < 0.1
    # A dead transition is the reset after an episode's end.
    dead = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1) & ~ends
    return rewards, ends, ~dead


def scale_of(rewards, ends, live, gamma, block):
    state = normalise.init_return_scale(*rewards.shape[::2])
    for start in range(0, 30, block):
        t = slice(start, start + block)
        state = normalise.update_return_scale(state, rewards[:, t], ends[:, t], gamma, live[:, t])
    return state


def test_return_scale_is_the_std_of_the_discounted_return():
    (rewards, ends, live), gamma = episode_data(3), torch.tensor([0.0, 0.9, 0.99])
    got = normalise.return_scale(scale_of(rewards, ends, live, gamma, 10))
    for p in range(3):
        returns = []
        for b in range(5):
            g = 0.0
            for t in range(30):
                if live[p, t, b]:
                    g = float(gamma[p]) * g + float(rewards[p, t, b])
                    returns.append(g)
                if ends[p, t, b]:
                    g = 0.0
        assert got[p].item() == pytest.approx(np.std(returns), rel=1e-6)


def test_return_scale_is_carried_across_blocks():
    (rewards, ends, live), gamma = episode_data(2), torch.tensor([0.9, 0.99])
    one, many = (scale_of(rewards, ends, live, gamma, block) for block in (30, 3))
    assert torch.equal(one["running"], many["running"])
    torch.testing.assert_close(normalise.return_scale(one), normalise.return_scale(many))


def test_return_scale_alone_equals_its_slot_bit_for_bit():
    (rewards, ends, live), gamma = episode_data(4), torch.tensor([0.5, 0.9, 0.97, 0.99])
    whole = scale_of(rewards, ends, live, gamma, 10)
    for p in range(4):
        slots = slice(p, p + 1)
        alone = scale_of(rewards[slots], ends[slots], live[slots], gamma[slots], 10)
        for key in whole:
            assert torch.equal(whole[key][slots], alone[key])


def test_return_scale_starts_at_one():
    torch.testing.assert_close(normalise.return_scale(normalise.init_return_scale(3, 2)), torch.ones(3))
