"""Networks: layout of the flat buffer, equality with torch.nn, independence of the members, memory."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from pbtrl.agents import optim
from pbtrl.agents.distributions import Categorical, Gaussian
from pbtrl.agents.layers import PAD, Layout
from pbtrl.agents.mlp_stacks import ACTIVATIONS
from pbtrl.agents.networks import MLP, TORSOS, SharedTorsoNet, make_network, make_shared_torso_net
from pbtrl.agents.settings import ImpalaSettings
from pbtrl.agents.torsos import Convolutional, Dense
from pbtrl.agents.types import Inputs
from tests.agent_fixtures import agent

ACTIVATED = [MLP(11, (24, 10), 6, activation) for activation in ACTIVATIONS]
MLPS = [MLP(3, (64, 64), 2), MLP(1, (16,), 1), MLP(11, (50, 10), 6), MLP(4, (), 3), MLP(5, (48,), 2), *ACTIVATED]
ATARI = (4, 84, 84)
SIX = Categorical(6)


def convolutional(kind, precision=torch.float32, core=0, action_reward_size=0):
    convolutions, units, sections, frames = TORSOS[kind]
    torso = Convolutional(ATARI, convolutions, units, precision, sections, frames)
    return SharedTorsoNet(torso, 6, core, action_reward_size)


CONVS = {kind: convolutional(kind) for kind in TORSOS}
RECURRENT = [
    SharedTorsoNet(Dense(3, (16,)), 2, core=8, action_reward_size=4),
    SharedTorsoNet(Dense(5, (10, 12)), 6, core=20),
    SharedTorsoNet(Dense(2, ()), 3, core=16, action_reward_size=3),
    SharedTorsoNet(Dense(3, (16,), "elu"), 2, action_reward_size=4),
]


def block(net, seeds, steps=6, envs=3, indices=True):
    """Random inputs [P, T, B, ...] with episode starts, and memory; a member's data depends on its seed."""
    inputs, memories = [], []
    for g in generators(*seeds):
        shape, count = (1, steps, envs), net.action_reward_size or 2
        index = torch.randint(0, count, shape, generator=g)
        actions = index if indices else torch.randn(*shape, count, generator=g)
        first = torch.rand(shape, generator=g) < 0.25
        seen, rewards = torch.randn(*shape, net.torso.inputs, generator=g), 2 * torch.randn(shape, generator=g)
        inputs.append(Inputs(seen, actions, rewards, first))
        memories.append(torch.tanh(torch.randn(1, envs, net.rnn_state_size, generator=g)))
    fields = ("observations", "actions", "rewards", "first")
    return Inputs(*(torch.cat([getattr(i, f) for i in inputs]) for f in fields)), torch.cat(memories)


def unrolled(net, leaves, inputs, memory):
    """Outputs of an unroll, and the gradients of a nonlinear function of them."""
    policy, values = net.unroll(leaves, inputs, memory)
    loss = (policy.square().sum(-1) * values.tanh()).flatten(1).sum(-1)
    return policy.detach(), values.detach(), torch.autograd.grad(loss.sum(), leaves.values())


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def stacked(net, seeds):
    """Flat buffer of fresh members [P, D] and its views, with nonzero values also for zero-initialized biases."""
    flat = torch.zeros(len(seeds), net.layout.size)
    views = net.layout.views(flat)
    for i, g in enumerate(generators(*seeds)):
        for name, value in net.initial(g).items():
            views[name][i] = value
            if name.endswith("bias"):
                views[name][i] += 0.1 * torch.randn(value.shape, generator=g)
    return flat, net.layout.leaves(flat)


def both(net, leaves, x):
    """Policy and value of [P, M, ...], as one step of M envs."""
    steps = torch.zeros(x.shape[0], 1, x.shape[1])
    inputs = Inputs(x[:, None], steps.long(), steps, steps.bool())
    policy, values = net.unroll(leaves, inputs, torch.zeros(*x.shape[:2], net.rnn_state_size))
    return policy[:, 0], values[:, 0]


def acting(net, leaves, x):
    """Policy and value as `both`, from acting."""
    last = torch.zeros(x.shape[:2])
    inputs = Inputs(x, last.long(), last, last.bool())
    with torch.no_grad():
        return net.step(leaves, inputs, torch.zeros(*x.shape[:2], net.rnn_state_size))[0]


