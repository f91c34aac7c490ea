"""Actors on other machines: weights and blocks travel as bytes, by a wire that knows nothing of them.

    learner                                               actor, on any machine
      publish: wire.put(weights), once per version
      ask: wire.call(actor, JSON, reference) --------->   take the weights, if its machine has not; act
      block: stack the frames         <----- bytes -----   one line of JSON, then tensors, frames unstacked

An actor that dies is replaced in the background: it is asked for nothing until it has answered its first message, and
the learner goes on with the others. Weights are those that were newest when the block was asked for.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import safetensors.numpy
import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.agents.types import State
from pbtrl.rl.acting import Actor
from pbtrl.rl.actors import Transport
from pbtrl.rl.cohort_spec import CohortSpec, CohortSpecRef
from pbtrl.rl.frame_stacks import restack, stacks, unstack
from pbtrl.rl.pool_messages import Answer, Block, Message, Raised, ToWorker, Weights, decode, encode
from pbtrl.rl.process_pool import Link, describe_error
from pbtrl.system.malloc import retain_freed_memory
from pbtrl.system.strict_json import to_json

ENTRY = "pbtrl.rl.remote_actors:RemoteActor"
THREADS = 1  # of an actor's simulator, for which one core is reserved


class Wire(Protocol):
    """Transport of bytes to actors on other machines.

    Attributes:
        patience: seconds that an actor has to come up while no other one is.
    """

    patience: float

    def put(self, data: bytes) -> Any:
        """Return a reference that `call` passes on; the data goes to each machine once."""

    def start(self, place: int, entry: str, argument: str) -> Any:
        """Start `entry(argument)`, given as `module:class`, at a place; does not wait for it."""

    def call(self, actor: Any, message: bytes, reference: Any) -> Any:
        """Start `actor.work(message, data of the reference or None)` after all earlier calls of this actor."""

    def wait(self, calls: Sequence[Any], timeout: float) -> Sequence[Any]:
        """Wait up to `timeout` seconds for calls to end; returns those that have."""

    def result(self, call: Any) -> bytes:
        """Return the result of a call that has ended.

        Raises:
            ConnectionError: its actor has died; the text says how.
        """

    def end(self, actor: Any) -> None:
        """Kill an actor, or give up one that has not started."""


class RemoteActors(Transport):
    """Transport by a wire; the other arguments are those of `pbtrl.rl.actors.TransportFactory`."""

    def __init__(self, wire: Wire, spec: CohortSpec, state: State, members: int, threads: int) -> None:
        argument = to_json({"origin": asdict(spec.origin), "members": members})
        self.links: list[_RemoteLink] = [_RemoteLink(wire, i, argument) for i in range(spec.processes)]
        self._wire, self.patience = wire, wire.patience

    @override
    def wait(self, timeout: float) -> Sequence[int]:
        return wait_for_calls(self._wire, self.links, timeout)

    @override
    def publish(self, tensors: Mapping[str, Tensor], version: int) -> None:
        weights = self._wire.put(pack(Weights(version), tensors))
        for link in self.links:
            link.weights = weights

    @override
    def block(self, i: int, answer: Block) -> dict[str, Tensor]:
        tensors = self.links[i].blocks.pop(answer.slot)
        if "frames" in tensors:
            tensors["observations"] = restack(tensors.pop("frames"), tensors.pop("repeats"))
        return tensors


class _RemoteLink(Link):
    """Link to an actor on a wire.

    Attributes:
        weights: reference of the newest weights.
        blocks: received blocks by slot.
        calls: calls whose results have not been received, oldest first.
    """

    def __init__(self, wire: Wire, place: int, argument: str) -> None:
        super().__init__()
        self._wire, self._place, self._argument = wire, place, argument
        self._actor: Any = None
        self.up = False
        self.weights: Any = None
        self.blocks: dict[int, dict[str, Tensor]] = {}
        self._how = "it never started"

    @override
    def start(self) -> None:
        self.up = self.begun = False
        self.calls: deque[Any] = deque()
        self._actor = self._wire.start(self._place, ENTRY, self._argument)

    @override
    def send(self, message: ToWorker) -> None:
        self.calls.append(self._wire.call(self._actor, encode(message), self.weights))

    @override
    def receive(self) -> Answer | Raised | None:
        answer: Answer | Raised | None
        try:
            answer, tensors = unpack(self._wire.result(self.calls.popleft()))
        except ConnectionError as error:
            self._how = str(error)
            raise
        self.up = True
        if isinstance(answer, Block):
            self.blocks[answer.slot] = tensors
        return answer

    @override
    def kill(self) -> None:
        if self._actor is not None:
            self._wire.end(self._actor)

    @override
    def stop(self) -> None:
        self.kill()

    @override
    def end(self, patience: float = 5.0) -> str:
        self.kill()
        return self._how


def wait_for_calls(wire: Wire, links: Sequence[_RemoteLink], timeout: float) -> Sequence[int]:
    """Wait up to `timeout` seconds for links whose oldest call has ended; returns their indices."""
    calls = {link.calls[0]: i for i, link in enumerate(links) if link.calls}
    if not calls:
        time.sleep(timeout)
        return []
    return [calls[call] for call in wire.wait(list(calls), timeout)]


class RemoteActor:
    """Actor on the other machine, which is called with bytes and answers with bytes.

    Args:
        argument: as JSON, `origin` (a `CohortSpecRef`) and the number of `members`.
    """

    def __init__(self, argument: str) -> None:
        self._argument = argument
        self._actor: _Actor | None = None

    def work(self, message: bytes, weights: bytes | None) -> bytes:
        """Handle a message with these weights; an exception is an answer too."""
        try:
            if self._actor is None:
                retain_freed_memory()
                torch.set_num_threads(1)
                given = json.loads(self._argument)
                self._actor = _Actor(CohortSpecRef(**given["origin"]), given["members"], THREADS)
            return self._actor.work(decode(message), weights)
        except Exception as error:
            return pack(describe_error(error), {})

    def close(self) -> None:
        """Close the envs."""
        if self._actor is not None:
            self._actor.close()


class _Actor(Actor):
    _weights: bytes | None = None
    _block: Mapping[str, Tensor] = {}

    def work(self, message: ToWorker, weights: bytes | None) -> bytes:
        self._weights, self._block = weights, {}
        return pack(self.answer(message), self._block)

    @override
    def pull(self, tensors: dict[str, Tensor]) -> int:
        assert self._weights is not None
        header, newest = unpack(self._weights)
        for name, value in newest.items():
            tensors[name].copy_(value)
        version: int = header.version
        return version

    @override
    def deliver(self, slot: int, block: Mapping[str, Tensor]) -> None:
        observations = block["observations"]
        if stacks(observations):
            frames, repeats = unstack(observations)
            block = {name: value for name, value in block.items() if name != "observations"}
            block |= {"frames": frames, "repeats": repeats}
        self._block = block


def pack(header: Message | None, tensors: Mapping[str, Tensor]) -> bytes:
    """Convert to bytes: a message as one line of JSON, then the tensors in the format of safetensors."""
    arrays = {name: value.contiguous().numpy() for name, value in tensors.items()}
    return encode(header) + b"\n" + safetensors.numpy.save(arrays)


def unpack(data: bytes) -> tuple[Any, dict[str, Tensor]]:
    """Restore what was packed."""
    header, _, body = data.partition(b"\n")
    return decode(header), {name: torch.from_numpy(a) for name, a in safetensors.numpy.load(body).items()}
