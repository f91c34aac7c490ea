"""Torsos: from an observation to features, for all members of a cohort.

Convolutions run member by member, which is faster on a CPU than grouped convolution, in chunks that fit the cache.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (the name everybody knows)
from torch import Tensor

from pbtrl.agents.layers import COLUMNS, dense, orthogonal, padded
from pbtrl.agents.types import Views


class Torso(Protocol):
    """What turns observations into features, for a network whose policy and value share them.

    Attributes:
        units: how many features.
        frames: as `Net.frames`.
        shapes: its parameters, without the leading axis.
    """

    @property
    def units(self) -> int:
        """Features."""

    @property
    def frames(self) -> int | None:
        """Observations per pass."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Its parameters."""

    @property
    def size(self) -> int:
        """How many numbers a member learns, padding not counted."""

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member."""

    def features(self, params: Views, x: Tensor, *, learning: bool) -> Tensor:
        """[P, M, *shape] -> [P, M, units], float32."""


@dataclass(frozen=True)
class Dense:
    """Tanh layers (orthogonal initialization, gain sqrt 2) for vectors."""

    inputs: int
    hidden: tuple[int, ...]

    @property
    def units(self) -> int:
        """The last layer's."""
        return self.hidden[-1] if self.hidden else self.inputs

    @property
    def frames(self) -> None:
        """Whole blocks at once."""
        return

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights [in, out] and biases [1, out], padded as those of MLP."""
        found: dict[str, tuple[int, ...]] = {}
        for i, (fan_in, fan_out) in enumerate(pairwise([self.inputs, *self.hidden])):
            rows, columns = fan_in if i == 0 else padded(fan_in, COLUMNS), padded(fan_out, COLUMNS)
            found |= {f"torso.{i}.weight": (rows, columns), f"torso.{i}.bias": (1, columns)}
        return found

    @property
    def size(self) -> int:
        """How many numbers a member learns, padding not counted."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise([self.inputs, *self.hidden]))

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member."""
        params = {name: torch.zeros(shape) for name, shape in self.shapes.items()}
        for i, (fan_in, fan_out) in enumerate(pairwise([self.inputs, *self.hidden])):
            params[f"torso.{i}.weight"][:fan_in, :fan_out] = orthogonal((fan_in, fan_out), generator)
        return params

    def features(self, params: Views, x: Tensor, *, learning: bool) -> Tensor:
        """[P, M, *shape] -> [P, M, units]."""
        x = x.flatten(2)
        for i in range(len(self.hidden)):
            x = torch.tanh(dense(x, params[f"torso.{i}.weight"], params[f"torso.{i}.bias"]))
        return x[..., : self.units]


@dataclass(frozen=True)
class Convolutional:
    """Images through plain convolutions, or IMPALA's residual sections, and one dense layer; for one member at a time.

    Attributes:
        image: (channels, height, width) of an observation.
        convolutions: (channels out, kernel, stride) of each layer; none with `sections`.
        sections: channels of each residual section (Espeholt et al. 2018, figure 3): convolution 3x3, max-pooling
            3x3/2, and twice x + conv(relu(conv(relu(x)))).
        units: width of the dense layer.
        precision: arithmetic of the learner's pass; acting is always float32.
    """

    image: tuple[int, int, int]
    convolutions: tuple[tuple[int, int, int], ...]
    units: int
    precision: torch.dtype
    sections: tuple[int, ...] = ()
    frames: int = 96

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Convolutions [out, in, k, k], dense weight [in, out]."""
        found: dict[str, tuple[int, ...]] = {}
        channels, height, width = self.image
        for i, (out, kernel, stride) in enumerate(self.convolutions):
            found |= {f"conv.{i}.weight": (out, channels, kernel, kernel), f"conv.{i}.bias": (out,)}
            height, width, channels = (height - kernel) // stride + 1, (width - kernel) // stride + 1, out
        for i, out in enumerate(self.sections):
            for name, fan_in in ((f"section.{i}", channels), *((f"section.{i}.{j}", out) for j in range(4))):
                found |= {f"{name}.weight": (out, fan_in, 3, 3), f"{name}.bias": (out,)}
            height, width, channels = (height + 1) // 2, (width + 1) // 2, out
        flat = channels * height * width
        return found | {"dense.weight": (flat, self.units), "dense.bias": (self.units,)}

    @property
    def size(self) -> int:
        """How many numbers a member learns."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member: orthogonal, gain sqrt 2."""
        return {
            name: torch.zeros(shape) if name.endswith("bias") else orthogonal(shape, generator)
            for name, shape in self.shapes.items()
        }

    def features(self, params: Views, x: Tensor, *, learning: bool) -> Tensor:
        """[1, M, C, H, W] uint8 -> [1, M, units]."""
        own = {name: params[name].squeeze(0) for name in self.shapes}
        low = learning and self.precision != torch.float32
        with torch.autocast(x.device.type, self.precision, enabled=low):
            x = (_channels_last(x.squeeze(0)) if learning else x.squeeze(0)).to(torch.float32).mul_(1 / 255)
            for i, (_, _, stride) in enumerate(self.convolutions):
                x = F.relu(F.conv2d(x, own[f"conv.{i}.weight"], own[f"conv.{i}.bias"], stride))
            for i in range(len(self.sections)):
                x = self._section(own, f"section.{i}", x)
            x = F.relu(x) if self.sections else x
            x = F.relu(torch.addmm(own["dense.bias"], x.flatten(1), own["dense.weight"]))
        return x.float()[None]

    def _section(self, own: Views, name: str, x: Tensor) -> Tensor:
        def convolved(name: str, x: Tensor) -> Tensor:
            return F.conv2d(x, own[f"{name}.weight"], own[f"{name}.bias"], padding=1)

        x = F.max_pool2d(convolved(name, x), 3, 2, padding=1)
        for j in (0, 2):
            x = x + convolved(f"{name}.{j + 1}", F.relu(convolved(f"{name}.{j}", F.relu(x))))
        return x


def _channels_last(x: Tensor) -> Tensor:
    """[M, C, H, W] bytes in channels-last memory: convolutions learn faster so; stacking planes is the quick way."""
    return torch.stack(x.unbind(1), -1).permute(0, 3, 1, 2)


def convolution_precision(name: str) -> torch.dtype:
    """The data type of convolutions in the learner; `auto` is bfloat16 where the hardware has it."""
    if name == "auto":
        fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32
