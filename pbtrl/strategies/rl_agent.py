"""LSTM agent that proposes hyperparameters one after another (Wu, Chen & Liu 2020), and its PPO update.

Shapes: B episodes, n hyperparameters. An episode is one proposal: at step t the agent draws the t-th hyperparameter
from a Gaussian. The reward comes with the last step and is not discounted, so all steps have the same return.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pbtrl.strategies.results import standard_deviation
from pbtrl.strategies.rl_rules import AgentRules

if TYPE_CHECKING:
    import torch

LAYERS, UNITS = 3, 35
MAX_SD = 1.0  # without a limit, huge deviations put all draws beyond the ends, which are traps
INPUT_GAIN = 2.0  # weights of the embedding: a draw must move the distributions after it, or they ignore it


@dataclass(frozen=True)
class DrawnEpisodes:
    """Episodes as the agent that drew them saw them.

    Attributes:
        inputs: sample, mean and standard deviation of the step before; zeros at the first step [B, n, 3].
        actions: samples, not clipped to [-1, 1] [B, n].
        log_probs: log-probabilities of the samples [B, n].
    """

    inputs: torch.Tensor
    actions: torch.Tensor
    log_probs: torch.Tensor


def gaussian_log_prob(actions: torch.Tensor, mean: torch.Tensor, sd: torch.Tensor) -> torch.Tensor:
    """Return log N(a; mean, sd) per element: -(a - mean)^2 / (2 sd^2) - log sd - log(2 pi) / 2."""
    return -(((actions - mean) / sd) ** 2) / 2 - sd.log() - math.log(2 * math.pi) / 2


def gaussian_kl(
    mean_0: torch.Tensor, sd_0: torch.Tensor, mean: torch.Tensor, sd: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """Return KL(N_0 || N) per element: log(sd / sd_0) + (sd_0^2 + (mean_0 - mean)^2) / (2 sd^2) - 1 / 2."""
    return (sd / sd_0).log() + (sd_0**2 + (mean_0 - mean) ** 2) / (2 * sd**2) - 0.5


def gaussian_entropy(sd: torch.Tensor) -> torch.Tensor:
    """Return the entropy per element, in nats: log sd + log(2 pi e) / 2."""
    return sd.log() + (math.log(2 * math.pi) + 1) / 2


def standardize(rewards: np.ndarray) -> np.ndarray:
    """Return (rewards - mean) / sd; zeros if all rewards are equal."""
    sd = standard_deviation(rewards)
    return (rewards - rewards.mean()) / sd if sd > 0 else np.zeros_like(rewards)


def ppo_loss(
    log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor, clip: float
) -> torch.Tensor:  # fmt: skip
    """Return PPO's clipped loss (Schulman et al. 2017, equation 7): -mean min(r A, clip(r, 1 - c, 1 + c) A).

    r is the ratio of the probabilities of one step [B, n]; all steps of an episode have its advantage [B].
    """
    import torch

    ratio, a = (log_probs - old_log_probs).exp(), advantages[:, None]
    return -torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a).mean()


class SearchAgent:
    """Gaussian policy over n hyperparameters, each scaled to [-1, 1].

    Args:
        n: number of hyperparameters.
        rules: settings of the network's training.
        rng: draws the initial weights.
        sequential: whether the distribution of a hyperparameter depends on those drawn before it. Otherwise one step of
            the network gives all distributions.
    """

    def __init__(self, n: int, rules: AgentRules, rng: np.random.Generator, *, sequential: bool = True) -> None:
        import torch

        self.n, self.rules, self.sequential = n, rules, sequential
        self._net = _make_network(2 if sequential else 2 * n, rng)
        self._parameters = list(self._net.parameters())
        self._adam = torch.optim.Adam(self._parameters, lr=rules.learning_rate)

    def distribution(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation at every step of inputs [B, n, 3]; two tensors [B, n], no gradient."""
        import torch

        with torch.no_grad():
            return self._distribution(inputs)

    def draw(self, noise: np.ndarray) -> DrawnEpisodes:
        """Draw episodes by standard normal `noise` [B, n]."""
        return self._roll(noise, lambda mean, sd, eps: mean + sd * eps)

    def follow(self, actions: np.ndarray) -> DrawnEpisodes:
        """Return the episodes in which these actions [B, n] were drawn."""
        return self._roll(actions, lambda mean, sd, action: action)

    def _distribution(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the distributions at every step, with their gradient."""
        out, _ = self._net["lstm"](self._net["embedding"](inputs if self.sequential else inputs[:, :1]))
        return self._gaussian(out)

    def _gaussian(self, out: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return means and standard deviations [B, n] of the LSTM's outputs at all steps [B, steps, units]."""
        mean, raw = self._net["head"](out).reshape(len(out), -1, 2).unbind(-1)
        return mean.tanh(), self.rules.min_sd + (MAX_SD - self.rules.min_sd) * raw.sigmoid()

    def _roll(self, given: np.ndarray, choose: Callable[..., torch.Tensor]) -> DrawnEpisodes:
        """Play episodes step by step; `choose` makes the actions of mean, sd and the column of `given`."""
        import torch

        columns = torch.tensor(given, dtype=torch.float32)
        if not self.sequential:
            inputs = torch.zeros(*columns.shape, 3)
            mean, sd = self.distribution(inputs)
            actions = choose(mean.expand_as(columns), sd, columns)
            return DrawnEpisodes(inputs, actions, gaussian_log_prob(actions, mean, sd))
        x, state = torch.zeros(len(columns), 3), None
        steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        with torch.no_grad():
            for column in columns.unbind(1):
                out, state = self._net["lstm"](self._net["embedding"](x[:, None]), state)
                mean, sd = (y[:, 0] for y in self._gaussian(out))
                action = choose(mean, sd, column)
                steps.append((x, action, gaussian_log_prob(action, mean, sd)))
                x = torch.stack([action, mean, sd], -1)
        return DrawnEpisodes(*(torch.stack(column, 1) for column in zip(*steps, strict=True)))

    def update(self, episodes: DrawnEpisodes, rewards: np.ndarray, entropy_cost: float) -> None:
        """Improve the policy by PPO; the baseline is the mean reward of the batch.

        Epochs end early once the policy has moved by `target_kl`: without this limit, a policy that is nearly
        deterministic leaves a good point again.
        """
        import torch

        advantages = torch.tensor(standardize(rewards), dtype=torch.float32)
        start = self.distribution(episodes.inputs)
        for _ in range(self.rules.epochs):
            mean, sd = self._distribution(episodes.inputs)
            if float(gaussian_kl(*start, mean, sd).detach().mean()) > self.rules.target_kl:
                break
            log_probs = gaussian_log_prob(episodes.actions, mean, sd)
            loss = ppo_loss(log_probs, episodes.log_probs, advantages, self.rules.clip)
            self._descend(loss - entropy_cost * gaussian_entropy(sd).mean())

    def clone(self, actions: np.ndarray, steps: int) -> None:
        """Fit the policy to `actions` [B, n] by maximum likelihood (behavior cloning)."""
        episodes = self.follow(actions)
        for step in range(steps):
            if step % 10 == 0:  # the inputs contain the policy's own mean and standard deviation
                episodes = self.follow(actions)
            log_probs = gaussian_log_prob(episodes.actions, *self._distribution(episodes.inputs))
            self._descend(-log_probs.mean())

    def _descend(self, loss: torch.Tensor) -> None:
        import torch

        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._parameters, self.rules.max_grad_norm)
        self._adam.step()


