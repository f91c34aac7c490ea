"""Feudal Networks (Vezhnevets et al. 2017, arXiv 1703.01161): a manager sets goals, and a worker acts by them.

    features z -> manager: s = relu(W z) -> dilated LSTM -> goal g, a direction among states s
               -> worker:  LSTM -> U [K, k];  policy = U w,  w = phi (g_{t-c} + ... + g_t)

The worker is paid for the env's reward and, by `intrinsic_cost`, for going where its last c goals point; no gradient
goes from it into the goals. The manager learns to point where the state went c steps on, in proportion to the advantage
of being there: equation 7, whose gradient does not go into those states. Each has its own value and discount. The
returns, and how they are cut, are A3C's.

What differs from the paper: a goal's way ends early where its episode or the block does; the reward for it counts for
the action that led to the state, not for the one chosen there; and where the env's rewards are divided by the spread
of their discounted return, it is multiplied by 1 - gamma: its own discounted return then is at most 1, and
`intrinsic_cost` weighs like with like. settings.Feudal has every default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812 (the name everybody knows)
from torch import Tensor

from pbtrl.agents import losses
from pbtrl.agents.a3c import A3C
from pbtrl.agents.distributions import Distribution
from pbtrl.agents.layers import COLUMNS, Layout, init_lstm, lstm, lstm_shapes, orthogonal, rnn_state_at
from pbtrl.agents.loss_inputs import LossInputs, LossOutput
from pbtrl.agents.networks import SharedTorsoNet, make_shared_torso_net
from pbtrl.agents.returns import gae
from pbtrl.agents.settings import FeudalSettings
from pbtrl.agents.types import Hyperparameters, Inputs, State, Tensors, Trajectory, Views

SMALLEST = 1e-8  # squared length of what is made a direction


@dataclass(frozen=True)
class FeudalNet(SharedTorsoNet):
    """Manager and worker on one torso (figure 1 of the paper); `core` is 0.

    Attributes:
        units: d, width of states and goals.
        embedding: k, width of what the worker is told of them.
        horizon: c.
    """

    units: int = 256
    embedding: int = 16
    horizon: int = 10

    @property
    def frames(self) -> int | None:
        """More than the torso's: the many small steps of a pass cost as much for many envs as for one."""
        return self.torso.frames and 20 * self.torso.frames

    @property
    def worker(self) -> int:
        """Units of the worker's LSTM, K x k."""
        return self.outputs * self.embedding

    @property
    def layout(self) -> Layout:
        """The torso's, then the manager's and the worker's; `embedding`, the paper's phi, has no bias."""
        manager, worker = (lstm_shapes(*made) for made in self._lstms)
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
    def size(self) -> int:
        """How many numbers a member learns, padding not counted."""
        lstms = sum(4 * units * (inputs + units + 1) for _, inputs, units in self._lstms)
        linear = (self._features + 1) * self.units + self.units * self.embedding + self.units + 1 + self.worker + 1
        return self.torso.size + lstms + linear

    @property
    def rnn_state_size(self) -> int:
        """The manager's outputs and cells, last goals and states, the worker's output and cell, whose turn it is."""
        return sum(self._sizes)

    @property
    def _sizes(self) -> list[int]:
        return [self.horizon * self.units] * 4 + [self.worker] * 2 + [1]

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member: orthogonal; phi's gain is that of a mean of goals, the values' 1."""
        params = {name: torch.zeros(shape) for name, shape in self.layout.shapes.items()}
        params |= self.torso.initial(generator)
        params["state.weight"] = orthogonal((self._features, self.units), generator)
        for name, _, units in self._lstms:
            init_lstm(params, name, units, generator)
        params["embedding.weight"] = orthogonal((self.units, self.embedding), generator, 1.0 / (self.horizon + 1))
        for name, units in (("manager.value", self.units), ("value", self.worker)):
            params[f"{name}.weight"][:, :1] = orthogonal((units, 1), generator, 1.0)
        return params

    def step(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, random_goal: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step; `random_goal` [P, B, d] are goals at random, zeros where the manager's own are followed."""
        below = self._below(params, inputs, learning=False)
        moved = self._moved(params, below, rnn_state.masked_fill(inputs.first[..., None], 0.0), random_goal)
        return moved["head"], moved["rnn_state"]

    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """All steps, without detours."""
        head, values, _ = self.unroll_with_goals(params, inputs, rnn_state, starts, None)
        return head, values

    def unroll_with_goals(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None, random_goals: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensors]:
        """As `unroll`, with `random_goals` [P, T, B, d]; and [P, T+1, B, ...] each:

        `goals` and `states`, `manager`'s values, and `intrinsic`, what arriving there is worth (equation 8).
        """
        steps = inputs.first.shape[1]
        flat = Inputs(*(x.flatten(1, 2) for x in (inputs.observations, inputs.actions, inputs.rewards, inputs.first)))
        below = [x.view(*inputs.first.shape, -1) for x in self._below(params, flat, learning=True)]
        moved: list[Tensors] = []
        for t in range(steps):
            random_goal = None if random_goals is None or t == steps - 1 else random_goals[:, t]
            rnn_state = rnn_state_at(rnn_state, starts, t).masked_fill(inputs.first[:, t, :, None], 0.0)
            moved.append(self._moved(params, [x[:, t] for x in below], rnn_state, random_goal))
            rnn_state = moved[t]["rnn_state"]
        said = {name: torch.stack([m[name] for m in moved], 1) for name in moved[0] if name != "rnn_state"}
        values = self._value(params, "value", said.pop("output"))
        said |= {"states": below[0].detach(), "manager": self._value(params, "manager.value", said.pop("pooled"))}
        return said.pop("head"), values, said

    def _value(self, params: Views, name: str, x: Tensor) -> Tensor:
        return self._head(params, name, x.flatten(1, 2))[..., 0].view(x.shape[:3])

    def _below(self, params: Views, inputs: Inputs, *, learning: bool) -> tuple[Tensor, Tensor, Tensor]:
        """What does not depend on the past: the states [P, M, d], and what goes into the gates of both LSTMs."""
        z = self._joined(params, inputs, learning=learning)
        states = F.relu(self._head(params, "state", z))
        manager = torch.baddbmm(params["manager.bias"], states, params["manager.input"])
        return states, manager, torch.baddbmm(params["worker.bias"], z, params["worker.input"])

    def _moved(self, params: Views, below: Sequence[Tensor], rnn_state: Tensor, random_goal: Tensor | None) -> Tensors:
        """One step of both, from `_below` at that step."""
        state, manager, worker = below
        *lasting, output, cell, phase = torch.split(rnn_state, self._sizes, -1)
        outputs, cells, *past = (x.view(*x.shape[:2], self.horizon, self.units) for x in lasting)
        goals, states = (x.detach() for x in past)
        turn = torch.arange(self.horizon)[:, None] == phase[..., None, :]  # [P, B, c, 1]
        mine, before = (torch.where(turn, x, 0.0).sum(-2) for x in (outputs, cells))
        mine, now = lstm(manager + torch.bmm(mine, params["manager.hidden"]), before)
        outputs, cells = (torch.where(turn, new[..., None, :], x) for new, x in ((mine, outputs), (now, cells)))
        pooled = outputs.mean(-2)
        goal = direction(pooled)
        if random_goal is not None:
            goal = torch.where((random_goal != 0).any(-1, keepdim=True), random_goal, goal)
        output, cell = lstm(worker + torch.bmm(output, params["worker.hidden"]), cell)
        told = torch.bmm(goals.sum(-2) + goal.detach(), params["embedding.weight"])
        head = (output.view(*told.shape[:2], -1, self.embedding) * told[..., None, :]).sum(-1)
        way = (direction(state.detach()[..., None, :] - states) * goals).sum(-1).sum(-1) / self.horizon
        goals, states = (
            torch.cat([new.detach()[..., None, :], old[..., :-1, :]], -2)
            for new, old in ((goal, goals), (state, states))
        )
        phase = torch.where(phase == self.horizon - 1, 0.0, phase + 1.0)
        kept = [x.flatten(-2) for x in (outputs, cells, goals, states)]
        rnn_state = torch.cat([*kept, output, cell, phase], -1)
        return {
            "head": head,
            "rnn_state": rnn_state,
            "output": output,
            "pooled": pooled,
            "goals": goal,
            "intrinsic": way,
        }


