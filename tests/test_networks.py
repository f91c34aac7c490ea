"""Networks: the layout of the flat buffer, equality with torch.nn, and members that never depend on each other."""

import math

import pytest
import torch
from torch import nn

from agents import optim
from agents.networks import MLP, NATURE, PAD, SHALLOW, Convolutional, Layout, network
from agents.settings import Impala

torch.set_num_threads(1)  # as in every worker

MLPS = [MLP(3, (64, 64), 2), MLP(1, (16,), 1), MLP(11, (50, 10), 6), MLP(4, (), 3)]
ATARI = (4, 84, 84)
CONVS = {
    "shallow": Convolutional(ATARI, *SHALLOW, 6, torch.float32),
    "nature": Convolutional(ATARI, *NATURE, 6, torch.float32),
}


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def stacked(net, seeds):
    """A flat buffer of fresh members [P, D], with values also where an initial bias is 0, and its views."""
    flat = torch.zeros(len(seeds), net.layout.size)
    views = net.layout.views(flat)
    for i, g in enumerate(generators(*seeds)):
        for name, value in net.initial(g).items():
            views[name][i] = value
            if name.endswith("bias"):
                views[name][i] += 0.1 * torch.randn(value.shape, generator=g)
    return flat, net.layout.leaves(flat)


def gradients(net, leaves, x):
    """Outputs for x, and the gradients of a nonlinear function of them."""
    policy, value = net.both(leaves, x)
    loss = (policy.square().sum(-1) * value.tanh()).flatten(1).sum(-1)
    return (
        policy.detach(),
        value.detach(),
        dict(zip(leaves, torch.autograd.grad(loss.sum(), leaves.values()), strict=True)),
    )


# Layout


def test_every_view_aliases_its_own_padded_place():
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


