"""Return targets as pure functions over time-major tensors.

Axes: `[T time, ...]`; with a population `[T time, P member, B env]`. All but T is elementwise, so members
never meet. A *discount* is an array: gamma while an episode runs on, 0 after its last step. `V_t` is the
value of the state *before* step t; `r_t` and `discount_t` are what step t led to.
"""

import torch
from torch import Tensor


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

    With rho_t = pi(a_t|x_t) / mu(a_t|x_t), target over behaviour, and V_T = `bootstrap_value`:

        delta_t   = min(rho_bar, rho_t) (r_t + discount_t V_{t+1} - V_t)
        v_t - V_t = delta_t + discount_t lambda min(c_bar, rho_t) (v_{t+1} - V_{t+1}),    v_T = V_T
        q_t       = r_t + discount_t (lambda v_{t+1} + (1 - lambda) V_{t+1})
        A_t       = min(pg_rho_bar, rho_t) (q_t - V_t)

    Where `cuts[t]` is true nothing passes from t+1 to t: v_t = V_t + delta_t, q_t = r_t + discount_t V_{t+1}.
    On-policy with lambda 1, v_t is the n-step return up to the next cut; with lambda 0, the TD(0) target.

    Args:
        log_rhos: `[T, ...]`, log pi - log mu of the actions taken.
        discounts: `[T, ...]`.
        rewards: `[T, ...]`.
        values: `[T, ...]`, V_t.
        bootstrap_value: `[...]`, V_T.
        rho_bar: clip of the ratio in delta; a number, or a tensor that broadcasts to `[...]`: `[P, 1]`.
        c_bar: clip of the ratio in the trace; likewise.
        pg_rho_bar: clip of the ratio in the advantage; likewise.
        lambda_: decay of the trace; likewise.
        cuts: bool; its axes are the first ones of `[T, ...]`, so `[T]`, `[T, P]` and `[T, P, B]` all serve.

    Returns:
        (v, A), both `[T, ...]` and without gradient.
    """
    with torch.no_grad():
        rhos = log_rhos.exp()
        next_values = torch.cat([values[1:], bootstrap_value[None]])
        deltas = rhos.clamp(max=rho_bar) * (rewards + discounts * next_values - values)
        passed = discounts * lambda_  # what reaches t of a change in v_{t+1}
        if cuts is not None:
            passed = passed.masked_fill(cuts.reshape(cuts.shape + (1,) * (passed.ndim - cuts.ndim)), 0.0)
        traces = passed * rhos.clamp(max=c_bar)
        errors = [torch.zeros_like(bootstrap_value)]
        for delta, trace in zip(reversed(deltas.unbind()), reversed(traces.unbind()), strict=True):
            errors.append(torch.addcmul(delta, trace, errors[-1]))
        later, error = torch.stack(errors[-2::-1]), torch.stack(errors[:0:-1])
        q = rewards + discounts * next_values + passed * later
        return values + error, rhos.clamp(max=pg_rho_bar) * (q - values)


def unroll_cuts(unroll_length: Tensor, block_length: int) -> Tensor:
    """Where members with their own unroll lengths cut a block of L steps; its last step is always cut.

    Args:
        unroll_length: `[k]`, steps between two cuts, counted from the block's start; at least 1.
        block_length: L.

    Returns:
        bool `[L, k]`, for `vtrace`.
    """
    steps = torch.arange(1, block_length + 1, device=unroll_length.device)[:, None]
    return (steps % unroll_length.long() == 0) | (steps == block_length)


def effective_unroll(cuts: Tensor) -> Tensor:
    """Measure what was used: the longest run of steps between two cuts of `[L, k]`, `[k]`."""
    steps = torch.arange(1, len(cuts) + 1, device=cuts.device)[:, None]
    last = torch.where(cuts, steps, 0).cummax(0).values
    return (steps - torch.cat([torch.zeros_like(last[:1]), last[:-1]])).amax(0)
