"""Stacked frames on the wire: each frame of an env travels once, and the learner stacks by index.

An observation of an env that stacks S frames repeats S - 1 frames of the one before. Whether it does is compared byte
by byte, so what is stacked again is equal bit for bit, also where an episode begins, whatever the env puts there.
"""

from __future__ import annotations

import torch
from torch import Tensor


def stacks(observations: Tensor) -> bool:
    """Return whether these may be stacked frames: uint8 images [P, T, B, S, H, W] of several channels."""
    return observations.dtype == torch.uint8 and observations.dim() == 6 and observations.shape[3] > 1


def unstack(observations: Tensor) -> tuple[Tensor, Tensor]:
    """Leave out what an observation repeats of the one before.

    Args:
        observations: [P, T, B, S, H, W].

    Returns:
        The frames [N, H, W] that are left, by member, time, env and place in the stack; and [P, T, B] bool, which
        observations consist of the last S - 1 frames of the one before and one new frame.
    """
    repeats = torch.zeros(observations.shape[:3], dtype=torch.bool)
    repeats[:, 1:] = (observations[:, 1:, :, :-1] == observations[:, :-1, :, 1:]).flatten(3).all(3)
    return observations[_kept(repeats, observations.shape[3])], repeats


def restack(frames: Tensor, repeats: Tensor) -> Tensor:
    """Restore the observations [P, T, B, S, H, W] of `unstack`."""
    whole = int((~repeats).sum())
    kept = _kept(repeats, (len(frames) - (repeats.numel() - whole)) // whole)
    index = (kept.flatten().cumsum(0) - 1).view(kept.shape)
    for t in range(1, repeats.shape[1]):
        index[:, t, :, :-1] = torch.where(kept[:, t, :, :-1], index[:, t, :, :-1], index[:, t - 1, :, 1:])
    return frames[index]


def _kept(repeats: Tensor, size: int) -> Tensor:
    """Which frames [P, T, B, S] travel: the newest of each stack, and all of those that repeat nothing."""
    kept = ~repeats[..., None].repeat(1, 1, 1, size)
    kept[..., -1] = True
    return kept
