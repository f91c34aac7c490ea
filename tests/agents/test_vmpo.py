"""V-MPO: target network, divergence constraint and PopArt. test_actor_critic.py has its update."""

import pytest
import torch

from tests.agent_fixtures import agent, block, changed, first_inputs, fresh, live


def acted(learner, state, data):
    """Block with the actions and policies of the members' acting policies."""
    members, time, envs = data.rewards.shape
    noise = learner.noise([torch.Generator().manual_seed(m) for m in range(members)], time, envs)
    steps = [learner.act(state, *first_inputs(learner, data.observations[:, t]), noise[t]) for t in range(time)]
    actions, policy = (torch.stack([getattr(s, name) for s in steps], 1) for name in ("actions", "policy"))
    return changed(data, actions=actions, policy=policy)


def test_target_network_acts_and_updates_per_member_period():
    learner, members = agent(name="vmpo"), [0, 1]
    state, h = fresh(learner, members), live(learner, 2, target_period=[2, 3], learning_rate=0.01)
    data = block(learner, members)
    equal = []
    for _ in range(6):
        learner.learn(state, data, h)
        equal.append([torch.equal(state.tensors["target"][m], state.tensors["params"][m]) for m in members])
        acts = learner.act(state, *first_inputs(learner, data.observations[:, 0]), None).policy
        state.tensors["params"].add_(1.0)  # what is not the target's has no say
        assert torch.equal(learner.act(state, *first_inputs(learner, data.observations[:, 0]), None).policy, acts)
        state.tensors["params"].sub_(1.0)
    assert equal == [[False, False], [True, False], [False, True], [True, False], [False, False], [True, True]]


def test_clip_sees_a_multipliers_gradient_that_is_not_finite():
    """Its norm is left out, as it has another scale; a member with such a gradient makes no update."""
    learner = agent(name="vmpo")
    grads = torch.ones(3, learner.layout.size)
    grads[1, learner._first_multiplier] = torch.nan
    norms = learner.clip(grads, live(learner, 3))
    assert norms.isfinite().tolist() == [True, False, True]
    assert norms[1] == torch.inf


def test_target_period_counts_gradient_steps_in_whole_blocks():
    learner, members = agent(name="vmpo", minibatches=2), [0, 1, 2]
    state, h = fresh(learner, members), live(learner, 3, target_period=[5, 5, 12], epochs=[1, 3, 3], learning_rate=0.01)
    data, equal = block(learner, members), []
    for _ in range(3):
        learner.learn(state, data, h)
        equal.append([torch.equal(state.tensors["target"][m], state.tensors["params"][m]) for m in members])
    assert equal == [[False, True, False], [False, True, True], [True, True, False]]


def test_multipliers_have_a_learning_rate_of_their_own():
    """Adam's first step has the length of the learning rate."""
    learner = agent("clip", "vmpo")
    state, h = fresh(learner, [0]), live(learner, 1, learning_rate=1e-4, multiplier_learning_rate=0.25, eps_mean=10.0)
    learner.learn(state, block(learner, [0]), h)
    assert learner.layout.views(state.tensors["params"])["alpha_mean"].item() == pytest.approx(0.75)


@pytest.mark.parametrize("kind", ["categorical", "several", "clip"])
def test_divergence_is_between_target_and_online(kind):
    """With the online policy on both sides it would be zero for ever, and there would be no constraint."""
    learner = agent(kind, "vmpo", observations="raw")
    state, h = fresh(learner, [0]), live(learner, 1, learning_rate=0.01, target_period=100)
    data = acted(learner, state, block(learner, [0]))
    names = ["loss/kl"] if kind != "clip" else ["loss/kl_mean", "loss/kl_covariance"]
    before, after = (learner.learn(state, data, h).metrics for _ in range(2))
    for name in names:
        assert before[name].item() == pytest.approx(0, abs=1e-6)
        assert after[name].item() > 1e-6


