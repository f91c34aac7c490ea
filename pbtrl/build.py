"""The only module that knows every name: from a config to strategies, executors, cohorts and evaluators."""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import multiprocessing
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pbtrl import envs
from pbtrl.config.load import config_from_json, resolve, with_setting
from pbtrl.config.schema import Config
from pbtrl.config.warnings import find_warnings
from pbtrl.config.wording import Fault
from pbtrl.config.yaml_source import ConfigSource
from pbtrl.core.dimensions import AGENT, Choice
from pbtrl.core.messages import Assignment
from pbtrl.core.population import FitnessRule
from pbtrl.core.search_space import MixedSearchSpace
from pbtrl.core.stopping import StopCriteria
from pbtrl.core.tensors import Tensors, check_fit
from pbtrl.core.trainable import Builder, Cohort
from pbtrl.errors import SnapshotError
from pbtrl.execution import Executor
from pbtrl.storage.run_header import RunHeader
from pbtrl.strategies import Strategy
from pbtrl.system import cgroups
from pbtrl.system.malloc import retain_freed_memory
from pbtrl.trainables.quadratic import QuadraticBuilder

if TYPE_CHECKING:
    from pbtrl.agents.actor_critic import ActorCritic
    from pbtrl.rl.setting import Setting

Evaluator = Callable[..., list[Any]]

DETERMINISTIC = "yes, bit for bit on this kind of processor with these versions"

TRAINABLES = {"quadratic": QuadraticBuilder}


def prepared(config: Config, source: ConfigSource | None = None) -> Config:
    """The config with the env's back end resolved, after a look at the env and its agents together.

    Raises:
        ConfigError: an env that cannot be had, or that an agent cannot read or act in; placed in `source`.
    """
    config = resolve(config)
    try:
        if config.env is None:
            _trainable_builder(config)
            return config
        backend = envs.resolve_backend(config.env.id, config.env.backend, config.env.kwargs)
        config = with_setting(config, "env.backend", backend)
        _spaces(config)  # before any agent, which takes torch and a second
        unfit = [why for name, kind in config.kinds.items() if (why := _unfit(kind, name))]
    except ValueError as error:
        unfit = [str(error)]
    if unfit:
        raise (source or ConfigSource()).error(_fault(why) for why in unfit)
    return config


def warnings(config: Config) -> list[str]:
    """What can be run but is probably not meant, one line each; in a prepared config also what only the env tells."""
    found = list(find_warnings(config))
    for kind in config.kinds.values():
        assert kind.agent
        assert kind.env
        unused = RLBuilder(kind).agent.unused
        idle = [name for name in kind.hparams if name in unused]
        found += [f"hparams.{name} has no effect: {kind.agent.name} does not use it in {kind.env.id}" for name in idle]
    return found


def _fault(message: str) -> Fault:
    """A message that begins with a dotted name, as in `env.id=Pong: no such env`, as a fault at that place."""
    named = re.match(r"((?:\w+\.)+\w+)(?:=|: | )", message)
    if named is None:
        return Fault.at(message, ("env", "id"))
    return Fault.at(message[named.end() :], tuple(named[1].split(".")))


def _unfit(config: Config, name: str | None) -> str | None:
    """Why an agent cannot live in the env, in one line that says which of a mix it is; None if it can."""
    try:
        RLBuilder(config).check()
    except envs.EnvError:
        raise
    except ValueError as error:
        why = str(error)
        if name is None:
            return why
        return f"agents.{name}{'.' if why.startswith('agent.') else ': '}{why.removeprefix('agent.')}"
    return None


def header(config: Config, name: str) -> RunHeader:
    """The journal's first line for a run of this config."""
    return RunHeader(
        name=name,
        seed=config.seed,
        size=config.population.size,
        horizon=config.steps_per_member,
        rule=_rule(config),
        frames_per_step=config.frames_per_step,
        unit="steps" if config.env is None else "env_steps",
        hyperparameters=config.space.names,
        bounds=_bounds(config),
        deterministic=_deterministic(config),
    )


