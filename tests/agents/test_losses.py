"""Losses: values by hand and by rlax, gradients, masks, and independence of the members."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pbtrl.agents.losses import (
    better_half,
    categorical_kl,
    entropy_bonus,
    gaussian_kl_decoupled,
    lagrange_loss,
    normalize_advantages,
    policy_gradient_loss,
    value_loss,
    weights_and_temperature,
)
from tests.agents import oracles

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rlax_vmpo.json").read_text())["cases"]
LOSSES = [policy_gradient_loss, value_loss, lambda x, y, mask: entropy_bonus(x, mask)]


def batch(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(shape, generator=g) for _ in range(2))
    return x, y, torch.rand(shape, generator=g) < 0.8


def test_by_hand():
    x, y = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, -1.0, 9.0]])
    mask = torch.tensor([[True, True, False]])
    assert policy_gradient_loss(x, y, mask).tolist() == [-(4.0 - 2.0)]
    assert value_loss(x, y, mask).tolist() == [0.5 * (9.0 + 9.0)]
    assert entropy_bonus(x, mask).tolist() == [3.0]


def test_gradients():
    x, y, mask = batch(2, 7)
    x.requires_grad_()
    y.requires_grad_()
    policy_gradient_loss(x, y, mask).sum().backward()
    torch.testing.assert_close(x.grad, -y.detach() * mask)
    x.grad = None
    value_loss(x, y, mask).sum().backward()
    torch.testing.assert_close(x.grad, (x - y).detach() * mask)
    assert y.grad is None


def test_gradient_is_the_score_function():
    """-A grad log softmax = A (pi - one_hot)."""
    logits = torch.randn(1, 5, 3, generator=torch.Generator().manual_seed(1), requires_grad=True)
    actions, advantages = torch.tensor([[0, 2, 1, 1, 0]]), torch.tensor([[1.0, -2.0, 0.5, 3.0, 0.0]])
    log_probs = logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
    policy_gradient_loss(log_probs, advantages, torch.ones(1, 5)).sum().backward()
    one_hot = torch.nn.functional.one_hot(actions, 3)
    torch.testing.assert_close(logits.grad, advantages[..., None] * (logits.detach().softmax(-1) - one_hot))


@pytest.mark.parametrize("loss", LOSSES)
def test_shape_and_mask(loss):
    x, y, mask = batch(3, 4, 5)
    assert loss(x, y, mask).shape == (3,)
    changed = torch.where(mask, x, 99.0)
    assert torch.equal(loss(x, y, mask), loss(changed, y, mask))
    assert torch.equal(loss(x, y, mask), loss(x, y, mask.float()))


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("loss", [*LOSSES, lambda x, y, mask: normalize_advantages(x.flatten(1), mask.flatten(1))])
def test_member_is_bit_identical_alone_and_in_slot(loss, members):
    x, y, mask = batch(4, 20, 7)
    whole = loss(x, y, mask)
    for start in range(0, 4, members):
        slots = slice(start, start + members)
        assert torch.equal(loss(x[slots], y[slots], mask[slots]), whole[slots])


def test_normalized_advantages():
    x, _, mask = batch(3, 400)
    mask[2] = False
    result = normalize_advantages(5 * x + 3, mask)
    for p in range(2):
        live = result[p][mask[p]]
        assert live.mean().abs() < 1e-6
        assert abs(live.std(correction=0) - 1) < 1e-5
    assert not result[~mask].any()
    assert not normalize_advantages(torch.full((1, 5), 2.0), torch.ones(1, 5, dtype=torch.bool)).any()


@pytest.mark.parametrize("spread", [1e-6, 1e-3, 1e6])
def test_small_advantages_are_normalized_to_unit_variance(spread):
    x = spread * torch.tensor([[-1.0, 1.0, 1.0, -1.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, True, False]])
    expected = torch.tensor([[-1.0, 1.0, 1.0, -1.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(normalize_advantages(x, mask), expected, rtol=0.02, atol=0)


def double(*values):
    return [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance)


def golden(kind):
    return [case for case in GOLDEN if case["kind"] == kind]


def e_step(advantages, temperature, epsilon, mask=None):
    """V-MPO's E-step over the better half of the live samples."""
    live = torch.ones_like(advantages, dtype=torch.bool) if mask is None else mask.bool()
    return weights_and_temperature(advantages, temperature, epsilon, better_half(advantages, live))