def gradients(net, leaves, x):
    """Outputs for x, and the gradients of a nonlinear function of them."""
    policy, value = both(net, leaves, x)
    loss = (policy.square().sum(-1) * value.tanh()).flatten(1).sum(-1)
    return (
        policy.detach(),
        value.detach(),
        dict(zip(leaves, torch.autograd.grad(loss.sum(), leaves.values()), strict=True)),
    )


# Layout


def test_views_alias_their_padded_ranges():
    layout = Layout({"a": (3, 5), "b": (1,), "c": (16,), "d": (17,)})
    assert layout.size == 16 + 16 + 16 + 32
    flat = torch.zeros(2, layout.size)
    views = layout.views(flat)
    for i, (name, shape) in enumerate(layout.shapes.items()):
        assert views[name].shape == (2, *shape)
        assert views[name].storage_offset() % PAD == 0
        views[name].fill_(i + 1)
    used = [[math.prod(s), i + 1] for i, s in enumerate(layout.shapes.values())]
    places = torch.cat([torch.tensor([v] * n + [0] * (-n % PAD)) for n, v in used])
    assert torch.equal(flat, places.float().expand(2, -1))


def test_leaves_share_memory_with_the_flat_buffer():
    flat = torch.zeros(2, 32)
    leaves = Layout({"a": (3,), "b": (2, 2)}).leaves(flat)
    flat[1, 16:20] = torch.arange(4.0)
    assert leaves["b"][1].tolist() == [[0, 1], [2, 3]]
    assert all(leaf.is_leaf and leaf.requires_grad for leaf in leaves.values())


# Equality with torch.nn


def linear(weight, bias):
    layer = nn.Linear(*weight.shape)
    layer.weight.data, layer.bias.data = weight.detach().T.clone(), bias.detach().flatten().clone()
    return layer


def plain_mlp(net, leaves, slot, stack, outputs):
    widths, layers = [net.inputs, *net.hidden, outputs], []
    for i in range(len(widths) - 1):
        weight, bias = leaves[f"{stack}.{i}.weight"][slot], leaves[f"{stack}.{i}.bias"][slot]
        activation = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}[net.activation]()
        layers += [linear(weight[: widths[i], : widths[i + 1]], bias[:, : widths[i + 1]]), activation]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("net", MLPS, ids=str)
def test_mlp_equals_torch_nn(net):
    _, leaves = stacked(net, [1, 2])
    x = torch.randn(2, 9, net.inputs, generator=generators(0)[0])
    policy, value, grads = gradients(net, leaves, x)
    torch.testing.assert_close(acting(net, leaves, x), policy)
    for slot in range(2):
        plain = {s: plain_mlp(net, leaves, slot, s, n) for s, n in (("policy", net.outputs), ("value", 1))}
        expected = plain["policy"](x[slot]), plain["value"](x[slot]).squeeze(-1)
        torch.testing.assert_close((policy[slot], value[slot]), expected)
        (expected[0].square().sum(-1) * expected[1].tanh()).sum().backward()
        for stack in plain:
            for i, layer in enumerate(plain[stack][::2]):
                rows, columns = layer.weight.grad.T.shape
                torch.testing.assert_close(grads[f"{stack}.{i}.weight"][slot][:rows, :columns], layer.weight.grad.T)
                torch.testing.assert_close(grads[f"{stack}.{i}.bias"][slot][0, :columns], layer.bias.grad)


@pytest.mark.parametrize("rows", [9, 128])
@pytest.mark.parametrize("net", MLPS, ids=str)
def test_mlp_without_autograd_equals_itself_with_autograd(net, rows):
    """For few and many rows, which have different forms of tanh."""
    _, leaves = stacked(net, [1, 2])
    x = torch.randn(2, rows, net.inputs, generator=generators(0)[0])
    policy, value = (y.detach() for y in both(net, leaves, x))
    with torch.no_grad():
        outputs = both(net, leaves, x)
    assert not any(y.requires_grad for y in outputs)
    torch.testing.assert_close((*outputs, acting(net, leaves, x)), (policy, value, policy))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("net", MLPS, ids=str)
