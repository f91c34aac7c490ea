"""Sections of a config: every key, its default and its meaning."""

import math
import re
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from pbtrl.agents.settings import AGENTS, AgentSettings
from pbtrl.config.pydantic_errors import TaggedUnion
from pbtrl.core.dimensions import PRIORS, Dimension
from pbtrl.core.values import MAX_MEMBERS, Real, Whole
from pbtrl.strategies.rules import Count

# Env steps at which evaluation episodes without a limit are cut; the longest is the limit of Atari games.
SHORTEST_CUT, LONGEST_CUT = 1_000, 27_000


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
    """Base of sections: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


RETURN = "episode/return_mean"


def _metric(value: object) -> object:
    if value == RETURN or (isinstance(value, str) and re.fullmatch(r"episode/info/.+|[\w.]+:[\w.]+", value)):
        return value
    raise PydanticCustomError("metric", "must be episode/return_mean, episode/info/KEY or module:function")


Searched = dict[str, Annotated[Dimension, TaggedUnion("prior", PRIORS)]]


@dataclass(frozen=True, kw_only=True)
class AgentEntry:
    """Agent of a mix: its settings, and the hyperparameters that are searched for it alone.

    Attributes:
        hparams: searched hyperparameters of this agent, in addition to those of the run.
    """

    name: str
    hparams: Searched = field(default_factory=dict)

    @property
    def settings(self) -> AgentSettings:
        """Settings of the agent itself."""
        cls = AGENTS[self.name]
        return cls(**{f.name: getattr(self, f.name) for f in fields(cls)})


def agent_entry(settings: type) -> type:
    """Derive the class of an entry of `agents` from an agent's settings."""
    return make_dataclass(f"{settings.__name__}Entry", (), bases=(settings, AgentEntry), frozen=True, kw_only=True)


AGENT_ENTRIES = {name: agent_entry(settings) for name, settings in AGENTS.items()}
"""Classes of the entries of `agents`, by the agent's name."""


_PATH = re.compile(r"[\w.]+:[\w.]+")


def _wrapper(value: object) -> object:
    given = {"id": value} if isinstance(value, str) else value
    if isinstance(given, dict) and isinstance(name := given.get("id"), str) and not _PATH.fullmatch(name):
        raise PydanticCustomError("wrapper", "must be module:Wrapper, or {id: module:Wrapper, kwargs: {...}}")
    return given


class EnvWrapper(Section):
    """Wrapper of the user's own; written as `module:Wrapper` if it has no arguments.

    Attributes:
        id: `module:Wrapper`, a class or function that is called with the env and returns an env.
        kwargs: keyword arguments of the wrapper.
    """

    id: str
    kwargs: dict[str, JsonValue] = {}

    @model_serializer
    def _short(self) -> Any:
        return {"id": self.id, "kwargs": self.kwargs} if self.kwargs else self.id


class Env(Section):
    """Environment of every member.

    Attributes:
        id: a Gymnasium id (`ALE/Pong-v5`), or `module:function`.
        num_envs: envs per member.
        protocol: evaluation protocol of Atari: `sticky` (repeat probability 0.25, all 18 actions, full games) or
            `classic` (the game's own actions, up to 29 no-ops, a lost life ends a training episode). Recorded with
            every score. `kwargs: {full_action_space: ...}` chooses the other set of actions.
        backend: simulator of the envs; `auto` is resolved once, when the run is built.
        between_slices: `continue` keeps the envs running from one slice to the next. `reset` resets them before each
            slice, which makes a slice a pure function of its assignment.
        kwargs: keyword arguments of the env. Text that begins with `./` or `../` is a path, relative to the folder of
            the config file, or in an override to the working directory. The run stores it as an absolute path.
        wrappers: gymnasium wrappers of your own around every env, the innermost first: `module:Wrapper`, or
            `{id: module:Wrapper, kwargs: {...}}`. They run with the gymnasium back end.
        flatten_observations: whether observations of type Dict, Tuple, MultiDiscrete or MultiBinary become vectors, by
            gymnasium's rules; after the wrappers.
    """

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of `envs.make`, `envs.spaces` and `envs.make_unwrapped` beyond the id."""
        return {
            "backend": self.backend,
            "protocol": self.protocol,
            "kwargs": self.kwargs,
            "wrappers": tuple((wrapper.id, wrapper.kwargs) for wrapper in self.wrappers),
            "flatten_observations": self.flatten_observations,
        }

    @property
    def described(self) -> str:
        """The id, and what is around the env."""
        around = [*(wrapper.id for wrapper in self.wrappers), *(["flatten_observations"] * self.flatten_observations)]
        return f"{self.id} in {', '.join(around)}" if around else self.id

    @property
    def is_atari(self) -> bool:
        """True if ale_py runs the env, under a protocol, with 4 frames per step."""
        return self.id.startswith("ALE/")

    @property
    def typical_episode(self) -> int:
        """Rough length of an episode, in env steps; used only for warnings."""
        physics = ("HalfCheetah", "Ant", "Hopper", "Humanoid", "Walker2d", "Swimmer", "InvertedPendulum")
        return 1000 if self.is_atari or self.id.startswith(physics) else 200

    id: str
    num_envs: Count = 16
    protocol: Literal["sticky", "classic"] = "sticky"
    backend: Literal["auto", "gymnasium", "envpool"] = "auto"
    between_slices: Literal["continue", "reset"] = "continue"
    kwargs: dict[str, JsonValue] = {}
    wrappers: list[Annotated[EnvWrapper, BeforeValidator(_wrapper, json_schema_input_type=str | EnvWrapper)]] = []
    flatten_observations: bool = False


class TrainableSettings(BaseModel):
    """Model other than RL, in place of env, agent and acting: its name, and its own keys."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keys other than `name`, which are passed to the trainable."""
        return dict(self.model_extra or {})