def samples(members, count, seed=0):
    """Advantages with ties, and masks of which one leaves a single sample."""
    g = torch.Generator().manual_seed(seed)
    advantages = (3 * torch.randn(members, count, generator=g)).round(decimals=1)
    mask = torch.rand(members, count, generator=g) < 0.7
    mask[-1] = torch.arange(count) == count // 2
    return advantages, torch.logspace(-1, 1, members), mask


@pytest.mark.parametrize("case", golden("e_step"))
def test_vmpo_e_step_agrees_with_rlax(case):
    advantages, temperature = double(case["advantages"], case["temperature"])
    weights, loss = e_step(advantages, temperature, case["eps_temperature"])
    loss.backward()
    close(weights, case["weights"], 1e-9)
    close(loss.detach(), case["loss"], 1e-9)
    close(temperature.grad, case["gradient"], 1e-8)
    assert (weights > 0).sum() == case["samples"]


def test_vmpo_e_step_by_hand():
    """algorithms: A = (2, 1, 0, -1), eta 1, eps 0.1."""
    advantages, temperature = double([[2.0, 1.0, 0.0, -1.0]], [1.0])
    weights, loss = e_step(advantages, temperature, 0.1)
    loss.sum().backward()
    close(weights, [[0.731059, 0.268941, 0.0, 0.0]], 1e-6)
    close(loss.detach(), [1.720115], 1e-6)
    close(temperature.grad, [-0.010944], 1e-6)


def slope(advantages, temperature, epsilon):
    (eta,) = double(temperature)
    weights, loss = e_step(advantages, eta, epsilon)
    return torch.autograd.grad(loss, eta)[0].item(), weights


def test_best_temperature_reaches_epsilon():
    """dL/deta = eps - KL(psi || uniform on D~), 0 at eta*."""
    advantages, low, high = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64), 0.1, 10.0
    while high - low > 1e-10:
        middle = 0.5 * (low + high)
        gradient, weights = slope(advantages, middle, 0.1)
        divergence = sum(w * np.log(2 * w) for w in weights[:2].tolist())
        assert gradient == pytest.approx(0.1 - divergence, abs=1e-12)
        low, high = (middle, high) if gradient < 0 else (low, middle)
    assert low == pytest.approx(1.059947, abs=1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 33])
def test_vmpo_e_step_agrees_with_the_paper(count):
    advantages, temperature, mask = (x.double() for x in samples(4, count))
    epsilon = torch.tensor([0.01, 0.1, 0.5, 1.0], dtype=torch.float64)
    mask[:, 0] = 1
    weights, loss = e_step(advantages, temperature, epsilon, mask)
    for p in range(4):
        literal = oracles.vmpo(*(x[p].numpy() for x in (advantages, temperature, epsilon, mask)))
        close(weights[p], literal[0])
        close(loss[p], literal[1])


def test_shifting_all_advantages_changes_no_weight():
    advantages, temperature, mask = (x.double() for x in samples(3, 20))
    before, after = (e_step(advantages + c, temperature, 0.1, mask) for c in (0.0, 8.0))
    close(after[0], before[0])
    close(after[1], before[1] + 8.0)


