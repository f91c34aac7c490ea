"""Every agent on the probes, whose optimal values are known in closed form, and on CartPole."""

import importlib
from dataclasses import fields

import pytest
import torch
from gymnasium.spaces import Box

from pbtrl import envs
from pbtrl.agents.settings import AGENTS, live_hyperparameters
from pbtrl.build.rl import RLBuilder
from pbtrl.config.load import config_from_dict
from pbtrl.core.messages import Assignment
from pbtrl.rl.rollout import Rollout
from tests.agent_fixtures import first_inputs

LARGE = ("unreal", "feudal")  # each update takes them several times as long
every = pytest.mark.parametrize("name", AGENTS)
small = pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in AGENTS])
"""For probes that ask what others ask as well: of values, `test_two_steps`; of the policy, `test_recall`."""

GAMMA = 0.8
QUICK = {
    "optimizer": "adam", "reduction": "mean", "rewards": "none", "observations": "raw", "hidden": (16,),
    "advantages": "normalize", "learning_rate": 0.02, "gamma": GAMMA, "entropy_cost": 0.0, "max_grad_norm": 1.0,
}  # fmt: skip


OWN = {  # V-MPO's divergence is bounded for millions of steps; a probe has a few thousand
    "impala": {},
    "a3c": {},
    "ppo": {"epochs": 2, "minibatches": 2},
    "unreal": {"core_units": 16},
    "feudal": {"goal_units": 16, "embedding": 8, "manager_gamma": GAMMA, "intrinsic_cost": 0.0},
    "vmpo": {
        "target_period": 1, "temperature": 0.1, "eps_temperature": 0.5, "eps_kl": 0.05, "eps_mean": 0.1,
        "eps_covariance": 0.03,
    },
}  # fmt: skip


class Trained:
    """One member after updates on 8 copies of a probe, `time` steps each; the learning rate falls in the end."""

    def __init__(self, agent, id, updates, *, time=10, **settings):
        vector = envs.make(id, range(8))
        known = {f.name for f in fields(AGENTS[agent])}
        chosen = AGENTS[agent](**{k: v for k, v in {**QUICK, **OWN.get(agent, {}), **settings}.items() if k in known})
        module = importlib.import_module(f"pbtrl.agents.{agent}")
        self.agent = module.make(chosen, vector.single_observation_space, vector.single_action_space)
        self.state = self.agent.init([torch.Generator().manual_seed(1)])
        self.space = vector.single_action_space
        h = {name: torch.tensor([value]) for name, value in live_hyperparameters(self.agent.settings).items()}
        rollout, generators = Rollout(vector, 1, self.agent, self.to_env), [torch.Generator().manual_seed(2)]
        for i in range(updates):
            h["learning_rate"][0] = self.agent.settings.learning_rate * min(1.0, 2.0 * (1.0 - i / updates))
            self.agent.learn(self.state, rollout.collect(self.state, generators, time), h)
        rollout.clear()
        self.last = rollout.collect(self.state, generators, 100)
        self.returns = rollout.episodes[0].returns
        rollout.close()

    def to_env(self, action):
        if not isinstance(self.space, Box):
            return self.agent.policy.to_env(action)
        return self.agent.policy.to_env(action, torch.as_tensor(self.space.low), torch.as_tensor(self.space.high))

    def values(self, *observations):
        """V of each observation."""
        values = self.said(observations)[1]
        if "popart.scale" in self.state.tensors:
            values = values * self.state.tensors["popart.scale"] + self.state.tensors["popart.shift"]
        return values.tolist()

    def policy(self, *observations):
        """The policy's parameters for each observation."""
        head = self.said(observations)[0]
        return self.agent.policy.join(head[None], self.state.params[0].get("free"))[0]

    def said(self, observations):
        """What the network says to each observation; if it remembers, in the mean of the last steps that showed it."""
        x = torch.tensor(observations, dtype=torch.float32)[None]
        if not self.remembers:
            inputs, memory = first_inputs(self.agent, x)
            head, values = self.agent.net.unroll(self.state.params[0], inputs[:, None], memory)
            return head[0, 0], values[0, 0]
        extras = self.agent.extra_loss_inputs(self.state, self.last, {"unroll_length": torch.tensor([1])})
        inputs = self.last.inputs(slice(None), slice(None))
        head, values, _ = self.agent.unroll(self.state.params[0], inputs, self.last.rnn_state, None, extras)
        lived = self.last.observations[0, :-1][~self.last.is_reset_step[0]]
        heads, values = head[0, :-1][~self.last.is_reset_step[0]], values[0, :-1][~self.last.is_reset_step[0]]
        where = [(lived == o).all(-1) for o in x[0]]
        return torch.stack([heads[w].mean(0) for w in where]), torch.stack([values[w].mean() for w in where])

    @property
    def remembers(self):
        return self.agent.net.rnn_state_size > 0


def close(*expected):
    return pytest.approx(list(expected), abs=0.1)


@small
def test_constant_reward(name):
    assert Trained(name, "probe/ConstantReward-v0", 100).values([1]) == close(1 / (1 - GAMMA))


@small
def test_observed_reward(name):
    assert Trained(name, "probe/ObservedReward-v0", 60).values([-1], [1]) == close(-1, 1)


@every
def test_two_steps(name):
    assert Trained(name, "probe/TwoSteps-v0", 80).values([0], [1]) == close(GAMMA, 1)


@small
def test_bandit(name):
    check_bandit(name, "adam")


