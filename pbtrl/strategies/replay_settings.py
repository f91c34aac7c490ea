"""Settings of the replay of a schedule."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import override

from pbtrl.core.values import Whole, integral
from pbtrl.errors import ConfigProblem, DimensionError
from pbtrl.strategies.settings import StrategyContext, StrategySettings
from pbtrl.system.strict_json import to_json

if TYPE_CHECKING:
    from pbtrl.strategies import Strategy


class SchedulePoint(BaseModel):
    """Point of a schedule: a step, and beside it the hyperparameters from there on, as in `{at: 0, gamma: 0.99}`.

    Attributes:
        at: steps trained before; the strategy rounds them up to whole blocks.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    at: Annotated[Whole, Field(ge=0)]

    @property
    def values(self) -> dict[str, Any]:
        """Hyperparameters by name."""
        return dict(self.model_extra or {})


@dataclass(frozen=True, kw_only=True)
class ScheduleReplaySettings(StrategySettings):
    """Settings of the replay of a schedule, which `pbtrl schedule` prints.

    Every point gives every searched hyperparameter: a searched one has no default, and one that stays constant is not
    searched but a setting of the agent.

    Attributes:
        schedule: points with increasing steps, the first one at 0. Points beyond the budget are never reached.
    """

    name: Literal["schedule_replay"] = "schedule_replay"
    schedule: Annotated[tuple[SchedulePoint, ...], Field(min_length=1)]

    @property
    @override
    def explores(self) -> bool:
        """False: hyperparameters follow the schedule."""
        return False

    @property
    @override
    def copies(self) -> bool:
        """False: members never copy."""
        return False

    @override
    def validate(self, config: Any) -> Iterator[ConfigProblem]:
        """Yield mistakes in the order of the points, and between them and the searched hyperparameters."""
        if config.agents is not None:
            text = "a schedule is that of one agent: replay it with `agent` in place of `agents`"
            yield ConfigProblem(text, ("strategy", "schedule"), ("agents",), at_key=True)
            return
        if self.schedule[0].at != 0:
            yield ConfigProblem(f"must begin at 0, not {self.schedule[0].at:,}", _path(0, "at"))
        for place, (before, point) in enumerate(pairwise(self.schedule), start=1):
            if point.at <= before.at:
                yield ConfigProblem(f"must be beyond the point before, {before.at:,}", _path(place, "at"))
            elif (step := config.round_to_block(point.at)) == config.round_to_block(before.at):
                text = f"is {step:,} in whole blocks of {config.block:,} {config.unit}, as is {before.at:,} before it"
                yield ConfigProblem(text, _path(place, "at"))
        try:
            space = config.space
        except DimensionError:  # a prior beyond what the agent accepts is a mistake of its own
            return
        for place, point in enumerate(self.schedule):
            for name in (name for name in point.values if name not in space):
                text = f"is not searched, and so not in a schedule. hparams: {', '.join(space) or 'none'}"
                yield ConfigProblem(text, _path(place, name), at_key=True)
            if lacking := [name for name in space if name not in point.values]:
                text = f"needs every searched hyperparameter, also {', '.join(lacking)}"
                yield ConfigProblem(text, _path(place))
            for name, dimension in space.items():
                if name in point.values and not dimension.contains(integral(value := point.values[name])):
                    text = f"must be {dimension.domain}, as hparams says, not {_shown(value)}"
                    yield ConfigProblem(text, _path(place, name))

    @override
    def warnings(self, config: Any) -> Iterator[str]:
        """Yield points beyond the budget."""
        if late := [point.at for point in self.schedule if point.at >= config.steps_per_member]:
            yield (
                f"strategy.schedule is longer than a member's budget ({config.steps_per_member:,} {config.unit}): "
                f"points from {late[0]:,} on are never reached"
            )

    @override
    def build(self, context: StrategyContext) -> "Strategy":
        """Make the strategy, with the points in whole blocks."""
        from pbtrl.core.search_space import SearchSpace
        from pbtrl.strategies.schedule_replay import ScheduleReplay

        assert isinstance(context.space, SearchSpace)
        return ScheduleReplay(
            schedule=tuple((context.round_to_block(p.at), context.space.clip(p.values)) for p in self.schedule),
            slice_steps=context.slice_steps,
            horizon=context.horizon,
        )


def _path(place: int, *keys: str) -> tuple[str | int, ...]:
    return ("strategy", "schedule", place, *keys)


def _shown(value: object) -> str:
    """Format a value as it stands in a config, shortened; JSON has no infinity."""
    infinite = isinstance(value, float) and not math.isfinite(value)
    return str(value) if infinite else to_json(value)[:80]
