"""Entry points of worker processes, which receive only the resolved config as JSON."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pbtrl.build.rl import RLBuilder, rl_builder
from pbtrl.build.trainables import trainable_builder
from pbtrl.config.load import config_from_json
from pbtrl.config.schema import Config
from pbtrl.core.trainable import Builder

if TYPE_CHECKING:
    from pbtrl.rl.cohort_spec import CohortSpec
    from pbtrl.rl.remote_actors import Wire


def cohort_spec(config: str, agent: str | None) -> CohortSpec:
    """Make the specification of an agent's cohorts from the resolved config as JSON; for processes of a cohort."""
    return RLBuilder(config_from_json(config), agent).spec


def make_builder(config: str) -> Builder:
    """Make a worker's builder of cohorts from the resolved config as JSON."""
    parsed = config_from_json(config)
    if parsed.env is None:
        return trainable_builder(parsed)
    return rl_builder(parsed, partial(_wire, parsed) if parsed.spread_actors else None)


def _wire(config: Config) -> Wire:
    """Make the wire from this worker to its actors on other nodes."""
    from pbtrl.execution.ray_acting import RayWire

    return RayWire(config.execution)
