"""Tensors in memory that processes share: anything by name, the weights that act, and blocks of experience."""

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

from pbtrl.agents.types import Inputs, Trajectory

ALIGNED = 64  # bytes; where each tensor begins

TIMED = ("observations", "actions", "rewards", "terminated", "done", "is_reset_step", "policy", "noise")
"""The parts of a block that have a time axis: [P, T, B, ...], observations one step more."""


class SharedTensors:
    """Named tensors that start as zeros; pass it to a spawned process, and both see the same memory."""

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._kinds = {name: (value.dtype, tuple(value.shape)) for name, value in like.items()}
        size = sum(_room(dtype, shape) for dtype, shape in self._kinds.values())
        self._memory = multiprocessing.get_context("spawn").RawArray(ctypes.c_uint8, max(size, ALIGNED))

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Views of the memory."""
        whole, views, start = torch.frombuffer(self._memory, dtype=torch.uint8), {}, 0
        for name, (dtype, shape) in self._kinds.items():
            size = math.prod(shape) * dtype.itemsize
            views[name] = whole[start : start + size].view(dtype).view(shape)
            start += _room(dtype, shape)
        return views

    def __getstate__(self) -> dict[str, Any]:
        return {"_kinds": self._kinds, "_memory": self._memory}


class WeightMailbox:
    """What acts, newest version only: one process writes it, others read it.

    `sequence` is odd while it is being written, and a reader that saw it change reads again, so nobody acts on weights
    of two versions. (A processor that reorders stores, as x86 does not, might let that pass; it would do no harm, for
    what a block is corrected with is what it was acted with.)
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._shared = SharedTensors({"sequence": torch.zeros(2, dtype=torch.int64), **like})

    def write(self, tensors: Mapping[str, Tensor], version: int) -> None:
        """Put a new version in the place of the last one."""
        mine = dict(self._shared.tensors)
        sequence = mine.pop("sequence")
        sequence[0] += 1
        for name, value in mine.items():
            value.copy_(tensors[name])
        sequence[1] = version
        sequence[0] += 1

    def read(self, tensors: Mapping[str, Tensor]) -> int:
        """Copy the newest version into `tensors`; returns its number."""
        theirs = dict(self._shared.tensors)
        sequence = theirs.pop("sequence")
        while True:
            before, version = (int(n) for n in sequence)
            for name, value in theirs.items():
                tensors[name].copy_(value)
            if before % 2 == 0 and int(sequence[0]) == before:
                return version
            time.sleep(1e-4)


def to_dict(block: Trajectory) -> dict[str, Tensor]:
    """A block as named tensors, none of them twice."""
    before = {f"before.{name}": getattr(block.initial_inputs, name) for name in ("actions", "rewards", "first")}
    return {**{name: getattr(block, name) for name in TIMED}, "rnn_state": block.rnn_state, **before}


def from_dict(found: Mapping[str, Tensor], past: Tensor | None = None) -> Trajectory:
    """The block back from its parts; `from_replay` as in `Trajectory`."""
    first = found["observations"][:, 0]
    before = Inputs(first, found["before.actions"], found["before.rewards"], found["before.first"])
    return Trajectory(
        **{name: found[name] for name in TIMED}, initial_inputs=before, rnn_state=found["rnn_state"], from_replay=past
    )


def truncate(found: Mapping[str, Tensor], time: int) -> dict[str, Tensor]:
    """The parts of a block, as views of its first `time` steps."""
    lengths = {name: time + (name == "observations") for name in TIMED}
    return {name: value[:, : lengths[name]] if name in lengths else value for name, value in found.items()}


def _room(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return -(-math.prod(shape) * dtype.itemsize // ALIGNED) * ALIGNED
