"""Update of the actor-critic agents against a slow reference, and inputs that must not affect it."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, Normal, kl_divergence

from pbtrl.agents import actor_critic
from pbtrl.agents.distributions import Gaussian
from pbtrl.agents.settings import AGENTS, live_hyperparameters
from pbtrl.agents.types import Inputs, Trajectory
from tests.agent_fixtures import agent, block, changed, differences, fresh, live, pick
from tests.agents import oracles

PLAIN = {"rmsprop_decay": 1.0, "rmsprop_epsilon": 0.0, "learning_rate": 1.0, "max_grad_norm": math.inf}
"""With these the update is the gradient: the mean square stays at the 1 that it starts from."""


# The literal update


class ReferenceAgent:
    """One member's updates as the papers write them: float64, one env and one step at a time, no flat buffers."""

    def __init__(self, agent, state, slot):
        self.agent, self.settings = agent, agent.settings
        views = agent.layout.views(state.tensors["params"])
        self.names = list(views)
        self.shapes = [views[name][slot].shape for name in self.names]
        self.first = np.concatenate([views[name][slot].double().numpy().ravel() for name in self.names])
        self.params, self.gradients = self.first, []
        self.stepped_to = self.first
        self.seen, self.returns, self.running = [], [], None
        self.shift, self.second = 0.0, 1.0  # of PopArt

    def learn(self, block, h):
        """All passes over a block of one member; `h` holds plain numbers."""
        rewards, envs = self.transformed(block, h), range(block.rewards.shape[2])
        parts = np.array_split(envs, self.settings.minibatches)
        if self.settings.name == "vmpo":
            self.estimate(block, rewards, h)
        log_rhos = [0.0]
        for _ in range(h.get("epochs", 1)):
            if max(log_rhos) > h.get("max_log_ratio", math.inf):
                break
            for part in parts:
                gradient, self.log_rho = self.gradient(block, rewards, h, part)
                log_rhos.append(self.log_rho)
                self.gradients.append(gradient)
                stepped = self.stepped(h)
                self.params, self.stepped_to = self.params + stepped - self.stepped_to, stepped
                if self.settings.name == "vmpo":
                    self.keep_multipliers_positive()
        live = ~block.is_reset_step[0]
        self.seen += list(block.observations[0, :-1][live].double().flatten(1).numpy())

    def transformed(self, block, h):
        """[T][B] rewards as the learner is given them."""
        raw, (time, envs) = block.rewards[0].double().numpy(), block.rewards[0].shape
        if self.agent.rewards == "none":
            return raw
        if self.agent.rewards == "clip":
            return np.clip(raw, -1, 1)
        self.running = np.zeros(envs) if self.running is None else self.running
        for t in range(time):
            for b in range(envs):
                if not block.is_reset_step[0, t, b]:
                    self.running[b] = h["gamma"] * self.running[b] + raw[t, b]
                    self.returns.append(self.running[b])
                    if block.done[0, t, b]:
                        self.running[b] = 0.0
        return np.clip(raw / np.sqrt(np.var(self.returns) + 1e-8), -10, 10)

    def gradient(self, block, rewards, h, envs):
        """Of the whole loss, clipped by its norm; and the mean |log rho|."""
        leaves = self.leaves()
        loss, count, log_rho = self.loss(block, rewards, h, leaves, envs)
        loss = loss / count if getattr(self.settings, "reduction", None) == "mean" else loss
        loss.backward()
        flat = np.concatenate([leaf.grad.numpy().ravel() for leaf in leaves.values()])
        weights = ~self.is_multiplier
        flat[weights] *= min(1.0, h["max_grad_norm"] / np.linalg.norm(flat[weights]))
        return flat, log_rho

    @property
    def is_multiplier(self):
        """Which numbers of the flat parameters are the temperature and the alphas of V-MPO."""
        sizes = [math.prod(shape) for shape in self.shapes]
        return np.repeat([name == "temperature" or name.startswith("alpha") for name in self.names], sizes)

    def leaves(self):
        """The parameters by name."""
        leaves, at = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            size = math.prod(shape)
            leaves[name] = torch.tensor(self.params[at : at + size].reshape(shape), requires_grad=True)
            at += size
        return leaves

    def evaluate(self, block, rewards, h, leaves, envs):
        """The policies, their log-probabilities and ratios, values, value targets and advantages of all transitions."""
        time = len(rewards)
        mu, pi, values, log_pi, log_rho, advantages, targets = {}, {}, {}, {}, {}, {}, {}
        for t in range(time + 1):
            for b in envs:
                head, values[t, b] = self.forward(leaves, block.observations[0, t, b])
                if t < time:
                    pi[t, b] = self.policy(self.needs_full_batch(head, leaves))
                    mu[t, b] = self.policy(block.policy[0, t, b].double())
                    log_pi[t, b] = self.log_prob(pi[t, b], block.actions[0, t, b])
                    log_mu = self.log_prob(mu[t, b], block.actions[0, t, b])
                    log_rho[t, b] = (log_pi[t, b] - log_mu).item()
        for b in envs:
            column = range(time)
            over = block.done[0, :, b].tolist()
            on_policy = self.settings.name == "vmpo" or (self.settings.name == "a3c" and self.settings.minibatches == 1)
            clips = h if self.settings.name == "impala" else dict.fromkeys(("rho_bar", "c_bar", "pg_rho_bar"), 1.0)
            vs, advantage = oracles.vtrace_in_pieces(
                np.array([0.0 if on_policy else log_rho[t, b] for t in column]),
                np.array([0.0 if block.terminated[0, t, b] else h["gamma"] for t in column]),
                rewards[:, b],
                np.array([self.unnormalized(values[t, b].item()) for t in column]),
                self.unnormalized(values[time, b].item()),
                cuts=[over[t] or (t + 1) % h["unroll_length"] == 0 for t in column],
                rho_bar=clips["rho_bar"], c_bar=clips["c_bar"], pg_rho_bar=clips["pg_rho_bar"], lambda_=h["lambda_"],
            )  # fmt: skip
            for t in column:
                targets[t, b], advantages[t, b] = vs[t], advantage[t]
        return mu, pi, values, log_pi, log_rho, advantages, targets

    def loss(self, block, rewards, h, leaves, envs):
        """The sum of the loss's terms, of how many transitions, and their mean |log rho|."""
        mu, pi, values, log_pi, log_rho, advantages, targets = self.evaluate(block, rewards, h, leaves, envs)
        live = [(t, b) for t in range(len(rewards)) for b in envs if not block.is_reset_step[0, t, b]]
        if self.settings.name == "vmpo":
            loss = self.vmpo_loss(h, leaves, live, pi, mu, log_pi, values)
            return loss, 1, np.mean([abs(log_rho[i]) for i in live])
        if self.settings.advantages == "normalize":
            chosen = [advantages[i] for i in live]
            advantages = {i: (advantages[i] - np.mean(chosen)) / np.std(chosen) for i in live}
        loss = torch.zeros((), dtype=torch.float64)
        for i in live:
            loss = loss - advantages[i] * log_pi[i]
            loss = loss + h["value_cost"] * 0.5 * (targets[i] - values[i]) ** 2
            loss = loss - h["entropy_cost"] * pi[i].entropy().sum()
        return loss, len(live), np.mean([abs(log_rho[i]) for i in live])

    @property
    def scale(self):
        return np.sqrt(np.clip(self.second - self.shift**2, 1e-4, 1e12))

    def unnormalized(self, value):
        """A value in units of return: V-MPO's network speaks in PopArt's."""
        return self.scale * value + self.shift

    def vmpo_loss(self, h, leaves, live, pi, mu, log_pi, values):
        """Sections 3.1 and 4.1 and appendix C of V-MPO."""
        n, eta = len(live), leaves["temperature"][0]
        better = [i for i in live if i in self.better]
        weights = [torch.exp(self.advantages[i] / eta) for i in better]
        loss = 0.0 * eta
        if better:
            loss = eta * h["eps_temperature"] + eta * torch.log(sum(weights) / len(better))
        for i, weight in zip(better, weights, strict=True):
            loss = loss - (weight / sum(weights)).detach() * log_pi[i]
        for i in live:
            error = values[i] - (self.targets[i] - self.shift) / self.scale
            loss = loss + (h["value_cost"] * 0.5 * error**2 - h["entropy_cost"] * pi[i].entropy().sum()) / n
            if isinstance(pi[i], Categorical):
                parts = {"alpha": (h["eps_kl"], kl_divergence(mu[i], pi[i]))}
            else:
                mean, covariance = Normal(pi[i].loc, mu[i].scale), Normal(mu[i].loc, pi[i].scale)
                parts = {
                    "alpha_mean": (h["eps_mean"], kl_divergence(mu[i], mean).sum()),
                    "alpha_covariance": (h["eps_covariance"], kl_divergence(mu[i], covariance).sum()),
                }
            for name, (eps, kl) in parts.items():
                loss = loss + (leaves[name][0] * (eps - kl.detach()) + leaves[name][0].detach() * kl) / n
        return loss

    def keep_multipliers_positive(self):
        self.params = np.where(self.is_multiplier, np.maximum(self.params, 1e-8), self.params)

    def estimate(self, block, rewards, h):
        """Targets, advantages and the better half of a block; PopArt's statistics move, and the values do not."""
        envs, leaves = range(rewards.shape[1]), self.leaves()
        *_, self.advantages, self.targets = self.evaluate(block, rewards, h, leaves, envs)
        live = [i for i in self.targets if not block.is_reset_step[0, *i]]
        self.better = set(sorted(sorted(live), key=lambda i: -self.advantages[i])[: len(live) // 2])
        targets = [self.targets[i] for i in live]
        scale, shift = self.scale, self.shift
        weight = min(1.0, len(targets) * h["popart_rate"])
        self.shift += weight * (np.mean(targets) - self.shift)
        self.second += weight * (np.mean(np.square(targets)) - self.second)
        at = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            own = self.params[at : at + math.prod(shape)].reshape(shape)
            at += math.prod(shape)
            if name in ("value.2.weight", "value.weight"):
                own[..., 0] *= scale / self.scale
            elif name in ("value.2.bias", "value.bias"):
                own[..., 0] = (scale * own[..., 0] + shift - self.shift) / self.scale

    def forward(self, leaves, observation):
        """Head [A] and value of one observation."""
        x = observation.double()
        if not self.agent.image:
            if self.seen:
                x = torch.tensor((x.numpy() - np.mean(self.seen, 0)) / np.sqrt(np.var(self.seen, 0) + 1e-8))
            x = x.clamp(-10, 10)
            hidden = {"policy": x, "value": x}
            for stack in hidden:
                for i in range(3):
                    h = hidden[stack] @ leaves[f"{stack}.{i}.weight"] + leaves[f"{stack}.{i}.bias"][0]
                    hidden[stack] = torch.tanh(h) if i < 2 else h
            return hidden["policy"][: self.agent.net.outputs], hidden["value"][0]
        x = x[None] / 255
        for i, (_, _, stride) in enumerate(self.agent.net.torso.convolutions):
            x = torch.conv2d(x, leaves[f"conv.{i}.weight"], leaves[f"conv.{i}.bias"], stride).relu()
        x = (x.flatten() @ leaves["dense.weight"] + leaves["dense.bias"]).relu()
        head, value = (x @ leaves[f"{k}.weight"] + leaves[f"{k}.bias"][0] for k in ("policy", "value"))
        return head[:3], value[0]

    def needs_full_batch(self, head, leaves):
        """The head with the standard deviations that are not, or not yet, in it."""
        if "free" in leaves:
            return torch.cat([head, leaves["free"]])
        if not isinstance(self.agent.policy, Gaussian):
            return head
        mean, x = head.chunk(2)
        power = 2 if self.settings.std == "softplus_variance" else 1
        made = F.softplus(x + math.log(math.expm1(math.exp(self.settings.log_std) ** power)))
        return torch.cat([mean, torch.log(made ** (1 / power))])

    def policy(self, params):
        if not isinstance(self.agent.policy, Gaussian):
            return Categorical(logits=params)
        mean, log_std = params.chunk(2)
        return Normal(mean, log_std.exp())

    def log_prob(self, policy, action):
        if isinstance(policy, Categorical):
            return policy.log_prob(action)
        log_prob = policy.log_prob(action.double()).sum()
        if self.settings.actions == "squash":
            log_prob = log_prob - torch.log(1 - action.double().tanh() ** 2).sum()
        return log_prob

    def stepped(self, h):
        """Parameters after all gradients so far."""
        rate = np.where(self.is_multiplier, h.get("multiplier_learning_rate", 0.0), h["learning_rate"])
        if self.settings.optimizer == "adam":
            options = {"beta1": 0.9, "beta2": 0.999, "epsilon": h["adam_epsilon"]}
            return oracles.adam(self.first, self.gradients, learning_rate=rate, **options)[0]
        options = {"decay": h["rmsprop_decay"], "epsilon": h["rmsprop_epsilon"]}
        return oracles.rmsprop(self.first, self.gradients, learning_rate=rate, **options)[0]


def numbers(h, slot):
    return {name: value[slot].item() for name, value in h.items()}


LITERAL = [
    ("categorical", {}, {}),
    (
        "categorical",
        {"optimizer": "adam", "reduction": "mean", "advantages": "normalize"},
        {"epochs": 2, "max_log_ratio": 9.0},
    ),
    ("categorical", {"rewards": "clip"}, {"lambda_": 0.9, "unroll_length": 3, "max_grad_norm": 0.5}),
    ("clip", {"rewards": "none"}, {"unroll_length": 5, "epochs": 2, "rho_bar": 1.5, "c_bar": 0.7, "pg_rho_bar": 1.2}),
    (
        "squash",
        {"optimizer": "adam", "reduction": "mean", "advantages": "normalize"},
        {"lambda_": 0.95, "epochs": 3, "max_log_ratio": 9.0},
    ),
    ("image", {}, {"unroll_length": 4, "epochs": 2}),
    ("image", {"optimizer": "adam", "reduction": "mean"}, {"rmsprop_decay": 0.9, "entropy_cost": 0.1}),
    (
        "image",
        {"optimizer": "adam", "reduction": "mean", "advantages": "normalize", "minibatches": 2},
        {"epochs": 2, "max_log_ratio": 9.0},
    ),
    ("clip", {"minibatches": 4, "reduction": "mean"}, {"epochs": 3, "max_log_ratio": 9.0, "unroll_length": 3}),
    ("categorical", {"minibatches": 2}, {"epochs": 4, "max_log_ratio": 0.55}),
]


A3C = [
    ("categorical", {}, {"unroll_length": 3}),
    ("clip", {"minibatches": 2}, {"lambda_": 0.9, "unroll_length": 5}),
    ("squash", {"optimizer": "adam", "reduction": "mean"}, {"unroll_length": 8}),
    ("image", {"advantages": "normalize"}, {"lambda_": 0.95}),
]
VMPO = [
    ("categorical", {}, {"popart_rate": 0.01}),
    ("clip", {"std": "free"}, {"unroll_length": 3, "popart_rate": 1e-3}),
    ("squash", {}, {"popart_rate": 1.0, "lambda_": 0.9, "eps_covariance": 0.1, "entropy_cost": 0.1}),
    ("image", {"alpha": 0.1}, {"eps_kl": 1.0, "eps_temperature": 1.0}),
    ("clip", {"minibatches": 2, "temperature": 0.01}, {"max_grad_norm": 0.5}),
    (
        "clip",
        {"minibatches": 4, "rewards": "none"},
        {"epochs": 3, "multiplier_learning_rate": 0.1, "popart_rate": 0.01},
    ),
    ("categorical", {"optimizer": "rmsprop"}, {"epochs": 2, "multiplier_learning_rate": 0.5, "max_grad_norm": 0.5}),
]
CASES = [(name, *case) for name, cases in (("impala", LITERAL), ("a3c", A3C), ("vmpo", VMPO)) for case in cases]


@pytest.mark.parametrize(("name", "kind", "settings", "values"), CASES)
def test_update_equals_reference(name, kind, settings, values):
    learner = agent(kind, name, **settings)
    state, members = fresh(learner, [0, 1]), [0, 1]
    h = live(learner, 2, **{"learning_rate": 0.01, "adam_epsilon": 1e-3, "gamma": [0.9, 0.97], **values})
    reference = [ReferenceAgent(learner, state, slot) for slot in members]
    for seed in range(2):
        data = block(learner, members, envs=4, seed=seed)
        learned = learner.learn(state, data, h)
        for slot in members:
            reference[slot].learn(pick(data, [slot]), numbers(h, slot))
    views = learner.layout.views(state.tensors["params"])
    for slot in members:
        result = np.concatenate([views[name][slot].numpy().ravel() for name in views])
        moved = np.abs(reference[slot].params - reference[slot].first).max()
        assert moved > 1e-3
        np.testing.assert_allclose(result, reference[slot].params, rtol=0, atol=1e-3 * moved)
        assert learned.metrics["loss/log_ratio"][slot].item() == pytest.approx(reference[slot].log_rho, rel=1e-3)
    assert not state.tensors["skipped"].any()
    assert set(learned.consumed) == set(h)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_outlier_is_clipped_as_in_reference_update(sign):
    """The fifth block has an outlier more than ten standard deviations out, which takes that many samples.

    One observation hardly varies and is still normalized to the same width as the others.
    """
    learner = agent()
    state = fresh(learner, [0])
    h, reference = live(learner, 1, gamma=0.1), ReferenceAgent(learner, state, 0)
    for seed in range(5):
        data = block(learner, [0], envs=4, seed=seed)
        data.observations[..., 2] *= 1e-3
        if seed == 4:
            data.observations[0, 4, 3, 1], data.rewards[0, 5, 0] = -sign * 1e3, sign * 1e4
        previous = reference.params
        learner.learn(state, data, h)
        reference.learn(data, numbers(h, 0))
    assert 10 * np.std(reference.returns) < 1e4
    views = learner.layout.views(state.tensors["params"])
    result = np.concatenate([views[name][0].numpy().ravel() for name in views])
    np.testing.assert_allclose(result, reference.params, rtol=0, atol=1e-3 * np.abs(reference.params - previous).max())


def learnt(learner, members, data, h):
    """Members after one block, or after a few where the agent needs more."""
    state = fresh(learner, members)
    for _ in range(3 if learner.settings.name == "unreal" else 1):
        learned = learner.learn(state, data, h)
    return state, learned


EVERYWHERE = slice(None), slice(None)


def on_policy(learner, state, data):
    """Block with the actions and policies of the members' own weights."""
    members, time, envs = data.rewards.shape
    generators = [torch.Generator().manual_seed(m) for m in range(members)]
    noise = learner.noise(generators, time, envs)
    acted, memory = [], data.rnn_state
    for t in range(time):
        acted.append(learner.act(state, data.inputs(*EVERYWHERE)[:, t], memory, noise[t]))
        memory = acted[t].rnn_state
        actions, policy = (torch.stack([getattr(a, name) for a in acted], 1) for name in ("actions", "policy"))
        data = changed(data, actions=torch.cat([actions, data.actions[:, t + 1 :]], 1))
    return changed(data, policy=policy)


@pytest.mark.parametrize("kind", ["categorical", "clip"])
def test_on_policy_gradient_equals_a2c(kind):
    learner = agent(kind, rewards="none", observations="raw")
    state = fresh(learner, [0])
    data, gamma, unroll = on_policy(learner, state, block(learner, [0])), 0.9, 3
    before = state.tensors["params"].clone()
    h = live(learner, 1, **PLAIN, gamma=gamma, unroll_length=unroll, entropy_cost=0.1)
    learned = learner.learn(state, data, h)
    result = before - state.tensors["params"]

    leaves = learner.layout.leaves(before)
    time, envs = data.rewards.shape[1:]
    head, values = learner.net.unroll(leaves, data.inputs(*EVERYWHERE), data.rnn_state)
    values = values[0]
    policy = learner.policy.join(head[:, :-1], leaves.get("free"))
    log_probs = learner.policy.log_prob(policy, data.actions)[0]
    returns = torch.zeros(time, envs)
    for b in range(envs):
        start = 0
        for t in range(time):
            if data.done[0, t, b] or (t + 1) % unroll == 0 or t == time - 1:
                piece = slice(start, t + 1)
                discounts = gamma * (~data.terminated[0, piece, b]).float()
                bootstrap = values[t + 1, b].item()
                returns[piece, b] = torch.tensor(
                    oracles.n_step_return(discounts.tolist(), data.rewards[0, piece, b].tolist(), bootstrap)
                )
                start = t + 1
    advantages = returns - values[:-1]
    terms = -log_probs * advantages.detach() + 0.25 * advantages.square() - 0.1 * learner.policy.entropy(policy)[0]
    grads = torch.autograd.grad((terms * ~data.is_reset_step[0]).sum(), leaves.values())
    expected = torch.zeros_like(before)
    for view, grad in zip(learner.layout.views(expected).values(), grads, strict=True):
        view.copy_(grad)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(learned.metrics["loss/gradient_norm"], expected.norm()[None])


# What has no influence, and what has


@pytest.mark.parametrize("kind", ["categorical", "squash", "image"])
def test_reset_steps_do_not_affect_the_update(kind):
    settings = {} if kind == "image" else {"advantages": "normalize", "rewards": "normalize"}
    learner = agent(kind, **settings)
    data, h = block(learner, [0, 1]), live(learner, 2, epochs=2, lambda_=0.9)
    other = block(learner, [8, 9], seed=1)

    def swap(name):
        own, dead = getattr(data, name), data.is_reset_step
        return torch.where(dead.reshape(*dead.shape, *(1,) * (own.ndim - 3)), getattr(other, name), own)

    expected, _ = learnt(learner, [0, 1], data, h)
    dirty = changed(
        data, rewards=data.rewards + 5.0 * data.is_reset_step, actions=swap("actions"), policy=swap("policy")
    )
    assert (dirty.policy != data.policy).any()
    result, _ = learnt(learner, [0, 1], dirty, h)
    assert [differences(result, slot, expected, slot) for slot in (0, 1)] == [[], []]
    alive, _ = learnt(learner, [0, 1], changed(data, rewards=data.rewards + 0.1 * ~data.is_reset_step), h)
    assert differences(alive, 0, expected, 0)


@pytest.mark.parametrize(
    ("env", "index", "matters"),
    [(0, 3, False), (1, 4, True), (2, 8, True), (3, 8, True), (1, 0, False)],
    ids=["after termination", "after truncation", "after truncation at the end", "the block's end", "dead at first"],
)
def test_only_truncation_bootstraps_from_last_observation(env, index, matters):
    learner = agent(rewards="none")
    data, h = block(learner, [0]), live(learner, 1)
    observations = data.observations.clone()
    observations[:, index, env] += 1.0
    expected, _ = learnt(learner, [0], data, h)
    result, _ = learnt(learner, [0], changed(data, observations=observations), h)
    assert bool(differences(result, 0, expected, 0)) == matters


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("clip", [-1.0, -0.5, 0.0, 0.5, 1.0]),
        ("none", [-7.0, -0.5, 0.0, 0.5, 7.0]),
        ("asymmetric", [-1.5 * math.tanh(1.4), -1.5 * math.tanh(0.1), 0.0, 5 * math.tanh(0.1), 5 * math.tanh(1.4)]),
        ("asymmetric_figure", [-0.3 * math.tanh(7), -0.3 * math.tanh(0.5), 0.0, 5 * math.tanh(0.5), 5 * math.tanh(7)]),
    ],
)
def test_reward_clipping_follows_settings(kind, expected):
    learner = agent(rewards=kind)
    raw = torch.tensor([-7.0, -0.5, 0.0, 0.5, 7.0])[None, :, None]
    assert learner.transform_rewards(fresh(learner, [0]), raw).flatten().tolist() == pytest.approx(expected)


