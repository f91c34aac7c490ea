"""Action distributions: frozen values whose functions take parameter tensors `[..., K]`.

An agent keeps the *stored action* (an index; a Gaussian's raw sample) and hands `to_env(stored)` to the
environment. `log_prob` is always of the stored action, so acting and learning agree. Randomness is an
argument: noise is drawn once per rollout, and `sample` is two or three tensor operations.

Only operations whose vector and scalar kernels agree bit for bit are used (exp, log, tanh, logsigmoid; not
softplus or sigmoid), so that a member's results do not depend on its slot.
"""

import math
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import logsigmoid

from pbtrl.agents.settings import NetworkSettings

LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
SMALLEST_STD = 1e-6  # keeps the logarithm finite


@dataclass(frozen=True)
class Categorical:
    """One of `size` actions. `params` are logits, the stored action is an index from 0 (int64, `[...]`).

    Attributes:
        size: what the network gives per state.
        start: the environment's number for index 0.
        free_size: parameters per member that depend on no state.
    """

    size: int
    start: int = 0
    free_size: int = 0

    @property
    def param_size(self) -> int:
        """K, the last axis of `params`."""
        return self.size + self.free_size

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Trailing axes of one action's noise."""
        return (self.size,)

    @property
    def encoding_size(self) -> int:
        """How many numbers tell a network of an action: one-hot."""
        return self.size

    def initial_action(self, *shape: int) -> Tensor:
        """Actions before the first one, `[*shape]`."""
        return torch.zeros(shape, dtype=torch.int64)

    def join(self, head: Tensor, free: Tensor | None = None) -> Tensor:
        """`params` are the network's output."""
        return head

    def draw_noise(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """Draw Gumbel noise, -log E with E exponential, of `shape`, which ends in `noise_shape`."""
        return torch.empty(shape, device=generator.device).exponential_(generator=generator).log_().neg_()

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """argmax_i (logit_i + noise_i) is distributed as softmax(logits)."""
        return (params + noise).argmax(-1)

    def mode(self, params: Tensor) -> Tensor:
        """The likeliest action."""
        return params.argmax(-1)

    def to_env(self, action: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Number the actions as the environment does; bounds play no part."""
        return action + self.start if self.start else action

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log probability of stored actions, `[...]`."""
        return params.log_softmax(-1).gather(-1, action[..., None]).squeeze(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """-sum_i p_i log p_i, `[...]`."""
        log_probs = params.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)


@dataclass(frozen=True)
class Gaussian:
    """Independent Gaussians over A numbers; `to_env` clips to the Box.

    `params` are `[..., 2 * size]`: means, then log standard deviations. The log-probability is the unclipped
    sample's, as if clipping were part of the environment.

    Attributes:
        actions: A.
        start: standard deviation that a fresh policy has in every state, if the network says what it is; None if it
            is a free parameter per action.
        power: of the standard deviation, which the network's softplus is: 1, or 2 for the variance.
    """

    actions: int
    start: float | None = None
    power: int = 1

    @property
    def size(self) -> int:
        """What the network gives per state: the means, and what the standard deviations are made of."""
        return self.actions if self.start is None else 2 * self.actions

    @property
    def free_size(self) -> int:
        """Parameters per member that depend on no state: the log standard deviations."""
        return self.actions if self.start is None else 0

    @property
    def param_size(self) -> int:
        """K, the last axis of `params`."""
        return 2 * self.actions

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Trailing axes of one action's noise."""
        return (self.actions,)

    @property
    def encoding_size(self) -> int:
        """How many numbers tell a network of an action."""
        return self.actions

    def initial_action(self, *shape: int) -> Tensor:
        """Actions before the first one, `[*shape, A]`."""
        return torch.zeros(*shape, self.actions)

    def join(self, head: Tensor, free: Tensor | None = None) -> Tensor:
        """`params` `[P, ..., 2A]` from means and log standard deviations `[P, A]`, or from the network alone.

        There, std ** power = softplus(x + c), where c makes it `start` at x = 0.
        """
        if self.start is not None:
            mean, x = head[..., : self.actions], head[..., self.actions :]
            c = math.log(math.expm1(self.start**self.power))
            log_std = (-logsigmoid(-x - c)).clamp_min(SMALLEST_STD**self.power).log() / self.power
            return torch.cat([mean, log_std], -1)
        assert free is not None
        log_std = free.reshape(len(free), *(1,) * (head.ndim - 2), self.actions)
        return torch.cat([head, log_std.expand_as(head)], -1)

    def draw_noise(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """Draw standard normal noise of `shape`, which ends in `noise_shape`."""
        return torch.randn(shape, generator=generator, device=generator.device)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Mean + std * noise."""
        return torch.addcmul(params[..., : self.actions], params[..., self.actions :].exp(), noise)

    def mode(self, params: Tensor) -> Tensor:
        """The mean."""
        return params[..., : self.actions]

    def to_env(self, action: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Clip to the Box's bounds `[A]`."""
        return action.clamp(low, high)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """log N(action; mean, std), summed over A."""
        mean, log_std = params[..., : self.actions], params[..., self.actions :]
        z = (action - mean) * (-log_std).exp()
        return -(0.5 * z.square() + log_std + LOG_SQRT_2PI).sum(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """log std + 1/2 log(2 pi e), summed over A."""
        return (params[..., self.actions :] + (LOG_SQRT_2PI + 0.5)).sum(-1)


@dataclass(frozen=True)
class SquashedGaussian(Gaussian):
    """tanh of a Gaussian; `to_env` stretches it over the Box. The stored action u is the value before tanh.

    The density is that of tanh(u) in (-1, 1). Its correction holds no parameter, so gradients and importance
    ratios are the Gaussian's. `entropy` is the Gaussian's *before* tanh: the squashed entropy has no closed
    form; it is smaller, by the mean of -sum log(1 - tanh(u)^2).
    """

    def to_env(self, action: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Low + (high - low) (tanh(u) + 1) / 2."""
        assert low is not None
        assert high is not None
        return torch.lerp(low, high, 0.5 * action.tanh() + 0.5)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """log N(u) - sum log(1 - tanh(u)^2), where 1 - tanh(u)^2 = 4 sigmoid(2u) sigmoid(-2u)."""
        log_slope = logsigmoid(2.0 * action) + logsigmoid(-2.0 * action) + math.log(4.0)
        return super().log_prob(params, action) - log_slope.sum(-1)


Distribution = Categorical | Gaussian


def distribution(action_space: spaces.Space, settings: NetworkSettings) -> Distribution:  # type: ignore[type-arg]
    """Choose the distribution over one environment's actions.

    Raises:
        ValueError: no distribution covers this action space.
    """
    if isinstance(action_space, spaces.Discrete):
        return Categorical(int(action_space.n), int(action_space.start))
    if isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
        start = None if settings.std == "free" else math.exp(settings.log_std)
        power = 2 if settings.std == "softplus_variance" else 1
        if settings.actions == "clip":
            return Gaussian(action_space.shape[0], start, power)
        if _is_bounded(action_space):
            return SquashedGaussian(action_space.shape[0], start, power)
        raise ValueError(f"agent.actions=squash needs finite bounds, which {action_space} lacks: use clip")
    raise ValueError(f"cannot act in {action_space}: only Discrete and one-dimensional Box are supported")


def _is_bounded(space: spaces.Box) -> bool:
    """Whether the bounds are finite, and so is their distance in float32."""
    width = space.high.astype("float64") - space.low.astype("float64")
    return bool((width <= torch.finfo(torch.float32).max).all())
