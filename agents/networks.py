"""Networks for a whole cohort: parameters are rows of one flat [P, D] buffer, and layers are views into it.

A network is a frozen object whose methods are pure functions of those views. Each member is initialized from its own
generator. `MLP` has separate stacks for policy and value. `SharedTorsoNet` puts both heads on one torso, optionally
with an LSTM in between.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 (conventional alias)
from torch import Tensor

from pbtrl.agents.distributions import Distribution
from pbtrl.agents.layers import (
    COLUMNS,
    DenseStack,
    Layout,
    dense,
    init_lstm,
    lstm,
    lstm_shapes,
    orthogonal,
    padded,
    rnn_state_at,
)
from pbtrl.agents.mlp_stacks import ACTIVATIONS, Stack, backward, forward, run_stack
from pbtrl.agents.settings import NetworkSettings
from pbtrl.agents.torsos import Convolutional, Dense, Torso, convolution_precision
from pbtrl.agents.types import Inputs, Views
from pbtrl.errors import ConfigProblem


class Net(Protocol):
    """Interface of a policy and value network for a group of members."""

    @property
    def layout(self) -> Layout:
        """Layout of the parameters."""

    @property
    def frames(self) -> int | None:
        """Approximate observations per forward pass of the learner; None for no limit.

        With a limit, members are processed one at a time, so P is 1 below.
        """

    @property
    def rnn_state_size(self) -> int:
        """H, the floats of recurrent state per env."""

    @property
    def size(self) -> int:
        """Number of learned parameters per member, without padding."""

    def initial(self, generator: torch.Generator) -> Views:
        """Initial parameters of one member, without the member axis."""

    def value_head(self, views: Views) -> tuple[Tensor, Tensor]:
        """Weight and bias of the linear value head, as views [P, ...]."""

    def step(self, params: Views, inputs: Inputs, rnn_state: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [P, B, ...], state [P, B, H] -> distribution parameters [P, B, K], new state; without gradients."""

    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs [P, T+1, B, ...], state [P, B, H] -> distribution parameters [P, T+1, B, K], values [P, T+1, B].

        A new unroll begins where `starts` [P, T+1] is true: the recurrent state is kept, but detached.
        """


@dataclass(frozen=True)
class MLP:
    """Separate stacks of hidden layers for policy and value.

    Initialization is orthogonal, with the activation's gain for hidden layers, 0.01 for the policy output and 1 for the
    value.
    """

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    activation: str = "tanh"

    @property
    def frames(self) -> None:
        """No limit."""
        return

    @property
    def rnn_state_size(self) -> int:
        """0, because there is no recurrent state."""
        return 0

    @property
    def layout(self) -> Layout:
        """Parameters of the policy's layers, then of the value's."""
        policy, value = self._layers
        return Layout(policy.shapes | value.shapes)

    @property
    def size(self) -> int:
        """Number of learned parameters per member, without padding."""
        return sum(layers.size for layers in self._layers)

    def initial(self, generator: torch.Generator) -> Views:
        """Initial parameters of one member, without the member axis."""
        policy, value = self._layers
        return policy.initial(generator) | value.initial(generator)

    def step(self, params: Views, inputs: Inputs, rnn_state: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the policy stack to the observations; all other inputs are ignored."""
        x = inputs.observations.flatten(2)
        return run_stack(self._stacks[0][1], x, self._own(params, "policy")), rnn_state

    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Apply both stacks to all steps at once."""
        steps = inputs.first.shape
        if not torch.is_grad_enabled():
            return self.record(params, inputs, steps[1])[:2]
        x = inputs.observations.flatten(3).flatten(1, 2)
        head, values = (run_stack(stack, x, self._own(params, name)) for name, stack in self._stacks)
        return head.view(*steps, -1), values.view(steps)

    def record(
        self, params: Views, inputs: Inputs, steps: int
    ) -> tuple[Tensor, Tensor, Callable[[Tensor, Tensor, Views], None]]:
        """Do what `unroll` does, without autograd; the policy's outputs are those of the first `steps` steps only.

        The third result is a procedure that takes the gradients by both outputs, those by the values perhaps of the
        first steps only, and writes those by the parameters into views.
        """
        p, _, envs = inputs.first.shape
        x = inputs.observations.flatten(3).flatten(1, 2)
        own = [self._own(params, name) for name, _ in self._stacks]
        xs = x[:, : steps * envs], x
        outputs = [forward(stack, x, layers) for x, layers, (_, stack) in zip(xs, own, self._stacks, strict=True)]

        def write_gradients(by_head: Tensor, by_values: Tensor, out: Views) -> None:
            by_output = by_head.flatten(1, 2), by_values.flatten(1)[..., None]
            for grad, values, layers, (name, stack) in zip(by_output, outputs, own, self._stacks, strict=True):
                backward(stack, grad, values, layers, self._own(out, name))

        head, values = outputs[0][-1][..., : self.outputs], outputs[1][-1][..., 0]
        return head.view(p, steps, envs, -1), values.view(inputs.first.shape), write_gradients

    def value_head(self, views: Views) -> tuple[Tensor, Tensor]:
        """First column of the value stack's last layer."""
        last = f"value.{len(self.hidden)}"
        return views[f"{last}.weight"][..., :1], views[f"{last}.bias"][..., :1]

    @property
    def _layers(self) -> tuple[DenseStack, DenseStack]:
        gains = [ACTIVATIONS[self.activation].gain] * len(self.hidden)
        policy, value = (self.inputs, *self.hidden, self.outputs), (self.inputs, *self.hidden, 1)
        return DenseStack("policy", policy, [*gains, 0.01]), DenseStack("value", value, [*gains, 1.0])

    @functools.cached_property
    def _stacks(self) -> tuple[tuple[str, Stack], tuple[str, Stack]]:
        policy, value = (Stack(self.activation, outputs, linear=True) for outputs in (self.outputs, 1))
        return ("policy", policy), ("value", value)

    @functools.cached_property
    def _names(self) -> dict[str, list[str]]:
        """Names of each stack's parameters."""
        return {layers.name: list(layers.shapes) for layers in self._layers}

    def _own(self, params: Views, stack: str) -> list[Tensor]:
        return [params[name] for name in self._names[stack]]


