"""Checks of shapes at the entrance of the public math, where broadcasting would hide a mistake."""

from __future__ import annotations

from torch import Tensor


def check_same_shape(**tensors: Tensor | None) -> None:
    """Check that tensors have equal shapes; None is skipped.

    Raises:
        ValueError: two of them differ; the message names both with their shapes.
    """
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor is not None}
    first, shape = next(iter(given.items()))
    for name, other in given.items():
        if other != shape:
            raise ValueError(f"{name} has shape {other}, but {first} has shape {shape}")


def check_leading(tensor: Tensor, name: str, like: Tensor, like_name: str) -> None:
    """Check that a tensor's axes are the first ones of another.

    Raises:
        ValueError: they are not.
    """
    shape, other = tuple(tensor.shape), tuple(like.shape)
    if other[: len(shape)] != shape:
        raise ValueError(f"{name} has shape {shape}, which is no prefix of {like_name}'s {other}")


def check_per_member(x: Tensor | float, name: str, like: Tensor) -> None:
    """Check that `x` is a number, or has one value per member: `[P]`, where `like` is `[P, ...]`.

    Raises:
        ValueError: it has another shape.
    """
    if isinstance(x, Tensor) and x.ndim and x.shape != like.shape[:1]:
        raise ValueError(f"{name} has shape {tuple(x.shape)} in place of ({len(like)},), one value per member")
