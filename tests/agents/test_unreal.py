"""UNREAL: losses and gradients against slow references, draws from the replay, and the reach of gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from pbtrl.agents import replay, unreal
from pbtrl.agents.settings import UnrealSettings
from tests.agent_fixtures import agent, block, changed, fresh, live, pick
from tests.agents import oracles
from tests.agents.reference_agents import ReferenceAgent

PLAIN = {"rmsprop_decay": 1.0, "rmsprop_epsilon": 0.0, "learning_rate": 1.0, "max_grad_norm": torch.inf}
TASKS = ("pixel_control", "reward_prediction", "value_replay")
COSTS = {f"{name}_cost": cost for name, cost in zip(TASKS, (0.05, 0.7, 0.6), strict=True)}


# The literal losses


class ReferenceUnreal(ReferenceAgent):
    def lstm(self, observation, action, reward, first, memory):
        memory = [torch.zeros_like(m) for m in memory] if first else memory
        return super().lstm("core", self.joined(observation, action, reward, first), memory)

    def a3c(self, data):
        """Mnih et al. 2016 over one block of one member."""
        loss, time = 0.0, data.rewards.shape[1]
        inputs = data.inputs(slice(None), slice(None))
        for b in range(data.rewards.shape[2]):
            memory, outputs = list(data.rnn_state[0, b].double().chunk(2)), []
            for t in range(time + 1):
                memory = self.lstm(*(getattr(inputs, k)[0, t, b] for k in FIELDS), self.unroll_memory(memory, t))
                outputs.append(memory[0])
            values = [self.head("value", x)[0] for x in outputs]
            targets, advantages = oracles.gae(
                self.h["gamma"] * (1.0 - data.terminated[0, :, b].double().numpy()),
                self.transform_rewards(data.rewards[0, :, b]), np.array([v.item() for v in values[:-1]]),
                values[-1].item(),
                lambda_=self.h["lambda_"], cuts=self.cuts(data.done[0, :, b]),
            )  # fmt: skip
            for t in range(time):
                if data.is_reset_step[0, t, b]:
                    continue
                policy = torch.distributions.Categorical(logits=self.head("policy", outputs[t])[: self.net.outputs])
                loss = loss - advantages[t] * policy.log_prob(data.actions[0, t, b])
                loss = loss + self.h["value_cost"] / 2 * (targets[t] - values[t]) ** 2
                loss = loss - self.h["entropy_cost"] * policy.entropy()
        return loss

    def tasks(self, run, frames):
        """The three losses (section 3.4 of the paper), from what was drawn for one member."""
        result = dict.fromkeys(TASKS, 0.0)
        time, envs = run["is_reset_step"].shape[1] - 2, run["is_reset_step"].shape[2]
        for b in range(envs):
            memory, outputs = [torch.zeros(self.net.width, dtype=torch.float64)] * 2, []
            for t in range(1, time + 2):
                before = (run[k][0, t - 1, b] for k in ("actions", "rewards", "is_reset_step"))
                memory = self.lstm(run["observations"][0, t, b], *before, self.unroll_memory(memory, t - 1))
                outputs.append(memory[0])
            own = {k: v[0, 1:-1, b] for k, v in run.items() if k != "cuts"}
            cuts, continues = self.cuts(own["done"]), 1.0 - own["terminated"].double().numpy()
            values = [self.head("value", x)[0] for x in outputs]
            bootstraps = np.array([v.item() for v in values[1:]])
            returns = oracles.n_step_returns(
                self.h["gamma"] * continues, self.transform_rewards(own["rewards"]), bootstraps, cuts
            )
            for t in range(time):
                if not own["is_reset_step"][t]:
                    result["value_replay"] = result["value_replay"] + 0.5 * (returns[t] - values[t]) ** 2
            if self.net.cells:
                pictures = run["observations"][0, 1:, b].double().numpy() / 255
                result["pixel_control"] = result["pixel_control"] + self.pixel_control(
                    pictures,
                    own["actions"],
                    ~own["is_reset_step"],
                    outputs,
                    self.h["pixel_control_gamma"] * continues,
                    cuts,
                )
            result["reward_prediction"] = result["reward_prediction"] + self.reward_prediction(
                *(frames[k][0, :, b] for k in ("observations", "rewards", "done", "is_reset_step"))
            )
        return result

    def pixel_control(self, pictures, actions, live, outputs, discounts, cuts):
        (h, w), size = self.net.cells, self.learner.settings.cell_size
        top, left = (pictures.shape[-2] - h * size) // 2, (pictures.shape[-1] - w * size) // 2
        pictures = pictures[..., top : top + h * size, left : left + w * size]
        rewards = oracles.pixel_control_rewards(pictures, size)
        q = []
        for x in outputs:
            maps = self.head("pixel", x).relu().view(1, 32, h // 2 - 1, w // 2 - 1)
            up = torch.zeros(1 + self.net.outputs, h, w, dtype=torch.float64) + self.leaves["maps.bias"][:, None, None]
            for i in range(h // 2 - 1):  # a transposed convolution adds the kernel, scaled, at every second place
                for j in range(w // 2 - 1):
                    patch = (maps[0, :, i, j, None, None, None] * self.leaves["maps.weight"]).sum(0)
                    left, right = 2 * j, w - 2 * j - 4
                    up = up + torch.nn.functional.pad(patch, (left, right, 2 * i, h - 2 * i - 4))
            q.append(up[0] + up[1:] - up[1:].mean(0))
        loss = 0.0
        for y, x in np.ndindex(h, w):
            best = np.array([step[:, y, x].max().item() for step in q[1:]])
            targets = oracles.n_step_returns(discounts, rewards[:, y, x], best, cuts)
            for t in range(len(actions)):
                if live[t]:
                    loss = loss + 0.5 * (targets[t] - q[t][actions[t], y, x]) ** 2
        return loss

    def reward_prediction(self, observations, rewards, over, dead):
        seen = [self.features(o) for o in observations]
        if over[1] or dead[1]:
            seen[0], seen[1] = 0 * seen[0], 0 * seen[1]
        elif over[0] or dead[0]:
            seen[0] = 0 * seen[0]
        hidden = self.head("reward", torch.cat(seen)).relu()
        kind = 0 if rewards[2] == 0 else 1 if rewards[2] > 0 else 2
        return -self.head("class", hidden)[:3].log_softmax(0)[kind]


FIELDS = ("observations", "actions", "rewards", "first")


def filled(learner, members, h, blocks=3):
    """Fresh members whose replay holds some blocks, a third of whose rewards are 0."""
    state = fresh(learner, members)
    for seed in range(blocks):
        learner.learn(state, sparse(block(learner, members, envs=4, seed=seed)), {**h, "learning_rate": torch.zeros(2)})
    return state


def sparse(data):
    return changed(data, rewards=torch.where(data.rewards.abs() < 0.9, 0.0, data.rewards))


def drawn(learner, state, data, h):
    """Draws of the members from the replay for a block, without changing any state."""
    copied = replace(state, running={name: value.clone() for name, value in state.running.items()})
    return learner.extra_loss_inputs(copied, data, h)


@pytest.mark.parametrize(
    ("kind", "settings", "values"),
    [
        ("categorical", {"rewards": "clip"}, {"unroll_length": 3}),
        ("categorical", {"rewards": "none", "use_last_action_reward": False}, {"lambda_": 0.9}),
        ("image", {"rewards": "clip"}, {"unroll_length": [3, 8]}),
    ],
)
def test_losses_and_gradients_equal_reference(kind, settings, values):
    learner = agent(kind, "unreal", observations="raw" if kind == "categorical" else "auto", **settings)
    h = live(learner, 2, **{**PLAIN, **COSTS, "gamma": [0.9, 0.97], "entropy_cost": 0.1, **values})
    state, data = filled(learner, [0, 1], h), sparse(block(learner, [0, 1], envs=4, seed=9))
    result = drawn(learner, state, data, h)
    assert any(result[f"run.{name}"].any() for name in ("is_reset_step", "done", "terminated"))
    references = [ReferenceUnreal(learner, state, slot, h) for slot in range(2)]
    before = state.tensors["params"].clone()
    metrics = learner.learn(state, data, h).metrics
    gradients = learner.layout.views(before - state.tensors["params"])
    for slot, reference in enumerate(references):
        own = {name: value[slot : slot + 1] for name, value in result.items()}
        tasks = reference.tasks(
            *({k.split(".")[1]: v for k, v in own.items() if k.startswith(p)} for p in ("run", "fr"))
        )
        total, live_steps = reference.a3c(pick(data, [slot])), (~data.is_reset_step[slot]).sum().item()
        for name, loss in tasks.items():
            if name == "pixel_control" and kind != "image":
                continue
            terms = live_steps / (data.rewards.shape[1] if name == "reward_prediction" else 1)  # one per env
            assert metrics[f"loss/{name}"][slot].item() * terms == pytest.approx(loss.item(), rel=1e-5), name
            total = total + COSTS[f"{name}_cost"] * loss
        expected = torch.autograd.grad(total, list(reference.leaves.values()))
        largest = max(g.abs().max() for g in expected)
        for (name, gradient), exact in zip(gradients.items(), expected, strict=True):
            assert (gradient[slot] - exact).abs().max() < 1e-5 * largest, name


def test_replayed_observations_are_normalized():
    """A member that normalizes equals one that is given normalized observations."""
    normal, raw = (agent("categorical", "unreal", rewards="none", observations=o) for o in ("normalize", "raw"))
    h = live(normal, 2, **{**PLAIN, **COSTS})
    state, data = filled(normal, [0, 1], h), sparse(block(normal, [0, 1], envs=4, seed=9))
    shift, scale = (state.tensors[name][:, None, None] for name in ("shift", "scale"))
    other = fresh(raw, [0, 1])
    other.running |= {name: value.clone() for name, value in state.running.items()}
    for observations in (past := other.running["replay.observations"], new := data.observations.clone()):
        observations.copy_(((observations - shift) * scale).clamp(-10, 10))
    assert past.abs().max() > 2
    before = other.tensors["params"].clone()
    assert torch.equal(before, state.tensors["params"])
    normal.learn(state, data, h)
    raw.learn(other, changed(data, observations=new), h)
    moved, expected = before - state.tensors["params"], before - other.tensors["params"]
    assert (moved - expected).abs().max() < 1e-5 * expected.abs().max()


# What reaches what


def test_task_gradient_reaches_trunk_and_own_head_only():
    learner = agent("image", "unreal")
    none = dict.fromkeys((*COSTS, "value_cost", "entropy_cost"), 0.0)
    heads = {"pixel_control": {"pixel", "maps", "core"}, "value_replay": {"value", "core"}}
    heads["reward_prediction"] = {"reward", "class"}
    for name, own in heads.items():
        h = live(learner, 2, **{**PLAIN, **none, f"{name}_cost": 1.0, "gamma": 0.0})
        state = filled(learner, [0, 1], h)
        data, before = sparse(block(learner, [0, 1], envs=4, seed=9)), state.tensors["params"].clone()
        silent = changed(
            data, is_reset_step=torch.ones_like(data.is_reset_step)
        )  # so that the policy has nothing to learn from
        learner.learn(state, silent, h)
        moved = learner.layout.views(before - state.tensors["params"])
        assert {k.split(".")[0] for k, v in moved.items() if v.any()} == own | {"conv", "dense"}, name


def test_empty_replay_gives_a3c():
    """The first block has nothing to replay, so the loss is A3C's, bit for bit."""
    learner, data = agent("image", "unreal"), block(agent("image", "unreal"), [0, 1], envs=4)
    one, other = (fresh(learner, [0, 1]) for _ in range(2))
    learner.learn(one, data, live(learner, 2))
    learner.learn(other, data, live(learner, 2, **dict.fromkeys(COSTS, 0.0)))
    assert torch.equal(one.tensors["params"], other.tensors["params"])


