"""Base of trainables in torch: a step of training, and how to score. State, randomness and averages are done here.

All randomness comes from the generator of each call. Torch's global generator, from which dropout draws, is seeded from
it for the time of the call. So members that share a process do not depend on each other.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from typing_extensions import override

from pbtrl.core.tensors import Tensors
from pbtrl.core.trainable import Trainable
from pbtrl.system.torch_settings import configure_torch


class TorchTrainable(Trainable):
    """Modules with their optimizers. A subclass defines `step` and `score`.

    Args:
        modules: modules by name; parameters and buffers are learned state.
        optimizers: optimizers by name. Their learning rates and such are hyperparameters, not state.
        values: hyperparameters that are not searched, by name.
    """

    metric: ClassVar[str] = "fitness"
    tunable: ClassVar[tuple[str, ...]] = ()
    structural: ClassVar[tuple[str, ...]] = ()
    max_steps_per_call: ClassVar[int] = 100

    def __init__(
        self, modules: Mapping[str, torch.nn.Module], optimizers: Mapping[str, torch.optim.Optimizer],
        values: Mapping[str, Any],
    ) -> None:  # fmt: skip
        configure_torch(threads=1)  # a member has one core; and sums in several threads round differently
        self._modules, self._optimizers, self._values = dict(modules), dict(optimizers), dict(values)
        for optimizer in self._optimizers.values():
            _allocate(optimizer)

    @abstractmethod
    def step(self, hyperparameters: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
        """Make one update with these values of all hyperparameters, searched or not; returns losses to average."""

    @abstractmethod
    def score(self, held_out: bool) -> float:
        """Return the fitness, or with `held_out` the score on data that neither training nor selection uses.

        Modules are in evaluation mode, and no gradients are computed.
        """

    @override
    def train(self, steps: int, hyperparameters: Mapping[str, Any], rng: np.random.Generator) -> dict[str, float]:
        """Make `steps` updates; returns the means of their losses."""
        values = {**self._values, **hyperparameters}
        sums: dict[str, float] = defaultdict(float)
        for module in self._modules.values():
            module.train()
        with seeded(rng):
            for _ in range(steps):
                for name, loss in self.step(values).items():
                    sums[name] += loss.item()
        return {name: total / steps for name, total in sums.items()}

    @override
    def evaluate(self, rng: np.random.Generator) -> float:
        """Return the fitness."""
        return self._scored(rng, held_out=False)

    def test(self, rng: np.random.Generator) -> float:
        """Return the score on data that neither training nor selection uses."""
        return self._scored(rng, held_out=True)

    def _scored(self, rng: np.random.Generator, *, held_out: bool) -> float:
        for module in self._modules.values():
            module.eval()
        with seeded(rng), torch.inference_mode():
            return float(self.score(held_out))

    @override
    def state_dict(self) -> Tensors:
        return {name: value.detach().numpy().copy() for name, value in self._tensors().items()}

    @override
    def load_state_dict(self, state: Tensors) -> None:
        with torch.no_grad():
            for name, value in self._tensors().items():
                value.copy_(torch.from_numpy(state[name].reshape(value.shape)))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """All learned state by name, as it is."""
        tensors = {f"{m}.{name}": v for m, module in self._modules.items() for name, v in module.state_dict().items()}
        for name, optimizer in self._optimizers.items():
            for place, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
                moments = optimizer.state[parameter]
                tensors |= {f"{name}.{place}.{key}": v for key, v in moments.items() if isinstance(v, torch.Tensor)}
        return tensors


@contextmanager
def seeded(rng: np.random.Generator) -> Iterator[None]:
    """Seed torch's global generator from `rng`, and restore it at the end."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        yield


def set_values(optimizer: torch.optim.Optimizer, **values: Any) -> None:
    """Set hyperparameters of an optimizer, such as `lr`, in all its groups."""
    for group in optimizer.param_groups:
        group.update(values)


def minimize(optimizer: torch.optim.Optimizer, loss: torch.Tensor, max_norm: float | None = None) -> None:
    """Make one step along the gradient of a loss, whose norm over all parameters is clipped to `max_norm`."""
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_((p for g in optimizer.param_groups for p in g["params"]), max_norm)
    optimizer.step()


def _allocate(optimizer: torch.optim.Optimizer) -> None:
    """Make the moments of an optimizer exist before the first step, so that the state always has the same names."""
    before = [group["lr"] for group in optimizer.param_groups]
    set_values(optimizer, lr=0.0)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group, lr in zip(optimizer.param_groups, before, strict=True):
        group["lr"] = lr
    for moments in optimizer.state.values():
        for value in moments.values():
            if isinstance(value, torch.Tensor):
                value.zero_()
    optimizer.zero_grad()
