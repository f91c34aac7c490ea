"""Running statistics per member, updated once per block.

Axes: `[P member, M sample, ...]`. `Moments` is a dict of tensors with a leading P, passed in and returned. It is stored
in snapshots and copied by exploit, like a weight. Sums run in float64 over a contiguous trailing axis, so a member's
statistics do not depend on the other members of its cohort.
"""

import numpy as np
import torch
from torch import Tensor

from pbtrl.agents.shapes import check_leading, check_same_shape

Moments = dict[str, Tensor]


def init_moments(members: int, shape: tuple[int, ...] = (), device: torch.device | str = "cpu") -> Moments:
    """Moments of no samples: `count` `[P]`, `mean` and `m2` (summed squared deviations) `[P, *shape]`, float64."""
    zeros = torch.zeros((members, *shape), dtype=torch.float64, device=device)
    return {"count": zeros.new_zeros(members), "mean": zeros, "m2": zeros.clone()}


def update_moments(state: Moments, x: Tensor, mask: Tensor | None = None) -> Moments:
    """Merge a batch into the statistics (Chan, Golub & LeVeque 1979), with n old and b new samples:

        mean <- mean + d b / (n + b),    m2 <- m2 + m2_batch + d^2 n b / (n + b),    d = mean_batch - mean

    Args:
        state: from `init_moments`.
        x: `[P, M, *shape]`.
        mask: `[P, M]`, false for samples to ignore, whatever their values. Non-finite samples are ignored too.

    Returns:
        The new state. A member without any remaining samples keeps its old state bit for bit.
    """
    if mask is not None:
        check_leading(mask, "mask", x, "x")
    inner = (1,) * (x.ndim - 2)
    samples = x.movedim(1, -1).to(torch.float64, memory_format=torch.contiguous_format)
    live = samples.sum(tuple(range(1, x.ndim - 1))).isfinite() if inner else samples.isfinite()  # no float32 overflows
    if mask is not None:
        live &= mask.bool()
    rows = None if live.all() else live.reshape(len(x), *inner, -1)
    if rows is not None:
        samples = torch.where(rows, samples, 0.0)
    count = live.sum(-1, dtype=torch.float64)
    n, b = state["count"].reshape(-1, *inner), count.reshape(-1, *inner)
    mean = samples.sum(-1) / b.clamp_min(1.0)
    deviations = samples - mean[..., None]
    if rows is not None:
        deviations = torch.where(rows, deviations, 0.0)
    d, share = mean - state["mean"], b / (n + b).clamp_min(1.0)
    return {
        "count": state["count"] + count,
        "mean": torch.addcmul(state["mean"], d, share),
        "m2": state["m2"] + deviations.square_().sum(-1) + d.square_() * (n * share),
    }


def mean_and_variance(state: Moments) -> tuple[Tensor, Tensor]:
    """Return the mean and the (population) variance, float32 `[P, *shape]`; 0 and 1 before the first sample."""
    count = state["count"].reshape(-1, *(1,) * (state["mean"].ndim - 1))
    variance = torch.where(count > 0, state["m2"] / count.clamp_min(1.0), 1.0)
    return state["mean"].float(), variance.float()


def update_return_scale(
    state: Moments, rewards: Tensor, ends: Tensor, gamma: Tensor, mask: Tensor | None = None
) -> Moments:
    """Advance G_t = gamma G_{t-1} + r_t, which starts at 0 in every episode, and merge all G_t into the moments.

    Args:
        state: moments of the return, and `running` `[P, B]`, each env's return so far in its episode, float64.
        rewards: `[P, T, B]`.
        ends: `[P, T, B]`, true if step t ended its episode, by termination or truncation.
        gamma: `[P]`, discount per env step.
        mask: `[P, T, B]`, false for dead transitions, which are ignored, as are non-finite rewards.
    """
    check_same_shape(rewards=rewards, ends=ends, mask=mask)
    live = np.isfinite(rewards.numpy())
    if mask is not None:
        live &= mask.numpy().astype(np.bool_)
    kept = ~ends.numpy()
    factors = np.where(live, gamma.numpy().astype(np.float64)[:, None, None], 1.0)
    factors[:, 1:] *= kept[:, :-1]
    returns, latest = np.where(live, rewards.numpy(), 0.0).astype(np.float64), state["running"].numpy()
    for t in range(returns.shape[1]):
        returns[:, t] += factors[:, t] * latest
        latest = returns[:, t]
    rows = (len(live), -1)
    moments = update_moments(state, torch.from_numpy(returns.reshape(rows)), torch.from_numpy(live.reshape(rows)))
    return {**moments, "running": torch.from_numpy(latest * kept[:, -1])}