def test_replay_is_in_running_state_not_in_snapshots():
    learner = agent("categorical", "unreal")
    state = filled(learner, [0, 1], live(learner, 2))
    assert not [name for name in state.tensors if "replay" in name]
    assert {name for name in state.running if name.startswith("replay")} == {
        f"replay.{field}" for field in (*replay.FIELDS, "steps")
    }


# The replay


def steps(time, envs=3, start=0, members=2, rewarded=()):
    """Block whose observations number its steps, from 1000 b in env b; the next one starts at `start` + time."""
    learner = agent("categorical", "unreal")
    data = block(learner, list(range(members)), time=time, envs=envs)
    numbers = torch.arange(start, start + time + 1)[:, None] + 1000 * torch.arange(envs)
    rewards = torch.isin(numbers[:-1], torch.tensor(rewarded)).float().expand(members, -1, -1)
    quiet = torch.zeros_like(data.is_reset_step)
    observations = numbers[None, ..., None].expand(members, -1, -1, 3).float()
    return changed(
        data, observations=observations, rewards=rewards.clone(), terminated=quiet, done=quiet, is_reset_step=quiet
    )


def filled_by(*blocks, rows=10):
    kept = {}
    for data in blocks:
        kept = replay.append(kept, data, rows)
    return kept


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_replaced_policy_clears_the_replay():
    learner = agent("categorical", "unreal")
    h = live(learner, 2)
    state = filled(learner, [0, 1], h)
    before = state.running["replay.is_reset_step"].clone()
    learner.forget(state, 0)
    assert state.running["replay.is_reset_step"][0].all()
    assert torch.equal(state.running["replay.is_reset_step"][1], before[1])
    metrics = learner.learn(state, sparse(block(learner, [0, 1], envs=4, seed=9)), h).metrics
    for task in ("value_replay", "reward_prediction"):
        assert metrics[f"loss/{task}"][0] == 0.0
        assert metrics[f"loss/{task}"][1] > 0.0