def _bounds(config: Config) -> dict[str, dict[str, tuple[float, float]]]:
    """What `Header.bounds` holds."""
    rule = config.strategy
    if rule.name == "random_search" or rule.explore.method == "none":
        return {}
    spaces = config.space.spaces if isinstance(config.space, MixedSearchSpace) else {"": config.space}
    return {
        agent: {name: dimension.limits for name, dimension in space.items() if not isinstance(dimension, Choice)}
        for agent, space in spaces.items()
    }


def limits(config: Config) -> StopCriteria:
    """What ends the run besides the members' own budgets."""
    return StopCriteria(
        wall_clock=config.budget.wall_clock,
        total_steps=config.budget.total_steps,
        until_fitness=config.budget.until_fitness,
        deaths=config.failure.max_restarts_per_member,
    )


def strategy(config: Config) -> Strategy:
    """The strategy that the config names."""
    from pbtrl.strategies.pbt import PBT
    from pbtrl.strategies.random_search import random_search

    rule = config.strategy
    if rule.name == "random_search":
        return random_search(config.space, every=config.every, horizon=config.steps_per_member)
    return PBT(
        space=config.space,
        every=config.every,
        horizon=config.steps_per_member,
        burn_in=config.burn_in,
        exploit=rule.exploit,
        explore=rule.explore,
        copy=frozenset(rule.copy),
        synchronous=config.population.mode == "sync",
        references=config.population.reference_members,
    )


def snapshot_bytes(config: Config) -> int:
    """What one snapshot takes on the disk, about; in a mix, one of the largest agent."""
    if config.env is None:
        rows = [_trainable_builder(config).make(np.random.default_rng(0)).state_dict()]
        return sum(values.nbytes for row in rows for values in row.values())
    import torch

    agents = [RLBuilder(kind).agent for kind in config.kinds.values()]
    states = [agent.init([torch.Generator().manual_seed(0)]) for agent in agents]
    return max(sum(values.nbytes for values in state.tensors.values()) for state in states)


def executor(config: Config, run: Path, members: Sequence[str]) -> Executor:
    """The executor that the config names, for the members of a run directory."""
    from pbtrl.execution.host import Host
    from pbtrl.execution.inline import Inline
    from pbtrl.execution.processes import Processes, WorkerSpec

    discard = config.env is not None and config.env.between_slices == "reset"
    folder = run / "members"
    if config.execution.backend == "inline":
        (share,) = shares(config, members)
        host = Host(builder(config.to_json()), folder, share.groups, threads=share.threads, discard_on_stop=discard)
        return Inline(host)
    return Processes(
        [
            WorkerSpec(
                builder="pbtrl.build:builder",
                config=config.to_json(),
                members=str(folder.resolve()),
                groups=tuple(tuple(g) for g in share.groups),
                cores=share.cores,
                threads=share.threads,
                discard_on_stop=discard,
            )
            for share in shares(config, members)
        ]
    )


@dataclass(frozen=True)
class WorkerShare:
    """A worker's share of the machine and of the population.

    Attributes:
        cores: that it is pinned to.
        threads: that it may keep busy.
        groups: of members, each a cohort where it can be one.
    """

    cores: tuple[int, ...]
    threads: int
    groups: list[list[str]]


