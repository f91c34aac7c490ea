"""Flat optimizers: all parameters of a cohort in one `[k member, D parameter]` buffer.

Updates run in place with a fixed number of elementwise operations. Each member has its own learning rate, decay,
epsilon and clip, passed at every call as `[k]` tensors and never cached. D is a multiple of 16 (the caller pads),
because kernels treat the last floats of a tensor differently. `grads` is scratch space: its contents are overwritten.

`active`, bool `[k]`, selects the members that take the step. The others keep parameters, moments and step count bit for
bit, even if their gradient contains NaN.
"""

import torch
from torch import Tensor

# Avoids 0 / 0 for dead units if a search sets epsilon to 0.
TINY = 1e-30


def clip_by_global_norm(grads: Tensor, max_norm: Tensor) -> Tensor:
    """Scale each member's row of `grads` `[k, D]` so that its L2 norm is at most `max_norm` `[k]`, in place.

    Returns:
        The norms `[k]` before clipping; not finite if a gradient is not finite, or overflows when squared.
    """
    norms: Tensor = torch.linalg.vector_norm(grads, dim=-1)
    grads.mul_((max_norm / norms.clamp_min(TINY)).clamp_max(1.0)[:, None])
    return norms


def rmsprop(
    params: Tensor,
    grads: Tensor,
    mean_square: Tensor,
    *,
    learning_rate: Tensor,
    decay: Tensor | float,
    epsilon: Tensor | float,
    active: Tensor,
) -> None:
    """RMSProp as in TensorFlow 1 (and so in IMPALA), without momentum; `mean_square` starts at 1.

        ms    <- ms + (1 - decay) (g^2 - ms)
        theta <- theta - learning_rate g / sqrt(ms + epsilon)

    torch.optim.RMSprop adds epsilon outside the root and starts at 0, so its values of epsilon do not carry over.
    """
    live, dtype = active[:, None], params.dtype
    _zero_inactive(grads, active)
    mean_square.lerp_(grads.square(), ((1.0 - _column(decay, params)) * live).to(dtype))
    root = (mean_square + _column(epsilon, params).clamp_min(TINY).to(dtype)).sqrt_()
    params.addcdiv_(grads.mul_(_column(learning_rate, params).to(dtype)), root, value=-1.0)


def adam(
    params: Tensor,
    grads: Tensor,
    m: Tensor,
    v: Tensor,
    steps: Tensor,
    *,
    learning_rate: Tensor,
    beta1: Tensor | float = 0.9,
    beta2: Tensor | float = 0.999,
    epsilon: Tensor | float = 1e-8,
    active: Tensor,
) -> None:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1), with a step count per member.

        m <- m + (1 - beta1) (g - m);    v <- v + (1 - beta2) (g^2 - v)
        theta <- theta - learning_rate (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)

    `m`, `v` `[k, D]` and `steps` `[k]` start at 0.
    """
    live, dtype = active[:, None], params.dtype
    steps.add_(active)
    t = steps[:, None]
    decay1, decay2 = _column(beta1, params), _column(beta2, params)
    # 1 - beta^t. The result of `pow` depends on the position in a tensor; that of exp and log does not.
    debias1, debias2 = -torch.expm1(t * decay1.log()), -torch.expm1(t * decay2.log())
    root2 = debias2.sqrt()
    _zero_inactive(grads, active)
    m.lerp_(grads, ((1.0 - decay1) * live).to(dtype))
    v.lerp_(grads.square_(), ((1.0 - decay2) * live).to(dtype))
    update = torch.sqrt(v, out=grads).add_((_column(epsilon, params).clamp_min(TINY) * root2).to(dtype))
    torch.div(m, update, out=update).mul_((_column(learning_rate, params) * root2 / debias1).to(dtype))
    params.sub_(_zero_inactive(update, active))


def _zero_inactive(rows: Tensor, active: Tensor) -> Tensor:
    """Set the rows of inactive members to 0. Usually all are active, and a masked fill is slow."""
    return rows if active.all() else rows.masked_fill_(~active[:, None], 0.0)


def _column(value: Tensor | float, params: Tensor) -> Tensor:
    """Return `[k, 1]` in float64, because 1 - 0.999 in float32 has a relative error of 1e-5."""
    if isinstance(value, Tensor):
        return value.to(torch.float64)[:, None]
    return torch.full((len(params), 1), value, dtype=torch.float64, device=params.device)
