"""Return targets against transcribed papers, rlax's answers, and identities."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pbtrl.agents.losses import policy_gradient_loss
from pbtrl.agents.returns import ReturnInputs, effective_unroll, gae, n_step_returns, unroll_cuts, vtrace
from tests.agents import oracles

FOLDER = Path(__file__).parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "rlax_vtrace.json").read_text())
LEAKY, GAE, N_STEP = (
    json.loads((FOLDER / f"rlax_{x}.json").read_text())["cases"] for x in ("leaky_vtrace", "gae", "n_step")
)
NAMES = ("log_rhos", "discounts", "rewards", "values", "bootstrap_value")


def problem(time, *batch, seed=0):
    """float64 inputs whose ratios lie on both sides of every bar and whose discounts are sometimes 0."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    ends = torch.rand(time, *batch, generator=g) < 0.15
    discounts = torch.where(ends, 0.0, 0.95).double()
    return (
        1.5 * normal(time, *batch),
        discounts,
        normal(time, *batch),
        2 * normal(time, *batch),
        normal(*batch),
    )


def some_cuts(time, *batch, seed=0):
    return torch.rand(time, *batch, generator=torch.Generator().manual_seed(seed)) < 0.25


def read(case, *names):
    return [torch.tensor(case[name], dtype=torch.bool if name == "cuts" else torch.float64) for name in names]


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", GOLDEN)
def test_agrees_with_rlax(case):
    inputs = [torch.tensor(case[name], dtype=torch.float64) for name in NAMES]
    bars = {name: case[name] for name in ("rho_bar", "pg_rho_bar", "lambda_")}
    vs, advantages = vtrace(*inputs, c_bar=1.0, **bars)
    close(vs, torch.tensor(case["vs"], dtype=torch.float64))
    close(advantages, torch.tensor(case["pg_advantages"], dtype=torch.float64))


@pytest.mark.parametrize("cases", [GOLDEN, LEAKY])
def test_golden_inputs_cross_every_bar(cases):
    ratios = np.exp(np.concatenate([case["log_rhos"] for case in cases]))
    assert ratios.min() < 0.5 < 4.0 < ratios.max()
    assert any(0.0 in case["discounts"][:-1] for case in cases)


@pytest.mark.parametrize("batch", [(), (3,), (2, 5)])
@pytest.mark.parametrize("time", [1, 2, 9])
@pytest.mark.parametrize("lambda_", [1.0, 0.9, 0.0])
def test_agrees_with_the_paper(batch, time, lambda_):
    inputs = problem(time, *batch)
    bars = {"rho_bar": 1.3, "c_bar": 0.8, "pg_rho_bar": 2.0, "lambda_": lambda_}
    actual = torch.stack(vtrace(*inputs, **bars), 1).reshape(time, 2, -1)
    columns = [x.reshape(*x.shape[: x.ndim - len(batch)], -1).numpy() for x in inputs]
    for column in range(actual.shape[-1]):
        close(actual[..., column].T, np.stack(oracles.vtrace(*(x[..., column] for x in columns), **bars)))


OFF, CUT = (0.5, 2, 1, 0.25), (0.9, 0.9, 0, 0.9)


@pytest.mark.parametrize(
    ("ratios", "discounts", "lambda_", "vs", "advantages"),
    [
        (OFF, CUT, 1.0, (0.5025, -0.55, 0.5, 1.4075), (0.0025, -0.75, 0.8, 0.4075)),
        (OFF, CUT, 0.9, (0.50709, -0.622, 0.5, 1.4075), (0.00709, -0.822, 0.8, 0.4075)),
        ((1,) * 4, (0.9,) * 4, 1.0, (2.42227, 1.5803, 2.867, 2.63), (1.92227, 1.3803, 3.167, 1.63)),
    ],
)
def test_worked_by_hand(ratios, discounts, lambda_, vs, advantages):
    ratios, discounts, vs, advantages = (
        torch.tensor(x, dtype=torch.float64) for x in (ratios, discounts, vs, advantages)
    )
    rewards = torch.tensor([1, -1, 0.5, 2], dtype=torch.float64)
    values = torch.tensor([0.5, 0.2, -0.3, 1.0], dtype=torch.float64)
    bootstrap = torch.tensor(0.7, dtype=torch.float64)
    actual = vtrace(ratios.log(), discounts, rewards, values, bootstrap, lambda_=lambda_)
    close(actual[0], vs)
    close(actual[1], advantages)


