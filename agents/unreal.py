"""UNREAL (Jaderberg et al. 2016, arXiv 1611.05397): A3C whose network learns three more tasks from a replay.

Pixel control: which action changes which part of the picture, as n-step Q-learning per cell. Reward prediction: from
three observations, whether the next reward is none, positive or negative. Value replay: the value once more. For each
env of an update one run of as many steps is drawn for pixel control and value replay, which share its pass through the
network, and three observations for reward prediction; so new and old experience count alike, as in the paper. A run
begins without a memory. Targets are cut where an episode ends: nothing passes from one to another.

The core is A3C's and not IMPALA's, as in the paper: V-trace would correct a lag that there is not. The replay belongs
to the envs under way (`State.running`): it would make snapshots ten times as big, and is full again after a few
blocks. settings.Unreal has every default.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (the name everybody knows)
from torch import Tensor

from pbtrl.agents import losses, replay
from pbtrl.agents.a3c import A3C
from pbtrl.agents.auxiliary import dueling, pixel_control_rewards, pixel_control_targets, reward_class
from pbtrl.agents.distributions import Categorical, Distribution
from pbtrl.agents.layers import COLUMNS, Layout, orthogonal
from pbtrl.agents.loss_inputs import LossInputs, LossOutput, with_prefix, without_prefix
from pbtrl.agents.networks import SharedTorsoNet, make_shared_torso_net
from pbtrl.agents.returns import n_step_returns, unroll_cuts
from pbtrl.agents.settings import UnrealSettings
from pbtrl.agents.types import Hyperparameters, Inputs, State, Tensors, Trajectory, Views

FRAMES = 3  # that a reward is predicted from
HIDDEN = 128  # units that predict it
CLASSES = 3  # none, positive, negative
MAPS = 32  # below the maps of pixel control


@dataclass(frozen=True)
class UnrealNet(SharedTorsoNet):
    """`Shared` with heads for the auxiliary tasks, of the sizes in the paper's appendix.

    Attributes:
        cells: (h, w) of pixel control's map, even and at least 4; None without pixel control.
    """

    cells: tuple[int, int] | None = None

    @property
    def layout(self) -> Layout:
        """`Shared`'s, two dense layers for reward prediction, a dense layer and a deconvolution for pixel control."""
        shapes: dict[str, tuple[int, ...]] = {
            "reward.weight": (FRAMES * self.torso.units, HIDDEN),
            "reward.bias": (1, HIDDEN),
            "class.weight": (HIDDEN, COLUMNS),
            "class.bias": (1, COLUMNS),
        }
        if self.cells:
            units = MAPS * math.prod(self._small)
            shapes |= {"pixel.weight": (self.width, units), "pixel.bias": (1, units)}
            shapes |= {"maps.weight": (MAPS, 1 + self.outputs, 4, 4), "maps.bias": (1 + self.outputs,)}
        return Layout({**super().layout.shapes, **shapes})

    @property
    def size(self) -> int:
        """How many numbers a member learns, padding not counted."""
        found = super().size + (FRAMES * self.torso.units + 1) * HIDDEN + (HIDDEN + 1) * CLASSES
        if self.cells:
            found += (self.width + 1) * MAPS * math.prod(self._small) + (16 * MAPS + 1) * (1 + self.outputs)
        return found

    @property
    def _small(self) -> tuple[int, int]:
        """What the deconvolution, 4x4 of stride 2, makes the cells of: 9x9 for the paper's 20x20."""
        assert self.cells
        return self.cells[0] // 2 - 1, self.cells[1] // 2 - 1

    def initial(self, generator: torch.Generator) -> Views:
        """Fresh parameters of one member: orthogonal, the last layers' gain is 1."""
        params, shapes = super().initial(generator), self.layout.shapes
        params["reward.weight"] = orthogonal(shapes["reward.weight"], generator)
        params["class.weight"][:, :CLASSES] = orthogonal((HIDDEN, CLASSES), generator, 1.0)
        if self.cells:
            params["pixel.weight"] = orthogonal(shapes["pixel.weight"], generator)
            params["maps.weight"] = orthogonal(shapes["maps.weight"], generator, 1.0)
        return params

    def rewards(self, params: Views, observations: Tensor, known: Tensor) -> Tensor:
        """Logits [P, B, 3] of the next reward's class, from [P, 3, B, ...]; what is not `known` [P, 3, B] is zero."""
        x = self.torso.features(params, observations.flatten(1, 2), learning=True)
        x = (x.view(*known.shape, -1) * known[..., None]).transpose(1, 2).flatten(2)
        x = F.relu(self._head(params, "reward", x))
        return self._head(params, "class", x)[..., :CLASSES]

    def pixel_control(self, params: Views, x: Tensor) -> Tensor:
        """Q [1, T+1, B, A, h, w] of every cell, from the trunk's [1, T+1, B, W]."""
        maps = F.relu(self._head(params, "pixel", x.flatten(1, 2))).view(-1, MAPS, *self._small)
        maps = F.conv_transpose2d(maps, params["maps.weight"][0], params["maps.bias"][0], stride=2)
        return dueling(maps[:, :1], maps[:, 1:]).view(*x.shape[:3], self.outputs, *maps.shape[2:])


