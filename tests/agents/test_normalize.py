"""Running statistics against numpy over all the data at once; PopArt against rlax."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pbtrl.agents import normalize
from tests.agents import oracles

POPART = json.loads((Path(__file__).parents[1] / "golden" / "rlax_popart.json").read_text())["cases"]


def blocks(members, *shape, seed=0):
    """Batches of several sizes, far from zero, with masks."""
    g = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.arange(members).reshape(-1, *(1,) * (len(shape) + 1))
    for size in (1, 7, 40, 33):
        x = 1000 + scale * torch.randn(members, size, *shape, generator=g)
        yield x, torch.rand(members, size, generator=g) < 0.7


def merged(data, members, shape):
    state = normalize.init_moments(members, shape)
    for x, mask in data:
        state = normalize.update_moments(state, x, mask)
    return state


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_agrees_with_numpy(shape, masked):
    data = [(x, mask if masked else None) for x, mask in blocks(3, *shape)]
    mean, variance = normalize.mean_and_variance(merged(data, 3, shape))
    for p in range(3):
        rows = [x[p] if mask is None else x[p][mask[p]] for x, mask in data]
        everything = torch.cat(rows).double().numpy()
        np.testing.assert_allclose(mean[p], everything.mean(0), rtol=1e-6)
        np.testing.assert_allclose(variance[p], everything.var(0), rtol=1e-6)


def test_before_the_first_sample():
    state = normalize.init_moments(2, (3,))
    mean, variance = normalize.mean_and_variance(state)
    assert torch.equal(mean, torch.zeros(2, 3))
    assert torch.equal(variance, torch.ones(2, 3))


def test_masked_samples_are_ignored():
    (x, mask), *_ = list(blocks(2, 3))[2:]
    state = merged(blocks(2, 3, seed=1), 2, (3,))
    mask[1] = False
    poisoned = torch.where(mask[..., None], x, float("nan"))
    one, two = (normalize.update_moments(state, y, mask) for y in (x, poisoned))
    for key in state:
        assert torch.equal(one[key], two[key])
        assert torch.equal(one[key][1], state[key][1])


def test_non_finite_samples_are_ignored():
    (x, mask), *_ = list(blocks(2, 3))[2:]
    state = merged(blocks(2, 3, seed=1), 2, (3,))
    for bad in (float("nan"), float("inf")):
        poisoned = x.clone()
        poisoned[0, 1, 2] = bad
        without = torch.ones_like(mask)
        without[0, 1] = False
        one, two = normalize.update_moments(state, poisoned), normalize.update_moments(state, x, without)
        for key in state:
            assert torch.equal(one[key], two[key])


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("width", [1, 3, 17])
def test_member_is_bit_identical_alone_and_in_slot(members, width):
    data = list(blocks(4, width))
    whole = merged(data, 4, (width,))
    means = normalize.mean_and_variance(whole)
    for start in range(0, 4, members):
        slots = slice(start, start + members)
        part = merged([(x[slots], mask[slots]) for x, mask in data], members, (width,))
        for key in whole:
            assert torch.equal(whole[key][slots], part[key])
        for one, alone in zip(means, normalize.mean_and_variance(part), strict=True):
            assert torch.equal(one[slots], alone)


def init_return_scale(members, envs):
    return {**normalize.init_moments(members), "running": torch.zeros((members, envs), dtype=torch.float64)}


def episode_data(members, seed=0):
    g = torch.Generator().manual_seed(seed)
    rewards = 3 * torch.randn(members, 30, 5, generator=g) + 1
    ends = torch.rand(members, 30, 5, generator=g) < 0.1
    # A dead transition is the reset after an episode's end.
    dead = torch.cat([torch.zeros_like(ends[:, :1]), ends[:, :-1]], 1) & ~ends
    return rewards, ends, ~dead


def scale_of(rewards, ends, live, gamma, block):
    state = init_return_scale(*rewards.shape[::2])
    for start in range(0, 30, block):
        t = slice(start, start + block)
        state = normalize.update_return_scale(state, rewards[:, t], ends[:, t], gamma, live[:, t])
    return state


def test_return_scale_is_std_of_discounted_return():
    (rewards, ends, live), gamma = episode_data(3), torch.tensor([0.0, 0.9, 0.99])
    got = normalize.return_scale(scale_of(rewards, ends, live, gamma, 10))
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


def test_return_scale_of_small_rewards_is_small():
    """No epsilon is added that would drown them."""
    (rewards, ends, live), gamma = episode_data(2), torch.tensor([0.9, 0.99])
    large, small = (normalize.return_scale(scale_of(f * rewards, ends, live, gamma, 10)) for f in (1.0, 1e-3))
    torch.testing.assert_close(small, 1e-3 * large, rtol=1e-2, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_reward_changes_no_return(bad):
    """The step counts as a reset step."""
    (rewards, ends, live), gamma = episode_data(2), torch.tensor([0.9, 0.99])
    ends[:, 4, 2] = False
    without, poisoned = live.clone(), rewards.clone()
    without[0, 4, 2], poisoned[0, 4, 2] = False, bad
    one, two = (scale_of(r, ends, m, gamma, 10) for r, m in ((poisoned, live), (rewards, without)))
    for key in one:
        assert torch.equal(one[key], two[key])


def test_left_out_steps_do_not_change_returns():
    """A reset step in the middle of an episode neither adds a reward nor discounts."""
    (rewards, ends, _), gamma = episode_data(2), torch.tensor([0.9, 0.99])
    ends[:] = False
    live, kept = torch.ones_like(ends), torch.arange(30) != 11
    live[:, 11] = False
    state = init_return_scale(2, 5)
    one = normalize.update_return_scale(state, rewards, ends, gamma, live)
    two = normalize.update_return_scale(state, rewards[:, kept], ends[:, kept], gamma)
    assert torch.equal(one["running"], two["running"])
    torch.testing.assert_close(one["m2"], two["m2"])


def test_return_scale_is_carried_across_blocks():
    (rewards, ends, live), gamma = episode_data(2), torch.tensor([0.9, 0.99])
    one, many = (scale_of(rewards, ends, live, gamma, block) for block in (30, 3))
    assert torch.equal(one["running"], many["running"])
    torch.testing.assert_close(normalize.return_scale(one), normalize.return_scale(many))


def test_return_scale_is_bit_identical_alone_and_in_slot():
    (rewards, ends, live), gamma = episode_data(4), torch.tensor([0.5, 0.9, 0.97, 0.99])
    whole = scale_of(rewards, ends, live, gamma, 10)
    for p in range(4):
        slots = slice(p, p + 1)
        alone = scale_of(rewards[slots], ends[slots], live[slots], gamma[slots], 10)
        for key in whole:
            assert torch.equal(whole[key][slots], alone[key])


def test_return_scale_starts_at_one():
    torch.testing.assert_close(normalize.return_scale(init_return_scale(3, 2)), torch.ones(3))


def targets_of(members, seed=0):
    """Batches of value targets on several scales, with masks."""
    g = torch.Generator().manual_seed(seed)
    for size, center, spread in ((1, 0.0, 1.0), (7, 50.0, 0.01), (40, -3.0, 40.0), (33, 1e4, 5.0)):
        x = center + spread * torch.randn(members, size, generator=g)
        yield x, torch.rand(members, size, generator=g) < 0.7


def adapted(data, members, rate):
    state = normalize.init_popart(members)
    for x, mask in data:
        state = normalize.popart_update(state, x, mask, rate=rate)
    return state


@pytest.mark.parametrize("case", POPART)
def test_popart_agrees_with_rlax(case):
    bounds = {name: case[name] for name in ("rate", "low", "high")}
    weight, bias = (torch.tensor([case[name]], dtype=torch.float64) for name in ("weight", "bias"))
    state = normalize.init_popart(1)
    for step in case["steps"]:
        targets, old = torch.tensor([step["targets"]], dtype=torch.float64), state
        state = normalize.popart_update(old, targets, torch.ones_like(targets), **bounds)
        normalize.popart_preserve(weight, bias, old, state)
        for name, value in {**state, "weight": weight, "bias": bias}.items():
            np.testing.assert_allclose(value[0], step[name], rtol=1e-8, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.2])
def test_popart_agrees_with_a_loop(rate):
    rates, members = rate * torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64), 3
    got = adapted(targets_of(members), members, rates)
    for p in range(members):
        shift, second, scale = 0.0, 1.0, 1.0
        for x, mask in targets_of(members):
            live = x[p][mask[p]].double().tolist()
            if live:
                options = {"rate": rates[p].item(), "low": 1e-2, "high": 1e6}
                shift, second, scale = oracles.popart(shift, second, live, **options)
        for name, value in (("shift", shift), ("second_moment", second), ("scale", scale)):
            assert got[name][p].item() == pytest.approx(value, rel=1e-7)


def test_popart_bounds_the_scale():
    state, mask = normalize.init_popart(1), torch.ones(1, 4)
    far = torch.tensor([[-1e9, 1e9, -1e9, 1e9]])
    assert normalize.popart_update(state, far, mask, rate=0.25)["scale"].item() == pytest.approx(1e6)
    assert normalize.popart_update(state, 0 * far, mask, rate=1.0)["scale"].item() == pytest.approx(1e-2)
    assert normalize.popart_update(state, 0 * far, mask, rate=1.0, low=0.5)["scale"].item() == 0.5
    assert normalize.popart_update(state, far, mask, rate=1.0, high=3.0)["scale"].item() == 3.0


@pytest.mark.parametrize("width", [1, 8])
def test_popart_preserves_outputs(width):
    """In float32, into views of a flat buffer as in a network; columns beside the value's stay untouched."""
    g = torch.Generator().manual_seed(0)
    flat = torch.randn(3, 17 * width, generator=g)
    before, members = flat.clone(), 3
    weight, bias = (x.detach().requires_grad_() for x in (flat[:, : 16 * width], flat[:, 16 * width :]))
    weight, bias = weight.view(3, 16, width), bias.view(3, 1, width)
    x = torch.randn(3, 9, 16, generator=g)
    old = adapted(targets_of(members, seed=1), members, 1e-3)

    def outputs(state):
        predicted = torch.baddbmm(bias, x, weight)[..., 0].double()
        return predicted * state["scale"][:, None] + state["shift"][:, None]

    expected = outputs(old).detach()
    for targets, mask in targets_of(members, seed=2):
        mask[1] = False
        new = normalize.popart_update(old, targets, mask, rate=1e-3)
        normalize.popart_preserve(weight[..., :1], bias[..., :1], old, new)
        torch.testing.assert_close(outputs(new).detach(), expected, rtol=1e-5, atol=1e-4)
        old = new
    beside = slice(1, None)
    for now, then in (
        (flat[:, : 16 * width], before[:, : 16 * width]),
        (flat[:, 16 * width :], before[:, 16 * width :]),
    ):
        assert torch.equal(now.view(3, -1, width)[..., beside], then.view(3, -1, width)[..., beside])
        assert not torch.equal(now[0], then[0])
        assert torch.equal(now[1], then[1])