def test_replay_keeps_the_last_steps_in_order():
    kept = {}
    for i, time in enumerate((4, 4, 3, 4)):
        kept = replay.append(kept, steps(time, start=(0, 4, 8, 11)[i]), 10)
        last = (4, 8, 11, 15)[i]
        assert replay.length(kept) == min(10, last)
        oldest = torch.zeros(2, 3, dtype=torch.int64)
        result = replay.fetch(kept, oldest, torch.arange(3).expand(2, -1), replay.length(kept))
        assert result["observations"][0, :, 0, 0].tolist() == list(range(max(0, last - 10), last))
        assert result["observations"][1, :, 2, 0].tolist() == [2000 + n for n in range(max(0, last - 10), last)]
    assert replay.length(replay.append(kept, steps(1), 8)) == 10
    assert replay.length(replay.append(kept, steps(4), 20)) == 4


def test_replayed_runs_are_whole_and_uniform():
    kept = filled_by(steps(6), steps(6, start=6))
    run = replay.runs(kept, uniform(2, 6000, 2), 4)["observations"][..., 0]
    assert (run[:, 1:] == run[:, :-1] + 1).all()
    assert not torch.equal(run[0], run[1])
    starts, counts = run[:, 0].unique(return_counts=True)
    assert starts.tolist() == [1000 * b + n for b in range(3) for n in range(2, 9)]
    assert counts.min() > 0.85 * 12000 / 21
    assert counts.max() < 1.15 * 12000 / 21
    whole = replay.runs(kept, uniform(2, 5, 2), 10)["observations"][..., 0]
    assert set((whole[:, 0] % 1000).flatten().tolist()) == {2}


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_half_of_predicted_rewards_are_nonzero(sign):
    """However rare nonzero rewards are, half of the frames for reward prediction have one."""
    kept = filled_by(steps(6, rewarded=[5]), steps(6, start=6, rewarded=[5, 1009]))
    kept["rewards"] *= sign
    result = replay.rewarding(kept, uniform(2, 4000, 2), 3)
    numbers, rewards = result["observations"][..., 0], result["rewards"]
    assert (numbers[:, 1:] == numbers[:, :-1] + 1).all()
    assert (rewards[:, -1] != 0).float().mean() == pytest.approx(0.5, abs=0.03)
    paid = numbers[:, -1][rewards[:, -1] != 0]
    assert (paid == 5).float().mean() == pytest.approx(0.5, abs=0.05)
    assert set(paid.tolist()) == {5, 1009}
    assert set((numbers[:, -1] % 1000).unique().tolist()) == set(
        range(4, 12)
    )  # the oldest two have nothing before them


