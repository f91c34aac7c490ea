"""Entry points of worker processes, which receive only the resolved config as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pbtrl.config.load import config_from_json
from pbtrl.core.trainable import Builder

if TYPE_CHECKING:
    from pbtrl.rl.cohort_spec import CohortSpec
from pbtrl.build.rl import RLBuilder, rl_builder
from pbtrl.build.trainables import trainable_builder


def cohort_spec(config: str, agent: str | None) -> CohortSpec:
    """Make the specification of an agent's cohorts from the resolved config as JSON; for processes of a cohort."""
    return RLBuilder(config_from_json(config), agent).spec


def make_builder(config: str) -> Builder:
    """Make a worker's builder of cohorts from the resolved config as JSON."""
    parsed = config_from_json(config)
    return trainable_builder(parsed) if parsed.env is None else rl_builder(parsed)
