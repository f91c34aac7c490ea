"""V-MPO (Song et al. 2019, arXiv 1909.12238): on-policy maximum a posteriori policy optimization.

The target network acts, and becomes the online one every `target_period` blocks. The better half of a batch,
weighted by exp(A / eta), is what the policy imitates; KL(target || online), over the whole batch, holds it back, with
multipliers that are learned with the weights. For Gaussian policies mean and covariance are held back apart. The value
is a PopArt head's (van Hasselt et al. 2016, arXiv 1602.07714), so the scale of returns plays no part in its learning.
settings.VMPO has every default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pbtrl.agents import losses, normalize
from pbtrl.agents.actor_critic import ActorCritic
from pbtrl.agents.distributions import Gaussian
from pbtrl.agents.loss_inputs import LossInputs, LossOutput, with_prefix, without_prefix
from pbtrl.agents.returns import gae
from pbtrl.agents.settings import VMPOSettings
from pbtrl.agents.types import Hyperparameters, State, Trajectory, UpdateResult

SMALLEST = 1e-8  # of eta and alpha


@dataclass(frozen=True)
class VMPO(ActorCritic):
    """The agent for one kind of env; see `agents.types.Agent` for the contract."""

    settings: VMPOSettings

    @property
    def needs_full_batch(self) -> bool:
        """The better half is chosen among all."""
        return True

    @property
    def extra_parameters(self) -> dict[str, tuple[int, float]]:
        """The multipliers are learned with the weights."""
        temperature = {"temperature": (1, self.settings.temperature)}
        return super().extra_parameters | temperature | dict.fromkeys(self._constraints, (1, self.settings.alpha))

    @property
    def _constraints(self) -> dict[str, str]:
        """Each multiplier, and the hyperparameter that bounds its divergence."""
        if isinstance(self.policy, Gaussian):
            return {"alpha_mean": "eps_mean", "alpha_covariance": "eps_covariance"}
        return {"alpha": "eps_kl"}

    @property
    def unused(self) -> frozenset[str]:
        """Bounds for the other kind of policy."""
        return frozenset({"eps_kl", "eps_mean", "eps_covariance"}) - set(self._constraints.values())

    @property
    def acting_tensors(self) -> tuple[str, ...]:
        """The target network acts."""
        return ("target", *super().acting_tensors[1:])

    def init(self, generators: Sequence[torch.Generator]) -> State:
        """Fresh state for one member per generator; the target network equals the online one."""
        state = super().init(generators)
        target = state.tensors["params"].clone()
        state.tensors |= {"target": target, "updates": torch.zeros(len(target), dtype=torch.int64)}
        state.tensors |= with_prefix("popart", normalize.init_popart(len(target)))
        acting = tuple(self.layout.views(target[group]) for group in self._groups(len(target)))
        return replace(state, acting=acting)

    def learn(self, state: State, block: Trajectory, hyperparameters: Hyperparameters) -> UpdateResult:
        """Learn from a block; then, in its turn, the target network."""
        learned = super().learn(state, block, hyperparameters)
        tensors = state.tensors
        tensors["updates"] = tensors["updates"] + 1
        due = tensors["updates"] % hyperparameters["target_period"] == 0
        tensors["target"][due] = tensors["params"][due]
        return learned

    def loss(self, seen: LossInputs, h: Hyperparameters) -> LossOutput:
        """L_V + L_pi + L_eta + L_alpha, all of them means (section 4), and an entropy term, which the paper has not."""
        mask, flat = seen.mask, seen.mask.flatten(1)
        popart = {name: value[seen.members] for name, value in without_prefix("popart", seen.state.tensors).items()}
        scale, shift = (popart[name].to(mask.dtype)[:, None, None] for name in ("scale", "shift"))
        targets, advantages = seen.compute_targets(gae, scale * seen.values + shift, lambda_=h["lambda_"][:, None])
        temperature = seen.params["temperature"][:, 0]
        psi, temperature_loss = losses.vmpo_weights_and_temperature(
            advantages.flatten(1), temperature, h["eps_temperature"], flat
        )
        sums = {
            "policy": losses.policy_gradient_loss(seen.log_probs.flatten(1), psi * seen.live[:, None], flat),
            "value": losses.value_loss(seen.values[:, :-1], (targets - shift) / scale, mask),
            "entropy": losses.entropy_bonus(self.policy.entropy(seen.policy), mask),
            "temperature": temperature * seen.live,
        }
        summed = sums["policy"] + h["value_cost"] * sums["value"] - h["entropy_cost"] * sums["entropy"]
        total = summed / seen.live + temperature_loss
        for (name, bound), kl in zip(self._constraints.items(), self._divergences(seen), strict=True):
            alpha = seen.params[name][:, 0]
            total = total + losses.lagrange_loss(alpha, h[bound], kl, mask)
            sums |= {name: alpha * seen.live, name.replace("alpha", "kl"): (kl * mask).flatten(1).sum(-1)}
        new = normalize.popart_update(popart, targets, mask, rate=h["popart_rate"])
        return LossOutput(total, sums, with_prefix("popart", new))

    def replace(self, state: State, new: dict[str, Tensor], active: Tensor) -> None:
        """The multipliers stay positive, and what the value head says stays as it is under PopArt's new statistics."""
        old = without_prefix("popart", state.tensors)
        super().replace(state, new, active)
        views = self.layout.views(state.tensors["params"])
        for name in ("temperature", *self._constraints):
            views[name].clamp_(min=SMALLEST)
        normalize.popart_preserve(*self.net.value_head(views), old, without_prefix("popart", state.tensors))

    def _divergences(self, seen: LossInputs) -> list[Tensor]:
        """KL(target || online) at every transition [p, T, B], as `_constraints` bounds it."""
        if not isinstance(self.policy, Gaussian):
            return [losses.categorical_kl(seen.policy, seen.behavior)]
        (mean, log_std), (was, log_was) = seen.policy.chunk(2, -1), seen.behavior.chunk(2, -1)
        return list(losses.gaussian_kl_decoupled(mean, log_std.exp(), was, log_was.exp()))


make = VMPO.make
