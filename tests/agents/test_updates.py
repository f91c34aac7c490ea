"""Gradients of an update: closed forms and networks outside autograd against autograd itself."""

from dataclasses import replace

import pytest
import torch

from pbtrl.agents import updates
from pbtrl.agents.actor_critic import ActorCritic
from pbtrl.agents.impala import Impala
from pbtrl.agents.loss_inputs import LossOutput
from pbtrl.agents.mlp_stacks import ACTIVATIONS
from pbtrl.agents.networks import MLP
from pbtrl.agents.policy_gradient import PolicyGradient
from pbtrl.agents.ppo import PPO
from tests.agent_fixtures import agent, block, fresh, live

MEMBERS = [0, 1, 2]


def gradients(learner, data, h):
    """Those of fresh members' first update, and its metrics."""
    state = fresh(learner, MEMBERS)
    batch = learner._batch(state, data, h)
    _, groups = next(iter(learner.minibatches(state, batch, h)(0, torch.ones(3, dtype=torch.bool))))
    metrics = updates.gradients(learner, state, groups)
    return state.grads.double(), metrics


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("kind", "std"),
    [
        ("categorical", "free"),
        ("several", "free"),
        ("clip", "free"),
        ("clip", "softplus"),
        ("squash", "softplus_variance"),
    ],
)
def test_closed_form_equals_autograd(kind, std, reduction, masked, monkeypatch):
    """Within 1e-6 of the norm, also if all steps of a member are dead."""
    learner = agent(kind, advantages="normalize" if reduction == "mean" else "raw", reduction=reduction, std=std)
    data, h = block(learner, MEMBERS), live(learner, 3, entropy_cost=0.1)
    compare_with_autograd(learner, data, h, PolicyGradient, masked, monkeypatch)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("value_clip", [False, True])
@pytest.mark.parametrize(("kind", "std"), [("categorical", "free"), ("clip", "free"), ("squash", "softplus")])
def test_closed_form_of_ppo_equals_autograd(kind, std, value_clip, masked, monkeypatch):
    """With ratios and values on both sides of the clip, and members whose minibatches have other sizes."""
    learner = agent(kind, "ppo", value_clip=value_clip, std=std)
    data = block(learner, MEMBERS)
    h = live(learner, 3, entropy_cost=0.1, clip=[0.1, 0.5, 1.0], minibatches=[2, 3, 3])
    if not masked:  # values that the network has left since
        far = lambda *_: 0.5 * torch.randn(3, 9, 5, generator=torch.Generator().manual_seed(0))  # noqa: E731
        monkeypatch.setattr(PPO, "values", far)
    compare_with_autograd(learner, data, h, PPO, masked, monkeypatch)


def compare_with_autograd(learner, data, h, own, masked, monkeypatch):
    if masked:
        data.is_reset_step[0] = True
        data.is_reset_step[1, ::2] = True
    result, metrics = gradients(learner, data, h)
    assert learner.closed_form
    monkeypatch.setattr(own, "closed_form", False)
    exact, expected = gradients(learner, data, h)
    norms = exact.norm(dim=-1)
    assert norms[1:].all()
    assert ((result - exact).norm(dim=-1) <= 1e-6 * norms).all()
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-5, atol=1e-6)


class Decayed(Impala):
    """A loss of the policy and the weights, but not of the values."""

    def loss(self, batch, h):
        decay = sum(view.square().flatten(1).sum(-1) for view in batch.params.values())
        return LossOutput(0.1 * decay - batch.log_probs.flatten(1).sum(-1), {"decay": decay})


class Cautious(Impala):
    def maybe_normalize(self, advantages, mask):
        return 0.5 * super().maybe_normalize(advantages, mask)


class Halved(Impala):
    def reduce(self, loss, batch):
        return 0.5 * super().reduce(loss, batch)


