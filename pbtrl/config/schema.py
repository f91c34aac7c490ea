"""Config of a run and the numbers derived from it. Frozen; imports no torch."""

import math
import re
from functools import cached_property, partial
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator, with_config
from pydantic_core import PydanticCustomError

from pbtrl.agents.settings import AGENTS, AgentSettings
from pbtrl.config import limits, registry
from pbtrl.config.code_names import code_modules
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
    FailureSettings,
    Final,
    Fitness,
    PopulationSettings,
    Searched,
    Section,
    Snapshots,
    TrainableSettings,
)
from pbtrl.core.naming import RUN_NAME
from pbtrl.core.search_space import MixedSearchSpace, SearchSpace
from pbtrl.core.values import Whole
from pbtrl.strategies.catalog import STRATEGIES
from pbtrl.strategies.pbt_settings import PBTSettings
from pbtrl.strategies.settings import StrategySettings
from pbtrl.system.strict_json import to_json


def refuse_unknown_keys(settings: type) -> None:
    """Make pydantic refuse unknown keys and infinite numbers in an agent's settings, which do not import pydantic."""
    with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(settings)


for _settings in AGENTS.values():
    refuse_unknown_keys(_settings)


def _run_name(value: object) -> object:
    if isinstance(value, str) and not RUN_NAME.fullmatch(value):
        raise PydanticCustomError("name", "must be a folder's name of letters, digits, '.', '_' and '-', at most 64")
    return value


def _named(name: str, entry: object) -> object:
    """Add its key as the default name to an entry of `agents`; leave it to pydantic to refuse other types."""
    entry = {} if entry is None else entry
    return {"name": name, **entry} if isinstance(entry, dict) else entry


KNOWN_AGENTS = partial(registry.known, "agent")
AGENT = TaggedUnion("name", AGENTS, "impala", "agent", KNOWN_AGENTS)
AGENT_ENTRY = TaggedUnion("name", AGENT_ENTRIES, None, "agent", KNOWN_AGENTS)
STRATEGY = TaggedUnion("name", STRATEGIES, "pbt", "strategy", partial(registry.known, "strategy"))


def _name_by_key(schema: dict[str, Any]) -> None:
    """Let entries of `agents` whose key is an agent's name have no name, or no settings, in the JSON schema."""
    entry = schema["additionalProperties"]
    branches = {name: {"type": "object"} for name in registry.known("agent")}
    for name, branch in zip(AGENT_ENTRIES, entry["anyOf"][:-1], strict=True):
        branches[name] = {key: value for key, value in branch.items() if key != "required"}
    schema["patternProperties"] = {
        f"^{re.escape(name)}$": {"anyOf": [branch, {"type": "null"}, entry]} for name, branch in branches.items()
    }


