"""Loss terms per member.

Arguments are `[P, ...]` and results `[P]`. Each result is a sum over the member's own row, so it does not depend on the
other members of the cohort. Terms are sums rather than means, as in IMPALA. `mask` is 0 (or False) for dead
transitions. The loss of a cohort is the *sum* over its members of

    policy_gradient_loss + value_cost * value_loss - entropy_cost * entropy_bonus.

V-MPO's terms (Song et al. 2019, arXiv 1909.12238) come last. They are means, as in the paper, and the target
distribution of a KL divergence is held constant.
"""

import numpy as np
import torch
from torch import Tensor

from pbtrl.agents.arrays import Array
from pbtrl.agents.shapes import check_per_member, check_same_shape


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """-sum_t A_t log pi(a_t|x_t), whose gradient is the negative policy gradient; A_t is held constant."""
    check_same_shape(log_probs=log_probs, advantages=advantages, mask=mask)
    return -_sum(log_probs * (advantages.detach() * mask))


def value_loss(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """1/2 sum_t (v_t - V(x_t))^2; the targets v_t are held constant."""
    check_same_shape(values=values, targets=targets, mask=mask)
    return 0.5 * _sum((targets.detach() - values).square() * mask)


def clipped_policy_loss(log_ratios: Tensor, advantages: Tensor, mask: Tensor, clip: Tensor) -> Tensor:
    """PPO's clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, equation 7), negated:

        -sum_t min(r_t A_t, clip(r_t, 1 - c, 1 + c) A_t),    r_t = pi(a_t|x_t) / pi_old(a_t|x_t)

    Args:
        log_ratios: `[P, ...]`, log r_t, with a gradient for pi.
        advantages: as `log_ratios`; held constant.
        mask: as `log_ratios`.
        clip: `[P]`, c.
    """
    check_same_shape(log_ratios=log_ratios, advantages=advantages, mask=mask)
    check_per_member(clip, "clip", log_ratios)
    ratios, bound = log_ratios.masked_fill(mask == 0, 0.0).exp(), _rows(clip, log_ratios)
    clipped = ratios.clamp(1.0 - bound, 1.0 + bound)
    return -_sum(torch.minimum(ratios * advantages.detach(), clipped * advantages.detach()) * mask)


def clipped_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, mask: Tensor, clip: Tensor) -> Tensor:
    """1/2 sum_t max((V_t - v_t)^2, (V_old,t + clip(V_t - V_old,t, -c, c) - v_t)^2), as in PPO's published code.

    Args:
        values: `[P, ...]`, V(x_t), with a gradient.
        old_values: as `values`, those that the targets were computed from.
        targets: as `values`, v_t; held constant.
        mask: as `values`.
        clip: `[P]`, c, in units of value.
    """
    check_same_shape(values=values, old_values=old_values, targets=targets, mask=mask)
    check_per_member(clip, "clip", values)
    bound = _rows(clip, values)
    clipped = old_values.detach() + (values - old_values.detach()).clamp(-bound, bound)
    errors = torch.maximum((values - targets.detach()).square(), (clipped - targets.detach()).square())
    return 0.5 * _sum(errors * mask)


def entropy_bonus(entropies: Tensor, mask: Tensor) -> Tensor:
    """sum_t H(pi(.|x_t)) in nats, to be maximized."""
    check_same_shape(entropies=entropies, mask=mask)
    return _sum(entropies * mask)


