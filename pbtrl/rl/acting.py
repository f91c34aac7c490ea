"""The actor's side of decoupled acting: a rollout that fills a block per request, with the newest weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.rl.cohort_spec import CohortSpecRef
from pbtrl.rl.pool_messages import Act, Answer, Block, Forget, ResetEnvs, ToWorker
from pbtrl.rl.process_pool import PoolWorker
from pbtrl.rl.rollout import Rollout
from pbtrl.rl.shared_memory import to_dict


class Actor(PoolWorker):
    """Actor for the members of a cohort; a subclass knows where weights come from and blocks go to.

    Args:
        origin: reference to the cohort's specification.
        members: number of members.
        threads: number of threads of the simulator.
    """

    def __init__(self, origin: CohortSpecRef, members: int, threads: int) -> None:
        self._spec = origin.spec()
        self._members, self._threads = members, threads
        self._state = self._spec.agent.init([torch.Generator().manual_seed(0) for _ in range(members)])
        self._rollout: Rollout | None = None
        self._new = False

    @abstractmethod
    def pull(self, tensors: dict[str, Tensor]) -> int:
        """Copy the newest weights into `tensors`; returns their version."""

    @abstractmethod
    def deliver(self, slot: int, block: Mapping[str, Tensor]) -> None:
        """Put a block into a slot; its tensors are valid until the next block."""

    @override
    def answer(self, message: ToWorker) -> Answer | None:
        """Create envs, forget a slot's policy, or act into a slot."""
        if isinstance(message, ResetEnvs):
            self.close()
            self._new = True
            vector = self._spec.make(message.seeds, self._threads)
            self._rollout = Rollout(vector, self._members, self._spec.agent, self._spec.to_env, self._spec.metric)
        assert self._rollout is not None
        if isinstance(message, Forget):
            self._rollout.forget(message.slot)
        return self._act(self._rollout, message) if isinstance(message, Act) else None

    @override
    def close(self) -> None:
        if self._rollout:
            self._rollout.close()

    def _act(self, rollout: Rollout, request: Act) -> Block:
        version = self.pull(self._state.tensors)
        generators = [torch.Generator().manual_seed(seed) for seed in request.noise]
        block = rollout.collect(self._state, generators, request.steps)
        self.deliver(request.slot, to_dict(block))
        episodes = [e.packed() for e in rollout.episodes]
        rollout.clear()
        new, self._new = self._new, False
        return Block(request.slot, request.steps, version, episodes, new)