class Config(Section):
    """Config of one run. Required are a budget, and either `env` (with `agent` and `acting`) or `trainable`.

    Attributes:
        name: name of the run directory; by default the env and the time.
        seed: root of all randomness.
        init_from: run, or RUN/member, whose best (or named) member's newest snapshot all members begin from: weights,
            normalizer statistics and, with the same optimizer, its moments. By default they begin with fresh weights.
            The run keeps a copy of the snapshot.
        agents: agents of a mixed population, in place of `agent`; `population.mix` counts their members. The `name` of
            an entry is that of its agent, by default the entry's key.
        hparams: searched hyperparameters by name; all others are fixed in `agent`. In a mix they are searched for every
            agent.
    """

    name: Annotated[str, BeforeValidator(_run_name)] | None = None
    seed: Annotated[Whole, Field(ge=0)] = 0
    init_from: str | None = None
    env: Env | None = None
    agent: Annotated[AgentSettings, AGENT] | None = None
    agents: Annotated[dict[str, Annotated[AgentEntry, AGENT_ENTRY]], Field(json_schema_extra=_name_by_key)] | None = (
        None
    )
    acting: Acting | None = None
    trainable: TrainableSettings | None = None
    population: PopulationSettings = PopulationSettings()
    execution: Execution = Execution()
    budget: Budget = Budget()
    hparams: Searched = {}  # noqa: RUF012, pydantic copies it
    fitness: Fitness = Fitness()
    strategy: Annotated[StrategySettings, STRATEGY] = PBTSettings()
    snapshots: Snapshots = Snapshots()
    failure: FailureSettings = FailureSettings()
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

    # --- derived numbers ---

    @property
    def per_agent_configs(self) -> dict[str | None, Self]:
        """Config of each agent of the mix alone, by its entry; without a mix this config under None."""
        if self.agents is None:
            return {} if self.agent is None else {None: self}
        return {name: self._alone(entry) for name, entry in self.agents.items()}

    def _alone(self, entry: AgentEntry) -> Self:
        """Return the config of a run in which all members are of one entry."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        values |= {"agent": entry.settings, "agents": None, "hparams": {**self.hparams, **entry.hparams}}
        return self.model_construct(**values)

    @cached_property
    def space(self) -> SearchSpace | MixedSearchSpace:
        """Search space; in a mix, one per agent."""
        if self.agents is None:
            return self._narrowed()
        spaces = {
            name: SearchSpace(config._narrowed(), name)
            for name, config in self.per_agent_configs.items()
            if name is not None
        }
        return MixedSearchSpace(spaces, self.population.mix or {})

    def _narrowed(self) -> SearchSpace:
        """Return the search space of one agent, with `bounds: none` narrowed to the values that it accepts."""
        accepted = {} if self.agent is None else limits.accepted_ranges(self.agent)
        if self.agent is not None and self.agent.block_length is not None and "unroll_length" in accepted:
            accepted["unroll_length"] = (accepted["unroll_length"][0], self.agent.block_length)
        return SearchSpace(
            {name: dimension.within(*accepted.get(name, (None, None))) for name, dimension in self.hparams.items()}
        )

    @property
    def spread_actors(self) -> int:
        """Number of actors of a cohort on other nodes than its learner; 0 if there are none."""
        acting = self.acting
        return acting.processes if acting is not None and acting.placement == "spread" else 0

    @property
    def block_length(self) -> int:
        """Env steps per env in a block: as configured, or the largest possible unroll; 1 for a trainable.

        In a mix, the least common multiple over the agents.
        """
        if self.agent is None:
            return math.lcm(*(config.block_length for config in self.per_agent_configs.values()))
        return self.agent.block_length or limits.largest_unroll(self.agent, self.hparams.get("unroll_length"))

    @property
    def block(self) -> int:
        """Env steps of a member between two updates, over all its envs; 1 for a trainable."""
        return self.block_length * (1 if self.env is None else self.env.num_envs)

    def round_to_block(self, steps: int) -> int:
        """Round steps up to whole blocks."""
        return -(-steps // self.block) * self.block

    @property
    def steps_per_member(self) -> int:
        """Steps that each member trains for, in whole blocks."""
        total = None if self.strategy.runs_trials else self.budget.total_steps
        limits_per_member = [
            self.budget.env_steps_per_member,
            None if total is None else math.ceil(total / self.population.size),
        ]
        return self.round_to_block(min(limit for limit in limits_per_member if limit is not None))

    @property
    def has_own_updates(self) -> bool:
        """True if each member updates after unrolls of its own length, so that no two can share a cohort."""
        return self.agent is not None and self.agent.unroll_mode == "exact" and "unroll_length" in self.hparams

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
        default = self.strategy.curve_interval(self.slice_steps)
        return min(self.slice_steps, self.round_to_block(self.fitness.curve_interval or default))

    @property
    def unlimited_episode_steps(self) -> int:
        """Env steps after which an evaluation episode is cut where neither the env nor the config has a limit."""
        per_env = self.steps_per_member // (self.env.num_envs if self.env else 1)
        return min(max(per_env, SHORTEST_CUT), LONGEST_CUT)

    @property
    def frames_per_step(self) -> int:
        """Simulator frames per env step: the action repeat, 4 for ALE."""
        return 4 if self.env is not None and self.env.is_atari else 1

    @property
    def unit(self) -> str:
        """Unit of a member's clock: `env steps`, or `steps` for a trainable."""
        return "steps" if self.env is None else "env steps"

    @property
    def task(self) -> str:
        """Id of the env, or name of the trainable; empty if there is neither."""
        return self.env.id if self.env is not None else self.trainable.name if self.trainable is not None else ""

    @property
    def label(self) -> str:
        """Name of the run, or of its env or trainable in characters that a folder may have."""
        return self.name or re.sub(r"[^A-Za-z0-9._-]+", "-", self.task).strip("-._") or "run"

    @property
    def imports(self) -> tuple[str, ...]:
        """Modules named in the config, whose code the run executes; entry points of installed packages do not count."""
        return code_modules(self.to_dict())

    # --- text and back ---

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types; a searched hyperparameter has no fixed value under `agent`."""
        tree: dict[str, Any] = self.model_dump(mode="json")
        tree = {key: value for key, value in tree.items() if value is not None}
        for name, config in self.per_agent_configs.items():
            section, key = (tree, "agent") if name is None else (tree["agents"], name)
            section[key] = {k: v for k, v in section[key].items() if k not in config.hparams}
        return tree

    def to_json(self) -> str:
        """Convert to one line of JSON that `load.config_from_json` reads."""
        return to_json(self.to_dict())
