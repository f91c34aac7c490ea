"""Return targets as pure functions of time-major tensors, and as methods of a block's steps, members first.

Axes of the functions: `[T time, ...]`, and with a population `[T time, P member, B env]`. All axes but T are
elementwise, so members never mix. `discounts` is gamma while an episode continues and 0 after its last step. `V_t` is
the value of the state *before* step t; `r_t` and `discount_t` result from step t.

The arithmetic is numpy's (see `arrays`), so there are no gradients.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pbtrl.agents.arrays import Array, quiet
from pbtrl.agents.shapes import check_leading, check_same_shape


@dataclass(frozen=True, kw_only=True)
class ReturnInputs:
    """Steps of p members that return targets are computed for, with what does not depend on the weights.

    Attributes:
        rewards: [p, T, B] transformed rewards.
        discounts: [p, T, B] gamma, and 0 at termination.
        lambda_: [p] decay of the trace.
        cuts: [p, T, B] bool; true where nothing propagates back from the next step.
    """

    rewards: Tensor
    discounts: Tensor
    lambda_: Tensor
    cuts: Tensor

    def part(self, members: slice, envs: slice) -> ReturnInputs:
        """Return the steps of some members in some of their envs."""
        at = members, slice(None), envs
        return ReturnInputs(
            rewards=self.rewards[at], discounts=self.discounts[at], lambda_=self.lambda_[members], cuts=self.cuts[at]
        )

    def vtrace(
        self,
        values: Tensor,
        log_rhos: Tensor,
        *,
        rho_bar: Tensor | float = 1.0,
        c_bar: Tensor | float = 1.0,
        pg_rho_bar: Tensor | float = 1.0,
    ) -> list[Tensor]:
        """Compute targets and advantages [p, T, B], as the function `vtrace` does.

        Args:
            values: [p, T+1, B], of which the last bootstraps.
            log_rhos: [p, T, B].
            rho_bar: a number, or one per member [p].
            c_bar: as `rho_bar`.
            pg_rho_bar: as `rho_bar`.
        """
        bars = (x.numpy()[:, None] if isinstance(x, Tensor) else x for x in (rho_bar, c_bar, pg_rho_bar))
        return [_member_major(x) for x in _vtrace(*self._arrays, _time_major(values), _time_major(log_rhos), *bars)]

    def gae(self, values: Tensor) -> list[Tensor]:
        """Compute targets and advantages [p, T, B] from values [p, T+1, B], as the function `gae` does."""
        return [_member_major(x) for x in _gae(*self._arrays, _time_major(values))]

    @functools.cached_property
    def _arrays(self) -> tuple[Array, Array, Array]:
        """Rewards, discounts and the factors by which a change in v_{t+1} reaches t, `[T, p, B]` each."""
        rewards, discounts, cuts = (_time_major(x) for x in (self.rewards, self.discounts, self.cuts))
        return rewards, discounts, np.where(cuts, 0.0, discounts * self.lambda_.numpy()[:, None])


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
    arrays = _as_arrays(discounts, rewards, values, bootstrap_value, lambda_, cuts)
    v, advantages = _vtrace(*arrays, _array(log_rhos), *(_array(x) for x in (rho_bar, c_bar, pg_rho_bar)))
    return torch.from_numpy(v), torch.from_numpy(advantages)


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
    targets, advantages = _gae(*_as_arrays(discounts, rewards, values, bootstrap_value, lambda_, cuts))
    return torch.from_numpy(targets), torch.from_numpy(advantages)


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


def _time_major(x: Tensor) -> Array:
    """Copy [p, T, ...] into an array `[T, p, ...]`, in the order of which returns are computed fastest."""
    return np.ascontiguousarray(x.detach().numpy().swapaxes(0, 1))


def _member_major(x: Array) -> Tensor:
    """View an array `[T, p, ...]` as a tensor [p, T, ...]."""
    return torch.from_numpy(x).transpose(0, 1)


def _as_arrays(
    discounts: Tensor,
    rewards: Tensor,
    values: Tensor,
    bootstrap_value: Tensor,
    lambda_: Tensor | float,
    cuts: Tensor | None,
) -> tuple[Array, Array, Array, Array]:
    """Rewards, discounts and what propagates, `[T, ...]` each, as `ReturnInputs` has them, and values `[T+1, ...]`."""
    v, d = np.concatenate([_array(values), _array(bootstrap_value)[None]]), _array(discounts)
    passed = np.where(False if cuts is None else _spread(cuts, discounts), 0.0, d * _array(lambda_))
    return _array(rewards), d, passed, v


@quiet
def _vtrace(
    rewards: Array, discounts: Array, passed: Array, values: Array, log_rhos: Array, rho_bar: Any, c_bar: Any,
    pg_rho_bar: Any,
) -> tuple[Array, Array]:  # fmt: skip
    """Compute targets and advantages of `vtrace`, `[T, ...]` each, from arrays of the right shapes."""
    rhos, v, ahead = np.exp(np.ascontiguousarray(log_rhos)), values[:-1], rewards + discounts * values[1:]
    errors = _backwards(np.minimum(rhos, rho_bar) * (ahead - v), passed * np.minimum(rhos, c_bar))
    ahead[:-1] += passed[:-1] * errors[1:]
    return v + errors, np.minimum(rhos, pg_rho_bar) * (ahead - v)


@quiet
def _gae(rewards: Array, discounts: Array, passed: Array, values: Array) -> tuple[Array, Array]:
    """Compute targets and advantages of `gae`, as `_vtrace` does."""
    advantages = _backwards(rewards + discounts * values[1:] - values[:-1], passed)
    return values[:-1] + advantages, advantages


def _backwards(terms: Array, passed: Array) -> Array:
    """Compute x_t = term_t + passed_t x_{t+1} for t from T-1 down to 0, with x_T = 0: `[T, ...]`."""
    rows = (len(terms), -1)
    x, factors = terms.reshape(rows), np.broadcast_to(passed, terms.shape).reshape(rows)
    for now, factor, after in zip(x[-2::-1], factors[-2::-1], x[:0:-1], strict=True):
        now += factor * after
    return x.reshape(terms.shape)