def _make_network(outputs: int, rng: np.random.Generator) -> Any:
    """Make the network. Each LSTM matrix is orthogonal per gate, and forget gates are open.

    With torch's own small weights three layers damp the inputs so much that all proposals get the same distributions.
    """
    import torch
    from torch import nn

    net = nn.ModuleDict(
        {
            "embedding": nn.Linear(3, UNITS, device="meta"),
            "lstm": nn.LSTM(UNITS, UNITS, LAYERS, batch_first=True, device="meta"),
            "head": nn.Linear(UNITS, outputs, device="meta"),
        }
    ).to_empty(device="cpu")  # torch's own initial weights would come from the global generator
    with torch.no_grad():
        for name, weights in net.named_parameters():
            weights.copy_(torch.from_numpy(_initial(name, tuple(weights.shape), rng)))
    return net


def _initial(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw the initial weights of one parameter of the network."""
    if name.startswith("lstm.weight"):
        return np.concatenate([np.linalg.qr(rng.standard_normal((UNITS, UNITS)))[0] for _ in range(4)])
    if name.startswith("lstm.bias"):
        gates = np.zeros((4, UNITS))
        gates[1] = name.startswith("lstm.bias_ih")  # input, forget, cell and output gate
        return gates.ravel()
    bound = 1 / math.sqrt(3 if name.startswith("embedding") else UNITS)
    return rng.uniform(-bound, bound, shape) * (INPUT_GAIN if name == "embedding.weight" else 1.0)
