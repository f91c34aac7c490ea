"""UNREAL (Jaderberg et al. 2016, arXiv 1611.05397): A3C with three auxiliary tasks learned from a replay.

- Pixel control: n-step Q-learning of the change of the image in each cell.
- Reward prediction: classify the next reward as zero, positive or negative, given three observations.
- Value replay: regression of the value on replayed steps.

For each env of an update, the agent draws one sequence of as many steps for pixel control and value replay, which share
its forward pass, and three observations for reward prediction. New and old experience thus have equal weight, as in the
paper. A sequence starts with a zero recurrent state. Targets are cut at the end of an episode.

The base is A3C rather than IMPALA, as in the paper: there is no policy lag for V-trace to correct. The replay is part
of `State.running` and not of snapshots, which it would make ten times larger; it fills up again within a few blocks.
The defaults are in `settings.UnrealSettings`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 (conventional alias)
from torch import Tensor
from typing_extensions import override

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
from pbtrl.errors import ConfigProblem

FRAMES = 3  # observations that a reward is predicted from
HIDDEN = 128  # hidden units of reward prediction
CLASSES = 3  # zero, positive, negative
MAPS = 32  # feature maps below the deconvolution of pixel control


@dataclass(frozen=True)
class UnrealNet(SharedTorsoNet):
    """`SharedTorsoNet` with heads for the auxiliary tasks, with the sizes of the paper's appendix.

    Attributes:
        cells: (h, w) of pixel control's map, both even and at least 4; None without pixel control.
    """

    cells: tuple[int, int] | None = None

    @property
    @override
    def layout(self) -> Layout:
        """The base network, two dense layers for reward prediction, a dense layer and a deconvolution for pixels."""
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
    @override
    def size(self) -> int:
        size = super().size + (FRAMES * self.torso.units + 1) * HIDDEN + (HIDDEN + 1) * CLASSES
        if self.cells:
            size += (self.units + 1) * MAPS * math.prod(self._small) + (16 * MAPS + 1) * (1 + self.outputs)
        return size

    @property
    def _small(self) -> tuple[int, int]:
        """Input size of the 4x4 deconvolution with stride 2 whose output are the cells: 9x9 for the paper's 20x20."""
        assert self.cells
        return self.cells[0] // 2 - 1, self.cells[1] // 2 - 1

    @override
    def initial(self, generator: torch.Generator) -> Views:
        """Initial parameters of one member: orthogonal, with gain 1 for the last layers."""
        params, shapes = super().initial(generator), self.layout.shapes
        params["reward.weight"] = orthogonal(shapes["reward.weight"], generator)
        params["class.weight"][:, :CLASSES] = orthogonal((HIDDEN, CLASSES), generator, 1.0)
        if self.cells:
            units = shapes["pixel.weight"][1]
            params["pixel.weight"][: self.units] = orthogonal((self.units, units), generator)
            params["maps.weight"] = orthogonal(shapes["maps.weight"], generator, 1.0)
        return params

    def rewards(self, params: Views, observations: Tensor, known: Tensor) -> Tensor:
        """Logits [P, B, 3] of the next reward's class, from observations [P, 3, B, ...], zero if not `known`."""
        x = self.torso.features(params, observations.flatten(1, 2), learning=True)
        x = (x.view(*known.shape, -1) * known[..., None]).transpose(1, 2).flatten(2)
        x = F.relu(self._head(params, "reward", x))
        return self._head(params, "class", x)[..., :CLASSES]

    def pixel_control(self, params: Views, x: Tensor) -> Tensor:
        """Q-values [1, T+1, B, A, h, w] of every cell, from the trunk's output [1, T+1, B, W]."""
        maps = F.relu(self._head(params, "pixel", x.flatten(1, 2))).view(-1, MAPS, *self._small)
        maps = F.conv_transpose2d(maps, params["maps.weight"][0], params["maps.bias"][0], stride=2)
        return dueling(maps[:, :1], maps[:, 1:]).view(*x.shape[:3], self.outputs, *maps.shape[2:])


