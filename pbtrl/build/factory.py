"""Factory: make the header, strategy, executor and stop criteria of a session from its config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pbtrl import envs
from pbtrl.build.determinism import determinism, is_deterministic
from pbtrl.build.placement import cluster_groups, worker_shares
from pbtrl.build.rl import RLBuilder, env_spaces
from pbtrl.build.trainables import fitness_name, largest_state, trainable_builder
from pbtrl.build.worker_entry import make_builder
from pbtrl.config.code_names import names_function
from pbtrl.config.load import resolve, with_setting
from pbtrl.config.schema import Config
from pbtrl.config.warnings import find_warnings
from pbtrl.config.yaml_source import ConfigSource
from pbtrl.core.dimensions import Choice
from pbtrl.core.naming import member_ids
from pbtrl.core.population import FitnessRule
from pbtrl.core.search_space import MixedSearchSpace
from pbtrl.core.stopping import StopCriteria
from pbtrl.core.tensors import Tensors
from pbtrl.envs.space_json import space_to_json
from pbtrl.errors import ConfigProblem
from pbtrl.execution import Executor
from pbtrl.execution.ray_checks import check_run_directory, check_settings
from pbtrl.rl.episode_metric import import_metric
from pbtrl.storage.run_directory import RunDirectory
from pbtrl.storage.run_header import RunHeader
from pbtrl.strategies import Strategy
from pbtrl.strategies.settings import StrategyContext

if TYPE_CHECKING:
    from pbtrl.execution.worker import WorkerSpec


def prepare(config: Config, source: ConfigSource | None = None) -> Config:
    """Resolve the config and the env's back end, and check that the strategy can be made and every agent fits the env.

    Raises:
        ConfigError: an optional package is missing, the env cannot be made, or an agent cannot read its observations or
            act in it. The error names the place in `source`.
    """
    config = resolve(config)
    try:
        make_strategy(config)
        if config.execution.backend == "ray":
            check_settings(config.execution)
        if config.env is None:
            trainable_builder(config)
            return config
        backend = envs.resolve_backend(config.env.id, **config.env.options)
        config = with_setting(config, "env.backend", backend)
        if names_function(config.fitness.metric):
            import_metric(config.fitness.metric)
        env_spaces(config)  # before any agent, which imports torch and takes a second
        problems = [p for name, c in config.per_agent_configs.items() if (p := _agent_problem(c, name))]
    except ConfigProblem as problem:
        raise (source or ConfigSource()).error([problem]) from problem
    if problems:
        raise (source or ConfigSource()).error(problems)
    return config


def collect_warnings(config: Config) -> list[str]:
    """Return the warnings about a prepared config, one line each, also those that depend on the env."""
    warnings = list(find_warnings(config))
    for c in config.per_agent_configs.values():
        assert c.agent
        assert c.env
        unused = RLBuilder(c).agent.unused
        idle = [name for name in c.hparams if name in unused]
        warnings += [f"hparams.{name} has no effect: {c.agent.name} does not use it in {c.env.id}" for name in idle]
    return warnings


def _agent_problem(config: Config, name: str | None) -> ConfigProblem | None:
    """Return why an agent, `name` in a mix, cannot read the env's observations or act in it; None if it can."""
    try:
        RLBuilder(config).check()
    except envs.EnvError:
        raise
    except ConfigProblem as problem:
        if name is None:
            return problem
        section, *rest = problem.paths[0]
        return ConfigProblem(problem.message, ("agents", name, *(rest if section == "agent" else ())))
    return None


def make_header(config: Config, name: str, initial: Mapping[str, Any] | None = None) -> RunHeader:
    """Make the first line of the journal; `initial` is as in `RunHeader`."""
    return RunHeader(
        name=name,
        seed=config.seed,
        size=config.population.size,
        horizon=config.steps_per_member,
        rule=_rule(config),
        frames_per_step=config.frames_per_step,
        unit="steps" if config.env is None else "env_steps",
        metric=fitness_name(config),
        hyperparameters=config.space.names,
        bounds=exploration_bounds(config),
        deterministic=determinism(config),
        spaces={} if config.env is None else space_descriptions(config),
        initial=initial or {},
        roles=config.strategy.roles(config.population.size),
        candidate_roles=config.strategy.candidate_roles,
        total=config.strategy.total_steps(config),
    )


def space_descriptions(config: Config) -> dict[str, Any]:
    """Return `RunHeader.spaces`: the env's own spaces as JSON."""
    observation, action = env_spaces(config).own
    return {"observation": space_to_json(observation), "action": space_to_json(action)}