@pytest.mark.parametrize("rewarded", [[], range(6000)])
def test_equal_rewards_are_all_drawn_from(rewarded):
    kept = filled_by(steps(6, rewarded=list(rewarded)), steps(6, start=6, rewarded=list(rewarded)))
    result = replay.rewarding(kept, uniform(2, 1000, 2), 3)
    assert len(result["observations"][:, -1, :, 0].unique()) == 24
    assert not result["is_reset_step"].any()


def test_reset_steps_are_not_predicted():
    data = steps(8, rewarded=[4, 5])
    dead = data.is_reset_step.clone()
    dead[:, 4:, 0] = True
    result = replay.rewarding(filled_by(changed(data, is_reset_step=dead)), uniform(2, 1000, 2), 3)
    assert not result["is_reset_step"][:, -1].any()
    nothing = replay.rewarding(filled_by(changed(data, is_reset_step=torch.ones_like(dead))), uniform(2, 9, 2), 3)
    assert nothing["is_reset_step"].all()


# What an update draws


def draws(learner, blocks, time=4, envs=3, rewarded=()):
    """Draws of the members for the last of several blocks of numbered steps."""
    state, h = fresh(learner, [0, 1]), live(learner, 2)
    for i in range(blocks):
        data = steps(time, envs, start=i * time, rewarded=rewarded)
        noise = learner.noise([torch.Generator().manual_seed(10 * i + m) for m in range(2)], time, envs)
        result = learner.extra_loss_inputs(state, changed(data, noise=noise.transpose(0, 1)), h)
    return result