def test_divergence_of_slots_is_the_sum_of_theirs():
    """Literally, as torch.distributions has it; that of all logits at once would be another number."""
    from torch.distributions import Categorical, kl_divergence

    learner = agent("several", "vmpo", observations="raw")
    state, h = fresh(learner, [0]), live(learner, 1, learning_rate=0.03, target_period=100)
    data = acted(learner, state, block(learner, [0]))
    learner.learn(state, data, h)
    with torch.no_grad():
        inputs = data.inputs(slice(None), slice(None))
        online = learner.net.unroll(state.params[0], inputs, data.rnn_state)[0][:, :-1]
    slots = zip(data.policy.split((3, 2), -1), online.split((3, 2), -1), strict=True)
    kl = sum(kl_divergence(Categorical(logits=old), Categorical(logits=new)) for old, new in slots)
    live_steps = ~data.is_reset_step
    expected = (kl * live_steps).sum() / live_steps.sum()
    assert learner.learn(state, data, h).metrics["loss/kl"].item() == pytest.approx(expected.item(), rel=1e-3)


@pytest.mark.parametrize(("bound", "rises"), [(1e-7, True), (10.0, False)])
def test_multiplier_rises_above_its_bound_and_falls_below(bound, rises):
    learner = agent("categorical", "vmpo")
    state, h = fresh(learner, [0]), live(learner, 1, eps_kl=bound, learning_rate=0.01)
    learner.learn(state, block(learner, [0]), h)
    alpha = learner.layout.views(state.tensors["params"])["alpha"][0, 0].item()
    assert (alpha > 1.0) == rises
    assert alpha != 1.0


def test_multipliers_and_temperature_are_at_least_1e_8():
    """Section 4.1: they are clipped after every step, however slack the bounds are."""
    learner = agent("clip", "vmpo", temperature=1e-7, alpha=1e-7)
    slack = {"eps_mean": 10.0, "eps_covariance": 10.0, "eps_temperature": 10.0}
    state, h = fresh(learner, [0]), live(learner, 1, learning_rate=1.0, **slack)
    learner.learn(state, block(learner, [0]), h)
    views = learner.layout.views(state.tensors["params"])
    for name in ("temperature", "alpha_mean", "alpha_covariance"):
        assert views[name].flatten().tolist() == pytest.approx([1e-8], rel=1e-6), name


def test_multipliers_and_temperature_start_at_settings():
    learner = agent("clip", "vmpo", temperature=0.25, alpha=3.0)
    views = learner.layout.views(fresh(learner, [0, 1]).tensors["params"])
    starts = {"temperature": 0.25, "alpha_mean": 3.0, "alpha_covariance": 3.0}
    assert {name: views[name].unique().tolist() for name in starts} == {k: [v] for k, v in starts.items()}


@pytest.mark.parametrize("kind", ["categorical", "image"])
def test_popart_preserves_values(kind):
    learner, last = agent(kind, "vmpo", rewards="none"), "value" if kind == "image" else "value.2"
    state, h = fresh(learner, [0, 1]), live(learner, 2, learning_rate=0.0, popart_rate=1.0)
    data = block(learner, [0, 1])
    data = changed(data, rewards=100.0 * data.rewards + 7.0)

    def values():
        heads = [
            learner.net.unroll(params, data.inputs(group, slice(None)), data.rnn_state[group])[1].flatten(1)
            for params, group in zip(state.params, learner._groups(2), strict=True)
        ]
        return state.tensors["popart.scale"][:, None] * torch.cat(heads) + state.tensors["popart.shift"][:, None]

    before = values()
    learner.learn(state, data, h)
    assert (state.tensors["popart.scale"] > 10).all()
    torch.testing.assert_close(values(), before, rtol=1e-4, atol=1e-4)
    weight, bias = (learner.layout.views(state.tensors["params"])[f"{last}.{k}"] for k in ("weight", "bias"))
    assert not weight[..., 1:].any()  # what pads the value's column stays zero
    assert not bias[..., 1:].any()