@pytest.mark.parametrize("live", [1, 2, 3, 10, 11])
def test_equal_advantages_select_half_of_live_samples(live):
    mask = torch.arange(16).roll(3) < live
    weights, loss = e_step(torch.full((16,), 7.0), torch.tensor(2.0), 0.1, mask)
    half = max(1, live // 2)
    assert torch.equal(weights.nonzero()[:, 0], mask.nonzero()[:half, 0])
    close(weights[weights > 0], torch.full((half,), 1 / half), 1e-6)
    assert loss.item() == pytest.approx(7.2)


@pytest.mark.parametrize("temperature", [1e-8, 1e-3, 1e6])
def test_vmpo_e_step_is_stable(temperature):
    advantages, (eta,) = (
        torch.tensor([3e4, -3e4, 2e4, 1e4, -1.0, 0.0]),
        (torch.tensor(temperature, requires_grad=True),),
    )
    weights, loss = e_step(advantages, eta, 0.1)
    loss.backward()
    assert all(torch.isfinite(x).all() for x in (weights, loss, eta.grad))
    assert weights.sum().item() == pytest.approx(1.0)


def test_e_step_ignores_masked_samples():
    advantages, temperature, mask = samples(4, 20)
    mask[1] = False
    eta = temperature.requires_grad_()
    expected = e_step(advantages, eta, 0.1, mask)
    for junk in (99.0, float("nan"), float("inf")):
        weights, loss = e_step(torch.where(mask, advantages, junk), eta, 0.1, mask.float())
        assert torch.equal(weights, expected[0])
        assert torch.equal(loss, expected[1])
    eta.grad = None
    loss.sum().backward()
    assert not weights[1].any()
    assert loss[1] == 0
    assert eta.grad[1] == 0
    assert torch.isfinite(eta.grad).all()


def test_e_step_gradient_reaches_only_the_temperature():
    advantages, temperature, mask = samples(3, 20)
    advantages.requires_grad_()
    temperature.requires_grad_()
    weights, loss = e_step(advantages, temperature, 0.1, mask)
    loss.sum().backward()
    assert not weights.requires_grad
    assert advantages.grad is None
    assert temperature.grad.all()


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("count", [5, 16, 139])
def test_vmpo_terms_are_bit_identical_alone_and_in_slot(members, count):
    advantages, temperature, mask = samples(4, count)
    g = torch.Generator().manual_seed(1)
    logits, target = (torch.randn(4, count, 5, generator=g) for _ in range(2))
    epsilon = torch.tensor([0.01, 0.1, 0.5, 1.0])

    def terms(slots):
        leaves = temperature[slots].clone().requires_grad_(), logits[slots].clone().requires_grad_()
        weights, loss = e_step(advantages[slots], leaves[0], epsilon[slots], mask[slots])
        kl = categorical_kl(leaves[1], target[slots])
        parts = gaussian_kl_decoupled(leaves[1], (0.1 * leaves[1]).exp(), target[slots], (0.1 * target[slots]).exp())
        losses = [loss, *(lagrange_loss(leaves[0], epsilon[slots], x, mask[slots]) for x in (kl, *parts))]
        sum(x.sum() for x in losses).backward()
        return weights, *losses, kl, *parts, *(leaf.grad for leaf in leaves)

    whole = terms(slice(None))
    for start in range(0, 4, members):
        slots = slice(start, start + members)
        for x, y in zip(whole, terms(slots), strict=True):
            assert torch.equal(x[slots], y)


@pytest.mark.parametrize("case", golden("gaussian"))
def test_gaussian_divergences_agree_with_rlax(case):
    inputs = double(*(case[name] for name in ("mean", "std", "target_mean", "target_std")))
    kl_mean, kl_cov = gaussian_kl_decoupled(*inputs)
    close(kl_mean.detach(), case["kl_mean"])
    close(kl_cov.detach(), case["kl_cov"])


@pytest.mark.parametrize("width", [1, 4])
def test_gaussian_divergences_agree_with_full_matrices(width):
    g = torch.Generator().manual_seed(0)
    mean, target_mean = (torch.randn(6, width, generator=g, dtype=torch.float64) for _ in range(2))
    std, target_std = (torch.randn(6, width, generator=g, dtype=torch.float64).exp() for _ in range(2))
    kl_mean, kl_cov = gaussian_kl_decoupled(mean, std, target_mean, target_std)
    for i in range(6):
        m, t = mean[i].numpy(), target_mean[i].numpy()
        cov, target_cov = (np.diag(x[i].square().numpy()) for x in (std, target_std))
        close(kl_mean[i], oracles.gaussian_kl(t, target_cov, m, target_cov))
        close(kl_cov[i], oracles.gaussian_kl(t, target_cov, t, cov))
    together = torch.distributions.kl_divergence(
        torch.distributions.Normal(target_mean, std), torch.distributions.Normal(mean, std)
    )
    alone, none = gaussian_kl_decoupled(mean, std, target_mean, std)
    close(alone + none, together.sum(-1))


def test_small_divergences_of_covariances_survive_float32():
    """The constraint is near 1e-5 nats; a form that subtracts numbers near 1 has errors of 1e-7 per dimension."""
    target = torch.linspace(0.05, 2.0, 40)
    std = target * (1 + 1e-4)
    same = torch.zeros(40)
    exact = gaussian_kl_decoupled(*(x.double() for x in (same, std, same, target)))[1]
    assert gaussian_kl_decoupled(same, std, same, target)[1].item() == pytest.approx(exact.item(), rel=1e-2)


@pytest.mark.parametrize("case", golden("categorical"))
def test_categorical_divergence_and_constraint_agree_with_rlax(case):
    logits, multiplier = double([case["logits"]], [case["multiplier"]])
    (target,) = double([case["target_logits"]])
    kl = categorical_kl(logits, target)
    loss = lagrange_loss(multiplier, case["epsilon"], kl, torch.ones_like(kl))
    loss.sum().backward()
    close(kl[0].detach(), case["kl"])
    close(loss[0].detach(), case["loss"])
    close(multiplier.grad, [case["multiplier_gradient"]])
    close(logits.grad, [case["logits_gradient"]])
    assert target.grad is None


def test_categorical_divergence_has_the_right_direction():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    online, target = (torch.tensor(np.log(x)) for x in (p, q))
    close(categorical_kl(online, target), oracles.categorical_kl(q, p))
    assert abs(oracles.categorical_kl(q, p) - oracles.categorical_kl(p, q)) > 0.05
    close(categorical_kl(online + 3.0, online), 0.0)


def test_divergences_hold_the_target_constant():
    """One gradient step away from the target makes the divergence grow; no gradient reaches the target."""
    (logits,) = double([0.3, -0.2, 1.0])
    target = logits.detach().clone().requires_grad_()
    log_prob = logits.log_softmax(-1)[1]
    stepped = logits + 0.1 * torch.autograd.grad(log_prob, logits)[0]
    divergence = categorical_kl(stepped, target)
    assert divergence > 1e-5
    kl_mean, kl_cov = gaussian_kl_decoupled(stepped, stepped.exp(), target, target.exp())
    assert min(kl_mean, kl_cov) > 1e-5
    (divergence + kl_mean + kl_cov).backward()
    assert logits.grad.any()
    assert target.grad is None


def test_constraint_by_hand():
    """Live divergences have mean 0.3 and 0.1 around epsilon 0.2: alpha rises, falls, and rests where nothing lives."""
    (kl,) = double([[0.2, 0.4, 9.0], [0.1, 0.1, 0.1], [1.0, 1.0, 1.0]])
    (multiplier,) = double([2.0, 3.0, 4.0])
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    loss = lagrange_loss(multiplier, 0.2, kl, mask)
    loss.sum().backward()
    close(loss.detach(), [2.0 * 0.2, 3.0 * 0.2, 0.0])
    close(multiplier.grad, [-0.1, 0.1, 0.0])
    close(kl.grad, [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    epsilon = torch.tensor([0.2, 0.2, 0.2], dtype=torch.float64)
    assert torch.equal(lagrange_loss(multiplier, epsilon, kl[:, :, None], mask[:, :, None]), loss)


def test_vmpo_bandit_finds_best_arm_at_its_epsilon():
    """Two members with their own epsilon: while the policy moves, each target is about that far from the last."""
    g, means, epsilon = torch.Generator().manual_seed(0), torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0]), (0.001, 0.004)
    logits, eta, alpha = (
        torch.full(shape, x, requires_grad=True) for shape, x in (((2, 5), 0.0), ((2,), 1.0), ((2,), 1.0))
    )
    adam = torch.optim.Adam([{"params": [logits], "lr": 0.02}, {"params": [eta, alpha], "lr": 0.5}])
    moved = []
    for _ in range(30):
        target = logits.detach().clone()
        for _ in range(20):
            arms = torch.multinomial(target.softmax(-1), 400, replacement=True, generator=g)
            rewards = means[arms] + 0.3 * torch.randn(arms.shape, generator=g)
            psi, loss = e_step(rewards - rewards.mean(-1, keepdim=True), eta, 0.1)
            kl = categorical_kl(logits, target)[:, None]
            loss = loss - (psi * logits.log_softmax(-1).gather(-1, arms)).sum(-1)
            loss = loss + lagrange_loss(alpha, torch.tensor(epsilon), kl, torch.ones_like(kl))
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
            with torch.no_grad():
                eta.clamp_(1e-8)
                alpha.clamp_(1e-8)
        moved.append(categorical_kl(logits.detach(), target))
    pace = torch.stack(moved)[2:12].mean(0) / torch.tensor(epsilon)
    assert ((pace > 0.5) & (pace < 2.5)).all()
    best = logits.detach().softmax(-1)[:, -1]
    assert best[1] > 0.9
    assert 0.3 < best[0] < best[1]