@dataclass(frozen=True)
class Feudal(A3C):
    """The agent for one kind of env; see `agents.types.Agent` for the contract."""

    settings: FeudalSettings
    net: FeudalNet

    @classmethod
    def network(  # type: ignore[override]
        cls, settings: FeudalSettings, shape: tuple[int, ...], policy: Distribution, image: bool
    ) -> FeudalNet:
        """Manager and worker.

        Raises:
            ValueError: as `agents.networks.network`; a core; or sizes that are not what they must be.
        """
        if settings.core != "none":
            raise ValueError(f"agent.core={settings.core}: feudal has a memory of its own, so use none")
        for name in ("goal_units", "embedding"):
            if (size := getattr(settings, name)) < 1 or size % COLUMNS:
                raise ValueError(f"agent.{name} must be a multiple of {COLUMNS}, not {size}")
        if settings.horizon < 1:
            raise ValueError(f"agent.horizon must be >= 1, not {settings.horizon}")
        return with_goals(make_shared_torso_net(settings, shape, policy, image), settings)

    def extra_noise(self, generator: torch.Generator, time: int, envs: int) -> list[Tensor]:
        """A goal at random at few of a block's steps, and zeros at the others: [T, B, d]."""
        goals = direction(torch.randn(time, envs, self.net.units, generator=generator))
        rare = torch.rand(time, envs, 1, generator=generator) < self.settings.random_goals
        return [torch.where(rare, goals, 0.0)]

    def step(self, params: Views, inputs: Inputs, rnn_state: Tensor, chance: Tensor | None) -> tuple[Tensor, Tensor]:
        """Without noise no goal is random either."""
        return self.net.step(params, inputs, rnn_state, chance)

    def unroll(
        self, params: Views, inputs: Inputs, rnn_state: Tensor, starts: Tensor | None, extra_loss_inputs: Tensors
    ) -> tuple[Tensor, Tensor, Tensors]:
        """With the random goals that were followed."""
        return self.net.unroll_with_goals(params, inputs, rnn_state, starts, extra_loss_inputs["random_goals"])

    def extra_loss_inputs(self, state: State, block: Trajectory, h: Hyperparameters) -> Tensors:
        """Random goals [P, T, B, d], and where a goal's way ends: so many observations on, [P, T, B]."""
        goal_horizons, left = [], torch.zeros_like(block.done[:, 0], dtype=torch.int64)
        for done in reversed(block.done.unbind(1)):
            left = torch.where(done, 1, left + 1)
            goal_horizons.append(left.clamp(max=self.net.horizon))
        return {
            "random_goals": self.split_extra_noise(block.noise),
            "goal_horizons": torch.stack(goal_horizons[::-1], 1),
            "goes_on": (~block.terminated).to(block.rewards.dtype),
        }

    def loss(self, seen: LossInputs, h: Hyperparameters) -> LossOutput:
        """A3C's for the worker, paid for the manager's goals too; and the manager's (equations 7 to 9)."""
        said, mask = seen.extra_loss_inputs, seen.mask
        intrinsic = said["intrinsic"][:, 1:].detach()
        if self.rewards == "normalize":
            intrinsic = intrinsic * _rows(1.0 - h["gamma"])
        worker = super().loss(replace(seen, rewards=seen.rewards + _rows(h["intrinsic_cost"]) * intrinsic), h)
        manager = replace(seen, discounts=_rows(h["manager_gamma"]) * said["goes_on"])
        targets, advantages = manager.compute_targets(gae, said["manager"], lambda_=h["lambda_"][:, None])
        steps = torch.arange(mask.shape[1])[:, None] + said["goal_horizons"]
        ends = said["states"].gather(1, steps[..., None].expand(-1, -1, -1, self.net.units))
        alike = (direction(ends - said["states"][:, :-1]) * said["goals"][:, :-1]).sum(-1)
        terms = {
            "manager": losses.policy_gradient_loss(alike, self.maybe_normalize(advantages, mask), mask),
            "manager_value": losses.value_loss(said["manager"][:, :-1], targets, mask),
        }
        loss = terms["manager"] + h["value_cost"] * terms["manager_value"]
        paid = {"intrinsic": (intrinsic * mask).flatten(1).sum(-1)}
        return LossOutput(worker.total + self.reduce(loss, seen), worker.sums | terms | paid)


def with_goals(net: SharedTorsoNet, settings: FeudalSettings) -> FeudalNet:
    """Manager and worker on the torso of a network."""
    sizes = settings.goal_units, settings.embedding, settings.horizon
    return FeudalNet(net.torso, net.outputs, 0, net.action_reward_size, *sizes)


def direction(x: Tensor) -> Tensor:
    """x / |x| [..., d], and 0 for 0: dot products of directions are cosines."""
    return x / (x.square().sum(-1, keepdim=True) + SMALLEST).sqrt()


def _rows(values: Tensor) -> Tensor:
    return values[:, None, None]


make = Feudal.make