def exploration_bounds(config: Config) -> dict[str, dict[str, tuple[float, float]]]:
    """Return `RunHeader.bounds`: the limits of each hyperparameter that the strategy may change."""
    if not config.strategy.explores:
        return {}
    spaces = config.space.spaces if isinstance(config.space, MixedSearchSpace) else {"": config.space}
    return {
        agent: {name: dimension.limits for name, dimension in space.items() if not isinstance(dimension, Choice)}
        for agent, space in spaces.items()
    }


def stop_criteria(config: Config) -> StopCriteria:
    """Return the limits that end the run before the members' budgets do.

    Where members share `total_steps`, each trains its share in whole blocks.
    """
    total = config.budget.total_steps
    if total is not None and not config.strategy.runs_trials:
        total = max(total, config.population.size * config.steps_per_member)
    return StopCriteria(
        wall_clock=config.budget.wall_clock,
        total_steps=total,
        until_fitness=config.budget.until_fitness,
        synchronous=config.population.mode == "sync",
        max_attempts=config.failure.max_restarts_per_member,
    )


def make_strategy(config: Config) -> Strategy:
    """Make the strategy that the config names."""
    return config.strategy.build(
        StrategyContext(
            space=config.space,
            slice_steps=config.slice_steps,
            horizon=config.steps_per_member,
            burn_in=config.burn_in,
            synchronous=config.population.mode == "sync",
            references=config.population.reference_members,
            curve_interval=config.curve_interval,
            block=config.block,
        )
    )


def snapshot_bytes(config: Config) -> int:
    """Estimate the bytes of one snapshot on disk; in a mix, of the largest agent."""
    return max(sum(values.nbytes for values in row.values()) for row in initial_tensors(config))


def initial_tensors(config: Config) -> list[Tensors]:
    """Return the tensors of a fresh member's snapshot, for each agent of a mix."""
    if config.env is None:
        return [largest_state(config)]
    import torch

    agents = [RLBuilder(c).agent for c in config.per_agent_configs.values()]
    states = [agent.init([torch.Generator().manual_seed(0)]) for agent in agents]
    return [{name: values[0].numpy() for name, values in state.tensors.items()} for state in states]


def make_executor(config: Config, run: RunDirectory) -> Executor:
    """Make the executor that the config names, for the members of a run directory."""
    from pbtrl.execution.host import Host
    from pbtrl.execution.inline import Inline
    from pbtrl.execution.processes import Processes

    members = member_ids(config.population.size)
    if config.execution.backend == "ray":
        return _make_ray_pool(config, run, members)
    if config.execution.backend == "inline":
        (share,) = worker_shares(config, members)
        host = Host.local(
            make_builder(config.to_json()),
            run.members,
            share.groups,
            threads=share.threads,
            discard_on_stop=_discards_on_stop(config),
        )
        return Inline(host)
    shares = worker_shares(config, members)
    return Processes([_worker_spec(config, run, s.groups, s.cores, s.threads) for s in shares])


def _worker_spec(
    config: Config, run: RunDirectory, groups: Sequence[Sequence[str]], cores: tuple[int, ...], threads: int
) -> WorkerSpec:
    """Make the start parameters of a worker; a process elsewhere needs them with absolute paths."""
    from pbtrl.execution.worker import WorkerSpec

    return WorkerSpec(
        builder="pbtrl.build.worker_entry:make_builder",
        config=config.to_json(),
        members=str(run.members.resolve()),
        groups=tuple(tuple(g) for g in groups),
        cores=cores,
        threads=threads,
        discard_on_stop=_discards_on_stop(config),
    )


def _discards_on_stop(config: Config) -> bool:
    """Return whether a stop discards open slices instead of reporting them, so that a resume trains them as a whole."""
    resets = config.env is not None and config.env.between_slices == "reset"
    return resets or is_deterministic(config)


def _make_ray_pool(config: Config, run: RunDirectory, members: Sequence[str]) -> Executor:
    from pbtrl.execution.ray import Cluster, RayPool

    execution = config.execution
    check_run_directory(run.path)
    cluster = Cluster(execution, run.ray_log, config.spread_actors)
    try:
        specs = [
            _worker_spec(config, run, groups, (), execution.cores_per_worker)
            for groups in cluster_groups(config, members, cluster.room())
        ]
        return RayPool(cluster, specs, run.journal_path.resolve() if execution.shared else None)
    except BaseException:
        cluster.close()
        raise


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