def normalize_advantages(advantages: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Scale each row of `[..., M]` to mean 0 and variance 1 over its live transitions; the others become 0."""
    check_same_shape(advantages=advantages, mask=mask)
    return torch.from_numpy(normalized(advantages.detach().numpy(), mask.numpy(), epsilon))


def normalized(advantages: Array, mask: Array, epsilon: float = 1e-8) -> Array:
    """Do what `normalize_advantages` does, for numpy arrays."""
    count = np.maximum(mask.sum(-1, keepdims=True), 1)
    centered = (advantages - (advantages * mask).sum(-1, keepdims=True) / count) * mask
    scaled: Array = centered / (np.sqrt((centered * centered).sum(-1, keepdims=True) / count) + epsilon)
    return scaled


def better_half(advantages: Tensor, live: Tensor) -> Tensor:
    """D~ of V-MPO: the top floor(live / 2) of each row's live samples, at least 1; ties go to the earlier ones.

    Args:
        advantages: `[..., M]`.
        live: `[..., M]` bool, false for samples to ignore, whatever their values.

    Returns:
        `[..., M]` bool.
    """
    check_same_shape(advantages=advantages, live=live)
    order = torch.where(live, advantages.detach(), -torch.inf).argsort(dim=-1, descending=True, stable=True)
    half = (live.sum(-1, keepdim=True) // 2).clamp_min(1)
    better = torch.arange(live.shape[-1], device=live.device) < half
    return torch.zeros_like(live).scatter(-1, order, better) & live


def weights_and_temperature(
    advantages: Tensor, temperature: Tensor, eps_temperature: Tensor | float, chosen: Tensor
) -> tuple[Tensor, Tensor]:
    """V-MPO's E-step over D~, the chosen samples of each row; training chooses them by `better_half`.

        psi   = exp(A / eta) / sum_{D~} exp(A / eta)    in D~, 0 elsewhere
        L_eta = eta eps_eta + eta log mean_{D~} exp(A / eta)

    dL_eta / deta = eps_eta - KL(psi || uniform on D~). The policy loss is -sum psi log pi(a|s).

    Args:
        advantages: `[P, M]`, in units of return; or `[M]`, and then P is dropped from all other arguments and results.
        temperature: `[P]`, eta > 0.
        eps_temperature: `[P]` or a number, eps_eta in nats.
        chosen: `[P, M]` bool, D~.

    Returns:
        (psi `[P, M]`, without gradient; L_eta `[P]`, with a gradient for eta only). Rows without chosen samples are 0.
    """
    check_same_shape(advantages=advantages, chosen=chosen)
    advantages, some = advantages.detach(), chosen.any(-1)
    check_same_shape(**{"advantages[..., 0]": some, "temperature": temperature})
    check_per_member(eps_temperature, "eps_temperature", advantages)
    best = torch.where(some, advantages.masked_fill(~chosen, -torch.inf).amax(-1), 0.0)
    below = torch.where(chosen, advantages - best[..., None], 0.0)
    terms = (below / temperature[..., None]).exp() * chosen
    total = terms.contiguous().sum(-1).clamp_min(1.0)  # the best sample's term is 1; only an empty row is below
    loss = best + temperature * (eps_temperature + (total / chosen.sum(-1).clamp_min(1)).log())
    return (terms / total[..., None]).detach(), torch.where(some, loss, 0.0)


def gaussian_kl_decoupled(mean: Tensor, std: Tensor, target_mean: Tensor, target_std: Tensor) -> tuple[Tensor, Tensor]:
    """KL(target || online) of diagonal Gaussians in two parts, to be constrained separately.

        KL_mean = 1/2 sum_A ((mean - target_mean) / target_std)^2                   with the target's covariance
        KL_cov  = 1/2 sum_A ((target_std / std)^2 - 1 + 2 log(std / target_std))    with equal means

    Their sum equals the KL only if the means or the standard deviations agree.

    Args:
        mean: `[..., A]`, online.
        std: `[..., A]`, online, > 0.
        target_mean: `[..., A]`.
        target_std: `[..., A]`, > 0.

    Returns:
        (KL_mean, KL_cov), both `[...]`, in nats.
    """
    check_same_shape(mean=mean, std=std, target_mean=target_mean, target_std=target_std)
    target_mean, target_std = target_mean.detach(), target_std.detach()
    log_ratio = (std / target_std).log()
    # expm1 keeps tiny divergences accurate in float32, and the covariance constraint is about those.
    cov = 0.5 * torch.expm1(-2.0 * log_ratio) + log_ratio
    return 0.5 * ((mean - target_mean) / target_std).square().sum(-1), cov.sum(-1)


def categorical_kl(logits: Tensor, target_logits: Tensor) -> Tensor:
    """KL(target || online) = sum_a p_target(a) (log p_target(a) - log p(a)): `[..., A]` -> `[...]`, in nats."""
    check_same_shape(logits=logits, target_logits=target_logits)
    target = target_logits.detach().log_softmax(-1)
    return (target.exp() * (target - logits.log_softmax(-1))).sum(-1)


def lagrange_loss(multiplier: Tensor, epsilon: Tensor | float, kl: Tensor, mask: Tensor) -> Tensor:
    """V-MPO's M-step constraint KL < epsilon as a loss: alpha (epsilon - sg KL) + sg(alpha) KL, with sg stop-gradient.

    The loss is the mean over live samples, or 0 if there are none. Minimizing it raises alpha while the mean KL is
    above epsilon, and a larger alpha reduces the KL more strongly.

    Args:
        multiplier: `[P]`, alpha >= 0.
        epsilon: `[P]` or a number, in nats.
        kl: `[P, ...]`.
        mask: as `kl`, 0 (or False) for samples to ignore.
    """
    check_same_shape(kl=kl, mask=mask)
    check_per_member(multiplier, "multiplier", kl)
    check_per_member(epsilon, "epsilon", kl)
    count = _sum(mask)
    mean = _sum(kl * mask) / count.clamp_min(1)
    return multiplier * (epsilon - mean.detach()) * (count > 0) + multiplier.detach() * mean


def _rows(values: Tensor, x: Tensor) -> Tensor:
    """Append axes of size 1 to `values` `[P]` until it has as many as `x`."""
    return values.view(-1, *(1,) * (x.ndim - 1))


def _sum(x: Tensor) -> Tensor:
    return x.contiguous().sum(tuple(range(1, x.ndim)))
