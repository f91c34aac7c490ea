"""Networks for a whole cohort: parameters are rows of one flat [P, D] buffer, layers are views into it.

A network is a frozen value with pure functions of those views. It is initialized per member from the member's own
generator. `MLP` has separate stacks for policy and value; `SharedTorsoNet` puts both on one torso, with an LSTM between
them if wanted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (the name everybody knows)
from torch import Tensor

from pbtrl.agents.distributions import Distribution
from pbtrl.agents.layers import COLUMNS, Layout, dense, init_lstm, lstm, lstm_shapes, orthogonal, padded, rnn_state_at
from pbtrl.agents.settings import NetworkSettings
from pbtrl.agents.torsos import Convolutional, Dense, Torso, convolution_precision
from pbtrl.agents.types import Inputs, Views


class Net(Protocol):
    """Policy and value of a group of members.

    Attributes:
        layout: its parameters.
        frames: how many observations the learner should put through at a time; None for all. With a number, members
            pass one by one, so P is 1 below.
        rnn_state: H, floats that it remembers per env from step to step.
    """

    @property
    def layout(self) -> Layout:
        """Its parameters."""

    @property
    def frames(self) -> int | None:
        """Observations per pass."""

    @property
    def rnn_state_size(self) -> int:
        """H."""

    @property
    def size(self) -> int:
        """How many numbers a member learns, padding not counted."""

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member, without the leading axis."""

    def value_head(self, views: Views) -> tuple[Tensor, Tensor]:
        """The weight and bias whose product with the last features is the value, as views [P, ...]."""

    def step(self, params: Views, inputs: Inputs, rnn_state: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [P, B, ...], memory [P, B, H] -> distribution parameters [P, B, K], memory; without gradients."""

    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs [P, T+1, B, ...], memory [P, B, H] -> distribution parameters [P, T+1, B, K], values [P, T+1, B].

        At a step of `starts` [P, T+1] a new unroll begins: what is remembered goes on, and no gradient goes back.
        """


@dataclass(frozen=True)
class MLP:
    """Separate stacks of tanh layers for policy and value, orthogonal initialization (gain sqrt 2; policy 0.01)."""

    inputs: int
    hidden: tuple[int, ...]
    outputs: int

    @property
    def frames(self) -> None:
        """Whole blocks at once."""
        return

    @property
    def rnn_state_size(self) -> int:
        """Nothing is remembered."""
        return 0

    @property
    def layout(self) -> Layout:
        """Weights [in, out] and biases [1, out]; widths are rounded up to COLUMNS, and what is unused stays 0."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, fan_in, fan_out, _ in self._layers():
            rows = fan_in if name.endswith(".0") else padded(fan_in, COLUMNS)
            shapes[f"{name}.weight"] = (rows, padded(fan_out, COLUMNS))
            shapes[f"{name}.bias"] = (1, padded(fan_out, COLUMNS))
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

    def step(self, params: Views, inputs: Inputs, rnn_state: Tensor) -> tuple[Tensor, Tensor]:
        """Of the observations alone."""
        return self.policy(params, inputs.observations.flatten(2)), rnn_state

    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None = None
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


@dataclass(frozen=True)
class SharedTorsoNet:
    """Linear policy and value heads on shared features; between them, if `core` is not 0, an LSTM.

    Heads and core are float32 always: temporal differences are smaller than what bfloat16 leaves of a value.

    Attributes:
        torso: observations to features.
        outputs: K.
        core: units of the LSTM (Hochreiter & Schmidhuber 1997, with a forget gate whose bias starts at 1); 0 for none.
        action_reward_size: size of the last action (one-hot if it is an index) that joins the features, together with
            the last reward clipped to [-1, 1]; 0 for neither.
    """

    torso: Torso
    outputs: int
    core: int = 0
    action_reward_size: int = 0

    @property
    def frames(self) -> int | None:
        """The torso's."""
        return self.torso.frames

    @property
    def rnn_state_size(self) -> int:
        """The core's output and its cell."""
        return 2 * padded(self.core, COLUMNS)

    @property
    def layout(self) -> Layout:
        """The torso's, then weights [in, out] and biases [1, out], whose widths are rounded up to COLUMNS."""
        features, width = self._features, padded(self.core, COLUMNS)
        core = lstm_shapes("core", features, width)
        heads: dict[str, tuple[int, ...]] = {}
        for name, outputs in (("policy", self.outputs), ("value", 1)):
            columns = padded(outputs, COLUMNS)
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
        return padded(self.core, COLUMNS) or self._features

    @property
    def _features(self) -> int:
        return self.torso.units + (self.action_reward_size + 1 if self.action_reward_size else 0)

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member: orthogonal; the core's gain is 1, the policy's 0.01, the value's 1."""
        params = {name: torch.zeros(shape) for name, shape in self.layout.shapes.items()}
        params |= self.torso.initial(generator)
        if self.core:
            init_lstm(params, "core", self.core, generator)
        rows = self.core or self._features
        for name, outputs, gain in (("policy", self.outputs, 0.01), ("value", 1, 1.0)):
            params[f"{name}.weight"][:rows, :outputs] = orthogonal((rows, outputs), generator, gain)
        return params

    def value_head(self, views: Views) -> tuple[Tensor, Tensor]:
        """The value's column."""
        return views["value.weight"][..., :1], views["value.bias"][..., :1]

    def step(self, params: Views, inputs: Inputs, rnn_state: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the torso, the core and the policy."""
        x = self._joined(params, inputs, learning=False)
        if self.core:
            x = dense(x, params["core.input"], params["core.bias"])
            rnn_state = self._remembered(params, x, rnn_state, inputs.first)
            x = rnn_state[..., : rnn_state.shape[-1] // 2]
        return self._head(params, "policy", x)[..., : self.outputs], rnn_state

    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Policy and value of the trunk."""
        x = self.trunk(params, inputs, rnn_state, starts)
        head = self._head(params, "policy", x.flatten(1, 2))
        return head[..., : self.outputs].view(*x.shape[:3], -1), self.value(params, x)

    def value(self, params: Views, x: Tensor) -> Tensor:
        """Values [P, T+1, B] of the trunk's [P, T+1, B, W]."""
        return self._head(params, "value", x.flatten(1, 2))[..., 0].view(x.shape[:3])

    def trunk(self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None = None) -> Tensor:
        """What the heads are linear in [P, T+1, B, W]: all steps at once through the torso, one by one the core."""
        p, steps, envs = inputs.first.shape
        flat = Inputs(*(x.flatten(1, 2) for x in (inputs.observations, inputs.actions, inputs.rewards, inputs.first)))
        x = self._joined(params, flat, learning=True)
        if not self.core:
            return x.view(p, steps, envs, -1)
        x = dense(x, params["core.input"], params["core.bias"]).view(p, steps, envs, -1)
        remembered = []
        for t in range(steps):
            rnn_state = self._remembered(params, x[:, t], rnn_state_at(rnn_state, starts, t), inputs.first[:, t])
            remembered.append(rnn_state[..., : rnn_state.shape[-1] // 2])
        return torch.stack(remembered, 1)

    def _joined(self, params: Views, inputs: Inputs, *, learning: bool) -> Tensor:
        """Features of [P, M, ...], and what is fed back."""
        x = self.torso.features(params, inputs.observations, learning=learning)
        if not self.action_reward_size:
            return x
        indices = not inputs.actions.is_floating_point()
        last = F.one_hot(inputs.actions, self.action_reward_size).to(x.dtype) if indices else inputs.actions
        told = torch.cat([last, inputs.rewards.clamp(-1.0, 1.0)[..., None]], -1)
        return torch.cat([x, told.masked_fill(inputs.first[..., None], 0.0)], -1)

    def _remembered(self, params: Views, x: Tensor, rnn_state: Tensor, first: Tensor) -> Tensor:
        """Memory after a step; x [P, B, 4 x width] holds what the inputs contribute to the gates."""
        output, cell = rnn_state.masked_fill(first[..., None], 0.0).chunk(2, -1)
        return torch.cat(lstm(x + torch.bmm(output, params["core.hidden"]), cell), -1)

    def _head(self, params: Views, name: str, x: Tensor) -> Tensor:
        return dense(x, params[f"{name}.weight"], params[f"{name}.bias"])


Shape = tuple[tuple[tuple[int, int, int], ...], int, tuple[int, ...]]


TORSOS: dict[str, Shape] = {
    "shallow": (((16, 8, 4), (32, 4, 2)), 256, ()),
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512, ()),
    "deep": ((), 256, (16, 32, 32)),
}
"""Convolutions, dense units and residual sections of the networks for images."""


def resolve_network(settings: NetworkSettings, image: bool) -> str:
    """The network's kind, with `auto` resolved."""
    if settings.network != "auto":
        return settings.network
    return "shallow" if image else "mlp"


def make_network(settings: NetworkSettings, shape: tuple[int, ...], policy: Distribution, image: bool) -> Net:
    """The network that the settings name, for observations of `shape` and the policy's parameters.

    Raises:
        ValueError: a network for images on vectors, or the other way round; or images that are too small for it.
    """
    kind = resolve_network(settings, image)
    if image != (kind != "mlp"):
        what = "images" if image else "vectors"
        right = "shallow, nature or deep" if image else "mlp"
        raise ValueError(f"agent.network={kind} cannot read observations that are {what}: use {right}")
    core = settings.core_units if settings.core == "lstm" else 0
    action_reward_size = policy.encoding_size if settings.use_last_action_reward else 0
    if kind == "mlp":
        if core or action_reward_size:
            return SharedTorsoNet(Dense(math.prod(shape), settings.hidden), policy.size, core, action_reward_size)
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
    torso = Convolutional(
        (channels, height, width), convolutions, units, convolution_precision(settings.precision), sections
    )
    return SharedTorsoNet(torso, policy.size, core, action_reward_size)


def make_shared_torso_net(
    settings: NetworkSettings, shape: tuple[int, ...], policy: Distribution, image: bool
) -> SharedTorsoNet:
    """As `network`, but policy and value share their features of vectors too; raises as `network`."""
    net = make_network(settings, shape, policy, image)
    if isinstance(net, MLP):
        return SharedTorsoNet(Dense(net.inputs, settings.hidden), policy.size)
    assert isinstance(net, SharedTorsoNet)
    return net