def test_truncated_value_target():
    """At a truncation the value is learned toward reward + discount * value of the last observation."""
    learner = agent(rewards="none", observations="raw")
    state, data = fresh(learner, [0]), block(learner, [0], time=1, envs=3)
    terminated, over = torch.tensor([[[False, True, False]]]), torch.tensor([[[False, True, True]]])
    data = changed(data, terminated=terminated, done=over, is_reset_step=torch.zeros_like(over))
    _, values = learner.net.unroll(state.params[0], data.inputs(*EVERYWHERE), data.rnn_state)
    value, following = values.detach()[0]
    targets = data.rewards[0, 0] + torch.tensor([0.9, 0.0, 0.9]) * following
    data = on_policy(learner, state, data)
    learned = learner.learn(state, data, live(learner, 1, gamma=0.9))
    expected = 0.5 * (targets - value).square().mean()
    torch.testing.assert_close(learned.metrics["loss/value"], expected[None])


@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_non_finite_gradient_skips_only_that_member(optimizer, poison):
    learner = agent(rewards="none", optimizer=optimizer)
    members, h = [0, 1, 2], live(learner, 3, epochs=[1, 2, 3])
    data = block(learner, members)
    rewards = data.rewards.clone()
    rewards[1, 5, 3] = poison
    expected, _ = learnt(learner, members, data, h)
    result, learned = learnt(learner, members, changed(data, rewards=rewards), h)
    assert not torch.isfinite(learned.metrics["loss/gradient_norm"][1])
    assert result.tensors["skipped"].tolist() == [0, 2, 0]
    assert [differences(result, slot, expected, slot) for slot in (0, 2)] == [[], []]
    untouched = {k for k in result.tensors if k == "params" or k.startswith(optimizer)}
    assert not untouched & set(differences(result, 1, fresh(learner, members), 1))
    learner.learn(result, data, h)
    assert result.tensors["skipped"].tolist() == [0, 0, 0]
    assert "params" in differences(result, 1, fresh(learner, members), 1)


