"""Layers stacked over members, and the layout of their parameters in one flat buffer.

`Layout` gives every parameter a place, padded to 16 floats. Dense layers run as one batched matrix product over all
members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (the name everybody knows)
from torch import Tensor

from pbtrl.agents.types import Views

PAD = 16  # floats; a vector register's width, so that no member's row shares one with its neighbor
COLUMNS = 8  # a matrix has a multiple of these, lest the place in a batch decide how a product is summed


@dataclass(frozen=True)
class Layout:
    """Where each named parameter lies in a member's flat row."""

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """D, floats per member, padding included."""
        return sum(padded(math.prod(shape)) for shape in self.shapes.values())

    def views(self, flat: Tensor) -> Views:
        """Every parameter of [P, D] as [P, *shape], without copying."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            views[name] = flat[:, start : start + math.prod(shape)].view(len(flat), *shape)
            start += padded(math.prod(shape))
        return views

    def leaves(self, flat: Tensor) -> Views:
        """The same views as leaves that autograd differentiates by."""
        return {name: view.detach().requires_grad_() for name, view in self.views(flat).items()}


def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[P, M, in] @ [P, in, out] + [P, 1, out] -> [P, M, out].

    A second input of zeros joins a single one: vector kernels, whose rounding on some processors depends on where a
    member's rows lie in memory, would compute that product.
    """
    if x.shape[-1] == 1:
        x, weight = F.pad(x, (0, 1)), F.pad(weight, (0, 0, 0, 1))
    return torch.baddbmm(bias, x, weight)


def rnn_state_at(rnn_state: Tensor, starts: Tensor | None, t: int) -> Tensor:
    """The memory [P, B, H] that step t begins with; where an unroll starts, its past is not learned from."""
    return rnn_state if starts is None else torch.where(starts[:, t, None, None], rnn_state.detach(), rnn_state)


def lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Output and cell [..., W] from the gates [..., 4 x W]: input, forget, output, new.

    The logistic function is written with tanh, whose kernels agree with themselves bit for bit in every place of a
    tensor.
    """
    enter, forget, leave, new = gates.chunk(4, -1)
    enter, forget, leave = (0.5 * torch.tanh(0.5 * gate) + 0.5 for gate in (enter, forget, leave))
    cell = forget * cell + enter * torch.tanh(new)
    return leave * torch.tanh(cell), cell


def lstm_shapes(name: str, inputs: int, width: int) -> dict[str, tuple[int, ...]]:
    """An LSTM's parameters: weights [in, out] of its inputs and its last output, and a bias [1, out]."""
    return {f"{name}.input": (inputs, 4 * width), f"{name}.hidden": (width, 4 * width), f"{name}.bias": (1, 4 * width)}


def init_lstm(params: Views, name: str, units: int, generator: torch.Generator) -> None:
    """Fill an LSTM's zeros, for one member: orthogonal with gain 1 gate by gate; the forget gate's bias is 1."""
    inputs, width = params[f"{name}.input"].shape[0], params[f"{name}.hidden"].shape[0]
    for gate in range(4):
        own = slice(gate * width, gate * width + units)
        params[f"{name}.input"][:, own] = orthogonal((inputs, units), generator, 1.0)
        params[f"{name}.hidden"][:units, own] = orthogonal((units, units), generator, 1.0)
    params[f"{name}.bias"][:, width : width + units] = 1.0


def orthogonal(shape: tuple[int, ...], generator: torch.Generator, gain: float = math.sqrt(2)) -> Tensor:
    """A fresh weight whose rows or columns are orthogonal (Saxe et al. 2013, arXiv 1312.6120)."""
    return torch.nn.init.orthogonal_(torch.empty(shape), gain, generator=generator)


def padded(size: int, unit: int = PAD) -> int:
    """A size rounded up to a multiple of `unit`."""
    return -(-size // unit) * unit