def test_mlp_gradients_equal_those_of_plain_operations(net, dtype):
    """Of random inputs, within 1e-6 of the largest gradient; the plain operations are in double precision."""
    flat, _ = stacked(net, [1, 2, 3])
    x, g = torch.randn(3, 4, 5, net.inputs, generator=generators(0)[0]), generators(1)[0]
    weights = torch.randn(3, 4, 5, net.outputs, generator=g), torch.randn(3, 4, 5, generator=g)
    params = net.layout.leaves(flat.to(dtype))
    inputs = Inputs(x.to(dtype), *[torch.zeros(3, 4, 5)] * 2, torch.zeros(3, 4, 5, dtype=torch.bool))
    head, values = net.unroll(params, inputs, torch.zeros(3, 5, 0))
    grads = torch.autograd.grad([head, values], list(params.values()), [w.to(dtype) for w in weights])
    result = dict(zip(params, grads, strict=True))
    leaves, plain = net.layout.leaves(flat.double()), {}
    function = {"tanh": torch.tanh, "relu": torch.relu, "elu": torch.nn.functional.elu}[net.activation]
    for name in ("policy", "value"):
        y = x.double().flatten(1, 2)
        for i in range(len(net.hidden) + 1):
            y = y @ leaves[f"{name}.{i}.weight"] + leaves[f"{name}.{i}.bias"]
            plain[name] = y
            y = function(y)
    exact = plain["policy"][..., : net.outputs].view_as(weights[0]), plain["value"][..., 0].view_as(weights[1])
    for output, reference in zip((head, values), exact, strict=True):
        torch.testing.assert_close(output.double(), reference, rtol=0, atol=1e-6 * reference.abs().max().item())
    total = sum((w.double() * reference).sum() for w, reference in zip(weights, exact, strict=True))
    for name, grad in zip(leaves, torch.autograd.grad(total, leaves.values()), strict=True):
        torch.testing.assert_close(result[name].double(), grad, rtol=0, atol=1e-6 * grad.abs().max().item())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_torso_equals_plain_operations(activation):
    """Its last layer has an activation function too."""
    torso, x = Dense(3, (16, 10), activation), torch.randn(2, 5, 3, dtype=torch.float64, generator=generators(0)[0])
    layout = Layout(torso.shapes)
    leaves = layout.leaves(torch.randn(2, layout.size, dtype=torch.float64, generator=generators(1)[0]))
    function = {"tanh": torch.tanh, "relu": torch.relu, "elu": torch.nn.functional.elu}[activation]
    plain = x
    for i in range(2):
        plain = function(plain @ leaves[f"torso.{i}.weight"] + leaves[f"torso.{i}.bias"])
    result = torso.features(leaves, x, learning=True)
    torch.testing.assert_close(result, plain[..., : torso.units])
    for grads in zip(
        *(torch.autograd.grad(y[..., : torso.units].square().sum(), leaves.values()) for y in (result, plain)),
        strict=True,
    ):
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_padding_of_every_activation_stays_zero(activation):
    f = ACTIVATIONS[activation]
    assert not f.apply_(torch.zeros(2, 3, 8)).any()
    assert not f.apply_(torch.zeros(2, 4, 8)).any()


def test_gains_preserve_the_mean_square():
    normal = torch.randn(1, 1, 3_200_000, dtype=torch.float64, generator=generators(0)[0])
    for name in ("relu", "elu"):
        f = ACTIVATIONS[name]
        assert f.gain**2 * f.apply_(normal.clone()).square().mean().item() == pytest.approx(1.0, abs=0.01)


class Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels):
        super().__init__()
        layers = [nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1)]
        self.inner = nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x):
        return x + self.inner(x)


def plain_torso(torso, leaves):
    channels, layers = torso.image[0], []
    for out, kernel, stride in torso.convolutions:
        layers += [nn.Conv2d(channels, out, kernel, stride), nn.ReLU()]
        channels = out
    for out in torso.sections:
        layers += [nn.Conv2d(channels, out, 3, padding=1), nn.MaxPool2d(3, 2, padding=1), Residual(out), Residual(out)]
        channels = out
    own = {k: v[0] for k, v in leaves.items()}
    trunk = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), linear(own["dense.weight"], own["dense.bias"]), nn.ReLU())
    convolutions = [m for m in trunk.modules() if isinstance(m, nn.Conv2d)]
    weights = [k for k in torso.shapes if k.endswith("weight") and not k.startswith("dense")]
    for layer, name in zip(convolutions, weights, strict=True):
        layer.weight.data = own[name].detach()
        layer.bias.data = own[name.replace("weight", "bias")].detach()
    heads = [linear(own[f"{h}.weight"][:, :n], own[f"{h}.bias"][:, :n]) for h, n in (("policy", 6), ("value", 1))]
    return trunk, dict(zip(weights, convolutions, strict=True)), heads