def test_statistics_ignore_non_finite_updates():
    """V-MPO's PopArt moves with a step; where the step is skipped, so is the move."""
    learner = agent(name="vmpo", rewards="none")
    data, h = block(learner, [0, 1]), live(learner, 2, popart_rate=0.1)
    data.rewards[1, 5, 3] = math.inf
    state, _ = learnt(learner, [0, 1], data, h)
    assert "popart.shift" in differences(state, 0, fresh(learner, [0, 1]), 0)
    assert not {"params", "popart.shift", "popart.scale"} & set(differences(state, 1, fresh(learner, [0, 1]), 1))


@pytest.mark.parametrize("name", ["impala", "a3c", "unreal", "feudal"])
def test_mean_reduction_divides_by_live_steps(name):
    """The gradient of `mean` is that of `sum` divided by the live steps, in every term of every agent."""
    result = {}
    for reduction in ("sum", "mean"):
        learner = agent(name=name, reduction=reduction)
        data, h = block(learner, [0, 1], envs=4), live(learner, 2, **PLAIN)
        state = fresh(learner, [0, 1])
        for _ in range(3 if name == "unreal" else 1):
            before = state.tensors["params"].clone()
            learner.learn(state, data, {**h, "learning_rate": torch.zeros(2)})
        learner.learn(state, data, h)
        result[reduction] = before - state.tensors["params"]
    count = (~data.is_reset_step).flatten(1).sum(-1, keepdim=True)
    torch.testing.assert_close(result["mean"] * count, result["sum"], rtol=1e-3, atol=1e-4)


