"""Action distributions against torch.distributions, and the properties that acting relies on."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions as td

from pbtrl.agents.distributions import Categorical, Gaussian, MultiCategorical, SquashedGaussian, distribution
from pbtrl.agents.settings import NetworkSettings

ALL = [
    Categorical(5),
    Categorical(2),
    MultiCategorical((3, 1, 4)),
    MultiCategorical((5,)),
    Gaussian(1),
    Gaussian(3),
    SquashedGaussian(3),
    Gaussian(2, start=0.5),
]


def draw(dist, *shape, seed=0):
    """Parameters and stored actions `[*shape, ...]`."""
    g = torch.Generator().manual_seed(seed)
    params = torch.randn(*shape, dist.size + dist.free_size, generator=g)
    return params, dist.sample(params, dist.draw_noise(g, (*shape, *dist.noise_shape)))


class Slots:
    """Independent torch distributions, of positions among the logits of all."""

    def __init__(self, slots):
        self.slots = slots

    def log_prob(self, positions):
        starts = np.cumsum([0, *(slot.logits.shape[-1] for slot in self.slots)])
        return sum(slot.log_prob(positions[..., i] - int(starts[i])) for i, slot in enumerate(self.slots))

    def entropy(self):
        return sum(slot.entropy() for slot in self.slots)


def reference(dist, params):
    if isinstance(dist, Categorical):
        return td.Categorical(logits=params)
    if isinstance(dist, MultiCategorical):
        return Slots([td.Categorical(logits=slot) for slot in params.split(dist.sizes, -1)])
    mean, log_std = params.chunk(2, -1)
    return td.Independent(td.Normal(mean, log_std.exp()), 1)


@pytest.mark.parametrize("dist", ALL, ids=str)
def test_log_prob_and_entropy(dist):
    params, actions = draw(dist, 4, 7)
    expected, y = reference(dist, params), actions
    torch.testing.assert_close(dist.entropy(params), expected.entropy())
    if isinstance(dist, SquashedGaussian):
        tanh = td.TanhTransform(cache_size=1)  # remembers u, for atanh(1) is infinite
        expected, y = td.TransformedDistribution(expected, tanh), tanh(actions)
    torch.testing.assert_close(dist.log_prob(params, actions), expected.log_prob(y), rtol=1e-5, atol=1e-5)
    assert dist.log_prob(params, actions).shape == (4, 7)


@pytest.mark.parametrize("dist", ALL, ids=str)
def test_gradients_agree(dist):
    params, actions = draw(dist, 6)
    own, theirs = params.clone().requires_grad_(), params.clone().requires_grad_()
    (dist.log_prob(own, actions) + 0.3 * dist.entropy(own)).sum().backward()
    expected = reference(dist, theirs)
    (expected.log_prob(actions) + 0.3 * expected.entropy()).sum().backward()
    torch.testing.assert_close(own.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dist", ALL, ids=str)
def test_evaluation_equals_autograds(dist):
    """Also where the standard deviation is at its lower bound."""
    head, free = torch.randn(2, 3, 5, dist.size), torch.randn(2, dist.free_size)
    head[0, 0, 0] = -60.0
    actions = dist.sample(dist.join(head, free), dist.draw_noise(torch.Generator(), (2, 3, 5, *dist.noise_shape)))
    by_log_prob, by_entropy = torch.randn(2, 2, 3, 5)
    leaves = [x.clone().requires_grad_() for x in (head, free)]
    params = dist.join(*leaves)
    (by_log_prob * dist.log_prob(params, actions) + by_entropy * dist.entropy(params)).sum().backward()
    terms = dist.terms(head.numpy(), free.numpy() if dist.free_size else None, actions.numpy())
    by_head, by_free = terms.gradient(by_log_prob.numpy(), by_entropy.numpy())
    result = [terms.log_prob, terms.entropy, by_head]
    expected = [dist.log_prob(params, actions), dist.entropy(params), leaves[0].grad]
    if dist.free_size:
        result, expected = [*result, by_free], [*expected, leaves[1].grad]
    for x, y in zip(result, expected, strict=True):
        torch.testing.assert_close(torch.tensor(x), y.detach(), rtol=1e-5, atol=1e-5)


def test_multi_categorical_is_a_product_over_all_joint_actions():
    """Literally: a joint action's probability is the product of its choices'; the entropy sums over all of them."""
    dist, logits = MultiCategorical((2, 3)), torch.tensor([0.3, -1.0, 2.0, 0.1, -0.7], dtype=torch.float64)
    one = [math.exp(x) for x in logits[:2].tolist()]
    two = [math.exp(x) for x in logits[2:].tolist()]
    joint = {(i, j): one[i] / sum(one) * two[j] / sum(two) for i in range(2) for j in range(3)}
    for (i, j), p in joint.items():
        assert dist.log_prob(logits, torch.tensor([i, 2 + j])).item() == pytest.approx(math.log(p))
    assert dist.entropy(logits).item() == pytest.approx(-sum(p * math.log(p) for p in joint.values()))
    assert dist.mode(logits).tolist() == [0, 2]
    assert dist.to_env(dist.mode(logits)).tolist() == [0, 0]


def test_slots_are_independent():
    """A slot's logits change neither what another slot samples nor its gradient."""
    dist, g = MultiCategorical((3, 4)), torch.Generator().manual_seed(0)
    params, noise = torch.randn(50, 7, generator=g), dist.draw_noise(g, (50, 7))
    other = torch.cat([params[:, :3], torch.randn(50, 4, generator=g)], -1)
    actions = dist.sample(params, noise)
    assert torch.equal(actions[:, 0], dist.sample(other, noise)[:, 0])
    assert torch.equal(actions[:, 0], Categorical(3).sample(params[:, :3], noise[:, :3]))
    weights = torch.randn(2, 50, generator=g)
    own, theirs = (
        dist.terms(x.numpy(), None, actions.numpy()).gradient(*weights.numpy())[0][:, :3] for x in (params, other)
    )
    assert (own == theirs).all()