def test_update_draws_from_last_steps_before_its_block():
    """Twelve of each env; the eighth block of four steps begins after step 27."""
    learner = agent("categorical", "unreal", replay=12 * 40)
    for blocks in (8, 9):
        result = draws(learner, blocks, envs=40)
        for name in ("run", "frames"):
            seen = result[f"{name}.observations"][..., 0]
            assert (seen[:, 1:] == seen[:, :-1] + 1).all()
            assert set((seen % 1000).unique().tolist()) == set(range(4 * blocks - 16, 4 * blocks - 4))
    assert result["run.observations"].shape == (2, 6, 40, 3)


def test_update_draws_once_a_run_fits():
    """A run of 4 has 6 rows, and the least replay no more."""
    learner = agent("categorical", "unreal", replay=1)
    assert [bool(draws(learner, blocks)) for blocks in (1, 2, 3, 4)] == [False, False, True, True]


def test_runs_and_frames_are_drawn_independently_per_env():
    learner, envs = agent("categorical", "unreal", replay=40 * 600), 600
    result = draws(learner, 8, envs=envs, rewarded=[n + 1000 * b for b in range(envs) for n in range(0, 40, 2)])
    run, frame = result["run.observations"][:, 0, :, 0], result["frames.observations"][:, 0, :, 0]
    paid = result["frames.rewards"][:, -1]
    for one, other in ((run % 1000, frame % 1000), (run // 1000, paid), (run % 1000, paid), (run // 1000, run % 1000)):
        for slot in range(2):
            assert abs(np.corrcoef(one[slot], other[slot])[0, 1]) < 0.2
    assert len(run[0].unique()) > 500
    assert not torch.equal(run[0], run[1])


# Choice


@pytest.mark.parametrize(
    ("shape", "size", "expected"), [((4, 84, 84), 4, (20, 20)), ((3, 36, 50), 4, (8, 12)), ((1, 16, 17), 4, (4, 4))]
)
def test_cells(shape, size, expected):
    assert unreal.cells(shape, size) == expected


def test_pixel_control_needs_images_and_discrete_actions():
    """The images must also be large enough."""
    vector, picture = Box(-1, 1, (3,), np.float32), Box(0, 255, (3, 36, 36), np.uint8)
    few, many = Discrete(2), Box(-1, 1, (2,), np.float32)
    settings = UnrealSettings(core_units=16, precision="float32")
    assert unreal.make(settings, picture, few).net.cells == (8, 8)
    assert unreal.make(settings, picture, many).net.cells is None
    assert unreal.make(settings, vector, few).net.cells is None
    with pytest.raises(ValueError, match=r"cell_size: 10 needs images of at least 40 x 40 pixels, not 36 x 36"):
        unreal.make(UnrealSettings(cell_size=10), picture, few)
    net = unreal.make(settings, picture, few).net
    assert net.size == sum(v.numel() for k, v in net.initial(torch.Generator()).items() if k not in PADDED) + (
        (16 + 1) * (2 + 1) + 129 * 3
    )


def test_padding_of_a_small_core_stays_zero():
    net = unreal.make(UnrealSettings(core_units=10), Box(0, 255, (3, 84, 84), np.uint8), Discrete(2)).net
    initial = net.initial(torch.Generator())
    for name in ("policy.weight", "value.weight", "pixel.weight"):
        assert initial[name][:10].any(1).all(), name
        assert not initial[name][10:].any(), name
    wider = unreal.make(UnrealSettings(core_units=11), Box(0, 255, (3, 84, 84), np.uint8), Discrete(2)).net
    maps = initial["pixel.weight"].shape[1]
    assert wider.size - net.size == 4 * (net._features + 2 * 10 + 2) + 2 + 1 + maps


PADDED = {"policy.weight", "policy.bias", "value.weight", "value.bias", "class.weight", "class.bias"}
