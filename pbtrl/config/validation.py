"""Checks of a config beyond the types of single settings; each mistake is one line."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pbtrl.agents.settings import AGENTS, AgentSettings, live_hyperparameters
from pbtrl.config.limits import describe_interval, is_within, largest_unroll
from pbtrl.config.renamed_keys import RENAMED
from pbtrl.config.sections import RAY_CLIENT, RETURN
from pbtrl.config.wording import Path, shown, unknown
from pbtrl.core.dimensions import AGENT, Choice, IntLogUniform, IntUniform
from pbtrl.errors import ConfigProblem

if TYPE_CHECKING:
    from pbtrl.config.schema import Config
    from pbtrl.config.sections import Acting

ALIASES = {
    "lr": "learning_rate",
    "alpha": "learning_rate",
    "step_size": "learning_rate",
    "ent_coef": "entropy_cost",
    "entropy": "entropy_cost",
    "entropy_coef": "entropy_cost",
    "entropy_coefficient": "entropy_cost",
    "vf_coef": "value_cost",
    "value_coef": "value_cost",
    "value_loss_coef": "value_cost",
    "discount": "gamma",
    "unroll": "unroll_length",
    "n_steps": "unroll_length",
    "rollout": "unroll_length",
    "rollout_length": "unroll_length",
    "horizon": "unroll_length",
    "gae_lambda": "lambda_",
    "lambda": "lambda_",
    "lam": "lambda_",
    "eps": "rmsprop_epsilon",
    "epsilon": "rmsprop_epsilon",
    "grad_clip": "max_grad_norm",
    "clip": "max_grad_norm",
    "clip_coef": "clip",
    "clip_range": "clip",
    "clip_vloss": "value_clip",
    "num_minibatches": "minibatches",
    "n_minibatches": "minibatches",
    "ppo_epochs": "epochs",
    "update_epochs": "epochs",
    "n_epochs": "epochs",
    "n_envs": "num_envs",
    "envs": "num_envs",
    "n_members": "size",
    "pop_size": "size",
    "population_size": "size",
    "steps": "env_steps_per_member",
    "env_steps": "env_steps_per_member",
    "time": "wall_clock",
    "min": "low",
    "max": "high",
    "interval": "slice_steps",
    "every": "slice_steps",
    "perturbation_interval": "slice_steps",
    "hyperparameters": "hparams",
    "hyperparams": "hparams",
    "algo": "agent",
    **RENAMED,
}
"""Names of other libraries, mapped to pbtrl's; used for suggestions only."""


def check_raw(raw: dict[str, Any]) -> Iterator[ConfigProblem]:
    """Yield mistakes that only the raw tree shows, before defaults are filled in."""
    yield from _cluster(_section(raw, "execution"))
    if raw.get("trainable") is not None:
        for key in ("env", "agent", "agents", "acting"):
            if raw.get(key) is not None:
                yield ConfigProblem("not used with `trainable`: remove one of the two", (key,), at_key=True)
        if _section(raw, "population").get("mix") is not None:
            yield ConfigProblem("not used with `trainable`: remove one of the two", ("population", "mix"), at_key=True)
        if _section(raw, "fitness").get("metric", RETURN) != RETURN:
            yield ConfigProblem("not used with `trainable`, which has its own", ("fitness", "metric"), at_key=True)
        if AGENT in _section(raw, "hparams"):
            yield ConfigProblem("is reserved; choose another hyperparameter name", ("hparams", AGENT), at_key=True)
        return
    if raw.get("env") is None:
        yield ConfigProblem("missing; say which env, as in `env: {id: CartPole-v1}`", ("env",))
    shared: dict[str, Path] = {name: ("hparams", name) for name in _section(raw, "hparams")}
    if raw.get("agents") is not None:
        if raw.get("init_from") is not None:
            yield ConfigProblem("not used with `agents`: a snapshot is of one agent", ("init_from",), at_key=True)
        yield from _entries(raw, shared)
        return
    agent = {} if raw.get("agent") is None else raw["agent"]
    kind = AGENTS.get(str(agent.get("name", "impala"))) if isinstance(agent, dict) else None
    if kind is not None:
        yield from _fixed(kind, agent, ("agent",), shared)
        yield from _searched(kind, shared)


def _cluster(execution: Mapping[str, Any]) -> Iterator[ConfigProblem]:
    """Check the settings of a Ray cluster."""
    if str(execution.get("address")).startswith("ray://"):
        yield ConfigProblem(RAY_CLIENT, ("execution", "address"))
    for name, setting in (("CPU", "cores_per_worker"), ("GPU", "gpus_per_worker")):
        if name in _section(execution, "resources"):
            yield ConfigProblem(f"is set by execution.{setting}", ("execution", "resources", name), at_key=True)


