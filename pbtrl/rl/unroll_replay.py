"""Experience replay (Espeholt et al. 2018, section 5.2.2): past unrolls, mixed into new blocks."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from pbtrl.rl.shared_memory import TIMED

Parts = Mapping[str, Tensor]
"""Block as named tensors, see `pbtrl.rl.shared_memory.to_dict`."""


class UnrollReplay:
    """Replay of the newest blocks, up to a number of unrolls per member; unrolls are drawn uniformly."""

    def __init__(self, unrolls: int, envs: int) -> None:
        self._blocks: deque[dict[str, Tensor]] = deque(maxlen=max(1, unrolls // envs))

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: Parts) -> None:
        """Store a copy of a block; the oldest one is dropped if the replay is full."""
        self._blocks.append({name: value.clone() for name, value in block.items()})

    def mixed(self, block: Parts, count: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor | None]:
        """Mix `count` past unrolls of the same length into a block, of every member at the same places.

        Returns:
            The named tensors, and `from_replay` [B + count] bool, which marks the past unrolls. They are evenly spread
            over the env axis, so that every minibatch has its share. Without past unrolls, the block and None.
        """
        time, own = block["rewards"].shape[1:]
        past = [b for b in self._blocks if b["rewards"].shape[1] == time]
        if not past or not count:
            return dict(block), None
        envs = past[0]["rewards"].shape[2]
        drawn = torch.randint(len(past) * envs, (count,), generator=generator).tolist()
        unrolls = [*((block, i) for i in range(own)), *((past[i // envs], i % envs) for i in drawn)]
        order = torch.cat([(torch.arange(n) + 0.5) / n for n in (own, count)]).argsort(stable=True)
        mixed = [unrolls[i] for i in order.tolist()]
        tensors = {
            name: torch.cat([b[name].narrow(_axis(name), i, 1) for b, i in mixed], _axis(name)) for name in block
        }
        return tensors, order >= own

    def forget(self, slot: int) -> None:
        """Handle a new policy in a slot: mask all of the slot's stored steps, so that no loss includes them."""
        for block in self._blocks:
            block["is_reset_step"][slot] = True


def _axis(name: str) -> int:
    """Index of the env axis."""
    return 2 if name in TIMED else 1