def test_steps_of_a_block_have_the_targets_of_the_functions():
    """Bit for bit, also in some envs of some members, and with other rewards and discounts."""
    log_rhos, discounts, rewards, values, bootstrap = problem(9, 4, 5)
    cuts, lambda_, clips = some_cuts(9, 4, 5), torch.tensor([1.0, 0.9, 0.5, 0.0]), torch.tensor([1.0, 0.5, 2.0, 1.5])
    block = {"rewards": rewards, "discounts": discounts, "cuts": cuts}
    steps = ReturnInputs(lambda_=lambda_, **{name: x.movedim(0, 1) for name, x in block.items()})
    members, envs = slice(1, 3), slice(2, 5)
    at, after = (slice(None), members, envs), torch.cat([values, bootstrap[None]])[:, members, envs].movedim(0, 1)
    bars = {"rho_bar": clips[members], "c_bar": 0.8, "pg_rho_bar": clips[members] + 1}
    part = steps.part(members, envs)
    for factor in (1.0, 0.5):
        known = {"rewards": factor * rewards[at], "discounts": factor * discounts[at], "values": values[at]}
        known |= {"bootstrap_value": bootstrap[at[1:]], "cuts": cuts[at], "lambda_": lambda_[members, None]}
        wide = {name: x[:, None] if isinstance(x, torch.Tensor) else x for name, x in bars.items()}
        own = replace(part, rewards=factor * part.rewards, discounts=factor * part.discounts)
        results = *own.gae(after), *own.vtrace(after, log_rhos[at].movedim(0, 1), **bars)
        for result, expected in zip(results, (*gae(**known), *vtrace(log_rhos[at], **known, **wide)), strict=True):
            assert torch.equal(result.movedim(1, 0), expected)


def test_on_policy_is_the_n_step_return():
    _, discounts, rewards, values, bootstrap = problem(12)
    vs, advantages = vtrace(torch.zeros(12, dtype=torch.float64), discounts, rewards, values, bootstrap)
    returns = oracles.n_step_return(discounts.numpy(), rewards.numpy(), bootstrap.item())
    close(vs, returns)
    close(advantages, returns - values.numpy())


def test_lambda_zero_on_policy_is_td_zero():
    _, discounts, rewards, values, bootstrap = problem(12, 3)
    vs, advantages = vtrace(torch.zeros(12, 3, dtype=torch.float64), discounts, rewards, values, bootstrap, lambda_=0.0)
    targets = rewards + discounts * torch.cat([values[1:], bootstrap[None]])
    close(vs, targets)
    close(advantages, targets - values)


def test_zero_discount_cuts_the_future_from_the_past():
    log_rhos, discounts, rewards, values, bootstrap = problem(10, 4)
    discounts[5] = 0.0
    before = vtrace(log_rhos, discounts, rewards, values, bootstrap)
    after = vtrace(*(torch.cat([x[:6], x[6:] + 7.0]) for x in (log_rhos, discounts, rewards, values)), bootstrap + 7.0)
    for x, y in zip(before, after, strict=True):
        assert torch.equal(x[:6], y[:6])
        assert not torch.equal(x[6:], y[6:])


def test_no_gradient_leaves():
    inputs = [x.requires_grad_() for x in problem(5, 2)]
    vs, advantages = vtrace(*inputs, lambda_=torch.tensor(0.9, requires_grad=True))
    assert not vs.requires_grad
    assert not advantages.requires_grad
    assert all(x.grad is None for x in inputs)


