"""Loss sums per member.

Every argument is `[P, ...]`, every result `[P]`: a sum over the rest of the member's own row, so that a
member's loss does not depend on who is beside it. Sums, not means, as in IMPALA. `mask` is 0 (or False) for
dead transitions. The loss of a cohort is the *sum* over its members of

    policy_gradient_loss + value_cost * value_loss - entropy_cost * entropy_bonus.

V-MPO's terms (Song et al. 2019, arXiv 1909.12238) come last and are means, as in the paper; the targets of a
divergence are held constant.
"""

import torch
from torch import Tensor


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """-sum_t A_t log pi(a_t|x_t), whose gradient is the policy gradient; A_t is held constant."""
    return -_sum(log_probs * advantages.detach() * mask)


def value_loss(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """1/2 sum_t (v_t - V(x_t))^2; the targets v_t are held constant."""
    return 0.5 * _sum((targets.detach() - values).square() * mask)


def entropy_bonus(entropies: Tensor, mask: Tensor) -> Tensor:
    """sum_t H(pi(.|x_t)) in nats, to be maximized."""
    return _sum(entropies * mask)


def normalize_advantages(advantages: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Give each row of `[P, M]` mean 0 and variance 1 over its live transitions, and 0 elsewhere."""
    count = mask.to(advantages.dtype).sum(-1, keepdim=True).clamp_min(1.0)
    centered = (advantages - (advantages * mask).sum(-1, keepdim=True) / count) * mask
    variance = centered.square().sum(-1, keepdim=True) / count
    return centered / (variance.sqrt() + epsilon)


def vmpo_weights_and_temperature(
    advantages: Tensor, temperature: Tensor, eps_temperature: Tensor | float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """V-MPO's E-step over D~, the better half by rank of each row's live samples: floor(live / 2), at least 1.

        psi   = exp(A / eta) / sum_{D~} exp(A / eta)    in D~, 0 elsewhere
        L_eta = eta eps_eta + eta log mean_{D~} exp(A / eta)

    dL_eta / deta = eps_eta - KL(psi || uniform on D~). Of equal advantages the earlier samples are taken. The loss of
    the policy is -sum psi log pi(a|s).

    Args:
        advantages: `[P, M]`, in units of return; or `[M]`, with the other arguments' and results' P left out too.
        temperature: `[P]`, eta > 0.
        eps_temperature: `[P]` or a number, eps_eta in nats.
        mask: `[P, M]`, false for samples to leave out, whatever they hold.

    Returns:
        (psi `[P, M]`, without gradient; L_eta `[P]`, whose gradient reaches eta only), all 0 without live samples.
    """
    live = torch.ones_like(advantages, dtype=torch.bool) if mask is None else mask.bool()
    ranked, order = torch.where(live, advantages.detach(), -torch.inf).sort(dim=-1, descending=True, stable=True)
    half, best = (live.sum(-1) // 2).clamp_min(1), ranked[..., 0]
    better = torch.arange(live.shape[-1], device=live.device) < half[..., None]
    chosen = torch.zeros_like(live).scatter(-1, order, better) & live
    below = torch.where(chosen, advantages.detach() - best[..., None], 0.0)
    terms = (below / temperature[..., None]).exp() * chosen
    total = terms.contiguous().sum(-1).clamp_min(1.0)  # the best one's term is 1; an empty row has none
    loss = best + temperature * (eps_temperature + (total / half).log())
    return (terms / total[..., None]).detach(), torch.where(live.any(-1), loss, 0.0)


def gaussian_kl_decoupled(mean: Tensor, std: Tensor, target_mean: Tensor, target_std: Tensor) -> tuple[Tensor, Tensor]:
    """KL(target || online) of diagonal Gaussians in two parts, each to be bounded on its own.

        KL_mean = 1/2 sum_A ((mean - target_mean) / target_std)^2                   with the target's covariance
        KL_cov  = 1/2 sum_A ((target_std / std)^2 - 1 + 2 log(std / target_std))    with equal means

    Their sum is the KL only where the standard deviations agree, or the means.

    Args:
        mean: `[..., A]`, online.
        std: `[..., A]`, online, > 0.
        target_mean: `[..., A]`.
        target_std: `[..., A]`, > 0.

    Returns:
        (KL_mean, KL_cov), both `[...]`, in nats.
    """
    target_mean, target_std = target_mean.detach(), target_std.detach()
    log_ratio = (std / target_std).log()
    # With expm1 the smallest divergences, which the constraint on the covariance is about, survive float32.
    cov = 0.5 * torch.expm1(-2.0 * log_ratio) + log_ratio
    return 0.5 * ((mean - target_mean) / target_std).square().sum(-1), cov.sum(-1)


def categorical_kl(logits: Tensor, target_logits: Tensor) -> Tensor:
    """KL(target || online) = sum_a p_target(a) (log p_target(a) - log p(a)): `[..., A]` -> `[...]`, in nats."""
    target = target_logits.detach().log_softmax(-1)
    return (target.exp() * (target - logits.log_softmax(-1))).sum(-1)


def lagrange_loss(multiplier: Tensor, epsilon: Tensor | float, kl: Tensor, mask: Tensor) -> Tensor:
    """V-MPO's constraint KL < epsilon in the M-step, alpha (epsilon - sg KL) + sg(alpha) KL, with sg: held constant.

    The mean over live samples, and 0 without any. Descending it raises alpha while the mean KL is above epsilon, and
    lowers the KL the harder, the greater alpha is.

    Args:
        multiplier: `[P]`, alpha >= 0.
        epsilon: `[P]` or a number, in nats.
        kl: `[P, ...]`.
        mask: as `kl`.
    """
    count = _sum(mask)
    mean = _sum(kl * mask) / count.clamp_min(1)
    return multiplier * (epsilon - mean.detach()) * (count > 0) + multiplier.detach() * mean


def _sum(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).contiguous().sum(-1)
