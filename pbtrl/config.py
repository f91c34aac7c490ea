"""The whole configuration of a run: what may be written, its defaults, and the numbers that follow from it.

`load` reads a YAML file with overrides and tells every mistake at once (loading.py finds the lines, checks.py
what only shows when two settings are seen together). The sections are frozen, and nothing here needs torch.
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator, with_config
from pydantic_core import PydanticCustomError

from pbtrl import checks
from pbtrl.agents.settings import AGENTS, AgentSettings, live_hyperparameters
from pbtrl.core.dimensions import MEMBERS, PRIORS, Dimension, Real, Value, Whole
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.errors import ConfigError
from pbtrl.loading import Source, Tagged, dumped, validated
from pbtrl.strategies.settings import STRATEGIES, Count, Pbt, Strategy
from pbtrl.system.strict_json import to_json

__all__ = ["Config", "ConfigError", "json_schema", "load", "parse", "shipped"]

for _settings in AGENTS.values():  # agents know nothing of pydantic, so its rules are attached from here
    with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(_settings)


LARGEST = 2**20  # bytes of a config
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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Searched = dict[str, Annotated[Dimension, Tagged("prior", PRIORS)]]


@dataclass(frozen=True, kw_only=True)
class Entry:
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


ENTRIES: dict[str, type] = {
    name: make_dataclass(f"{settings.__name__}Entry", (), bases=(settings, Entry), frozen=True, kw_only=True)
    for name, settings in AGENTS.items()
}
"""What `agents` may hold: every agent's settings with what an `Entry` adds to them."""


class Env(_Section):
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


class Population(_Section):
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


class Execution(_Section):
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


class Acting(_Section):
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


class Budget(_Section):
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


class Fitness(_Section):
    """What is maximised.

    Attributes:
        metric: the mean of raw, undiscounted episode returns.
        source: `training` episodes as they happen, or `evaluation` episodes apart at the end of each slice.
        window_episodes: newest episodes that count.
        min_episodes: fewer training episodes than this since the last copy, and a member has no fitness; of no meaning
            for `evaluation`, where every slice plays `episodes`.
        every: env steps between points of the curve inside a slice; by default one point per slice.
        episodes: evaluation episodes per slice, when source is `evaluation`.
    """

    metric: Literal["episode/return_mean"] = "episode/return_mean"
    source: Literal["training", "evaluation"] = "training"
    window_episodes: Count = 100
    min_episodes: Count = 10
    every: Count | None = None
    episodes: Count = 10


class Snapshots(_Section):
    """Attributes: keep_last: newest per member; milestones_every: env steps between those kept for good."""

    keep_last: Count = 2
    milestones_every: Count | None = None


class Failure(_Section):
    """What is done about what goes wrong.

    Attributes:
        max_restarts_per_member: how often a member may die while alone in its worker, until the strategy decides.
        env_step_timeout: seconds for one step of a cohort's envs, or a text such as `2m`; a worker that takes longer is
            replaced. Nothing watches over `execution.backend: inline`.
    """

    max_restarts_per_member: Annotated[Whole, Field(ge=1)] = 3
    env_step_timeout: Seconds = 60.0


class Final(_Section):
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