def test_popart_ignores_masked_targets():
    old = adapted(targets_of(2, seed=1), 2, 0.01)
    (x, mask), *_ = list(targets_of(2))[2:]
    mask[1] = False
    poisoned = torch.where(mask, x, float("nan"))
    options = {"rate": 0.01, "high": 1.0}  # the second member's scale is greater, and stays
    one, two = (normalize.popart_update(old, y, m, **options) for y, m in ((x, mask), (poisoned, mask.float())))
    for key in old:
        assert torch.equal(one[key], two[key])
        assert torch.equal(one[key][1], old[key][1])
        assert one[key][0] != old[key][0]


def test_popart_counts_targets_not_batches():
    """To first order in the rate, the same targets in one batch or in many move the statistics alike."""
    x = torch.randn(2, 600, generator=torch.Generator().manual_seed(0)) + 5
    pieces = [(part, torch.ones_like(part)) for part in x.split(6, 1)]
    one = adapted([(x, torch.ones_like(x))], 2, 1e-5)
    torch.testing.assert_close(adapted(pieces, 2, 1e-5)["shift"], one["shift"], rtol=5e-3, atol=0)
    everything = adapted([(x, torch.ones_like(x))], 2, 1.0)
    torch.testing.assert_close(everything["shift"], x.double().mean(1))
    torch.testing.assert_close(everything["scale"], x.double().std(1, correction=0))


def test_popart_holds_targets_constant():
    targets = torch.randn(2, 5, requires_grad=True)
    state = normalize.popart_update(normalize.init_popart(2), targets, torch.ones(2, 5), rate=0.1)
    assert not any(x.requires_grad for x in state.values())


@pytest.mark.parametrize("members", [1, 2, 4, 8])
def test_popart_is_bit_identical_alone_and_in_slot(members):
    rates, data = torch.logspace(-4, -1, 8), list(targets_of(8))
    weight, bias = torch.randn(8, 24, 1), torch.randn(8, 1, 1)

    def all_of(slots):
        state = adapted([(x[slots], mask[slots]) for x, mask in data], len(rates[slots]), rates[slots])
        head = weight[slots].clone(), bias[slots].clone()
        normalize.popart_preserve(*head, normalize.init_popart(len(rates[slots])), state)
        return *state.values(), *head

    whole = all_of(slice(None))
    for start in range(0, 8, members):
        slots = slice(start, start + members)
        for x, y in zip(whole, all_of(slots), strict=True):
            assert torch.equal(x[slots], y)
