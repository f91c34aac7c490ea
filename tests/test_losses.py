"""Loss sums: values by hand, gradients, masks, and independence of the members."""

import pytest
import torch

from agents.losses import entropy_bonus, normalise_advantages, policy_gradient_loss, value_loss

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
@pytest.mark.parametrize("loss", [*LOSSES, lambda x, y, mask: normalise_advantages(x.flatten(1), mask.flatten(1))])
def test_a_member_alone_equals_its_slot_bit_for_bit(loss, members):
    x, y, mask = batch(4, 20, 7)
    whole = loss(x, y, mask)
    for start in range(0, 4, members):
        slots = slice(start, start + members)
        assert torch.equal(loss(x[slots], y[slots], mask[slots]), whole[slots])


def test_normalised_advantages():
    x, _, mask = batch(3, 400)
    mask[2] = False
    result = normalise_advantages(5 * x + 3, mask)
    for p in range(2):
        live = result[p][mask[p]]
        assert live.mean().abs() < 1e-6
        assert abs(live.std(correction=0) - 1) < 1e-5
    assert not result[~mask].any()
    assert not normalise_advantages(torch.full((1, 5), 2.0), torch.ones(1, 5, dtype=torch.bool)).any()
