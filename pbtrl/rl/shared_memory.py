"""Tensors in shared memory: named tensors, a mailbox for acting weights, and blocks of experience."""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pbtrl.agents.types import Inputs, Trajectory

ALIGNED = 64  # bytes; alignment of each tensor

TIMED = ("observations", "actions", "rewards", "terminated", "done", "is_reset_step", "policy", "noise")
"""Tensors of a block with a time axis: [P, T, B, ...]; observations have one step more."""


class SharedTensors:
    """Named tensors, initially zero, in memory that is shared with spawned processes that get this object."""

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._kinds = {name: (value.dtype, tuple(value.shape)) for name, value in like.items()}
        size = sum(_room(dtype, shape) for dtype, shape in self._kinds.values())
        self._memory = multiprocessing.get_context("spawn").RawArray(ctypes.c_uint8, max(size, ALIGNED))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Views of the shared memory by name."""
        memory, views, start = torch.frombuffer(self._memory, dtype=torch.uint8), {}, 0
        for name, (dtype, shape) in self._kinds.items():
            size = math.prod(shape) * dtype.itemsize
            views[name] = memory[start : start + size].view(dtype).view(shape)
            start += _room(dtype, shape)
        return views

    @override
    def __getstate__(self) -> dict[str, Any]:
        return {"_kinds": self._kinds, "_memory": self._memory}


class WeightMailbox:
    """Newest version of the acting weights in shared memory: one process writes, others read.

    It is a seqlock: `sequence` is odd during a write, and a reader that sees it change reads again, so no actor gets a
    mixture of two versions. (On a processor that reorders stores, which x86 does not, a mixture might slip through. It
    would be harmless, because V-trace corrects with the action distributions of the weights that acted.)
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._shared = SharedTensors({"sequence": torch.zeros(2, dtype=torch.int64), **like})

    def write(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Replace the weights by a new version."""
        shared = dict(self._shared.tensors)
        sequence = shared.pop("sequence")
        sequence[0] += 1
        for name, value in shared.items():
            value.copy_(tensors[name])
        sequence[1] = version
        sequence[0] += 1

    def read(self, tensors: Mapping[str, Tensor]) -> int:
        """Copy the newest version into `tensors`; returns its number."""
        shared = dict(self._shared.tensors)
        sequence = shared.pop("sequence")
        while True:
            before, version = (int(n) for n in sequence)
            for name, value in shared.items():
                tensors[name].copy_(value)
            if before % 2 == 0 and int(sequence[0]) == before:
                return version
            time.sleep(1e-4)


def to_dict(block: Trajectory) -> dict[str, Tensor]:
    """Convert a block to named tensors without duplicates."""
    before = {f"before.{name}": getattr(block.initial_inputs, name) for name in ("actions", "rewards", "first")}
    return {**{name: getattr(block, name) for name in TIMED}, "rnn_state": block.rnn_state, **before}


def from_dict(tensors: Mapping[str, Tensor], past: Tensor | None = None) -> Trajectory:
    """Convert named tensors back to a block; `past` becomes `Trajectory.from_replay`."""
    first = tensors["observations"][:, 0]
    before = Inputs(first, tensors["before.actions"], tensors["before.rewards"], tensors["before.first"])
    return Trajectory(
        **{name: tensors[name] for name in TIMED},
        initial_inputs=before,
        rnn_state=tensors["rnn_state"],
        from_replay=past,
    )


def truncate(tensors: Mapping[str, Tensor], time: int) -> dict[str, Tensor]:
    """Return views of the first `time` steps of a block's named tensors."""
    lengths = {name: time + (name == "observations") for name in TIMED}
    return {name: value[:, : lengths[name]] if name in lengths else value for name, value in tensors.items()}


def _room(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED
