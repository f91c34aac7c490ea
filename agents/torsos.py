"""Torsos: networks from observations to features, for all members of a cohort.

Convolutions run member by member, which is faster on a CPU than grouped convolutions, and in chunks that fit the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (conventional alias)
from torch import Tensor

from pbtrl.agents.layers import DenseStack, orthogonal
from pbtrl.agents.mlp_stacks import ACTIVATIONS, Stack, run_stack
from pbtrl.agents.types import Views


class Torso(Protocol):
    """Interface of a network that computes the features shared by policy and value."""

    @property
    def units(self) -> int:
        """Number of features."""

    @property
    def frames(self) -> int | None:
        """Approximate observations per forward pass of the learner; see `Net.frames`."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters, without the member axis."""

    @property
    def size(self) -> int:
        """Number of learned parameters per member, without padding."""

    def initial(self, generator: torch.Generator) -> Views:
        """Initial parameters of one member, without the member axis."""

    def features(self, params: Views, x: Tensor, *, learning: bool) -> Tensor:
        """Observations [P, M, *shape] -> features [P, M, units], float32."""


@dataclass(frozen=True)
class Dense:
    """Hidden layers for vector observations, with orthogonal initialization and the activation's gain."""

    inputs: int
    hidden: tuple[int, ...]
    activation: str = "tanh"

    @property
    def units(self) -> int:
        """Width of the last layer, or the number of inputs if there are no layers."""
        return self.hidden[-1] if self.hidden else self.inputs

    @property
    def frames(self) -> None:
        """No limit."""
        return

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters, without the member axis."""
        return self._layers.shapes

    @property
    def size(self) -> int:
        """Number of learned parameters per member, without padding."""
        return self._layers.size

    def initial(self, generator: torch.Generator) -> Views:
        """Initial parameters of one member, without the member axis."""
        return self._layers.initial(generator)

    @property
    def _layers(self) -> DenseStack:
        gains = [ACTIVATIONS[self.activation].gain] * len(self.hidden)
        return DenseStack("torso", (self.inputs, *self.hidden), gains)

    def features(self, params: Views, x: Tensor, *, learning: bool) -> Tensor:
        """Observations [P, M, *shape] -> features [P, M, units]."""
        x = x.flatten(2)
        if not self.hidden:
            return x
        own = [params[f"torso.{i}.{kind}"] for i in range(len(self.hidden)) for kind in ("weight", "bias")]
        return run_stack(Stack(self.activation, self.units, linear=False), x, own)


@dataclass(frozen=True)
class Convolutional:
    """Plain convolutions or IMPALA's residual sections, then a dense layer, for images; runs one member at a time.

    Attributes:
        image: (channels, height, width) of an observation.
        convolutions: (output channels, kernel size, stride) of each layer; empty if `sections` are used.
        units: width of the dense layer.
        precision: data type of the learner's convolutions; acting always uses float32.
        sections: channels of each residual section (Espeholt et al. 2018, figure 3), which is a 3x3 convolution, 3x3
            max pooling with stride 2, and two blocks x + conv(relu(conv(relu(x)))).
        frames: see `Net.frames`.
    """

    image: tuple[int, int, int]
    convolutions: tuple[tuple[int, int, int], ...]
    units: int
    precision: torch.dtype
    sections: tuple[int, ...] = ()
    frames: int = 256

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Convolutions [out, in, k, k] and dense weight [in, out]."""
        shapes: dict[str, tuple[int, ...]] = {}
        channels, height, width = self.image
        for i, (out, kernel, stride) in enumerate(self.convolutions):
            shapes |= {f"conv.{i}.weight": (out, channels, kernel, kernel), f"conv.{i}.bias": (out,)}
            height, width, channels = (height - kernel) // stride + 1, (width - kernel) // stride + 1, out
        for i, out in enumerate(self.sections):
            for name, fan_in in ((f"section.{i}", channels), *((f"section.{i}.{j}", out) for j in range(4))):
                shapes |= {f"{name}.weight": (out, fan_in, 3, 3), f"{name}.bias": (out,)}
            height, width, channels = (height + 1) // 2, (width + 1) // 2, out
        flat = channels * height * width
        return shapes | {"dense.weight": (flat, self.units), "dense.bias": (self.units,)}

    @property
    def size(self) -> int:
        """Number of learned parameters per member."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def initial(self, generator: torch.Generator) -> Views:
        """Initial parameters of one member: orthogonal with gain sqrt 2; biases are 0."""
        return {
            name: torch.zeros(shape) if name.endswith("bias") else orthogonal(shape, generator)
            for name, shape in self.shapes.items()
        }

    def features(self, params: Views, x: Tensor, *, learning: bool) -> Tensor:
        """Images [1, M, C, H, W] uint8 -> features [1, M, units]."""
        dtype = self.precision if learning else torch.float32
        x = (_channels_last(x.squeeze(0)) if learning else x.squeeze(0)).to(dtype)  # bfloat16 holds 0 to 255 exactly
        own = {name: params[name].squeeze(0) for name in self.shapes}
        first, last = next(iter(own)), "dense.weight"
        own[first] = own[first] * (1 / 255)
        if learning:  # flattening in another order would copy the features
            own[last] = own[last].view(self._channels, -1, self.units).transpose(0, 1)
        own = {name: weight.to(dtype, memory_format=torch.contiguous_format) for name, weight in own.items()}
        for i, (_, _, stride) in enumerate(self.convolutions):
            x = F.relu(F.conv2d(x, own[f"conv.{i}.weight"], own[f"conv.{i}.bias"], stride))
        for i in range(len(self.sections)):
            x = self._section(own, f"section.{i}", x)
        x = F.relu(x) if self.sections else x
        x = (x.permute(0, 2, 3, 1) if learning else x).flatten(1)
        return F.relu(torch.addmm(own["dense.bias"], x, own[last].reshape(-1, self.units))).float()[None]

    @property
    def _channels(self) -> int:
        """Channels of the last convolution."""
        return self.sections[-1] if self.sections else self.convolutions[-1][0]

    def _section(self, own: Views, name: str, x: Tensor) -> Tensor:
        def conv(name: str, x: Tensor) -> Tensor:
            return F.conv2d(x, own[f"{name}.weight"], own[f"{name}.bias"], padding=1)

        x = F.max_pool2d(conv(name, x), 3, 2, padding=1)
        for j in (0, 2):
            x = x + conv(f"{name}.{j + 1}", F.relu(conv(f"{name}.{j}", F.relu(x))))
        return x


def _channels_last(x: Tensor) -> Tensor:
    """Copy [M, C, H, W] to channels-last memory, which makes learning faster; `stack` is the fastest way to do it."""
    return torch.stack(x.unbind(1), -1).permute(0, 3, 1, 2)


def convolution_precision(name: str) -> torch.dtype:
    """Data type of the learner's convolutions; `auto` is bfloat16 if the processor supports it."""
    low = name == "bfloat16" or (name == "auto" and torch.cpu._is_avx512_bf16_supported())
    return torch.bfloat16 if low else torch.float32