@dataclass(frozen=True)
class Unreal(A3C):
    """The agent for one kind of env; see `agents.types.Agent` for the contract."""

    settings: UnrealSettings
    net: UnrealNet

    @classmethod
    def network(  # type: ignore[override]
        cls, settings: UnrealSettings, shape: tuple[int, ...], policy: Distribution, image: bool
    ) -> UnrealNet:
        """Policy, value and the other tasks on one trunk.

        Raises:
            ValueError: as `agents.networks.network`, or images with fewer than 4 cells along a side.
        """
        net = make_shared_torso_net(settings, shape, policy, image)
        controls = image and isinstance(policy, Categorical)
        return with_tasks(net, cells(shape, settings.cell_size) if controls else None)

    @property
    def unused(self) -> frozenset[str]:
        """Pixel control's, where there are no pixels or no actions to value."""
        return frozenset() if self.net.cells else frozenset({"pixel_control_cost", "pixel_control_gamma"})

    def extra_noise(self, generator: torch.Generator, time: int, envs: int) -> list[Tensor]:
        """Four numbers in [0, 1) per env, for what is drawn from the replay; those of a block's first step are used."""
        return [torch.rand(time, envs, 4, generator=generator)]

    def extra_loss_inputs(self, state: State, block: Trajectory, h: Hyperparameters) -> Tensors:
        """What is drawn from the replay, once it is long enough: `run.*` and `frames.*`; then the block goes into it.

        A run of T steps has T + 2 rows: before it comes the step whose action and reward the network is told, and after
        it the observation that it ends at.
        """
        time, envs = block.rewards.shape[1:]
        past, found = without_prefix("replay", state.running), {}
        if replay.length(past) >= time + 2:
            chance = self.split_extra_noise(block.noise[:, 0])
            run = replay.runs(past, chance[..., :2], time + 2)
            run |= {"paid": self.transform_rewards(state, run["rewards"])}
            run |= {"cuts": unroll_cuts(h["unroll_length"], time).T[..., None] | run["done"][:, 1:-1]}
            found = with_prefix("run", run) | with_prefix("frames", replay.rewarding(past, chance[..., 2:], FRAMES))
        past = replay.append(past, block, max(-(-self.settings.replay // envs), time + 2))
        state.running |= with_prefix("replay", past)
        return found

    def loss(self, seen: LossInputs, h: Hyperparameters) -> LossOutput:
        """A3C's, and the auxiliary tasks' by their costs (section 3.4 of the paper)."""
        a3c = super().loss(seen, h)
        if not seen.extra_loss_inputs:
            return a3c
        tasks = {"reward_prediction": self._reward_prediction(seen)} | self._replayed(seen, h)
        total = a3c.total
        for name, loss in tasks.items():
            total = total + self.reduce(h[f"{name}_cost"] * loss, seen)
        return LossOutput(total, a3c.sums | tasks)

    def _reward_prediction(self, seen: LossInputs) -> Tensor:
        """Cross-entropy [p] of the class of the last reward of three, summed over envs (section 3.2)."""
        frames = without_prefix("frames", seen.extra_loss_inputs)
        whole = ~(frames["is_reset_step"] | frames["done"])[:, :-1]  # no episode ended there
        known = torch.cat([whole[:, :1] & whole[:, 1:], whole[:, 1:], torch.ones_like(whole[:, :1])], 1)
        inputs = Inputs(frames["observations"], frames["actions"], frames["rewards"], frames["is_reset_step"])
        observations = self.preprocess(seen.state, inputs, seen.members).observations
        log_probs = self.net.rewards(seen.params, observations, known).log_softmax(-1)
        right = log_probs.gather(-1, reward_class(frames["rewards"][:, -1:]).movedim(1, -1))
        return -(right.squeeze(-1) * ~frames["is_reset_step"][:, -1]).sum(-1)

    def _replayed(self, seen: LossInputs, h: Hyperparameters) -> dict[str, Tensor]:
        """The losses [p] on replayed runs, each summed over transitions (sections 3.1 and 3.3)."""
        run = without_prefix("run", seen.extra_loss_inputs)
        inputs = Inputs(
            run["observations"][:, 1:], run["actions"][:, :-1], run["rewards"][:, :-1], run["is_reset_step"][:, :-1]
        )
        inputs = self.preprocess(seen.state, inputs, seen.members)
        nothing = run["rewards"].new_zeros(*inputs.first[:, 0].shape, self.net.rnn_state_size)
        x = self.net.trunk(seen.params, inputs, nothing, seen.starts)
        values, mask = self.net.value(seen.params, x), (~run["is_reset_step"][:, 1:-1]).to(x.dtype)
        goes_on, cuts = (~run["terminated"][:, 1:-1]).movedim(1, 0), run["cuts"].movedim(1, 0)
        returns = n_step_returns(
            h["gamma"][:, None] * goes_on, run["paid"][:, 1:-1].movedim(1, 0), values[:, 1:].movedim(1, 0), cuts
        )
        found = {"value_replay": losses.value_loss(values[:, :-1], returns.movedim(0, 1), mask)}
        if self.net.cells is None:
            return found
        rewards = self._changes(inputs.observations).movedim(1, 0)
        q = self.net.pixel_control(seen.params, x)
        targets = pixel_control_targets(
            h["pixel_control_gamma"][:, None] * goes_on, rewards, q[:, 1:].detach().movedim(1, 0), cuts
        )
        taken = run["actions"][:, 1:-1, :, None, None, None].expand(-1, -1, -1, 1, *self.net.cells)
        chosen = q[:, :-1].gather(3, taken).squeeze(3)
        found["pixel_control"] = losses.value_loss(chosen, targets.movedim(0, 1), mask[..., None, None])
        return found

    def _changes(self, observations: Tensor) -> Tensor:
        """Pixel control's rewards [p, T, B, h, w] of pictures [p, T+1, B, C, H, W], whose margins are left out."""
        assert self.net.cells
        size = self.settings.cell_size
        height, width = (n * size for n in self.net.cells)
        top, left = (observations.shape[-2] - height) // 2, (observations.shape[-1] - width) // 2
        inner = observations[..., top : top + height, left : left + width]
        return pixel_control_rewards(inner.movedim(2, 1), size).movedim(1, 2)


def cells(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Rows and columns of cells of `size` x `size` pixels in the middle of a picture (C, H, W), both even.

    Raises:
        ValueError: fewer than 4.
    """
    rows, columns = (pixels // (2 * size) * 2 for pixels in shape[1:])
    if min(rows, columns) < 4:
        raise ValueError(
            f"agent.cell_size={size} needs images of at least {4 * size} x {4 * size} pixels, "
            f"not {shape[1]} x {shape[2]}"
        )
    return rows, columns


def with_tasks(net: SharedTorsoNet, cells: tuple[int, int] | None) -> UnrealNet:
    """The network with the heads of the auxiliary tasks."""
    return UnrealNet(net.torso, net.outputs, net.core, net.action_reward_size, cells)


make = Unreal.make