@dataclass(frozen=True)
class SharedTorsoNet:
    """Linear policy and value heads on shared features, with an LSTM core in between if `core` is not 0.

    Heads and core always run in float32, because TD errors are smaller than the rounding error of a bfloat16 value.

    Attributes:
        torso: network from observations to features.
        outputs: network outputs for the policy.
        core: units of the LSTM (Hochreiter & Schmidhuber 1997, with a forget gate whose bias starts at 1); 0 for none.
        action_reward_size: size of the last action (one-hot for an index, or for each of several), which is appended
            to the features together with the last reward clipped to [-1, 1]; 0 to append neither.
    """

    torso: Torso
    outputs: int
    core: int = 0
    action_reward_size: int = 0

    @property
    def frames(self) -> int | None:
        """The torso's limit."""
        return self.torso.frames

    @property
    def rnn_state_size(self) -> int:
        """Size of the core's output and cell together."""
        return 2 * padded(self.core, COLUMNS)

    @property
    def layout(self) -> Layout:
        """The torso's parameters, then weights [in, out] and biases [1, out] with widths rounded up to COLUMNS."""
        features, width = self._features, padded(self.core, COLUMNS)
        core = lstm_shapes("core", features, width)
        heads: dict[str, tuple[int, ...]] = {}
        for name, outputs in (("policy", self.outputs), ("value", 1)):
            columns = padded(outputs, COLUMNS)
            heads |= {f"{name}.weight": (self.width, columns), f"{name}.bias": (1, columns)}
        return Layout({**self.torso.shapes, **(core if self.core else {}), **heads})

    @property
    def size(self) -> int:
        """Number of learned parameters per member, without padding."""
        core = 4 * self.core * (self._features + self.core + 1)
        return self.torso.size + core + (self.units + 1) * (self.outputs + 1)

    @property
    def units(self) -> int:
        """Number of inputs of the heads."""
        return self.core or self._features

    @property
    def width(self) -> int:
        """W, the number of inputs of the heads with padding."""
        return padded(self.core, COLUMNS) or self._features

    @property
    def _features(self) -> int:
        return self.torso.units + (self.action_reward_size + 1 if self.action_reward_size else 0)

    def initial(self, generator: torch.Generator) -> Views:
        """Initial parameters of one member: orthogonal, with gain 1 for the core, 0.01 for policy and 1 for value."""
        params = {name: torch.zeros(shape) for name, shape in self.layout.shapes.items()}
        params |= self.torso.initial(generator)
        if self.core:
            init_lstm(params, "core", self.core, generator)
        for name, outputs, gain in (("policy", self.outputs, 0.01), ("value", 1, 1.0)):
            params[f"{name}.weight"][: self.units, :outputs] = orthogonal((self.units, outputs), generator, gain)
        return params

    def value_head(self, views: Views) -> tuple[Tensor, Tensor]:
        """First column of the value head."""
        return views["value.weight"][..., :1], views["value.bias"][..., :1]

    def step(self, params: Views, inputs: Inputs, rnn_state: Tensor) -> tuple[Tensor, Tensor]:
        """Run torso, core and policy head for one step."""
        x = self._input_features(params, inputs, learning=False)
        if self.core:
            x = dense(x, params["core.input"], params["core.bias"])
            rnn_state = self._core_step(params, x, rnn_state, inputs.first)
            x = rnn_state[..., : rnn_state.shape[-1] // 2]
        return self._head(params, "policy", x)[..., : self.outputs], rnn_state

    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run trunk and heads over a block."""
        x = self.trunk(params, inputs, rnn_state, starts)
        head = self._head(params, "policy", x.flatten(1, 2))
        return head[..., : self.outputs].view(*x.shape[:3], -1), self.value(params, x)

    def value(self, params: Views, x: Tensor) -> Tensor:
        """Values [P, T+1, B] from the trunk's output [P, T+1, B, W]."""
        return self._head(params, "value", x.flatten(1, 2))[..., 0].view(x.shape[:3])

    def trunk(self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None = None) -> Tensor:
        """Compute the heads' inputs [P, T+1, B, W]: the torso takes all steps at once, the core one by one."""
        p, steps, envs = inputs.first.shape
        flat = inputs.map(lambda x: x.flatten(1, 2))
        x = self._input_features(params, flat, learning=True)
        if not self.core:
            return x.view(p, steps, envs, -1)
        x = dense(x, params["core.input"], params["core.bias"]).view(p, steps, envs, -1)
        outputs = []
        for t in range(steps):
            rnn_state = self._core_step(params, x[:, t], rnn_state_at(rnn_state, starts, t), inputs.first[:, t])
            outputs.append(rnn_state[..., : rnn_state.shape[-1] // 2])
        return torch.stack(outputs, 1)

    def _input_features(self, params: Views, inputs: Inputs, *, learning: bool) -> Tensor:
        """Torso features of inputs [P, M, ...], followed by the last action and reward if configured."""
        x = self.torso.features(params, inputs.observations, learning=learning)
        if not self.action_reward_size:
            return x
        last = inputs.actions
        if not last.is_floating_point():
            last = F.one_hot(last, self.action_reward_size).to(x.dtype)
            last = last if last.ndim == x.ndim else last.sum(-2)  # a one for each slot of several choices
        last = torch.cat([last, inputs.rewards.clamp(-1.0, 1.0)[..., None]], -1)
        return torch.cat([x, last.masked_fill(inputs.first[..., None], 0.0)], -1)

    def _core_step(self, params: Views, x: Tensor, rnn_state: Tensor, first: Tensor) -> Tensor:
        """Recurrent state after a step; x [P, B, 4 x width] is the input part of the gates."""
        output, cell = rnn_state.masked_fill(first[..., None], 0.0).chunk(2, -1)
        return torch.cat(lstm(x + torch.bmm(output, params["core.hidden"]), cell), -1)

    def _head(self, params: Views, name: str, x: Tensor) -> Tensor:
        return dense(x, params[f"{name}.weight"], params[f"{name}.bias"])


Shape = tuple[tuple[tuple[int, int, int], ...], int, tuple[int, ...], int]


TORSOS: dict[str, Shape] = {
    "shallow": (((16, 8, 4), (32, 4, 2)), 256, (), 256),
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512, (), 256),
    "deep": ((), 256, (16, 32, 32), 96),
}
"""Convolutions, dense units, residual sections and frames of each image network, as in `Convolutional`."""


def resolve_network(settings: NetworkSettings, image: bool) -> str:
    """Name of the network, with `auto` resolved."""
    if settings.network != "auto":
        return settings.network
    return "shallow" if image else "mlp"


def make_network(settings: NetworkSettings, shape: tuple[int, ...], policy: Distribution, image: bool) -> Net:
    """Create the configured network for observations of `shape` and the policy's parameters.

    Raises:
        ConfigProblem: an image network for vectors, an MLP for images, or images that are too small for the network.
    """
    kind = resolve_network(settings, image)
    if image != (kind != "mlp"):
        what = "images" if image else "vectors"
        right = "shallow, nature or deep" if image else "mlp"
        text = f"{kind} cannot read observations that are {what}: use {right}"
        raise ConfigProblem(text, ("agent", "network"))
    core = settings.core_units if settings.core == "lstm" else 0
    action_reward_size = policy.encoding_size if settings.use_last_action_reward else 0
    if kind == "mlp":
        if core or action_reward_size:
            dense_torso = Dense(math.prod(shape), settings.hidden, settings.activation)
            return SharedTorsoNet(dense_torso, policy.size, core, action_reward_size)
        return MLP(math.prod(shape), settings.hidden, policy.size, settings.activation)
    channels, height, width = shape
    convolutions, units, sections, frames = TORSOS[kind]
    least = 1
    for _, kernel, stride in reversed(convolutions):
        least = (least - 1) * stride + kernel
    if min(height, width) < least:
        text = f"{kind} needs images of at least {least} x {least} pixels, not {height} x {width}; deep takes any size"
        raise ConfigProblem(text, ("agent", "network"))
    precision = convolution_precision(settings.precision)
    torso = Convolutional((channels, height, width), convolutions, units, precision, sections, frames)
    return SharedTorsoNet(torso, policy.size, core, action_reward_size)


def make_shared_torso_net(
    settings: NetworkSettings, shape: tuple[int, ...], policy: Distribution, image: bool
) -> SharedTorsoNet:
    """Like `make_network`, but policy and value also share their torso for vectors. Raises like `make_network`."""
    net = make_network(settings, shape, policy, image)
    if isinstance(net, MLP):
        return SharedTorsoNet(Dense(net.inputs, settings.hidden, settings.activation), policy.size)
    assert isinstance(net, SharedTorsoNet)
    return net