@pytest.mark.parametrize("kind", CONVS)
def test_convolutional_equals_torch_nn(kind):
    net = CONVS[kind]
    _, leaves = stacked(net, [1])
    x = torch.randint(0, 256, (1, 3, *ATARI), generator=generators(0)[0], dtype=torch.uint8)
    policy, value, grads = gradients(net, leaves, x)
    torch.testing.assert_close(acting(net, leaves, x), policy)
    trunk, convolutions, heads = plain_torso(net.torso, leaves)
    features = trunk(x[0].float() / 255)
    expected = heads[0](features), heads[1](features).squeeze(-1)
    torch.testing.assert_close((policy[0], value[0]), expected, rtol=1e-5, atol=1e-5)
    (expected[0].square().sum(-1) * expected[1].tanh()).sum().backward()
    for name, layer in convolutions.items():
        torch.testing.assert_close(grads[name][0], layer.weight.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grads["dense.weight"][0], trunk[-2].weight.grad.T, rtol=1e-4, atol=1e-5)


def test_network_sizes_match_the_papers():
    sizes = {kind: net.torso.size for kind, net in CONVS.items()}
    assert sizes["shallow"] == 4 * 16 * 64 + 16 + 16 * 32 * 16 + 32 + 2592 * 256 + 256
    assert sizes["nature"] == 1_684_128  # Mnih et al. 2015, for a stack of 4 frames
    sections = [(9 * c + 1) * n + 4 * (9 * n + 1) * n for c, n in ((4, 16), (16, 32), (32, 32))]
    assert sizes["deep"] == sum(sections) + (32 * 11 * 11 + 1) * 256
    assert convolutional("deep", core=256).size == sizes["deep"] + 4 * 256 * (256 + 256 + 1) + 257 * 7
    assert round(convolutional("deep", core=256).size / 1e6, 1) == 1.6  # as the paper says


def test_bfloat16_is_close_and_acting_uses_float32():
    half = convolutional("shallow", torch.bfloat16)
    _, leaves = stacked(half, [1])
    x = torch.randint(0, 256, (1, 2, *ATARI), generator=generators(0)[0], dtype=torch.uint8)
    policy, value = both(half, leaves, x)
    exact, exact_value = both(CONVS["shallow"], leaves, x)
    assert policy.dtype == value.dtype == torch.float32
    assert not torch.equal(policy, exact)
    torch.testing.assert_close((policy, value), (exact, exact_value), rtol=0.05, atol=0.02)
    torch.testing.assert_close(acting(half, leaves, x), exact)


# Memory


@pytest.mark.parametrize("indices", [True, False])
@pytest.mark.parametrize("net", RECURRENT, ids=str)
def test_unroll_equals_step_by_step(net, indices):
    _, leaves = stacked(net, [1, 2])
    inputs, memory = block(net, [3, 4], indices=indices)
    policy, _, _ = unrolled(net, leaves, inputs, memory)
    with torch.no_grad():
        for t in range(policy.shape[1]):
            head, memory = net.step(leaves, inputs[:, t], memory)
            torch.testing.assert_close(head, policy[:, t])


def test_core_equals_torch_lstm_with_resets():
    net = SharedTorsoNet(Dense(3, ()), 2, core=8)
    _, leaves = stacked(net, [1])
    own = {name: leaf[0].detach() for name, leaf in leaves.items()}
    cell = nn.LSTMCell(3, 8)

    def gates(x):  # ours are input, forget, output, new; torch's input, forget, new, output
        enter, forget, leave, new = x.chunk(4, -1)
        return torch.cat([enter, forget, new, leave], -1)

    cell.weight_ih.data, cell.weight_hh.data = gates(own["core.input"]).T, gates(own["core.hidden"]).T
    cell.bias_ih.data, cell.bias_hh.data = gates(own["core.bias"][0]), torch.zeros(32)
    inputs, memory = block(net, [3])
    policy, values, _ = unrolled(net, leaves, inputs, memory)
    h, c = memory[0].chunk(2, -1)
    assert inputs.first.any()
    for t in range(policy.shape[1]):
        kept = ~inputs.first[0, t, :, None]
        h, c = cell(inputs.observations[0, t], (h * kept, c * kept))
        torch.testing.assert_close(policy[0, t], (h @ own["policy.weight"] + own["policy.bias"])[:, :2].detach())
        torch.testing.assert_close(values[0, t], (h @ own["value.weight"] + own["value.bias"])[:, 0].detach())


