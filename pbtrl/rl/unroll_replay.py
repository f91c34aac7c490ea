"""Experience replay (Espeholt et al. 2018, section 5.2.2): past unrolls, learned from again beside new ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from pbtrl.rl.shared_memory import TIMED

Parts = Mapping[str, Tensor]
"""A block by `pbtrl.rl.shared.parts`."""


class UnrollReplay:
    """The newest blocks, up to a number of unrolls per member; all of their unrolls are equally likely to be drawn."""

    def __init__(self, unrolls: int, envs: int) -> None:
        self._blocks: deque[dict[str, Tensor]] = deque(maxlen=max(1, unrolls // envs))

    def __len__(self) -> int:
        return len(self._blocks)

    def add(self, block: Parts) -> None:
        """Keep a copy; the oldest block goes where there are too many."""
        self._blocks.append({name: value.clone() for name, value in block.items()})

    def mixed(self, block: Parts, count: int, generator: torch.Generator) -> tuple[dict[str, Tensor], Tensor | None]:
        """The block with `count` past unrolls of the same length among its own; None where there are none.

        Returns:
            The parts, and `from_replay` [B + count] bool, which marks the past unrolls. They are evenly spread, so that
            every minibatch has its share.
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
        found = {name: torch.cat([b[name].narrow(_axis(name), i, 1) for b, i in mixed], _axis(name)) for name in block}
        return found, order >= own

    def forget(self, slot: int) -> None:
        """The slot has a new policy: what it lived through before is no transition any more."""
        for block in self._blocks:
            block["is_reset_step"][slot] = True


def _axis(name: str) -> int:
    """Of the envs."""
    return 2 if name in TIMED else 1
