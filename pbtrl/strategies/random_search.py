"""Random search, the baseline of PBT papers: hyperparameters are drawn from the prior once, and no member copies."""

from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.strategies.pbt import PBT
from pbtrl.strategies.rules import Exploit, Explore
from pbtrl.strategies.trials import IndependentTrials, Prior


def random_search(space: SearchSpace | MixedSearchSpace, *, slice_steps: int, horizon: int) -> PBT:
    """Make a PBT that never exploits and never explores, with the same initial draws and seeds as PBT itself.

    A member that diverged or was given up is retired: it gets no further assignments.
    """
    return PBT(
        space=space,
        slice_steps=slice_steps,
        horizon=horizon,
        exploit=Exploit(method="none"),
        explore=Explore(method="none"),
    )


def random_trials(
    space: SearchSpace | MixedSearchSpace, *, trials: int, slice_steps: int, horizon: int, synchronous: bool = False
) -> IndependentTrials:
    """Make a random search of more trials than train at once; a new one begins when another is over."""
    return IndependentTrials(
        propose=Prior(space), count=trials, slice_steps=slice_steps, horizon=horizon, synchronous=synchronous
    )
