"""V-MPO (Song et al. 2019, arXiv 1909.12238): on-policy maximum a posteriori policy optimization.

The target network acts; the online network is copied into it after at least `target_period` gradient steps, at the end
of a block. The policy imitates the better half of a block, weighted by exp(A / eta), in `epochs` times `minibatches`
gradient steps. A constraint on KL(target || online) over all of the block limits its change, with Lagrange multipliers
that are learned together with the weights, at a learning rate of their own. For Gaussian policies, mean and covariance
have separate constraints. The value head uses PopArt (van Hasselt et al. 2016, arXiv 1602.07714), so its learning does
not depend on the scale of returns. The defaults are in `settings.VMPOSettings`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.agents import losses, normalize
from pbtrl.agents.actor_critic import ActorCritic
from pbtrl.agents.distributions import Gaussian, MultiCategorical
from pbtrl.agents.loss_inputs import LossInputs, LossOutput, with_prefix, without_prefix
from pbtrl.agents.settings import VMPOSettings
from pbtrl.agents.types import Hyperparameters, State, Trajectory, UpdateResult
from pbtrl.agents.updates import Batch, Group

SMALLEST = 1e-8  # lower bound of eta and alpha


@dataclass(frozen=True)
class VMPO(ActorCritic):
    """The V-MPO agent; see `agents.types.Agent` for the interface."""

    settings: VMPOSettings

    @property
    @override
    def needs_full_batch(self) -> bool:
        """True, because the weights of the better half sum to 1 over the whole minibatch."""
        return True

    @property
    @override
    def extra_parameters(self) -> dict[str, tuple[int, float]]:
        """The base's parameters, the temperature and the Lagrange multipliers."""
        temperature = {"temperature": (1, self.settings.temperature)}
        return super().extra_parameters | temperature | dict.fromkeys(self._constraints, (1, self.settings.alpha))

    @property
    def _constraints(self) -> dict[str, str]:
        """Multiplier -> hyperparameter that bounds its KL divergence."""
        if isinstance(self.policy, Gaussian):
            return {"alpha_mean": "eps_mean", "alpha_covariance": "eps_covariance"}
        return {"alpha": "eps_kl"}

    @property
    @override
    def unused(self) -> frozenset[str]:
        """KL bounds of the other kind of policy."""
        return frozenset({"eps_kl", "eps_mean", "eps_covariance"}) - set(self._constraints.values())

    @property
    @override
    def acting_tensors(self) -> tuple[str, ...]:
        """As in the base, with the target network in place of the online one."""
        return ("target", *super().acting_tensors[1:])

    @override
    def init(self, generators: Sequence[torch.Generator]) -> State:
        """Create the initial state, with one member per generator; the target network equals the online one."""
        state = super().init(generators)
        target = state.tensors["params"].clone()
        state.tensors |= {"target": target, "updates": torch.zeros(len(target), dtype=torch.int64)}
        state.tensors |= with_prefix("popart", normalize.init_popart(len(target)))
        acting = tuple(self.layout.views(target[group]) for group in self._groups(len(target)))
        return replace(state, acting=acting)

    @override
    def learn(self, state: State, block: Trajectory, hyperparameters: Hyperparameters) -> UpdateResult:
        """Learn from a block; then update the target network if it is due."""
        result, tensors = super().learn(state, block, hyperparameters), state.tensors
        age = tensors["updates"] + result.updates - result.skipped
        due = age >= hyperparameters["target_period"]
        tensors["target"][due] = tensors["params"][due]
        tensors["updates"] = torch.where(due, 0, age)
        return result

    @override
    def minibatches(
        self, state: State, batch: Batch, h: Hyperparameters
    ) -> Callable[[int, Tensor], Iterable[tuple[Tensor, Iterable[Group]]]]:
        """Compute what all gradient steps share: value targets, advantages, and which are in the block's better half.

        PopArt's statistics move first, as in its paper (algorithm 1), unless a target is not finite.
        """
        popart = without_prefix("popart", state.tensors)
        scale, shift = (popart[name].to(batch.mask.dtype)[:, None, None] for name in ("scale", "shift"))
        values = scale * self.values(state, batch) + shift
        targets, advantages = batch.returns.gae(values)
        new = normalize.popart_update(popart, targets, batch.mask, rate=h["popart_rate"])
        finite = torch.stack(list(new.values())).isfinite().all(0)
        new = {name: torch.where(finite, value, popart[name]) for name, value in new.items()}
        normalize.popart_preserve(*self.net.value_head(self.layout.views(state.tensors["params"])), popart, new)
        state.tensors |= with_prefix("popart", new)
        scale, shift = (new[name].to(batch.mask.dtype)[:, None, None] for name in ("scale", "shift"))
        better = losses.better_half(advantages.flatten(1), batch.mask.flatten(1).bool()).view_as(batch.mask)
        estimates = {"targets": (targets - shift) / scale, "advantages": advantages, "better": better}
        return super().minibatches(state, replace(batch, extra_loss_inputs=batch.extra_loss_inputs | estimates), h)

    @override
    def loss(self, batch: LossInputs, h: Hyperparameters) -> LossOutput:
        """Compute L_V + L_pi + L_eta + L_alpha, all means (section 4), and an entropy term, which the paper lacks."""
        mask, flat, fixed = batch.mask, batch.mask.flatten(1), batch.extra_loss_inputs
        temperature = batch.params["temperature"][:, 0]
        psi, temperature_loss = losses.weights_and_temperature(
            fixed["advantages"].flatten(1), temperature, h["eps_temperature"], fixed["better"].flatten(1)
        )
        sums = {
            "policy": losses.policy_gradient_loss(batch.log_probs.flatten(1), psi * batch.live[:, None], flat),
            "value": losses.value_loss(batch.values[:, :-1], fixed["targets"], mask),
            "entropy": losses.entropy_bonus(self.policy.entropy(batch.policy), mask),
            "temperature": temperature * batch.live,
        }
        summed = sums["policy"] + h["value_cost"] * sums["value"] - h["entropy_cost"] * sums["entropy"]
        total = summed / batch.live + temperature_loss
        for (name, bound), kl in zip(self._constraints.items(), self._divergences(batch), strict=True):
            alpha = batch.params[name][:, 0]
            total = total + losses.lagrange_loss(alpha, h[bound], kl, mask)
            sums |= {name: alpha * batch.live, name.replace("alpha", "kl"): (kl * mask).flatten(1).sum(-1)}
        return LossOutput(total, sums)

    @property
    def _first_multiplier(self) -> int:
        """Column of the temperature; the Lagrange multipliers come after it."""
        return self.layout.start("temperature")

    @override
    def clip(self, grads: Tensor, h: Hyperparameters) -> Tensor:
        """Clip the gradients of the weights only: those of the multipliers have another scale."""
        cut = self._first_multiplier
        norms = super().clip(grads[:, :cut], h)
        return torch.where(grads[:, cut:].isfinite().all(-1), norms, torch.inf)

    @override
    def step_optimizer(self, state: State, h: Hyperparameters, active: Tensor) -> None:
        """Step the multipliers with a learning rate of their own, and keep them positive."""
        cut = self._first_multiplier
        self.optimize(state, h, active, h["learning_rate"], slice(0, cut))
        self.optimize(state, h, active, h["multiplier_learning_rate"], slice(cut, None))
        views = self.layout.views(state.tensors["params"])
        for name in ("temperature", *self._constraints):
            views[name].clamp_(min=SMALLEST)

    def _divergences(self, batch: LossInputs) -> list[Tensor]:
        """KL(target || online) at every transition [p, T, B], one tensor per entry of `_constraints`."""
        if isinstance(self.policy, MultiCategorical):  # independent slots: the sum of their divergences
            slots = zip(self.policy.split(batch.policy), self.policy.split(batch.behavior), strict=True)
            return [functools.reduce(torch.add, (losses.categorical_kl(*slot) for slot in slots))]
        if not isinstance(self.policy, Gaussian):
            return [losses.categorical_kl(batch.policy, batch.behavior)]
        (mean, log_std), (target_mean, target_log_std) = batch.policy.chunk(2, -1), batch.behavior.chunk(2, -1)
        return list(losses.gaussian_kl_decoupled(mean, log_std.exp(), target_mean, target_log_std.exp()))


make = VMPO.make
