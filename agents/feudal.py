"""Feudal Networks (Vezhnevets et al. 2017, arXiv 1703.01161): a manager sets goals, and a worker follows them.

    features z -> manager: s = relu(W z) -> dilated LSTM -> goal g, a direction in the space of states s
               -> worker:  LSTM -> U [K, k];  policy = U w,  w = phi (g_{t-c} + ... + g_t)

The worker's reward is the env's reward plus `intrinsic_cost` times an intrinsic reward for moving in the directions of
the last c goals; its loss sends no gradient into the goals. The manager learns to point in the direction in which the
state moves over the next c steps, in proportion to the advantage (equation 7); no gradient flows into those states.
Manager and worker have separate values and discounts. Returns and their cuts are those of A3C.

Differences from the paper:

- The horizon of a goal ends early at the end of the episode or the block.
- The intrinsic reward is credited to the action that led to a state, not to the action taken in it.
- If rewards are normalized by the standard deviation of the discounted return, the intrinsic reward is multiplied by
  1 - gamma. Its discounted return is then at most 1, so both rewards have a comparable scale.

The defaults are in `settings.FeudalSettings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (conventional alias)
from torch import Tensor
from typing_extensions import override

from pbtrl.agents import losses
from pbtrl.agents.a3c import A3C
from pbtrl.agents.distributions import Distribution
from pbtrl.agents.layers import COLUMNS, Layout, dense, init_lstm, lstm, lstm_shapes, orthogonal, rnn_state_at
from pbtrl.agents.loss_inputs import LossInputs, LossOutput
from pbtrl.agents.networks import SharedTorsoNet, make_shared_torso_net
from pbtrl.agents.settings import FeudalSettings
from pbtrl.agents.types import Hyperparameters, Inputs, State, Tensors, Trajectory, Views
from pbtrl.errors import ConfigProblem

SMALLEST = 1e-8  # added to squared lengths, so that a vector of zeros has a finite direction


class Memory(NamedTuple):
    """Parts of the recurrent state.

    Attributes:
        outputs, cells: of the manager's c cores, [P, B, c, d] each.
        goals, states: the last c of them, newest first, [P, B, c, d] each.
        output, cell: of the worker, [P, B, K k] each.
        phase: index of the manager's core that runs next, [P, B, 1].
    """

    outputs: Tensor
    cells: Tensor
    goals: Tensor
    states: Tensor
    output: Tensor
    cell: Tensor
    phase: Tensor

    def joined(self) -> Tensor:
        """All parts in one recurrent state, [P, B, H]."""
        manager = (self.outputs, self.cells, self.goals, self.states)
        return torch.cat([*(x.flatten(-2) for x in manager), self.output, self.cell, self.phase], -1)


@dataclass(frozen=True)
class FeudalNet(SharedTorsoNet):
    """Manager and worker on a shared torso (figure 1 of the paper); `core` is 0.

    Attributes:
        units: d, the size of states and goals.
        embedding: k, the size of the goal embedding that the worker receives.
        horizon: c, the env steps that a goal lasts.
    """

    units: int = 256
    embedding: int = 16
    horizon: int = 10

    @property
    @override
    def frames(self) -> int | None:
        """20 times the torso's limit, because a recurrent step costs about as much for many envs as for one."""
        return self.torso.frames and 20 * self.torso.frames

    @property
    def worker(self) -> int:
        """Units of the worker's LSTM, K x k."""
        return self.outputs * self.embedding

    @property
    @override
    def layout(self) -> Layout:
        """Parameters of the torso, the manager and the worker; `embedding`, the paper's phi, has no bias."""
        manager, worker = (lstm_shapes(*sizes) for sizes in self._lstms)
        return Layout(
            {
                **self.torso.shapes,
                "state.weight": (self._features, self.units),
                "state.bias": (1, self.units),
                **manager,
                **worker,
                "embedding.weight": (self.units, self.embedding),
                "manager.value.weight": (self.units, COLUMNS),
                "manager.value.bias": (1, COLUMNS),
                "value.weight": (self.worker, COLUMNS),
                "value.bias": (1, COLUMNS),
            }
        )

    @property
    def _lstms(self) -> tuple[tuple[str, int, int], tuple[str, int, int]]:
        return ("manager", self.units, self.units), ("worker", self._features, self.worker)

    @property
    @override
    def size(self) -> int:
        lstms = sum(4 * units * (inputs + units + 1) for _, inputs, units in self._lstms)
        linear = (self._features + 1) * self.units + self.units * self.embedding + self.units + 1 + self.worker + 1
        return self.torso.size + lstms + linear

    @property
    @override
    def rnn_state_size(self) -> int:
        """Size of all parts of `Memory`."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [self.horizon * self.units] * 4 + [self.worker] * 2 + [1]

    @override
    def initial(self, generator: torch.Generator) -> Views:
        """Initial parameters of one member: orthogonal, with gain 1 / (c + 1) for phi and 1 for the values."""
        params = {name: torch.zeros(shape) for name, shape in self.layout.shapes.items()}
        params |= self.torso.initial(generator)
        params["state.weight"] = orthogonal((self._features, self.units), generator)
        for name, _, units in self._lstms:
            init_lstm(params, name, units, generator)
        params["embedding.weight"] = orthogonal((self.units, self.embedding), generator, 1.0 / (self.horizon + 1))
        for name, units in (("manager.value", self.units), ("value", self.worker)):
            params[f"{name}.weight"][:, :1] = orthogonal((units, 1), generator, 1.0)
        return params

    @override
    def step(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, random_goal: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run one step; `random_goal` [P, B, d] replaces the manager's goal wherever it is not zero."""
        features = self._feedforward(params, inputs, learning=False)
        outputs = self._advance(params, features, rnn_state.masked_fill(inputs.first[..., None], 0.0), random_goal)
        return outputs["head"], outputs["rnn_state"]

    @override
    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run all steps without random goals."""
        head, values, _ = self.unroll_with_goals(params, inputs, rnn_state, starts, None)
        return head, values

    def unroll_with_goals(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None, random_goals: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensors]:
        """Run `unroll` with `random_goals` [P, T, B, d], and return extra outputs, [P, T+1, B, ...] each.

        They are `goals`, `states`, the manager's values as `manager`, and the intrinsic reward of reaching each state
        as `intrinsic` (equation 8).
        """
        steps = inputs.first.shape[1]
        flat = inputs.map(lambda x: x.flatten(1, 2))
        features = [x.view(*inputs.first.shape, -1) for x in self._feedforward(params, flat, learning=True)]
        outputs: list[Tensors] = []
        for t in range(steps):
            random_goal = None if random_goals is None or t == steps - 1 else random_goals[:, t]
            rnn_state = rnn_state_at(rnn_state, starts, t).masked_fill(inputs.first[:, t, :, None], 0.0)
            outputs.append(self._advance(params, [x[:, t] for x in features], rnn_state, random_goal))
            rnn_state = outputs[t]["rnn_state"]
        stacked = {name: torch.stack([o[name] for o in outputs], 1) for name in outputs[0] if name != "rnn_state"}
        values = self._value(params, "value", stacked.pop("output"))
        manager_values = self._value(params, "manager.value", stacked.pop("pooled"))
        stacked |= {"states": features[0].detach(), "manager": manager_values}
        return stacked.pop("head"), values, stacked

    def _value(self, params: Views, name: str, x: Tensor) -> Tensor:
        return self._head(params, name, x.flatten(1, 2))[..., 0].view(x.shape[:3])

    def _feedforward(self, params: Views, inputs: Inputs, *, learning: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Compute what does not depend on the past: states [P, M, d], and the input part of both LSTMs' gates."""
        z = self._input_features(params, inputs, learning=learning)
        states = F.relu(self._head(params, "state", z))
        manager = dense(states, params["manager.input"], params["manager.bias"])
        return states, manager, dense(z, params["worker.input"], params["worker.bias"])

    def _advance(
        self, params: Views, features: Sequence[Tensor], rnn_state: Tensor, random_goal: Tensor | None
    ) -> Tensors:
        """Run one step of manager and worker, given the output of `_feedforward` for that step."""
        state, manager, worker = features
        memory = self._split(rnn_state)
        goals, states = memory.goals.detach(), memory.states.detach()
        turn = torch.arange(self.horizon)[:, None] == memory.phase[..., None, :]  # [P, B, c, 1]
        hidden, core_cell = (torch.where(turn, x, 0.0).sum(-2) for x in (memory.outputs, memory.cells))
        hidden, core_cell = lstm(manager + torch.bmm(hidden, params["manager.hidden"]), core_cell)
        outputs = torch.where(turn, hidden[..., None, :], memory.outputs)
        pooled = outputs.mean(-2)
        goal = direction(pooled)
        if random_goal is not None:
            goal = torch.where((random_goal != 0).any(-1, keepdim=True), random_goal, goal)
        output, cell = lstm(worker + torch.bmm(memory.output, params["worker.hidden"]), memory.cell)
        embedded = torch.bmm(goals.sum(-2) + goal.detach(), params["embedding.weight"])
        head = (output.view(*embedded.shape[:2], -1, self.embedding) * embedded[..., None, :]).sum(-1)
        intrinsic = (direction(state.detach()[..., None, :] - states) * goals).sum(-1).sum(-1) / self.horizon
        memory = Memory(
            outputs=outputs,
            cells=torch.where(turn, core_cell[..., None, :], memory.cells),
            goals=_pushed(goal, goals),
            states=_pushed(state, states),
            output=output,
            cell=cell,
            phase=torch.where(memory.phase == self.horizon - 1, 0.0, memory.phase + 1.0),
        )
        return {
            "head": head,
            "rnn_state": memory.joined(),
            "output": output,
            "pooled": pooled,
            "goals": goal,
            "intrinsic": intrinsic,
        }

    def _split(self, rnn_state: Tensor) -> Memory:
        *manager, output, cell, phase = torch.split(rnn_state, self._sizes, -1)
        outputs, cells, goals, states = (x.view(*x.shape[:2], self.horizon, self.units) for x in manager)
        return Memory(outputs, cells, goals, states, output, cell, phase)


