"""Actors in processes of this machine: weights and blocks lie in shared memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.agents.types import Agent, Inputs, State, Trajectory
from pbtrl.rl.acting import Actor
from pbtrl.rl.actors import SLOTS, Transport
from pbtrl.rl.cohort_spec import CohortSpec, CohortSpecRef
from pbtrl.rl.pool_messages import Block
from pbtrl.rl.process_pool import Process, wait_for_processes
from pbtrl.rl.shared_memory import SharedTensors, WeightMailbox, to_dict, truncate


class LocalActors(Transport):
    """Transport to processes; the arguments are those of `pbtrl.rl.actors.TransportFactory`."""

    patience = math.inf

    def __init__(self, spec: CohortSpec, state: State, members: int, threads: int) -> None:
        self._weights = WeightMailbox({name: state.tensors[name] for name in spec.agent.acting_tensors})
        like = to_dict(_blank(spec.agent, state, members, spec.block, spec.envs))
        self._slots = [[SharedTensors(like) for _ in range(SLOTS)] for _ in range(spec.processes)]
        each = max(1, threads // spec.processes)
        self.links: list[Process] = [
            Process(_Actor, spec.origin, members, each, self._weights, own) for own in self._slots
        ]

    @override
    def wait(self, timeout: float) -> Sequence[int]:
        return wait_for_processes(self.links, timeout)

    @override
    def publish(self, tensors: Mapping[str, Tensor], version: int) -> None:
        self._weights.write(tensors, version)

    @override
    def block(self, i: int, answer: Block) -> dict[str, Tensor]:
        return truncate(self._slots[i][answer.slot].tensors, answer.steps)


class _Actor(Actor):
    """Actor in its process."""

    def __init__(
        self, origin: CohortSpecRef, members: int, threads: int, weights: WeightMailbox, slots: Sequence[SharedTensors]
    ) -> None:
        super().__init__(origin, members, threads)
        self._weights, self._slots = weights, slots

    @override
    def pull(self, tensors: dict[str, Tensor]) -> int:
        return self._weights.read(tensors)

    @override
    def deliver(self, slot: int, block: Mapping[str, Tensor]) -> None:
        target = truncate(self._slots[slot].tensors, block["rewards"].shape[1])
        for name, value in block.items():
            target[name].copy_(value)


def _blank(agent: Agent, state: State, members: int, time: int, envs: int) -> Trajectory:
    """Create a block of zeros with the shapes and types of a real one."""
    actions, rnn_state = agent.begin(members, envs)
    noise = agent.noise([torch.Generator() for _ in range(members)], 1, envs)[0]
    observations = torch.zeros(members, envs, *agent.shape, dtype=torch.uint8 if agent.image else torch.float32)
    inputs = Inputs(observations, actions, torch.zeros(members, envs), torch.ones(members, envs, dtype=torch.bool))
    acted = agent.act(state, inputs, rnn_state, None)

    def over_time(value: Tensor, steps: int = time) -> Tensor:
        return torch.zeros(1, dtype=value.dtype).expand(members, steps, *value.shape[1:])

    return Trajectory(
        observations=over_time(observations, time + 1),
        actions=over_time(acted.actions),
        rewards=over_time(inputs.rewards),
        terminated=over_time(inputs.first),
        done=over_time(inputs.first),
        is_reset_step=over_time(inputs.first),
        policy=over_time(acted.policy),
        noise=over_time(noise),
        initial_inputs=inputs,
        rnn_state=rnn_state,
    )
