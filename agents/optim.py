"""Flat optimizers: all parameters of a cohort in one `[k member, D parameter]` buffer.

Updates run in place with a fixed number of elementwise operations. Each member has its own learning rate, decay,
epsilon and clip, passed at every call as `[k]` tensors and never cached. D is a multiple of 16 (the caller pads),
because kernels treat the last floats of a tensor differently. `grads` is scratch space: its contents are overwritten.

`active`, bool `[k]`, selects the members that take the step. The others keep parameters, moments and step count bit for
bit, even if their gradient contains NaN.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pbtrl.agents.arrays import quiet

# Avoids 0 / 0 for dead units if a search sets epsilon to 0.
TINY = 1e-30


@quiet
def clip_by_global_norm(grads: Tensor, max_norm: Tensor) -> Tensor:
    """Scale each member's row of `grads` `[k, D]` so that its L2 norm is at most `max_norm` `[k]`, in place.

    Returns:
        The norms `[k]` before clipping; not finite if a gradient is not finite, or overflows when squared.
    """
    norms: Tensor = torch.linalg.vector_norm(grads, dim=-1)
    scales = np.minimum(max_norm.numpy() / np.maximum(norms.numpy(), TINY), 1.0)
    grads.mul_(torch.from_numpy(scales[:, None]))
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
    rows = zip(_numbers(learning_rate, params), _numbers(decay, params), _numbers(epsilon, params), strict=True)
    coefficients = [(rate, 1.0 - d, max(e, TINY)) for rate, d, e in rows]
    rate, weight, epsilon = _columns(coefficients, grads, active)
    mean_square.lerp_(grads.square(), weight)
    params.addcdiv_(grads.mul_(rate), (mean_square + epsilon).sqrt_(), value=-1.0)


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
    steps.add_(active)
    values = (_numbers(value, params) for value in (learning_rate, beta1, beta2, epsilon))
    tensors = (x.unbind() for x in (params, grads, m, v, steps))
    for on, rate, decay1, decay2, e, *rows in zip(active.tolist(), *values, *tensors, strict=True):
        if on:  # torch.optim's kernel: one pass over memory in place of eight
            own, grad, mean, square, count = ([row] for row in rows)
            torch._fused_adam_(
                own, grad, mean, square, [], count, lr=rate, beta1=decay1, beta2=decay2, weight_decay=0.0,
                eps=max(e, TINY), amsgrad=False, maximize=False,
            )  # fmt: skip


def _numbers(value: Tensor | float, params: Tensor) -> list[float]:
    """One number per member."""
    return value.tolist() if isinstance(value, Tensor) else [value] * len(params)


def _columns(rows: Sequence[tuple[float, ...]], grads: Tensor, active: Tensor) -> tuple[Tensor, ...]:
    """Convert coefficients of each member to columns `[k, 1]`; inactive members get 0, also in `grads`.

    They are computed in double precision, because 1 - 0.999 in float32 has a relative error of 1e-5.
    """
    columns = torch.tensor(rows, dtype=grads.dtype, device=grads.device)
    if not active.all():
        columns[~active, :-1] = 0.0
        grads.masked_fill_(~active[:, None], 0.0)
    return columns.T[..., None].unbind()