def _entries(raw: dict[str, Any], shared: Mapping[str, Path]) -> Iterator[ConfigProblem]:
    """Check the entries of `agents`: fixed settings, their own hyperparameters, and the `shared` ones of the run."""
    if raw.get("agent") is not None:
        yield ConfigProblem("not used with `agents`: remove one of the two", ("agent",), at_key=True)
    kinds: dict[str, type[AgentSettings]] = {}
    for name, written in _section(raw, "agents").items():
        entry = {} if written is None else written
        kind = AGENTS.get(str(entry.get("name", name))) if isinstance(entry, dict) else None
        if kind is None:
            continue
        kinds[name] = kind
        at: Path = ("agents", name)
        own: dict[str, Path] = {h: (*at, "hparams", h) for h in _section(entry, "hparams")}
        yield from _fixed(kind, entry, at, {**shared, **own})
        yield from _searched(kind, own)
        for twice in own.keys() & shared.keys():
            text = f"searched both for all agents and for {name} alone: remove one"
            yield ConfigProblem(text, own[twice], shared[twice], at_key=True)
    yield from _searched_by_all(kinds, shared)


def _fixed(
    kind: type[AgentSettings], agent: Mapping[str, Any], at: Path, searched: Mapping[str, Path]
) -> Iterator[ConfigProblem]:  # fmt: skip
    live = live_hyperparameters(kind)
    for name, value in agent.items():
        if name in live and isinstance(value, bool):
            yield ConfigProblem(f"must be a number, not {shown(value)}", (*at, name))
        if name in live and name in searched:
            text = f"both fixed under {_dotted(at)} and searched under {_dotted(searched[name][:-1])}: remove one"
            yield ConfigProblem(text, (*at, name), searched[name], at_key=True)


def _searched(kind: type[AgentSettings], searched: Mapping[str, Path]) -> Iterator[ConfigProblem]:
    live = live_hyperparameters(kind)
    for name, path in searched.items():
        if name in {f.name for f in fields(kind)} - live.keys():
            yield ConfigProblem(f"fixed for a run. What can be searched: {', '.join(live)}", path, at_key=True)
        elif name not in live:
            text = unknown(f"{kind.name} has no such hyperparameter", name, live, ALIASES)
            yield ConfigProblem(text, path, at_key=True)


def _searched_by_all(kinds: Mapping[str, type[AgentSettings]], shared: Mapping[str, Path]) -> Iterator[ConfigProblem]:
    """Check that every agent of the mix has the hyperparameters that are searched for all."""
    live = {name: live_hyperparameters(kind) for name, kind in kinds.items()}
    common = [h for h in next(iter(live.values()), ()) if all(h in has for has in live.values())]
    for h, path in shared.items():
        lacking = [name for name, has in live.items() if h not in has]
        if not lacking:
            continue
        if having := [f"agents.{name}.hparams" for name in live if name not in lacking]:
            text = f"{_listed(lacking, 'and')} {'has' if len(lacking) == 1 else 'have'} no such hyperparameter: "
            text += f"search it under {_listed(having, 'and')}"
        elif any(h in {f.name for f in fields(kind)} for kind in kinds.values()):
            text = f"fixed for a run. What can be searched: {', '.join(common)}"
        else:
            text = unknown("no agent of the mix has such a hyperparameter", h, common, ALIASES)
        yield ConfigProblem(text, path, at_key=True)


def check_config(config: "Config") -> Iterator[ConfigProblem]:
    """Yield mistakes between settings that are valid one by one."""
    population, budget, fitness, strategy = config.population, config.budget, config.fitness, config.strategy
    if population.reference_members > population.size:
        yield ConfigProblem(
            f"reference_members {population.reference_members} is more than size {population.size}",
            ("population", "reference_members"),
            ("population", "size"),
        )
    if budget.env_steps_per_member is None and budget.total_steps is None:
        yield ConfigProblem("needs env_steps_per_member or total_steps", ("budget",))
    elif budget.env_steps_per_member is None and strategy.trials:
        text = f"needs env_steps_per_member, the budget of one trial of {strategy.name}"
        yield ConfigProblem(text, ("budget",))
    else:
        yield from strategy.validate(config)
    if fitness.min_episodes > fitness.window_episodes:
        yield ConfigProblem(
            f"min_episodes {fitness.min_episodes} is more than window_episodes {fitness.window_episodes}",
            ("fitness", "min_episodes"),
            ("fitness", "window_episodes"),
        )
    if config.trainable is None:
        yield from _mix(config)
    if config.acting is not None:
        yield from _acting(config.acting, config.execution.backend)
    if "__main__" in config.imports:
        text = "worker processes do not import the main module: put the function into a module of its own"
        main: Path = ("env", "wrappers") if config.env and not config.env.id.startswith("__main__:") else ("env", "id")
        yield ConfigProblem(text, main)
    for name, agent_config in config.per_agent_configs.items():
        at: Path = ("agent",) if name is None else ("agents", name)
        own = config.agents[name].hparams if config.agents is not None and name is not None else {}
        searched = {h: ((*at, "hparams", h) if h in own else ("hparams", h)) for h in agent_config.hparams}
        yield from _agent(agent_config, at, searched)


