"""What is wrong, or probably not meant, with settings that are fine one by one; each in one line."""

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from agents.settings import AGENTS, AgentSettings, live_hyperparameters
from pbtrl.loading import Fault, Path, shown, unknown
from pbtrl.space import Choice, IntLogUniform, IntUniform

if TYPE_CHECKING:
    from pbtrl.config import Acting, Config

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
    "epochs": "passes",
    "n_envs": "num_envs",
    "envs": "num_envs",
    "n_members": "size",
    "pop_size": "size",
    "population_size": "size",
    "steps": "env_steps_per_member",
    "env_steps": "env_steps_per_member",
    "time": "wall_clock",
    "hyperparameters": "hparams",
    "hyperparams": "hparams",
    "optimizer": "optimiser",
    "algo": "agent",
}
"""What other libraries call it -> what it is called here; used for suggestions only."""


def accepted(agent: AgentSettings | type[AgentSettings]) -> dict[str, tuple[float | None, float | None]]:
    """Live hyperparameter -> the closed interval that the agent accepts; None is open."""
    return {f.name: (f.metadata["low"], f.metadata["high"]) for f in fields(agent) if f.metadata.get("live")}


def largest_unroll(config: "Config") -> int:
    """The largest unroll that the agent may be given, in env steps per env."""
    assert config.agent is not None
    searched = config.hparams.get("unroll_length")
    if searched is None:
        return config.agent.unroll_length
    if isinstance(searched, Choice):
        numbers = [int(value) for value in searched.values if isinstance(value, int | float)]
        return max(numbers, default=config.agent.unroll_length)
    return int(searched.limits[1])


def before(raw: dict[str, Any]) -> Iterator[Fault]:
    """Faults that only the raw tree shows: what was written, rather than what it came to."""
    if raw.get("trainable") is not None:
        for key in ("env", "agent", "acting"):
            if raw.get(key) is not None:
                yield Fault.at("not used with `trainable`: remove one of the two", (key,), at_key=True)
    elif raw.get("env") is None:
        yield Fault.at("missing; say which env, as in `env: {id: CartPole-v1}`", ("env",))
    agent = {} if raw.get("agent") is None else raw["agent"]
    kind = AGENTS.get(str(agent.get("name", "impala"))) if isinstance(agent, dict) else None
    if raw.get("trainable") is None and kind is not None:
        searched = raw.get("hparams")
        yield from _written(kind, agent, searched if isinstance(searched, dict) else {})


def _written(kind: type[AgentSettings], agent: dict[str, Any], searched: dict[str, Any]) -> Iterator[Fault]:
    live = live_hyperparameters(kind)
    for name, value in agent.items():
        if name in live and isinstance(value, bool):
            yield Fault.at(f"must be a number, not {shown(value)}", ("agent", name))
    for name in searched:
        path = ("hparams", name)
        if name in live:
            if name in agent:
                text = "both fixed under agent and searched under hparams: remove one"
                yield Fault.at(text, ("agent", name), path, at_key=True)
        elif name in {f.name for f in fields(kind)}:
            yield Fault.at(f"fixed for a run. What can be searched: {', '.join(live)}", path, at_key=True)
        else:
            text = unknown(f"{kind.name} has no such hyperparameter", name, live, ALIASES)
            yield Fault.at(text, path, at_key=True)


def after(config: "Config") -> Iterator[Fault]:
    """Faults between settings that are valid one by one."""
    population, budget, fitness, strategy = config.population, config.budget, config.fitness, config.strategy
    if population.reference_members > population.size:
        yield Fault.at(
            f"reference_members {population.reference_members} is more than size {population.size}",
            ("population", "reference_members"),
            ("population", "size"),
        )
    if budget.env_steps_per_member is None and budget.total_steps is None:
        yield Fault.at("needs env_steps_per_member or total_steps", ("budget",))
    if fitness.min_episodes > fitness.window_episodes:
        yield Fault.at(
            f"min_episodes {fitness.min_episodes} is more than window_episodes {fitness.window_episodes}",
            ("fitness", "min_episodes"),
            ("fitness", "window_episodes"),
        )
    if strategy.name == "pbt":
        exploit = strategy.exploit
        where = ("strategy", "exploit")
        if exploit.bottom + exploit.top > 1.0:
            yield Fault.at(
                f"bottom {exploit.bottom:g} and top {exploit.top:g} are more than the whole population",
                (*where, "bottom"),
                (*where, "top"),
            )
        if exploit.method == "t_test" and exploit.episodes < 2:
            yield Fault.at("t_test needs at least 2 episodes, not 1", (*where, "episodes"), (*where, "method"))
        if len(set(strategy.copy)) != len(strategy.copy):
            yield Fault.at("names the same thing twice", ("strategy", "copy"))
    if config.agent is not None:
        if config.acting is not None:
            yield from _acting(config.acting, config.agent)
        yield from _agent(config, config.agent)


