"""Loss sums per member.

Every argument is `[P, ...]`, every result `[P]`: a sum over the rest of the member's own row, so that a
member's loss does not depend on who is beside it. Sums, not means, as in IMPALA. `mask` is 0 (or False) for
dead transitions. The loss of a cohort is the *sum* over its members of

    policy_gradient_loss + value_cost * value_loss - entropy_cost * entropy_bonus.
"""

from torch import Tensor


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """-sum_t A_t log pi(a_t|x_t), whose gradient is the policy gradient; A_t is held constant."""
    return -_sum(log_probs * advantages.detach() * mask)


def value_loss(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """1/2 sum_t (v_t - V(x_t))^2; the targets v_t are held constant."""
    return 0.5 * _sum((targets.detach() - values).square() * mask)


def entropy_bonus(entropies: Tensor, mask: Tensor) -> Tensor:
    """sum_t H(pi(.|x_t)) in nats, to be maximised."""
    return _sum(entropies * mask)


def normalise_advantages(advantages: Tensor, mask: Tensor, epsilon: float = 1e-8) -> Tensor:
    """Give each row of `[P, M]` mean 0 and variance 1 over its live transitions, and 0 elsewhere."""
    count = mask.to(advantages.dtype).sum(-1, keepdim=True).clamp_min(1.0)
    centred = (advantages - (advantages * mask).sum(-1, keepdim=True) / count) * mask
    variance = centred.square().sum(-1, keepdim=True) / count
    return centred / (variance.sqrt() + epsilon)


def _sum(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).contiguous().sum(-1)
