"""Bundle: a policy as weights, a description of its network, and a policy.py that needs numpy alone."""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space

from pbtrl.agents import distributions
from pbtrl.agents.distributions import Categorical, MultiCategorical, SquashedGaussian
from pbtrl.agents.feudal import FeudalNet
from pbtrl.agents.layers import COLUMNS, padded
from pbtrl.agents.networks import MLP, SharedTorsoNet
from pbtrl.agents.torsos import Convolutional, Dense
from pbtrl.envs.adapters import image_axes
from pbtrl.errors import RunError
from pbtrl.export import standalone
from pbtrl.rl.policy import Policy

USAGE = """policy, state = Policy(), None  # needs numpy alone
observation, _ = env.reset()
action, state = policy.predict(observation, state)  # None at the start of an episode
observation, reward, terminated, truncated, _ = env.step(action)
action, state = policy.predict(observation, state{reward})
"""
HEADER = '''"""{title}

{usage}"""
import json
from pathlib import Path

import numpy as np

'''


def usage(config: Mapping[str, int]) -> str:
    """Show how a policy acts, given its numbers: only one that observes its last action and reward takes the reward."""
    return USAGE.format(reward=", reward=reward" if config["state"] > config["memory"] else "")


class Description:
    """Parts of policy.py, and the data that it reads.

    Attributes:
        config: its numbers, as JSON.
        weights: its tensors, without member axis.
        parts: its functions, in order of definition.
        slots: names of the functions in the roles `features`, `core` and `choose`.
    """

    def __init__(self, policy: Policy) -> None:
        """Describe a policy.

        Raises:
            RunError: its network is not one of pbtrl's, and only pbtrl can run it.
        """
        self.config: dict[str, Any] = {}
        self.weights: dict[str, np.ndarray] = {}
        self._policy, self._agent = policy, policy.agent
        self._net: Any = policy.agent.net
        self._views = {name: view[0].detach().numpy() for name, view in policy.state.acting[0].items()}
        if type(self._net).step not in (MLP.step, SharedTorsoNet.step, FeudalNet.step):
            kind = type(self._net).__name__
            raise RunError(f"a bundle has no code for the network {kind} of another package: use --format onnx")
        self._last = getattr(self._net, "action_reward_size", 0)
        shape: Any = policy.observation_space.shape
        self.config["shape"] = list(shape)
        features, core, choose = self._features(policy.observation_space), self._core(), self._choose()
        self.config["state"] = self.config["memory"] + self._last
        self.slots = {"features": features[-1], "core": core[-1], "choose": choose[-1], **self._activation()}
        activation: list[Callable[..., Any]] = [
            part for part in (standalone.relu, standalone.elu) if part in self.slots.values()
        ]
        self.parts = [standalone.dense, *activation, *features, *core, *choose]

    def source(self, title: str) -> str:
        """Return the text of policy.py; `title` is its first line."""
        names = ", ".join("np.tanh" if part is np.tanh else part.__name__ for part in self.slots.values())
        parts = [*map(inspect.getsource, self.parts), inspect.getsource(standalone.Policy)]
        parts.insert(-1, f"{', '.join(self.slots)} = {names}\n")
        return HEADER.format(title=textwrap.shorten(title, 110), usage=usage(self.config)) + "\n".join(parts)

    def _take(self, *names: str) -> None:
        """Take parameters under their own names, as float32 without the axis of a bias."""
        for name in names:
            value = self._views[name]
            self.weights[name] = value[0] if name.endswith("bias") and value.ndim == 2 else value

    def _activation(self) -> dict[str, Callable[..., Any]]:
        """Function of the hidden layers; none for images."""
        torso = self._net if isinstance(self._net, MLP) else self._net.torso
        if isinstance(torso, Convolutional):
            return {}
        functions: dict[str, Callable[..., Any]] = {
            "tanh": np.tanh, "relu": standalone.relu, "elu": standalone.elu,
        }  # fmt: skip
        return {"activate": functions[torso.activation]}

    def _features(self, space: Space[Any]) -> list[Callable[..., Any]]:
        """Describe what comes before the core."""
        net, config = self._net, self.config
        if self._agent.normalizes:
            self.weights |= {name: self._policy.state.tensors[name][0].numpy() for name in ("shift", "scale")}
        torso = Dense(net.inputs, net.hidden, net.activation) if isinstance(net, MLP) else net.torso
        if isinstance(torso, Convolutional):
            assert isinstance(space, Box)
            config |= {"axes": [1 + axis for axis in image_axes(space)], "image": list(torso.image)}
            config |= {"strides": [stride for _, _, stride in torso.convolutions], "sections": len(torso.sections)}
            self._take(*torso.shapes)
            return [standalone.convolve, standalone.residual if torso.sections else standalone.image]
        assert isinstance(torso, Dense)
        config |= {"layers": len(torso.hidden), "features": torso.units}
        if isinstance(net, MLP):
            config["features"] = padded(torso.units, COLUMNS) if torso.hidden else torso.units
            for i in range(len(net.hidden) + 1):
                name = f"torso.{i}" if i < len(net.hidden) else "policy"
                self._take(f"policy.{i}.weight", f"policy.{i}.bias")
                for kind in ("weight", "bias"):
                    self.weights[f"{name}.{kind}"] = self.weights.pop(f"policy.{i}.{kind}")
        else:
            self._take(*torso.shapes)
        if isinstance(space, Discrete):
            config |= {"states": int(space.n), "first_state": int(space.start)}
            return [standalone.vector, standalone.one_hot]
        return [standalone.vector]

    def _core(self) -> list[Callable[..., Any]]:
        """Describe the core and the head of the policy."""
        net, config = self._net, self.config
        config |= {"outputs": net.outputs, "memory": net.rnn_state_size}
        if isinstance(net, FeudalNet):
            self._take("state.weight", "state.bias", "embedding.weight")
            self._take(*(f"{name}.{kind}" for name in ("manager", "worker") for kind in ("input", "hidden", "bias")))
            sizes = [net.horizon * net.units] * 3 + [net.worker] * 2  # without past states, which only learning needs
            config |= {"horizon": net.horizon, "splits": np.cumsum(sizes).tolist(), "memory": sum(sizes) + 1}
            return [standalone.lstm, standalone.feudal]
        if not isinstance(net, MLP):
            self._take("policy.weight", "policy.bias")
        if net.rnn_state_size:
            self._take("core.input", "core.hidden", "core.bias")
            return [standalone.lstm, standalone.recurrent]
        return [standalone.feedforward]

    def _choose(self) -> list[Callable[..., Any]]:
        """Describe the distribution of actions."""
        policy, space = self._agent.policy, self._policy.action_space
        if isinstance(policy, Categorical):
            assert isinstance(space, Discrete)
            self.config["start"] = int(space.start)
            return [standalone.categorical]
        if isinstance(policy, MultiCategorical):
            assert isinstance(space, MultiDiscrete)
            self.config |= {"start": space.start.tolist(), "dtype": str(space.dtype)}
            self.config["slots"] = policy.offsets[1:].tolist()
            return [standalone.categoricals]
        assert isinstance(space, Box)
        self.config["squash"] = isinstance(policy, SquashedGaussian)
        self.weights |= {"low": space.low, "high": space.high}
        if policy.start is None:
            self.weights["log_std"] = self._views["free"]
            return [standalone.gaussian]
        self.config |= {
            "softplus_shift": math.log(math.expm1(policy.start**policy.power)),
            "smallest": distributions.SMALLEST_STD**policy.power,
            "power": policy.power,
        }
        return [standalone.gaussian, standalone.softplus]
