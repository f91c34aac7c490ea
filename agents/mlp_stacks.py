"""Stacks of dense layers with hand-written gradients, and the activation functions that they can have.

Matrix products are numpy's, because torch's are MKL's, which runs its kernels for AVX-512 on Intel's processors only.
On an AMD EPYC with AVX-512, the product of four members' 256 x 64 outputs and 64 x 64 weights takes torch 83
microseconds and numpy 40. Everything elementwise happens in place.

tanh is 2 sigmoid(2x) - 1, which differs by at most 2e-7 and is fast on every processor. On that EPYC 64k floats take 17
microseconds; torch's tanh takes 133, and numpy's 11, or 58 without AVX-512. For few floats numpy's is the fastest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (conventional alias)
from torch import Tensor
from typing_extensions import override

from pbtrl.agents.arrays import quiet

FEW = 4096  # floats of which numpy's tanh takes no longer than two operations
VECTOR = 32  # floats that sigmoid's kernel takes at once; the rest of a tensor gets other bits
MINUS_ONE = torch.tensor(-1.0)
aten = torch.ops.aten


@dataclass(frozen=True)
class Activation:
    """Elementwise function y = f(x) with f(0) = 0, so that padding stays 0.

    Attributes:
        gain: gain of the orthogonal initialization of the layer.
        scale: factor on x that `apply_` expects, because the product before it can include it.
        apply_: replace `scale` x [P, M, W] by y in place.
        backward_: replace a gradient with respect to y by that with respect to x in place, given y.
    """

    gain: float
    scale: float
    apply_: Callable[[Tensor], Tensor]
    backward_: Callable[[Tensor, Tensor], Tensor]


def _plain_tanh(x: Tensor) -> Tensor:
    if torch.compiler.is_exporting():  # a graph has torch's operations only
        return torch.tanh(x)
    return torch.from_numpy(np.tanh(x.numpy(), out=x.numpy()))


def _tanh(doubled: Tensor) -> Tensor:
    return torch.add(MINUS_ONE, doubled.sigmoid_(), alpha=2.0, out=doubled)


def _elu(x: Tensor) -> Tensor:
    """Compute max(x, 0) + exp(min(x, 0)) - 1, because the bits of torch's ELU depend on the slot."""
    positive = x.clamp_min(0.0)
    return x.clamp_max_(0.0).exp_().sub_(1.0).add_(positive)


_PLAIN_TANH = Activation(
    math.sqrt(2.0), 1.0, _plain_tanh, lambda g, y: aten.tanh_backward.grad_input(g, y, grad_input=g)
)

ACTIVATIONS = {
    "tanh": replace(_PLAIN_TANH, scale=2.0, apply_=_tanh),
    "relu": Activation(
        math.sqrt(2.0), 1.0, torch.relu_, lambda g, y: aten.threshold_backward.grad_input(g, y, 0.0, grad_input=g)
    ),
    "elu": Activation(
        1.2452, 1.0, _elu, lambda g, y: aten.elu_backward.grad_input(g, 1.0, 1.0, 1.0, True, y, grad_input=g)
    ),
}
"""Activation functions by name. The gains of ReLU and ELU preserve the mean square of normal inputs."""


def _for_floats(name: str, floats: int) -> Activation:
    """Choose the form of an activation function by the number of a member's outputs."""
    if name == "tanh" and (floats <= FEW or floats % VECTOR):  # else the bits would depend on the member's slot
        return _PLAIN_TANH
    return ACTIVATIONS[name]


@dataclass(frozen=True)
class Stack:
    """Shape of a stack.

    Attributes:
        activation: name of the activation function.
        size: number of outputs, without padding.
        linear: True if there is no activation function after the last layer.
    """

    activation: str
    size: int
    linear: bool


@quiet
def forward(stack: Stack, x: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """Return the inputs [P, M, in] and each layer's outputs, from weight [P, in, out] and bias [P, 1, out] of each."""
    values = [x]
    for weight, bias, f, scale in _layers(stack, x.shape[1], params):
        x = _product(x, weight)
        x = torch.add(bias.detach().mul(scale), x, alpha=scale, out=x)
        values.append(f.apply_(x) if f else x)
    return values


@quiet
def act(stack: Stack, x: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Return the outputs [P, M, size] without autograd; for few rows, one operation of torch's is faster than two."""
    for weight, bias, f, scale in _layers(stack, x.shape[1], params):
        x = torch.baddbmm(bias, x, weight, beta=scale, alpha=scale)
        x = f.apply_(x) if f else x
    return x[..., : stack.size]


def _layers(
    stack: Stack, rows: int, params: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Activation | None, float]]:
    """Yield each layer's weight and bias, and its activation function with the factor that it expects."""
    for i in range(0, len(params), 2):
        linear = stack.linear and i == len(params) - 2
        f = None if linear else _for_floats(stack.activation, rows * params[i].shape[2])
        yield params[i], params[i + 1], f, f.scale if f else 1.0


@quiet
def backward(
    stack: Stack, grad: Tensor, values: Sequence[Tensor], params: Sequence[Tensor], out: Sequence[Tensor]
) -> None:
    """Write the gradients by the parameters into `out`, given that by the outputs [P, M, size] and `forward`'s result.

    If the gradient has fewer rows than the outputs, the remaining rows have none.
    """
    f, rows = ACTIVATIONS[stack.activation], grad.shape[1]
    values = values if rows == values[0].shape[1] else [x[:, :rows] for x in values]
    unpadded = grad.numpy()
    padded = np.zeros((*grad.shape[:2], values[-1].shape[-1]), unpadded.dtype)  # torch's padding takes far longer
    padded[..., : stack.size] = unpadded
    grad = torch.from_numpy(padded)
    if not stack.linear:
        grad = f.backward_(grad, values[-1])
    for i in reversed(range(len(params) // 2)):
        _product(values[i].mT, grad, out[2 * i])
        torch.sum(grad, 1, keepdim=True, out=out[2 * i + 1])
        if i:
            grad = f.backward_(_product(grad, params[2 * i].mT), values[i])


def _product(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """Multiply x [P, M, K] by y [P, K, N] without autograd."""
    result = x.new_empty(*x.shape[:2], y.shape[2]) if out is None else out
    np.matmul(x.numpy(), y.detach().numpy(), out=result.numpy())
    return result


def run_stack(stack: Stack, x: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Map x [P, M, inputs], which get no gradient, to [P, M, size]."""
    if x.shape[-1] == 1:
        # Vector kernels would compute this product, and on some processors their rounding depends on the slot.
        x, params = F.pad(x, (0, 1)), [F.pad(params[0], (0, 0, 0, 1)), *params[1:]]
    if not torch.is_grad_enabled():
        return act(stack, x, params)
    output: Tensor = _Stack.apply(stack, x, *params)  # type: ignore[no-untyped-call]
    return output


class _Stack(torch.autograd.Function):
    @staticmethod
    @override
    def forward(ctx: Any, stack: Stack, x: Tensor, *params: Tensor) -> Tensor:
        values = forward(stack, x, params)
        ctx.stack = stack
        ctx.save_for_backward(*values, *params)
        return values[-1][..., : stack.size]

    @staticmethod
    @override
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, count = ctx.saved_tensors, len(ctx.saved_tensors) // 3 + 1
        params = saved[count:]
        result = [torch.empty_like(x) for x in params]
        backward(ctx.stack, grads[0], saved[:count], params, result)
        return None, None, *result
