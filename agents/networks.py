"""Networks for a whole cohort: parameters are rows of one flat [P, D] buffer, layers are views into it.

`Layout` gives every parameter a place, padded to 16 floats. A network is a frozen value with pure functions of those
views; it is initialised per member from the member's own generator. Dense layers run as one batched matrix product
over all members. Convolutions run member by member, which is faster on a CPU than grouped convolution, in chunks that
fit the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (the name everybody knows)
from torch import Tensor

from agents.settings import Network
from agents.types import Views

PAD = 16  # floats; a vector register's width, so that no member's row shares one with its neighbour
COLUMNS = 8  # a matrix has a multiple of these, lest the place in a batch decide how a product is summed


@dataclass(frozen=True)
class Layout:
    """Where each named parameter lies in a member's flat row."""

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def size(self) -> int:
        """D, floats per member, padding included."""
        return sum(_padded(math.prod(shape)) for shape in self.shapes.values())

    def views(self, flat: Tensor) -> Views:
        """Every parameter of [P, D] as [P, *shape], without copying."""
        views, start = {}, 0
        for name, shape in self.shapes.items():
            views[name] = flat[:, start : start + math.prod(shape)].view(len(flat), *shape)
            start += _padded(math.prod(shape))
        return views

    def leaves(self, flat: Tensor) -> Views:
        """The same views as leaves that autograd differentiates by."""
        return {name: view.detach().requires_grad_() for name, view in self.views(flat).items()}


class Net(Protocol):
    """Policy and value of a group of members.

    Attributes:
        layout: its parameters.
        frames: how many observations the learner should put through at a time; None for all. With a number, members
            pass one by one, so P is 1 below.
    """

    @property
    def layout(self) -> Layout:
        """Its parameters."""

    @property
    def frames(self) -> int | None:
        """Observations per pass."""

    @property
    def size(self) -> int:
        """How many numbers a member learns, padding not counted."""

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member, without the leading axis."""

    def value_head(self, views: Views) -> tuple[Tensor, Tensor]:
        """The weight and bias whose product with the last features is the value, as views [P, ...]."""

    def policy(self, params: Views, x: Tensor) -> Tensor:
        """[P, M, ...] -> distribution parameters [P, M, K]; for acting, without gradients."""

    def both(self, params: Views, x: Tensor) -> tuple[Tensor, Tensor]:
        """[P, M, ...] -> distribution parameters [P, M, K] and values [P, M]."""


@dataclass(frozen=True)
class MLP:
    """Separate stacks of tanh layers for policy and value, orthogonal initialisation (gain sqrt 2; policy 0.01)."""

    inputs: int
    hidden: tuple[int, ...]
    outputs: int

    @property
    def frames(self) -> None:
        """Whole blocks at once."""
        return

    @property
    def layout(self) -> Layout:
        """Weights [in, out] and biases [1, out]; widths are rounded up to COLUMNS, and what is unused stays 0."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, fan_in, fan_out, _ in self._layers():
            rows = fan_in if name.endswith(".0") else _padded(fan_in, COLUMNS)
            shapes[f"{name}.weight"] = (rows, _padded(fan_out, COLUMNS))
            shapes[f"{name}.bias"] = (1, _padded(fan_out, COLUMNS))
        return Layout(shapes)

    @property
    def size(self) -> int:
        """How many numbers a member learns, padding not counted."""
        return sum((fan_in + 1) * fan_out for _, fan_in, fan_out, _ in self._layers())

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member."""
        params = {name: torch.zeros(shape) for name, shape in self.layout.shapes.items()}
        for name, fan_in, fan_out, gain in self._layers():
            weight = torch.nn.init.orthogonal_(torch.empty(fan_in, fan_out), gain, generator=generator)
            params[f"{name}.weight"][:fan_in, :fan_out] = weight
        return params

    def policy(self, params: Views, x: Tensor) -> Tensor:
        """[P, M, inputs] -> [P, M, outputs]."""
        return self._stack(params, "policy", x)[..., : self.outputs]

    def both(self, params: Views, x: Tensor) -> tuple[Tensor, Tensor]:
        """[P, M, inputs] -> [P, M, outputs], [P, M]."""
        return self.policy(params, x), self._stack(params, "value", x)[..., 0]

    def value_head(self, views: Views) -> tuple[Tensor, Tensor]:
        """The first column of the last layer."""
        last = f"value.{len(self.hidden)}"
        return views[f"{last}.weight"][..., :1], views[f"{last}.bias"][..., :1]

    def _layers(self) -> Iterator[tuple[str, int, int, float]]:
        """Name, inputs, outputs and the initial weight's gain, layer by layer."""
        for stack, last, gain in (("policy", self.outputs, 0.01), ("value", 1, 1.0)):
            widths = [self.inputs, *self.hidden, last]
            gains = [math.sqrt(2)] * len(self.hidden) + [gain]
            for i, (fan_in, fan_out) in enumerate(pairwise(widths)):
                yield f"{stack}.{i}", fan_in, fan_out, gains[i]

    def _stack(self, params: Views, stack: str, x: Tensor) -> Tensor:
        for i in range(len(self.hidden) + 1):
            x = torch.baddbmm(params[f"{stack}.{i}.bias"], x, params[f"{stack}.{i}.weight"])
            if i < len(self.hidden):
                x = torch.tanh(x)
        return x