def return_scale(state: Moments, epsilon: float = 1e-8) -> Tensor:
    """Standard deviation of the discounted return, float32 `[P]`; rewards are divided by it."""
    return (mean_and_variance(state)[1] + epsilon).sqrt()


def init_popart(members: int, device: torch.device | str = "cpu") -> Moments:
    """Initial PopArt statistics of the value targets: `shift` 0, `second_moment` 1, `scale` 1; float64 `[P]` each.

    A network output n represents the value scale n + shift, and is trained on (target - shift) / scale.
    """
    ones = torch.ones(members, dtype=torch.float64, device=device)
    return {"shift": torch.zeros_like(ones), "second_moment": ones, "scale": ones.clone()}


def popart_update(
    state: Moments, targets: Tensor, mask: Tensor, *, rate: Tensor | float, low: float = 1e-2, high: float = 1e6
) -> Moments:
    """Move the statistics toward a batch of n live targets G (van Hasselt et al. 2016, arXiv 1602.07714).

        shift <- shift + w (mean G - shift),    second_moment <- second_moment + w (mean G^2 - second_moment)
        scale <- sqrt(second_moment - shift^2) within [low, high],    w = min(1, n rate)

    `rate` is per target, not per batch, so the same data count as much if they come in more and smaller batches.

    Args:
        state: from `init_popart`.
        targets: `[P, ...]`, unnormalized.
        mask: as `targets`, false for samples to ignore, whatever their values.
        rate: `[P]` or a number.
        low: minimum scale.
        high: maximum scale.

    Returns:
        The new state. A member without any live targets keeps its old state bit for bit.
    """
    check_same_shape(targets=targets, mask=mask)
    live = mask.bool().flatten(1)
    samples = torch.where(live, targets.detach().flatten(1).double(), 0.0).contiguous()
    count = live.sum(-1)
    n, weight = count.clamp_min(1), (count.double() * rate).clamp_max(1.0)
    shift = state["shift"] + weight * (samples.sum(-1) / n - state["shift"])
    second = state["second_moment"] + weight * (samples.square().sum(-1) / n - state["second_moment"])
    scale = (second - shift.square()).clamp(low**2, high**2).sqrt()
    new = {"shift": shift, "second_moment": second, "scale": scale}
    return {name: torch.where(count > 0, new[name], state[name]) for name in state}


@torch.no_grad()
def popart_preserve(weight: Tensor, bias: Tensor, old: Moments, new: Moments) -> None:
    """Adjust a value head in place, so that the new statistics leave scale (x w + b) + shift unchanged.

        w <- w scale / scale',    b <- (scale b + shift - shift') / scale'

    Args:
        weight: `[P, ...]`, w; pass the value's column only, because all of it is scaled.
        bias: `[P, ...]`, b; pass the value's column only.
        old: the state before `popart_update`.
        new: the state after it.
    """
    ratio, offset = old["scale"] / new["scale"], (old["shift"] - new["shift"]) / new["scale"]
    inner = (-1, *(1,) * (bias.ndim - 1))
    weight.mul_(ratio.view(-1, *(1,) * (weight.ndim - 1)))
    bias.copy_(bias * ratio.view(inner) + offset.view(inner))