def test_multi_categorical_frequencies():
    """100,000 draws of two slots, four standard errors; also of joint choices."""
    dist, n = MultiCategorical((2, 3)), 100_000
    logits = torch.tensor([0.4, -0.4, 1.0, 0.0, -1.0])
    choices = dist.to_env(dist.sample(logits, dist.draw_noise(torch.Generator().manual_seed(0), (n, 5))))
    p = (logits[:2].softmax(-1)[:, None] * logits[2:].softmax(-1)).flatten()
    observed = (3 * choices[:, 0] + choices[:, 1]).bincount(minlength=6) / n
    assert ((observed - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()


def test_closed_forms():
    assert Categorical(6).entropy(torch.zeros(6)).item() == pytest.approx(math.log(6))
    unit = torch.zeros(6)
    assert Gaussian(3).entropy(unit).item() == pytest.approx(1.5 * math.log(2 * math.pi * math.e))
    assert Gaussian(3).log_prob(unit, torch.zeros(3)).item() == pytest.approx(-1.5 * math.log(2 * math.pi))


def test_categorical_frequencies():
    """100,000 draws, four standard errors."""
    dist, n = Categorical(4), 100_000
    logits = torch.tensor([1.0, -0.5, 0.0, -3.0])
    noise = dist.draw_noise(torch.Generator().manual_seed(0), (n, 4))
    assert noise.isfinite().all()
    p, observed = logits.softmax(-1), dist.sample(logits, noise).bincount(minlength=4) / n
    assert ((observed - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()


def test_gaussian_moments():
    dist, n = Gaussian(2), 100_000
    params = torch.tensor([1.0, -2.0, math.log(0.5), math.log(3.0)])
    x = dist.sample(params, dist.draw_noise(torch.Generator().manual_seed(0), (n, 2)))
    std = torch.tensor([0.5, 3.0])
    assert ((x.mean(0) - params[:2]).abs() < 4 * std / math.sqrt(n)).all()
    assert ((x.std(0) / std - 1).abs() < 4 / math.sqrt(2 * n)).all()


def test_squashed_density_integrates_to_one():
    params, u = torch.tensor([0.4, 0.2], dtype=torch.float64), torch.linspace(-12, 12, 20001).double()
    density = SquashedGaussian(1).log_prob(params, u[:, None]).exp()
    assert torch.trapezoid(density, u.tanh()).item() == pytest.approx(1.0, abs=1e-4)


def test_squash_is_stable_far_out():
    dist, u = SquashedGaussian(1), torch.tensor([[-300.0], [-20.0], [0.0], [20.0], [300.0]])
    log_slope = Gaussian(1).log_prob(torch.zeros(2), u) - dist.log_prob(torch.zeros(2), u)
    torch.testing.assert_close(log_slope, math.log(4) - 2 * u[:, 0].abs() - 2 * math.log1p(1) * (u[:, 0] == 0))


def test_squash_does_not_change_ratios():
    params, actions = draw(SquashedGaussian(3), 10)
    other = params + 0.1
    squashed = SquashedGaussian(3).log_prob(other, actions) - SquashedGaussian(3).log_prob(params, actions)
    plain = Gaussian(3).log_prob(other, actions) - Gaussian(3).log_prob(params, actions)
    torch.testing.assert_close(squashed, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dist", ALL, ids=str)
def test_mode_has_no_smaller_density(dist):
    params, actions = draw(dist, 50)
    if not isinstance(dist, SquashedGaussian):  # the mode before tanh is not the density's after it
        assert (dist.log_prob(params, dist.mode(params)) >= dist.log_prob(params, actions)).all()
    assert dist.mode(params).shape == actions.shape
    assert dist.mode(params).dtype == actions.dtype


def test_to_env():
    low, high = torch.tensor([-1.0, 0.0, -2.0]), torch.tensor([1.0, 3.0, 5.0])
    u = torch.tensor([[-100.0, -100.0, -100.0], [0.0, 0.0, 0.0], [100.0, 100.0, 100.0]])
    torch.testing.assert_close(Gaussian(3).to_env(u, low, high), torch.stack([low, torch.zeros(3), high]))
    torch.testing.assert_close(SquashedGaussian(3).to_env(u, low, high), torch.stack([low, (low + high) / 2, high]))
    actions = torch.tensor([0, 1])
    assert Categorical(2).to_env(actions) is actions
    assert Categorical(2, start=-1).to_env(actions).tolist() == [-1, 0]


@pytest.mark.parametrize("actions", ["clip", "squash"])
@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([3, 1, 4]),
        spaces.Discrete(3),
        spaces.Discrete(4, start=7),
        spaces.Box(-1, 2, (3,)),
        spaces.Box(-0.4, 0.4, (1,)),
    ],
    ids=str,
)
def test_every_action_is_in_the_space(space, actions):
    dist = distribution(space, NetworkSettings(actions=actions))
    bounds = (torch.tensor(space.low), torch.tensor(space.high)) if isinstance(space, spaces.Box) else ()
    _, stored = draw(dist, 200)
    for action in dist.to_env(stored, *bounds).numpy():
        assert space.contains(action.astype(space.dtype))


def test_settings_choose_the_distribution():
    box = spaces.Box(-1, 1, (3,))
    assert distribution(box, NetworkSettings()) == Gaussian(3)
    assert distribution(box, NetworkSettings(actions="squash")) == SquashedGaussian(3)
    assert distribution(spaces.Box(-np.inf, np.inf, (2,)), NetworkSettings()) == Gaussian(2)
    assert distribution(box, NetworkSettings(std="softplus", log_std=0.0)) == Gaussian(3, start=1.0)
    assert distribution(spaces.Discrete(4, start=2), NetworkSettings()) == Categorical(4, start=2)


@pytest.mark.parametrize(
    ("space", "actions"),
    [
        (spaces.Box(-np.inf, np.inf, (2,)), "squash"),
        (spaces.Box(-1, 1, (2, 2)), "clip"),
        (spaces.MultiDiscrete([2, 3], start=[0, 1]), "clip"),
        (spaces.MultiBinary(3), "clip"),
    ],
    ids=str,
)
def test_refusals_are_one_line(space, actions):
    with pytest.raises(ValueError) as refusal:
        distribution(space, NetworkSettings(actions=actions))
    assert "\n" not in str(refusal.value)


def test_join():
    dist, heads, log_std = Gaussian(2), torch.randn(3, 5, 7, 2), torch.randn(3, 2)
    params = dist.join(heads, log_std)
    assert params.shape == (3, 5, 7, dist.size + dist.free_size)
    assert torch.equal(params[..., :2], heads)
    assert torch.equal(params[1, 4, 6, 2:], log_std[1])
    logits = torch.randn(3, 5, 4)
    assert Categorical(4).join(logits) is logits


def test_std_softplus_starts_at_setting():
    """The network's standard deviation is a softplus that starts at `std_start`."""
    dist, head = Gaussian(2, start=0.3), torch.tensor([[0.5, -1.0, 0.0, 0.0], [0.5, -1.0, 2.0, -200.0]])
    mean, log_std = dist.join(head).chunk(2, -1)
    assert torch.equal(mean, head[:, :2])
    assert log_std[0].exp().tolist() == pytest.approx([0.3, 0.3])
    raw = math.log(math.exp(0.3) - 1)
    assert log_std[1].exp().tolist() == pytest.approx([math.log1p(math.exp(2 + raw)), 1e-6])


def test_variance_softplus_starts_at_squared_setting():
    """A3C's form (Mnih et al. 2016, section 9): the variance is a softplus that starts at the squared setting."""
    dist = distribution(spaces.Box(-1, 1, (1,)), NetworkSettings(std="softplus_variance", log_std=math.log(0.3)))
    _, log_std = dist.join(torch.tensor([[0.5, 0.0], [0.5, 2.0], [0.5, -200.0]])).chunk(2, -1)
    raw = math.log(math.exp(0.09) - 1)
    assert log_std.exp().square().flatten().tolist() == pytest.approx([0.09, math.log1p(math.exp(2 + raw)), 1e-12])


@pytest.mark.parametrize("std", ["softplus", "softplus_variance"])
def test_extreme_deviations_have_finite_gradients(std: str):
    """Also a wide start, and outputs of the network far below the smallest deviation."""
    dist = distribution(spaces.Box(-1, 1, (1,)), NetworkSettings(std=std, log_std=10.0))
    assert dist.join(torch.zeros(1, 2))[0, 1].item() == pytest.approx(10.0)
    terms = dist.terms(np.array([[[0.0, -1e6]]], np.float32), None, np.zeros((1, 1, 1), np.float32))
    ones = np.ones((1, 1, 1), np.float32)
    assert terms.gradient(ones[..., 0], ones[..., 0])[0][0, 0, 1] == 0.0


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("dist", ALL, ids=str)
def test_member_is_bit_identical_alone_and_in_slot(dist, members):
    """Forward and backward, through `join`, on a batch whose rows are no multiple of a vector register."""
    g = torch.Generator().manual_seed(0)
    head, free = torch.randn(4, 21, dist.size, generator=g), torch.randn(4, dist.free_size, generator=g)
    noise = dist.draw_noise(g, (4, 21, *dist.noise_shape))

    def everything(slots):
        h, f = head[slots].clone().requires_grad_(), free[slots].clone().requires_grad_()
        params = dist.join(h, f)
        with torch.no_grad():
            actions = dist.sample(params, noise[slots])
        outputs = dist.log_prob(params, actions), dist.entropy(params)
        sum(x.sum() for x in outputs).backward()
        grads = [h.grad, f.grad if f.grad is not None else f]
        known = f.detach().numpy() if dist.free_size else None
        inner = (x[:, :, None] for x in (h.detach(), actions))  # [P, T, B = 1, ...]
        terms = dist.terms(next(inner).numpy(), known, next(inner).numpy())
        slopes = terms.gradient(terms.log_prob, np.ascontiguousarray(terms.entropy))
        closed = [torch.tensor(x) for x in (terms.log_prob, terms.entropy, *slopes) if x is not None]
        return [x.detach() for x in (params, actions, *outputs, *grads, *closed)]

    whole = everything(slice(0, 4))
    for start in range(0, 4, members):
        slots = slice(start, start + members)
        for x, y in zip(whole, everything(slots), strict=True):
            assert torch.equal(x[slots], y)