@pytest.mark.parametrize("net", RECURRENT, ids=str)
def test_earlier_episodes_have_no_influence(net):
    _, leaves = stacked(net, [1])
    inputs, memory = block(net, [3])
    inputs.first[:] = False
    inputs.first[:, 3, 0] = True
    before, _, _ = unrolled(net, leaves, inputs, memory)
    inputs.observations[:, :3] += 1.0
    inputs.rewards[:, :4] = 1.0 - inputs.rewards[:, :4]
    inputs.actions[:, :4] = (inputs.actions[:, :4] + 1) % (net.action_reward_size or 2)
    after, _, _ = unrolled(net, leaves, inputs, memory + 1.0)
    assert torch.equal(after[:, 3:, 0], before[:, 3:, 0])
    assert not torch.equal(after[:, 3:, 1], before[:, 3:, 1])


@pytest.mark.parametrize("net", RECURRENT[:3], ids=str)
def test_no_gradient_across_unroll_starts(net):
    """At each member's own unroll starts. The outputs of a block equal those of its unrolls one after the other."""
    inputs, memory = block(net, [0, 1])
    _, leaves = stacked(net, [0, 1])
    starts = torch.zeros(2, 6, dtype=torch.bool)
    starts[0, 4] = starts[1, 2] = True
    policy, values = net.unroll(leaves, inputs, memory, starts)
    plain = net.unroll(leaves, inputs, memory)
    assert torch.equal(policy, plain[0])
    assert torch.equal(values, plain[1])
    result = torch.autograd.grad(policy.square().sum() + values.square().sum(), leaves.values())
    expected = [torch.zeros_like(g) for g in result]
    for slot, start in ((0, 4), (1, 2)):
        remembered = memory[[slot]]
        for part in (slice(0, start), slice(start, 6)):
            own = {name: leaf[[slot]] for name, leaf in leaves.items()}
            policy, values = net.unroll(own, inputs[[slot], part], remembered)
            gradients = torch.autograd.grad(policy.square().sum() + values.square().sum(), own.values())
            for total, gradient in zip(expected, gradients, strict=True):
                total[slot] += gradient[0]
            for t in range(part.start, part.stop):
                remembered = net.step({k: v.detach() for k, v in own.items()}, inputs[[slot], t], remembered)[1]
    for gradient, exact in zip(result, expected, strict=True):
        torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", RECURRENT, ids=str)
def test_lstm_member_is_bit_identical_in_every_slot(net):
    seeds = [1, 2, 3, 4]
    whole = unrolled(net, stacked(net, seeds)[1], *block(net, seeds))
    for slots in ([0], [3], [0, 1], [3, 2], [3, 1, 0, 2]):
        chosen = [seeds[s] for s in slots]
        part = unrolled(net, stacked(net, chosen)[1], *block(net, chosen))
        assert torch.equal(part[0], whole[0][slots])
        assert torch.equal(part[1], whole[1][slots])
        assert all(torch.equal(a, b[slots]) for a, b in zip(part[2], whole[2], strict=True))


# Independence of the members