def _acting(acting: "Acting", agent: AgentSettings) -> Iterator[Fault]:
    mode: Path = ("acting", "mode")
    if acting.mode not in agent.acting:
        able = " or ".join(name for name, kind in AGENTS.items() if acting.mode in kind.acting)
        modes = " or ".join(m for m in ("inline", "hogwild") if m in agent.acting)
        why = {
            "actors": "does not correct for the lag of actors' policies",
            "hogwild": "learns more than weights, which cannot be shared without locks",
        }[acting.mode]
        yield Fault.at(f"{agent.name} {why}: use {able}, or mode {modes}", mode, ("agent", "name"))
    if acting.mode == "inline" and acting.processes > 1:
        yield Fault.at("inline has no processes of its own: set mode to actors or hogwild", ("acting", "processes"))
    if acting.replay and acting.mode != "actors":
        yield Fault.at(f"only mode actors can replay, not {acting.mode}", ("acting", "replay"), mode)


def _agent(config: "Config", agent: AgentSettings) -> Iterator[Fault]:
    for f in fields(agent):
        if not f.metadata.get("live"):
            continue
        low, high, whole = f.metadata["low"], f.metadata["high"], f.metadata["integer"]
        allowed = _interval(low, high)
        dimension = config.hparams.get(f.name)
        path = ("hparams", f.name)
        if dimension is None:
            value = getattr(agent, f.name)
            if not _inside(value, low, high):
                yield Fault.at(f"must be {allowed}, not {value:g}", ("agent", f.name))
            continue
        if isinstance(dimension, Choice):
            kinds = int if whole else (int, float)
            for place, value in enumerate(dimension.values):
                if isinstance(value, bool) or not isinstance(value, kinds):
                    need = "an integer" if whole else "a number"
                    yield Fault.at(f"must be {need}, not {shown(value)}", (*path, "values", place))
                elif not _inside(value, low, high):
                    yield Fault.at(f"{f.name} must be {allowed}, not {shown(value)}", (*path, "values", place))
            continue
        if whole and not isinstance(dimension, IntUniform | IntLogUniform):
            yield Fault.at(f"{f.name} is an integer: use int_uniform, int_log_uniform or choice", (*path, "prior"))
        for end in ("low", "high"):
            if not _inside(getattr(dimension, end), low, high):
                yield Fault.at(f"{f.name} must be {allowed}, not {getattr(dimension, end):g}", (*path, end))
        if isinstance(dimension.bounds, tuple):
            for place, bound in enumerate(dimension.bounds):
                if not _inside(bound, low, high):
                    yield Fault.at(f"{f.name} must be {allowed}, not {bound:g}", (*path, "bounds", place))
    yield from _block(config, agent)


def _block(config: "Config", agent: AgentSettings) -> Iterator[Fault]:
    searched = config.hparams.get("unroll_length")
    block: Path = ("agent", "block_length")
    path: Path = ("hparams", "unroll_length")
    other: Path
    unbounded = not isinstance(searched, Choice | None) and searched.bounds == "none"
    if config.env is not None and not 1 <= agent.minibatches <= config.env.num_envs:
        yield Fault.at(
            f"must be between 1 and env.num_envs ({config.env.num_envs}), not {agent.minibatches}",
            ("agent", "minibatches"),
        )
    if agent.block_length is None:
        if unbounded:
            yield Fault.at("without a bound needs agent.block_length", (*path, "bounds"))
        return
    if agent.block_length < 1:
        yield Fault.at(f"must be >= 1, not {agent.block_length}", block)
        return
    if searched is None:
        largest, other = agent.unroll_length, ("agent", "unroll_length")
    elif isinstance(searched, Choice):
        largest, other = largest_unroll(config), (*path, "values")
    else:
        largest, other = int(searched.high if unbounded else searched.limits[1]), (*path, "high")
    if agent.block_length < largest:
        yield Fault.at(f"block_length {agent.block_length} is shorter than the largest unroll, {largest}", block, other)


def _inside(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _interval(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"in [{low:g}, {high:g}]"
    return f">= {low:g}" if low is not None else f"<= {high:g}"


def warnings(config: "Config") -> Iterator[str]:
    """What runs, but is probably not meant."""
    if config.every >= config.steps_per_member and config.strategy.name == "pbt":
        yield (
            f"strategy.ready.every ({config.every:,}) is the whole budget of a member "
            f"({config.steps_per_member:,} {config.unit}): nothing is ever exploited"
        )
    elif config.burn_in >= config.steps_per_member and config.strategy.name == "pbt":
        yield (
            f"strategy.ready.burn_in ({config.burn_in:,}) is not over before a member's budget is "
            f"({config.steps_per_member:,} {config.unit}): nothing is ever exploited"
        )
    if config.env is None or config.fitness.source == "evaluation":
        return
    length = _episode_length(config.env.id)
    per_env = config.every // config.env.num_envs
    reset = config.env.between_slices == "reset"
    episodes = config.env.num_envs * (per_env // length) if reset else config.every // length
    if episodes < config.fitness.min_episodes:
        yield (
            f"a slice of {config.every:,} env steps holds about {episodes} episodes of {length:,} steps, "
            f"fewer than fitness.min_episodes ({config.fitness.min_episodes}): members may have no fitness"
        )


def _episode_length(env_id: str) -> int:
    """A usual episode, in env steps; a guess that only a warning rests on."""
    physics = ("HalfCheetah", "Ant", "Hopper", "Humanoid", "Walker2d", "Swimmer", "InvertedPendulum")
    return 1000 if env_id.startswith(("ALE/", *physics)) else 200
