"""Replay buffer of each env's most recent steps, first in, first out.

Its tensors are ring buffers [P, S row, B, ...] with one row per step. `steps` [P] counts all rows ever written, so row
`steps` mod S is overwritten next. The members of a cohort advance together and so have equally many. An *age* numbers a
member's rows from 0, the oldest, to n - 1, the newest.
"""

import torch
from torch import Tensor

from pbtrl.agents.types import Trajectory

Replay = dict[str, Tensor]
FIELDS = ("observations", "actions", "rewards", "terminated", "done", "is_reset_step")


def length(replay: Replay) -> int:
    """n, the number of stored steps per env."""
    return min(int(replay["steps"][0]), replay["is_reset_step"].shape[1]) if replay else 0


def append(replay: Replay, block: Trajectory, rows: int) -> Replay:
    """Write a block of T <= S steps in place; a replay with fewer than `rows` rows is replaced by an empty one.

    Args:
        replay: result of the previous call; empty at first.
        block: [P, T, B, ...].
        rows: minimum of S; a larger replay keeps its rows.
    """
    members, time, _ = block.rewards.shape
    if not replay or replay["is_reset_step"].shape[1] < rows:
        replay = {name: _like(getattr(block, name), rows) for name in FIELDS}
        replay["steps"] = torch.zeros(members, dtype=torch.int64)
    rows = replay["is_reset_step"].shape[1]
    indices = (int(replay["steps"][0]) + torch.arange(time)) % rows
    for name in FIELDS:
        replay[name][:, indices] = getattr(block, name)[:, :time]
    replay["steps"] += time
    return replay


def fetch(replay: Replay, start: Tensor, envs: Tensor, time: int) -> Replay:
    """Gather W sequences of `time` steps, from the ages `start` [P, W] on, in the envs `envs` [P, W].

    Returns:
        Every field as [P, time, W, ...].
    """
    members, rows = replay["is_reset_step"].shape[:2]
    ages = start[:, None] + torch.arange(time)[:, None]
    indices = (int(replay["steps"][0]) - length(replay) + ages) % rows
    member = torch.arange(members)[:, None, None]
    return {name: replay[name][member, indices, envs[:, None]] for name in FIELDS}


def runs(replay: Replay, chance: Tensor, time: int) -> Replay:
    """Draw W sequences of `time` <= n steps, uniformly over envs and first steps; they are returned as by `fetch`.

    Args:
        replay: see above.
        chance: [P, W, 2] uniform random numbers in [0, 1), for the env and for the age.
        time: steps per sequence.
    """
    envs = _choice(chance[..., 0], replay["is_reset_step"].shape[2])
    return fetch(replay, _choice(chance[..., 1], length(replay) - time + 1), envs, time)


def rewarding(replay: Replay, chance: Tensor, time: int) -> Replay:
    """Draw W sequences of `time` <= n steps, half of them ending in a nonzero reward (Jaderberg et al. 2016, sec. 3.2).

    The last step of a sequence is a live transition. If the replay has only steps with a reward, or only steps without,
    all sequences are of that kind. If it has no live transition at all, the last steps are dead.

    Args:
        replay: see above.
        chance: [P, W, 2] uniform random numbers in [0, 1): the first asks for a reward if below 1/2, the second picks
            one of the candidates.
        time: steps per sequence.
    """
    rows, envs = replay["is_reset_step"].shape[1:]
    ages = torch.arange(time - 1, length(replay))
    indices = (int(replay["steps"][0]) - length(replay) + ages) % rows
    live, rewarded = ~replay["is_reset_step"][:, indices], replay["rewards"][:, indices] != 0
    ranks = torch.stack([live & ~rewarded, live & rewarded], 1).flatten(2).cumsum(-1)  # [P, 2, ages x B]
    counts, wanted = ranks[..., -1], (chance[..., 0] < 0.5).long()
    kind = torch.where(counts.gather(1, wanted) > 0, wanted, 1 - wanted)
    rank = 1 + _choice(chance[..., 1], counts.gather(1, kind).clamp_min(1))
    places = torch.searchsorted(ranks, rank[:, None].expand(-1, 2, -1).contiguous()).clamp(max=ranks.shape[-1] - 1)
    place = places.gather(1, kind[:, None])[:, 0]
    return fetch(replay, place // envs, place % envs, time)


def _choice(chance: Tensor, count: Tensor | int) -> Tensor:
    """Map numbers in [0, 1) to integers below `count`."""
    return (chance.double() * count).long()


def _like(x: Tensor, rows: int) -> Tensor:
    return x.new_zeros(len(x), rows, *x.shape[2:])
