"""The sections of a config: every key, its default and its meaning."""

import math
import re
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator
from pydantic_core import PydanticCustomError

from pbtrl.agents.settings import AGENTS, AgentSettings
from pbtrl.config.pydantic_errors import TaggedUnion
from pbtrl.core.dimensions import MEMBERS, PRIORS, Dimension, Real, Whole
from pbtrl.strategies.rules import Count

SHORTEST_CUT, LONGEST_CUT = 1_000, 27_000  # env steps of an evaluation episode without a limit; Atari's is the longest


_DURATION = re.compile("".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in "dhms"), re.ASCII)


def _duration(value: object) -> object:
    if isinstance(value, str):
        parts = _DURATION.fullmatch(value.replace(" ", ""))
        if value.strip() and parts:
            return sum(float(n) * s for n, s in zip(parts.groups(), (86400, 3600, 60, 1), strict=True) if n)
    elif not isinstance(value, bool) and isinstance(value, int | float):
        return value
    raise PydanticCustomError("duration", "must be a time such as 6h, 15m, 1h30m or 90s")


def _auto(value: object) -> object:
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise PydanticCustomError("auto", "must be auto or an integer >= 1")


AutoCount = Annotated[int | Literal["auto"], BeforeValidator(_auto)]


Seconds = Annotated[float, BeforeValidator(_duration, json_schema_input_type=float | str), Field(gt=0)]


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Searched = dict[str, Annotated[Dimension, TaggedUnion("prior", PRIORS)]]


@dataclass(frozen=True, kw_only=True)
class AgentEntry:
    """An agent of a mix: its settings, and what is searched for it alone.

    Attributes:
        hparams: what the search may change in this agent, besides what it may change in all of them.
    """

    name: str
    hparams: Searched = field(default_factory=dict)

    @property
    def settings(self) -> AgentSettings:
        """Those of the agent itself."""
        kind = AGENTS[self.name]
        return kind(**{f.name: getattr(self, f.name) for f in fields(kind)})


def agent_entry(settings: type) -> type:
    """An agent's settings with what an entry of `agents` adds to them."""
    return make_dataclass(f"{settings.__name__}Entry", (), bases=(settings, AgentEntry), frozen=True, kw_only=True)


AGENT_ENTRIES = {name: agent_entry(settings) for name, settings in AGENTS.items()}
"""What `agents` may hold, by the agent's name."""


class Env(Section):
    """The world that every member acts in.

    Attributes:
        id: a Gymnasium id (`ALE/Pong-v5`), or `module:function`.
        num_envs: envs per member.
        protocol: Atari's: `sticky` (repeat probability 0.25, full games) or `classic` (1-30 no-ops, a lost
            life ends a training episode). Recorded with every score.
        backend: which simulator steps the envs; `auto` is resolved once, when the run is built.
        between_slices: `continue` keeps the envs running from one slice to the next; `reset` starts each
            slice anew, which makes a slice a pure function of its assignment.
        kwargs: passed to the env's constructor. Text that begins with `./` or `../` is a path: relative to the folder
            of the file that says it, or, in an override, to the working directory. The run keeps it absolute.
    """

    @property
    def is_atari(self) -> bool:
        """Whether ale_py runs the env, under a protocol, with 4 frames per step."""
        return self.id.startswith("ALE/")

    id: str
    num_envs: Count = 16
    protocol: Literal["sticky", "classic"] = "sticky"
    backend: Literal["auto", "gymnasium", "envpool"] = "auto"
    between_slices: Literal["continue", "reset"] = "continue"
    kwargs: dict[str, JsonValue] = {}