def _acting(acting: "Acting", backend: str) -> Iterator[ConfigProblem]:
    if acting.mode == "inline" and acting.processes > 1:
        text = "inline has no processes of its own: set mode to actors or hogwild"
        yield ConfigProblem(text, ("acting", "processes"))
    if acting.replay and acting.mode != "actors":
        text = f"only mode actors can replay, not {acting.mode}"
        yield ConfigProblem(text, ("acting", "replay"), ("acting", "mode"))
    if acting.placement == "spread" and acting.mode != "actors":
        text = f"only actors can be spread over nodes, and mode is {acting.mode}: set it to actors"
        yield ConfigProblem(text, ("acting", "placement"), ("acting", "mode"))
    elif acting.placement == "spread" and backend != "ray":
        text = f"needs execution.backend: ray, whose nodes the actors are spread over, not {backend}"
        yield ConfigProblem(text, ("acting", "placement"), ("execution", "backend"))


def _may_act(acting: "Acting", agent: AgentSettings, at: Path) -> Iterator[ConfigProblem]:
    """Check that an agent's algorithm supports the acting mode."""
    if acting.mode in agent.acting:
        return
    able = _listed((name for name, kind in AGENTS.items() if acting.mode in kind.acting), "or")
    modes = _listed((mode for mode in ("inline", "hogwild") if mode in agent.acting), "or")
    why = {
        "actors": "does not correct for the lag of actors' policies",
        "hogwild": agent.not_hogwild,
    }[acting.mode]
    yield ConfigProblem(f"{agent.name} {why}: use {able}, or mode {modes}", ("acting", "mode"), (*at, "name"))


def _mix(config: "Config") -> Iterator[ConfigProblem]:
    population, agents = config.population, config.agents
    path: Path = ("population", "mix")
    if population.mix is None:
        if agents is not None:
            text = "needs population.mix, which says how many members are each, as in `mix: {impala: 2, vmpo: 2}`"
            yield ConfigProblem(text, ("agents",), path, at_key=True)
        return
    total = sum(population.mix.values())
    if population.size != total:
        text = f"must be {total}, what mix adds up to, or left out, not {population.size}"
        yield ConfigProblem(text, ("population", "size"), path)
    if agents is None:
        text = "counts entries of `agents`, which is missing, as in `agents: {impala: {}, vmpo: {}}`"
        yield ConfigProblem(text, path, ("agents",), at_key=True)
        return
    for name in population.mix.keys() - agents.keys():
        text = unknown("no such entry of agents", name, agents, {})
        yield ConfigProblem(text, (*path, name), ("agents", name), at_key=True)
    for name in agents.keys() - population.mix.keys():
        text = "no member is one: count it in population.mix, or remove it"
        yield ConfigProblem(text, ("agents", name), (*path, name), at_key=True)


def _agent(config: "Config", at: Path, searched: Mapping[str, Path]) -> Iterator[ConfigProblem]:
    """Check the ranges of one agent's settings and hyperparameters.

    Args:
        config: of this agent alone.
        at: path of the agent's settings.
        searched: path of each searched hyperparameter.
    """
    agent = config.agent
    assert agent is not None
    if config.acting is not None:
        yield from _may_act(config.acting, agent, at)
    for f in fields(agent):
        if "low" not in f.metadata:
            continue
        low, high, whole = f.metadata["low"], f.metadata["high"], f.metadata.get("integer")
        allowed, value = describe_interval(low, high), getattr(agent, f.name)
        dimension = config.hparams.get(f.name)
        if dimension is None:
            for number, where in (
                [(n, (i,)) for i, n in enumerate(value)] if isinstance(value, tuple) else [(value, ())]
            ):
                if not is_within(number, low, high):
                    yield ConfigProblem(f"must be {allowed}, not {number:g}", (*at, f.name, *where))
            continue
        path = searched[f.name]
        if isinstance(dimension, Choice):
            types = int if whole else (int, float)
            for place, value in enumerate(dimension.values):
                if isinstance(value, bool) or not isinstance(value, types):
                    need = "an integer" if whole else "a number"
                    yield ConfigProblem(f"must be {need}, not {shown(value)}", (*path, "values", place))
                elif not is_within(value, low, high):
                    yield ConfigProblem(f"{f.name} must be {allowed}, not {shown(value)}", (*path, "values", place))
            continue
        if whole and not isinstance(dimension, IntUniform | IntLogUniform):
            yield ConfigProblem(f"{f.name} is an integer: use int_uniform, int_log_uniform or choice", (*path, "prior"))
        for end in ("low", "high"):
            if not is_within(getattr(dimension, end), low, high):
                yield ConfigProblem(f"{f.name} must be {allowed}, not {getattr(dimension, end):g}", (*path, end))
        if isinstance(dimension.bounds, tuple):
            for place, bound in enumerate(dimension.bounds):
                if not is_within(bound, low, high):
                    yield ConfigProblem(f"{f.name} must be {allowed}, not {bound:g}", (*path, "bounds", place))
    yield from _block(config, agent, at, searched.get("unroll_length", ()))
    yield from _minibatches(config, agent, at, searched.get("minibatches", ()))