# Acting


@pytest.mark.parametrize("name", AGENTS)
def test_acting_reads_only_acting_tensors(name):
    learner = agent(name=name)
    data, h = block(learner, [0, 1]), live(learner, 2)
    state, _ = learnt(learner, [0, 1], data, h)
    seen = data.inputs(*EVERYWHERE)[:, 0], data.rnn_state, data.noise[:, 0]
    expected = learner.act(state, *seen)
    for key, value in state.tensors.items():
        if key not in learner.acting_tensors and value.is_floating_point():
            value.fill_(math.nan)
    result = learner.act(state, *seen)
    assert torch.equal(result.policy, expected.policy)
    assert torch.equal(result.actions, expected.actions)


@pytest.mark.parametrize("kind", ["categorical", "clip", "squash"])
def test_acting_without_noise_takes_the_mode(kind):
    learner = agent(kind)
    data, state = block(learner, [0, 1]), fresh(learner, [0, 1])
    acted = learner.act(state, data.inputs(*EVERYWHERE)[:, 0], data.rnn_state, None)
    likeliest = acted.policy.argmax(-1) if kind == "categorical" else acted.policy[..., :2]
    assert torch.equal(acted.actions, likeliest)


@pytest.mark.parametrize("name", AGENTS)
def test_each_member_has_its_own_noise_generator(name):
    learner = agent(name=name)

    def drawn(*seeds):
        return learner.noise([torch.Generator().manual_seed(seed) for seed in seeds], 6, 4)

    both, alone = drawn(1, 2), drawn(2)
    assert torch.equal(both[:, [1]], alone)
    assert (both[:, 0] != both[:, 1]).any(0).any(0).all()
    assert (both[1:] != both[:-1]).any(0).any(0).any(0).all()
    assert (both[:, :, 1:] != both[:, :, :-1]).any(0).any(0).any(0).all()