def _run_name(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise PydanticCustomError("name", "must be a folder's name of letters, digits, '.', '_' and '-', at most 64")
    return value


def _named(name: str, entry: object) -> object:
    """An entry of `agents` under its key; what is no section is left to be refused."""
    entry = {} if entry is None else entry
    return {"name": name, **entry} if isinstance(entry, dict) else entry


class Config(_Section):
    """One run. Either `env` (with `agent` and `acting`) or `trainable`; the rest has defaults, save a budget.

    Attributes:
        name: of the run directory; by default the env and the time.
        seed: all randomness follows from it.
        agents: in place of `agent`, those that `population.mix` counts; an entry's `name` says which agent it is, by
            default its own key.
        hparams: what the search may change, by name; anything else is fixed in `agent`. In a mix every agent has it.
    """

    name: Annotated[str, BeforeValidator(_run_name)] | None = None
    seed: Annotated[Whole, Field(ge=0)] = 0
    env: Env | None = None
    agent: Annotated[AgentSettings, Tagged("name", AGENTS, default="impala", what="agent")] | None = None
    agents: dict[str, Annotated[Entry, Tagged("name", ENTRIES, what="agent")]] | None = None
    acting: Acting | None = None
    trainable: Trainable | None = None
    population: Population = Population()
    execution: Execution = Execution()
    budget: Budget = Budget()
    hparams: Searched = {}
    fitness: Fitness = Fitness()
    strategy: Annotated[Strategy, Tagged("name", STRATEGIES, default="pbt", what="strategy")] = Pbt()
    snapshots: Snapshots = Snapshots()
    failure: Failure = Failure()
    final: Final = Final()

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if isinstance(entries := data.get("agents"), dict):
            data = {**data, "agents": {name: _named(name, entry) for name, entry in entries.items()}}
        if data.get("env") is None:
            return data
        given = {key: value for key, value in data.items() if value is not None}
        return {"acting": {}, **({} if "agents" in given else {"agent": {}}), **given}

    # --- what follows from the settings ---

    @property
    def kinds(self) -> dict[str | None, Self]:
        """By the name of each agent in the mix, a config of that agent alone; this one under None without a mix."""
        if self.agents is None:
            return {} if self.agent is None else {None: self}
        return {name: self._alone(entry) for name, entry in self.agents.items()}

    def _alone(self, entry: Entry) -> Self:
        """The same run with all its members of one agent, with whatever is searched for them."""
        mine = {name: getattr(self, name) for name in type(self).model_fields}
        mine |= {"agent": entry.settings, "agents": None, "hparams": {**self.hparams, **entry.hparams}}
        return self.model_construct(**mine)

    @cached_property
    def space(self) -> SearchSpace | MixedSearchSpace:
        """The search space, or that of every agent in the mix."""
        if self.agents is None:
            return self._narrowed()
        spaces = {name: SearchSpace(kind._narrowed(), name) for name, kind in self.kinds.items() if name is not None}
        return MixedSearchSpace(spaces, self.population.mix or {})

    def _narrowed(self) -> SearchSpace:
        """The search space of one agent, `bounds: none` narrowed to what it accepts."""
        accepted = {} if self.agent is None else checks.accepted(self.agent)
        if self.agent is not None and self.agent.block_length is not None and "unroll_length" in accepted:
            accepted["unroll_length"] = (accepted["unroll_length"][0], self.agent.block_length)
        return SearchSpace(
            {name: dimension.within(*accepted.get(name, (None, None))) for name, dimension in self.hparams.items()}
        )

    @cached_property
    def fixed(self) -> dict[str, Value]:
        """The one agent's live hyperparameters that are not searched, and their values."""
        live = {} if self.agent is None else live_hyperparameters(self.agent)
        return {name: value for name, value in live.items() if name not in self.hparams}

    @property
    def block_length(self) -> int:
        """Env steps per env in a block: as written, or the largest unroll there can be; 1 for a trainable.

        In a mix, the shortest that is whole blocks of every agent.
        """
        if self.agent is None:
            return math.lcm(*(kind.block_length for kind in self.kinds.values()))
        return self.agent.block_length or checks.largest_unroll(self)

    @property
    def block(self) -> int:
        """Env steps of a member between two updates, over all its envs; 1 for a trainable."""
        return self.block_length * (1 if self.env is None else self.env.num_envs)

    def round_to_block(self, steps: int) -> int:
        """The steps, rounded up to whole blocks."""
        return -(-steps // self.block) * self.block

    @property
    def steps_per_member(self) -> int:
        """Steps that each member trains for, in whole blocks."""
        shares = [
            self.budget.env_steps_per_member,
            None if self.budget.total_steps is None else math.ceil(self.budget.total_steps / self.population.size),
        ]
        return self.round_to_block(min(share for share in shares if share is not None))

    @property
    def every(self) -> int:
        """Steps of a slice, in whole blocks."""
        return self.round_to_block(self.strategy.ready.every or math.ceil(self.steps_per_member / 25))

    @property
    def burn_in(self) -> int:
        """Steps of a member before its first exploit, in whole blocks."""
        return self.round_to_block(self.strategy.ready.burn_in)

    @property
    def curve_every(self) -> int:
        """Steps between two points of the fitness curve, in whole blocks; at most a slice."""
        return min(self.every, self.round_to_block(self.fitness.every or self.every))

    @property
    def unlimited_episode_steps(self) -> int:
        """Env steps after which an evaluation episode is cut where neither the env nor the config has a limit."""
        per_env = self.steps_per_member // (self.env.num_envs if self.env else 1)
        return min(max(per_env, SHORTEST_CUT), LONGEST_CUT)

    @property
    def frames_per_step(self) -> int:
        """Simulator frames per env step: our action repeat, 4 for ALE."""
        return 4 if self.env is not None and self.env.id.startswith("ALE/") else 1

    @property
    def unit(self) -> str:
        """What a member's clock counts: `env steps`, or `steps` for a trainable."""
        return "steps" if self.env is None else "env steps"

    @property
    def label(self) -> str:
        """The run's name, or the env's or trainable's as a folder's name."""
        what = self.env.id if self.env is not None else self.trainable.name if self.trainable is not None else "run"
        return self.name or re.sub(r"[^A-Za-z0-9._-]+", "-", what).strip("-._") or "run"

    @property
    def imports(self) -> str | None:
        """The module that is imported for the env, and so runs its code; None for an env by a library's id."""
        module, colon, _ = ("", "", "") if self.env is None else self.env.id.partition(":")
        return module if colon else None

    @property
    def warnings(self) -> list[str]:
        """What can be run but is probably not meant, one line each."""
        return list(checks.warnings(self))

    # --- text and back ---

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; a searched hyperparameter has no second, fixed value under `agent`."""
        tree: dict[str, Any] = self.model_dump(mode="json")
        tree = {key: value for key, value in tree.items() if value is not None}
        for name, kind in self.kinds.items():
            section, key = (tree, "agent") if name is None else (tree["agents"], name)
            section[key] = {k: v for k, v in section[key].items() if k not in kind.hparams}
        return tree

    def to_json(self) -> str:
        """One line that `from_json` turns into an equal config."""
        return to_json(self.to_dict())

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        """A config from plain values, with every check of `load`. Raises ConfigError."""
        source = Source()
        source.data = dict(tree)
        return validated(cls, source, checks.before, checks.after, checks.ALIASES)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config that `to_json` wrote."""
        return cls.from_dict(json.loads(text))

    def changed(self, path: str, value: Any) -> Self:
        """A copy with one dotted path set, checked again: `config.changed("env.backend", "envpool")`."""
        tree = self.to_dict()
        *sections, last = path.split(".")
        below = tree
        for section in sections:
            below = below.setdefault(section, {})
        below[last] = value
        return self.from_dict(tree)

    def resolved(self) -> Self:
        """The same run with slices, block length and budget written out, in whole blocks."""
        tree = self.to_dict()
        tree["budget"]["env_steps_per_member"] = self.steps_per_member
        tree["strategy"]["ready"] = {"every": self.every, "burn_in": self.burn_in}
        tree["fitness"]["every"] = self.curve_every
        for name, kind in self.kinds.items():
            settings = tree["agent"] if name is None else tree["agents"][name]
            settings["block_length"] = kind.block_length
        return self.from_dict(tree)

    def dump_yaml(self) -> str:
        """The resolved config as YAML, for config.resolved.yaml; it loads as the same run."""
        return dumped(self.resolved().to_dict())


def _folder() -> Path:
    return Path(__file__).parent / "configs"


def shipped() -> list[str]:
    """Names of the configs that come with pbtrl, for `load`."""
    return sorted(path.stem for path in _folder().glob("*.yaml"))


def locate(path_or_name: str | Path) -> Path:
    """The file that is meant: a path, or the bare name of a shipped config, also beside a folder of that name."""
    path = Path(os.path.expanduser(path_or_name) if isinstance(path_or_name, str) else path_or_name)
    absent = not os.path.exists(path) or os.path.isdir(path)
    if absent and path.name == str(path_or_name) and path.stem in shipped():
        return _folder() / f"{path.stem}.yaml"
    return path


def read(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Source:
    """What a YAML file, or a shipped config by its bare name, says, with `a.b=value` overrides. Raises ConfigError."""
    if "\0" in str(path_or_name):
        raise ConfigError([f"{str(path_or_name)[:80]!r}: no path has a zero byte in it"])
    path = locate(path_or_name)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ConfigError([f"{path}: larger than {LARGEST / 2**20:.0f} MiB, which no config is"])
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such file. Shipped configs: {', '.join(shipped())}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: not UTF-8 text"]) from None
    except OSError as error:
        raise ConfigError([f"{path}: {(error.strerror or str(error)).lower()}"]) from None
    return Source(text, str(path), overrides)


def checked(source: Source) -> Config:
    """The config that a source says. Raises ConfigError, whose text is every mistake with its place."""
    env = source.data.get("env")
    if isinstance(env, dict) and "kwargs" in env:
        source.data["env"] = {**env, "kwargs": _with_absolute_paths(env["kwargs"], ("env", "kwargs"), source)}
    return validated(Config, source, checks.before, checks.after, checks.ALIASES)


def _with_absolute_paths(value: Any, at: tuple[str | int, ...], source: Source) -> Any:
    if isinstance(value, dict):
        return {key: _with_absolute_paths(below, (*at, key), source) for key, below in value.items()}
    if isinstance(value, list):
        return [_with_absolute_paths(below, (*at, place), source) for place, below in enumerate(value)]
    if isinstance(value, str) and value.startswith(("./", "../")):
        written = source.marks.get(at)
        folder = Path(source.file).parent if written is not None and written.override is None else Path()
        return os.path.abspath(folder / value)
    return value


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A config from a YAML file or a shipped config's name, and overrides; see `read` and `checked`."""
    return checked(read(path_or_name, overrides))


def parse(text: str, file: str = "config", overrides: Sequence[str] = ()) -> Config:
    """A config from YAML text; `file` is the name that messages give it. Raises ConfigError."""
    return checked(Source(text, file, overrides))


def json_schema() -> dict[str, Any]:
    """The JSON schema of a config, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
