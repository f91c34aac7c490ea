"""Hyperband (Li et al. 2018, arXiv 1603.06560): brackets of successive halving, from many short trials to few long."""

from __future__ import annotations

from pbtrl.strategies.brackets import Sizes
from pbtrl.strategies.brackets import hyperband as hyperband_brackets
from pbtrl.strategies.successive_halving import SuccessiveHalving
from pbtrl.strategies.trials import Proposer


def hyperband(
    propose: Proposer, *, rungs: tuple[int, ...], eta: int = 3, sizes: Sizes = "formula", slice_steps: int,
    horizon: int, synchronous: bool = False,
) -> SuccessiveHalving:  # fmt: skip
    """Make Hyperband: one bracket per rung at which trials may begin, the lowest one first."""
    return SuccessiveHalving(
        propose=propose,
        brackets=hyperband_brackets(rungs, eta, sizes),
        slice_steps=slice_steps,
        horizon=horizon,
        synchronous=synchronous,
    )
