"""Names of agents, strategies and trainables, and what they stand for."""

from __future__ import annotations

from dataclasses import fields

from pbtrl.config.schema import Config
from pbtrl.trainables.quadratic import QuadraticBuilder

TRAINABLES = {"quadratic": QuadraticBuilder}


def trainable_builder(config: Config) -> QuadraticBuilder:
    """The builder that `trainable.name` stands for, with the other keys as its arguments.

    Raises:
        ValueError: no such trainable, or a key that it does not have.
    """
    assert config.trainable is not None
    found = config.trainable
    if found.name not in TRAINABLES:
        raise ValueError(f"trainable.name: no trainable {found.name!r}: there is {', '.join(TRAINABLES)}")
    builder = TRAINABLES[found.name]
    known = [f.name for f in fields(builder)]
    if unknown := [key for key in found.kwargs if key not in known]:
        raise ValueError(f"trainable.{unknown[0]}: {found.name} has no such key, but {', '.join(known)}")
    return builder(**found.kwargs)