class PopulationSettings(Section):
    """Size and composition of the population.

    Attributes:
        size: number of members; with a mix the sum of its counts.
        mode: `async` decides for each member at the end of its slice, `sync` for a whole generation at once.
        reference_members: number of control members, which may be donors but never receivers.
        mix: number of members that begin as each entry of `agents`; members are assigned to entries in this order.
    """

    size: Annotated[Count, Field(le=MAX_MEMBERS)] = 4
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


RAY_CLIENT = (
    "Ray Client (ray://) is not supported: start pbtrl on a node of the cluster, with "
    "`ray job submit --address http://HEAD:8265 -- pbtrl train ...` or by ssh"
)
_ADDRESS = re.compile(r"auto|local|ray://.*|(\[[0-9a-fA-F:]+\]|[^\s:/]+):\d{1,5}")  # ray:// is refused elsewhere


def _address(value: object) -> object:
    if isinstance(value, str) and _ADDRESS.fullmatch(value):
        return value
    raise PydanticCustomError("address", "must be auto, local or HOST:PORT, as `ray start --head` prints it")


class Execution(Section):
    """Processes and device on which members train.

    Attributes:
        backend: `inline` (this process), `processes`, or `ray` (workers on a Ray cluster; needs `pbtrl[ray]`).
        workers: number of processes; `auto` is one per usable core (by affinity, and by the CPU quota of a container or
            batch job, rounded up), but no more than members. On Ray, as many as the cluster has room for at the start.
        device: device of the tensors.
        cohort: number of members stacked into one tensor; `auto` leaves it to the executor.
        address: Ray cluster to join: `auto` (RAY_ADDRESS, or the cluster that this machine is a node of), HOST:PORT, or
            `local`, which starts one on this machine for this run. This and all below are for `backend: ray`.
        cores_per_worker: cores that Ray reserves for a worker, and threads of its simulators.
        gpus_per_worker: GPUs that Ray reserves for a worker; may be a fraction.
        resources: custom resources that a worker needs, as in `{trainer: 1}`.
        wait_for_workers: seconds, or a text such as `10m`, to wait for nodes with room for the workers; then the run
            goes on with the workers that are up, or fails if there are none.
        shared: whether all nodes see the run directory under the same path; then workers write snapshots themselves.
        ship: whether to send the modules in the working directory to all nodes.
        allow_mixed: whether nodes may have other versions of Python packages than this machine.
        insecure: whether to join a cluster without token login.
    """

    backend: Literal["inline", "processes", "ray"] = "processes"
    workers: AutoCount = "auto"
    device: Literal["cpu"] = "cpu"
    cohort: AutoCount = "auto"
    address: Annotated[str, BeforeValidator(_address)] = "auto"
    cores_per_worker: Count = 1
    gpus_per_worker: Annotated[Real, Field(ge=0)] = 0.0
    resources: dict[str, Annotated[Real, Field(gt=0)]] = {}
    wait_for_workers: Seconds = 600.0
    shared: bool = False
    ship: bool = False
    allow_mixed: bool = False
    insecure: bool = False