def _block(config: "Config", agent: AgentSettings, at: Path, path: Path) -> Iterator[ConfigProblem]:
    """Check an agent's block length; `at` is the path of its settings, `path` of the unroll length."""
    searched = config.hparams.get("unroll_length")
    block: Path = (*at, "block_length")
    other: Path
    unbounded = not isinstance(searched, Choice | None) and searched.bounds == "none"
    if agent.block_length is None:
        if unbounded:
            yield ConfigProblem(f"without a bound needs {_dotted(block)}", (*path, "bounds"))
        return
    if agent.block_length < 1:
        yield ConfigProblem(f"must be >= 1, not {agent.block_length}", block)
        return
    if searched is None:
        largest, other = agent.unroll_length, (*at, "unroll_length")
    elif isinstance(searched, Choice):
        largest, other = largest_unroll(agent, searched), (*path, "values")
    else:
        largest, other = int(searched.high if unbounded else searched.limits[1]), (*path, "high")
    if agent.block_length < largest:
        text = f"block_length {agent.block_length} is shorter than the largest unroll, {largest}"
        yield ConfigProblem(text, block, other)


def _minibatches(config: "Config", agent: AgentSettings, at: Path, path: Path) -> Iterator[ConfigProblem]:
    """Check an agent's number of minibatches; `at` is the path of its settings, `path` of that number if searched."""
    if config.env is None:
        return
    envs, searched = config.env.num_envs, config.hparams.get("minibatches")
    if not agent.shuffles:
        if not 1 <= agent.minibatches <= envs:
            text = f"must be between 1 and env.num_envs ({envs}), not {agent.minibatches}"
            yield ConfigProblem(text, (*at, "minibatches"))
        return
    time = 1 if agent.core == "lstm" else _block_unit(config, agent)
    several = agent.unroll_mode == "exact" and "unroll_length" in config.hparams
    units = f"the {envs} x {time} = {envs * time} steps of {'which all blocks are multiples' if several else 'a block'}"
    if time == 1:
        units = f"env.num_envs ({envs})" + (
            ", because an LSTM learns from complete unrolls" if agent.core == "lstm" else ""
        )
    if searched is not None and not isinstance(searched, Choice):
        yield ConfigProblem(f"minibatches must divide {units}: use choice", (*path, "prior"))
        return
    chosen: list[tuple[object, Path]] = [(agent.minibatches, (*at, "minibatches"))]
    if searched is not None:
        chosen = [(value, (*path, "values", place)) for place, value in enumerate(searched.values)]
    divisors = [d for d in range(1, envs * time + 1) if envs * time % d == 0]
    for value, where in chosen:
        if isinstance(value, int) and value >= 1 and value not in divisors:
            near = [max(d for d in divisors if d < value), *[d for d in divisors if d > value][:1]]
            text = f"must divide {units}, as {_listed(map(str, near), 'and')} would, not {value}"
            yield ConfigProblem(text, where)


def _block_unit(config: "Config", agent: AgentSettings) -> int:
    """Greatest number of steps per env that divides every block of a run, whatever unroll length is searched."""
    searched = config.hparams.get("unroll_length")
    if agent.unroll_mode == "budget":
        return max(config.block_length, 1)
    if searched is None:
        return agent.unroll_length
    return math.gcd(*(v for v in searched.values if isinstance(v, int))) if isinstance(searched, Choice) else 1


def _section(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the section under a key of a raw tree; empty for anything else."""
    below = raw.get(key)
    return below if isinstance(below, dict) else {}


def _dotted(path: Path) -> str:
    return ".".join(map(str, path))


def _listed(names: Iterable[str], word: str) -> str:
    *first, last = names
    return f"{', '.join(first)} {word} {last}" if first else last