def test_bars_per_member_equal_separate_runs():
    inputs = problem(8, 3, 4)
    bars = {
        name: torch.tensor(x, dtype=torch.float64)[:, None]
        for name, x in {
            "rho_bar": (1.0, 0.5, 3.0),
            "c_bar": (1.0, 0.4, 2.0),
            "pg_rho_bar": (0.7, 1.0, 5.0),
            "lambda_": (1.0, 0.9, 0.5),
        }.items()
    }
    together = vtrace(*inputs, **bars)
    for p in range(3):
        alone = vtrace(*(x[..., p, :] for x in inputs), **{name: x[p].item() for name, x in bars.items()})
        for x, y in zip(together, alone, strict=True):
            assert torch.equal(x[:, p], y)


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("envs", [1, 3, 8])
def test_member_is_bit_identical_alone_and_in_slot(members, envs):
    inputs = [x.float() for x in problem(20, 4, envs)]
    cuts = unroll_cuts(torch.tensor([20, 5, 7, 1]), 20)
    whole = vtrace(*inputs, cuts=cuts)
    for start in range(0, 4, members):
        slots = slice(start, start + members)
        part = vtrace(*(x[:, slots] for x in inputs[:4]), inputs[4][slots], cuts=cuts[:, slots])
        for x, y in zip(whole, part, strict=True):
            assert torch.equal(x[:, slots], y)


@pytest.mark.parametrize("lambda_", [1.0, 0.9])
def test_cuts_equal_separate_pieces(lambda_):
    length, bars = 23, {"rho_bar": 1.3, "c_bar": 0.8, "pg_rho_bar": 2.0, "lambda_": lambda_}
    inputs = problem(length, length, 2)  # member p has unroll length p + 1
    cuts = unroll_cuts(torch.arange(1, length + 1), length)
    vs, advantages = vtrace(*inputs, cuts=cuts, **bars)
    following = torch.cat([inputs[3][1:], inputs[4][None]])
    for p in range(length):
        for start in range(0, length, p + 1):
            piece = slice(start, min(start + p + 1, length))
            alone = vtrace(*(x[piece, p] for x in inputs[:4]), following[piece, p][-1], **bars)
            assert torch.equal(vs[piece, p], alone[0])
            assert torch.equal(advantages[piece, p], alone[1])
        columns = [x[..., p, 0].numpy() for x in inputs]
        literal = oracles.vtrace_in_pieces(*columns, cuts=cuts[:, p].numpy(), **bars)
        close(vs[:, p, 0], literal[0])
        close(advantages[:, p, 0], literal[1])


def test_cut_passes_the_value_and_nothing_else():
    log_rhos, discounts, rewards, values, bootstrap = problem(6)
    cuts = torch.tensor([False, False, True, False, False, True])
    vs, advantages = vtrace(log_rhos, discounts, rewards, values, bootstrap, cuts=cuts)
    rho = log_rhos[2].exp().clamp(max=1.0)
    delta = rewards[2] + discounts[2] * values[3] - values[2]
    close(vs[2], values[2] + rho * delta)
    close(advantages[2], rho * delta)


def test_every_unroll_length_gives_its_own_targets():
    """On the same data, no two of the lengths 5 to 50 in a block of 50 learn from the same targets."""
    one = problem(50, seed=3)
    one = (0.2 * one[0], torch.full_like(one[1], 0.97), *one[2:])
    lengths = torch.arange(5, 51)
    inputs = [x[..., None].expand(*x.shape, len(lengths)) for x in one]
    vs, _ = vtrace(*inputs, cuts=unroll_cuts(lengths, 50))
    targets = {tuple(column.tolist()) for column in vs.T}
    assert len(targets) == len(lengths)


def test_cut_positions():
    pictures = [
        "||||||||||",
        ".|.|.|.|.|",
        "..|..|..||",
        "...|...|.|",
        "....|....|",
        "......|..|",
        ".........|",
    ]
    cuts = unroll_cuts(torch.tensor([1, 2, 3, 4, 5, 7, 10]), 10)
    assert ["".join(".|"[int(cut)] for cut in column) for column in cuts.T] == pictures
    assert unroll_cuts(torch.tensor([11, 99]), 10).sum().item() == 2


