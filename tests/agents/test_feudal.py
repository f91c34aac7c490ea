"""Feudal Networks: losses and gradients against slow references, and the reach of gradients."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from pbtrl.agents import feudal
from pbtrl.agents.settings import FeudalSettings
from tests.agent_fixtures import agent, block, changed, first_inputs, fresh, live, pick
from tests.agents import oracles
from tests.agents.reference_agents import ReferenceAgent

PLAIN = {"rmsprop_decay": 1.0, "rmsprop_epsilon": 0.0, "learning_rate": 1.0, "max_grad_norm": torch.inf}
EVERYWHERE = slice(None), slice(None)


# The literal losses


def cosine(x, y):
    product = (x.norm() * y.norm()).item()
    return x @ y / (x.norm() * y.norm()) if product > 0 else torch.zeros((), dtype=torch.float64)


def detached(x):
    return float(x.detach() if isinstance(x, torch.Tensor) else x)


class ReferenceFeudal(ReferenceAgent):
    """Section 3 of the paper."""

    def unroll(self, data, b):
        """[T+1] of everything that one env's steps come to."""
        net, c, d = self.net, self.net.horizon, self.net.units
        flat = data.rnn_state[0, b].double()
        outputs, cells, goals, states = (list(flat[i * c * d : (i + 1) * c * d].view(c, d)) for i in range(4))
        worker = list(flat[4 * c * d : -1].chunk(2))
        phase, inputs, result = int(flat[-1]), data.inputs(*EVERYWHERE), []
        for t in range(data.rewards.shape[1] + 1):
            outputs, cells, worker = (self.unroll_memory(x, t) for x in (outputs, cells, worker))
            received = [getattr(inputs, k)[0, t, b] for k in ("observations", "actions", "rewards", "first")]
            if received[-1]:
                nothing = [torch.zeros(d, dtype=torch.float64)] * c
                outputs, cells, goals, states = (list(nothing) for _ in range(4))
                worker, phase = [torch.zeros(net.worker, dtype=torch.float64)] * 2, 0
            z = self.joined(*received)
            s = self.head("state", z).relu()
            outputs[phase], cells[phase] = self.lstm("manager", s, [outputs[phase], cells[phase]])
            pooled = sum(outputs) / c
            goal = pooled / pooled.norm()
            if (
                t < data.rewards.shape[1]
                and (random_goal := self.learner.split_extra_noise(data.noise)[0, t, b].double()).any()
            ):
                goal = random_goal
            intrinsic = sum(cosine(s.detach() - states[i], goals[i]) for i in range(c)) / c
            worker = self.lstm("worker", z, worker)
            w = (sum(goals) + goal.detach()) @ self.leaves["embedding.weight"]
            result.append(
                {
                    "head": worker[0].view(-1, net.embedding) @ w,
                    "value": self.head("value", worker[0])[0],
                    "manager": self.head("manager.value", pooled)[0],
                    "goal": goal,
                    "state": s.detach(),
                    "intrinsic": intrinsic.item(),
                }
            )
            goals, states = [goal.detach(), *goals[:-1]], [s.detach(), *states[:-1]]
            phase = (phase + 1) % c
        return result

    def losses(self, data):
        """The terms by the metrics' names, and the whole."""
        terms = dict.fromkeys(("policy", "value", "entropy", "manager", "manager_value", "intrinsic"), 0.0)
        time = data.rewards.shape[1]
        for b in range(data.rewards.shape[2]):
            seen, over = self.unroll(data, b), data.done[0, :, b].tolist()
            continues = 1.0 - data.terminated[0, :, b].double().numpy()
            paid = self.transform_rewards(data.rewards[0, :, b])
            intrinsic = np.array([s["intrinsic"] for s in seen[1:]])

            def returns(value, gamma, rewards, seen=seen, continues=continues, over=over):
                values = np.array([s[value].item() for s in seen])
                return oracles.gae(
                    gamma * continues, rewards, values[:-1], values[-1],
                    lambda_=self.h["lambda_"], cuts=self.cuts(over),
                )  # fmt: skip

            targets, advantages = returns("value", self.h["gamma"], paid + self.h["intrinsic_cost"] * intrinsic)
            high_targets, high_advantages = returns("manager", self.h["manager_gamma"], paid)
            for t in range(time):
                if data.is_reset_step[0, t, b]:
                    continue
                end = t + 1
                while end < t + self.net.horizon and end < time and not over[end - 1]:
                    end += 1
                alike = cosine(seen[end]["state"] - seen[t]["state"], seen[t]["goal"])
                policy = self.policy(seen[t]["head"])
                log_prob = policy.log_prob(data.actions[0, t, b]).sum()
                for name, term in (
                    ("policy", -advantages[t] * log_prob),
                    ("value", 0.5 * (targets[t] - seen[t]["value"]) ** 2),
                    ("entropy", policy.entropy().sum()),
                    ("manager", -high_advantages[t] * alike),
                    ("manager_value", 0.5 * (high_targets[t] - seen[t]["manager"]) ** 2),
                    ("intrinsic", intrinsic[t]),
                ):
                    terms[name] = terms[name] + term
        total = terms["policy"] + terms["manager"] - self.h["entropy_cost"] * terms["entropy"]
        return terms, total + self.h["value_cost"] * (terms["value"] + terms["manager_value"])

    def policy(self, head):
        if "free" not in self.leaves:
            return torch.distributions.Categorical(logits=head)
        return torch.distributions.Normal(head, self.leaves["free"].exp())


