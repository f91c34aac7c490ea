"""Action distributions: frozen objects whose methods take parameter tensors `[..., K]`, K = size + free_size.

The agent keeps the *stored action* (an index, one per slot, or a Gaussian's raw sample) and passes `to_env(stored)` to
the env. `log_prob` always takes the stored action, so acting and learning agree. Randomness is an argument: noise is
drawn once per rollout, and `sample` takes two or three tensor operations.

Only functions whose vectorized and scalar kernels agree bit for bit are used (exp, log, tanh and logsigmoid, but not
softplus or sigmoid), so a member's results do not depend on its slot in the cohort.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import logsigmoid
from typing_extensions import override

from pbtrl.agents.arrays import Array
from pbtrl.agents.settings import NetworkSettings
from pbtrl.errors import ConfigProblem

LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
SMALLEST_STD = 1e-6  # keeps the logarithm finite


@dataclass(frozen=True)
class PolicyTerms:
    """Terms of a distribution for the closed form of a loss, in numpy, whose operations cost a third of torch's.

    Attributes:
        log_prob: log-probabilities of stored actions, `[P, T, B]`.
        entropy: entropies in nats, `[P, T, B]`.
        gradient: function from by_log_prob and by_entropy `[P, T, B]` to the gradients by `head` and by `free`, None if
            there is none, of the sum of by_log_prob x log_prob + by_entropy x entropy.
    """

    log_prob: Array
    entropy: Array
    gradient: Callable[[Array, Array], tuple[Array, Array | None]]


@dataclass(frozen=True)
class Categorical:
    """One of `size` actions. `params` are logits; the stored action is an index from 0 (int64, `[...]`).

    Attributes:
        size: network outputs per state.
        start: the env's number for index 0.
        free_size: state-independent parameters per member.
    """

    size: int
    start: int = 0
    free_size: int = 0

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Trailing axes of one action's noise."""
        return (self.size,)

    @property
    def encoding_size(self) -> int:
        """Size of an action's one-hot encoding as a network input."""
        return self.size

    def initial_action(self, *shape: int) -> Tensor:
        """Placeholder for the last action before the first step, `[*shape]`."""
        return torch.zeros(shape, dtype=torch.int64)

    def join(self, head: Tensor, free: Tensor | None = None) -> Tensor:
        """Return `head`: `params` are the network's output."""
        return head

    def draw_noise(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """Draw Gumbel noise of `shape`, which ends in `noise_shape`, as -log E with E exponential."""
        return torch.empty(shape, device=generator.device).exponential_(generator=generator).log_().neg_()

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Sample with the Gumbel-max trick: argmax_i (logit_i + noise_i) is distributed as softmax(logits)."""
        return (params + noise).argmax(-1)

    def mode(self, params: Tensor) -> Tensor:
        """Most likely action."""
        return params.argmax(-1)

    def to_env(self, action: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Convert indices to the env's numbering; the bounds are ignored."""
        return action + self.start if self.start else action

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """Log-probability of stored actions, `[...]`."""
        return params.log_softmax(-1).gather(-1, action[..., None]).squeeze(-1)

    def entropy(self, params: Tensor) -> Tensor:
        """Entropy -sum_i p_i log p_i in nats, `[...]`."""
        log_probs = params.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    def terms(self, head: Array, free: Array | None, action: Array) -> PolicyTerms:
        """Log-probabilities of stored actions, entropies, and their gradients by what `join` takes."""
        chosen = np.arange(action.size), action.ravel()
        log_probs = head - head.max(-1, keepdims=True)
        probs = np.exp(log_probs)
        total = probs.sum(-1, keepdims=True)
        log_probs -= np.log(total)
        probs /= total
        entropy = -(probs * log_probs).sum(-1)

        def gradient(by_log_prob: Array, by_entropy: Array) -> tuple[Array, None]:
            grad = probs * -(by_log_prob[..., None] + by_entropy[..., None] * (log_probs + entropy[..., None]))
            grad.reshape(-1, self.size)[chosen] += by_log_prob.ravel()
            return grad, None

        return PolicyTerms(log_probs.reshape(-1, self.size)[chosen].reshape(action.shape), entropy, gradient)


@dataclass(frozen=True)
class MultiCategorical:
    """One Categorical per slot, independent of each other: the product of their probabilities.

    `params` are the logits of all slots, one slot after another. The stored action is the *position* among them of each
    slot's choice (int64, `[..., n]`), so that its encoding as a network input is the sum of its one-hot vectors.

    Attributes:
        sizes: number of choices of each slot, n numbers.
        free_size: state-independent parameters per member.
    """

    sizes: tuple[int, ...]
    free_size: int = 0

    @property
    def size(self) -> int:
        """Network outputs per state."""
        return sum(self.sizes)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Trailing axes of one action's noise."""
        return (self.size,)

    @property
    def encoding_size(self) -> int:
        """Size of an action's encoding as a network input, with a one for each slot."""
        return self.size

    @property
    def offsets(self) -> Tensor:
        """Positions `[n]` of the slots' first choices."""
        return torch.tensor([sum(self.sizes[:i]) for i in range(len(self.sizes))])

    @property
    def slots(self) -> tuple[Categorical, ...]:
        """Distribution of each slot."""
        return tuple(map(Categorical, self.sizes))

    def split(self, params: Tensor) -> tuple[Tensor, ...]:
        """Split `params` into those of each slot."""
        parts: tuple[Tensor, ...] = torch.split(params, list(self.sizes), -1)
        return parts

    def initial_action(self, *shape: int) -> Tensor:
        """Placeholder for the last action before the first step, `[*shape, n]`."""
        return self.offsets.expand(*shape, -1).clone()

    def join(self, head: Tensor, free: Tensor | None = None) -> Tensor:
        """Return `head`: `params` are the network's output."""
        return head

    def draw_noise(self, generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
        """Draw Gumbel noise of `shape`, which ends in `noise_shape`."""
        return self.slots[0].draw_noise(generator, shape)

    def sample(self, params: Tensor, noise: Tensor) -> Tensor:
        """Sample every slot with the Gumbel-max trick."""
        return self.mode(params + noise)

    def mode(self, params: Tensor) -> Tensor:
        """Most likely choice of every slot."""
        return torch.stack([logits.argmax(-1) for logits in self.split(params)], -1) + self.offsets

    def to_env(self, action: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Convert positions to choices from 0, `[..., n]`; the bounds are ignored."""
        return action - self.offsets

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """sum_i log p_i(a_i), `[...]`."""
        return self._sum(slot.log_prob(p, a) for slot, p, a in self._each(params, action))

    def entropy(self, params: Tensor) -> Tensor:
        """sum_i H(p_i) in nats, `[...]`."""
        return self._sum(slot.entropy(p) for slot, p in zip(self.slots, self.split(params), strict=True))

    def terms(self, head: Array, free: Array | None, action: Array) -> PolicyTerms:
        """Log-probabilities of stored actions, entropies, and their gradients by what `join` takes."""
        starts = np.cumsum((0, *self.sizes))
        each = [
            slot.terms(head[..., start : start + slot.size], free, action[..., i] - start)
            for i, (slot, start) in enumerate(zip(self.slots, starts, strict=False))
        ]
        return PolicyTerms(
            functools.reduce(np.add, (e.log_prob for e in each)),
            functools.reduce(np.add, (e.entropy for e in each)),
            lambda *by: (np.concatenate([e.gradient(*by)[0] for e in each], -1), None),
        )

    def _each(self, params: Tensor, action: Tensor) -> Iterator[tuple[Categorical, Tensor, Tensor]]:
        """Yield distribution, logits and choice of each slot."""
        return zip(self.slots, self.split(params), self.to_env(action).unbind(-1), strict=True)

    @staticmethod
    def _sum(terms: Iterable[Tensor]) -> Tensor:
        return functools.reduce(torch.add, terms)


@dataclass(frozen=True)
class Gaussian:
    """Diagonal Gaussian over A action dimensions; `to_env` clips to the Box.

    `params` are `[..., 2 * A]`: means, then log standard deviations. Log-probabilities are those of the unclipped
    sample, as if clipping were part of the env.

    Attributes:
        actions: A.
        start: initial standard deviation, if the network predicts it per state; None if it is a free parameter per
            action dimension.
        power: 1 if the network's softplus is the standard deviation, 2 if it is the variance.
    """

    actions: int
    start: float | None = None
    power: int = 1

    @property
    def size(self) -> int:
        """Network outputs per state: the means and, if `start` is set, as many for the standard deviations."""
        return self.actions if self.start is None else 2 * self.actions

    @property
    def free_size(self) -> int:
        """State-independent parameters per member: the log standard deviations, unless the network predicts them."""
        return self.actions if self.start is None else 0

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Trailing axes of one action's noise."""
        return (self.actions,)

    @property
    def encoding_size(self) -> int:
        """Size of an action as a network input."""
        return self.actions

    def initial_action(self, *shape: int) -> Tensor:
        """Placeholder for the last action before the first step, `[*shape, A]`."""
        return torch.zeros(*shape, self.actions)

    def join(self, head: Tensor, free: Tensor | None = None) -> Tensor:
        """Build `params` `[P, ..., 2A]` from means and free log standard deviations `[P, A]`.

        If `start` is set, the network predicts both: std ** power = softplus(x + c), with c such that std = `start`
        at x = 0.
        """
        if self.start is not None:
            mean, x = head[..., : self.actions], head[..., self.actions :]
            return torch.cat([mean, self._log_std(x)[0]], -1)
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
        """Clip to the Box's bounds `low` and `high` `[A]`."""
        return action.clamp(low, high)

    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """log N(action; mean, std), summed over A."""
        mean, log_std = params.chunk(2, -1)
        z = (action - mean) * (-log_std).exp()
        return -torch.addcmul(log_std, z, z, value=0.5).sum(-1) - self.actions * LOG_SQRT_2PI

    def entropy(self, params: Tensor) -> Tensor:
        """log std + 1/2 log(2 pi e), summed over A."""
        return params[..., self.actions :].sum(-1) + self.actions * (LOG_SQRT_2PI + 0.5)

    def terms(self, head: Array, free: Array | None, action: Array) -> PolicyTerms:
        """Log-probabilities of stored actions, entropies, and their gradients by what `join` takes."""
        mean = head[..., : self.actions]
        if free is None:
            log_std, slope = (x.numpy() for x in self._log_std(torch.from_numpy(head[..., self.actions :])))
        else:
            log_std = free[:, None, None]
        inverse = np.exp(-log_std)
        z = (action - mean) * inverse
        total = log_std.sum(-1) + self.actions * LOG_SQRT_2PI

        def gradient(by_log_prob: Array, by_entropy: Array) -> tuple[Array, Array | None]:
            scaled, both = z * by_log_prob[..., None], by_entropy - by_log_prob
            if free is None:
                return np.concatenate([scaled * inverse, (scaled * z + both[..., None]) * slope], -1), None
            return scaled * inverse, np.einsum("ptba,ptba->pa", scaled, z) + both.sum((1, 2))[:, None]

        log_prob = -0.5 * np.einsum("...a,...a->...", z, z) - total
        return PolicyTerms(log_prob, np.broadcast_to(total + 0.5 * self.actions, log_prob.shape), gradient)

    def _log_std(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log standard deviations that the network predicts as x, and their derivatives."""
        assert self.start is not None
        start, smallest = self.start**self.power, SMALLEST_STD**self.power
        x = x + (start + math.log(-math.expm1(-start)))  # the inverse of softplus
        softplus = -logsigmoid(-x)
        clamped = softplus.clamp_min(smallest)
        slope = logsigmoid(x).exp() / (self.power * clamped) * (softplus >= smallest)
        return clamped.log() / self.power, slope


@dataclass(frozen=True)
class SquashedGaussian(Gaussian):
    """tanh of a Gaussian, scaled to the Box by `to_env`. The stored action u is the value before tanh.

    The density is that of tanh(u) in (-1, 1). Its correction term has no parameters, so gradients and importance
    ratios are those of the Gaussian. `entropy` is that of the Gaussian *before* tanh, because the squashed entropy has
    no closed form; the latter is smaller by the mean of -sum log(1 - tanh(u)^2).
    """

    @override
    def to_env(self, action: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Low + (high - low) (tanh(u) + 1) / 2."""
        assert low is not None
        assert high is not None
        return torch.lerp(low, high, 0.5 * action.tanh() + 0.5)

    @override
    def log_prob(self, params: Tensor, action: Tensor) -> Tensor:
        """log N(u) - sum log(1 - tanh(u)^2)."""
        return super().log_prob(params, action) - self._log_slope(action)

    @override
    def terms(self, head: Array, free: Array | None, action: Array) -> PolicyTerms:
        """Like the Gaussian's, with the log-probability of the squashed action."""
        terms = super().terms(head, free, action)
        return replace(terms, log_prob=terms.log_prob - self._log_slope(torch.from_numpy(action)).numpy())

    def _log_slope(self, action: Tensor) -> Tensor:
        """Sum of log(1 - tanh(u)^2), where 1 - tanh(u)^2 = 4 sigmoid(2u) sigmoid(-2u)."""
        return (logsigmoid(2.0 * action) + logsigmoid(-2.0 * action) + math.log(4.0)).sum(-1)


Distribution = Categorical | MultiCategorical | Gaussian


def distribution(action_space: spaces.Space, settings: NetworkSettings) -> Distribution:  # type: ignore[type-arg]
    """Choose the distribution for an env's action space.

    Raises:
        ConfigProblem: no distribution supports this action space.
    """
    if isinstance(action_space, spaces.Discrete):
        return Categorical(int(action_space.n), int(action_space.start))
    if isinstance(action_space, spaces.MultiDiscrete) and not action_space.start.any():
        return MultiCategorical(tuple(int(n) for n in action_space.nvec.flat))
    if isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
        start = None if settings.std == "free" else math.exp(settings.log_std)
        power = 2 if settings.std == "softplus_variance" else 1
        if settings.actions == "clip":
            return Gaussian(action_space.shape[0], start, power)
        if _is_bounded(action_space):
            return SquashedGaussian(action_space.shape[0], start, power)
        text = f"squash needs finite bounds, but the action space is {action_space}; use clip"
        raise ConfigProblem(text, ("agent", "actions"))
    text = f"cannot act in {action_space}: only Discrete, MultiDiscrete from 0 and one-dimensional Box are supported"
    raise ConfigProblem(text, ("env", "id"))


def _is_bounded(space: spaces.Box) -> bool:
    """True if the bounds and their difference are finite in float32."""
    width = space.high.astype("float64") - space.low.astype("float64")
    return bool((width <= torch.finfo(torch.float32).max).all())