@dataclass(frozen=True)
class Convolutional:
    """Convolutions, one dense layer, then linear policy and value heads on the shared features.

    Attributes:
        image: (channels, height, width) of an observation.
        convolutions: (channels out, kernel, stride) of each layer.
        units: width of the dense layer.
        outputs: K.
        precision: arithmetic of the learner's pass; acting is always float32.
    """

    image: tuple[int, int, int]
    convolutions: tuple[tuple[int, int, int], ...]
    units: int
    outputs: int
    precision: torch.dtype
    frames: int = 96

    @property
    def layout(self) -> Layout:
        """Convolutions [out, in, k, k], dense weights [in, out]."""
        shapes: dict[str, tuple[int, ...]] = {}
        channels, height, width = self.image
        for i, (out, kernel, stride) in enumerate(self.convolutions):
            shapes[f"conv.{i}.weight"] = (out, channels, kernel, kernel)
            shapes[f"conv.{i}.bias"] = (out,)
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
            channels = out
        flat = channels * height * width
        for name, fan_in, fan_out in (
            ("dense", flat, self.units), ("policy", self.units, self.outputs), ("value", self.units, 1)
        ):  # fmt: skip
            shapes[f"{name}.weight"] = (fan_in, fan_out)
            shapes[f"{name}.bias"] = (fan_out,)
        return Layout(shapes)

    @property
    def size(self) -> int:
        """How many numbers a member learns."""
        return sum(math.prod(shape) for shape in self.layout.shapes.values())

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member: orthogonal, gain sqrt 2; policy 0.01, value 1."""
        gains = {"policy": 0.01, "value": 1.0}
        params = {}
        for name, shape in self.layout.shapes.items():
            if name.endswith("bias"):
                params[name] = torch.zeros(shape)
            else:
                gain = gains.get(name.split(".")[0], math.sqrt(2))
                params[name] = torch.nn.init.orthogonal_(torch.empty(shape), gain, generator=generator)
        return params

    def policy(self, params: Views, x: Tensor) -> Tensor:
        """[1, M, C, H, W] uint8 -> [1, M, outputs]."""
        return self._head(params, "policy", self._features(params, x.squeeze(0)))

    def both(self, params: Views, x: Tensor) -> tuple[Tensor, Tensor]:
        """[1, M, C, H, W] uint8 -> [1, M, outputs], [1, M].

        The heads are float32 always: temporal differences are smaller than what bfloat16 leaves of a value.
        """
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            features = self._features(params, _channels_last(x.squeeze(0)))
        features = features.float()
        return self._head(params, "policy", features), self._head(params, "value", features).squeeze(-1)

    def value_head(self, views: Views) -> tuple[Tensor, Tensor]:
        """The linear layer on the shared features."""
        return views["value.weight"], views["value.bias"]

    def _features(self, params: Views, x: Tensor) -> Tensor:
        """[M, C, H, W] uint8 -> [M, units]."""
        own = {name: p.view(p.shape[1:]) for name, p in params.items()}
        x = x.to(torch.float32).mul_(1 / 255)
        for i, (_, _, stride) in enumerate(self.convolutions):
            x = F.relu(F.conv2d(x, own[f"conv.{i}.weight"], own[f"conv.{i}.bias"], stride))
        return F.relu(torch.addmm(own["dense.bias"], x.flatten(1), own["dense.weight"]))

    def _head(self, params: Views, head: str, features: Tensor) -> Tensor:
        """[M, units] -> [1, M, ...]."""
        weight, bias = (params[f"{head}.{kind}"].squeeze(0) for kind in ("weight", "bias"))
        return torch.addmm(bias, features, weight)[None]


SHALLOW = ((16, 8, 4), (32, 4, 2)), 256
NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512


def network(settings: Network, shape: tuple[int, ...], outputs: int, image: bool) -> Net:
    """The network that the settings name for observations of `shape`.

    Raises:
        ValueError: a network for images on vectors, or the other way round; or images that are too small for it.
    """
    kind = settings.network
    if kind == "auto":
        kind = "shallow" if image else "mlp"
    if image != (kind != "mlp"):
        what = "images" if image else "vectors"
        right = "shallow or nature" if image else "mlp"
        raise ValueError(f"agent.network={kind} cannot read observations that are {what}: use {right}")
    if kind == "mlp":
        return MLP(math.prod(shape), settings.hidden, outputs)
    convolutions, units = SHALLOW if kind == "shallow" else NATURE
    channels, height, width = shape
    least = 1
    for _, kernel, stride in reversed(convolutions):
        least = (least - 1) * stride + kernel
    if min(height, width) < least:
        raise ValueError(
            f"agent.network={kind} reads images of at least {least} x {least} pixels, not {height} x {width}"
        )
    return Convolutional((channels, height, width), convolutions, units, outputs, _precision(settings.precision))


def _channels_last(x: Tensor) -> Tensor:
    """[M, C, H, W] bytes in channels-last memory: convolutions learn faster so; stacking planes is the quick way."""
    return torch.stack(x.unbind(1), -1).permute(0, 3, 1, 2)


def _precision(name: str) -> torch.dtype:
    if name == "auto":
        fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _padded(size: int, unit: int = PAD) -> int:
    return -(-size // unit) * unit