def test_effective_unroll_is_measured():
    lengths = torch.arange(1, 21)
    assert torch.equal(effective_unroll(unroll_cuts(lengths, 20)), lengths)
    assert effective_unroll(unroll_cuts(torch.tensor([64]), 20)).tolist() == [20]
    drawn = torch.tensor([[c == "|" for c in row] for row in ["..|...|.|", "|.......|", ".........", "|||||||||"]]).T
    assert effective_unroll(drawn).tolist() == [4, 8, 9, 1]


@pytest.mark.parametrize("case", LEAKY)
def test_vtrace_with_cuts_without_clipping_agrees_with_rlax(case):
    """Leaky V-trace with alpha 0 is V-trace whose bars are all infinite; a step with lambda 0 is a cut."""
    bars = {"rho_bar": case["rho_bar"], "c_bar": 1.0, "pg_rho_bar": case["pg_rho_bar"]}
    if case["alpha"] == 0:
        bars = dict.fromkeys(bars, float("inf"))
    (cuts,) = read(case, "cuts")
    vs, advantages = vtrace(*read(case, *NAMES), lambda_=case["lambda_"], cuts=cuts, **bars)
    close(vs, case["vs"], 1e-9)
    close(advantages, case["pg_advantages"], 1e-9)


@pytest.mark.parametrize("case", GAE)
def test_gae_agrees_with_rlax(case):
    *inputs, cuts = read(case, *NAMES[1:], "cuts")
    targets, advantages = gae(*inputs, lambda_=case["lambda_"], cuts=cuts)
    close(targets, case["targets"])
    close(advantages, case["advantages"])


@pytest.mark.parametrize("case", N_STEP)
def test_n_step_returns_agree_with_rlax(case):
    discounts, rewards, bootstraps = read(case, "discounts", "rewards", "bootstraps")
    if "returns" in case:
        close(n_step_returns(discounts, rewards, bootstraps, *read(case, "cuts")), case["returns"])
        return
    time, n = len(rewards), case["n"]
    for start in range(time):  # rlax's window slides: cut where the one from `start` ends
        cuts = torch.arange(time) == start + n - 1
        close(n_step_returns(discounts, rewards, bootstraps, cuts)[start], case["sliding"][start])


def test_golden_tracks_have_terminals_and_cuts():
    for cases in (LEAKY, GAE, N_STEP):
        steps = [x for case in cases if "cuts" in case for x in zip(case["discounts"], case["cuts"], strict=True)]
        assert {(discount > 0, cut) for discount, cut in steps} == {
            (a, b) for a in (True, False) for b in (True, False)
        }


@pytest.mark.parametrize("batch", [(), (3,), (2, 5)])
@pytest.mark.parametrize("time", [1, 2, 9])
@pytest.mark.parametrize("lambda_", [1.0, 0.9, 0.0])
def test_gae_and_n_step_returns_agree_with_the_papers(batch, time, lambda_):
    _, *inputs = problem(time, *batch)
    cuts = some_cuts(time, *batch)
    discounts, rewards, values, bootstrap = inputs
    following = torch.cat([values[1:], bootstrap[None]])
    targets, advantages = gae(*inputs, lambda_=lambda_, cuts=cuts)
    returns = n_step_returns(discounts, rewards, following, cuts)
    for i in np.ndindex(batch):
        at = (slice(None), *i)
        d, r, v, c, f = (x[at].numpy() for x in (discounts, rewards, values, cuts, following))
        literal = oracles.gae(d, r, v, bootstrap[i].item(), lambda_=lambda_, cuts=c)
        close(targets[at], literal[0])
        close(advantages[at], literal[1])
        close(returns[at], oracles.n_step_returns(d, r, f, c))


@pytest.mark.parametrize("lambda_", [1.0, 0.9, 0.0])
def test_gae_is_vtrace_on_policy(lambda_):
    log_rhos, *inputs = problem(12, 3, 4)
    cuts = some_cuts(12, 3)
    targets, advantages = gae(*inputs, lambda_=lambda_, cuts=cuts)
    on_policy = vtrace(torch.zeros_like(log_rhos), *inputs, lambda_=lambda_, cuts=cuts)
    assert torch.equal(targets, on_policy[0])
    close(advantages, on_policy[1])
    log_probs = torch.zeros(12, 3, 4, dtype=torch.float64, requires_grad=True)
    grads = [
        torch.autograd.grad(policy_gradient_loss(log_probs, a, torch.ones_like(a)).sum(), log_probs)[0]
        for a in (advantages, on_policy[1])
    ]
    close(*grads)