def test_free_std_starts_at_setting():
    learner = agent("clip", log_std=-1.5)
    data = block(learner, [0, 1])
    acted = learner.act(fresh(learner, [0, 1]), data.inputs(*EVERYWHERE)[:, 0], data.rnn_state, None)
    assert torch.equal(acted.policy[..., 2:], torch.full((2, 5, 2), -1.5))


# Members beside each other

MIXED = {
    "learning_rate": [1e-3, 3e-4, 1e-2, 2e-3],
    "unroll_length": [5, 3, 8, 4],
    "epochs": [1, 2, 3, 1],
    "lambda_": [1.0, 0.95, 0.9, 0.8],
    "max_log_ratio": [1.0, math.inf, math.inf, 0.1],
    "max_grad_norm": [1.0, 0.5, 40.0, 10.0],
    "entropy_cost": [0.01, 0.001, 0.1, 0.0],
    "gamma": [0.99, 0.9, 0.97, 0.5],
    "minibatches": [2, 5, 3, 2],
    "clip": [0.2, 0.1, 0.4, 0.0],
    "target_kl": [math.inf, math.inf, 0.1, math.inf],
}


@pytest.mark.parametrize(
    ("kind", "envs", "settings"),
    [
        ("categorical", 16, {"advantages": "normalize", "reduction": "mean", "optimizer": "adam"}),
        ("categorical", 5, {"rewards": "clip", "hidden": (64, 64)}),
        ("clip", 16, {}),
        ("clip", 3, {"optimizer": "adam"}),
        ("squash", 4, {"rewards": "none", "observations": "raw", "advantages": "normalize"}),
        ("image", 3, {}),
        ("image", 4, {"minibatches": 3, "advantages": "normalize", "optimizer": "adam"}),
        ("clip", 5, {"minibatches": 2}),
        ("clip", 5, {"activation": "relu", "hidden": (48,)}),
        ("categorical", 3, {"activation": "elu", "core": "lstm", "core_units": 8}),
        ("squash", 3, {"activation": "elu", "name": "vmpo"}),
        ("clip", 3, {"name": "a3c"}),
        ("squash", 5, {"name": "a3c"}),
        ("categorical", 5, {"name": "vmpo"}),
        ("several", 5, {"name": "vmpo", "core": "lstm", "core_units": 8, "use_last_action_reward": True}),
        ("several", 5, {"reduction": "mean"}),
        ("clip", 3, {"name": "vmpo"}),
        ("image", 4, {"name": "vmpo", "minibatches": 3}),
        ("categorical", 5, {"name": "ppo"}),
        ("clip", 3, {"name": "ppo", "hidden": (64, 64)}),
        ("squash", 16, {"name": "ppo", "advantages": "raw", "value_clip": False}),
        ("image", 4, {"name": "ppo"}),
        ("clip", 5, {"name": "ppo", "core": "lstm", "core_units": 9, "use_last_action_reward": True}),
        ("image", 5, {"name": "ppo", "core": "lstm", "core_units": 8, "use_last_action_reward": True}),
        ("categorical", 5, {"core": "lstm", "core_units": 20, "use_last_action_reward": True}),
        ("clip", 3, {"core": "lstm", "core_units": 9, "minibatches": 2}),
        ("image", 5, {"core": "lstm", "core_units": 8, "use_last_action_reward": True}),
        ("categorical", 5, {"name": "unreal"}),
        ("clip", 3, {"name": "unreal", "advantages": "normalize", "rewards": "normalize"}),
        ("image", 5, {"name": "unreal", "minibatches": 2, "reduction": "mean"}),
        ("categorical", 5, {"name": "feudal"}),
        ("clip", 3, {"name": "feudal", "advantages": "normalize", "use_last_action_reward": True}),
        ("image", 5, {"name": "feudal", "minibatches": 2, "reduction": "mean"}),
    ],
    ids=str,
)
def test_update_is_bit_identical_in_every_slot_and_cohort(kind, envs, settings):
    """So a member's targets, unroll length and epochs are its own: alone it is a separate run."""
    learner = agent(kind, **settings)
    known = live_hyperparameters(learner.settings)
    h = live(learner, 4, **{name: values for name, values in MIXED.items() if name in known})

    def trained(members):
        state = fresh(learner, members)
        for seed in range(3):
            data = block(learner, members, envs=envs, seed=seed)
            learned = learner.learn(state, data, {name: value[members] for name, value in h.items()})
        return state, learned.metrics

    whole, measured = trained([0, 1, 2, 3])
    for members in ([0], [1], [2], [3], [0, 1], [3, 2], [3, 0, 2, 1]):
        part, metrics = trained(members)
        for slot, member in enumerate(members):
            assert differences(part, slot, whole, member) == []
            assert {k: v[slot].item() for k, v in metrics.items()} == {k: v[member].item() for k, v in measured.items()}