@pytest.mark.parametrize(
    ("kind", "settings", "values"),
    [
        ("categorical", {"use_last_action_reward": True, "rewards": "clip"}, {"unroll_length": 3, "lambda_": 0.9}),
        ("clip", {"horizon": 5, "rewards": "none", "std": "free"}, {"intrinsic_cost": [0.1, 0.9]}),
        ("image", {"horizon": 1, "rewards": "clip"}, {"manager_gamma": 0.5}),
    ],
)
def test_losses_and_gradients_equal_reference(kind, settings, values):
    observations = "auto" if kind == "image" else "raw"
    learner = agent(kind, "feudal", observations=observations, **settings)
    h = live(learner, 2, **{**PLAIN, "gamma": [0.9, 0.97], "entropy_cost": 0.1, "unroll_length": 8, **values})
    state, data = fresh(learner, [0, 1]), block(learner, [0, 1], time=9, envs=4)
    assert learner.split_extra_noise(data.noise).any(-1).sum() > 3
    references = [ReferenceFeudal(learner, state, slot, h) for slot in range(2)]
    before = state.tensors["params"].clone()
    metrics = learner.learn(state, data, h).metrics
    gradients = learner.layout.views(before - state.tensors["params"])
    for slot, reference in enumerate(references):
        terms, total = reference.losses(pick(data, [slot]))
        live_steps = (~data.is_reset_step[slot]).sum().item()
        for name, term in terms.items():
            assert metrics[f"loss/{name}"][slot].item() * live_steps == pytest.approx(
                detached(term), rel=1e-5, abs=1e-5
            )
        expected = torch.autograd.grad(total, list(reference.leaves.values()))
        largest = max(g.abs().max() for g in expected)
        for (name, gradient), exact in zip(gradients.items(), expected, strict=True):
            assert (gradient[slot] - exact).abs().max() < 1e-5 * largest, name


# Acting


def unrolled(learner, state, data):
    params = {name: view.detach() for name, view in state.params[0].items()}
    extra_loss_inputs = learner.extra_loss_inputs(state, data, live(learner, len(data.rewards)))
    return learner.unroll(params, data.inputs(*EVERYWHERE), data.rnn_state, None, extra_loss_inputs)


