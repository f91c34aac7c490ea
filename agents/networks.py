"""Networks for a whole cohort: parameters are rows of one flat [P, D] buffer, layers are views into it.

`Layout` gives every parameter a place, padded to 16 floats. A network is a frozen value with pure functions of those
views; it is initialised per member from the member's own generator. Dense layers run as one batched matrix product
over all members. Convolutions run member by member, which is faster on a CPU than grouped convolution, in chunks that
fit the cache. `MLP` has separate stacks for policy and value; `Shared` puts both on one torso, with an LSTM between
them if wanted.
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

from pbtrl.agents.distributions import Distribution
from pbtrl.agents.settings import NetworkSettings
from pbtrl.agents.types import Inputs, Views

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
        memory: H, floats that it remembers per env from step to step.
    """

    @property
    def layout(self) -> Layout:
        """Its parameters."""

    @property
    def frames(self) -> int | None:
        """Observations per pass."""

    @property
    def memory(self) -> int:
        """H."""

    @property
    def size(self) -> int:
        """How many numbers a member learns, padding not counted."""

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member, without the leading axis."""

    def value_head(self, views: Views) -> tuple[Tensor, Tensor]:
        """The weight and bias whose product with the last features is the value, as views [P, ...]."""

    def step(self, params: Views, inputs: Inputs, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [P, B, ...], memory [P, B, H] -> distribution parameters [P, B, K], memory; without gradients."""

    def unroll(
        self, params: Views, inputs: Inputs, memory: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs [P, T+1, B, ...], memory [P, B, H] -> distribution parameters [P, T+1, B, K], values [P, T+1, B].

        At a step of `starts` [P, T+1] a new unroll begins: what is remembered goes on, and no gradient goes back.
        """


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
    def memory(self) -> int:
        """Nothing is remembered."""
        return 0

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
            params[f"{name}.weight"][:fan_in, :fan_out] = orthogonal((fan_in, fan_out), generator, gain)
        return params

    def step(self, params: Views, inputs: Inputs, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Of the observations alone."""
        return self.policy(params, inputs.observations.flatten(2)), memory

    def unroll(
        self, params: Views, inputs: Inputs, memory: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """All steps at once."""
        steps = inputs.first.shape
        head, values = self.both(params, inputs.observations.flatten(3).flatten(1, 2))
        return head.view(*steps, -1), values.view(steps)

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
            x = dense(x, params[f"{stack}.{i}.weight"], params[f"{stack}.{i}.bias"])
            if i < len(self.hidden):
                x = torch.tanh(x)
        return x


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
    """Tanh layers (orthogonal initialisation, gain sqrt 2) for vectors."""

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
            rows, columns = fan_in if i == 0 else _padded(fan_in, COLUMNS), _padded(fan_out, COLUMNS)
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


@dataclass(frozen=True)
class Shared:
    """Linear policy and value heads on shared features; between them, if `core` is not 0, an LSTM.

    Heads and core are float32 always: temporal differences are smaller than what bfloat16 leaves of a value.

    Attributes:
        torso: observations to features.
        outputs: K.
        core: units of the LSTM (Hochreiter & Schmidhuber 1997, with a forget gate whose bias starts at 1); 0 for none.
        fed_back: numbers of the last action, one-hot if it is an index, that are joined to the features, with the last
            reward clipped to [-1, 1]; 0 for neither.
    """

    torso: Torso
    outputs: int
    core: int = 0
    fed_back: int = 0

    @property
    def frames(self) -> int | None:
        """The torso's."""
        return self.torso.frames

    @property
    def memory(self) -> int:
        """The core's output and its cell."""
        return 2 * _padded(self.core, COLUMNS)

    @property
    def layout(self) -> Layout:
        """The torso's, then weights [in, out] and biases [1, out], whose widths are rounded up to COLUMNS."""
        features, width = self._features, _padded(self.core, COLUMNS)
        core = lstm_shapes("core", features, width)
        heads: dict[str, tuple[int, ...]] = {}
        for name, outputs in (("policy", self.outputs), ("value", 1)):
            columns = _padded(outputs, COLUMNS)
            heads |= {f"{name}.weight": (self.width, columns), f"{name}.bias": (1, columns)}
        return Layout({**self.torso.shapes, **(core if self.core else {}), **heads})

    @property
    def size(self) -> int:
        """How many numbers a member learns, padding not counted."""
        core = 4 * self.core * (self._features + self.core + 1)
        return self.torso.size + core + ((self.core or self._features) + 1) * (self.outputs + 1)

    @property
    def width(self) -> int:
        """W, how many numbers the heads are linear in."""
        return _padded(self.core, COLUMNS) or self._features

    @property
    def _features(self) -> int:
        return self.torso.units + (self.fed_back + 1 if self.fed_back else 0)

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member: orthogonal; the core's gain is 1, the policy's 0.01, the value's 1."""
        params = {name: torch.zeros(shape) for name, shape in self.layout.shapes.items()}
        params |= self.torso.initial(generator)
        if self.core:
            fresh_lstm(params, "core", self.core, generator)
        rows = self.core or self._features
        for name, outputs, gain in (("policy", self.outputs, 0.01), ("value", 1, 1.0)):
            params[f"{name}.weight"][:rows, :outputs] = orthogonal((rows, outputs), generator, gain)
        return params

    def value_head(self, views: Views) -> tuple[Tensor, Tensor]:
        """The value's column."""
        return views["value.weight"][..., :1], views["value.bias"][..., :1]

    def step(self, params: Views, inputs: Inputs, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the torso, the core and the policy."""
        x = self._joined(params, inputs, learning=False)
        if self.core:
            x = dense(x, params["core.input"], params["core.bias"])
            memory = self._remembered(params, x, memory, inputs.first)
            x = memory[..., : memory.shape[-1] // 2]
        return self._head(params, "policy", x)[..., : self.outputs], memory

    def unroll(
        self, params: Views, inputs: Inputs, memory: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Policy and value of the trunk."""
        x = self.trunk(params, inputs, memory, starts)
        head = self._head(params, "policy", x.flatten(1, 2))
        return head[..., : self.outputs].view(*x.shape[:3], -1), self.value(params, x)

    def value(self, params: Views, x: Tensor) -> Tensor:
        """Values [P, T+1, B] of the trunk's [P, T+1, B, W]."""
        return self._head(params, "value", x.flatten(1, 2))[..., 0].view(x.shape[:3])

    def trunk(self, params: Views, inputs: Inputs, memory: Tensor, starts: Tensor | None = None) -> Tensor:
        """What the heads are linear in [P, T+1, B, W]: all steps at once through the torso, one by one the core."""
        p, steps, envs = inputs.first.shape
        flat = Inputs(*(x.flatten(1, 2) for x in (inputs.observations, inputs.actions, inputs.rewards, inputs.first)))
        x = self._joined(params, flat, learning=True)
        if not self.core:
            return x.view(p, steps, envs, -1)
        x = dense(x, params["core.input"], params["core.bias"]).view(p, steps, envs, -1)
        remembered = []
        for t in range(steps):
            memory = self._remembered(params, x[:, t], learned_from(memory, starts, t), inputs.first[:, t])
            remembered.append(memory[..., : memory.shape[-1] // 2])
        return torch.stack(remembered, 1)

    def _joined(self, params: Views, inputs: Inputs, *, learning: bool) -> Tensor:
        """Features of [P, M, ...], and what is fed back."""
        x = self.torso.features(params, inputs.observations, learning=learning)
        if not self.fed_back:
            return x
        indices = not inputs.actions.is_floating_point()
        last = F.one_hot(inputs.actions, self.fed_back).to(x.dtype) if indices else inputs.actions
        told = torch.cat([last, inputs.rewards.clamp(-1.0, 1.0)[..., None]], -1)
        return torch.cat([x, told.masked_fill(inputs.first[..., None], 0.0)], -1)

    def _remembered(self, params: Views, x: Tensor, memory: Tensor, first: Tensor) -> Tensor:
        """Memory after a step; x [P, B, 4 x width] holds what the inputs contribute to the gates."""
        output, cell = memory.masked_fill(first[..., None], 0.0).chunk(2, -1)
        return torch.cat(lstm(x + torch.bmm(output, params["core.hidden"]), cell), -1)

    def _head(self, params: Views, name: str, x: Tensor) -> Tensor:
        return dense(x, params[f"{name}.weight"], params[f"{name}.bias"])


def dense(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[P, M, in] @ [P, in, out] + [P, 1, out] -> [P, M, out].

    A second input of zeros joins a single one: vector kernels, whose rounding on some processors depends on where a
    member's rows lie in memory, would compute that product.
    """
    if x.shape[-1] == 1:
        x, weight = F.pad(x, (0, 1)), F.pad(weight, (0, 0, 0, 1))
    return torch.baddbmm(bias, x, weight)


def learned_from(memory: Tensor, starts: Tensor | None, t: int) -> Tensor:
    """The memory [P, B, H] that step t begins with; where an unroll starts, its past is not learned from."""
    return memory if starts is None else torch.where(starts[:, t, None, None], memory.detach(), memory)


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


def fresh_lstm(params: Views, name: str, units: int, generator: torch.Generator) -> None:
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


Shape = tuple[tuple[tuple[int, int, int], ...], int, tuple[int, ...]]
TORSOS: dict[str, Shape] = {
    "shallow": (((16, 8, 4), (32, 4, 2)), 256, ()),
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512, ()),
    "deep": ((), 256, (16, 32, 32)),
}
"""Convolutions, dense units and residual sections of the networks for images."""


def chosen(settings: NetworkSettings, image: bool) -> str:
    """The network's kind, with `auto` resolved."""
    if settings.network != "auto":
        return settings.network
    return "shallow" if image else "mlp"


def network(settings: NetworkSettings, shape: tuple[int, ...], policy: Distribution, image: bool) -> Net:
    """The network that the settings name, for observations of `shape` and the policy's parameters.

    Raises:
        ValueError: a network for images on vectors, or the other way round; or images that are too small for it.
    """
    kind = chosen(settings, image)
    if image != (kind != "mlp"):
        what = "images" if image else "vectors"
        right = "shallow, nature or deep" if image else "mlp"
        raise ValueError(f"agent.network={kind} cannot read observations that are {what}: use {right}")
    core = settings.core_units if settings.core == "lstm" else 0
    fed_back = policy.told if settings.feed_back else 0
    if kind == "mlp":
        if core or fed_back:
            return Shared(Dense(math.prod(shape), settings.hidden), policy.size, core, fed_back)
        return MLP(math.prod(shape), settings.hidden, policy.size)
    channels, height, width = shape
    convolutions, units, sections = TORSOS[kind]
    least = 1
    for _, kernel, stride in reversed(convolutions):
        least = (least - 1) * stride + kernel
    if min(height, width) < least:
        raise ValueError(
            f"agent.network={kind} reads images of at least {least} x {least} pixels, not {height} x {width}"
        )
    torso = Convolutional((channels, height, width), convolutions, units, _precision(settings.precision), sections)
    return Shared(torso, policy.size, core, fed_back)


def shared(settings: NetworkSettings, shape: tuple[int, ...], policy: Distribution, image: bool) -> Shared:
    """As `network`, but policy and value share their features of vectors too; raises as `network`."""
    net = network(settings, shape, policy, image)
    if isinstance(net, MLP):
        return Shared(Dense(net.inputs, settings.hidden), policy.size)
    assert isinstance(net, Shared)
    return net


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