def test_leaves_see_what_the_optimiser_writes():
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
        layers += [linear(weight[: widths[i], : widths[i + 1]], bias[:, : widths[i + 1]]), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("net", MLPS, ids=str)
def test_mlp_equals_torch_nn(net):
    _, leaves = stacked(net, [1, 2])
    x = torch.randn(2, 9, net.inputs, generator=generators(0)[0])
    policy, value, grads = gradients(net, leaves, x)
    torch.testing.assert_close(net.policy(leaves, x), policy)
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


def plain_convolutional(net, leaves):
    own, channels, layers = {k: v[0] for k, v in leaves.items()}, net.image[0], []
    for i, (out, kernel, stride) in enumerate(net.convolutions):
        layer = nn.Conv2d(channels, out, kernel, stride)
        layer.weight.data, layer.bias.data = own[f"conv.{i}.weight"].detach(), own[f"conv.{i}.bias"].detach()
        layers += [layer, nn.ReLU()]
        channels = out
    dense = linear(own["dense.weight"], own["dense.bias"])
    trunk = nn.Sequential(*layers, nn.Flatten(), dense, nn.ReLU())
    return trunk, [linear(own[f"{h}.weight"], own[f"{h}.bias"]) for h in ("policy", "value")]


@pytest.mark.parametrize("kind", CONVS)
def test_convolutional_equals_torch_nn(kind):
    net = CONVS[kind]
    _, leaves = stacked(net, [1])
    x = torch.randint(0, 256, (1, 3, *ATARI), generator=generators(0)[0], dtype=torch.uint8)
    policy, value, grads = gradients(net, leaves, x)
    torch.testing.assert_close(net.policy(leaves, x), policy)
    trunk, heads = plain_convolutional(net, leaves)
    features = trunk(x[0].float() / 255)
    expected = heads[0](features), heads[1](features).squeeze(-1)
    torch.testing.assert_close((policy[0], value[0]), expected)
    (expected[0].square().sum(-1) * expected[1].tanh()).sum().backward()
    for i in range(len(net.convolutions)):
        torch.testing.assert_close(grads[f"conv.{i}.weight"][0], trunk[2 * i].weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grads["dense.weight"][0], trunk[-2].weight.grad.T, rtol=1e-4, atol=1e-6)


def test_the_papers_networks_have_their_sizes():
    sizes = {kind: sum(math.prod(s) for s in net.layout.shapes.values()) for kind, net in CONVS.items()}
    heads = {"shallow": 257 * 7, "nature": 513 * 7}
    assert sizes["shallow"] - heads["shallow"] == 4 * 16 * 64 + 16 + 16 * 32 * 16 + 32 + 2592 * 256 + 256
    assert sizes["nature"] - heads["nature"] == 1_684_128  # Mnih et al. 2015, for a stack of 4 frames


def test_bfloat16_is_close_and_acting_stays_in_float32():
    half = Convolutional(ATARI, *SHALLOW, 6, torch.bfloat16)
    _, leaves = stacked(half, [1])
    x = torch.randint(0, 256, (1, 2, *ATARI), generator=generators(0)[0], dtype=torch.uint8)
    policy, value = half.both(leaves, x)
    exact, exact_value = CONVS["shallow"].both(leaves, x)
    assert policy.dtype == value.dtype == torch.float32
    assert not torch.equal(policy, exact)
    torch.testing.assert_close((policy, value), (exact, exact_value), rtol=0.05, atol=0.02)
    torch.testing.assert_close(half.policy(leaves, x), exact)


# Independence of the members


@pytest.mark.parametrize("batch", [1, 5, 16, 99])
@pytest.mark.parametrize("net", MLPS, ids=str)
def test_a_member_is_the_same_bit_for_bit_in_every_slot_of_every_cohort(net, batch):
    seeds = [1, 2, 3, 4]
    x = torch.randn(4, batch, net.inputs, generator=generators(0)[0])
    whole = gradients(net, stacked(net, seeds)[1], x)
    for slots in ([0], [1], [2], [3], [0, 1], [3, 2], [3, 1, 0, 2]):
        part = gradients(net, stacked(net, [seeds[s] for s in slots])[1], x[slots])
        assert torch.equal(part[0], whole[0][slots])
        assert torch.equal(part[1], whole[1][slots])
        for name, grad in part[2].items():
            assert torch.equal(grad, whole[2][name][slots]), name


@pytest.mark.parametrize("optimiser", ["rmsprop", "adam"])
def test_unused_columns_and_padding_stay_zero(optimiser):
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
        if optimiser == "adam":
            optim.adam(flat, grads, *moments, learning_rate=rate, active=active)
        else:
            optim.rmsprop(flat, grads, moments[0], learning_rate=rate, decay=0.9, epsilon=1e-5, active=active)
    assert flat[used == 1].all()
    assert not flat[used == 0].any()


# Fresh parameters


def test_members_start_from_their_own_generators_alone():
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


# Choice


def test_settings_choose_the_network():
    assert network(Impala(hidden=(8,)), (2, 3), 4, image=False) == MLP(6, (8,), 4)
    for kind in CONVS:
        assert network(Impala(network=kind, precision="float32"), ATARI, 6, image=True) == CONVS[kind]
    assert network(Impala(precision="float32"), ATARI, 6, image=True) == CONVS["shallow"]
    assert network(Impala(precision="bfloat16"), ATARI, 6, image=True).precision == torch.bfloat16


@pytest.mark.parametrize(
    ("kind", "shape", "image", "words"),
    [
        ("mlp", ATARI, True, "use shallow or nature"),
        ("nature", (4,), False, "use mlp"),
        ("shallow", (3, 7, 7), True, "at least 20 x 20"),
        ("nature", (3, 20, 90), True, "at least 36 x 36"),
    ],
)
def test_a_network_that_cannot_read_the_observations_is_refused(kind, shape, image, words):
    with pytest.raises(ValueError, match=words):
        network(Impala(network=kind), shape, 6, image)