def test_unroll_length_changes_the_update():
    """Neighboring unroll lengths give different updates on the same data."""
    learner, lengths = agent(), list(range(5, 51))
    same = [0] * len(lengths)
    data = block(learner, same, time=50, envs=3)
    state, learned = learnt(learner, same, data, live(learner, len(lengths), unroll_length=lengths))
    assert learned.consumed["unroll_length"].tolist() == lengths
    params = state.tensors["params"]
    assert (params[1:] != params[:-1]).any(-1).all()


def test_unroll_length_is_measured_from_cuts_in_the_loss(monkeypatch):
    learner, real = agent(), actor_critic.unroll_cuts
    data, h = block(learner, [0, 1]), live(learner, 2, unroll_length=[4, 6])
    expected, _ = learnt(learner, [0, 1], data, live(learner, 2, unroll_length=[3, 5]))
    monkeypatch.setattr(actor_critic, "unroll_cuts", lambda length, time: real(length - 1, time))
    state, learned = learnt(learner, [0, 1], data, h)
    assert learned.consumed["unroll_length"].tolist() == [3, 5]
    assert [differences(state, slot, expected, slot) for slot in (0, 1)] == [[], []]


OTHER = {
    "learning_rate": 1e-3, "entropy_cost": 0.1, "unroll_length": 3, "value_cost": 0.7, "gamma": 0.9, "lambda_": 0.5,
    "rho_bar": 0.7, "c_bar": 0.7, "pg_rho_bar": 0.7, "max_grad_norm": 0.1, "epochs": 2, "max_log_ratio": 9.0,
    "rmsprop_decay": 0.9, "rmsprop_epsilon": 0.1, "adam_epsilon": 0.1, "target_period": 1, "eps_temperature": 1.0,
    "multiplier_learning_rate": 0.3,
    "eps_kl": 1.0, "eps_mean": 1.0, "eps_covariance": 1.0, "popart_rate": 0.1, "pixel_control_cost": 0.5,
    "pixel_control_gamma": 0.5, "reward_prediction_cost": 0.3, "value_replay_cost": 0.3,
    "intrinsic_cost": 0.1, "manager_gamma": 0.5, "minibatches": 3, "clip": 0.1, "target_kl": 0.0,
}  # fmt: skip


