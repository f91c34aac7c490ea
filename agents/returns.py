"""Return targets as pure functions of time-major tensors.

Axes: `[T time, ...]`, and with a population `[T time, P member, B env]`. All axes but T are elementwise, so members
never mix. `discounts` is gamma while an episode continues and 0 after its last step. `V_t` is the value of the state
*before* step t; `r_t` and `discount_t` result from step t.

The arithmetic is numpy's (see `arrays`), so there are no gradients.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pbtrl.agents.arrays import Array, quiet
from pbtrl.agents.shapes import check_leading, check_same_shape


@quiet
def vtrace(
    log_rhos: Tensor,
    discounts: Tensor,
    rewards: Tensor,
    values: Tensor,
    bootstrap_value: Tensor,
    *,
    rho_bar: Tensor | float = 1.0,
    c_bar: Tensor | float = 1.0,
    pg_rho_bar: Tensor | float = 1.0,
    lambda_: Tensor | float = 1.0,
    cuts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """V-trace targets and advantages (Espeholt et al. 2018, arXiv 1802.01561, section 4.1, equation 1).

    With rho_t = pi(a_t|x_t) / mu(a_t|x_t), target over behavior policy, and V_T = `bootstrap_value`:

        delta_t   = min(rho_bar, rho_t) (r_t + discount_t V_{t+1} - V_t)
        v_t - V_t = delta_t + discount_t lambda min(c_bar, rho_t) (v_{t+1} - V_{t+1}),    v_T = V_T
        q_t       = r_t + discount_t (lambda v_{t+1} + (1 - lambda) V_{t+1})
        A_t       = min(pg_rho_bar, rho_t) (q_t - V_t)

    Where `cuts[t]` is true, nothing propagates from t+1 to t: v_t = V_t + delta_t, q_t = r_t + discount_t V_{t+1}.
    On-policy, v_t is the n-step return up to the next cut for lambda = 1, and the TD(0) target for lambda = 0.

    Args:
        log_rhos: `[T, ...]`, log pi - log mu of the actions taken.
        discounts: `[T, ...]`.
        rewards: `[T, ...]`.
        values: `[T, ...]`, V_t.
        bootstrap_value: `[...]`, V_T.
        rho_bar: clip of the ratio in delta; a number, or a tensor that broadcasts to `[...]`, such as `[P, 1]`.
        c_bar: clip of the ratio in the trace, as `rho_bar`.
        pg_rho_bar: clip of the ratio in the advantage, as `rho_bar`.
        lambda_: decay of the trace, as `rho_bar`.
        cuts: bool, with axes that are a prefix of `[T, ...]`: `[T]`, `[T, P]` or `[T, P, B]`.

    Returns:
        (v, A), both `[T, ...]`, without gradient.
    """
    _check(discounts, rewards, values, bootstrap_value, cuts)
    check_same_shape(rewards=rewards, log_rhos=log_rhos)
    rhos = np.exp(np.ascontiguousarray(_array(log_rhos)))
    rho, c, pg_rho = (_array(x) for x in (rho_bar, c_bar, pg_rho_bar))
    v, ahead, passed = _ahead(discounts, rewards, values, bootstrap_value, lambda_, cuts)
    errors = _backwards(np.minimum(rhos, rho) * (ahead - v), passed * np.minimum(rhos, c))
    ahead[:-1] += passed[:-1] * errors[1:]
    return torch.from_numpy(v + errors), torch.from_numpy(np.minimum(rhos, pg_rho) * (ahead - v))


@quiet
def gae(
    discounts: Tensor,
    rewards: Tensor,
    values: Tensor,
    bootstrap_value: Tensor,
    *,
    lambda_: Tensor | float = 1.0,
    cuts: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, arXiv 1506.02438, equation 16), truncated at V_T.

        delta_t  = r_t + discount_t V_{t+1} - V_t
        A_t      = delta_t + discount_t lambda A_{t+1},    A_T = 0
        target_t = V_t + A_t

    Where `cuts[t]` is true, nothing propagates from t+1 to t: A_t = delta_t. This is on-policy `vtrace`: the target is
    the n-step return up to the next cut for lambda = 1, and the TD(0) target for lambda = 0. The arguments are as in
    `vtrace`.

    Returns:
        (target, A), both `[T, ...]`, without gradient.
    """
    _check(discounts, rewards, values, bootstrap_value, cuts)
    v, ahead, passed = _ahead(discounts, rewards, values, bootstrap_value, lambda_, cuts)
    advantages = _backwards(ahead - v, passed)
    return torch.from_numpy(v + advantages), torch.from_numpy(advantages)