@dataclass(frozen=True)
class Feudal(A3C):
    """The Feudal Networks agent; see `agents.types.Agent` for the interface."""

    settings: FeudalSettings
    net: FeudalNet

    @classmethod
    @override
    def network(  # type: ignore[override]
        cls, settings: FeudalSettings, shape: tuple[int, ...], policy: Distribution, image: bool
    ) -> FeudalNet:
        """Create the manager and the worker.

        Raises:
            ConfigProblem: as in `agents.networks.make_network`; also for a configured core or invalid sizes.
        """
        if settings.core != "none":
            raise ConfigProblem("feudal is already recurrent; use none", ("agent", "core"))
        for name in ("goal_units", "embedding"):
            if (size := getattr(settings, name)) < 1 or size % COLUMNS:
                raise ConfigProblem(f"must be a multiple of {COLUMNS}, not {size}", ("agent", name))
        if settings.horizon < 1:
            raise ConfigProblem(f"must be >= 1, not {settings.horizon}", ("agent", "horizon"))
        return with_goals(make_shared_torso_net(settings, shape, policy, image), settings)

    @override
    def extra_noise(self, generator: torch.Generator, time: int, envs: int) -> list[Tensor]:
        """Draw goals [T, B, d]: random at a few of the block's steps, zeros at the others."""
        goals = direction(torch.randn(time, envs, self.net.units, generator=generator))
        rare = torch.rand(time, envs, 1, generator=generator) < self.settings.random_goals
        return [torch.where(rare, goals, 0.0)]

    @override
    def step(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, extra_noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Run one step; `extra_noise` holds random goals, and without it no goal is random."""
        return self.net.step(params, inputs, rnn_state, extra_noise)

    @override
    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None, extra_loss_inputs: Tensors
    ) -> tuple[Tensor, Tensor, Tensors]:
        """Run the network over a block with the random goals used in acting."""
        return self.net.unroll_with_goals(params, inputs, rnn_state, starts, extra_loss_inputs["random_goals"])

    @override
    def extra_loss_inputs(self, state: State, block: Trajectory, h: Hyperparameters) -> Tensors:
        """Random goals [P, T, B, d], the steps until each goal's horizon ends [P, T, B], and termination [P, T, B]."""
        goal_horizons, left = [], torch.zeros_like(block.done[:, 0], dtype=torch.int64)
        for done in reversed(block.done.unbind(1)):
            left = torch.where(done, 1, left + 1)
            goal_horizons.append(left.clamp(max=self.net.horizon))
        return {
            "random_goals": self.split_extra_noise(block.noise),
            "goal_horizons": torch.stack(goal_horizons[::-1], 1),
            "goes_on": (~block.terminated).to(block.rewards.dtype),
        }

    @override
    def loss(self, batch: LossInputs, h: Hyperparameters) -> LossOutput:
        """A3C's loss for the worker, with intrinsic rewards, plus the manager's loss (equations 7 to 9)."""
        extra, mask = batch.extra_loss_inputs, batch.mask
        intrinsic = extra["intrinsic"][:, 1:].detach()
        if self.rewards == "normalize":
            intrinsic = intrinsic * (1.0 - h["gamma"])[:, None, None]
        rewards = batch.returns.rewards + h["intrinsic_cost"][:, None, None] * intrinsic
        worker = super().loss(replace(batch, returns=replace(batch.returns, rewards=rewards)), h)
        manager = replace(batch.returns, discounts=h["manager_gamma"][:, None, None] * extra["goes_on"])
        targets, advantages = self.estimate(batch, manager, extra["manager"])
        steps = torch.arange(mask.shape[1])[:, None] + extra["goal_horizons"]
        ends = extra["states"].gather(1, steps[..., None].expand(-1, -1, -1, self.net.units))
        cosines = (direction(ends - extra["states"][:, :-1]) * extra["goals"][:, :-1]).sum(-1)
        terms = {
            "manager": losses.policy_gradient_loss(cosines, self.maybe_normalize(advantages, mask), mask),
            "manager_value": losses.value_loss(extra["manager"][:, :-1], targets, mask),
        }
        loss = terms["manager"] + h["value_cost"] * terms["manager_value"]
        metrics = {"intrinsic": (intrinsic * mask).flatten(1).sum(-1)}
        return LossOutput(worker.total + self.reduce(loss, batch), worker.sums | terms | metrics)


def with_goals(net: SharedTorsoNet, settings: FeudalSettings) -> FeudalNet:
    """Put manager and worker on the torso of a network."""
    sizes = settings.goal_units, settings.embedding, settings.horizon
    return FeudalNet(net.torso, net.outputs, 0, net.action_reward_size, *sizes)


def direction(x: Tensor) -> Tensor:
    """Normalize x [..., d] to length 1, and 0 to 0, so that dot products are cosines."""
    return x / (x.square().sum(-1, keepdim=True) + SMALLEST).sqrt()


def _pushed(new: Tensor, old: Tensor) -> Tensor:
    """Put `new` [P, B, d] before `old` [P, B, c, d], whose last one is dropped."""
    return torch.cat([new.detach()[..., None, :], old[..., :-1, :]], -2)


make = Feudal.make