EVERY = [(agent, name) for agent in AGENTS for name in live_hyperparameters(AGENTS[agent])]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_live_hyperparameters_affect_only_their_member(kind, name):
    """Every live hyperparameter changes the update of its own member and of no other."""
    actions = "clip" if name in ("eps_mean", "eps_covariance") else "image" if "pixel" in name else "categorical"
    learner = agent(actions, kind, optimizer="adam" if name == "adam_epsilon" else "rmsprop")
    data, same = block(learner, [0, 1]), {"max_grad_norm": 0.5}
    if name == "max_log_ratio":
        same |= {"epochs": 2, name: 0.1}
    base, _ = learnt(learner, [0, 1], data, live(learner, 2, **same))
    default = live_hyperparameters(learner.settings)[name]
    h = live(learner, 2, **{**same, name: [OTHER[name], same.get(name, default)]})
    result, learned = learnt(learner, [0, 1], data, h)
    assert ("target" if name == "target_period" else "params") in differences(result, 0, base, 0)
    assert differences(result, 1, base, 1) == []
    assert learned.consumed[name][0] == h[name][0]


@pytest.mark.parametrize("kind", ["categorical", "clip", "squash", "image"])
def test_on_policy_the_ratio_is_one(kind):
    learner = agent(kind)
    state, h = fresh(learner, [0, 1]), live(learner, 2)
    for seed in range(2):  # the second time with statistics of observations
        data = block(learner, [0, 1], seed=seed)
        off = learner.learn(fresh(learner, [0, 1]), data, h).metrics["loss/log_ratio"]
        on = learner.learn(state, on_policy(learner, state, data), h).metrics["loss/log_ratio"]
        assert off.min() > 0.1
        assert on.max() < 1e-6


