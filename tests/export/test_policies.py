"""Exported policies of every agent and network: the bundle's policy.py and the ONNX graph."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import torch
from gymnasium.spaces import Box

from pbtrl.errors import RunError
from pbtrl.export import onnx_graph, self_check
from pbtrl.export.bundle import Description
from pbtrl.export.self_check import largest_difference
from pbtrl.rl.policy import Policy
from tests.export.policies import CASES, make

torch.set_num_threads(1)
LINES = {"impala": 60, "ppo": 60, "nature": 60, "lstm": 75, "shallow": 75, "deep": 75, "feudal": 90, "feudal image": 90}
# Of the graphs, each of which takes a second or more.
QUICK = ("vmpo", "several", "shallow", "unreal image", "feudal", "lstm")
ONNX = [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]


def exported(policy: Policy, folder: Path) -> Any:
    """The policy of a bundle's policy.py."""
    described = Description(policy)
    source = described.source("A policy.")
    (folder / "policy.py").write_text(source)
    (folder / "export.json").write_text(json.dumps({"policy": described.config}))
    weights = {name: np.ascontiguousarray(value) for name, value in described.weights.items()}
    (folder / "weights.safetensors").write_bytes(safetensors.numpy.save(weights))
    module = ModuleType("exported")
    module.__file__ = str(folder / "policy.py")
    exec(compile(source, "policy.py", "exec"), module.__dict__)
    return module.Policy(folder)


def acting(bundle: Any) -> self_check.Act:
    def act(x: Any, state: Any, reward: Any) -> Any:
        actions, state = bundle.predict(x, state, reward=reward)
        return bundle.parameters, actions, state

    return act


@pytest.mark.parametrize("case", CASES)
def test_bundle_equals_the_policy(case: str, tmp_path: Path) -> None:
    policy = make(case)
    assert largest_difference(policy, acting(exported(policy, tmp_path))) < 1e-5


@pytest.mark.parametrize("case", LINES)
def test_policy_is_short_and_needs_numpy_alone(case: str) -> None:
    policy = make(case)
    source = Description(policy).source("A policy.")
    assert len(source.splitlines()) < LINES[case]
    assert max(map(len, source.splitlines())) <= 120
    tree = ast.parse(source)
    imported = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    imported |= {str(n.module) for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported == {"json", "pathlib", "numpy"}
    usage = (ast.get_docstring(tree) or "").splitlines()[2:]
    assert len(usage) == 5
    assert ("reward=reward" in usage[-1]) == policy.agent.settings.use_last_action_reward


@pytest.mark.parametrize("case", ["impala", "vmpo", "feudal", "several"])
def test_bundle_plays_an_episode_like_the_policy(case: str, tmp_path: Path) -> None:
    """One observation at a time, with rewards; not by the code of the self-check."""
    policy, rng = make(case), np.random.default_rng(3)
    bundle = exported(policy, tmp_path)
    state = other = None
    for t in range(8):
        observation, reward = rng.normal(size=3), 0.7 * t - 2
        action, state = policy.predict(observation, state, reward=reward)
        chosen, other = bundle.predict(observation, other, reward=reward)
        assert np.shape(chosen) == policy.action_space.shape
        assert chosen.dtype == policy.action_space.dtype
        assert policy.action_space.contains(chosen)
        np.testing.assert_allclose(chosen, action, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["impala", "ppo", "linear"])
def test_samples_follow_the_distribution(case: str, tmp_path: Path) -> None:
    policy = make(case)
    bundle = exported(policy, tmp_path)
    observation = np.stack([policy.observation_space.sample()] * 20_000)
    actions, _ = bundle.predict(observation, deterministic=False)
    parameters = bundle.parameters[0].astype(np.float64)
    if not isinstance(policy.action_space, Box):
        chances = np.exp(parameters) / np.exp(parameters).sum()
        np.testing.assert_allclose(np.bincount(actions - 1) / 20_000, chances, atol=0.02)
        return
    mean, std = parameters[:2], np.exp(parameters[2:])
    rng = np.random.default_rng(0)
    expected = np.clip(mean + std * rng.normal(size=(20_000, 2)), policy.action_space.low, policy.action_space.high)
    np.testing.assert_allclose(actions.mean(0), expected.mean(0), atol=0.05 * std.max())
    np.testing.assert_allclose(actions.std(0), expected.std(0), rtol=0.05)
    assert not (bundle.predict(observation[:8], deterministic=False)[0] == actions[:8]).all()


def test_softplus_is_exact_for_small_deviations(tmp_path: Path) -> None:
    """Where log(1 + e^x) rounds to 0, and where the smallest deviation begins."""
    policy = make("linear")
    for name, bias in (("policy.0.bias", [0.0, 0.0, -9.0, -30.0]),):
        policy.state.acting[0][name].data[0, 0, :4] = torch.tensor(bias)
        policy.state.acting[0]["policy.0.weight"].data[..., 2:] = 0
    content = onnx_graph.export(policy, {})
    for act in (acting(exported(policy, tmp_path)), onnx_graph.OnnxPolicy(content).act):
        assert largest_difference(policy, act) < 1e-5
    assert policy.distribution(3)[3] == pytest.approx(np.log(1e-6))


@pytest.mark.parametrize("case", ONNX)
def test_graph_equals_the_policy(case: str) -> None:
    policy = make(case)
    graph = onnx_graph.OnnxPolicy(onnx_graph.export(policy, {}))
    assert largest_difference(policy, graph.act) < 1e-5
    recurrent = policy.agent.net.rnn_state_size + getattr(policy.agent.net, "action_reward_size", 0)
    assert ("state" in graph.inputs) == ("next_state" in graph.outputs) == bool(recurrent)
    assert ("reward" in graph.inputs) == policy.agent.settings.use_last_action_reward
    assert graph.inputs["observation"][1:] == ["batch", *(policy.observation_space.shape or ())]


def test_graph_is_one_file_with_its_description(tmp_path: Path) -> None:
    policy = make("impala")
    path = tmp_path / "policy.onnx"
    path.write_bytes(onnx_graph.export(policy, {"run": "demo"}, "A policy."))
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.doc_string == "A policy."
    assert {p.key: p.value for p in model.metadata_props}["run"] == "demo"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(5, 3))
    action, logits = session.run(["action", "distribution"], {"observation": x})
    assert (action == policy.predict(x)[0]).all()
    assert (logits.argmax(-1) + 1 == action).all()


