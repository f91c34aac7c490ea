"""The configuration of a run, and the numbers that follow from it. Frozen; needs no torch."""

import math
import re
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator, with_config
from pydantic_core import PydanticCustomError

from pbtrl.agents.settings import AGENTS, AgentSettings
from pbtrl.config import limits
from pbtrl.config.pydantic_errors import TaggedUnion
from pbtrl.config.sections import (
    AGENT_ENTRIES,
    LONGEST_CUT,
    SHORTEST_CUT,
    Acting,
    AgentEntry,
    Budget,
    Env,
    Execution,
    Failure,
    Final,
    Fitness,
    Population,
    Searched,
    Section,
    Snapshots,
    Trainable,
)
from pbtrl.core.dimensions import Whole
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.strategies.settings import STRATEGIES, PBTSettings, StrategySettings
from pbtrl.system.strict_json import to_json


def refuse_unknown_keys(settings: type) -> None:
    """Attach pydantic's rules to an agent's settings, which know nothing of pydantic."""
    with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(settings)


for _settings in AGENTS.values():
    refuse_unknown_keys(_settings)


def _run_name(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise PydanticCustomError("name", "must be a folder's name of letters, digits, '.', '_' and '-', at most 64")
    return value


def _named(name: str, entry: object) -> object:
    """An entry of `agents` under its key; what is no section is left to be refused."""
    entry = {} if entry is None else entry
    return {"name": name, **entry} if isinstance(entry, dict) else entry


class Config(Section):
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
    agent: Annotated[AgentSettings, TaggedUnion("name", AGENTS, default="impala", what="agent")] | None = None
    agents: dict[str, Annotated[AgentEntry, TaggedUnion("name", AGENT_ENTRIES, what="agent")]] | None = None
    acting: Acting | None = None
    trainable: Trainable | None = None
    population: Population = Population()
    execution: Execution = Execution()
    budget: Budget = Budget()
    hparams: Searched = {}  # noqa: RUF012, pydantic copies it
    fitness: Fitness = Fitness()
    strategy: Annotated[StrategySettings, TaggedUnion("name", STRATEGIES, default="pbt", what="strategy")] = (
        PBTSettings()
    )
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

    def _alone(self, entry: AgentEntry) -> Self:
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
        accepted = {} if self.agent is None else limits.accepted_ranges(self.agent)
        if self.agent is not None and self.agent.block_length is not None and "unroll_length" in accepted:
            accepted["unroll_length"] = (accepted["unroll_length"][0], self.agent.block_length)
        return SearchSpace(
            {name: dimension.within(*accepted.get(name, (None, None))) for name, dimension in self.hparams.items()}
        )

    @property
    def block_length(self) -> int:
        """Env steps per env in a block: as written, or the largest unroll there can be; 1 for a trainable.

        In a mix, the shortest that is whole blocks of every agent.
        """
        if self.agent is None:
            return math.lcm(*(kind.block_length for kind in self.kinds.values()))
        return self.agent.block_length or limits.largest_unroll(self.agent, self.hparams.get("unroll_length"))

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
    def slice_steps(self) -> int:
        """Steps of a slice, in whole blocks."""
        return self.round_to_block(self.strategy.slice_steps(self.steps_per_member))

    @property
    def burn_in(self) -> int:
        """Steps of a member before its first exploit, in whole blocks."""
        return self.round_to_block(self.strategy.ready.burn_in)

    @property
    def curve_interval(self) -> int:
        """Steps between two points of the fitness curve, in whole blocks; at most a slice."""
        return min(self.slice_steps, self.round_to_block(self.fitness.curve_interval or self.slice_steps))

    @property
    def unlimited_episode_steps(self) -> int:
        """Env steps after which an evaluation episode is cut where neither the env nor the config has a limit."""
        per_env = self.steps_per_member // (self.env.num_envs if self.env else 1)
        return min(max(per_env, SHORTEST_CUT), LONGEST_CUT)

    @property
    def frames_per_step(self) -> int:
        """Simulator frames per env step: our action repeat, 4 for ALE."""
        return 4 if self.env is not None and self.env.is_atari else 1

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
    def imports(self) -> tuple[str, ...]:
        """Modules whose code the run executes, besides those of installed packages that a bare name stands for."""
        named = [None if self.env is None else self.env.id, self.strategy.name]
        named += [kind.agent.name for kind in self.kinds.values() if kind.agent is not None]
        named += [None if self.trainable is None else self.trainable.name]
        return tuple(dict.fromkeys(name.partition(":")[0] for name in named if name is not None and ":" in name))

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
        """One line that `load.config_from_json` turns into an equal config."""
        return to_json(self.to_dict())