class Acting(Section):
    """Processes that act in the envs.

    Attributes:
        mode: `inline`: the learner acts itself. `actors`: processes act ahead of the learner, as in IMPALA. `hogwild`:
            processes act and learn, and share weights without locks, as in A3C.
        processes: processes per cohort, each with its own `env.num_envs` envs per member; not used inline.
        placement: where `actors` act: `local`, beside the learner in its worker, or `spread` over the nodes of a Ray
            cluster (`execution.backend: ray`), which reserves a core for each.
        replay: share of past unrolls in the batch of an update with `actors`; they are added to the new ones.
        replay_size: number of newest past unrolls of a member that are kept for replay (20 steps of Atari are 0.6 MB).
    """

    mode: Literal["inline", "actors", "hogwild"] = "inline"
    processes: Count = 1
    placement: Literal["local", "spread"] = "local"
    replay: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    replay_size: Count = 1000


class Budget(Section):
    """Limits of the run; the first one that is reached ends it.

    Attributes:
        env_steps_per_member: env steps (for a trainable, steps) of each member.
        total_steps: env steps of the whole population, shared evenly; not shared if members are trials that come and
            go, as with `asha`.
        wall_clock: seconds, or a text such as `6h`. The final choice may exceed it by a tenth, but at least a minute;
            then its unfinished episodes are cut, and counted as truncated.
        until_fitness: fitness of one member at which the run stops.
    """

    env_steps_per_member: Count | None = None
    total_steps: Count | None = None
    wall_clock: Seconds | None = None
    until_fitness: Real | None = None


class Fitness(Section):
    """Objective of the search.

    Attributes:
        metric: number of an episode whose mean is maximized: `episode/return_mean`, the raw, undiscounted return;
            `episode/info/KEY`, a number of the episode's last info; or `module:function`, called with the raw return,
            the length and the last info.
        source: `training` episodes, or separate `evaluation` episodes at the end of each slice.
        window_episodes: number of newest episodes that are averaged.
        min_episodes: training episodes since the last copy that a member needs to have a fitness. Not used with
            `evaluation`, where every slice plays `episodes`.
        curve_interval: env steps between points of the curve inside a slice; by default one point per slice, with
            `strategy.name: fire` ten. A trainable is evaluated at every point.
        episodes: evaluation episodes per slice, when source is `evaluation`.
    """

    metric: Annotated[str, BeforeValidator(_metric)] = RETURN
    source: Literal["training", "evaluation"] = "training"
    window_episodes: Count = 100
    min_episodes: Count = 10
    curve_interval: Count | None = None
    episodes: Count = 10

    @property
    def metric_name(self) -> str:
        """Name of the fitness in tables and plots."""
        return "fitness" if self.metric == RETURN else re.split("[/:]", self.metric)[-1]


class Snapshots(Section):
    """Retention of snapshots.

    Attributes:
        keep_last: number of newest snapshots that are kept per member.
        milestones_every: env steps between snapshots that are kept permanently; None keeps none.
    """

    keep_last: Count = 2
    milestones_every: Count | None = None


class FailureSettings(Section):
    """Handling of failures.

    Attributes:
        max_restarts_per_member: failures of a slice, while its member is alone in a worker, after which it is given
            up and the strategy decides how to continue.
        env_step_timeout: seconds for one step of a cohort's envs, or a text such as `2m`; a worker that takes longer is
            replaced. Has no effect with `execution.backend: inline`.
    """

    max_restarts_per_member: Annotated[Whole, Field(ge=1)] = 3
    env_step_timeout: Seconds = 60.0


class Final(Section):
    """Final choice of the best member, on seeds that were not used for training.

    Attributes:
        candidates: number of members, the best by training fitness, that are evaluated again.
        selection_episodes: episodes of each candidate, for the choice.
        episodes: episodes of the chosen member, on other seeds, for the reported score and its interval.
        max_steps: env steps after which an evaluation episode is cut, here, in `pbtrl eval` and with `fitness.source:
            evaluation`. By default the env's own limit; where it has none, the training steps of each env of a member,
            between 1,000 and 27,000 (the limit of Atari games). Results say how many episodes were cut.
    """

    candidates: Count = 3
    selection_episodes: Count = 16
    episodes: Count = 30
    max_steps: Count | None = None