def test_no_further_epoch_after_max_log_ratio():
    learner, members = agent(), [0, 1, 2]
    data = on_policy(learner, fresh(learner, members), block(learner, members))
    h = {"learning_rate": 0.01, "entropy_cost": 0.0}
    twice, _ = learnt(learner, members, data, live(learner, 3, **h, epochs=2))
    often, moved = learnt(learner, members, data, live(learner, 3, **h, epochs=5, max_log_ratio=math.inf))
    limits = [1e-6, math.inf, moved.metrics["loss/log_ratio"][2].item() / 2]  # acting may round otherwise than learning
    result, learned = learnt(learner, members, data, live(learner, 3, **h, epochs=5, max_log_ratio=limits))
    assert differences(result, 0, twice, 0) == []  # in the first pass nothing had moved
    assert differences(result, 1, often, 1) == []
    first, last, between = learned.metrics["loss/epochs"].tolist()
    assert (first, last) == (2, 5)
    assert 1 < between < 5
    assert learned.consumed["epochs"].tolist() == [5, 5, 5]


def test_replayed_unrolls_do_not_enter_statistics():
    """Replayed unrolls are learned from.

    The log ratio and the statistics of observations and returns use new unrolls only.
    """
    learner, members = agent("clip", rewards="normalize", observations="normalize", minibatches=2), [0, 1]
    new = on_policy(learner, fresh(learner, members), block(learner, members, envs=4))
    old = block(learner, members, envs=4, seed=1)  # of quite another policy
    past = torch.tensor([False, True] * 4)
    both = {}
    for f in fields(new):
        if f.name not in ("from_replay", "initial_inputs"):
            axis = 1 if f.name == "rnn_state" else 2
            one, two = getattr(new, f.name), getattr(old, f.name)
            both[f.name] = torch.stack([one, two], axis + 1).flatten(axis, axis + 1)
    pairs = ([getattr(b.initial_inputs, f.name) for b in (new, old)] for f in fields(Inputs))
    before = Inputs(*(torch.stack(pair, 2).flatten(1, 2) for pair in pairs))
    h = live(learner, 2, learning_rate=1e-6, epochs=3, max_log_ratio=0.1)
    result, learned = learnt(learner, members, Trajectory(**both, initial_inputs=before, from_replay=past), h)
    alone, _ = learnt(learner, members, new, h)
    assert learned.metrics["loss/epochs"].tolist() == [3, 3]
    assert learned.metrics["loss/log_ratio"].max() < 0.01
    assert "params" in differences(result, 0, alone, 0)
    for name in ("shift", "scale", *(n for n in result.tensors if n.startswith(("observation.", "return.")))):
        assert torch.allclose(result.tensors[name], alone.tensors[name], rtol=1e-5), name
    assert torch.allclose(result.running["return"][:, ~past], alone.running["return"], rtol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_replayed_unrolls_weigh_as_much_as_new_ones(reduction):
    """Without statistics an update does not depend on which unrolls are replayed; only |log rho| does."""
    learner = agent(rewards="none", observations="raw", reduction=reduction)
    data, h, past = block(learner, [0, 1], envs=4), live(learner, 2), torch.tensor([False, True, True, False])
    plain, _ = learnt(learner, [0, 1], data, h)
    mixed, learned = learnt(learner, [0, 1], changed(data, from_replay=past), h)
    assert [differences(mixed, slot, plain, slot) for slot in (0, 1)] == [[], []]
    dead = data.is_reset_step | past  # leaves the new ones alone
    _, alone = learnt(learner, [0, 1], changed(data, is_reset_step=dead), h)
    torch.testing.assert_close(learned.metrics["loss/log_ratio"], alone.metrics["loss/log_ratio"])


# Rewards


def test_rewards_are_clipped_divided_or_unchanged():
    def after(rewards, factor):
        learner = agent(rewards=rewards)
        data = block(learner, [0])
        data = changed(data, rewards=factor * data.rewards.sign())
        return learnt(learner, [0], data, live(learner, 1))[0]

    assert differences(after("clip", 3.0), 0, after("clip", 1.0), 0) == []
    assert "params" in differences(after("clip", 0.5), 0, after("clip", 1.0), 0)
    assert "params" in differences(after("none", 3.0), 0, after("none", 1.0), 0)
    assert "params" not in differences(after("normalize", 4.0), 0, after("normalize", 1.0), 0)
    one, other = after("normalize", 1.0).tensors["params"], after("none", 1.0).tensors["params"]
    assert not torch.equal(one, other)


def test_default_reward_processing():
    """Rewards are clipped for image observations and normalized for vectors."""
    assert agent("image").rewards == "clip"
    assert agent().rewards == "normalize"
    assert agent(rewards="none").rewards == "none"
    assert not agent("image").normalizes
    assert agent().normalizes
    assert not agent(observations="raw").normalizes