@quiet
def n_step_returns(discounts: Tensor, rewards: Tensor, bootstraps: Tensor, cuts: Tensor) -> Tensor:
    """Compute n-step returns up to the next cut (Mnih et al. 2016, arXiv 1602.01783, algorithm S3).

        R_t = r_t + discount_t (bootstrap_t if cuts[t] else R_{t+1}),    R_T = bootstrap_{T-1}

    Args:
        discounts: `[T, ...]`, or a shape that broadcasts to it.
        rewards: `[T, ...]`.
        bootstraps: `[T, ...]`, value of the state *after* step t: V_{t+1}, or max_a Q_{t+1}(a). Only the entries at
            cuts and at the last step are used.
        cuts: bool, as for `vtrace`.

    Returns:
        R `[T, ...]`, without gradient.
    """
    check_same_shape(rewards=rewards, bootstraps=bootstraps)
    check_leading(cuts, "cuts", rewards, "rewards")
    d, after, cut = _array(discounts), _array(bootstraps), _spread(cuts, rewards)
    ends = np.where(cut, after, 0.0)
    ends[-1] = after[-1]
    return torch.from_numpy(_backwards(_array(rewards) + d * ends, np.where(cut, 0.0, d)))


def unroll_cuts(unroll_length: Tensor, block_length: int) -> Tensor:
    """Cuts in a block of L steps for members with different unroll lengths; the last step is always a cut.

    Args:
        unroll_length: `[k]`, steps between two cuts, counted from the start of the block; at least 1.
        block_length: L.

    Returns:
        bool `[L, k]`, for `vtrace`.
    """
    steps = np.arange(1, block_length + 1)[:, None]
    return torch.from_numpy((steps % unroll_length.numpy().astype(np.int64) == 0) | (steps == block_length))


def unroll_starts(cuts: Tensor) -> Tensor:
    """Steps at which new unrolls begin, bool `[k, L + 1]`: those after the cuts `[L, k]` of `unroll_cuts`."""
    return torch.cat([torch.zeros_like(cuts[:1]), cuts]).T


def effective_unroll(cuts: Tensor) -> Tensor:
    """Measure the unroll length in use, `[k]`: the largest number of steps between two cuts of `[L, k]`."""
    steps = np.arange(1, len(cuts) + 1)[:, None]
    last = np.maximum.accumulate(np.where(cuts.numpy(), steps, 0))
    last[1:], last[0] = last[:-1].copy(), 0
    return torch.from_numpy((steps - last).max(0))


def _check(discounts: Tensor, rewards: Tensor, values: Tensor, bootstrap_value: Tensor, cuts: Tensor | None) -> None:
    """Check the shapes that `vtrace` and `gae` have in common."""
    check_same_shape(rewards=rewards, discounts=discounts, values=values)
    check_same_shape(**{"rewards[0]": rewards[0], "bootstrap_value": bootstrap_value})
    if cuts is not None:
        check_leading(cuts, "cuts", rewards, "rewards")


def _array(x: Tensor | float) -> Any:
    """View a tensor as an array; numbers stay numbers, which have no precision of their own."""
    return x.detach().numpy() if isinstance(x, Tensor) else x


def _spread(cuts: Tensor, x: Tensor) -> Array:
    """Append axes of size 1 to `cuts` until it has as many axes as `x`."""
    return cuts.numpy().reshape(cuts.shape + (1,) * (x.ndim - cuts.ndim))


def _ahead(
    discounts: Tensor,
    rewards: Tensor,
    values: Tensor,
    bootstrap_value: Tensor,
    lambda_: Tensor | float,
    cuts: Tensor | None,
) -> tuple[Array, Array, Array]:
    """V_t, r_t + discount_t V_{t+1}, and the factor by which a change in v_{t+1} reaches t, `[T, ...]` each."""
    v, d = np.concatenate([_array(values), _array(bootstrap_value)[None]]), _array(discounts)
    passed = d * _array(lambda_)
    if cuts is not None:
        passed = np.where(_spread(cuts, discounts), 0.0, passed)
    return v[:-1], _array(rewards) + d * v[1:], passed


def _backwards(terms: Array, passed: Array) -> Array:
    """Compute x_t = term_t + passed_t x_{t+1} for t from T-1 down to 0, with x_T = 0: `[T, ...]`."""
    rows = (len(terms), -1)
    x, factors = terms.reshape(rows), np.broadcast_to(passed, terms.shape).reshape(rows)
    for now, factor, after in zip(x[-2::-1], factors[-2::-1], x[:0:-1], strict=True):
        now += factor * after
    return x.reshape(terms.shape)