def test_lambda_one_is_n_step_return_up_to_next_cut():
    _, discounts, rewards, values, bootstrap = problem(20, 3, 4)
    cuts = unroll_cuts(torch.tensor([20, 5, 7]), 20)
    targets, _ = gae(discounts, rewards, values, bootstrap, cuts=cuts)
    following = torch.cat([values[1:], bootstrap[None]])
    close(targets, n_step_returns(discounts, rewards, following, cuts))
    close(gae(discounts, rewards, values, bootstrap, lambda_=0.0)[0], rewards + discounts * following)


def test_time_limit_bootstraps_and_terminal_does_not():
    """Both cut the trace; only the value of the final observation tells them apart."""
    _, discounts, rewards, values, bootstrap = problem(6)
    discounts = torch.full_like(discounts, 0.9)
    cuts = torch.arange(6) == 2
    for discount in (0.9, 0.0):
        discounts[2] = discount
        targets, advantages = gae(discounts, rewards, values, bootstrap, lambda_=0.8, cuts=cuts)
        close(targets[2], rewards[2] + discount * values[3])
        close(targets[1], values[1] + advantages[1])
        close(advantages[1], rewards[1] + 0.9 * values[2] - values[1] + 0.9 * 0.8 * (targets[2] - values[2]))
        later = gae(discounts, rewards + 5.0 * (torch.arange(6) > 2), values, bootstrap, lambda_=0.8, cuts=cuts)
        assert torch.equal(later[0][:3], targets[:3])


def test_only_bootstraps_at_cuts_and_the_end_are_read():
    _, discounts, rewards, values, _ = problem(9, 4)
    cuts = some_cuts(9, 4)
    cuts[-1] = False
    read = cuts.clone()
    read[-1] = True
    poisoned = torch.where(read, values, float("nan"))
    expected = n_step_returns(discounts, rewards, values, cuts)
    assert torch.equal(n_step_returns(discounts, rewards, poisoned, cuts), expected)


def test_n_step_returns_of_cells():
    """Discounts and cuts of a step hold for all its trailing axes."""
    _, discounts, rewards, values, _ = problem(9, 2, 3, 4, 5)
    discounts, cuts = discounts[..., 0, 0], some_cuts(9, 2, 3)
    together = n_step_returns(discounts[..., None, None], rewards, values, cuts)
    for y, x in np.ndindex(4, 5):
        alone = n_step_returns(discounts, rewards[..., y, x], values[..., y, x], cuts)
        assert torch.equal(together[..., y, x], alone)


def test_no_gradient_leaves_gae_and_n_step_returns():
    _, *inputs = (x.requires_grad_() for x in problem(5, 2))
    for x in gae(*inputs, lambda_=torch.tensor(0.9, requires_grad=True)):
        assert not x.requires_grad
    assert not n_step_returns(*inputs[:3], some_cuts(5, 2)).requires_grad


@pytest.mark.parametrize("members", [1, 2, 4])
@pytest.mark.parametrize("envs", [1, 3, 8])
def test_gae_is_bit_identical_alone_and_in_slot(members, envs):
    _, *inputs = (x.float() for x in problem(20, 4, envs))
    cuts, lambda_ = unroll_cuts(torch.tensor([20, 5, 7, 1]), 20), torch.tensor([1.0, 0.95, 0.9, 0.0])[:, None]
    whole = *gae(*inputs, lambda_=lambda_, cuts=cuts), n_step_returns(*inputs[:3], cuts)
    for start in range(0, 4, members):
        slots = slice(start, start + members)
        part = [x[:, slots] for x in inputs[:3]]
        alone = gae(*part, inputs[3][slots], lambda_=lambda_[slots], cuts=cuts[:, slots])
        for x, y in zip(whole, (*alone, n_step_returns(*part, cuts[:, slots])), strict=True):
            assert torch.equal(x[:, slots], y)
