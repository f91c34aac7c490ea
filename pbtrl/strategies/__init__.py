"""Strategies: pure functions from the history of a population to its next assignments. One file each, no torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # config imports strategies/settings.py and starts faster without numpy
    from pbtrl.core.messages import Assignment
    from pbtrl.core.population import Population


class Strategy(Protocol):
    """Interface of strategies. Decisions depend only on the journal so far.

    Randomness comes from `population.rng(member, generation, purpose)`. A strategy has no state, so nothing of it is
    saved; the population holds everything that it needs.
    """

    def decide(self, population: Population) -> list[Assignment]:
        """Return assignments for members that have none. An empty list means to wait, or that all members are done.

        `population.free` says how many members may start at once. Strategies that make new members must respect it.
        """

    def retired(self, population: Population) -> Collection[str]:
        """Return the members that will never get an assignment again although their budget is not used up."""
        return ()