@pytest.mark.parametrize("kind", [Decayed, Cautious, Halved])
def test_closed_form_is_only_that_of_its_own_loss(kind):
    learner = agent()
    own = kind(learner.settings, learner.shape, learner.image, learner.net, learner.policy)
    assert (learner.closed_form, own.closed_form) == (True, False)


@pytest.mark.parametrize("kind", [Impala, Decayed])
def test_gradients_of_several_parts_are_summed(kind):
    learner = agent()
    learner = kind(learner.settings, learner.shape, learner.image, learner.net, learner.policy)
    state, h = fresh(learner, MEMBERS), live(learner, 3)
    batch, found = learner._batch(state, block(learner, MEMBERS), h), []
    (one,), (other,) = (learner._prepare(state, batch, h, envs) for envs in (slice(0, 2), slice(2, 5)))
    for parts in (one.parts, other.parts, [*one.parts, *other.parts]):
        updates.gradients(learner, state, [replace(one, parts=parts)])
        found.append(state.grads.clone())
    torch.testing.assert_close(found[2], found[0] + found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["impala", "decayed", "vmpo", "ppo"])
@pytest.mark.parametrize("std", ["free", "softplus"])
def test_mlp_outside_autograd_equals_autograd(name, std, monkeypatch):
    learner = agent("clip", "impala" if name == "decayed" else name, std=std)
    if name == "decayed":
        learner = Decayed(learner.settings, learner.shape, learner.image, learner.net, learner.policy)
    data, h = block(learner, MEMBERS), live(learner, 3, **({"minibatches": [2, 3, 3]} if name == "ppo" else {}))
    result, metrics = gradients(learner, data, h)
    assert learner.recorded
    monkeypatch.setattr(ActorCritic, "recorded", None)
    exact, expected = gradients(learner, data, h)
    assert exact.norm(dim=-1).all()
    assert ((result - exact).norm(dim=-1) <= 1e-6 * exact.norm(dim=-1)).all()
    assert metrics.keys() == expected.keys()


def test_only_a_plain_mlp_stays_outside_autograd():
    class Own(Impala):
        def unroll(self, params, inputs, rnn_state, starts, extra_loss_inputs):
            head, values, extra = super().unroll(params, inputs, rnn_state, starts, extra_loss_inputs)
            return 2.0 * head, values, extra

    learner = agent()

    class OwnNet(MLP):
        def unroll(self, params, inputs, rnn_state, starts=None):
            head, values = super().unroll(params, inputs, rnn_state, starts)
            return 2.0 * head, values

    net = learner.net
    own = Own(learner.settings, learner.shape, learner.image, net, learner.policy)
    other = replace(learner, net=OwnNet(net.inputs, net.hidden, net.outputs, net.activation))
    assert own.recorded is None
    assert other.recorded is None
    assert agent(core="lstm", core_units=8).recorded is None
    data, h = block(learner, MEMBERS), live(learner, 3)
    assert not torch.equal(gradients(own, data, h)[0], gradients(learner, data, h)[0])
    assert torch.equal(gradients(own, data, h)[0], gradients(other, data, h)[0])


@pytest.mark.parametrize("name", ["impala", "ppo"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_wide_layers_of_every_activation_learn(activation, name):
    """A few updates move all layers, and nothing becomes infinite."""
    learner = agent("clip", name, hidden=(256, 256), activation=activation, rewards="none")
    state, data = fresh(learner, [0, 1]), block(learner, [0, 1])
    h = live(learner, 2, learning_rate=1e-3, epochs=2, **({"minibatches": 2} if name == "ppo" else {}))
    before = state.tensors["params"].clone()
    for _ in range(5):
        learned = learner.learn(state, data, h)
        assert all(x.isfinite().all() for x in learned.metrics.values())
    assert not state.tensors["skipped"].any()
    assert state.tensors["params"].isfinite().all()
    for layer, moved in learner.layout.views(state.tensors["params"] - before).items():
        assert moved.flatten(1).any(-1).all(), layer
