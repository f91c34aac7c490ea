"""Policy as an ONNX graph, and its execution: the only file that imports onnx and onnxruntime.

| tensor         | shape      | meaning                                                                                |
|----------------|------------|----------------------------------------------------------------------------------------|
| `observation`  | [B, ...]   | observations as the env returns them; adaptation and normalization are in the graph    |
| `state`        | [B, H + L] | zeros at the start of an episode, then `next_state`                                    |
| `reward`       | [B]        | last reward, raw; 0 at the start of an episode                                         |
| `action`       | [B, ...]   | most likely actions, as env.step takes them                                            |
| `distribution` | [B, K]     | logits, or means and log standard deviations before clipping or squashing              |
| `next_state`   | [B, H + L] | the next `state`, if `action` is taken                                                 |

The state is the recurrent state, and the encoded last action if the network reads it. A graph without either has no
states; `reward` exists if the network reads it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from pbtrl.agents.types import Inputs, State
from pbtrl.envs.adapters import image_axes
from pbtrl.errors import MissingPackageError, RunError
from pbtrl.rl.policy import Policy

try:
    import onnx
    import onnxruntime
    from onnxscript import opset18 as op
except ImportError as error:
    raise RunError(str(MissingPackageError("--format onnx", str(error.name), "onnx"))) from error


class PolicyModule(torch.nn.Module):
    """Policy as a function of tensors, to be traced."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        agent = policy.agent
        self._agent, self._to_env, self._spaces = agent, policy.to_env, (policy.observation_space, policy.action_space)
        self._names = {name: name.replace(".", "_") for name in policy.state.acting[0]}
        for name, view in policy.state.acting[0].items():
            self.register_buffer(self._names[name], view.detach().clone())
        for name in ("shift", "scale") if agent.normalizes else ():
            self.register_buffer(f"observation_{name}", policy.state.tensors[name].clone())
        if isinstance(policy.action_space, Box):
            self.register_buffer("action_low", torch.as_tensor(policy.action_space.low))
            self.register_buffer("action_high", torch.as_tensor(policy.action_space.high))
        self.last = getattr(agent.net, "action_reward_size", 0)
        self.memory = agent.net.rnn_state_size

    @override
    def forward(self, observation: Tensor, state: Tensor | None = None, reward: Tensor | None = None) -> Any:
        """Compute action, distribution and, with a `state`, the next one; shapes as in the table above."""
        agent = self._agent
        x = self._adapted(observation)
        none = x.new_zeros(x.shape[0], 0, dtype=torch.float32)  # len(x) would be a constant of the graph
        memory, last = (none, none) if state is None else (state[:, : self.memory], state[:, self.memory :])
        rewards = none.sum(-1) if reward is None else reward
        first = torch.zeros_like(rewards, dtype=torch.bool)
        views = {name: getattr(self, own) for name, own in self._names.items()}
        scales = {name: getattr(self, f"observation_{name}") for name in ("shift", "scale") if agent.normalizes}
        acting = State(scales, (), (views,), none, {})
        acted = agent.act(acting, Inputs(x[None], last[None], rewards[None], first[None]), memory[None], None)
        action, memory = self._to_env(acted.actions)[0], acted.rnn_state[0]
        if isinstance(self._spaces[1], Box):
            low, high = self.get_buffer("action_low"), self.get_buffer("action_high")
            action = action.to(low.dtype).clamp(low, high)
        elif isinstance(self._spaces[1], MultiDiscrete):
            space = self._spaces[1]
            action = (action.reshape(-1, *space.shape) + torch.as_tensor(space.start)).to(
                torch.as_tensor(space.start.astype(space.dtype)).dtype
            )
        else:
            action = action + int(self._spaces[1].start)  # type: ignore[attr-defined]
        if state is None:
            return action, acted.policy[0]
        if self.last:
            chosen = acted.actions[0]
            if not chosen.is_floating_point():
                chosen = torch.nn.functional.one_hot(chosen, self.last).to(memory.dtype)
                chosen = chosen if chosen.ndim == 2 else chosen.sum(1)
            memory = torch.cat([memory, chosen], -1)
        return action, acted.policy[0], memory

    def _adapted(self, x: Tensor) -> Tensor:
        """Convert the env's observations to the agent's, as envs/adapters.py does."""
        space = self._spaces[0]
        if isinstance(space, Discrete):
            return (x[:, None] == torch.arange(int(space.n)) + int(space.start)).float()
        if self._agent.image:
            assert isinstance(space, Box)
            x = x.permute(0, *(1 + axis for axis in image_axes(space)))
        return x.reshape(-1, *self._agent.shape) if self._agent.image else x.float().reshape(-1, *self._agent.shape)


def export(policy: Policy, metadata: Mapping[str, str], text: str = "") -> bytes:
    """Return the ONNX file of a policy, with `metadata` and a description in it.

    Raises:
        RunError: torch cannot express the policy in ONNX.
    """
    module = PolicyModule(policy).eval()
    space = policy.observation_space
    given: dict[str, Tensor] = {"observation": torch.as_tensor(np.stack([space.sample(), space.sample()]))}
    if module.memory + module.last:
        given["state"] = torch.zeros(2, module.memory + module.last)
    if module.last:
        given["reward"] = torch.zeros(2)
    batch = torch.export.Dim("batch", min=1)
    outputs = ["action", "distribution", *(["next_state"] if "state" in given else [])]
    try:
        with _quiet():
            program = torch.onnx.export(
                module, tuple(given.values()), dynamo=True, verbose=False, input_names=list(given),
                output_names=outputs, dynamic_shapes={name: {0: batch} for name in given},
                custom_translation_table={torch.ops.aten.log_sigmoid.default: _log_sigmoid},
            )  # fmt: skip
            assert program is not None
            model = program.model_proto
    except Exception as error:
        text = str(error).splitlines()[0]
        raise RunError(f"torch cannot export this policy to ONNX: {type(error).__name__}: {text}") from error
    onnx.helper.set_model_props(model, dict(metadata))
    model.producer_name, model.doc_string = "pbtrl", text
    content: bytes = model.SerializeToString()
    return content


class OnnxPolicy:
    """Policy that runs an ONNX file by onnxruntime.

    Attributes:
        inputs: type and shape of each input, by name.
        outputs: the same of the outputs.
    """

    def __init__(self, content: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self.inputs, self.outputs = (
            {x.name: [x.type, *x.shape] for x in given}
            for given in (self._session.get_inputs(), self._session.get_outputs())
        )

    def act(self, x: NDArray[Any], state: Any, reward: Any) -> tuple[NDArray[Any], NDArray[Any], Any]:
        """Return distribution parameters, actions and the next state for observations [B, ...]."""
        start, given = state is None, {"observation": x}
        if "state" in self.inputs:
            given["state"] = np.zeros((len(x), self.inputs["state"][-1]), np.float32) if start else state
        if "reward" in self.inputs:
            given["reward"] = np.zeros(len(x), np.float32) if start else np.asarray(reward, np.float32)
        action, distribution, *states = self._session.run(None, given)
        return distribution, action, states[0] if states else ()


def _log_sigmoid(x: Any) -> Any:
    """Express log sigmoid exactly; torch.onnx would take the logarithm of a rounded sigmoid."""
    return op.Neg(op.Softplus(op.Neg(x)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch.onnx, which warns of its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