@pytest.mark.parametrize("case", ["vmpo", "impala"])
def test_self_check_finds_what_differs(case: str) -> None:
    policy, other = make(case), make(case, seed=1)
    with pytest.raises(RunError, match=r"differs from pbtrl's by .* on 64 observations, more than 1e-05"):
        largest_difference(policy, _act(other))
    assert largest_difference(policy, _act(policy)) == 0
    sizes: list[int] = []

    def off(by: float, index: int) -> self_check.Act:
        def act(x: Any, state: Any, reward: Any) -> Any:
            sizes.append(len(x))
            parts = list(_act(policy)(x, state, reward))
            parts[index] = parts[index] + by * (state is not None)
            return tuple(parts)

        return act

    for by in (1e-3, np.nan):
        with pytest.raises(RunError, match="differs"):
            largest_difference(policy, off(by, 0))
    assert largest_difference(policy, off(1e-7, 0)) < 1e-5
    assert sum(sizes[-16:]) == self_check.OBSERVATIONS
    with pytest.raises(RunError, match="differs"):
        largest_difference(policy, off(1, 1))


def test_self_check_finds_a_lost_state_and_reward() -> None:
    policy = make("vmpo")
    act = _act(policy)
    for broken in (lambda x, s, r: act(x, None, r), lambda x, s, r: act(x, s, 0 * r)):
        with pytest.raises(RunError, match="differs"):
            largest_difference(policy, broken)


def _act(policy: Policy) -> self_check.Act:
    def act(x: Any, state: Any, reward: Any) -> Any:
        actions, next_state = policy.predict(x, state, reward=reward)
        return policy.distribution(x, state, reward=reward), actions, next_state

    return act


def test_network_of_another_package_needs_onnx() -> None:
    policy = make("impala")

    class Own(type(policy.agent.net)):  # type: ignore[misc]
        def step(self, *_: Any) -> Any:
            raise AssertionError

    object.__setattr__(policy.agent, "net", Own(*vars(policy.agent.net).values()))
    with pytest.raises(RunError, match="no code for the network Own of another package: use --format onnx"):
        Description(policy)


def test_distribution_is_that_of_the_actions() -> None:
    policy = make("impala")
    x = np.random.default_rng(0).normal(size=(6, 3))
    logits = policy.distribution(x)
    assert logits.shape == (6, 3)
    assert (logits.argmax(-1) + 1 == policy.predict(x)[0]).all()
    np.testing.assert_allclose(policy.distribution(x[2]), logits[2], rtol=1e-6)
