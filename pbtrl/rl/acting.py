"""The actor's side of decoupled acting: a rollout that fills a block per request, with the newest weights."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.rl.cohort_spec import CohortSpecRef
from pbtrl.rl.process_pool import Message, PoolWorker
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
    def answer(self, message: Message) -> Message | None:
        """Create `envs`, `forget` a slot's policy, or act for `steps` into a slot."""
        if "envs" in message:
            self.close()
            self._new = True
            vector = self._spec.make(message["envs"], self._threads)
            self._rollout = Rollout(vector, self._members, self._spec.agent, self._spec.to_env, self._spec.metric)
        assert self._rollout is not None
        if "forget" in message:
            self._rollout.forget(message["forget"])
        return self._act(self._rollout, **message) if "steps" in message else None

    @override
    def close(self) -> None:
        if self._rollout:
            self._rollout.close()

    def _act(self, rollout: Rollout, slot: int, steps: int, noise: Sequence[int]) -> Message:
        version = self.pull(self._state.tensors)
        block = rollout.collect(self._state, [torch.Generator().manual_seed(seed) for seed in noise], steps)
        self.deliver(slot, to_dict(block))
        episodes = [e.packed() for e in rollout.episodes]
        rollout.clear()
        new, self._new = self._new, False
        return {"slot": slot, "steps": steps, "version": version, "episodes": episodes, "new": new}
