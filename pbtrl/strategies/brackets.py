"""Arithmetic of successive halving: rungs, the number of trials at each, and the brackets of Hyperband.

A rung is a number of env steps since a trial's fresh start. The top rung is the budget R of a trial, and each rung
below is 1/eta of the one above, rounded up to whole blocks.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Sizes = Literal["formula", "table"]


@dataclass(frozen=True)
class Bracket:
    """Rungs of one successive halving.

    Attributes:
        rungs: env steps of each rung, from the lowest one up.
        sizes: number of trials that train to each rung.
    """

    rungs: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Env steps of all trials. A promoted trial continues from its snapshot, so lower rungs are paid once."""
        lengths = (rung - below for below, rung in itertools.pairwise((0, *self.rungs)))
        return sum(size * length for size, length in zip(self.sizes, lengths, strict=True))


def rung_steps(horizon: int, lowest: int | Fraction, eta: int, block: int = 1) -> tuple[int, ...]:
    """Return the rungs R eta^-k down to the last one that is not below `lowest`, in ascending order.

    Each is rounded up to whole blocks, of which `lowest` is at least one.
    """
    count = 0
    while lowest * eta ** (count + 1) <= horizon:
        count += 1
    return tuple(-(-horizon // (eta**k * block)) * block for k in range(count, -1, -1))


def halving(trials: int, rungs: tuple[int, ...], eta: int) -> Bracket:
    """Return the bracket in which a 1/eta of the trials, rounded down but at least one, goes on at each rung."""
    return Bracket(rungs, tuple(max(1, trials // eta**k) for k in range(len(rungs))))


def hyperband(rungs: tuple[int, ...], eta: int, sizes: Sizes = "formula") -> tuple[Bracket, ...]:
    """Return the brackets s = s_max, ..., 0 of Hyperband (Li et al. 2018, arXiv 1603.06560, algorithm 1).

    `formula` starts n_s = ceil((s_max + 1) eta^s / (s + 1)) trials, as algorithm 1 does; `table` starts
    floor((s_max + 1) / (s + 1)) eta^s, the numbers of the paper's own table.
    """
    top = len(rungs) - 1
    counts = {
        "formula": [-(-(top + 1) * eta**s // (s + 1)) for s in range(top + 1)],
        "table": [(top + 1) // (s + 1) * eta**s for s in range(top + 1)],
    }[sizes]
    return tuple(halving(counts[s], rungs[top - s :], eta) for s in range(top, -1, -1))