@small
def test_switches(name):
    """Every slot of a MultiDiscrete action is learned."""
    trained = Trained(name, "probe/Switches-v0", 150)
    slots = trained.policy([1])[0].split((2, 3, 2), -1)
    assert min(slot.softmax(-1)[i].item() for slot, i in zip(slots, (1, 2, 0), strict=True)) > 0.9
    assert trained.values([1]) == close(1)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "impala")) for n in AGENTS])
def test_bandit_with_rmsprop(name):
    """Optimizers know nothing of agents."""
    check_bandit(name, "rmsprop")


def check_bandit(name, optimizer):
    trained = Trained(name, "probe/Bandit-v0", 150, optimizer=optimizer, rmsprop_decay=0.9)
    assert trained.policy([1]).softmax(-1)[0, 2] > 0.95
    assert trained.values([1]) == close(1)


@small
def test_previous_action(name):
    trained = Trained(name, "probe/PreviousAction-v0", 120)
    for t in range(4):
        for a in [int(t > 0)] if trained.remembers else range(2):  # what is remembered was lived through
            assert trained.policy([t, a]).softmax(-1)[0, 1] > 0.9
    seen = [[0, 0], *([t, 1] for t in range(1, 5))]
    following = [sum(GAMMA**i for i in range(1, 5 - t)) for t in range(5)]
    assert trained.values(*seen) == close(following[0], *(1 + f for f in following[1:]))


PHASES = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


@every
def test_truncation_bootstraps(name):
    """With memory, last and first observations differ; the value of the last is never learned and may be too high."""
    trained, forever = Trained(name, "probe/Truncated-v0", 120), 1 / (1 - GAMMA)
    if trained.remembers:
        assert min(trained.values(*PHASES)) > 0.9 * forever
    else:
        assert trained.values(*PHASES) == close(*[forever] * 3)


@every
def test_termination_does_not_bootstrap(name):
    expected = [(1 - GAMMA ** (3 - phase)) / (1 - GAMMA) for phase in range(3)]
    assert Trained(name, "probe/Terminated-v0", 80).values(*PHASES) == close(*expected)


@every
@pytest.mark.parametrize("core", ["lstm", "none"])
def test_recall(name, core):
    """The first observation decides the last reward: with memory the optimum is reached, without it half."""
    if name == "feudal":
        if core == "none":
            pytest.skip("it has always a memory")
        core = "none"
    trained = Trained(name, "probe/Recall-v0", 80, time=20, core=core, core_units=16, lambda_=0.9)
    mean = sum(trained.returns) / len(trained.returns)
    assert mean > 0.95 if trained.remembers else mean < 0.7


@small
def test_target(name):
    check_target(name, "clip")


@small
def test_target_squashed(name):
    check_target(name, "squash")


def check_target(name, actions):
    trained = Trained(name, "probe/Target-v0", 150, actions=actions, learning_rate=0.01)
    params = trained.policy([1])
    assert trained.to_env(params[:, :2])[0].tolist() == pytest.approx([0.5, -0.3], abs=0.1)
    assert params[0, 2:].exp().max() < 0.3
    assert trained.values([1]) == close(0)


LOOKS = {"unreal": (100, 3e-3), "feudal": (150, 3e-3)}  # updates and learning rate


@every
def test_bright_side(name):
    updates, rate = LOOKS.get(name, (25, 1e-3))
    trained = Trained(name, "probe/BrightSide-v0", updates, time=4, advantages="raw", learning_rate=rate)
    dark, bright = torch.zeros(3, 36, 18), torch.full((3, 36, 18), 255.0)
    pictures = torch.stack([torch.cat([bright, dark], -1), torch.cat([dark, bright], -1)]).to(torch.uint8)[None]
    policy = trained.agent.act(trained.state, *first_inputs(trained.agent, pictures), None).policy
    assert policy[0].softmax(-1).diagonal().min() > 0.9


CARTPOLE = {
    "impala": {"advantages": "normalize", "reduction": "mean", "epochs": 4},
    "a3c": {"advantages": "normalize", "reduction": "mean", "minibatches": 4},
    "vmpo": {"minibatches": 4, "eps_kl": 0.02},
    "ppo": {"minibatches": 5, "epochs": 4},
    "unreal": {"advantages": "normalize", "reduction": "mean", "minibatches": 4, "core_units": 64},
    "feudal": {
        "reduction": "mean", "minibatches": 4, "learning_rate": 2e-4, "entropy_cost": 0.005,
        "goal_units": 64, "random_goals": 0.0, "gamma": 0.99, "manager_gamma": 0.99,
    },
}  # fmt: skip
LONGER = {"feudal": 200_000}  # at the rates of the others a worker does not keep up with its manager's goals


@every
@pytest.mark.slow
def test_cartpole_is_solved(name):
    """500 is the most there is."""
    agent = {
        "name": name, "optimizer": "adam", "learning_rate": 1e-3,
        "lambda_": 0.95, "max_grad_norm": 0.5, "entropy_cost": 0.0, "unroll_length": 20, **CARTPOLE.get(name, {}),
    }  # fmt: skip
    env = {"id": "CartPole-v1", "num_envs": 16, "backend": "gymnasium"}
    budget = {"env_steps_per_member": LONGER.get(name, 100_000)}
    build = RLBuilder(config_from_dict({"env": env, "agent": agent, "budget": budget}))
    cohort, steps = build.cohort(("m00",), threads=1), build._config.steps_per_member
    cohort.init(0, seed=1)
    cohort.begin([Assignment("m00/000000", "m00", None, 0, steps, {}, seed=1)])
    while not cohort.advance():
        pass
    (played,) = build.evaluate([cohort.save(0)], episodes=30, seed=2)
    assert sum(played.returns) / 30 >= 475