@pytest.mark.parametrize("batch", [1, 5, 16, 99])
@pytest.mark.parametrize("net", MLPS, ids=str)
def test_member_is_bit_identical_in_every_slot_and_cohort(net, batch):
    seeds = [1, 2, 3, 4]
    x = torch.randn(4, batch, net.inputs, generator=generators(0)[0])
    whole = gradients(net, stacked(net, seeds)[1], x)
    for slots in ([0], [1], [2], [3], [0, 1], [3, 2], [3, 1, 0, 2]):
        part = gradients(net, stacked(net, [seeds[s] for s in slots])[1], x[slots])
        assert torch.equal(part[0], whole[0][slots])
        assert torch.equal(part[1], whole[1][slots])
        for name, grad in part[2].items():
            assert torch.equal(grad, whole[2][name][slots]), name


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_unused_columns_and_padding_stay_zero(optimizer):
    net = MLP(3, (50, 10), 3)
    flat, leaves = torch.zeros(2, net.layout.size), None
    leaves, grads = net.layout.leaves(flat), torch.zeros_like(flat)
    for i, g in enumerate(generators(1, 2)):
        for name, value in net.initial(g).items():
            leaves[name].detach()[i] = value
    used = torch.zeros_like(flat)
    for stack, outputs in (("policy", 3), ("value", 1)):
        widths = [3, 50, 10, outputs]
        for i in range(3):
            net.layout.views(used)[f"{stack}.{i}.weight"][:, : widths[i], : widths[i + 1]] = 1
            net.layout.views(used)[f"{stack}.{i}.bias"][..., : widths[i + 1]] = 1
    moments = [torch.zeros_like(flat), torch.zeros_like(flat), torch.zeros(2, dtype=torch.int64)]
    x = torch.randn(2, 20, 3, generator=generators(0)[0])
    rate, active = torch.full((2,), 0.05), torch.ones(2, dtype=torch.bool)
    for _ in range(5):
        for name, grad in gradients(net, leaves, x)[2].items():
            net.layout.views(grads)[name].copy_(grad)
        if optimizer == "adam":
            optim.adam(flat, grads, *moments, learning_rate=rate, active=active)
        else:
            optim.rmsprop(flat, grads, moments[0], learning_rate=rate, decay=0.9, epsilon=1e-5, active=active)
    assert flat[used == 1].all()
    assert not flat[used == 0].any()


@pytest.mark.parametrize("core", [0, 10])
def test_padding_of_shared_features_adds_no_unit(core):
    """Ten units below the heads stay ten, also after updates."""
    net = SharedTorsoNet(Dense(3, (50, 10)), 3, core=core, action_reward_size=3)
    flat = torch.zeros(2, net.layout.size)
    views = net.layout.views(flat)
    for i, g in enumerate(generators(1, 2)):
        for name, value in net.initial(g).items():
            views[name][i] = value
    assert (net.torso.units, net._features) == (10, 14)
    leaves = net.layout.leaves(flat)
    first = torch.zeros(2, 7, 5, dtype=torch.bool)
    inputs = Inputs(torch.randn(2, 7, 5, 3), torch.zeros(2, 7, 5, dtype=torch.int64), torch.zeros(2, 7, 5), first)
    head, values = net.unroll(leaves, inputs, torch.zeros(2, 5, net.rnn_state_size))
    grads = torch.autograd.grad(head.square().sum() + values.square().sum(), list(leaves.values()))
    moved = dict(zip(leaves, grads, strict=True))
    assert moved["torso.1.weight"][..., :10].any(-1).any(-1).all()
    assert not moved["torso.1.weight"][..., 10:].any()


# Fresh parameters


def test_initial_weights_depend_on_own_generator_only():
    net = MLPS[0]
    alone, others = net.initial(*generators(5)), net.initial(*generators(6))
    again = [net.initial(g) for g in generators(4, 5)][1]
    for name, value in alone.items():
        assert torch.equal(value, again[name])
        assert name.endswith("bias") != bool((value != others[name]).any())


@pytest.mark.parametrize("net", [MLP(20, (50, 10), 6), CONVS["shallow"]], ids=["mlp", "shallow"])
def test_initial_weights_are_orthogonal_and_biases_zero(net):
    gains = {"policy.2": 0.01, "value.2": 1.0} if isinstance(net, MLP) else {"policy": 0.01, "value": 1.0}
    fresh = net.initial(*generators(1))
    for name, value in fresh.items():
        layer, kind = name.rsplit(".", 1)
        if kind == "bias":
            assert not value.any()
            continue
        rows = value.flatten(1)
        gram = rows @ rows.T if len(rows) < rows.shape[1] else rows.T @ rows
        norms = gram.diagonal()[gram.diagonal() > 0]
        torch.testing.assert_close(gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-5)
        torch.testing.assert_close(norms, torch.full_like(norms, gains.get(layer, math.sqrt(2)) ** 2))


SQRT2 = math.sqrt(2)
GAINS = {"policy": 0.01, "value": 1.0, "class": 1.0, "maps": 1.0, "manager.value": 1.0, "embedding": 1 / (3 + 1)}