@dataclass(frozen=True)
class Unreal(A3C):
    """The UNREAL agent; see `agents.types.Agent` for the interface."""

    settings: UnrealSettings
    net: UnrealNet

    @classmethod
    @override
    def network(  # type: ignore[override]
        cls, settings: UnrealSettings, shape: tuple[int, ...], policy: Distribution, image: bool
    ) -> UnrealNet:
        """Create policy, value and auxiliary heads on one trunk.

        Raises:
            ConfigProblem: as in `agents.networks.make_network`; also if an image has fewer than 4 cells along a side.
        """
        net = make_shared_torso_net(settings, shape, policy, image)
        pixel_control = image and isinstance(policy, Categorical)
        return with_tasks(net, cells(shape, settings.cell_size) if pixel_control else None)

    @property
    @override
    def unused(self) -> frozenset[str]:
        """Hyperparameters of pixel control, if observations are not images or actions not one Discrete."""
        return frozenset() if self.net.cells else frozenset({"pixel_control_cost", "pixel_control_gamma"})

    @override
    def extra_noise(self, generator: torch.Generator, time: int, envs: int) -> list[Tensor]:
        """Draw four numbers in [0, 1) per env for sampling the replay; only those of a block's first step are used."""
        return [torch.rand(time, envs, 4, generator=generator)]

    @override
    def extra_loss_inputs(self, state: State, block: Trajectory, h: Hyperparameters) -> Tensors:
        """Draw `run.*` and `frames.*` from the replay once it is long enough; then append the block to it.

        A run of T steps has T + 2 rows. The extra ones are the step before it, for the last action and reward, and the
        observation after it.
        """
        time, envs = block.rewards.shape[1:]
        past, samples = without_prefix("replay", state.running), {}
        if replay.length(past) >= time + 2:
            noise = self.split_extra_noise(block.noise[:, 0])
            run = replay.runs(past, noise[..., :2], time + 2)
            run |= {"transformed_rewards": self.transform_rewards(state, run["rewards"])}
            run |= {"cuts": unroll_cuts(h["unroll_length"], time).T[..., None] | run["done"][:, 1:-1]}
            samples = with_prefix("run", run) | with_prefix("frames", replay.rewarding(past, noise[..., 2:], FRAMES))
        past = replay.append(past, block, max(-(-self.settings.replay // envs), time + 2))
        state.running |= with_prefix("replay", past)
        return samples

    @override
    def loss(self, batch: LossInputs, h: Hyperparameters) -> LossOutput:
        """Add the auxiliary losses, weighted by their costs, to A3C's loss (section 3.4 of the paper)."""
        a3c = super().loss(batch, h)
        if not batch.extra_loss_inputs:
            return a3c
        tasks = {"reward_prediction": self._reward_prediction(batch)} | self._replayed(batch, h)
        total = a3c.total
        for name, loss in tasks.items():
            total = total + self.reduce(h[f"{name}_cost"] * loss, batch)
        tasks["reward_prediction"] = tasks["reward_prediction"] * batch.mask.shape[1]  # one per env, not per transition
        return LossOutput(total, a3c.sums | tasks)

    def _reward_prediction(self, batch: LossInputs) -> Tensor:
        """Cross-entropy [p] of the class of the last of three rewards, summed over envs (section 3.2)."""
        frames = without_prefix("frames", batch.extra_loss_inputs)
        connected = ~(frames["is_reset_step"] | frames["done"])[:, :-1]  # the next frame is of the same episode
        known = torch.cat([connected[:, :1] & connected[:, 1:], connected[:, 1:], torch.ones_like(connected[:, :1])], 1)
        inputs = Inputs(frames["observations"], frames["actions"], frames["rewards"], frames["is_reset_step"])
        observations = self.preprocess(batch.state, inputs, batch.members).observations
        log_probs = self.net.rewards(batch.params, observations, known).log_softmax(-1)
        log_likelihood = log_probs.gather(-1, reward_class(frames["rewards"][:, -1:]).movedim(1, -1))
        return -(log_likelihood.squeeze(-1) * ~frames["is_reset_step"][:, -1]).sum(-1)

    def _replayed(self, batch: LossInputs, h: Hyperparameters) -> dict[str, Tensor]:
        """Losses [p] of value replay and pixel control, summed over transitions (sections 3.1 and 3.3)."""
        run = without_prefix("run", batch.extra_loss_inputs)
        inputs = Inputs(
            run["observations"][:, 1:], run["actions"][:, :-1], run["rewards"][:, :-1], run["is_reset_step"][:, :-1]
        )
        inputs = self.preprocess(batch.state, inputs, batch.members)
        rnn_state = run["rewards"].new_zeros(*inputs.first[:, 0].shape, self.net.rnn_state_size)
        x = self.net.trunk(batch.params, inputs, rnn_state, batch.starts)
        values, mask = self.net.value(batch.params, x), (~run["is_reset_step"][:, 1:-1]).to(x.dtype)
        goes_on, cuts = (~run["terminated"][:, 1:-1]).movedim(1, 0), run["cuts"].movedim(1, 0)
        rewards = run["transformed_rewards"][:, 1:-1].movedim(1, 0)
        returns = n_step_returns(h["gamma"][:, None] * goes_on, rewards, values[:, 1:].movedim(1, 0), cuts)
        terms = {"value_replay": losses.value_loss(values[:, :-1], returns.movedim(0, 1), mask)}
        if self.net.cells is None:
            return terms
        changes = self._changes(inputs.observations).movedim(1, 0)
        q = self.net.pixel_control(batch.params, x)
        targets = pixel_control_targets(
            h["pixel_control_gamma"][:, None] * goes_on, changes, q[:, 1:].detach().movedim(1, 0), cuts
        )
        taken = run["actions"][:, 1:-1, :, None, None, None].expand(-1, -1, -1, 1, *self.net.cells)
        chosen = q[:, :-1].gather(3, taken).squeeze(3)
        terms["pixel_control"] = losses.value_loss(
            chosen, targets.movedim(0, 1), mask[..., None, None].expand_as(chosen)
        )
        return terms

    def _changes(self, observations: Tensor) -> Tensor:
        """Rewards [p, T, B, h, w] of pixel control from images [p, T+1, B, C, H, W], cropped to whole cells."""
        assert self.net.cells
        size = self.settings.cell_size
        height, width = (n * size for n in self.net.cells)
        top, left = (observations.shape[-2] - height) // 2, (observations.shape[-1] - width) // 2
        inner = observations[..., top : top + height, left : left + width]
        return pixel_control_rewards(inner.movedim(2, 1), size).movedim(1, 2)


def cells(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Rows and columns, both even, of cells with `size` x `size` pixels in the center of an image (C, H, W).

    Raises:
        ConfigProblem: there are fewer than 4 rows or columns.
    """
    rows, columns = (pixels // (2 * size) * 2 for pixels in shape[1:])
    if min(rows, columns) < 4:
        least = 4 * size
        text = f"{size} needs images of at least {least} x {least} pixels, not {shape[1]} x {shape[2]}"
        raise ConfigProblem(text, ("agent", "cell_size"))
    return rows, columns


def with_tasks(net: SharedTorsoNet, cells: tuple[int, int] | None) -> UnrealNet:
    """Add the heads of the auxiliary tasks to a network."""
    return UnrealNet(net.torso, net.outputs, net.core, net.action_reward_size, cells)


make = Unreal.make