def shares(config: Config, members: Sequence[str]) -> list[WorkerShare]:
    """Split cores and members among the workers.

    A CPU quota limits time, on whatever core, and other jobs may have the same cores. Where it allows less than all
    cores, workers are therefore not pinned to one each (every such job would crowd the first ones): all may use all.
    """
    cores, usable, count = available_cores(), usable_cores(), workers(config)
    groups, threads = _groups(config, members, count), max(1, usable // count)
    pinned = usable == len(cores)
    return [
        WorkerShare(_share(cores, w, count) if pinned else tuple(cores), threads, groups[w::count])
        for w in range(count)
    ]


def workers(config: Config) -> int:
    """Worker processes; one for `inline`."""
    if config.execution.backend == "inline":
        return 1
    asked, size = config.execution.workers, config.population.size
    groups = size if (cohort := _cohort(config)) == "auto" else math.ceil(size / cohort)
    each = 1 if config.acting is None else config.acting.processes
    return min(groups, max(1, usable_cores() // each) if asked == "auto" else asked)


def torch_threads(config: Config) -> int:
    """How many a worker computes with: one, as who shares a worker depends on the executor; all cores for one alone.

    Sums over two threads are not those over one, so the results depend on it.
    """
    if config.population.size > 1 or config.acting is None or config.acting.mode != "inline":
        return 1
    (share,) = shares(config, [""])
    return share.threads


def placement(config: Config) -> str:
    """How many members train where, in a few words."""
    size = config.population.size
    text = "1 member" if size == 1 else f"{size} members"
    count = workers(config)
    if config.execution.backend == "inline":
        text += " in this process"
    else:
        text += f" on {count} worker{'s' if count > 1 else ''}"
    if config.env is None:
        return text
    return f"{text}, {config.env.num_envs} envs each{_acting(config)}"


def _acting(config: Config) -> str:
    """Who acts for a cohort, where it does not act itself."""
    acting = config.acting
    if acting is None or acting.mode == "inline":
        return ""
    named = {"actors": "actor", "hogwild": "hogwild process"}[acting.mode]
    plural = ("s" if acting.mode == "actors" else "es") if acting.processes > 1 else ""
    return f" in {acting.processes} {named}{plural}"


def available_cores() -> list[int]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def usable_cores() -> int:
    """How many of the available cores this process may keep busy: all, or a CPU quota, rounded up."""
    cores, quota = len(available_cores()), cgroups.cpu_quota()
    return cores if quota is None else min(cores, math.ceil(quota))


def setting(config: str, agent: str | None) -> Setting:
    """What the RL cohorts of an agent share, from the resolved config as JSON; their own processes ask for it."""
    return RLBuilder(config_from_json(config), agent).setting


def builder(config: str) -> Builder:
    """What a worker makes cohorts with, from the resolved config as JSON."""
    parsed = config_from_json(config)
    return _trainable_builder(parsed) if parsed.env is None else rl_builder(parsed)


def rl_builder(config: Config) -> RLBuilder | MixedBuilder:
    """What makes the cohorts of a config that has an env."""
    return RLBuilder(config) if config.agents is None else MixedBuilder(config)


class MixedBuilder:
    """RL cohorts for a population of several agents; a builder of its own makes those of each."""

    def __init__(self, config: Config) -> None:
        self._builders = {name: RLBuilder(config, name) for name in config.kinds}

    def structure(self, assignment: Assignment) -> object:
        """The agent; and where it updates every unroll, whose length is the member's own, the member."""
        name = assignment.hyperparameters[AGENT]
        return name, assignment.member if self._builders[name].exact else None

    def cohort(self, members: Sequence[str], threads: int, structure: object = None) -> Cohort:
        """A cohort for these members, which are all of one agent."""
        assert isinstance(structure, tuple)
        return self._builders[structure[0]].cohort(members, threads)


class RLBuilder:
    """RL cohorts of one agent, which has a name where the config is of a mix."""

    def __init__(self, config: Config, name: str | None = None) -> None:
        kind = config.kinds[name]
        assert kind.env is not None
        assert kind.agent is not None
        assert kind.acting is not None
        self._config, self._env, self._agent, self._acting = kind, kind.env, kind.agent, kind.acting
        self._whole, self._name = config, name

    def check(self) -> None:
        """Raise ValueError, with one line, if the agent cannot live in the env."""
        _ = self.agent

    @property
    def exact(self) -> bool:
        """Whether a member updates every unroll, so that only members of equal unrolls could share a cohort."""
        return self._agent.unroll_mode == "exact"

    def structure(self, assignment: Assignment) -> object:
        """All members share one; what differs are live hyperparameters."""
        return None

    def cohort(self, members: Sequence[str], threads: int, structure: object = None) -> Cohort:
        """A cohort for these members."""
        import torch

        from pbtrl.rl.actors import ActorsCohort
        from pbtrl.rl.cohort import RLCohort
        from pbtrl.rl.hogwild import HogwildCohort

        retain_freed_memory()
        torch.set_num_threads(torch_threads(self._whole))
        torch.use_deterministic_algorithms(_deterministic(self._whole) == DETERMINISTIC)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        kinds = {"inline": RLCohort, "actors": ActorsCohort, "hogwild": HogwildCohort}
        return kinds[self._acting.mode](members, self.setting, threads)

    def evaluate(
        self, rows: Sequence[Tensors], *, episodes: int, seed: int, deterministic: bool = False, threads: int = 1,
        seconds: float | None = None,
    ) -> list[Any]:  # fmt: skip
        """Fresh episodes with each snapshot; see `rl.evaluate.evaluate`."""
        from pbtrl.rl.evaluate import evaluate

        make = self._maker(training=False)
        return evaluate(
            self.agent, self.to_env, make, rows,
            episodes=episodes, seed=seed, deterministic=deterministic, threads=threads,
            max_steps=self._config.final.max_steps, fallback=self._config.unlimited_episode_steps, seconds=seconds,
        )  # fmt: skip

    @cached_property
    def agent(self) -> ActorCritic:
        """The algorithm, for this env's spaces."""
        module = importlib.import_module(f"pbtrl.agents.{self._agent.name}")
        shown = _spaces(self._config)
        agent: ActorCritic = module.make(self._agent, shown.single_observation_space, shown.single_action_space)
        return agent

    @cached_property
    def to_env(self) -> Callable[..., Any]:
        """From the policy's stored actions to those that the env takes."""
        import torch
        from gymnasium.spaces import Box

        space = _spaces(self._config).single_action_space
        policy = self.agent.policy
        if not isinstance(space, Box):
            return policy.to_env
        low, high = torch.as_tensor(space.low), torch.as_tensor(space.high)
        return lambda action: policy.to_env(action, low.float(), high.float())

    @cached_property
    def setting(self) -> Setting:
        """What its cohorts share."""
        from pbtrl.agents.settings import live_hyperparameters
        from pbtrl.rl.setting import Origin, Setting

        config = self._config
        fitness = config.fitness
        evaluate = None
        if fitness.source == "evaluation":

            def evaluate(row: Tensors, seed: int, threads: int) -> list[float]:
                (played,) = self.evaluate([row], episodes=fitness.episodes, seed=seed, threads=threads)
                return list(played.returns)

        return Setting(
            agent=self.agent,
            to_env=self.to_env,
            make=self._maker(training=True),
            envs=self._env.num_envs,
            block=config.block_length,
            exact=self.exact,
            reset=self._env.between_slices == "reset",
            every=config.curve_every,
            live=live_hyperparameters(self._agent),
            structural={} if self._name is None else {AGENT: self._name},
            origin=Origin("pbtrl.build:setting", self._whole.to_json(), self._name),
            processes=self._acting.processes,
            replay=self._acting.replay,
            replay_size=self._acting.replay_size,
            evaluate=evaluate,
        )

    def _maker(self, *, training: bool) -> Callable[[Sequence[int], int], envs.Vector]:
        env, patience = self._env, _patience(self._config)

        def make(seeds: Sequence[int], threads: int) -> envs.Vector:
            made = functools.partial(
                envs.make, env.id, seeds, threads=threads, backend=env.backend, protocol=env.protocol,
                training=training, kwargs=env.kwargs,
            )  # fmt: skip
            if patience is None:
                return made()
            vector: envs.Vector = envs.within(patience + len(seeds), made)()  # a second more for each of them
            return envs.impatient(vector, patience)

        return make


def _patience(config: Config) -> float | None:
    """Seconds that envs may take; None in the first process, where nobody would notice and start another."""
    return config.failure.env_step_timeout if _in_worker() else None


def _in_worker() -> bool:
    return multiprocessing.parent_process() is not None


def _spaces(config: Config) -> envs.Spaces:
    """A look at the env, which makes one and closes it; see `envs.spaces`.

    Raises:
        EnvError: it cannot be had, or, in the first process, not in time.
    """
    env, seconds = config.env, config.failure.env_step_timeout
    assert env is not None
    look = functools.partial(envs.spaces, env.id, backend=env.backend, protocol=env.protocol, kwargs=env.kwargs)
    late = f"env.id={env.id}: a first look at one env took longer than failure.env_step_timeout ({seconds:g} s)"
    found: envs.Spaces = envs.within(seconds, look, None if _in_worker() else envs.EnvError(late))()
    return found


def _trainable_builder(config: Config) -> QuadraticBuilder:
    assert config.trainable is not None
    found = config.trainable
    if found.name not in TRAINABLES:
        raise ValueError(f"trainable.name: no trainable {found.name!r}: there is {', '.join(TRAINABLES)}")
    builder = TRAINABLES[found.name]
    known = [f.name for f in fields(builder)]
    if unknown := [key for key in found.kwargs if key not in known]:
        raise ValueError(f"trainable.{unknown[0]}: {found.name} has no such key, but {', '.join(known)}")
    return builder(**found.kwargs)


def _rule(config: Config) -> FitnessRule:
    fitness = config.fitness
    if config.env is None:
        return FitnessRule(window=1, min_episodes=1)
    return FitnessRule(
        source=fitness.source,
        window=fitness.window_episodes,
        min_episodes=fitness.min_episodes if fitness.source == "training" else 1,
        share=0.5,
        cut_episodes=config.env.between_slices == "reset",
    )


def _deterministic(config: Config) -> str:
    if config.population.mode == "async":
        return "no, because members decide when they are done (population.mode: async)"
    if config.acting is not None and config.acting.mode == "actors":
        return "no, because actors act with whatever weights are newest (acting.mode: actors)"
    if config.acting is not None and config.acting.mode == "hogwild" and config.acting.processes > 1:
        return "no, because processes change the weights without locks (acting.mode: hogwild)"
    if config.env is not None and config.env.between_slices == "continue":
        return "no, because envs run on between slices (env.between_slices: continue)"
    return DETERMINISTIC


def _groups(config: Config, members: Sequence[str], count: int) -> list[list[str]]:
    """Members in cohorts: as many as asked for, or one cohort per worker."""
    size = _cohort(config)
    if size == "auto":
        cuts = [len(members) * i // count for i in range(count + 1)]
        return [list(members[a:b]) for a, b in itertools.pairwise(cuts)]
    return [list(members[i : i + size]) for i in range(0, len(members), size)]


def _cohort(config: Config) -> int | Literal["auto"]:
    """Members in a cohort; one where their updates differ in length."""
    exact = config.agent is not None and config.agent.unroll_mode == "exact"
    return 1 if exact else config.execution.cohort


def _share(cores: Sequence[int], worker: int, count: int) -> tuple[int, ...]:
    """A worker's own cores: an equal share, or one that it shares where there are too few."""
    each = len(cores) // count
    return tuple(cores[worker * each : (worker + 1) * each]) if each else (cores[worker % len(cores)],)


def evaluator(config: Config) -> Evaluator:
    """`(rows, agents, episodes=, seed=, deterministic=, seconds=)` -> per snapshot what `rl.evaluate.Episodes` holds.

    `agents` says which of the mix each snapshot is, None without a mix.
    """
    if config.env is None:
        return functools.partial(_evaluate_trainables, _trainable_builder(config))
    import torch

    torch.set_num_threads(1)
    builders = {name: RLBuilder(config, name) for name in config.kinds}
    return functools.partial(_evaluate_agents, builders, threads=usable_cores())


def _evaluate_agents(
    builders: Mapping[str | None, RLBuilder], rows: Sequence[Tensors], agents: Sequence[str | None], *,
    seconds: float | None = None, **options: Any,
) -> list[Any]:  # fmt: skip
    """The snapshots of each agent together, whatever their order; each agent gets an equal share of the `seconds`."""
    played: dict[int, Any] = {}
    kinds = list(dict.fromkeys(agents))
    for agent in kinds:
        if agent not in builders:
            raise SnapshotError(f"a snapshot is of an agent that the config does not have: {agent}")
        places = [i for i, other in enumerate(agents) if other == agent]
        options["seconds"] = None if seconds is None else seconds / len(kinds)
        played |= zip(places, builders[agent].evaluate([rows[i] for i in places], **options), strict=True)
    return [played[i] for i in range(len(rows))]


def _evaluate_trainables(
    builder: QuadraticBuilder, rows: Sequence[Tensors], agents: Sequence[str | None], *, episodes: int, seed: int,
    deterministic: bool = False, seconds: float | None = None,
) -> list[Any]:  # fmt: skip
    """One evaluation is all there is to a trainable, however many episodes are asked for."""
    found = []
    for row in rows:
        rng = np.random.default_rng(seed)
        trainable = builder.make(rng)
        check_fit(trainable.state_dict(), row)
        trainable.load_state_dict(row)
        played = {"returns": [trainable.evaluate(rng)], "lengths": [0], "seeds": [seed]}
        found.append(SimpleNamespace(**played, max_steps=None, truncated=0, timed_out=False))
    return found


def describe_env(config: Config) -> str:
    """The env and its spaces in a few words, with what was changed about them, and what runs it."""
    assert config.env is not None
    env, shown = config.env, _spaces(config)
    seen = "x".join(str(n) for n in shown.single_observation_space.shape or ())
    action = shown.single_action_space
    taken = f"{action.n} actions" if hasattr(action, "n") else f"{(action.shape or (0,))[0]} continuous actions"
    runs = env.protocol if env.id.startswith("ALE/") else envs.describe_backend(env.id, env.backend, env.kwargs)
    return ", ".join([env.id, f"{seen} -> {taken}", *filter(None, [shown.remark]), runs])


def describe_slices(config: Config) -> str:
    """How long slices are, and which of the config's numbers were rounded up to whole blocks."""
    ready, budget = config.strategy.ready, config.budget.env_steps_per_member
    text = f"{config.every:,} {config.unit} each"
    if config.burn_in:
        text += f", no copies before {config.burn_in:,}"
    asked = {"budget.env_steps_per_member": budget, "ready.every": ready.every, "ready.burn_in": ready.burn_in}
    rounded = [f"{k} {v:,} to {config.round_to_block(v):,}" for k, v in asked.items() if v and v % config.block]
    return f"{text}; in whole blocks of {config.block:,}: {', '.join(rounded)}" if rounded else text


def describe_agent(config: Config) -> str:
    """The agent and its size in a few words; in a mix, a line for each with the number of its members."""
    counts, kinds = config.population.mix or {}, config.kinds
    return "\n".join(f"{counts[name]} {name}: {_described(kinds[name])}" for name in counts) or _described(config)


def _described(config: Config) -> str:
    assert config.agent is not None
    from pbtrl.agents.networks import chosen

    agent = RLBuilder(config).agent
    parameters, kind = agent.net.size + agent.policy.free_size, chosen(config.agent, agent.image)
    core = "" if config.agent.core == "none" else f" with {config.agent.core}"
    blocks = f"blocks of {config.block_length} steps ({config.agent.unroll_mode})"
    return f"{config.agent.name}, {kind}{core} of {parameters:,} parameters, {blocks}"