def test_unroll_equals_step_by_step_with_random_goals():
    learner = agent("categorical", "feudal", use_last_action_reward=True)
    state, data = fresh(learner, [0, 1]), block(learner, [0, 1])
    head, _, _ = unrolled(learner, state, data)
    inputs, memory = data.inputs(*EVERYWHERE), data.rnn_state
    for t in range(data.rewards.shape[1]):
        acted = learner.act(state, inputs[:, t], memory, data.noise[:, t])
        memory = acted.rnn_state
        torch.testing.assert_close(acted.policy, head[:, t])


def test_goals_are_unit_vectors_with_random_share():
    """Goals have length 1, and the configured share of them is random."""
    learner = agent("categorical", "feudal", random_goals=0.1, observations="raw")
    (goals,) = learner.extra_noise(torch.Generator().manual_seed(1), 100, 40)
    drawn = goals.any(-1)
    assert drawn.float().mean() == pytest.approx(0.1, abs=0.02)
    torch.testing.assert_close(goals[drawn].norm(dim=-1), torch.ones(int(drawn.sum())))
    assert goals[drawn].mean(0).abs().max() < 0.06
    extra = unrolled(learner, fresh(learner, [0]), block(learner, [0]))[2]
    torch.testing.assert_close(extra["goals"].norm(dim=-1), torch.ones(1, 9, 5), rtol=1e-4, atol=0)


def test_cores_alternate_and_reset_at_episode_start():
    """The dilated LSTM uses one core after the other; all of them are reset where an episode begins."""
    learner = agent("categorical", "feudal", horizon=4)
    net, state = learner.net, fresh(learner, [0])
    x = torch.randn(1, 10, 2, 3, generator=torch.Generator().manual_seed(1))
    inputs, memory = first_inputs(learner, x[:, 0])
    for t in range(10):
        again = t == 7
        inputs = inputs.__class__(x[:, t], inputs.actions, inputs.rewards, torch.tensor([[t == 0, t == 0 or again]]))
        before, memory = memory, learner.act(state, inputs, memory, None).rnn_state
        for env, turn in ((0, t % 4), (1, (t - 7 if t >= 7 else t) % 4)):
            outputs, old = (m[0, env, : 4 * net.units].view(4, net.units) for m in (memory, before))
            changed_cores = (outputs != old).any(-1).tolist()
            if env == 1 and again:
                assert outputs.any(-1).tolist() == [True, False, False, False]
            else:
                assert changed_cores == [core == turn for core in range(4)]


# What reaches what


def test_intrinsic_rewards_are_scaled_as_normalized_rewards():
    """Where rewards are normalized, intrinsic rewards are scaled by 1 - gamma too."""
    gamma, paid = [0.9, 0.97], {}
    for rewards in ("none", "normalize"):
        learner = agent("categorical", "feudal", rewards=rewards)
        h = live(learner, 2, gamma=gamma, learning_rate=0.0)
        paid[rewards] = learner.learn(fresh(learner, [0, 1]), block(learner, [0, 1]), h).metrics["loss/intrinsic"]
    assert paid["none"].all()
    assert torch.allclose(paid["normalize"], paid["none"] * torch.tensor([0.1, 0.03]), rtol=1e-4)


@pytest.mark.parametrize("advantages", ["normalize", "raw"])
def test_manager_advantages_are_normalized(advantages):
    """With zero values they are the rewards, whose scale then has no effect on what the manager's goals learn."""
    learner = agent("categorical", "feudal", rewards="none", advantages=advantages)
    data = block(learner, [0, 1])
    h = live(learner, 2, **PLAIN, value_cost=0.0, manager_gamma=0.0)
    moved = []
    for rewards in (data.rewards, 10.0 * data.rewards):
        state = fresh(learner, [0, 1])
        for views in state.params:
            views["manager.value.weight"].detach().zero_()
        before = state.tensors["params"].clone()
        learner.learn(state, changed(data, rewards=rewards), h)
        moved.append(learner.layout.views(before - state.tensors["params"])["manager.input"])
    factor = 1.0 if advantages == "normalize" else 10.0
    assert (moved[1] - factor * moved[0]).abs().max() < 1e-4 * moved[1].abs().max()


