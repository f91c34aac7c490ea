"""PPO: update and losses against literal transcriptions and CleanRL's formulas, and what minibatches are made of."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pbtrl.agents import losses
from pbtrl.agents.loss_inputs import NetworkOutputs
from pbtrl.agents.ppo import PPO
from pbtrl.agents.returns import gae
from tests.agent_fixtures import agent, block, changed, differences, fresh, live, pick
from tests.agents import oracles
from tests.agents.test_actor_critic import ReferenceAgent, learnt, numbers, on_policy

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "cleanrl_ppo.json").read_text())


class ReferencePPO(ReferenceAgent):
    """One member's updates as the paper and its published code write them, one transition at a time."""

    epochs = 0

    def learn(self, block, h):
        rewards = self.transformed(block, h)
        time, envs = rewards.shape
        values = {(t, b): self.evaluated(block, t, b)[1].item() for t in range(time + 1) for b in range(envs)}
        advantages, targets, old = {}, {}, {}
        for b in range(envs):
            over, column = block.done[0, :, b].tolist(), range(time)
            target, advantage = oracles.gae(
                np.array([0.0 if block.terminated[0, t, b] else h["gamma"] for t in column]),
                rewards[:, b],
                np.array([values[t, b] for t in column]),
                values[time, b],
                lambda_=h["lambda_"],
                cuts=[over[t] or (t + 1) % h["unroll_length"] == 0 for t in column],
            )
            for t in column:
                targets[t, b], advantages[t, b] = target[t], advantage[t]
                behavior = self.policy(block.policy[0, t, b].double())
                old[t, b] = self.log_prob(behavior, block.actions[0, t, b]).item()
        known = {"advantages": advantages, "targets": targets, "old": old, "values": values}
        seed, self.epochs = round(block.noise[0, 0, 0, -1].item() * 2**24), 0
        for epoch in range(h["epochs"]):
            generator = torch.Generator().manual_seed(seed + 2**24 * epoch)
            order = torch.randperm(time * envs, generator=generator).tolist()
            self.epochs += 1
            for part in np.array_split(order, h["minibatches"]):
                kl = self.update(block, h, [(i // envs, i % envs) for i in part], **known)
            if kl > h["target_kl"]:
                break
        live = ~block.is_reset_step[0]
        self.seen += list(block.observations[0, :-1][live].double().flatten(1).numpy())

    def evaluated(self, block, t, b, leaves=None):
        return self.forward(leaves or self.leaves(), block.observations[0, t, b])

    def leaves(self):
        leaves, at = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            size = math.prod(shape)
            leaves[name] = torch.tensor(self.params[at : at + size].reshape(shape), requires_grad=True)
            at += size
        return leaves

    def update(self, block, h, minibatch, *, advantages, targets, old, values):
        """One step of the optimizer; returns the mean KL."""
        live = [(t, b) for t, b in minibatch if not block.is_reset_step[0, t, b]]
        leaves, clip = self.leaves(), h["clip"]
        chosen = np.array([advantages[i] for i in live])
        loss, kl = torch.zeros((), dtype=torch.float64), 0.0
        for i in live:
            head, value = self.evaluated(block, *i, leaves)
            policy = self.policy(self.needs_full_batch(head, leaves))
            ratio = torch.exp(self.log_prob(policy, block.actions[0, i[0], i[1]]) - old[i])
            advantage = advantages[i]
            if self.settings.advantages == "normalize":
                advantage = (advantage - chosen.mean()) / chosen.std()
            improved = ratio.item() > 1 + clip if advantage > 0 else ratio.item() < 1 - clip
            if not improved:  # otherwise the surrogate is a constant
                loss = loss - ratio * advantage
            error = (value - targets[i]) ** 2
            if self.settings.value_clip:
                change = value.item() - values[i]
                moved = values[i] + math.copysign(clip, change)
                if abs(change) > clip and (moved - targets[i]) ** 2 > error.item():
                    error = torch.tensor((moved - targets[i]) ** 2)  # without a gradient
            loss = loss + h["value_cost"] * 0.5 * error - h["entropy_cost"] * policy.entropy().sum()
            kl += ratio.item() - 1 - math.log(ratio.item())
        (loss / len(live)).backward()
        flat = np.concatenate(
            [np.zeros(x.numel()) if x.grad is None else x.grad.numpy().ravel() for x in leaves.values()]
        )
        self.gradients.append(flat * min(1.0, h["max_grad_norm"] / np.linalg.norm(flat)))
        self.params = self.stepped(h)
        return kl / len(live)


CASES = [
    ("categorical", {}, {}),
    ("clip", {}, {"minibatches": [2, 8], "epochs": [3, 2], "clip": [0.1, 0.5], "entropy_cost": 0.1}),
    ("clip", {"value_clip": False}, {"unroll_length": [3, 5], "value_cost": 2.0, "lambda_": [0.5, 1.0]}),
    ("squash", {"advantages": "raw", "std": "softplus"}, {"max_grad_norm": 40.0}),
    ("categorical", {"optimizer": "rmsprop"}, {"clip": 0.3, "minibatches": 1}),
    ("image", {}, {"minibatches": [1, 4]}),
    ("categorical", {"rewards": "none"}, {"target_kl": [0.3, 0.01], "epochs": 4}),
]


@pytest.mark.parametrize(("kind", "settings", "values"), CASES)
def test_update_equals_reference(kind, settings, values):
    learner = agent(kind, "ppo", **settings)
    state, members = fresh(learner, [0, 1]), [0, 1]
    plain = {"learning_rate": 0.01, "adam_epsilon": 1e-3, "gamma": [0.9, 0.97], "minibatches": 4, "epochs": 2}
    h = live(learner, 2, **{**plain, **values})
    reference = [ReferencePPO(learner, state, slot) for slot in members]
    for seed in range(2):
        data = near_policy(learner, state, block(learner, members, envs=4, seed=seed))
        learned = learner.learn(state, data, h)
        for slot in members:
            reference[slot].learn(pick(data, [slot]), numbers(h, slot))
    views = learner.layout.views(state.tensors["params"])
    for slot in members:
        result = np.concatenate([views[name][slot].numpy().ravel() for name in views])
        moved = np.abs(reference[slot].params - reference[slot].first).max()
        assert moved > 1e-3
        np.testing.assert_allclose(result, reference[slot].params, rtol=0, atol=1e-3 * moved)
    assert learned.metrics["loss/epochs"].tolist() == [r.epochs for r in reference]
    assert learned.updates.tolist() == [r.epochs * n for r, n in zip(reference, h["minibatches"].tolist(), strict=True)]
    assert not state.tensors["skipped"].any()
    assert set(learned.consumed) == set(h)


def near_policy(learner, state, data):
    """Block with actions of the members' own weights, and policies that differ a little from theirs."""
    near = on_policy(learner, state, data)
    return changed(near, policy=near.policy + 0.1 * data.policy)


def golden(*names):
    return [torch.tensor(GOLDEN[name], dtype=torch.float64) for name in names]


def row(x):
    """[T, B] -> [P = 1, T x B]."""
    return x.reshape(1, -1)


def test_losses_and_gradients_agree_with_cleanrl():
    mean, log_std, actions, new_values = golden("mean", "log_std", "actions", "new_values")
    for leaf in (mean, log_std, new_values):
        leaf.requires_grad_()
    policy = torch.cat([mean, log_std.expand_as(mean)], -1).flatten(0, 1)[None, :, None]
    old, values, returns, normalized = map(row, golden("old_log_probs", "values", "returns", "normalized"))
    inputs = {"log_probs": old, "advantages": normalized, "values": values, "targets": returns}
    mask, h = torch.ones(1, 10, 1, dtype=torch.float64), {k: torch.tensor([GOLDEN[k]]) for k in ("clip", "value_cost")}
    h["entropy_cost"] = torch.tensor([GOLDEN["entropy_cost"]], dtype=torch.float64)
    for value_clip, name in ((True, "value_loss"), (False, "value_loss_unclipped")):
        learner = agent("clip", "ppo", value_clip=value_clip)
        loss = learner.loss(
            network_outputs(learner, policy, actions, new_values, mask, {k: v[..., None] for k, v in inputs.items()}),
            {k: v.double() for k, v in h.items()},
        )
        result = {k: v.item() / 10 for k, v in loss.sums.items()}
        expected = {"policy": "policy_loss", "value": name, "entropy": "entropy", "kl": "kl", "clipped": "clipped"}
        for own, theirs in expected.items():
            assert result[own] == pytest.approx(GOLDEN[theirs], rel=1e-6), own
        if value_clip:
            assert loss.total.item() == pytest.approx(GOLDEN["loss"], rel=1e-6)
            grads = torch.autograd.grad(loss.total.sum(), [mean, log_std, new_values])
            for grad, theirs in zip(grads, golden("grad_mean", "grad_log_std", "grad_values"), strict=True):
                torch.testing.assert_close(grad, theirs, rtol=1e-6, atol=1e-9)


def network_outputs(learner, policy, actions, values, mask, inputs):
    return NetworkOutputs(
        join=lambda: policy,
        log_probs=(log_probs := learner.policy.log_prob(policy, actions.flatten(0, 1)[None, :, None])),
        log_rhos=log_probs.detach() - inputs["log_probs"],
        values=values.reshape(1, -1, 1),
        mask=mask,
        live=mask.flatten(1).sum(-1),
        extra_loss_inputs=inputs,
    )


def test_advantages_agree_with_cleanrl():
    """Except for the divisor n - 1 in place of n; OpenAI's published code divides by n."""
    rewards, dones, values, last = golden("rewards", "dones", "values", "next_value")
    discounts = GOLDEN["gamma"] * (1 - dones)
    returns, advantages = gae(discounts, rewards, values, last, lambda_=GOLDEN["lambda_"])
    for result, name in ((returns, "returns"), (advantages, "advantages")):
        torch.testing.assert_close(result, *golden(name), rtol=1e-8, atol=1e-9)
    normalized = losses.normalize_advantages(row(advantages), torch.ones(1, 10))
    torch.testing.assert_close(normalized * math.sqrt(9 / 10), *map(row, golden("normalized")), rtol=1e-6, atol=1e-8)


def test_clipped_losses_by_hand():
    """Ratios 0.5, 1 and 2 with either sign of the advantage, clip 0.2; values 1 and -1 from 0, with clip 0.5."""
    log_ratios = torch.tensor([[0.5, 0.5, 1, 1, 2, 2, 9]]).log().requires_grad_()
    advantages, mask = torch.tensor([[1.0, -1, 1, -1, 1, -1, 5]]), torch.tensor([[1.0] * 6 + [0]])
    loss = losses.clipped_policy_loss(log_ratios, advantages, mask, torch.tensor([0.2]))
    assert loss.tolist() == pytest.approx([-(0.5 - 0.8 + 1 - 1 + 1.2 - 2)])
    (grad,) = torch.autograd.grad(loss.sum(), log_ratios)
    assert grad[0].tolist() == pytest.approx([-0.5, 0, -1, 1, 0, 2, 0])
    values = torch.tensor([[1.0, 1, -1, -1, 0.2, 7]], requires_grad=True)
    targets = torch.tensor([[2.0, 0, -2, 0, 1, 0]])
    old, mask = torch.zeros(1, 6), torch.tensor([[1.0] * 5 + [0]])
    loss = losses.clipped_value_loss(values, old, targets, mask, torch.tensor([0.5]))
    assert loss.tolist() == pytest.approx([0.5 * (2.25 + 1 + 2.25 + 1 + 0.64)])
    (grad,) = torch.autograd.grad(loss.sum(), values)
    assert grad[0].tolist() == pytest.approx([0, 1, 0, -1, -0.8, 0])


def test_dead_transitions_with_any_ratio_do_no_harm():
    log_ratios = torch.tensor([[0.1, 1e4]], requires_grad=True)
    loss = losses.clipped_policy_loss(log_ratios, torch.ones(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([0.2]))
    (grad,) = torch.autograd.grad(loss.sum(), log_ratios)
    assert torch.isfinite(loss).all()
    assert grad[0, 1] == 0


# Minibatches


def orders(learner, data, h, active=None, epochs=2):
    """Per pass and update: {member: units of its minibatch}, recognized by the log-probabilities of their actions."""
    state, active = fresh(learner, list(range(len(data.rewards)))), torch.tensor(active or [True] * len(data.rewards))
    batch = learner._batch(state, data, h)
    known = batch.log_probs.transpose(1, 2) if learner.net.rnn_state_size else batch.log_probs.flatten(1)[..., None]
    numbers = [{tuple(unit): i for i, unit in enumerate(own)} for own in known.tolist()]
    minibatches, result = learner.minibatches(state, batch, h), []
    for epoch in range(epochs):
        updates = []
        for learning, groups in minibatches(epoch, active):
            chosen = {}
            for group in groups:
                (part,) = group.parts
                rows = zip(
                    torch.arange(len(active))[group.members].tolist(),
                    part.log_probs.transpose(1, 2).tolist(),
                    strict=True,
                )
                chosen |= {m: [numbers[m][tuple(unit)] for unit in own] for m, own in rows}
            assert sorted(chosen) == learning.nonzero().flatten().tolist()
            updates.append(chosen)
        result.append(updates)
    return result


@pytest.mark.parametrize(("settings", "units"), [({}, 40), ({"core": "lstm", "core_units": 8}, 5)])
def test_every_pass_has_all_units_once_in_a_new_order(settings, units):
    learner = agent(name="ppo", **settings)
    h = live(learner, 3, minibatches=[2, 4, 4])
    passes = orders(learner, block(learner, [0, 1, 2]), h)
    flat = []
    for updates in passes:
        assert [sorted(u) for u in updates] == [[0, 1, 2]] * 2 + [[1, 2]] * 2
        for member in range(3):
            own = [u[member] for u in updates if member in u]
            sizes = [len(m) for m in own]
            assert max(sizes) - min(sizes) <= 1
            flat.append([i for m in own for i in m])
    assert all(sorted(order) == list(range(units)) for order in flat)
    assert len({tuple(order) for order in flat}) == 6
    again = orders(learner, block(learner, [0, 1, 2], seed=1), h)
    assert again[0][0][1] != passes[0][0][1]


def test_members_that_are_done_have_no_minibatches():
    learner = agent(name="ppo")
    h = live(learner, 3, minibatches=[4, 2, 2])
    updates, _ = orders(learner, block(learner, [0, 1, 2]), h, active=[False, True, False])
    assert [list(update) for update in updates] == [[1], [1]]


def test_more_minibatches_than_transitions_are_one_each():
    learner = agent(name="ppo")
    data, h = block(learner, [0], time=2, envs=3), live(learner, 1, minibatches=99)
    assert [len(u[0]) for u in orders(learner, data, h)[0]] == [1] * 6
    _, learned = learnt(learner, [0], data, h)
    assert learned.updates.tolist() == [60]


def test_recurrent_minibatch_of_all_envs_is_the_unshuffled_unroll():
    """A single minibatch has one gradient in any order: the policy gradient at ratio 1 of the whole unroll."""
    learner = agent(name="ppo", core="lstm", core_units=8, use_last_action_reward=True, rewards="none")
    state = fresh(learner, [0])
    data = on_policy(learner, state, block(learner, [0]))
    h = live(learner, 1, minibatches=1, epochs=1, unroll_length=3)
    _, learned = learnt(learner, [0], data, h)
    assert learned.metrics["loss/log_ratio"].item() < 1e-6  # so memory, last action and reward are where they belong
    assert learned.metrics["loss/clipped"].item() == 0


def test_recurrent_values_begin_with_the_memory_of_the_block():
    """Except in an env that is reset there."""
    learner = agent(name="ppo", core="lstm", core_units=8)
    state, data, h = fresh(learner, [0, 1]), block(learner, [0, 1]), live(learner, 2)
    other = data.rnn_state.clone()
    other[0, 1:3] += 1.0
    batches = [learner._batch(state, changed(data, rnn_state=memory), h) for memory in (data.rnn_state, other)]
    one, two = (learner.values(state, batch)[:, 0] for batch in batches)
    assert (one != two).nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize("core", ["none", "lstm"])
def test_recurrent_gradients_end_where_an_unroll_starts(core):
    """With a lambda of 0 the advantages do not depend on the unrolls, so nothing else does either."""
    learner = agent(name="ppo", core=core, core_units=8)
    data = block(learner, [0], time=8)
    moments = [
        learnt(learner, [0], data, live(learner, 1, lambda_=0.0, epochs=1, minibatches=1, unroll_length=n))[0].tensors[
            "adam.m"
        ]
        for n in (8, 4)
    ]
    assert torch.equal(*moments) == (core == "none")


def test_no_further_pass_beyond_target_kl():
    learner, members = agent(name="ppo"), [0, 1]
    data = on_policy(learner, fresh(learner, members), block(learner, members))
    h = live(learner, 2, epochs=5, minibatches=2, learning_rate=0.01, target_kl=[1e6, 1e-4])
    result, learned = learnt(learner, members, data, h)
    full, _ = learnt(learner, members, data, live(learner, 2, epochs=5, minibatches=2, learning_rate=0.01))
    assert differences(result, 0, full, 0) == []
    assert learned.metrics["loss/epochs"].tolist() == [5, 1]
    assert learned.updates.tolist() == [10, 2]
    assert learned.consumed["epochs"].tolist() == [5, 5]


def test_image_minibatches_in_chunks_equal_whole_ones():
    """The network limits the frames per pass; sums over chunks are those of the minibatch."""
    small = agent("image", "ppo")
    large = PPO(small.settings, small.shape, True, with_frames(small.net, 1000), small.policy)
    data, h = block(small, [0, 1]), live(small, 2, minibatches=[1, 2], epochs=1)
    one, measured = learnt(small, [0, 1], data, h)
    other, expected = learnt(large, [0, 1], data, h)
    torch.testing.assert_close(one.tensors["adam.m"], other.tensors["adam.m"], rtol=1e-3, atol=1e-5)
    for name in ("loss/policy", "loss/value", "loss/entropy", "loss/kl", "loss/clipped"):
        torch.testing.assert_close(measured.metrics[name], expected.metrics[name], rtol=1e-4, atol=1e-5)


def with_frames(net, frames):
    return replace(net, torso=replace(net.torso, frames=frames))
