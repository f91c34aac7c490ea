"""Layers stacked over members, and the layout of their parameters in one flat buffer.

`Layout` assigns each parameter its place in the buffer, padded to 16 floats. Dense layers run as one batched matrix
product over all members.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812 (conventional alias)
from torch import Tensor

from pbtrl.agents.types import Views

PAD = 16  # floats; the width of a vector register, so that no two members' rows share one
COLUMNS = 8  # widths are multiples of this, so that the order of summation does not depend on the slot in the batch


@dataclass(frozen=True)
class Layout:
    """Positions of the named parameters in a member's flat row."""

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """D, the number of floats per member, including padding."""
        return sum(padded(math.prod(shape)) for shape in self.shapes.values())

    def views(self, flat: Tensor) -> Views:
        """View [P, D] as one tensor [P, *shape] per parameter, without copying."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            views[name] = flat[:, start : start + math.prod(shape)].view(len(flat), *shape)
            start += padded(math.prod(shape))
        return views

    def start(self, name: str) -> int:
        """Column of a parameter's first float."""
        names = list(self.shapes)
        return sum(padded(math.prod(self.shapes[before])) for before in names[: names.index(name)])

    def leaves(self, flat: Tensor) -> Views:
        """Return the same views as autograd leaves."""
        return {name: view.detach().requires_grad_() for name, view in self.views(flat).items()}


@dataclass(frozen=True)
class DenseStack:
    """Parameters of consecutive dense layers `name.0`, `name.1`, ...

    Attributes:
        name: name of the stack.
        widths: number of inputs, then the outputs of each layer.
        gains: gain of each layer's orthogonal initialization.
    """

    name: str
    widths: Sequence[int]
    gains: Sequence[float]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights [in, out] and biases [1, out]; widths after the inputs are rounded up to multiples of COLUMNS."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(self.widths)):
            rows, columns = padded(fan_in, COLUMNS) if i else fan_in, padded(fan_out, COLUMNS)
            shapes |= {f"{self.name}.{i}.weight": (rows, columns), f"{self.name}.{i}.bias": (1, columns)}
        return shapes

    @property
    def size(self) -> int:
        """Number of learned parameters per member, without padding."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(self.widths))

    def initial(self, generator: torch.Generator) -> Views:
        """Initial parameters of one member, without the member axis; biases and padding are 0."""
        params = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        for i, (shape, gain) in enumerate(zip(pairwise(self.widths), self.gains, strict=True)):
            params[f"{self.name}.{i}.weight"][: shape[0], : shape[1]] = orthogonal(shape, generator, gain)
        return params


def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[P, M, in] @ [P, in, out] + [P, 1, out] -> [P, M, out].

    A single input is padded with a second one of zeros. Otherwise vector kernels would compute the product, and on
    some processors their rounding depends on the position of a member's rows in memory.
    """
    if x.shape[-1] == 1:
        x, weight = F.pad(x, (0, 1)), F.pad(weight, (0, 0, 0, 1))
    return torch.baddbmm(bias, x, weight)


def rnn_state_at(rnn_state: Tensor, starts: Tensor | None, t: int) -> Tensor:
    """Recurrent state [P, B, H] at the beginning of step t, detached where an unroll starts."""
    return rnn_state if starts is None else torch.where(starts[:, t, None, None], rnn_state.detach(), rnn_state)


def lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """Compute output and cell [..., W] from the gates [..., 4 x W], in the order input, forget, output, new.

    The sigmoid is written with tanh, whose kernels give the same bits at every position of a tensor.
    """
    input_gate, forget_gate, output_gate, new = gates.chunk(4, -1)
    input_gate, forget_gate, output_gate = (
        0.5 * torch.tanh(0.5 * gate) + 0.5 for gate in (input_gate, forget_gate, output_gate)
    )
    cell = forget_gate * cell + input_gate * torch.tanh(new)
    return output_gate * torch.tanh(cell), cell


def lstm_shapes(name: str, inputs: int, width: int) -> dict[str, tuple[int, ...]]:
    """Shapes of an LSTM's parameters: input and recurrent weights [in, out], and a bias [1, out]."""
    return {f"{name}.input": (inputs, 4 * width), f"{name}.hidden": (width, 4 * width), f"{name}.bias": (1, 4 * width)}


def init_lstm(params: Views, name: str, units: int, generator: torch.Generator) -> None:
    """Initialize one member's LSTM in place, from zeros: orthogonal with gain 1 per gate, and a forget bias of 1."""
    inputs, width = params[f"{name}.input"].shape[0], params[f"{name}.hidden"].shape[0]
    for gate in range(4):
        columns = slice(gate * width, gate * width + units)
        params[f"{name}.input"][:, columns] = orthogonal((inputs, units), generator, 1.0)
        params[f"{name}.hidden"][:units, columns] = orthogonal((units, units), generator, 1.0)
    params[f"{name}.bias"][:, width : width + units] = 1.0


def orthogonal(shape: tuple[int, ...], generator: torch.Generator, gain: float = math.sqrt(2)) -> Tensor:
    """Draw a weight matrix with orthogonal rows or columns (Saxe et al. 2013, arXiv 1312.6120)."""
    return torch.nn.init.orthogonal_(torch.empty(shape), gain, generator=generator)


def padded(size: int, unit: int = PAD) -> int:
    """Round a size up to a multiple of `unit`."""
    return -(-size // unit) * unit