@pytest.mark.parametrize(
    "net",
    [*RECURRENT, agent("image", "unreal").net, agent("categorical", "feudal").net, agent("image", "feudal").net],
    ids=lambda net: type(net).__name__,
)
def test_initial_weights_of_cores_and_heads_are_orthogonal(net):
    """Each gate of an LSTM by itself, with its forget gate open: the gain is the common singular value."""
    fresh = net.initial(*generators(1))
    for name, value in fresh.items():
        layer, kind = name.rsplit(".", 1)
        if kind == "bias":
            ones = torch.zeros_like(value)
            if layer in ("core", "manager", "worker"):
                units = {"core": getattr(net, "core", 0), "manager": getattr(net, "units", 0)}
                ones.chunk(4, -1)[1][:, : units.get(layer) or net.worker] = 1.0
            assert torch.equal(value, ones), name
            continue
        hidden = ACTIVATIONS[getattr(net.torso, "activation", "relu")].gain
        gain = 1.0 if kind in ("input", "hidden") else GAINS.get(layer, hidden)
        for matrix in value.chunk(4, -1) if kind in ("input", "hidden") else [value.flatten(1)]:
            sizes = torch.linalg.svdvals(matrix)
            used = sizes[sizes > 1e-4]
            assert len(used) == min((matrix.abs().sum(i) > 0).sum() for i in (0, 1)) > 0, name
            torch.testing.assert_close(used, torch.full_like(used, gain), rtol=1e-4, atol=0)
    gates = [v.chunk(4, -1) for k, v in fresh.items() if k.endswith((".input", ".hidden"))]
    assert not any(torch.equal(g[i], g[j]) for g in gates for i in range(4) for j in range(i))


# Choice


@pytest.mark.parametrize("fast", [False, True])
def test_precision_is_that_of_the_processor(fast, monkeypatch):
    """Whatever GPU there is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: not fast)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    precision = make_network(ImpalaSettings(), ATARI, SIX, image=True).torso.precision
    assert precision == (torch.bfloat16 if fast else torch.float32)


def test_settings_choose_the_network():
    assert make_network(ImpalaSettings(hidden=(8,)), (2, 3), Categorical(4), image=False) == MLP(6, (8,), 4)
    relu = ImpalaSettings(hidden=(256, 256), activation="relu")
    assert make_network(relu, (6,), Categorical(4), image=False) == MLP(6, (256, 256), 4, "relu")
    torso = make_shared_torso_net(relu, (6,), Categorical(4), image=False).torso
    assert torso == Dense(6, (256, 256), "relu")
    for kind in CONVS:
        assert make_network(ImpalaSettings(network=kind, precision="float32"), ATARI, SIX, image=True) == CONVS[kind]
    assert make_network(ImpalaSettings(precision="float32"), ATARI, SIX, image=True) == CONVS["shallow"]
    assert make_network(ImpalaSettings(precision="bfloat16"), ATARI, SIX, image=True).torso.precision == torch.bfloat16
    lstm = ImpalaSettings(core="lstm", core_units=32, hidden=(8,))
    assert make_network(lstm, (6,), Gaussian(3), image=False) == SharedTorsoNet(Dense(6, (8,)), 3, 32)
    action_reward_size = ImpalaSettings(use_last_action_reward=True, precision="float32")
    assert make_network(action_reward_size, ATARI, SIX, image=True) == convolutional("shallow", action_reward_size=6)


@pytest.mark.parametrize(
    ("kind", "shape", "image", "words"),
    [
        ("mlp", ATARI, True, "use shallow, nature or deep"),
        ("nature", (4,), False, "use mlp"),
        ("shallow", (3, 7, 7), True, "at least 20 x 20"),
        ("nature", (3, 20, 90), True, "at least 36 x 36"),
    ],
)
def test_network_unfit_for_observations_is_refused(kind, shape, image, words):
    with pytest.raises(ValueError, match=words):
        make_network(ImpalaSettings(network=kind), shape, SIX, image)


def test_deep_reads_the_smallest_images():
    net = make_network(ImpalaSettings(network="deep", precision="float32"), (3, 7, 7), SIX, image=True)
    assert net.initial(torch.Generator())["policy.weight"].isfinite().all()


def test_images_are_not_normalized():
    picture = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    with pytest.raises(ValueError, match="normalize is for vectors"):
        ImpalaSettings(observations="normalize").build(picture, spaces.Discrete(2))
