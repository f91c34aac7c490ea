"""Names of the plots of a run, for callers that draw none and so need no matplotlib."""

from typing import Literal, get_args

Plot = Literal["training", "episodes", "population", "lineage", "timeline", "speed"]
PLOT_NAMES: tuple[Plot, ...] = get_args(Plot)
