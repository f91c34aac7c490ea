"""Strategies: pure functions from a population's history to its next assignments. One file each, no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # config imports strategies/settings.py, and answers quicker without numpy
    from pbtrl.core.messages import Assignment
    from pbtrl.core.population import Population


class Strategy(Protocol):
    """Decides, and does nothing else: same journal prefix, same answer.

    Randomness comes from `population.rng(member, generation, purpose)`. A strategy keeps no state of its own,
    so nothing of it is ever saved; what it needs to know is in the population.
    """

    def decide(self, population: Population) -> list[Assignment]:
        """The next assignments, for members that have none; empty means: wait for reports, or all is done."""
