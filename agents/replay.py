"""A replay: every env's last steps, first in, first out, from which an agent learns once more.

Its tensors are rings [P, S row, B, ...], one row per step; `steps` [P] counts all that were ever written, so row
`steps` mod S is the next to be overwritten. The members of a cohort live in step with each other, so all have equally
many. An *age* numbers a member's rows from the oldest, 0, to the newest, n - 1.
"""

import torch
from torch import Tensor

from pbtrl.agents.types import Trajectory

Replay = dict[str, Tensor]
FIELDS = ("observations", "actions", "rewards", "terminated", "done", "is_reset_step")


def length(replay: Replay) -> int:
    """n, how many steps of each env there are."""
    return min(int(replay["steps"][0]), replay["is_reset_step"].shape[1]) if replay else 0


def append(replay: Replay, block: Trajectory, rows: int) -> Replay:
    """Write a block of T <= S steps, in place; a replay of fewer rows is begun anew.

    Args:
        replay: what this made before; empty at first.
        block: [P, T, B, ...].
        rows: S, at least; one that has more keeps them.
    """
    members, time, _ = block.rewards.shape
    if not replay or replay["is_reset_step"].shape[1] < rows:
        replay = {name: _like(getattr(block, name), rows) for name in FIELDS}
        replay["steps"] = torch.zeros(members, dtype=torch.int64)
    rows = replay["is_reset_step"].shape[1]
    where = (int(replay["steps"][0]) + torch.arange(time)) % rows
    for name in FIELDS:
        replay[name][:, where] = getattr(block, name)[:, :time]
    replay["steps"] += time
    return replay


def fetch(replay: Replay, start: Tensor, envs: Tensor, time: int) -> Replay:
    """Runs of `time` steps: `start` [P, W] are the ages of the first ones, `envs` [P, W] whose they are.

    Returns:
        [P, time, W, ...] of every field.
    """
    members, rows = replay["is_reset_step"].shape[:2]
    ages = start[:, None] + torch.arange(time)[:, None]
    where = (int(replay["steps"][0]) - length(replay) + ages) % rows
    member = torch.arange(members)[:, None, None]
    return {name: replay[name][member, where, envs[:, None]] for name in FIELDS}


def runs(replay: Replay, chance: Tensor, time: int) -> Replay:
    """W runs of `time` <= n steps of any env from any age on, each as likely as another; as `fetch`.

    Args:
        replay: see above.
        chance: [P, W, 2] in [0, 1), for the env and for the age.
        time: how long they are.
    """
    envs = _choice(chance[..., 0], replay["is_reset_step"].shape[2])
    return fetch(replay, _choice(chance[..., 1], length(replay) - time + 1), envs, time)


def rewarding(replay: Replay, chance: Tensor, time: int) -> Replay:
    """W runs of `time` <= n steps, half of whose last ones were rewarded (Jaderberg et al. 2016, section 3.2).

    The last steps are live transitions. Where the replay has rewarded ones only, or none, all runs are of that kind;
    without any live one they are dead.

    Args:
        replay: see above.
        chance: [P, W, 2] in [0, 1): below 1/2 a reward is wanted; which one.
        time: how long they are.
    """
    rows, envs = replay["is_reset_step"].shape[1:]
    ages = torch.arange(time - 1, length(replay))
    where = (int(replay["steps"][0]) - length(replay) + ages) % rows
    live, paid = ~replay["is_reset_step"][:, where], replay["rewards"][:, where] != 0
    ranks = torch.stack([live & ~paid, live & paid], 1).flatten(2).cumsum(-1)  # [P, 2, ages x B]
    counts, wanted = ranks[..., -1], (chance[..., 0] < 0.5).long()
    kind = torch.where(counts.gather(1, wanted) > 0, wanted, 1 - wanted)
    rank = 1 + _choice(chance[..., 1], counts.gather(1, kind).clamp_min(1))
    places = torch.searchsorted(ranks, rank[:, None].expand(-1, 2, -1).contiguous()).clamp(max=ranks.shape[-1] - 1)
    place = places.gather(1, kind[:, None])[:, 0]
    return fetch(replay, place // envs, place % envs, time)


def _choice(chance: Tensor, count: Tensor | int) -> Tensor:
    """A whole number below `count`, from one in [0, 1)."""
    return (chance.double() * count).long()


def _like(x: Tensor, rows: int) -> Tensor:
    return x.new_zeros(len(x), rows, *x.shape[2:])
