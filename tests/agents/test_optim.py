"""Flat optimizers against torch.optim, the papers' formulas, and independence of the members."""

import numpy as np
import pytest
import torch

from pbtrl.agents import optim
from tests.agents import oracles

D = 48


def rmsprop_state(params):
    return {"mean_square": torch.ones_like(params)}


def adam_state(params):
    steps = torch.zeros(len(params), dtype=torch.int64)
    return {"m": torch.zeros_like(params), "v": torch.zeros_like(params), "steps": steps}


OPTIMISERS = {
    "rmsprop": (optim.rmsprop, rmsprop_state, {"learning_rate": 0.01, "decay": 0.9, "epsilon": 1e-3}),
    "adam": (optim.adam, adam_state, {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-5}),
}
both = pytest.mark.parametrize("name", OPTIMISERS)


def data(members, updates=7, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    params = torch.randn(members, D, generator=g, dtype=torch.float64).to(dtype)
    return params, torch.randn(updates, members, D, generator=g, dtype=torch.float64).to(dtype)


def run(name, params, gradients, active=None, **changes):
    """Apply gradients `[updates, k, D]` under hyperparameters that are numbers or `[k]`."""
    step, fresh, defaults = OPTIMISERS[name]
    params = params.clone()
    state = fresh(params)
    hyperparameters = {
        key: torch.as_tensor(value, dtype=params.dtype).expand(len(params))
        for key, value in (defaults | changes).items()
    }
    for u, grads in enumerate(gradients):
        now = torch.ones(len(params), dtype=torch.bool) if active is None else active[u]
        step(params, grads.clone(), *state.values(), **hyperparameters, active=now)
    return params, state


def test_rmsprop_equals_tensorflow():
    params, gradients = data(2, dtype=torch.float64)
    got, state = run("rmsprop", params, gradients, learning_rate=[0.1, 0.003], epsilon=[0.1, 1e-5])
    for p, (rate, epsilon) in enumerate([(0.1, 0.1), (0.003, 1e-5)]):
        expected, mean_square = oracles.rmsprop(
            params[p].numpy(), gradients[:, p].numpy(), learning_rate=rate, decay=0.9, epsilon=epsilon
        )
        np.testing.assert_allclose(got[p], expected, rtol=1e-12)
        np.testing.assert_allclose(state["mean_square"][p], mean_square, rtol=1e-12)


def test_rmsprop_without_epsilon_equals_torch():
    """Where epsilon does not matter the two forms differ only in where the mean square starts."""
    params, gradients = data(1, dtype=torch.float64)
    got, _ = run("rmsprop", params, gradients, epsilon=0.0)
    theirs = params[0].clone().requires_grad_()
    reference = torch.optim.RMSprop([theirs], lr=0.01, alpha=0.9, eps=0.0)
    reference.state[theirs] = {"step": torch.tensor(0.0), "square_avg": torch.ones_like(theirs)}
    for grads in gradients:
        theirs.grad = grads[0].clone()
        reference.step()
    torch.testing.assert_close(got[0], theirs.detach(), rtol=1e-12, atol=1e-12)


def test_epsilon_inside_the_root():
    """A first tiny gradient moves by lr g / sqrt(decay + epsilon), not by lr g / (1 + epsilon)."""
    params, grads = torch.zeros(1, 16), torch.full((1, 1, 16), 1e-6)
    got, _ = run("rmsprop", params, grads, learning_rate=1.0, decay=1.0, epsilon=3.0)
    torch.testing.assert_close(got, torch.full((1, 16), -0.5e-6))


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_adam_equals_torch(members, dtype, tolerance):
    params, gradients = data(members, 30, dtype)
    params, state = params.clone(), adam_state(params)
    theirs = params.clone().requires_grad_()
    reference = torch.optim.Adam([theirs], lr=3e-3, betas=(0.9, 0.999), eps=1e-5)
    for grads in gradients:
        theirs.grad = grads.clone()
        reference.step()
        optim.adam(
            params, grads.clone(), *state.values(), learning_rate=torch.full((members,), 3e-3, dtype=dtype),
            epsilon=1e-5, active=torch.ones(members, dtype=torch.bool),
        )  # fmt: skip
    torch.testing.assert_close(params, theirs.detach(), rtol=tolerance, atol=tolerance)
    assert state["steps"].tolist() == [30] * members


def test_adam_equals_the_paper():
    params, gradients = data(1, dtype=torch.float64)
    got, state = run("adam", params, gradients)
    literal = oracles.adam(
        params[0].numpy(), gradients[:, 0].numpy(), learning_rate=0.01, beta1=0.9, beta2=0.99, epsilon=1e-5
    )
    for x, y in zip((got, state["m"], state["v"]), literal, strict=True):
        np.testing.assert_allclose(x[0], y, rtol=1e-12)


@both
@pytest.mark.parametrize("members", [1, 2, 4])
def test_member_is_bit_identical_alone_and_in_slot(name, members):
    """Each with its own hyperparameters, in every slot of cohorts of 1, 2 and 4."""
    params, gradients = data(4)
    rates, epsilons = torch.tensor([0.1, 0.03, 0.007, 1e-5]), torch.tensor([1.0, 0.1, 1e-5, 0.0])
    changes = {"learning_rate": rates, "epsilon": epsilons}
    if name == "rmsprop":
        changes["decay"] = torch.tensor([0.99, 0.5, 0.0, 1.0])
    whole, state = run(name, params, gradients, **changes)
    for start in range(0, 4, members):
        slots = slice(start, start + members)
        own = {key: value[slots] for key, value in changes.items()}
        part, part_state = run(name, params[slots], gradients[:, slots], **own)
        assert torch.equal(whole[slots], part)
        for key, value in state.items():
            assert torch.equal(value[slots], part_state[key])


@both
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_inactive_member_is_unchanged(name, poison):
    """Skipped updates change no bit of the skipped member, the sign of -0.0 included, nor of the others."""
    params, gradients = data(3)
    params[:, 5] = -0.0
    active = torch.ones(7, 3, dtype=torch.bool)
    active[2:5, 1] = False
    gradients[2:5, 1] = poison
    got, state = run(name, params, gradients, active)
    clean, clean_state = run(name, params, data(3)[1])
    short, short_state = run(name, params[1:2], gradients[[0, 1, 5, 6], 1:2])
    assert torch.equal(got[[0, 2]], clean[[0, 2]])
    assert torch.equal(got[1].view(torch.int32), short[0].view(torch.int32))
    for key in state:
        assert torch.equal(state[key][[0, 2]], clean_state[key][[0, 2]])
        assert torch.equal(state[key][1], short_state[key][0])


@both
def test_never_active_member_is_never_changed(name):
    params, gradients = data(2)
    params[0, ::3] = -0.0
    active = torch.zeros(7, 2, dtype=torch.bool)
    got, state = run(name, params, torch.full_like(gradients, float("nan")), active)
    assert torch.equal(got.view(torch.int32), params.view(torch.int32))
    for key, value in OPTIMISERS[name][1](params).items():
        assert torch.equal(state[key], value)


@both
@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_padding_and_dead_units_stay_at_zero(name, decay):
    """A gradient that is always 0 moves nothing, even with an epsilon of 0 under a mean square of 0."""
    params, gradients = data(1, 300)
    gradients[..., 40:] = 0.0
    params[:, 40:] = 0.0
    got, _ = run(name, params, gradients, epsilon=0.0, **{"decay" if name == "rmsprop" else "beta2": decay})
    assert got.isfinite().all()
    assert not got[:, 40:].any()


@both
def test_descends_a_quadratic(name):
    step, fresh, _ = OPTIMISERS[name]
    params = torch.full((2, 16), 3.0)
    state, extra = fresh(params), {"decay": 0.9} if name == "rmsprop" else {}
    for _ in range(600):
        rates = torch.tensor([0.02, 0.0])
        active = torch.ones(2, dtype=torch.bool)
        step(params, 2 * params, *state.values(), learning_rate=rates, epsilon=1e-5, active=active, **extra)
    assert params[0].abs().max() < 0.05
    assert (params[1] == 3.0).all()


def test_clip():
    grads = torch.zeros(4, 16)
    grads[:, 0], grads[:, 1] = 3.0, -4.0
    grads[3] = 0.0
    kept = grads.clone()
    norms = optim.clip_by_global_norm(grads, torch.tensor([10.0, 1.0, 5.0, 0.0]))
    assert norms.tolist() == [5.0, 5.0, 5.0, 0.0]
    assert torch.equal(grads[[0, 2, 3]], kept[[0, 2, 3]])
    torch.testing.assert_close(grads[1], kept[1] / 5)


def test_clip_agrees_with_torch_and_reports_non_finite():
    params, gradients = data(3, 1)
    grads = gradients[0].clone()
    grads[1, 7] = float("nan")
    norms = optim.clip_by_global_norm(grads, torch.tensor([0.5, 0.5, float("inf")]))
    assert norms.isfinite().tolist() == [True, False, True]
    parameter = params[0].clone().requires_grad_()
    parameter.grad = gradients[0, 0].clone()
    torch.nn.utils.clip_grad_norm_([parameter], 0.5)
    torch.testing.assert_close(grads[0], parameter.grad, rtol=1e-5, atol=0)
    assert torch.equal(grads[2], gradients[0, 2])


@pytest.mark.parametrize("size", [16, 1008, 70000])
def test_clip_is_bit_identical_alone_and_in_slot(size):
    grads = torch.randn(4, size, generator=torch.Generator().manual_seed(0))
    whole = grads.clone()
    norms = optim.clip_by_global_norm(whole, torch.ones(4))
    for members in (1, 2):
        for start in range(0, 4, members):
            slots = slice(start, start + members)
            part = grads[slots].clone()
            assert torch.equal(optim.clip_by_global_norm(part, torch.ones(members)), norms[slots])
            assert torch.equal(part, whole[slots])