def test_no_gradient_from_worker_into_goals():
    learner = agent("categorical", "feudal", rewards="none")
    data = block(learner, [0, 1])
    h = live(learner, 2, **PLAIN, value_cost=0.0, entropy_cost=0.1, manager_gamma=0.0, intrinsic_cost=1.0)
    moved = {}
    for name, rewards in (("both", data.rewards), ("worker", torch.zeros_like(data.rewards))):
        state = fresh(learner, [0, 1])
        for views in state.params:  # a manager that expects just what it gets has no advantage, and nothing to learn
            views["manager.value.weight"].detach().zero_()
        before = state.tensors["params"].clone()
        learner.learn(state, changed(data, rewards=rewards), h)
        change = learner.layout.views(before - state.tensors["params"])
        moved[name] = {k for k, v in change.items() if v.any()}
    managers = {"state.weight", "state.bias", "manager.input", "manager.hidden", "manager.bias"}
    assert managers <= moved["both"]
    assert not managers & moved["worker"]
    assert {"worker.input", "embedding.weight", "torso.0.weight"} <= moved["worker"]


def test_manager_gradient_does_not_reach_target_states():
    """Only the goals in equation 7 depend on the manager's parameters; the states in between and at the end do not."""
    learner = agent("categorical", "feudal", rewards="none", horizon=3, random_goals=0.0)
    state, data = fresh(learner, [0]), block(learner, [0])
    inputs = data.inputs(*EVERYWHERE)
    extra_loss_inputs = learner.extra_loss_inputs(state, data, live(learner, 1))
    extra = learner.unroll(state.params[0], inputs, data.rnn_state, None, extra_loss_inputs)[2]
    assert not extra["states"].requires_grad
    assert not extra["intrinsic"].requires_grad
    assert extra["goals"].requires_grad


def test_zero_goals_give_the_uniform_policy():
    """Phi has no bias: where all goals are zero, so is the worker's input, and every action is equally likely."""
    learner = agent("categorical", "feudal", random_goals=0.0)
    state, data = fresh(learner, [0]), block(learner, [0])
    for views in state.params:
        views["manager.input"].detach().zero_()
        views["manager.hidden"].detach().zero_()
        views["manager.bias"].detach().zero_()
    silent = changed(data, rnn_state=torch.zeros_like(data.rnn_state))
    head, _, extra = unrolled(learner, state, silent)
    assert not extra["goals"].any()
    assert not head.any()


def test_goal_horizon_ends_with_episode_or_block():
    learner = agent("categorical", "feudal", horizon=3)
    data = block(learner, [0])
    goal_horizons = learner.extra_loss_inputs(fresh(learner, [0]), data, live(learner, 1))["goal_horizons"]
    assert goal_horizons[0, :, 4].tolist() == [3, 3, 3, 3, 3, 3, 2, 1]  # nothing ends
    assert goal_horizons[0, :, 0].tolist() == [3, 2, 1, 3, 3, 3, 2, 1]  # over at t=2


# Choice


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"core": "lstm"}, "agent.core: feudal is already recurrent; use none"),
        ({"goal_units": 20}, "agent.goal_units: must be a multiple of 8, not 20"),
        ({"embedding": 0}, "agent.embedding: must be a multiple of 8, not 0"),
        ({"horizon": 0}, "agent.horizon: must be >= 1, not 0"),
    ],
)
def test_unsupported_settings_are_refused(settings, words):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")):
        feudal.make(FeudalSettings(**settings), Box(-1, 1, (3,), np.float32), Discrete(2))


def test_size_of_the_network():
    net = agent("categorical", "feudal").net
    fresh_ones = net.initial(torch.Generator())
    padded = {"value.weight", "value.bias", "manager.value.weight", "manager.value.bias"}
    counted = sum(v.numel() for k, v in fresh_ones.items() if k not in padded and not k.startswith("torso"))
    assert net.size == net.torso.size + counted + 17 + 25