class Trainable(BaseModel):
    """Something else than RL in place of env, agent and acting: its name, and its own keys."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def kwargs(self) -> dict[str, Any]:
        """Every key but `name`."""
        return dict(self.model_extra or {})


class Population(Section):
    """How many members there are, and what they are.

    Attributes:
        size: members alive at once; with a mix their sum.
        mode: `async` decides for each member when it is done, `sync` for all of a generation at once.
        reference_members: the control, donors but never receivers.
        mix: how many members begin as each entry of `agents`; they are dealt to the entries in this order.
    """

    size: Annotated[Count, Field(le=MEMBERS)] = 4
    mode: Literal["async", "sync"] = "async"
    reference_members: Annotated[Whole, Field(ge=0)] = 0
    mix: Annotated[dict[str, Count], Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _summed(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("mix"), dict) and data.get("size") is None:
            counts = [n for n in data["mix"].values() if isinstance(n, int | float) and 1 <= n < math.inf]
            return {**data, "size": sum(map(int, counts)) or 1}
        return data


class Execution(Section):
    """Where members train.

    Attributes:
        backend: `inline` (this process) or `processes`.
        workers: how many processes; `auto` is one per core that may be used (by affinity, and by the CPU quota of a
            container or batch job, rounded up), but no more than members.
        device: what tensors live on.
        cohort: members stacked into one tensor; `auto` leaves it to the executor.
    """

    backend: Literal["inline", "processes"] = "processes"
    workers: AutoCount = "auto"
    device: Literal["cpu"] = "cpu"
    cohort: AutoCount = "auto"


class Acting(Section):
    """Who acts.

    Attributes:
        mode: `inline`: the learner itself. `actors`: processes that act ahead of it, as in IMPALA. `hogwild`: processes
            that act and learn, and share weights without locks, as in A3C.
        processes: of a cohort, each with `env.num_envs` envs of its own per member; not used inline.
        replay: share of past unrolls in what an update of `actors` learns from; they come on top of the new ones.
        replay_size: how many past unrolls of a member, the newest, they are drawn from (20 steps of Atari are 0.6 MB).
    """

    mode: Literal["inline", "actors", "hogwild"] = "inline"
    processes: Count = 1
    replay: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    replay_size: Count = 1000


class Budget(Section):
    """When the run ends: whichever comes first.

    Attributes:
        env_steps_per_member: env steps (a trainable: steps) on each member's own clock.
        total_steps: of the whole population, shared evenly.
        wall_clock: seconds, or a text such as `6h`. The final choice may exceed it by a tenth, or by a minute where
            that is more; then its episodes under way are cut, and counted as such.
        until_fitness: stop once a member's fitness reaches this.
    """

    env_steps_per_member: Count | None = None
    total_steps: Count | None = None
    wall_clock: Seconds | None = None
    until_fitness: Real | None = None


class Fitness(Section):
    """What is maximized.

    Attributes:
        metric: the mean of raw, undiscounted episode returns.
        source: `training` episodes as they happen, or `evaluation` episodes apart at the end of each slice.
        window_episodes: newest episodes that count.
        min_episodes: fewer training episodes than this since the last copy, and a member has no fitness; of no meaning
            for `evaluation`, where every slice plays `episodes`.
        curve_interval: env steps between points of the curve inside a slice; by default one point per slice.
        episodes: evaluation episodes per slice, when source is `evaluation`.
    """

    metric: Literal["episode/return_mean"] = "episode/return_mean"
    source: Literal["training", "evaluation"] = "training"
    window_episodes: Count = 100
    min_episodes: Count = 10
    curve_interval: Count | None = None
    episodes: Count = 10


class Snapshots(Section):
    """Attributes: keep_last: newest per member; milestones_every: env steps between those kept for good."""

    keep_last: Count = 2
    milestones_every: Count | None = None


class Failure(Section):
    """What is done about what goes wrong.

    Attributes:
        max_restarts_per_member: how often a member may die while alone in its worker, until the strategy decides.
        env_step_timeout: seconds for one step of a cohort's envs, or a text such as `2m`; a worker that takes longer is
            replaced. Nothing watches over `execution.backend: inline`.
    """

    max_restarts_per_member: Annotated[Whole, Field(ge=1)] = 3
    env_step_timeout: Seconds = 60.0


class Final(Section):
    """The choice of the best member at the end, on seeds that training never saw.

    Attributes:
        candidates: members with the best training fitness that are evaluated again.
        selection_episodes: episodes each, to choose one of them.
        episodes: of the chosen one, on other seeds again, for the reported score and interval.
        max_steps: env steps after which an evaluation episode is cut, here, in `pbtrl eval` and where `fitness.source`
            is evaluation. By default the env's own limit; where it has none, as many as each env of a member trains,
            but at least 1,000 and at most 27,000 (the limit of Atari games). Results say how many episodes were cut.
    """

    candidates: Count = 3
    selection_episodes: Count = 16
    episodes: Count = 30
    max_steps: Count | None = None
